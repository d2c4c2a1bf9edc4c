"""Prodigy: Adam whose rate is an estimate of the distance to a solution, from the way already gone."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, Decay, abs_sq, divide, ema, safe_div, safe_sqrt
from adaptx.core.registry import Paper, optimizer
from adaptx.core.rule import Params, Rule, copied, real_zeros, zeros
from adaptx.optimizers.parameter_free.estimate import correction, cut, decayed, grown, inner, rate_of, renewed, root


class ProdigyState(NamedTuple):
    """The state of Prodigy."""

    count: Array  # t
    mu: Params  # m, the average of d g
    nu: Params  # v, the average of (d |g|)^2, real
    grad_sum: Params  # s
    initial_params: Params  # x0, a copy
    d: Array  # the estimate of D that the next step uses
    previous: Array  # the one that this step used
    numerator: Array  # r, over the square of `previous`
    largest: Array | None = None  # the largest d_hat so far; growth_rate only


def prodigy_rule(
    b1: Any, b2: Any, d_decay: Any, eps: Any, d0: Any, d_coef: Any, growth_rate: Any, bias_correction: bool,
    safeguard_warmup: bool,
) -> Rule:  # fmt: skip
    """Adam's equations on one array, and the sums that estimate D."""
    b1, b2 = Decay.of(b1), Decay.of(b2)
    b3 = root(b2) if d_decay is None else Decay.of(d_decay)

    def part(g: Array, s: ProdigyState, x: Array, t: Clock) -> tuple[Any, ProdigyState]:
        rate = 1 if safeguard_warmup else rate_of(t) * correction(t, b1, b2, bias_correction)
        # XLA would write a clamped g down before it sums. g is as it came in both sums: their quotient is what counts.
        total = cut(ema(s.grad_sum, s.d**2 * rate * g, b3))
        return (inner(g, s.initial_params - x), jnp.sum(jnp.abs(total))), s._replace(grad_sum=total)

    def advance(s: ProdigyState, totals: tuple[Array, Array], t: Clock) -> ProdigyState:
        gain, length = totals
        r = ema((s.previous / s.d) ** 2 * s.numerator, rate_of(t) * correction(t, b1, b2, bias_correction) * gain, b3)
        d_hat = d_coef * s.d**2 * safe_div(r, length)
        d = grown(s.d, d_hat, None)
        if growth_rate is None:
            return renewed(s, d, numerator=r)
        largest = grown(jnp.asarray(s.largest), d_hat, None)
        at_start = s.d == jnp.asarray(d0, s.d.dtype)
        return renewed(s, jnp.where(at_start, d, grown(s.d, largest, growth_rate)), numerator=r, largest=largest)

    def step(g: Array, s: ProdigyState, x: Array, t: Clock) -> tuple[Array, ProdigyState]:
        d = s.previous
        rate = d * rate_of(t) * correction(t, b1, b2, bias_correction)
        m = ema(s.mu, d * g, b1)
        v = ema(s.nu, d**2 * abs_sq(g), b2)
        return decayed(-rate * divide(m, safe_sqrt(v), d * eps), rate, x, t), s._replace(mu=m, nu=v)

    slots = dict(mu=zeros, nu=real_zeros, grad_sum=zeros, initial_params=copied)
    scalars = dict(d=d0, previous=d0, numerator=0.0) | ({} if growth_rate is None else dict(largest=d0))
    decays = (b1, b2) if bias_correction else ()
    return Rule(ProdigyState, step, slots, scalars, part, advance, decays, needs=("learning_rate", "params"))


@optimizer(
    paper=Paper(
        "Prodigy: An Expeditiously Adaptive Parameter-Free Learner (Mishchenko, Defazio)",
        2023,
        "https://arxiv.org/abs/2306.06101",
    ),
    family="parameter_free",
    direction="the estimate of D is the step size, and weighs the moments",
    typical_rate=1.0,
    reduces="tree",
    needs=("params",),
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=0.7),
        dict(
            learning_rate=1.5, b1=0.8, b2=0.95, d_decay=0.9, eps=1e-3, d0=1e-2, d_coef=3.0, growth_rate=1.2,
            bias_correction=True, safeguard_warmup=True, weight_decay=0.1, mask=True,
        ),
    ),
)  # fmt: skip
def prodigy(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    b1: Any = 0.9,
    b2: Any = 0.999,
    d_decay: Any = None,
    eps: Any = 1e-8,
    d0: Any = 1e-6,
    d_coef: Any = 1.0,
    *,
    growth_rate: Any = None,
    bias_correction: bool = False,
    safeguard_warmup: bool = False,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Prodigy: Adam whose rate is an estimate of the distance to a solution, from the way already gone.

    Start:
        x0 = x
        m = v = s = 0*x
        r = 0
        d = most = d0
    Step t = 1, 2, ...:
        b3 = sqrt(b2) if d_decay is None else d_decay
        rate = learning_rate*d*(sqrt(1 - b2**t)/(1 - b1**t) if bias_correction else 1)
        r = b3*r + (1 - b3)*d*rate*sum(g*(x0 - x))
        s = b3*s + (1 - b3)*d*(d if safeguard_warmup else rate)*g
        m = b1*m + (1 - b1)*d*g
        v = b2*v + (1 - b2)*d**2*g**2
        x = x - rate*m/(sqrt(v) + d*eps) - minimum(rate*weight_decay, 1)*x
        d_hat = d_coef*r/sum(abs(s))
        most = maximum(most, d_hat)
        d = maximum(d, d_hat) if growth_rate is None or d == d0 else minimum(most, growth_rate*d)

    The sums run over all parameters, and d estimates the largest distance of one of them. The learning rate is a factor
    that schedules 1; tune d_coef instead. While all gradients are zero d stays; beyond 1e6 (float32) it is cut. The
    rate and eps take the d of the step, as in the paper; the authors' code and Optax multiply eps by the next d. Bias
    correction, safeguard_warmup (the rate leaves s, for a schedule that warms up) and growth_rate (from the second
    estimate on) are the authors' code's; Optax always corrects the bias. Weight decay is decoupled, as in both.
    """
    rule = prodigy_rule(b1, b2, d_decay, eps, d0, d_coef, growth_rate, bias_correction, safeguard_warmup)
    return lift("prodigy", rule, Descent(learning_rate, weight_decay, mask), state_dtype)
