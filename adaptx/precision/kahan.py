"""kahan: what rounding takes from a 16-bit parameter is kept, and added to the next step."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core import checks
from adaptx.core.registry import Paper, checked
from adaptx.core.rounding import rounded
from adaptx.core.rule import Params
from adaptx.precision.landing import is_short, target, way
from adaptx.wrappers.leaves import on_leaves


class KahanState(NamedTuple):
    """The state of kahan."""

    lost: Params  # what the parameters are short of, in their own dtype; None where they have more than 16 bits


@functools.partial(
    checked,
    paper=Paper(
        "Revisiting BFloat16 Training (Zamirai, Zhang, Aberger, De Sa)", 2020, "https://arxiv.org/abs/2010.06192"
    ),
)
def kahan() -> optax.GradientTransformationExtraArgs:
    """Kahan summation: bfloat16 and float16 parameters with a second number of 16 bits for what rounding took.

    Start:
        lost = 0*x
    Step, for each 16-bit parameter x, u the update so far:
        y = x + (u + lost)                          in float32
        x = y rounded to 16 bits
        lost = y - x rounded to 16 bits

    Put it last in an `optax.chain`, and give `update` the parameters:

        tx = optax.chain(adaptx.adamw(1e-3), adaptx.precision.kahan())

    Parameter and rest together are about a float32 number, in 4 bytes, of which the model reads 2. The updates of
    16-bit parameters are float32, the way from the old number to the new one, so that plain `optax.apply_updates` lands
    on it; others pass. Where a parameter is not finite nothing is kept.

    Errors:
        TypeError: a state that is not this one's; a gradient that is not floating or complex.
        ValueError: no params; trees or shapes that do not fit.
    """

    def init(params: Any) -> KahanState:
        checks.check_inexact("kahan", "parameter", params)
        return KahanState(jax.tree.map(_nothing, params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, KahanState]:
        del extra
        checks.check_kind("kahan", KahanState, state)
        checks.require("kahan", ("params",), {"params": params})
        leaf = lambda u, x, lost: (u, lost) if u is None or lost is None else _kept(u, x, lost)
        us, lost = on_leaves("kahan", leaf, updates, {"state field `lost`": state.lost}, params, 2, partial=True)
        return us, KahanState(lost)

    return optax.GradientTransformationExtraArgs(init, update)


def _nothing(x: Any) -> Any:
    if not is_short(x):
        return None
    return x if isinstance(x, jax.ShapeDtypeStruct) else jnp.zeros_like(x)


@jax.jit
def _kept(u: Array, x: Array, lost: Array) -> tuple[Array, Array]:
    y = target(x, u.astype(jnp.float32) + lost.astype(jnp.float32))
    new = rounded(y, x.dtype)
    rest = jnp.where(jnp.isfinite(y), y - new.astype(jnp.float32), 0)
    return way(x, new), rest.astype(x.dtype)
