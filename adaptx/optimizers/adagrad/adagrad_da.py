"""AdaGrad by dual averaging, with l1 and l2."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, abs_sq, divide, safe_div, safe_sqrt
from adaptx.core.registry import Paper, optimizer
from adaptx.core.rule import Params, Rule, copied, filled, zeros


class AdaGradDAState(NamedTuple):
    """The state of AdaGrad by dual averaging."""

    count: Array  # t
    nu: Params  # s, the sum of squared gradients, real
    grad_sum: Params  # z, the sum of the gradients, each times its rate
    initial_params: Params  # x0, a copy
    rate_sum: Array  # r, the sum of the rates


def adagrad_da_rule(initial_accumulator: Any, eps: Any, l1: Any, l2: Any) -> Rule:
    """The equations on one array; x is what minimises <z, x> + r (l1 |x| + l2 x^2 / 2) + h (x - x0)^2 / 2."""

    def advance(s: AdaGradDAState, totals: None, t: Clock) -> AdaGradDAState:
        return s._replace(rate_sum=s.rate_sum + jnp.asarray(t.learning_rate, s.rate_sum.dtype))

    def step(g: Array, s: AdaGradDAState, x: Array, t: Clock) -> tuple[Array, AdaGradDAState]:
        nu, z, x0 = s.nu + abs_sq(g), s.grad_sum + t.learning_rate * g, s.initial_params
        s = s._replace(nu=nu, grad_sum=z)
        if l1 is None and l2 is None:
            return (x0 - x) - divide(z, safe_sqrt(nu), eps), s
        h = safe_sqrt(nu) + eps
        pull, denominator = z, h
        if l2 is not None:
            pull, denominator = pull + s.rate_sum * l2 * x0, denominator + s.rate_sum * l2
        if l1 is None:
            return (x0 - x) - safe_div(pull, denominator), s
        w, threshold = h * x0 - z, s.rate_sum * l1
        u = (x0 - x) - safe_div(pull + threshold * jnp.sign(w), denominator)
        return jnp.where(jnp.abs(w) <= threshold, -x, u), s

    slots = dict(nu=filled(initial_accumulator), grad_sum=zeros, initial_params=copied)
    needs = ("learning_rate", "params")
    return Rule(AdaGradDAState, step, slots, dict(rate_sum=0.0), advance=advance, needs=needs)


@optimizer(
    paper=Paper(
        "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization (Duchi, Hazan, Singer)",
        2011,
        "https://jmlr.org/papers/v12/duchi11a.html",
    ),
    family="adagrad",
    direction="each step goes from the first parameters by a sum that holds the rates of all steps",
    typical_rate=0.1,
    needs=("params",),
    normalised=True,
    scale_free=[True, False, False],  # penalties have a scale
    zero_is_fixed=[True, False, False],
    cases=(
        dict(learning_rate=0.1),
        dict(learning_rate=0.1, l2=0.1),
        dict(learning_rate=0.5, initial_accumulator=0.2, eps=1e-2, l1=0.05, l2=0.1),
    ),
)
def adagrad_da(
    learning_rate: optax.ScalarOrSchedule,
    initial_accumulator: Any = 0.1,
    eps: Any = 0.0,
    *,
    l1: Any = None,
    l2: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """AdaGrad by dual averaging: each step anew from the first parameters, by all gradients and penalties so far.

    Start:
        s = initial_accumulator
        z = r = 0
        x0 = x
    Step t = 1, 2, ...:
        s = s + g**2
        z = z + learning_rate*g
        r = r + learning_rate
        h = sqrt(s) + eps
        w = h*x0 - z
        x = sign(w)*maximum(abs(w) - r*l1, 0)/(h + r*l2)

    This is the paper's primal-dual update (its equation 3; Xiao 2010's RDA with AdaGrad's h), which keeps more weights
    at zero than the proximal step of `adagrad`: the penalty of all steps meets the sum of all gradients. Its proximal
    function is centred at 0, so that any other start is forgotten at once; here the centre is the first parameters,
    which a network needs, while the penalties pull to 0 as before. From 0 it is the paper's. The paper's delta is
    `eps`; TensorFlow's AdagradDA has the accumulator, 0.1, instead, and counts the penalty's steps from a global step
    that may be one behind. With neither, a weight without gradients so far is cut to zero by l1. A rate that changes
    weighs its own gradient and penalty; theirs rescales all that was learned before. What others do to the parameters
    between steps is forgotten, decay too: l2 takes its part.
    """
    rule = adagrad_da_rule(initial_accumulator, eps, l1, l2)
    return lift("adagrad_da", rule, Descent(learning_rate), state_dtype)
