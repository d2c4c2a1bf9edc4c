"""zero_small: entries that are noise are dropped before the rule sees them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from adaptx.core.registry import checked


@checked
def zero_small(threshold: Any) -> optax.GradientTransformation:
    """Gradient entries with |g| <= threshold become 0; NaN and Inf pass. Put it first in an `optax.chain`.

    Errors: ValueError for a negative threshold. Leaves keep their dtype; None leaves are left alone.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        return jax.tree.map(lambda g: jnp.where(jnp.abs(g) <= threshold, jnp.zeros_like(g), g), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
