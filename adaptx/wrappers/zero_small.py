"""zero_small: entries that are noise are dropped before the rule sees them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from adaptx.core.checks import check_inexact
from adaptx.core.registry import checked
from adaptx.core.rounding import wider


@checked
def zero_small(threshold: Any) -> optax.GradientTransformation:
    """Gradient entries with |g| <= threshold become 0; NaN and Inf pass. Put it first in an `optax.chain`.

    Errors: ValueError for a negative threshold. Leaves keep their dtype; None leaves are left alone.
    """

    def kept(g: Any) -> Any:
        size = jnp.abs(g)
        size = size.astype(wider(jnp.float32, size.dtype))  # a 16-bit threshold could round to Inf
        return jnp.where(size <= jnp.asarray(threshold, size.dtype), jnp.zeros_like(g), g)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        check_inexact("zero_small", "gradient", updates)
        return jax.tree.map(kept, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
