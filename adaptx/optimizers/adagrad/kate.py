"""KATE: AdaGrad without the square root in its denominator."""

from __future__ import annotations

from typing import Any, NamedTuple

import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, abs_sq, divide, safe_sqrt
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rule import Params, Rule, real_zeros


class KATEState(NamedTuple):
    """The state of KATE."""

    count: Array  # t
    nu: Params  # b^2, the sum of squared gradients, real
    numerator: Params  # m^2, real


def kate_rule(eta: Any, eps: Any) -> Rule:
    """KATE's equations on one array."""

    def step(g: Array, s: KATEState, x: Any, t: Clock) -> tuple[Array, KATEState]:
        b_sq = s.nu + abs_sq(g)
        m_sq = s.numerator + eta * abs_sq(g) + divide(abs_sq(g), b_sq, eps)
        # Two quotients: one that both share would be written to memory.
        return safe_sqrt(m_sq) * divide(g, b_sq, eps), s._replace(nu=b_sq, numerator=m_sq)

    return Rule(KATEState, step, dict(nu=real_zeros, numerator=real_zeros))


@checked
def scale_by_kate(
    eta: Any = 1e-3, eps: Any = 1e-8, *, state_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
    """The direction of `kate`: u in its equations, before the rate, the decay and the sign."""
    return lift("scale_by_kate", kate_rule(eta, eps), state_dtype=state_dtype)


@optimizer(
    paper=Paper(
        "Remove that Square Root: A New Efficient Scale-Invariant Version of AdaGrad (Choudhury et al.)",
        2024,
        "https://arxiv.org/abs/2403.02648",
    ),
    family="adagrad",
    direction=scale_by_kate,
    typical_rate=1e-2,
    normalised=[False, True],  # only where eta outweighs the second sum, which does not grow with the gradients
    cases=(
        dict(learning_rate=1e-3),
        dict(learning_rate=0.1, eta=0.9, eps=1e-3, weight_decay=0.1, mask=True),
    ),
)
def kate(
    learning_rate: optax.ScalarOrSchedule,
    eta: Any = 1e-3,
    eps: Any = 1e-8,
    *,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """KATE: the gradient over the sum of squares itself, times a numerator that grows to make up for the lost root.

    Start:
        b_sq = m_sq = 0
    Step t = 1, 2, ...:
        b_sq = b_sq + g**2
        m_sq = m_sq + eta*g**2 + g**2/(b_sq + eps)
        u = sqrt(m_sq)*g/(b_sq + eps)
        x = x - learning_rate*(u + weight_decay*x)

    What it is invariant to is the scale of the data, not of the loss: where every feature of a generalised linear model
    is multiplied by a number of its own, predictions stay what they were, since u goes like 1/g. That is exact at eta=0
    and eps=0 and for no other number; the paper also has an eta for each coordinate, 1/g^2 of the first full g. With
    eta = 0 steps shrink like 1/t; where eta dominates they are AdaGrad's times its root. The paper has no eps and names
    no eta; the authors' code adds 1e-8 to both denominators, as here, and tries eta from 0 to 0.1. There eps is
    compared with g^2: gradients below 1e-4 feel it.
    """
    return lift("kate", kate_rule(eta, eps), Descent(learning_rate, weight_decay, mask), state_dtype)
