"""Clipping: the root mean square of one array, and what cuts a step whose root mean square is too large."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from adaptx.core.moments import safe_sqrt, sum_sq


def rms(x: Array) -> Array:
    """The root mean square over one array; 0 for an empty one. Huge entries count as the clamp leaves them."""
    return safe_sqrt(sum_sq(x) / max(x.size, 1))


def rms_excess(x: Array, threshold: Any) -> Array:
    """How many times the root mean square of x is the threshold; 1 where it is below."""
    return jnp.maximum(1, rms(x) / threshold)


def clip_rms(u: Array, threshold: Any) -> Array:
    """u, scaled down where its root mean square is above the threshold."""
    return u / rms_excess(u, threshold)
