"""rows_value_and_grad and unique_ids: the gradient of the dense loss, whatever the ids."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptx import sparse
from adaptx.sparse import UniqueIds, rows_value_and_grad, unique_ids
from tests.sparse.tables import ROWS, WIDTH, draws, kept, table

few = settings(deadline=None, max_examples=40)


def loss(w: Any, rows: Any, y: Any) -> jax.Array:
    return jnp.mean((jnp.tanh(rows) @ w - y) ** 2)


def dense_loss(w: Any, table: Any, ids: Any, y: Any) -> jax.Array:
    """The same with the table; ids outside read zeros."""
    inside = kept(np.asarray(ids))
    rows = jnp.where(inside[..., None], table[jnp.where(inside, ids, 0)], 0)
    return loss(w, rows, y)


IDS = draws(3)[0]
WAYS = {
    "plain": lambda ids: ids,
    "on the host": lambda ids: unique_ids(ids, ROWS),
    "on the device": lambda ids: unique_ids(jnp.asarray(ids), ROWS),
    "inside jit": lambda ids: jax.jit(lambda i: unique_ids(i, ROWS))(jnp.asarray(ids)),
    "with room": lambda ids: unique_ids(ids, ROWS, capacity=50),
}


@pytest.mark.parametrize("way", WAYS)
def test_equals_the_dense_gradient(way: str) -> None:
    w, y = jnp.arange(1.0, WIDTH + 1), jnp.ones(IDS.shape)
    value, (of_w, of_table) = jax.jit(rows_value_and_grad(loss))(w, table(), WAYS[way](IDS), y)
    expected, (w_expected, expected_table) = jax.value_and_grad(dense_loss, (0, 1))(w, table(), IDS, y)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(of_w, w_expected, rtol=1e-5)
    np.testing.assert_allclose(of_table.todense(), expected_table, rtol=1e-5, atol=1e-7)
    assert of_table.unique == (way != "plain")
    x = table() + of_table
    np.testing.assert_array_equal(x[10], table()[10])


def test_trees_of_tables_several_lookups_and_aux() -> None:
    tables = {"user": table(), "item": table(seed=3)}
    ids = {"user": {"a": IDS[0], "b": unique_ids(IDS[1], ROWS)}, "item": IDS[2]}

    def two(w: Any, rows: Any, scale: Any) -> Any:
        score = jnp.sum(rows["user"]["a"] * rows["item"]) + jnp.sum(rows["user"]["b"] ** 2) * w
        return scale * score, rows

    (value, rows), (_, grads) = rows_value_and_grad(two, has_aux=True)(jnp.float32(2), tables, ids, 0.5)
    assert rows["user"]["a"].shape == (*IDS[0].shape, WIDTH)

    def dense(tables: Any) -> Any:
        look = lambda k, i: jnp.where(kept(i)[:, None], tables[k][np.where(kept(i), i, 0)], 0)
        one = {"user": {"a": look("user", IDS[0]), "b": look("user", IDS[1])}, "item": look("item", IDS[2])}
        return two(jnp.float32(2), one, 0.5)[0]

    expected_value, expected = jax.value_and_grad(dense)(tables)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    for k in tables:
        np.testing.assert_allclose(grads[k].todense(), expected[k], rtol=1e-5, atol=1e-6)


def test_rows_that_owe_decay_are_read_with_it() -> None:
    tx = sparse.adagrad(0.1, weight_decay=0.5, decay_at="read")
    state = tx.init({"emb": table()})
    g = sparse.RowSparse([0], jnp.ones((1, WIDTH)), ROWS)
    _, state = tx.update({"emb": g}, state, {"emb": table()})
    f = rows_value_and_grad(lambda dense, rows, batch: jnp.sum(rows["emb"]))
    value, _ = f((), {"emb": table()}, {"emb": np.array([3, 4])}, None, state)
    np.testing.assert_allclose(value, 0.95 * jnp.sum(table()[3:5]), rtol=1e-6)


def test_nothing_of_the_tables_size_is_made() -> None:
    big = jax.ShapeDtypeStruct((1 << 20, 8), jnp.float32)
    f = jax.jit(rows_value_and_grad(lambda d, r, b: jnp.sum(r**2)))
    memory = f.lower((), big, jnp.zeros(16, jnp.int32)).compile().memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 1 << 14


@few
@given(st.lists(st.integers(-3, ROWS + 3), max_size=20), st.sampled_from(["int8", "int32", "int64"]))
def test_unique_ids_host_and_device_agree(ids: list[int], dtype: str) -> None:
    array = np.array(ids, dtype)
    host = unique_ids(array, ROWS)
    device = unique_ids(jnp.asarray(array.astype(np.int32)), ROWS, capacity=len(host.ids))
    expected = sorted({i for i in ids if 0 <= i < ROWS})
    for found in (host, device):
        assert int(found.count) == len(expected)
        assert not found.overflow
        np.testing.assert_array_equal(found.ids[: len(expected)], expected)
        assert (np.diff(np.asarray(found.ids)) > 0).all()
        assert (np.asarray(found.ids)[len(expected) :] >= ROWS).all()
        inverse = np.asarray(found.inverse)
        for i, where in zip(ids, inverse.tolist(), strict=True):
            assert found.ids[where] == i if 0 <= i < ROWS else where == -1
    size = len(host.ids)
    assert size & (size - 1) == 0
    assert size < 2 * max(len(expected), 1)


def test_overflow_is_never_silent() -> None:
    ids = np.array([[5, 3, 3], [1, 9, -1]])
    with pytest.raises(ValueError, match="4 different ids do not fit into a capacity of 3"):
        unique_ids(ids, ROWS, capacity=3)
    found = jax.jit(lambda i: unique_ids(i, ROWS, capacity=3))(jnp.asarray(ids))
    assert found.overflow
    assert int(found.count) == 4
    value, _ = rows_value_and_grad(lambda d, rows, b: jnp.sum(rows))((), table(), found)
    assert np.isnan(value)
    assert not unique_ids(jnp.asarray(ids), ROWS, capacity=4).overflow


def test_shapes() -> None:
    for ids in (np.zeros((0,), int), np.zeros((2, 0), int), np.array(3), [], [[1, 2], [3, 4]]):
        found = unique_ids(ids, ROWS)
        assert found.inverse.shape == np.shape(ids)
        value, (_, g) = rows_value_and_grad(lambda d, r, b: jnp.sum(r))((), table(), found)
        assert np.isfinite(value)
        assert g.todense().shape == (ROWS, WIDTH)
    assert len(unique_ids(jnp.zeros((3, 3), jnp.int32), ROWS).ids) == 16


def test_bad_input() -> None:
    with pytest.raises(TypeError, match="unique_ids: ids must be integers, got float64"):
        unique_ids(np.ones(2), ROWS)
    for capacity in (0, 2.0, -1):
        with pytest.raises(ValueError, match="unique_ids: capacity must be an int of at least 1"):
            unique_ids(np.ones(2, int), ROWS, capacity)
    f = rows_value_and_grad(loss)
    for tables, ids, line in (
        ({"a": table()}, {"b": np.array([1])}, "ids must be a tree like the tables"),
        ({"a": table()}, {"a": {}}, "a table has no ids"),
    ):
        with pytest.raises(ValueError, match=line) as caught:
            f((), tables, ids)
        assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="read: ids must be integers, got float64"):
        f(jnp.ones(WIDTH), table(), np.ones(2), 1.0)
    assert isinstance(unique_ids([1], ROWS), UniqueIds)


def test_unique_ids_made_for_a_smaller_table_touch_nothing_else() -> None:
    found = unique_ids([1, 2, 2], 4, 4)
    _, (_, g) = rows_value_and_grad(lambda d, rows, b: jnp.sum(rows))((), table(), found)
    np.testing.assert_array_equal(g.indices[:2], [1, 2])
    assert (np.asarray(g.indices[2:]) >= ROWS).all()


@pytest.mark.parametrize("wrong", [0, -1, 4.5, True, None, 2**31])
def test_num_rows_is_checked(wrong: Any) -> None:
    for ids in (np.array([1]), jnp.array([1])):
        with pytest.raises(ValueError, match="unique_ids: num_rows must be an int from 1 to"):
            unique_ids(ids, wrong)
