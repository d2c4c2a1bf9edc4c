"""stochastic_rounding: steps too small for a 16-bit parameter are taken sometimes, so that their mean is right."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import optax
from jax import Array

from adaptx.core import checks
from adaptx.core.moments import next_count
from adaptx.core.registry import checked
from adaptx.core.rounding import noise, salted, stochastic
from adaptx.glossary import Argument, is_count
from adaptx.precision.landing import is_short, target, way
from adaptx.wrappers.leaves import no_steps, on_leaves


class StochasticRoundingState(NamedTuple):
    """The state of stochastic_rounding."""

    steps: Array  # made so far


SEED = Argument("what the noise is made from", "an int >= 0", is_count, static=True)


@functools.partial(checked, words={"seed": SEED})
def stochastic_rounding(seed: int = 0) -> optax.GradientTransformationExtraArgs:
    """Stochastic rounding: bfloat16 and float16 parameters step up or down at random, so that the mean is float32's.

    Step t = 1, 2, ..., for each 16-bit parameter x, u the update so far:
        y = x + u                                   in float32
        x = y rounded down or up to 16 bits, up with the probability (y - down) / (up - down)

    Put it last in an `optax.chain`, and give `update` the parameters:

        tx = optax.chain(adaptx.adamw(1e-3), adaptx.precision.stochastic_rounding(0))

    Rounding to nearest instead loses every step smaller than 1/512 of a bfloat16 weight, weight decay above all. The
    updates of 16-bit parameters are float32, the way from the old number to the new one, so that plain
    `optax.apply_updates` lands on it; others pass. The noise is a hash of the seed, the step, the leaf's path and the
    position in it: runs repeat, whatever the sharding. Nothing but a count is kept; `kahan` keeps what is lost instead.

    Errors:
        TypeError: a state that is not this one's; a gradient that is not floating or complex.
        ValueError: no params; a seed that is no int >= 0; trees or shapes that do not fit.
    """

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del extra
        checks.check_kind("stochastic_rounding", StochasticRoundingState, state)
        checks.require("stochastic_rounding", ("params",), {"params": params})
        at = iter(checks.paths(updates))

        def leaf(u: Any, x: Any) -> Any:
            path = next(at)
            return u if u is None or not is_short(x) else _rounded(u, x, salted(seed, state.steps, path))

        us = on_leaves("stochastic_rounding", leaf, updates, {}, params)
        return us, StochasticRoundingState(next_count(state.steps))

    return optax.GradientTransformationExtraArgs(lambda params: StochasticRoundingState(no_steps(params)), update)


@jax.jit
def _rounded(u: Array, x: Array, salt: Array) -> Array:
    return way(x, stochastic(target(x, u), x.dtype, noise(x.shape, salt)))
