"""Landing: updates with which `optax.apply_updates` ends on chosen 16-bit numbers."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array


def is_short(x: Any) -> bool:
    """A real number of 16 bits, bfloat16 or float16: its updates round to nothing when they are small."""
    return bool(jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits == 16)


def target(x: Array, u: Array) -> Array:
    """Where a parameter would go in float32."""
    return x.astype(jnp.float32) + u.astype(jnp.float32)


def way(x: Array, new: Array) -> Array:
    """The float32 update from a 16-bit number to another. Added to x and rounded it gives the new one exactly, unless
    that is 2^16 times smaller than x: then what float32 keeps of the difference."""
    return new.astype(jnp.float32) - x.astype(jnp.float32)
