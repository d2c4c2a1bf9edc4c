"""FTRL-Proximal: AdaGrad's rate with weights that are exactly zero until they are worth having."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, abs_sq, safe_div, safe_sqrt
from adaptx.core.registry import Paper, optimizer
from adaptx.core.rule import Params, Rule, filled, zeros


class FTRLState(NamedTuple):
    """The state of FTRL-Proximal."""

    count: Array  # t
    nu: Params  # n, the sum of squared gradients, real
    held: Params = None  # z where the weight is 0, and 0 elsewhere, where z follows from the weight; l1 only


def ftrl_rule(beta: Any, l1: Any, l2: Any, initial_accumulator: Any) -> Rule:
    """FTRL-Proximal's equations on one array.

    A weight x that is not 0 has z = -h x / rate - l1 sign(x), so the step goes from x itself: what rounding, look-ahead
    or averaging did to it stays, where a stored z would undo it.
    """

    def step(g: Array, s: FTRLState, x: Array, t: Clock) -> tuple[Array, FTRLState]:
        rate, n = t.learning_rate, s.nu + abs_sq(g)
        h = beta + safe_sqrt(n)
        h = h if l2 is None else h + rate * l2
        if l1 is None:
            return -rate * safe_div(g, h), s._replace(nu=n)
        pull = g + jnp.where(x == 0, s.held, -l1 * jnp.sign(x))
        z = rate * pull - h * x  # times the rate, which may be 0
        cut = (jnp.abs(z) <= rate * l1) & (h > 0)  # with beta = 0 a weight without a gradient yet is free
        u = jnp.where(cut, -x, -rate * safe_div(pull - l1 * jnp.sign(z), h))
        held = jnp.where(x == 0, pull, safe_div(z, jnp.full_like(h, rate)))
        return u, s._replace(nu=n, held=jnp.where(cut, held, 0))

    slots = dict(nu=filled(initial_accumulator), held=None if l1 is None else zeros)
    return Rule(FTRLState, step, slots, needs=("learning_rate", "params"))


@optimizer(
    paper=Paper(
        "Ad Click Prediction: a View from the Trenches (McMahan et al.)",
        2013,
        "https://doi.org/10.1145/2487575.2488200",
    ),
    family="adagrad",
    direction="the rate is part of the threshold that l1 sets",
    typical_rate=0.1,
    needs=("params",),
    normalised=True,
    cases=(
        dict(learning_rate=2.0),
        dict(learning_rate=2.0, beta=0.2, l1=0.05, l2=0.1, initial_accumulator=0.1),
    ),
)
def ftrl(
    learning_rate: optax.ScalarOrSchedule,
    beta: Any = 1.0,
    *,
    l1: Any = None,
    l2: Any = None,
    initial_accumulator: Any = 0.0,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """FTRL-Proximal: AdaGrad as follow-the-regularised-leader, so that l1 gives weights that are exactly zero.

    Start:
        n = initial_accumulator
        z = -x*((beta + sqrt(n))/learning_rate + l2) - l1*sign(x)
    Step t = 1, 2, ...:
        s = (sqrt(n + g**2) - sqrt(n))/learning_rate
        n = n + g**2
        z = z + g - s*x
        x = (clip(z, -l1, l1) - z)/((beta + sqrt(n))/learning_rate + l2)

    The paper starts at x = 0 and so at z = 0, which erases any other start; this z is the one whose weight is x. Only
    the z of weights that are 0 is stored. A gradient of zero changes nothing, also under a schedule of the rate, where
    TensorFlow and Keras rescale all that was learned before; with beta = 0 a weight that has had no gradient stays too,
    where the last line is 0/0. Without l1 and l2 it is AdaGrad with eps = beta. l2 is the paper's lambda 2; Keras's
    counts double. There is no decoupled decay: l2 takes its part here.
    """
    return lift("ftrl", ftrl_rule(beta, l1, l2, initial_accumulator), Descent(learning_rate), state_dtype)
