"""Signum, and signSGD: the sign of a momentum, or of the gradient itself."""

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


class SignumState(NamedTuple):
    """The state of Signum."""

    count: Array  # t
    mu: Params = None  # m, like the parameters; with momentum only


def signum_rule(momentum: Any) -> Rule:
    """Signum's equations on one array; the sign of a complex number is its phase."""
    b = None if momentum is None else Decay.of(momentum)

    def step(g: Array, s: SignumState, x: Any, t: Clock) -> tuple[Array, SignumState]:
        m = None if b is None else ema(s.mu, g, b)
        return jnp.sign(g if m is None else m), s._replace(mu=m)

    return Rule(SignumState, step, dict(mu=None if b is None else zeros))


@checked
def scale_by_signum(momentum: Any = 0.9, *, state_dtype: Any = None) -> optax.GradientTransformationExtraArgs:
    """The direction of `signum`: u in its equations, before the rate, the decay and the sign."""
    return lift("scale_by_signum", signum_rule(momentum), state_dtype=state_dtype)


@optimizer(
    paper=Paper(
        "signSGD: Compressed Optimisation for Non-Convex Problems (Bernstein et al.)",
        2018,
        "https://arxiv.org/abs/1802.04434",
    ),
    family="sign",
    direction=scale_by_signum,
    typical_rate=1e-4,
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=1e-3),
        dict(learning_rate=1e-3, momentum=None),
        dict(learning_rate=0.02, momentum=0.8, weight_decay=0.1, mask=True),
    ),
)
def signum(
    learning_rate: optax.ScalarOrSchedule,
    momentum: Any = 0.9,
    *,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Signum: every entry moves by the learning rate against the sign of the momentum.

    Start:
        m = 0
    Step t = 1, 2, ...:
        m = momentum*m + (1 - momentum)*g
        u = sign(m)
        x = x - learning_rate*(u + weight_decay*x)

    momentum=None is signSGD, which stores nothing. The average needs no bias correction: its sign is the same. The sign
    of 0 is 0: zero gradients from the start move nothing. The decay stands beside the sign, as in the follow-up with a
    majority vote (https://arxiv.org/abs/1810.05291); Optax has none, and calls the momentum `beta`.
    """
    return lift("signum", signum_rule(momentum), Descent(learning_rate, weight_decay, mask), state_dtype)
