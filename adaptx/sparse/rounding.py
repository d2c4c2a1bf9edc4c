"""Stochastic rounding of the rows that are written to bfloat16 tables."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax

from adaptx.core.checks import paths
from adaptx.core.rounding import noise, salted, stochastic
from adaptx.sparse.rows import flattened, is_rows, matching_tables, take


def stochastically_rounded(tx: optax.GradientTransformationExtraArgs, seed: int) -> Any:
    """`tx` with updates that end on bfloat16 numbers, above or below with the probability that keeps the mean.

    The update is float32: the way from the old bfloat16 number to the new one, so that adding it rounds nothing more.
    Nearest rounding instead stops all steps smaller than 1/512 of a weight. The numbers drawn depend on the seed, the
    count and the leaf's path.
    """

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("stochastic rounding: update needs params; call update(grads, state, params) with it")
        updates, state = tx.update(updates, state, params, **extra)
        us, treedef, numbers = flattened(updates)
        count = optax.tree_utils.tree_get(state, "count")
        new = [
            _rounded(u, x, salted(seed, count, path))
            for u, x, path in zip(us, matching_tables("rounding", us, numbers, params), paths(numbers), strict=True)
        ]
        return treedef.unflatten(new), state

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _rounded(u: Any, x: Any, salt: Any) -> Any:
    """An update that ends on the parameter's own numbers."""
    if u is None or x.dtype != jnp.bfloat16:
        return u
    old = (take(x, u.indices) if is_rows(u) else x).astype(jnp.float32)
    step = (u.values if is_rows(u) else u).astype(jnp.float32)
    new = stochastic(old + step, x.dtype, noise(step.shape, salt))
    way = new.astype(jnp.float32) - old
    return u.with_values(way) if is_rows(u) else way
