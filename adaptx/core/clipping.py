"""Clipping: an update cut to a root mean square, on one array."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from adaptx.core.moments import abs_sq, safe_sqrt


def rms(x: Array) -> Array:
    """The root mean square of one array; 0 for an empty one."""
    return safe_sqrt(jnp.sum(abs_sq(x)) / max(x.size, 1))


def clip_rms(u: Array, threshold: Any) -> Array:
    """u, scaled down to that root mean square where its own is larger."""
    return u / jnp.maximum(1, rms(u) / threshold)
