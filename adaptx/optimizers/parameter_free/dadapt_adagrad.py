"""D-Adaptation of AdaGrad."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, abs_sq, divide, safe_div, safe_sqrt
from adaptx.core.registry import optimizer
from adaptx.core.rounding import bounded
from adaptx.core.rule import Params, Rule, filled, zeros
from adaptx.optimizers.parameter_free.dadapt_adam import D_ADAPTATION
from adaptx.optimizers.parameter_free.estimate import decayed, grown, rate_of, renewed


class DAdaptAdaGradState(NamedTuple):
    """The state of D-Adapted AdaGrad."""

    count: Array  # t
    nu: Params  # v, the sum of squared gradients, real
    grad_sum: Params  # s, the sum of weighted gradients
    d: Array  # the estimate of D that the next step uses
    previous: Array  # the one that this step used
    penalty: Array  # q, over the square of `previous`


def dadapt_adagrad_rule(initial_accumulator: Any, eps: Any, d0: Any, growth_rate: Any) -> Rule:
    """AdaGrad's dual averaging on one array, and the sums that estimate D."""

    def part(g: Array, s: DAdaptAdaGradState, x: Any, t: Clock) -> tuple[Any, DAdaptAdaGradState]:
        g = bounded(g) + (g - g)  # an Inf shows as NaN
        total, root = s.grad_sum + s.d * rate_of(t) * g, safe_sqrt(s.nu + abs_sq(g))
        weighed = lambda a: jnp.sum(divide(abs_sq(a), root, eps))
        return (weighed(g), weighed(total), jnp.sum(jnp.abs(total))), s

    def advance(s: DAdaptAdaGradState, totals: tuple[Array, Array, Array], t: Clock) -> DAdaptAdaGradState:
        grad_sq, total_sq, length = totals
        q = (s.previous / s.d) ** 2 * s.penalty + rate_of(t) ** 2 * grad_sq
        d = grown(s.d, safe_div(total_sq - s.d**2 * q, length), growth_rate)
        return renewed(s, d, penalty=q)

    def step(g: Array, s: DAdaptAdaGradState, x: Any, t: Clock) -> tuple[Array, DAdaptAdaGradState]:
        rate = s.previous * rate_of(t)
        total, nu = s.grad_sum + rate * g, s.nu + abs_sq(g)
        before, now = divide(s.grad_sum, safe_sqrt(s.nu), eps), divide(total, safe_sqrt(nu), eps)
        return decayed(before - now, rate, x, t), s._replace(nu=nu, grad_sum=total)

    slots, scalars = dict(nu=filled(initial_accumulator), grad_sum=zeros), dict(d=d0, previous=d0, penalty=0.0)
    return Rule(DAdaptAdaGradState, step, slots, scalars, part, advance, needs=("learning_rate",))


@optimizer(
    paper=D_ADAPTATION,
    family="parameter_free",
    direction="the estimate of D weighs the gradients that the step is made of",
    typical_rate=1.0,
    reduces="tree",
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=1.0),
        dict(
            learning_rate=0.9, d0=1e-2, eps=1e-3, growth_rate=1.2, initial_accumulator=0.1, weight_decay=0.1,
            mask=True,
        ),
    ),
)  # fmt: skip
def dadapt_adagrad(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    d0: Any = 1e-6,
    eps: Any = 1e-6,
    *,
    growth_rate: Any = None,
    initial_accumulator: Any = 1e-6,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """D-Adapted AdaGrad: AdaGrad's dual averaging, each gradient weighed by an estimate of the distance to a solution.

    Start:
        v = initial_accumulator
        s = z = 0*x
        q = 0
        d = d0
    Step t = 1, 2, ...:
        rate = learning_rate*d
        v = v + g**2
        s = s + rate*g
        h = sqrt(v) + eps
        q = q + rate**2*sum(g**2/h)
        x = x + (z - s/h) - minimum(rate*weight_decay, 1)*x
        z = s/h
        d_hat = (sum(s**2/h) - q)/sum(abs(s))
        d = maximum(d, d_hat if growth_rate is None else minimum(d_hat, growth_rate*d))

    The sums run over all parameters, and d estimates the largest distance of one of them. The learning rate is a factor
    that schedules 1; d is cut beyond 1e6 (float32). Without decay x is the paper's x0 - s/h; the step goes from x
    itself, so that what decay or rounding did to it stays. This is the authors' code. The paper's listing starts v at
    the square of a bound G of all gradients, which nobody knows, so that q can take h before each step; and it halves
    d_hat, which is then a true lower bound. The code's momentum, an average of iterates, is not the paper's; its decay
    joins the gradient. The authors recommend the SGD and Adam forms, in which d adapts faster.
    """
    rule = dadapt_adagrad_rule(initial_accumulator, eps, d0, growth_rate)
    return lift("dadapt_adagrad", rule, Descent(learning_rate, weight_decay, mask), state_dtype)
