"""Adan: Adam with Nesterov momentum, by an average of the differences of gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, Decay, abs_sq, debias, divide, ema, safe_sqrt
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rule import Params, Rule, real_zeros, zeros


class AdanState(NamedTuple):
    """The state of Adan."""

    count: Array  # t
    mu: Params  # m, the mean gradient
    nu: Params  # n, real
    change: Params  # v, the mean difference of gradients
    grad: Params  # the gradient of the step before


def adan_rule(b1: Any, b2: Any, b3: Any, eps: Any, eps_root: Any) -> Rule:
    """Adan's equations on one array."""
    b1, b2, b3 = Decay.of(b1), Decay.of(b2), Decay.of(b3)

    def step(g: Array, s: AdanState, x: Any, t: Clock) -> tuple[Array, AdanState]:
        difference = jnp.where(t.t == 1, 0, g - s.grad)
        m = ema(s.mu, g, b1)
        v = ema(s.change, difference, b2)
        n = ema(s.nu, abs_sq(g + b2 * difference), b3)
        ahead = debias(m, b1, t) + b2 * debias(v, b2, t)
        u = divide(ahead, safe_sqrt(debias(n, b3, t) + eps_root), eps)
        # Written after all that read the old one, so that XLA sees that its buffer is free, and copies nothing.
        return u, s._replace(mu=m, nu=n, change=v, grad=g + 0 * (v + n))

    slots = dict(mu=zeros, nu=real_zeros, change=zeros, grad=zeros)
    return Rule(AdanState, step, slots, decays=(b1, b2, b3))


@checked
def scale_by_adan(
    b1: Any = 0.98, b2: Any = 0.92, b3: Any = 0.99, eps: Any = 1e-8, eps_root: Any = 0.0, *, state_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
    """The direction of `adan`: u in its equations, before the rate, the decay and the sign."""
    return lift("scale_by_adan", adan_rule(b1, b2, b3, eps, eps_root), state_dtype=state_dtype)


@optimizer(
    paper=Paper(
        "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models (Xie et al.)",
        2022,
        "https://arxiv.org/abs/2208.06677",
    ),
    family="adam",
    direction=scale_by_adan,
    typical_rate=1e-3,
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=1e-3),
        dict(
            learning_rate=0.02, b1=0.8, b2=0.7, b3=0.95, eps=1e-3, eps_root=1e-4, weight_decay=0.1, mask=True
        ),
    ),
)  # fmt: skip
def adan(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.98,
    b2: Any = 0.92,
    b3: Any = 0.99,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Adan: Adam that looks ahead by the mean difference of gradients, without a second gradient.

    Start:
        m = v = n = 0
        before = 0
    Step t = 1, 2, ...:
        d = g - before if t > 1 else 0
        m = b1*m + (1 - b1)*g
        v = b2*v + (1 - b2)*d
        n = b3*n + (1 - b3)*(g + b2*d)**2
        u = (m/(1 - b1**t) + b2*v/(1 - b2**t)) / (sqrt(n/(1 - b3**t) + eps_root) + eps)
        before = g
        x = x - learning_rate*(u + weight_decay*x)

    b1, b2 and b3 are what an average keeps, as in the authors' code; in the paper they are what it takes in: its
    1 - beta2 is b2 here. Optax's average keeps b2, as the code's does, but its weight of the difference is the paper's
    1 - b2, now 0.08 instead of 0.92: it hardly looks ahead, and agrees with paper and code only at b2 = 0.5. The bias
    corrections are the code's; the paper's algorithm starts at m = g and n = g^2 instead. The decay is decoupled, as
    everywhere here; the paper's and, by default, its code's is x/(1 + learning_rate weight_decay) after the step
    (Optax documents that one too, and does this one). Restarts and the code's clipping of gradients are left out.
    """
    return lift("adan", adan_rule(b1, b2, b3, eps, eps_root), Descent(learning_rate, weight_decay, mask), state_dtype)
