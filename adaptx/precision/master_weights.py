"""master_weights: an optimizer moves a float32 copy, and the 16-bit parameters follow it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core import checks
from adaptx.core.registry import checked
from adaptx.core.rounding import rounded
from adaptx.core.rule import Params
from adaptx.precision.landing import is_short, way
from adaptx.wrappers.leaves import on_leaves


class MasterWeightsState(NamedTuple):
    """The state of master_weights."""

    master: Params  # the 16-bit parameters in float32; None for others
    inner: Any  # the state of the wrapped optimizer


@checked
def master_weights(tx: Any) -> optax.GradientTransformationExtraArgs:
    """Master weights: `tx` moves a float32 copy of the parameters, and the 16-bit parameters are that copy, rounded.

    Start:
        master = x in float32, the state of tx for it
    Step, g the gradient:
        master = master + u, u the update of tx for g and master
        x = master rounded to 16 bits

        tx = adaptx.precision.master_weights(adaptx.adamw(1e-3))

    4 bytes a parameter in the state; `kahan` comes close with 2, `stochastic_rounding` with none. tx sees gradients as
    they come and float32 parameters. The updates of 16-bit parameters are float32, the way from the old number to the
    new one, so that plain `optax.apply_updates` lands on it. Parameters of more bits are their own master, and nothing
    is kept for them. Parameters that were changed otherwise than by these updates are not noticed: make a new state.

    Errors:
        TypeError: a state that is not this one's; a gradient that is not floating or complex.
        ValueError: no params; trees or shapes that do not fit.
    """
    tx = optax.with_extra_args_support(tx)

    def init(params: Any) -> MasterWeightsState:
        checks.check_inexact("master_weights", "parameter", params)
        master = jax.tree.map(_copied, params)
        return MasterWeightsState(master, tx.init(_shown(params, master)))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, MasterWeightsState]:
        checks.check_kind("master_weights", MasterWeightsState, state)
        checks.require("master_weights", ("params",), {"params": params})
        us, inner = tx.update(updates, state.inner, _shown(params, state.master), **extra)

        def leaf(g: Any, x: Any, u: Any, master: Any) -> Any:
            return (u, master) if g is None or master is None else _followed(u, x, master)

        trees = {"update of the wrapped optimizer": us, "state field `master`": state.master}
        us, master = on_leaves("master_weights", leaf, updates, trees, params, results=2, partial=True)
        return us, MasterWeightsState(master, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _copied(x: Any) -> Any:
    """The float32 copy of a 16-bit parameter, which keeps its sharding; None for others."""
    if not is_short(x):
        return None
    return x.update(dtype=jnp.float32) if isinstance(x, jax.ShapeDtypeStruct) else x.astype(jnp.float32)


def _shown(params: Any, master: Any) -> Any:
    """The parameters as the wrapped optimizer sees them."""
    return jax.tree.map(lambda x, kept: x if kept is None else kept, params, master)


@jax.jit
def _followed(u: Array, x: Array, master: Array) -> tuple[Array, Array]:
    master = master + u.astype(jnp.float32)
    return way(x, rounded(master, x.dtype)), master
