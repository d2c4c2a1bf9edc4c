"""RowSparse: indices of every kind, sums, and arithmetic that must not pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from adaptx import sparse
from adaptx.sparse import RowSparse
from tests.conftest import x64
from tests.sparse.tables import ROWS, USED, WIDTH, dense_gradient, draws, table


def rows(seed: int = 1, **kwargs: Any) -> tuple[np.ndarray, jax.Array, RowSparse]:
    ids, values = draws(1, seed=seed)
    return ids[0], values[0], RowSparse(ids[0], values[0], ROWS, **kwargs)


def test_it_is_the_dense_gradient() -> None:
    ids, values, g = rows()
    expected = dense_gradient(ids, values)
    np.testing.assert_allclose(g.todense(), expected, rtol=1e-6)
    np.testing.assert_allclose(g.coalesce().todense(), expected, rtol=1e-6)
    x = table()
    np.testing.assert_allclose(x + g, np.asarray(x) + expected, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(x) + g, np.asarray(x) + expected, rtol=1e-6)
    assert isinstance(np.asarray(x) + g, jax.Array)
    assert (g.shape, g.ndim, g.dtype) == ((ROWS, WIDTH), 2, jnp.float32)
    moved = optax.apply_updates({"emb": x}, {"emb": g})["emb"]
    np.testing.assert_array_equal(moved, x + g)


def test_coalesced_rows_are_distinct_ascending_and_dropped_ones_are_zero() -> None:
    ids, values, _ = rows()
    g = RowSparse(ids, values.at[np.flatnonzero((ids < 0) | (ids >= ROWS))].set(jnp.nan), ROWS).coalesce()
    indices = np.asarray(g.indices)
    assert (np.diff(indices) > 0).all()
    assert set(indices[indices < ROWS]) == {*ids[(ids >= 0) & (ids < ROWS)].tolist()}
    assert not np.asarray(g.values)[indices >= ROWS].any()
    assert g.unique
    assert g.indices.shape == ids.shape


def test_promised_unique_rows_are_not_sorted_but_dropped_ones_are_zero() -> None:
    g = RowSparse([4, -1, 0, ROWS], jnp.full((4, WIDTH), jnp.nan).at[::2].set(1.0), ROWS, unique=True).coalesce()
    np.testing.assert_array_equal(g.indices, [4, ROWS + 1, 0, ROWS + 3])
    np.testing.assert_array_equal(g.values[:, 0], [1, 0, 1, 0])
    text = str(jax.make_jaxpr(lambda i, v: RowSparse(i, v, ROWS, unique=True).coalesce())(jnp.arange(4), g.values))
    assert "sort" not in text


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("on_host", [True, False])
def test_ids_of_any_integer_dtype_and_shape(dtype: str, on_host: bool) -> None:
    """A 64-bit id that int32 would wrap into the table is dropped, and so is every other outside it."""
    info = np.iinfo(dtype)
    ids = np.array([[0, 2, info.max], [2, ROWS, info.min]], dtype)
    if info.bits == 64 and on_host:
        ids[0, 2] = 2**32 + 3
    values = jnp.ones((2, 3, WIDTH))
    expected = np.zeros((ROWS, WIDTH))
    expected[0], expected[2] = (1 if info.min else 2), 2
    with x64(info.bits == 64 and not on_host):
        g = RowSparse(ids if on_host else jnp.asarray(ids), values, ROWS)
        np.testing.assert_array_equal(g.todense(), expected)


def test_sixteen_bits_are_summed_in_float32() -> None:
    ids, values = jnp.zeros(1024, jnp.int32), jnp.ones((1024, 1), jnp.bfloat16)
    assert RowSparse(ids, values, 3).todense()[0, 0] == 1024  # bfloat16 stops at 256
    assert RowSparse(ids, values, 3).todense().dtype == jnp.bfloat16
    assert RowSparse(ids, values, 3).coalesce().dtype == jnp.float32


@pytest.mark.parametrize("row", [(), (2,), (2, 3)])
@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize("num_rows", [1, 4])
def test_any_shape_of_row_and_number_of_ids(row: tuple[int, ...], n: int, num_rows: int) -> None:
    ids = np.zeros(n, np.int64) if num_rows == 1 else np.arange(n) % (num_rows + 1)
    g = RowSparse(ids, jnp.ones((n, *row)), num_rows)
    expected = np.zeros((num_rows, *row))
    np.add.at(expected, ids[ids < num_rows], 1)
    np.testing.assert_array_equal(g.todense(), expected)
    np.testing.assert_array_equal(jnp.ones((num_rows, *row)) + g, 1 + expected)


def test_large_ids() -> None:
    """Beyond 2^24, where float32 cannot count, nothing is lost; abstractly, since no such table is needed."""
    g = RowSparse(np.array([2**24 + 1, 2**31 - 4]), jnp.ones((2, 1)), 2**31 - 3)
    np.testing.assert_array_equal(g.coalesce().indices, [2**24 + 1, 2**31 - 4])


def test_order_does_not_matter() -> None:
    ids, values, g = rows()
    order = np.random.default_rng(3).permutation(USED)
    other = RowSparse(ids[order], values[order], ROWS)
    np.testing.assert_allclose(g.todense(), other.todense(), rtol=1e-6)
    np.testing.assert_array_equal(g.coalesce().indices, other.coalesce().indices)


def test_concat() -> None:
    (ids, values, g), (more, others, h) = rows(1), rows(2)
    both = RowSparse.concat(g, h)
    np.testing.assert_allclose(both.todense(), dense_gradient(ids, values) + dense_gradient(more, others), rtol=1e-5)
    assert RowSparse.concat(g) is g
    assert not RowSparse.concat(g.coalesce(), h.coalesce()).unique
    with pytest.raises(ValueError, match=r"of one table, got tables of \[\(11, 3\), \(12, 3\)\]"):
        RowSparse.concat(g, RowSparse(ids, values, ROWS + 1))
    with pytest.raises(ValueError, match="one table"):
        RowSparse.concat()


def test_a_sum_is_rounded_once() -> None:
    """bfloat16: 1 + 2^-9 + 2^-9 is 1 + 2^-8 only if the two are summed before rounding, and so is the table's sum."""
    x = jnp.ones((2, 1), jnp.bfloat16)
    g = RowSparse([1, 1], jnp.full((2, 1), 2.0**-8, jnp.bfloat16), 2)
    assert (x + g)[1, 0] == 1 + 2**-7


ARITHMETIC: dict[str, Callable[[Any], Any]] = {
    "scale": lambda g: optax.scale(-1.0).update(g, optax.EmptyState())[0],
    "scale by an int": lambda g: optax.scale(-1).update(g, optax.EmptyState())[0],
    "clip": lambda g: optax.clip(1.0).update(g, optax.EmptyState())[0],
    "global_norm": optax.global_norm,
    "optax.tree": lambda g: optax.tree_utils.tree_add_scale(g, 0.1, g),
    "clip_by_global_norm": lambda g: optax.clip_by_global_norm(1.0).update(g, optax.EmptyState())[0],
    "tree addition": lambda g: jax.tree.map(jnp.add, g, g),
    "tree difference": lambda g: jax.tree.map(lambda a, b: a - b, g, g),
    "tree product": lambda g: jax.tree.map(lambda a: a * 2, g),
    "cast": lambda g: jax.tree.map(lambda a: a.astype(jnp.bfloat16), g),
    "optax cast": lambda g: optax.tree_utils.tree_cast(g, jnp.bfloat16),
    "optax norm": lambda g: optax.tree_utils.tree_l2_norm(g),
    "ema": lambda g: optax.ema(0.9).update({"emb": g}, optax.ema(0.9).init({"emb": table()}))[0],
    "sgd": lambda g: optax.sgd(0.1).update(g, optax.sgd(0.1).init(table()))[0],
    "square": lambda g: jax.tree.map(jnp.square, g),
    "sum of two": lambda g: g + g,
    "product": lambda g: g * 2,
    "negative": lambda g: -g,
    "a number plus rows": lambda g: 1.0 + g,
    "python sum": lambda g: sum([g, g]),
    "optax adam": lambda g: optax.adam(0.1).update({"emb": g}, optax.adam(0.1).init({"emb": table()}))[0],
    "MultiSteps outside": lambda g: optax.MultiSteps(optax.sgd(0.1), 2).update(
        {"emb": g}, optax.MultiSteps(optax.sgd(0.1), 2).init({"emb": table()})
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # newer names of optax's norms
@pytest.mark.parametrize("name", ARITHMETIC)
@pytest.mark.parametrize("compiled", [False, True])
def test_foreign_arithmetic_raises(name: str, compiled: bool) -> None:
    """Whatever would change the indices, or the rows without summing equal indices first."""
    g = rows()[2]
    # JAX's own refusals: an operation on typed arrays is a TypeError or ValueError, an abstract method if eager.
    with pytest.raises((TypeError, ValueError, NotImplementedError)):
        (jax.jit(ARITHMETIC[name]) if compiled else ARITHMETIC[name])(g)


def test_an_ordinary_optimizer_refuses_it_by_name() -> None:
    import adaptx

    tx = adaptx.adam(0.1)
    with pytest.raises(TypeError, match=r"adam: the gradient at \['emb'\]\.indices is .*; it must be floating"):
        tx.update({"emb": rows()[2]}, tx.init({"emb": table()}))


def test_pmean_raises() -> None:
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    mean = functools.partial(jax.tree.map, lambda a: jax.lax.pmean(a, "d"))
    mapped = jax.shard_map(mean, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec())
    with pytest.raises(TypeError):
        mapped(rows()[2])


def test_what_moves_rows_passes() -> None:
    """jit, vmap, scan, cond, where and device_put take it as a tree of two arrays."""
    g = rows()[2]
    np.testing.assert_array_equal(jax.jit(lambda g: g)(g).indices, g.indices)
    stacked = jax.tree.map(lambda a, b: jnp.stack([a, b]), g, g)
    np.testing.assert_array_equal(jax.vmap(RowSparse.todense)(stacked)[1], g.todense())
    np.testing.assert_array_equal(jax.lax.scan(lambda c, g: (c + g, None), table(), stacked)[0], table() + g + g)
    np.testing.assert_array_equal(jax.lax.cond(True, lambda: g, lambda: g).todense(), g.todense())
    assert all(np.all(a) for a in jax.tree.leaves(jax.tree.map(jnp.isfinite, g)))
    zeroed, _ = optax.zero_nans().update(g.with_values(g.values * jnp.nan), optax.zero_nans().init(table()))
    np.testing.assert_array_equal(zeroed.todense(), 0)
    chosen = jax.tree.map(lambda a, b: jnp.where(False, a, b), rows(2)[2], g)
    np.testing.assert_array_equal(chosen.todense(), g.todense())
    assert jax.tree.leaves(jax.device_put(g))[0].dtype == jax.tree.leaves(g)[0].dtype
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_flatten_with_path({"emb": g})[0]]
    assert paths == ["['emb'].indices", "['emb'].values"]
    assert "float32[8, 3] of 11 rows" in repr(g)
    assert "object" in repr(jax.tree.map(lambda _: object(), g))


@pytest.mark.parametrize(
    ("arguments", "error", "line"),
    [
        ((np.zeros(2), jnp.ones((2, 1)), 3), TypeError, "indices must be integers, got float64"),
        ((np.zeros(2, int), jnp.ones((2, 1), int), 3), TypeError, "values must be floating or complex, got int32"),
        ((np.zeros(2, int), jnp.ones((3, 1)), 3), ValueError, r"values of shape \(3, 1\) do not begin with \(2,\)"),
        ((np.zeros((2, 2), int), jnp.ones((2, 1)), 3), ValueError, r"do not begin with \(2, 2\)"),
        ((np.zeros(2, int), jnp.ones((2, 1)), -1), ValueError, "num_rows must be an int from 1 to"),
        ((np.zeros(2, int), jnp.ones((2, 1)), 3.0), ValueError, "num_rows must be an int from 1 to"),
        ((np.zeros(2, int), jnp.ones((2, 1)), 2**31 - 1), ValueError, "num_rows must be an int from 1 to"),
    ],
)
def test_bad_arguments(arguments: Any, error: type[Exception], line: str) -> None:
    with pytest.raises(error, match=line) as caught:
        RowSparse(*arguments)
    assert "\n" not in str(caught.value)


def test_zeros_like_is_an_empty_gradient() -> None:
    """It cannot be kept from the typed indices; what it makes of them is dropped, not row 0."""
    empty = jax.tree.map(jnp.zeros_like, rows()[2].coalesce())
    np.testing.assert_array_equal(empty.indices, ROWS)
    np.testing.assert_array_equal(table() + empty, table())
    for tx in (sparse.adam(0.1), sparse.adam(0.1, bias="row")):
        _, state = tx.update(empty, tx.init(table()), table())
        assert not any(np.any(a) for a in jax.tree.leaves(state) if a.ndim)


def test_tables_of_other_kinds_and_parts_that_are_none() -> None:
    g = rows()[2]
    for x in (jnp.ones((ROWS, WIDTH), jnp.int32), jnp.ones((ROWS, WIDTH), bool)):
        with pytest.raises(TypeError, match="rows of float32 cannot be added to a table of"):
            x + g
    with pytest.raises(TypeError, match="rows of complex64 cannot be added to a table of float32"):
        table() + g.with_values(g.values + 1j)
    with pytest.raises(TypeError, match="the parts must be RowSparse, got list"):
        RowSparse.concat([g, g])
    with pytest.raises(TypeError, match="values must be floating or complex, got float8"):
        RowSparse([1], jnp.ones((1, 2), jnp.float8_e4m3fn), 3)
    for wrong in (0, True, 2.0):
        with pytest.raises(ValueError, match="num_rows must be an int from 1 to"):
            RowSparse([1], jnp.ones((1, 2)), wrong)


def test_another_tables_rows() -> None:
    with pytest.raises(ValueError, match=r"a table of shape \(11, 3\) cannot be added to one of \(11, 4\)"):
        jnp.ones((ROWS, WIDTH + 1)) + rows()[2]
