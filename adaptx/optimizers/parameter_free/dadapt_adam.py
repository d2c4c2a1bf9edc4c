"""D-Adaptation of Adam."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, Decay, abs_sq, divide, ema, safe_div, safe_sqrt
from adaptx.core.registry import Paper, optimizer
from adaptx.core.rounding import bounded
from adaptx.core.rule import Params, Rule, real_zeros, zeros
from adaptx.optimizers.parameter_free.estimate import correction, cut, decayed, grown, product, rate_of, renewed, root

D_ADAPTATION = Paper(
    "Learning-Rate-Free Learning by D-Adaptation (Defazio, Mishchenko)", 2023, "https://arxiv.org/abs/2301.07733"
)


class DAdaptAdamState(NamedTuple):
    """The state of D-Adapted Adam."""

    count: Array  # t
    mu: Params  # m, the average of weighted gradients
    nu: Params  # v, real
    grad_sum: Params  # s, the same average with sqrt(b2)
    d: Array  # the estimate of D that the next step uses
    previous: Array  # the one that this step used
    numerator: Array  # r, over `previous`


def dadapt_adam_rule(b1: Any, b2: Any, eps: Any, d0: Any, growth_rate: Any, bias_correction: bool) -> Rule:
    """Adam's equations on one array, and the sums that estimate D."""
    b1, b2 = Decay.of(b1), Decay.of(b2)
    b = root(b2)

    def weight(d: Array, t: Clock) -> Array:
        return d * rate_of(t) * correction(t, b1, b2, bias_correction)

    def part(g: Array, s: DAdaptAdamState, x: Any, t: Clock) -> tuple[Any, DAdaptAdamState]:
        g = bounded(g)
        gain = jnp.sum(cut(product(g, divide(s.grad_sum, safe_sqrt(s.nu), eps))))
        # What is written depends on the sum over what it replaces (gain - gain is 0): else XLA copies that first.
        total = ema(s.grad_sum, weight(s.d, t) * g, b) + (gain - gain)
        return (gain, jnp.sum(jnp.abs(total))), s._replace(grad_sum=total)

    def advance(s: DAdaptAdamState, totals: tuple[Array, Array], t: Clock) -> DAdaptAdamState:
        gain, length = totals
        r = ema(s.previous / s.d * s.numerator, weight(jnp.ones_like(s.d), t) * gain, b)
        d = grown(s.d, s.d * safe_div(r, (1 - b) * length), growth_rate)
        return renewed(s, d, numerator=r)

    def step(g: Array, s: DAdaptAdamState, x: Any, t: Clock) -> tuple[Array, DAdaptAdamState]:
        rate = weight(s.previous, t)
        m = ema(s.mu, rate * g, b1)
        v = ema(s.nu * (s.d / s.d), abs_sq(g), b2)  # times 1: it depends on the sum over the old v, too
        return decayed(-divide(m, safe_sqrt(v), eps), rate, x, t), s._replace(mu=m, nu=v)

    slots = dict(mu=zeros, nu=real_zeros, grad_sum=zeros)
    decays = (b1, b2) if bias_correction else ()
    return Rule(
        DAdaptAdamState, step, slots, dict(d=d0, previous=d0, numerator=0.0), part, advance, decays,
        needs=("learning_rate",),
    )  # fmt: skip


@optimizer(
    paper=D_ADAPTATION,
    family="parameter_free",
    direction="the estimate of D is the step size, and its average is part of the first moment",
    typical_rate=1.0,
    reduces="tree",
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=1.0),
        dict(
            learning_rate=0.5, b1=0.8, b2=0.95, eps=1e-3, d0=1e-2, growth_rate=1.2, bias_correction=True,
            weight_decay=0.3, mask=True,
        ),
    ),
)  # fmt: skip
def dadapt_adam(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    d0: Any = 1e-6,
    *,
    growth_rate: Any = None,
    bias_correction: bool = False,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """D-Adapted Adam: Adam whose rate is a lower bound of the distance to a solution, made from its own gradients.

    Start:
        m = v = s = 0*x
        r = 0
        d = d0
    Step t = 1, 2, ...:
        rate = learning_rate*d*(sqrt(1 - b2**t)/(1 - b1**t) if bias_correction else 1)
        r = sqrt(b2)*r + (1 - sqrt(b2))*rate*sum(g*s/(sqrt(v) + eps))
        m = b1*m + (1 - b1)*rate*g
        v = b2*v + (1 - b2)*g**2
        s = sqrt(b2)*s + (1 - sqrt(b2))*rate*g
        x = x - m/(sqrt(v) + eps) - minimum(rate*weight_decay, 1)*x
        d_hat = r/((1 - sqrt(b2))*sum(abs(s)))
        d = maximum(d, d_hat if growth_rate is None else minimum(d_hat, growth_rate*d))

    The sums run over all parameters, and d estimates the largest distance of one of them. The learning rate is a factor
    that schedules 1. While all gradients are zero d stays; beyond 1e6 (float32) it is cut. The inner product in r takes
    v before this step, as the authors' code and Optax do, since s/(sqrt(v) + eps) is then the way already gone, which
    the theory bounds D by; the paper's listing takes v after it. Bias correction is not the paper's (its authors' code
    can, Optax always does). Weight decay is decoupled, as in Optax; in the authors' code it is so on demand.
    """
    rule = dadapt_adam_rule(b1, b2, eps, d0, growth_rate, bias_correction)
    return lift("dadapt_adam", rule, Descent(learning_rate, weight_decay, mask), state_dtype)
