"""Lion: the sign of an interpolation between a momentum and the gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, Decay, ema
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rule import Params, Rule, zeros


class LionState(NamedTuple):
    """The state of Lion."""

    count: Array  # t
    mu: Params  # m, like the parameters


def lion_rule(b1: Any, b2: Any) -> Rule:
    """Lion's equations on one array; the sign of a complex number is its phase."""
    b1, b2 = Decay.of(b1), Decay.of(b2)

    def step(g: Array, s: LionState, x: Any, t: Clock) -> tuple[Array, LionState]:
        return jnp.sign(ema(s.mu, g, b1)), s._replace(mu=ema(s.mu, g, b2))

    return Rule(LionState, step, dict(mu=zeros))


@checked
def scale_by_lion(b1: Any = 0.9, b2: Any = 0.99, *, state_dtype: Any = None) -> optax.GradientTransformationExtraArgs:
    """The direction of `lion`: u in its equations, before the rate, the decay and the sign."""
    return lift("scale_by_lion", lion_rule(b1, b2), state_dtype=state_dtype)


@optimizer(
    paper=Paper(
        "Symbolic Discovery of Optimization Algorithms (Chen et al.)", 2023, "https://arxiv.org/abs/2302.06675"
    ),
    family="sign",
    direction=scale_by_lion,
    typical_rate=1e-4,
    normalised=True,
    scale_free=True,
    cases=(dict(learning_rate=1e-3), dict(learning_rate=0.02, b1=0.8, b2=0.95, weight_decay=0.1, mask=True)),
)
def lion(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.99,
    *,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Lion: every entry moves by the learning rate, in the direction of a momentum that looks at the gradient.

    Start:
        m = 0
    Step t = 1, 2, ...:
        u = sign(b1*m + (1 - b1)*g)
        m = b2*m + (1 - b2)*g
        x = x - learning_rate*(u + weight_decay*x)

    The sign of 0 is 0: zero gradients from the start move nothing. The rate is best three to ten times smaller than
    AdamW's, and the decay as many times larger. It is off by default, as in the authors' code; Optax's default is 1e-3.
    The step says nothing of b1 and b2 by its derivatives: a sign is constant almost everywhere.
    """
    return lift("lion", lion_rule(b1, b2), Descent(learning_rate, weight_decay, mask), state_dtype)
