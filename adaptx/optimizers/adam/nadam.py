"""NAdam: Adam with Nesterov momentum and a momentum schedule."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, Decay, abs_sq, debias, divide, ema, safe_sqrt
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rule import Params, Rule, real_zeros, zeros


class NAdamState(NamedTuple):
    """The state of NAdam."""

    count: Array  # t
    mu: Params  # m, like the parameters
    nu: Params  # v, real
    mu_bias: Array  # 1 - the product of the momenta so far: kept as the complement, which does not cancel


def nadam_rule(b1: Any, b2: Any, eps: Any, eps_root: Any, momentum_decay: Any) -> Rule:
    """NAdam's equations on one array; the product of the momenta is one number for the tree."""
    b1, b2 = Decay.of(b1), Decay.of(b2)

    def momentum(t: Array) -> Decay:
        """b1 (1 - 0.96^(t psi) / 2), with its complement."""
        if momentum_decay is None:
            return b1
        less = b1 * (0.5 * jnp.exp(t * momentum_decay * math.log(0.96)))
        one = jnp.ones_like(t)
        return Decay(b1 * one - less, (1 - b1) * one + less)

    def advance(s: NAdamState, totals: None, t: Clock) -> NAdamState:
        return s._replace(mu_bias=ema(s.mu_bias, jnp.ones_like(t.t), momentum(t.t)))

    def shared(s: NAdamState, t: Clock) -> tuple[Array, Array]:
        """What multiplies g and m: the same on every leaf."""
        now, following, one = momentum(t.t), momentum(t.t + 1), jnp.ones_like(t.t)
        return (1 - now) * one / s.mu_bias, following * one / ema(s.mu_bias, one, following)

    def step(g: Array, s: NAdamState, x: Any, t: Clock) -> tuple[Array, NAdamState]:
        m = ema(s.mu, g, b1)
        v = ema(s.nu, abs_sq(g), b2)
        of_g, of_m = t.shared
        m_hat = of_g * g + of_m * m
        return divide(m_hat, safe_sqrt(debias(v, b2, t) + eps_root), eps), s._replace(mu=m, nu=v)

    slots, scalars = dict(mu=zeros, nu=real_zeros), dict(mu_bias=0.0)
    return Rule(NAdamState, step, slots, scalars, advance=advance, decays=(b2,), shared=shared)


@checked
def scale_by_nadam(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    momentum_decay: Any = 4e-3,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of `nadam`: u in its equations, before the rate, the decay and the sign."""
    return lift("scale_by_nadam", nadam_rule(b1, b2, eps, eps_root, momentum_decay), state_dtype=state_dtype)


@optimizer(
    paper=Paper(
        "Incorporating Nesterov Momentum into Adam (Dozat)",
        2016,
        "https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ",
    ),
    family="adam",
    direction=scale_by_nadam,
    typical_rate=2e-3,
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=2e-3),
        dict(learning_rate=2e-3, momentum_decay=None),
        dict(
            learning_rate=0.02,
            b1=0.8,
            b2=0.95,
            eps=1e-3,
            eps_root=1e-4,
            momentum_decay=0.1,
            weight_decay=0.1,
            mask=True,
        ),
    ),
)
def nadam(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    momentum_decay: Any = 4e-3,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """NAdam: Adam whose first moment looks one momentum step ahead.

    Start:
        m = v = 0
        p = 1
    Step t = 1, 2, ...:
        m = b1*m + (1 - b1)*g
        v = b2*v + (1 - b2)*g**2
        psi = momentum_decay
        now = b1 if psi is None else b1*(1 - 0.5*0.96**(t*psi))
        next = b1 if psi is None else b1*(1 - 0.5*0.96**((t + 1)*psi))
        p = p*now
        n = (1 - now)*g/(1 - p) + next*m/(1 - p*next)
        u = n / (sqrt(v/(1 - b2**t) + eps_root) + eps)
        x = x - learning_rate*(u + weight_decay*x)

    m decays by the constant b1, as in Dozat's project report, torch and Keras; the workshop paper's listing decays it
    by the scheduled momentum. Keras's schedule is momentum_decay=1; Optax has none and cannot reproduce either.
    """
    rule = nadam_rule(b1, b2, eps, eps_root, momentum_decay)
    return lift("nadam", rule, Descent(learning_rate, weight_decay, mask), state_dtype)
