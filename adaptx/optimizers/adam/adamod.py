"""AdaMod: Adam whose step sizes stay below their own average."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.descent import Descent, and_decay
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, Decay, abs_sq, debias, ema, safe_sqrt
from adaptx.core.registry import Paper, optimizer
from adaptx.core.rule import Params, Rule, real_zeros, zeros


class AdaModState(NamedTuple):
    """The state of AdaMod."""

    count: Array  # t
    mu: Params  # m, like the parameters
    nu: Params  # v, real
    rates: Params  # s, the average of the step sizes, real


def adamod_rule(b1: Any, b2: Any, b3: Any, eps: Any, eps_root: Any) -> Rule:
    """AdaMod's equations on one array; the average is of rates, so the rule owns the rate."""
    b1, b2, b3 = Decay.of(b1), Decay.of(b2), Decay.of(b3)

    def step(g: Array, s: AdaModState, x: Any, t: Clock) -> tuple[Array, AdaModState]:
        m = ema(s.mu, g, b1)
        v = ema(s.nu, abs_sq(g), b2)
        root = safe_sqrt(debias(v, b2, t) + eps_root) + eps
        # Where the root is 0 there is no step size yet, and the average stays; m is 0 there.
        eta = jnp.where(root == 0, s.rates, t.learning_rate / jnp.where(root == 0, 1, root))
        rates = ema(s.rates, eta, b3)
        return and_decay(-jnp.minimum(eta, rates) * debias(m, b1, t), x, t), s._replace(mu=m, nu=v, rates=rates)

    slots = dict(mu=zeros, nu=real_zeros, rates=real_zeros)
    return Rule(AdaModState, step, slots, decays=(b1, b2), needs=("learning_rate",))


@optimizer(
    paper=Paper(
        "An Adaptive and Momental Bound Method for Stochastic Learning (Ding, Ren, Luo, Sun)",
        2019,
        "https://arxiv.org/abs/1910.12249",
    ),
    family="adam",
    direction="the bound is an average of rates, so the rate sits inside the rule",
    typical_rate=1e-3,
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=0.05),
        dict(learning_rate=0.02, b1=0.8, b2=0.95, eps=1e-3, eps_root=1e-4, b3=0.7, weight_decay=0.1, mask=True),
    ),
)
def adamod(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    b3: Any = 0.999,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """AdaMod: Adam's step size, cut at the running average of all step sizes so far.

    Start:
        m = v = s = 0
    Step t = 1, 2, ...:
        m = b1*m + (1 - b1)*g
        v = b2*v + (1 - b2)*g**2
        eta = learning_rate/(sqrt(v/(1 - b2**t) + eps_root) + eps)
        s = b3*s + (1 - b3)*eta
        x = x - minimum(eta, s)*m/(1 - b1**t) - learning_rate*weight_decay*x

    s is not corrected for its zero start, which is a warm-up over about 1/(1 - b3) steps. The authors' code takes the
    correction 1/(1 - b1^t) of m into eta, and so into the average and the cut, and adds eps to the root of the
    uncorrected v; this is the paper. A coordinate without a gradient has the step size learning_rate/eps, which lifts
    its average out of reach: a larger eps keeps the bound in place.
    """
    rule = adamod_rule(b1, b2, b3, eps, eps_root)
    return lift("adamod", rule, Descent(learning_rate, weight_decay, mask), state_dtype)
