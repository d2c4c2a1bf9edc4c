"""Adadelta: steps in the units of the parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, Decay, abs_sq, divide, ema, safe_sqrt
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rule import Params, Rule, real_zeros


class AdadeltaState(NamedTuple):
    """The state of Adadelta."""

    count: Array  # t
    nu: Params  # v, the mean of squared gradients, real
    delta_sq: Params  # d, the mean of squared directions, real


def adadelta_rule(b2: Any, eps: Any, eps_root: Any) -> Rule:
    """Adadelta's equations on one array."""
    b2 = Decay.of(b2)

    def step(g: Array, s: AdadeltaState, x: Any, t: Clock) -> tuple[Array, AdadeltaState]:
        v = ema(s.nu, abs_sq(g), b2)
        u = divide(safe_sqrt(s.delta_sq + eps_root) * g, safe_sqrt(v + eps_root), eps)
        return u, s._replace(nu=v, delta_sq=ema(s.delta_sq, abs_sq(u), b2))

    return Rule(AdadeltaState, step, dict(nu=real_zeros, delta_sq=real_zeros))


@checked
def scale_by_adadelta(
    b2: Any = 0.95, *, eps: Any = 0.0, eps_root: Any = 1e-6, state_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
    """The direction of `adadelta`: u in its equations, before the rate, the decay and the sign."""
    return lift("scale_by_adadelta", adadelta_rule(b2, eps, eps_root), state_dtype=state_dtype)


@optimizer(
    paper=Paper("ADADELTA: An Adaptive Learning Rate Method (Zeiler)", 2012, "https://arxiv.org/abs/1212.5701"),
    family="adagrad",
    direction=scale_by_adadelta,
    typical_rate=1.0,
    normalised=True,
    cases=(
        dict(learning_rate=1.0),
        dict(learning_rate=0.5, b2=0.9, eps=1e-3, eps_root=1e-4, weight_decay=0.1, mask=True),
    ),
)
def adadelta(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    b2: Any = 0.95,
    *,
    eps: Any = 0.0,
    eps_root: Any = 1e-6,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Adadelta: RMSprop times the root mean square of its own past steps, so that it needs no rate.

    Start:
        v = d = 0
    Step t = 1, 2, ...:
        v = b2*v + (1 - b2)*g**2
        u = sqrt(d + eps_root)*g/(sqrt(v + eps_root) + eps)
        d = b2*d + (1 - b2)*u**2
        x = x - learning_rate*(u + weight_decay*x)

    d averages the directions u before the rate, as in torch, Keras and Optax. With its default rate, None, Optax
    leaves the sign unflipped and ascends; here the default is the paper's 1. Optax's eps is `eps_root` here,
    and its decay is added to the gradient.
    """
    return lift("adadelta", adadelta_rule(b2, eps, eps_root), Descent(learning_rate, weight_decay, mask), state_dtype)
