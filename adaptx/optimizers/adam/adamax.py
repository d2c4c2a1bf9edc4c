"""Adamax: Adam with the infinity norm."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, Decay, debias, divide, ema
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rule import Params, Rule, real_zeros, zeros


class AdamaxState(NamedTuple):
    """The state of Adamax."""

    count: Array  # t
    mu: Params  # m, like the parameters
    nu: Params  # v, the decaying maximum of |g|, real


def adamax_rule(b1: Any, b2: Any, eps: Any, eps_inside: bool = False) -> Rule:
    """Adamax's equations on one array; torch and Optax have eps inside the maximum."""
    b1, b2 = Decay.of(b1), Decay.of(b2)

    def step(g: Array, s: AdamaxState, x: Any, t: Clock) -> tuple[Array, AdamaxState]:
        m = ema(s.mu, g, b1)
        v = jnp.maximum(b2 * s.nu, jnp.abs(g) + eps if eps_inside else jnp.abs(g))
        return divide(debias(m, b1, t), v, 0.0 if eps_inside else eps), s._replace(mu=m, nu=v)

    return Rule(AdamaxState, step, dict(mu=zeros, nu=real_zeros), decays=(b1,))


@checked
def scale_by_adamax(
    b1: Any = 0.9, b2: Any = 0.999, eps: Any = 0.0, *, state_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
    """The direction of `adamax`: u in its equations, before the rate, the decay and the sign."""
    return lift("scale_by_adamax", adamax_rule(b1, b2, eps), state_dtype=state_dtype)


@optimizer(
    paper=Paper(
        "Adam: A Method for Stochastic Optimization, section 7.1 (Kingma, Ba)", 2015, "https://arxiv.org/abs/1412.6980"
    ),
    family="adam",
    direction=scale_by_adamax,
    typical_rate=2e-3,
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=2e-3),
        dict(learning_rate=0.02, b1=0.8, b2=0.95, eps=1e-3, weight_decay=0.1, mask=True),
    ),
)
def adamax(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 0.0,
    *,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Adamax: a first moment divided by the decaying maximum of |g|.

    Start:
        m = v = 0
    Step t = 1, 2, ...:
        m = b1*m + (1 - b1)*g
        v = maximum(b2*v, abs(g))
        u = m/(1 - b1**t) / (v + eps)
        x = x - learning_rate*(u + weight_decay*x)

    There is no root, so no `eps_root`. The paper has no eps (0/0 counts as 0 here); torch and Optax put one inside the
    maximum, Keras where this one is.
    """
    return lift("adamax", adamax_rule(b1, b2, eps), Descent(learning_rate, weight_decay, mask), state_dtype)
