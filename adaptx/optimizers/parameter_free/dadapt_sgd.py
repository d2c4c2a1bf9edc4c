"""D-Adaptation of SGD with momentum."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, Decay, abs_sq, ema, safe_div, safe_sqrt, sum_sq
from adaptx.core.registry import optimizer
from adaptx.core.rounding import bounded
from adaptx.core.rule import Params, Rule, zeros
from adaptx.optimizers.parameter_free.dadapt_adam import D_ADAPTATION
from adaptx.optimizers.parameter_free.estimate import decayed, grown, rate_of, renewed


class DAdaptSGDState(NamedTuple):
    """The state of D-Adapted SGD."""

    count: Array  # t
    mu: Params  # m, the average step
    grad_sum: Params  # s, the sum of steps
    d: Array  # the estimate of D that the next step uses
    previous: Array  # the one that this step used
    penalty: Array  # q, the sum of |rate g|^2, over the square of `previous`
    grad_norm: Array  # G, the norm of the first gradient that is not zero


def dadapt_sgd_rule(b1: Any, d0: Any, growth_rate: Any) -> Rule:
    """SGD's equations on one array, and the sums that estimate D."""
    b1 = Decay.of(b1)

    def part(g: Array, s: DAdaptSGDState, x: Any, t: Clock) -> tuple[Any, DAdaptSGDState]:
        # In the first step G is not known, and s is 0: the estimate stays, as it would from r = 0.
        total = s.grad_sum + s.d * rate_of(t) * safe_div(bounded(g), s.grad_norm)
        return (jnp.sum(abs_sq(total)), sum_sq(g)), s

    def advance(s: DAdaptSGDState, totals: tuple[Array, Array], t: Clock) -> DAdaptSGDState:
        length_sq, grad_sq = totals
        first = jnp.where(s.grad_norm == 0, safe_sqrt(grad_sq), s.grad_norm)
        q = (s.previous / s.d) ** 2 * s.penalty + rate_of(t) ** 2 * safe_div(grad_sq, first**2)
        # Twice the sum of <rate g, s> is |s|^2 after all steps, less the sum of |rate g|^2.
        d = grown(s.d, safe_div(length_sq - s.d**2 * q, safe_sqrt(length_sq)), growth_rate)
        return renewed(s, d, penalty=q, grad_norm=first)

    def step(g: Array, s: DAdaptSGDState, x: Any, t: Clock) -> tuple[Array, DAdaptSGDState]:
        rate = rate_of(t) * safe_div(s.previous, s.grad_norm)
        m = ema(s.mu, rate * g, b1)
        return decayed(-m, rate, x, t), s._replace(mu=m, grad_sum=s.grad_sum + rate * g)

    scalars = dict(d=d0, previous=d0, penalty=0.0, grad_norm=0.0)
    return Rule(DAdaptSGDState, step, dict(mu=zeros, grad_sum=zeros), scalars, part, advance, needs=("learning_rate",))


@optimizer(
    paper=D_ADAPTATION,
    family="parameter_free",
    direction="the estimate of D, over the first gradient's norm, is the step size",
    typical_rate=1.0,
    reduces="tree",
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=1.0),
        dict(learning_rate=0.5, b1=0.8, d0=1e-2, growth_rate=1.2, weight_decay=0.05, mask=True),
    ),
)
def dadapt_sgd(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    b1: Any = 0.9,
    d0: Any = 1e-6,
    *,
    growth_rate: Any = None,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """D-Adapted SGD: SGD with momentum whose rate is a lower bound of the distance to a solution, over |g_1|.

    Start:
        m = s = 0*x
        r = G = 0
        d = d0
    Step t = 1, 2, ...:
        G = G if G > 0 else norm(g)
        rate = learning_rate*d/G
        r = r + rate*sum(g*s)
        s = s + rate*g
        m = b1*m + (1 - b1)*rate*g
        x = x - m - minimum(rate*weight_decay, 1)*x
        d_hat = 2*r/norm(s)
        d = maximum(d, d_hat if growth_rate is None else minimum(d_hat, growth_rate*d))

    Norms and sums run over all parameters. The learning rate is a factor that schedules 1. d is cut beyond 1e6
    (float32), and 2*r is found as |s|^2 less all |rate*g|^2, which it is. The paper's iterates
    z = x0 - s and x = b1*x + (1 - b1)*z are these, as steps: what rounding or decay did to x stays. Its default is
    b1=0.9; the authors' code has 0. G is the first gradient that is not zero: the paper stops, and the authors' code
    divides by 0, where the very first one is. Weight decay is decoupled; in the authors' code it joins the gradient.
    """
    return lift(
        "dadapt_sgd", dadapt_sgd_rule(b1, d0, growth_rate), Descent(learning_rate, weight_decay, mask), state_dtype
    )
