"""Rounding: the dtypes that arithmetic runs in, the clamp on the way in, and the one cast on the way out."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


@functools.cache
def wider(*dtypes: Any) -> Any:
    """The dtype that holds all of these: bfloat16 with float16 gives float32, also under strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, dtypes)


def real(dtype: Any) -> Any:
    """The dtype of |x|: float32 for complex64."""
    return jnp.finfo(dtype).dtype


def raised(a: Array, working: Any) -> Array:
    """Stored state in the working precision; keys, counts and codes as they are."""
    if not jnp.issubdtype(a.dtype, jnp.inexact):
        return a
    return a.astype(working if jnp.iscomplexobj(a) else real(working))


_LIMIT = {jnp.dtype(jnp.float32): 1e12, jnp.dtype(jnp.float64): 1e150}


def bounded(g: Array) -> Array:
    """|g| clamped so that its square, summed over any tensor, stays finite; a complex g keeps its phase. NaN passes.

    A plain clamp, so that XLA computes it again in each kernel that reads g instead of storing it; it hides an Inf,
    which the lift shows otherwise.
    """
    limit = _LIMIT[real(g.dtype)]
    if jnp.iscomplexobj(g):
        size = jnp.abs(g / limit)
        return jnp.where((size > 1) & jnp.isfinite(size), g / jnp.where(size > 1, size, 1).astype(g.dtype), g)
    return jax.lax.clamp(np.asarray(-limit, g.dtype), g, np.asarray(limit, g.dtype))


def largest_sum(dtype: Any, size: int) -> float:
    """What a sum of squares over a tensor comes to if the clamp holds for every element."""
    return _LIMIT[real(dtype)] ** 2 * max(size, 1)


def rounded(u: Array, dtype: Any) -> Array:
    """The update, rounded once; a finite value beyond float16's range becomes its largest number, not Inf."""
    if jnp.finfo(dtype).max < jnp.finfo(u.dtype).max and not jnp.iscomplexobj(u):
        top = float(jnp.finfo(dtype).max)
        u = jnp.where(jnp.isinf(u), u, jnp.clip(u, -top, top))
    return u.astype(dtype)


def stochastic(x: Array, dtype: Any, key: Array) -> Array:
    """float32 as bfloat16, up or down with the probabilities that keep the mean. NaN and Inf pass.

    bfloat16 is the upper half of float32: a uniform number is added to the lower half, which is then cut off.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    upper = jax.lax.bitcast_convert_type((bits + noise) & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), upper, x).astype(dtype)
