"""AdaBound and AMSBound: Adam whose step sizes are squeezed towards SGD's."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.descent import Descent, and_decay, rate_at
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, Decay, abs_sq, ema, safe_sqrt
from adaptx.core.registry import Paper, optimizer
from adaptx.core.rule import Rule, real_zeros, zeros
from adaptx.optimizers.adam.adam import AdamState


def adabound_rule(b1: Any, b2: Any, eps: Any, eps_root: Any, final: Any, gamma: Any, amsbound: bool) -> Rule:
    """AdaBound's equations on one array; the clip acts on the rate, so the rule owns it."""
    b1, b2 = Decay.of(b1), Decay.of(b2)

    def step(g: Array, s: AdamState, x: Any, t: Clock) -> tuple[Array, AdamState]:
        m = ema(s.mu, g, b1)
        v = ema(s.nu, abs_sq(g), b2)
        v_max = jnp.maximum(s.nu_max, v) if amsbound else None
        final_rate = jnp.asarray(rate_at(final, s.count - 1), t.t.dtype)
        lower = final_rate * (1 - 1 / (gamma * t.t + 1))
        upper = final_rate * (1 + 1 / (gamma * t.t))
        # Where v is 0 the quotient is Inf, or NaN at a rate of 0; m is 0 there, and the clip must see a number.
        alpha = t.learning_rate * jnp.sqrt(t.bias(b2)) / t.bias(b1)
        root = safe_sqrt((v if v_max is None else v_max) + eps_root) + eps
        rate = jnp.where(root == 0, upper, jnp.clip(alpha / jnp.where(root == 0, 1, root), lower, upper))
        return and_decay(-rate * m, x, t), s._replace(mu=m, nu=v, nu_max=v_max)

    return Rule(
        AdamState,
        step,
        dict(mu=zeros, nu=real_zeros, nu_max=real_zeros if amsbound else None),
        decays=(b1, b2),
        needs=("learning_rate",),
    )


@optimizer(
    paper=Paper(
        "Adaptive Gradient Methods with Dynamic Bound of Learning Rate (Luo, Xiong, Liu, Sun)",
        2019,
        "https://openreview.net/forum?id=Bkg3g2R9FX",
    ),
    family="adam",
    direction="the bounds clip the learning rate itself, so it sits inside the rule",
    typical_rate=1e-3,
    cases=(
        dict(learning_rate=1e-3),
        dict(learning_rate=1e-3, amsbound=True),
        dict(
            learning_rate=0.02, b1=0.8, b2=0.95, eps=1e-3, eps_root=1e-4, final_learning_rate=0.05, gamma=0.2,
            amsbound=True, weight_decay=0.1, mask=True,
        ),
    ),
)  # fmt: skip
def adabound(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    final_learning_rate: optax.ScalarOrSchedule = 0.1,
    gamma: Any = 1e-3,
    amsbound: bool = False,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """AdaBound: Adam's step size clipped between two bounds that close in on a final SGD rate.

    Start:
        m = v = w = 0
    Step t = 1, 2, ...:
        m = b1*m + (1 - b1)*g
        v = b2*v + (1 - b2)*g**2
        w = maximum(w, v) if amsbound else v
        lower = final_learning_rate*(1 - 1/(gamma*t + 1))
        upper = final_learning_rate*(1 + 1/(gamma*t))
        alpha = learning_rate*sqrt(1 - b2**t)/(1 - b1**t)
        rate = clip(alpha/(sqrt(w + eps_root) + eps), lower, upper)
        x = x - rate*m - learning_rate*weight_decay*x

    The bounds win over `learning_rate`: as they close, a schedule of it alone neither warms up nor anneals, and even at
    a rate of 0 parameters move. To anneal, give `final_learning_rate` a schedule too. This is the authors' code: it
    corrects the bias and leaves out the paper's factor 1/sqrt(t); but their code scales both bounds by the rate's
    schedule, and applies its decoupled decay (AdaBoundW) without the rate.
    """
    rule = adabound_rule(b1, b2, eps, eps_root, final_learning_rate, gamma, amsbound)
    return lift("adabound", rule, Descent(learning_rate, weight_decay, mask), state_dtype)
