"""Rounding: the dtypes that arithmetic runs in, the clamp on the way in, and the one cast on the way out."""

import functools
import zlib
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


def stochastic(x: Array, dtype: Any, bits: Array) -> Array:
    """float32 as bfloat16 or float16, up or down with the probabilities that keep the mean, by 32 random bits each.

    A 16-bit number is a float32 one with less behind the point: noise is added to what is cut off, and then it is cut
    off. NaN and Inf pass; a finite number beyond the range becomes its largest.
    """
    drop = jnp.finfo(jnp.float32).nmant - jnp.finfo(dtype).nmant
    noise, cut = bits >> (32 - drop), np.uint32((1 << 32) - (1 << drop))
    near = jax.lax.bitcast_convert_type((jax.lax.bitcast_convert_type(x, jnp.uint32) + noise) & cut, jnp.float32)
    least = float(jnp.finfo(dtype).smallest_normal)
    if least > float(jnp.finfo(jnp.float32).smallest_normal):  # below it float16's numbers are evenly spaced
        unit = float(jnp.finfo(dtype).smallest_subnormal)
        steps = jnp.floor(x / unit + (bits >> 8).astype(jnp.float32) * np.float32(2**-24))
        near = jnp.where(jnp.abs(x) < least, steps * unit, near)
    top = float(jnp.finfo(dtype).max)
    return jnp.where(jnp.isfinite(x), jnp.clip(near, -top, top), x).astype(dtype)


def noise(shape: tuple[int, ...], salt: Array, start: Any = 0) -> Array:
    """32 random bits for each position of an array, from the salt and the position alone: however the array is sharded
    they are the same. `start`: where a part of a larger array begins."""
    position = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        position = position * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return _mixed((position + jnp.asarray(start, jnp.uint32)) * np.uint32(0x9E3779B9) + salt)


def salted(seed: int, count: Array, path: str) -> Array:
    """What makes the noise of a step and of a leaf its own."""
    once = _mixed(_mixed(jnp.uint32(seed % 2**32)) ^ count.astype(jnp.uint32))
    return _mixed(once ^ np.uint32(zlib.crc32(path.encode())))


def _mixed(x: Array) -> Array:
    """A bijection of 32 bits in which each bit depends on all: Chris Wellons's lowbias32."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)
