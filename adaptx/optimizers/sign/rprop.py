"""Rprop: a step size for each parameter, adapted by the signs of its gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock
from adaptx.core.registry import Paper, optimizer
from adaptx.core.rule import Params, Rule, filled, zeros


class RpropState(NamedTuple):
    """The state of Rprop."""

    count: Array  # t
    step_size: Params  # s, each parameter's step in units of the rate, real; negative where it waits
    last_step: Params  # p, the step that was taken last, uphill, in the same units; 0 where it waited


def rprop_rule(eta_minus: Any, eta_plus: Any, min_step_size: Any, max_step_size: Any) -> Rule:
    """Rprop's equations on one array; the bounds are absolute, so the rule owns the rate."""

    def step(g: Array, s: RpropState, x: Any, t: Clock) -> tuple[Array, RpropState]:
        sign, rate = jnp.sign(g), t.learning_rate
        agrees = jnp.real(sign * jnp.conj(s.last_step))  # not of gradients, whose product underflows
        factor = jnp.where(agrees > 0, eta_plus, jnp.where(agrees < 0, eta_minus, jnp.ones_like(agrees)))
        unit = jnp.where(rate > 0, rate, 1)
        lower = jnp.where(rate > 0, jnp.minimum(min_step_size / unit, 1), 1)
        upper = jnp.where(rate > 0, jnp.maximum(max_step_size / unit, 1), 1)
        size = jnp.clip(jnp.abs(s.step_size) * factor, lower, upper)
        # That a parameter waits is kept as the sign of its step size: then the step follows from that and from g, and
        # XLA, which would set the last step aside, writes each array in its place.
        size = jnp.where(agrees < 0, -size, size)
        step = jnp.maximum(size, 0) * sign
        return -rate * step, s._replace(step_size=size, last_step=step)

    return Rule(RpropState, step, dict(step_size=filled(1), last_step=zeros), needs=("learning_rate",))


@optimizer(
    paper=Paper(
        "A Direct Adaptive Method for Faster Backpropagation Learning: The RPROP Algorithm (Riedmiller, Braun)",
        1993,
        "https://doi.org/10.1109/ICNN.1993.298623",
    ),
    family="sign",
    direction="the bounds of the step sizes are in the parameters' units, so the rate sits inside the rule",
    typical_rate=1e-2,
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=0.45),
        dict(learning_rate=0.3, eta_minus=0.4, eta_plus=1.5, min_step_size=0.1, max_step_size=0.6),
    ),
)
def rprop(
    learning_rate: optax.ScalarOrSchedule,
    eta_minus: Any = 0.5,
    eta_plus: Any = 1.2,
    min_step_size: Any = 1e-6,
    max_step_size: Any = 50.0,
    *,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Rprop: steps of the gradient's sign, longer while it stays and shorter where it turns; for full batches.

    Start:
        s = 1
        p = 0
    Step t = 1, 2, ...:
        c = sign(g)*p
        s = s*where(c > 0, eta_plus, where(c < 0, eta_minus, 1))
        s = clip(s, minimum(min_step_size/learning_rate, 1), maximum(max_step_size/learning_rate, 1))
        p = where(c < 0, 0, s*sign(g))
        x = x - learning_rate*p

    A constant rate is the first step size and no more, the paper's Delta_0 with Delta = learning_rate*s. A rate that
    changes scales all step sizes at once, and the bounds of Delta, which stay where they are, never force s over the 1
    it starts from: a warm-up does not end in steps of `max_step_size`. Bounds that cross the rate, or each other, leave
    the rate alone: nothing adapts. In torch a rate that changes later does nothing.
    Where a gradient has turned, its parameter waits for one step, and the next step counts as the first, as in torch;
    taking back the last step there (weight backtracking) is left out. Optax emits each update one step late. Both
    multiply the gradients to compare their signs, which underflows; here the signs are multiplied. A complex parameter
    has one step size, and its gradient has turned where it did so by more than 90 degrees; torch treats the two parts
    apart. Minibatches, in which signs are noise, shrink all steps: use full batches.
    """
    return lift(
        "rprop", rprop_rule(eta_minus, eta_plus, min_step_size, max_step_size), Descent(learning_rate), state_dtype
    )
