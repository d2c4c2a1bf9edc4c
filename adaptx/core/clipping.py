"""Clipping: the root mean square of one array, and by how much it is too large."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from adaptx.core.moments import abs_sq, safe_sqrt


def rms(x: Array) -> Array:
    """The root mean square of an array that needs no clamp: parameters, or a normalised step. 0 for an empty one."""
    return safe_sqrt(jnp.sum(abs_sq(x)) / max(x.size, 1))


def rms_excess(x: Array, threshold: Any) -> Any:
    """How many times the root mean square of x is the threshold; 1 where it is below, or where there is none."""
    return 1 if threshold is None else jnp.maximum(1, rms(x) / threshold)
