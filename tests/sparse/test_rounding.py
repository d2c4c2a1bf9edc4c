"""Stochastic rounding: the right mean where nearest rounding stops."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaptx import sparse
from tests.sparse.tables import ROWS, WIDTH, draws, run_sparse, table


def small_steps(seed: int | None) -> float:
    """The mean of a bfloat16 row that starts at 1 and is told 100 times to add 1e-3."""
    x = jnp.ones((4, 512), jnp.bfloat16)
    from adaptx.sparse.rounding import stochastically_rounded

    inner = sparse.lazy_rows(optax.chain(optax.sgd(1e-3), optax.scale_by_schedule(lambda t: 1.0)))
    tx = inner if seed is None else stochastically_rounded(inner, seed)
    g = sparse.RowSparse([1, 1], jnp.full((2, 512), -0.5, jnp.bfloat16), 4)

    def step(carry: Any, _: Any) -> Any:
        x, state = carry
        updates, state = tx.update(g, state, x)
        return (optax.apply_updates(x, updates), state), None

    (x, _), _ = jax.jit(lambda: jax.lax.scan(step, (x, tx.init(x)), length=100))()
    np.testing.assert_array_equal(x[0], 1)
    return float(x[1].astype(jnp.float32).mean())


def test_small_steps_arrive() -> None:
    """1 + 100 x 1e-3 = 1.1, where nearest rounding stays at 1."""
    assert small_steps(None) == 1
    assert small_steps(0) == pytest.approx(1.1, abs=3e-3)  # 512 walks, each with a standard deviation of about 0.03


NAMES = ["adagrad", "rowwise_adagrad", "adam", "partial_rowwise_adam", "ftrl", "lamb_rows"]


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_changes_bfloat16_tables_only(name: str) -> None:
    ids, values = draws(3)
    make = lambda seed: getattr(sparse, name)(0.1, seed=seed)
    for dtype in (jnp.float32, jnp.bfloat16):
        results = [np.asarray(run_sparse(make(seed), table(dtype), ids, values)[0], float) for seed in (None, 1, 1, 2)]
        nearest, first, again, other = results
        np.testing.assert_array_equal(first, again)
        assert np.array_equal(nearest, first) == np.array_equal(first, other) == (dtype == jnp.float32)
        np.testing.assert_allclose(first, nearest, rtol=0.05)
        np.testing.assert_array_equal(first[10], np.asarray(table(dtype), float)[10])


def test_two_tables_draw_their_own_numbers() -> None:
    tx = sparse.adagrad(1e-3, seed=0)
    params = {"a": jnp.ones((1, 256), jnp.bfloat16), "b": jnp.ones((1, 256), jnp.bfloat16)}
    g = {k: sparse.RowSparse([0], jnp.ones((1, 256)), 1) for k in params}
    updates, _ = tx.update(g, tx.init(params), params)
    assert not np.array_equal(updates["a"].values, updates["b"].values)


def test_dense_leaves_are_rounded_too() -> None:
    tx = sparse.adagrad(1e-3, seed=0)
    x = {"w": jnp.ones((WIDTH, 256), jnp.bfloat16), "c": None}
    updates, _ = tx.update({"w": jnp.ones((WIDTH, 256)), "c": None}, tx.init(x), x)
    after = (x["w"] + updates["w"]).astype(jnp.bfloat16)
    assert len(np.unique(np.asarray(after, float))) == 2
    with pytest.raises(ValueError, match="stochastic rounding: update needs params"):
        tx.update({"w": jnp.ones((WIDTH, 256)), "c": None}, tx.init(x))


def test_decay_at_read_and_rounding_together() -> None:
    tx = sparse.adagrad(0.1, weight_decay=0.1, decay_at="read", seed=0)
    x, state = run_sparse(tx, table(jnp.bfloat16), *draws(5))
    rows = sparse.read({"emb": x}, state, {"emb": jnp.arange(ROWS)})["emb"]
    assert rows.dtype == jnp.float32
    assert np.isfinite(rows).all()
