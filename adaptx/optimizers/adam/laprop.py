"""LaProp: Adam that divides first and averages then."""

from __future__ import annotations

from typing import Any

import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, Decay, abs_sq, debias, divide, ema, safe_sqrt
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rule import Rule, real_zeros, zeros
from adaptx.optimizers.adam.adam import AdamState


def laprop_rule(b1: Any, b2: Any, eps: Any, eps_root: Any) -> Rule:
    """LaProp's equations on one array: Adam's in another order. m is an average of directions, not of gradients."""
    b1, b2 = Decay.of(b1), Decay.of(b2)

    def step(g: Array, s: AdamState, x: Any, t: Clock) -> tuple[Array, AdamState]:
        v = ema(s.nu, abs_sq(g), b2)
        m = ema(s.mu, divide(g, safe_sqrt(debias(v, b2, t) + eps_root), eps), b1)
        return debias(m, b1, t), s._replace(mu=m, nu=v)

    return Rule(AdamState, step, dict(mu=zeros, nu=real_zeros, nu_max=None), decays=(b1, b2))


@checked
def scale_by_laprop(
    b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-15, eps_root: Any = 0.0, *, state_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
    """The direction of `laprop`: u in its equations, before the rate, the decay and the sign."""
    return lift("scale_by_laprop", laprop_rule(b1, b2, eps, eps_root), state_dtype=state_dtype)


@optimizer(
    paper=Paper(
        "LaProp: Separating Momentum and Adaptivity in Adam (Ziyin, Wang, Ueda)",
        2020,
        "https://arxiv.org/abs/2002.04839",
    ),
    family="adam",
    direction=scale_by_laprop,
    typical_rate=4e-4,
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=4e-4),
        dict(learning_rate=0.02, b1=0.8, b2=0.95, eps=1e-3, eps_root=1e-4, weight_decay=0.1, mask=True),
    ),
)
def laprop(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-15,
    eps_root: Any = 0.0,
    *,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """LaProp: every gradient is divided by its root mean square before it enters the momentum, not after.

    Start:
        m = v = 0
    Step t = 1, 2, ...:
        v = b2*v + (1 - b2)*g**2
        m = b1*m + (1 - b1)*g/(sqrt(v/(1 - b2**t) + eps_root) + eps)
        u = m/(1 - b1**t)
        x = x - learning_rate*(u + weight_decay*x)

    A step is then bounded at any b1 and b2, where Adam's is only while b1^2 < b2. The authors' code agrees at a
    constant rate; under a schedule it keeps the rate of each step inside the momentum and corrects the bias by an
    average of the rates, so that steps of a larger rate weigh more. Here, as in the paper, the rate multiplies the
    momentum. Their weight decay is not multiplied by the rate.
    """
    return lift("laprop", laprop_rule(b1, b2, eps, eps_root), Descent(learning_rate, weight_decay, mask), state_dtype)
