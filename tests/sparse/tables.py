"""Small tables, row gradients with everything that ids may be, and the runs that the tests compare."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adaptx import sparse

# Jax 0.7 cannot say where the result of a scatter lies on a mesh of explicit axes.
EXPLICIT = "out_sharding" in inspect.signature(jnp.zeros(1).at[0].set).parameters
ROWS, WIDTH, USED = 11, 3, 8  # 8 ids of 11 rows: some twice, some outside, and rows that are never used


def table(dtype: Any = jnp.float32, seed: int = 0) -> jax.Array:
    """Entries of size about 1."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.choice([-1, 1], (ROWS, WIDTH)) * rng.uniform(0.5, 1.5, (ROWS, WIDTH)), dtype)


def draws(steps: int, dtype: Any = jnp.float32, seed: int = 1) -> tuple[np.ndarray, jax.Array]:
    """ids (steps, USED) with duplicates, -1, ROWS and beyond, never row 10; and a row of gradient for each."""
    rng = np.random.default_rng(seed)
    ids = rng.choice([*range(ROWS - 1), -1, ROWS, ROWS + 7], (steps, USED))
    ids[:, 0] = ids[:, 1]
    values = rng.choice([-1, 1], (steps, USED, WIDTH)) * rng.uniform(0.5, 1.5, (steps, USED, WIDTH))
    return ids.astype(np.int32), jnp.asarray(values, dtype)


def kept(ids: np.ndarray) -> np.ndarray:
    """Which ids are of the table."""
    return (ids >= 0) & (ids < ROWS)


def dense_gradient(ids: np.ndarray, values: Any) -> np.ndarray:
    """What the rows add up to, by NumPy in float64."""
    g, values = np.zeros((ROWS, WIDTH)), np.asarray(values, float)
    np.add.at(g, ids[kept(ids)], values[kept(ids)])
    return g


def run_sparse(tx: Any, x: Any, ids: Any, values: Any, name: str | None = "emb") -> tuple[Any, Any]:
    """The table and the state after one step for each row of ids, compiled once."""
    params = {name: x} if name else x

    @jax.jit
    def run(params: Any, ids: Any, values: Any) -> Any:
        def step(carry: Any, batch: Any) -> Any:
            params, state = carry
            g = sparse.RowSparse(*batch, ROWS)
            updates, state = tx.update({name: g} if name else g, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), (ids, values))[0]

    params, state = run(params, jnp.asarray(ids), values)
    return (params[name] if name else params), state


def run_dense(tx: Any, x: Any, grads: Any) -> tuple[Any, Any]:
    """The same from dense gradients."""

    @jax.jit
    def run(params: Any, grads: Any) -> Any:
        def step(carry: Any, g: Any) -> Any:
            params, state = carry
            updates, state = tx.update({"emb": g}, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), grads)[0]

    params, state = run({"emb": x}, grads)
    return params["emb"], state


def dense_gradients(ids: Any, values: Any, dtype: Any) -> jax.Array:
    """The dense gradient of every step."""
    return jnp.asarray(np.stack([dense_gradient(i, v) for i, v in zip(ids, values, strict=True)]), dtype)
