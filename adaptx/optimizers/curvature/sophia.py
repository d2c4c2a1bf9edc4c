"""Sophia: momentum over the Hessian's diagonal, clipped element by element."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.moments import Clock, Decay, ema, safe_div
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rule import Params, Rule, real_zeros, zeros
from adaptx.optimizers.curvature.refresh import lift_on_demand, refreshed


class SophiaState(NamedTuple):
    """The state of Sophia."""

    count: Array  # t
    mu: Params  # m, like the parameters
    nu: Params  # the average of the Hessian's diagonal, real


def sophia_rule(b1: Any, b2: Any, eps: Any, gamma: Any, update_every: int) -> Rule:
    """Sophia's equations on one array."""
    b1, b2 = Decay.of(b1), Decay.of(b2)

    def step(g: Array, s: SophiaState, x: Any, t: Clock) -> tuple[Array, SophiaState]:
        m = ema(s.mu, g, b1)
        h = refreshed(s.nu, ema(s.nu, t.hessian, b2), s.count, update_every)
        # clip(m / d, 1) is m / max(d, |m|), which has no quotient to overflow, a limit at eps = 0, and keeps a phase.
        d = jnp.maximum(gamma * h, eps)
        return safe_div(m, jnp.maximum(d, jnp.abs(m))), s._replace(mu=m, nu=h)

    return Rule(SophiaState, step, dict(mu=zeros, nu=real_zeros), needs=("hessian",), trees=("hessian",))


@checked
def scale_by_sophia(
    b1: Any = 0.96,
    b2: Any = 0.99,
    eps: Any = 1e-12,
    gamma: Any = 0.01,
    *,
    update_every: int = 10,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of `sophia`: u in its equations, before the rate, the decay and the sign."""
    rule = sophia_rule(b1, b2, eps, gamma, update_every)
    return lift_on_demand("scale_by_sophia", rule, update_every, state_dtype=state_dtype)


@optimizer(
    paper=Paper(
        "Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training (Liu et al.)",
        2023,
        "https://arxiv.org/abs/2305.14342",
    ),
    family="curvature",
    direction=scale_by_sophia,
    typical_rate=1e-3,
    needs=("hessian",),
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=1e-3),
        dict(
            learning_rate=0.02, b1=0.8, b2=0.95, eps=0.3, gamma=4.0, update_every=3, weight_decay=0.1, mask=True
        ),
    ),
)  # fmt: skip
def sophia(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.96,
    b2: Any = 0.99,
    eps: Any = 1e-12,
    *,
    gamma: Any = 0.01,
    update_every: int = 10,
    weight_decay: Any = 0.2,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Sophia: momentum divided by an average of the Hessian's diagonal, then clipped to one learning rate.

    Start:
        m = n = 0
    Step t = 1, 2, ...:
        m = b1*m + (1 - b1)*g
        n = b2*n + (1 - b2)*h if (t - 1) % update_every == 0 else n
        u = clip(m/maximum(gamma*n, eps), -1, 1)
        x = x - learning_rate*(u + weight_decay*x)

    h, an estimate of the Hessian's diagonal, is given to `update(grads, state, params, hessian=h)`: a tree of real
    arrays like the gradients, or a function without arguments that makes one and runs in every `update_every`-th step
    only: `hessian=lambda: adaptx.curvature.hutchinson(loss, params, key)` is Sophia-H, whose gamma is the default;
    `adaptx.curvature.gauss_newton_bartlett` makes Sophia-G, with gamma=0.05. Where the curvature is negative, or gamma
    n is below |m|, the step is a sign step: so are the first ones, since n is not corrected for its zero start. Raise
    gamma until 10 to 50 % of the entries of u are not clipped.

    This is the paper's current form. Its first version has no gamma and clips at rho: the same with gamma = rho, with
    eps and the rate rho times and the decay 1/rho times as large. The authors' SophiaG squares the gradient itself,
    multiplies by rho and the batch size (`bs`, in tokens) in the step, adds 1e-15 instead of taking the maximum, and
    refreshes after a step, so that steps use older curvature; their SophiaH corrects m for its zero start after the
    clip, Optax before it. Optax refreshes after the step too, and so begins with sign steps. The decay is that of the
    authors' GPT-2 runs; their class has 0.1, Optax 1e-4.
    """
    rule = sophia_rule(b1, b2, eps, gamma, update_every)
    return lift_on_demand("sophia", rule, update_every, Descent(learning_rate, weight_decay, mask), state_dtype)
