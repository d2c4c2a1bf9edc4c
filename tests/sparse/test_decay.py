"""Decay at read: the dense decay, paid when a row is looked at."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import adaptx
from adaptx import sparse
from tests.conftest import x64
from tests.sparse.tables import ROWS, WIDTH, dense_gradients, draws, run_dense, run_sparse, table

RATE = optax.exponential_decay(0.1, 20, 0.7)


@pytest.mark.parametrize("constant", [True, False])
def test_adagrad_with_decay_is_the_dense_one(constant: bool) -> None:
    """120 steps under a schedule: what `flush` pays, and what `read` shows, is the dense table."""
    rate: Any = 0.05 if constant else RATE
    wd: Any = 0.1 if constant else optax.linear_schedule(0.2, 0.05, 100)
    ids, values = draws(120)
    arguments = dict(initial_accumulator=0.1, weight_decay=wd)
    lazy = sparse.adagrad(rate, **arguments, decay_at="read")
    x, state = run_sparse(lazy, table(), ids, values)
    y, _ = run_dense(adaptx.adagrad(rate, **arguments), table(), dense_gradients(ids, values, jnp.float32))
    flushed, settled = sparse.flush({"emb": x}, state)
    np.testing.assert_allclose(flushed["emb"], y, rtol=0, atol=3e-6)
    rows = sparse.read({"emb": x}, state, {"emb": jnp.arange(ROWS)})["emb"]
    np.testing.assert_allclose(rows, y, rtol=0, atol=3e-6)
    np.testing.assert_array_equal(sparse.flush(flushed, settled)[0]["emb"], flushed["emb"])  # nothing is owed twice
    assert np.abs(np.asarray(x - y)).max() > 0.1  # there was much to pay
    touched, _ = run_sparse(sparse.adagrad(rate, **arguments), table(), ids, values)
    assert np.abs(np.asarray(touched - y)).max() > 0.1  # which decay at the touch does not


def test_rowwise_adagrad_with_decay_and_a_row_that_is_never_used() -> None:
    ids, values = draws(60)
    tx = sparse.rowwise_adagrad(0.05, weight_decay=0.1, decay_at="read")
    x, state = run_sparse(tx, table(), ids, values)
    np.testing.assert_array_equal(x[10], table()[10])
    rows = sparse.read({"emb": x}, state, {"emb": jnp.array([10])})["emb"]
    np.testing.assert_allclose(rows[0], table()[10] * (1 - 0.005) ** 60, rtol=1e-6)


def test_nothing_is_lost_in_a_long_run() -> None:
    """10^6 steps of log(1 - 1e-4) = -100: one float32 sum would be off by 3 in the first digit."""
    from adaptx.sparse.decay import _added

    step = jnp.log1p(jnp.float32(-1e-4))
    total = jax.jit(lambda: jax.lax.fori_loop(0, 10**6, lambda _, s: _added(s, step), jnp.zeros(2)))()
    exact = 1e6 * float(step)
    assert abs(float(total[0]) + float(total[1]) - exact) < 1e-6 * abs(exact) / 10
    naive = jax.jit(lambda: jax.lax.fori_loop(0, 10**6, lambda _, s: s + step, jnp.float32(0)))()
    assert abs(float(naive) - exact) > 1e-2


def test_dense_leaves_and_leaves_without_gradient() -> None:
    """A dense leaf decays at once and owes nothing; one without gradient is left alone, as in the dense optimizer."""
    ids, values = draws(3)
    params = {"emb": table(), "net": table(seed=4), "still": table(seed=5)}
    lazy = sparse.adagrad(0.1, weight_decay=0.1, decay_at="read")
    dense = adaptx.adagrad(0.1, weight_decay=0.1)
    x, state = params, lazy.init(params)
    y, other = params, dense.init(params)
    gs = dense_gradients(ids, values, jnp.float32)
    for i, v, g in zip(ids, values, gs, strict=True):
        of = {"emb": sparse.RowSparse(i, v, ROWS), "net": table(seed=6), "still": None}
        u, state = lazy.update(of, state, x)
        x = {
            **optax.apply_updates({k: x[k] for k in ("emb", "net")}, {k: u[k] for k in ("emb", "net")}),
            "still": x["still"],
        }
        u, other = dense.update({**of, "emb": g}, other, y)
        y = {
            **optax.apply_updates({k: y[k] for k in ("emb", "net")}, {k: u[k] for k in ("emb", "net")}),
            "still": y["still"],
        }
    x, _ = sparse.flush(x, state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), x, y)


def test_masked_tables_owe_nothing() -> None:
    params = {"a": table(), "b": table(seed=3)}
    tx = sparse.adam(0.1, weight_decay=0.1, mask={"a": True, "b": False}, decay_at="read")
    state = tx.init(params)
    assert state.paid["b"] is None
    g = {k: sparse.RowSparse([0], jnp.ones((1, WIDTH)), ROWS) for k in params}
    u, state = tx.update(g, state, params)
    x = optax.apply_updates(params, u)
    rows = sparse.read(x, state, {"a": jnp.array([0, 1]), "b": jnp.array([0, 1])})
    np.testing.assert_allclose(rows["a"][1], 0.99 * params["a"][1], rtol=1e-6)
    np.testing.assert_array_equal(rows["b"], x["b"][:2])
    np.testing.assert_array_equal(rows["a"][0], x["a"][0])


def test_read_finds_tables_by_path() -> None:
    """Inside a chain and a multi_transform, by the whole path or its end; ids of any shape, several look-ups."""
    params = {"tables": {"user": table(), "item": table(seed=2)}, "net": jnp.ones(3)}
    lazy = sparse.adagrad(0.1, weight_decay=0.5, decay_at="read")
    tx = optax.chain(optax.multi_transform({"rows": lazy, "net": optax.sgd(0.1)}, {"tables": "rows", "net": "net"}))
    state = tx.init(params)
    of = lambda k: sparse.RowSparse([1], jnp.ones((1, WIDTH)), ROWS)
    grads = {"tables": {k: of(k) for k in ("user", "item")}, "net": jnp.ones(3)}
    _, state = tx.update(grads, state, params)
    for tables in (params["tables"], {"user": params["tables"]["user"]}):
        ids = {k: {"one": jnp.array([[0, 2], [-1, ROWS]]), "two": jnp.array(3)} for k in tables}
        rows = sparse.read(tables, state, ids)["user"]
        np.testing.assert_allclose(rows["one"][0], 0.95 * params["tables"]["user"][jnp.array([0, 2])], rtol=1e-6)
        np.testing.assert_array_equal(rows["one"][1], 0)
        assert rows["two"].shape == (WIDTH,)
    with pytest.raises(ValueError, match=r"may be any of \['tables'\]\['item'\], \['tables'\]\['user'\]"):
        sparse.read(params["tables"]["user"], state, jnp.array([0]))
    with pytest.raises(ValueError, match="read: ids must be a tree like the tables"):
        sparse.read(params["tables"], state, {"user": jnp.array([0])})
    plain = optax.sgd(0.1).init(params)
    np.testing.assert_array_equal(sparse.read(table(), plain, jnp.array([4])), table()[4:5])
    np.testing.assert_array_equal(sparse.flush(params, plain)[0]["net"], params["net"])


def test_bfloat16_tables_are_read_in_float32() -> None:
    tx = sparse.adagrad(0.1, weight_decay=1e-3, decay_at="read")
    x = table(jnp.bfloat16)
    g = sparse.RowSparse([0], jnp.ones((1, WIDTH)), ROWS)
    _, state = tx.update(g, tx.init(x), x)
    rows = sparse.read(x, state, jnp.array([3]))
    assert rows.dtype == jnp.float32
    np.testing.assert_allclose(rows[0], np.asarray(x[3], float) * (1 - 1e-4), rtol=1e-6)


def test_full_decay_keeps_the_table_finite() -> None:
    tx = sparse.adagrad(1.0, weight_decay=2.0, decay_at="read")
    x, state = run_sparse(tx, table(), *draws(5))
    assert np.isfinite(sparse.flush({"emb": x}, state)[0]["emb"]).all()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="adagrad: decay_at needs weight_decay"):
        sparse.adagrad(0.1, decay_at="read")
    with pytest.raises(ValueError, match="adam: decay_at must be 'touch' or 'read', got 'late'"):
        sparse.adam(0.1, weight_decay=0.1, decay_at="late")
    tx = sparse.adam(0.1, weight_decay=0.1, decay_at="read")
    with pytest.raises(ValueError, match="update needs params"):
        tx.update(sparse.RowSparse([0], jnp.ones((1, WIDTH)), ROWS), tx.init(table()))


def test_float64() -> None:
    with x64():
        ids, values = draws(5, jnp.float64)
        tx = sparse.adagrad(0.1, weight_decay=0.1, decay_at="read")
        x, _ = run_sparse(tx, table(jnp.float64), ids, values)
        assert x.dtype == jnp.float64


def decayed(steps: int = 1, **kwargs: Any) -> tuple[Any, Any, Any]:
    """A tree of two tables of which row 0 of the first was used."""
    tx = sparse.adagrad(0.1, weight_decay=0.5, decay_at="read", **kwargs)
    params = {"emb": table(), "sub": {"emb": table(seed=2)}}
    state = tx.init(params)
    for _ in range(steps):
        g = sparse.RowSparse([0], jnp.ones((1, WIDTH)), ROWS)
        updates, state = tx.update({"emb": g, "sub": {"emb": g}}, state, params)
        params = optax.apply_updates(params, updates)
    return tx, params, state


def test_a_table_is_found_once_or_not_at_all() -> None:
    """By its path among all tables; part of the tree, or another one, must not take a debt that is not its own."""
    _, params, state = decayed()
    rows = sparse.read(params, state, {"emb": jnp.array([1]), "sub": {"emb": jnp.array([1])}})
    np.testing.assert_allclose(rows["sub"]["emb"][0], 0.95 * params["sub"]["emb"][1], rtol=1e-6)
    for tables, ids, line in (
        (params["sub"], {"emb": jnp.array([1])}, r"\['emb'\] may be any of \['emb'\], \['sub'\]\['emb'\]"),
        ({"other": table()}, {"other": jnp.array([1])}, r"\['other'\] is not in the state"),
        ({"sub": {"emb": table()[:5]}}, {"sub": {"emb": jnp.array([1])}}, "has 5 rows, in the state 11"),
        (jnp.float32(1), jnp.array([1]), "may be any of"),
    ):
        with pytest.raises(ValueError, match=line):
            sparse.read(tables, state, ids)
    masked = sparse.adam(0.1, weight_decay=0.1, decay_at="read", mask={"a": True, "b": False})
    with pytest.raises(ValueError, match=r"may be any of \['a'\], \['b'\]"):
        sparse.read(table(), masked.init({"a": table(), "b": table()}), jnp.array([1]))
    with pytest.raises(TypeError, match=r"of UniqueIds give `\.ids`"):
        sparse.read({"emb": table()}, (), {"emb": sparse.unique_ids([1], ROWS)})


def test_flush_wants_all_and_loses_nothing() -> None:
    _, params, state = decayed()
    for part in ({"emb": params["emb"]}, {"zzz": params["emb"]}):
        with pytest.raises(ValueError, match=r"flush: the state is of other parameters, or of more: .*\['emb'\] must"):
            sparse.flush(part, state)
    with pytest.raises(ValueError, match="has 3 rows, in the state 11"):
        sparse.flush({**params, "emb": params["emb"][:3]}, state)


def test_flush_of_bfloat16_tables_keeps_the_mean() -> None:
    tx = sparse.adagrad(1e-2, weight_decay=1e-2, decay_at="read")
    x = jnp.ones((3, 512), jnp.bfloat16)
    state, g = tx.init(x), sparse.RowSparse([0], jnp.ones((1, 512)), 3)
    nearest = x
    for t in range(300):
        _, state = tx.update(g, state, x)
        if t % 10 == 9:
            nearest, _ = sparse.flush(nearest, state)
            x, state = sparse.flush(x, state, seed=t)
    expected = (1 - 1e-4) ** 300
    assert float(nearest[1].astype(jnp.float32).mean()) == 1
    assert float(x[1].astype(jnp.float32).mean()) == pytest.approx(expected, abs=2e-3)


def test_a_dense_step_pays_what_is_owed() -> None:
    """Ten sparse steps on row 0, then a dense one: the others end where the dense optimizer's do."""
    tx, params, state = decayed(10, eps=1.0)
    g = sparse.RowSparse([0], jnp.ones((1, WIDTH)), ROWS)
    dense = {"emb": g.todense(), "sub": {"emb": g.todense()}}
    updates, state = tx.update(dense, state, params)
    params, _ = sparse.flush(optax.apply_updates(params, updates), state)
    np.testing.assert_allclose(params["emb"][1], 0.95**11 * table()[1], rtol=1e-5)


def test_nnx_keeps_the_debts_where_read_finds_them() -> None:
    class Model(nnx.Module):
        def __init__(self) -> None:
            self.user = nnx.Param(table())

    model = Model()
    optimizer = nnx.Optimizer(model, sparse.adagrad(0.1, weight_decay=0.5, decay_at="read"), wrt=nnx.Param)
    g = sparse.RowSparse([0], jnp.ones((1, WIDTH)), ROWS)
    optimizer.update(model, nnx.State({"user": nnx.Param(g)}))
    rows = sparse.read({"user": model.user[...]}, optimizer.opt_state, {"user": jnp.array([1])})
    np.testing.assert_allclose(rows["user"][0], 0.95 * table()[1], rtol=1e-6)


def test_another_state_or_table() -> None:
    tx, params, _ = decayed()
    with pytest.raises(TypeError, match="must be the ReadDecayState of init, got AdaGradState"):
        tx.update(params, adaptx.adagrad(0.1).init(params), params)
    one = sparse.adagrad(0.1, weight_decay=0.5, decay_at="read")
    with pytest.raises(ValueError, match=r"of a table of shape \(12, 3\), its parameter has \(11, 3\)"):
        one.update(sparse.RowSparse([1], jnp.ones((1, WIDTH)), ROWS + 1), one.init(table()), table())


@pytest.mark.parametrize("mask", [None, lambda params: jax.tree.map(lambda x: True, params)])
def test_a_place_without_parameter_owes_nothing(mask: Any) -> None:
    tx = sparse.adam(0.1, weight_decay=0.1, mask=mask, decay_at="read")
    params = {"a": None, "b": table()}
    state = tx.init(params)
    assert state.paid["a"] is None
    g = {"a": None, "b": sparse.RowSparse([0], jnp.ones((1, WIDTH)), ROWS)}
    u, _ = tx.update(g, state, params)
    assert u["a"] is None
    assert u["b"].values.shape == (1, WIDTH)
