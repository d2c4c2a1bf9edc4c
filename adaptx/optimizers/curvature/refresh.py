"""What methods that use the Hessian's diagonal share: it is refreshed in every k-th step, and asked for in no other."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.checks import array, laid_out_like, shown
from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.rule import Rule


def refreshed(old: Array, new: Array, count: Array, every: int) -> Array:
    """The new average in the steps t = 1, 1 + every, 1 + 2 every, ..., else the old one; the count is t."""
    return jnp.where((count - 1) % every == 0, new, old)


def lift_on_demand(
    name: str, rule: Rule, every: int, then: Descent | None = None, state_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
    """The lifted rule, whose `update` may be given `hessian` as a function without arguments that makes the tree: it
    runs only in the steps in which `refreshed` takes the new average. Parameters that Optax masks are left out of the
    tree."""
    tx = lift(name, rule, then, state_dtype)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        hessian, count = extra.get("hessian"), getattr(state, "count", None)  # a state without one: the lift names it
        if count is not None and hessian is not None:
            extra["hessian"] = laid_out_like(updates, _asked(name, hessian, count, every))
        return tx.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _asked(name: str, hessian: Any, count: Array, every: int) -> Any:
    """The tree, from the function if it is one and due; else of zeros, which are not used."""
    # A module whose leaves are arrays may be callable too.
    if not (callable(hessian) and all(leaf is hessian for leaf in jax.tree.leaves(hessian))):
        return hessian

    def due() -> Any:
        tree = jax.tree.map(array, hessian())
        if tree is None or not all(isinstance(leaf, Array) for leaf in jax.tree.leaves(tree)):
            raise TypeError(
                f"{name}: hessian, a function, must give a tree of arrays like the gradients, got {shown(tree)}"
            )
        return tree

    if every == 1:
        return due()
    like = jax.eval_shape(due)
    return jax.lax.cond(count % every == 0, due, lambda: jax.tree.map(jnp.zeros_like, like))
