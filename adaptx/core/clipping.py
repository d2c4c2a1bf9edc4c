"""Clipping: the root mean square of one array, and an update scaled down to a largest one."""

import jax
import jax.numpy as jnp
from jax import Array

from adaptx.core.moments import abs_sq, safe_div, safe_sqrt


def largest(x: Array) -> Array:
    """The largest |x|, or 1 where all are 0: what x is divided by before it is squared. It has no derivative."""
    top = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), initial=0)
    return jnp.where(top == 0, jnp.ones_like(top), top)


def rms(x: Array) -> Array:
    """sqrt(mean |x|^2) of one array, 0 for an empty one; no square overflows, and none that matters underflows."""
    top = largest(x)
    return top * safe_sqrt(jnp.sum(abs_sq(x / top)) / max(x.size, 1))


def clip_rms(u: Array, threshold: Array) -> Array:
    """u / max(1, rms(u) / threshold): scaled down to that root mean square if it is larger. NaN and Inf show."""
    return u * jnp.minimum(1, safe_div(jnp.broadcast_to(threshold, ()), rms(u)))
