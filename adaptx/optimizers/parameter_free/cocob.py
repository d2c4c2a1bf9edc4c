"""COCOB-Backprop: each parameter is a bet on the sign of its next gradient, so no rate is needed."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, safe_div
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rule import Params, Rule, real_zeros, zeros
from adaptx.optimizers.parameter_free.estimate import product


class COCOBState(NamedTuple):
    """The state of COCOB."""

    count: Array  # t
    grad_sum: Params  # theta, the sum of negative gradients
    abs_sum: Params  # G, the sum of their sizes, real
    reward: Params  # R, what the bets have won, real
    scale: Params  # L, the largest |g| so far, real
    bet: Params  # w, where the parameter stands, from where it began


def cocob_rule(caution: Any) -> Rule:
    """COCOB-Backprop's equations on one array."""

    def step(g: Array, s: COCOBState, x: Any, t: Clock) -> tuple[Array, COCOBState]:
        size = jnp.abs(g)
        L, G = jnp.maximum(s.scale, size), s.abs_sum + size
        lost = product(g, s.bet)
        R = jnp.maximum(s.reward, lost) - lost
        theta = s.grad_sum - g
        wealth = jnp.minimum(L + R, 1e12 * L)
        w = theta * safe_div(wealth, L * jnp.maximum(G + L, caution * L))
        return s.bet - w, s._replace(grad_sum=theta, abs_sum=G, reward=R, scale=L, bet=w)

    slots = dict(grad_sum=zeros, abs_sum=real_zeros, reward=real_zeros, scale=real_zeros, bet=zeros)
    return Rule(COCOBState, step, slots)


@checked
def scale_by_cocob(caution: Any = 100.0, *, state_dtype: Any = None) -> optax.GradientTransformationExtraArgs:
    """The direction of `cocob`: u in its equations, before the rate, the decay and the sign."""
    return lift("scale_by_cocob", cocob_rule(caution), state_dtype=state_dtype)


@optimizer(
    paper=Paper(
        "Training Deep Networks without Learning Rates Through Coin Betting (Orabona, Tommasi)",
        2017,
        "https://arxiv.org/abs/1705.07795",
    ),
    family="parameter_free",
    direction=scale_by_cocob,
    typical_rate=1.0,
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=1.0),
        dict(learning_rate=0.5, caution=3.0, weight_decay=0.1, mask=True),
    ),
)
def cocob(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    caution: Any = 100.0,
    *,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """COCOB-Backprop: each parameter is a bet on the sign of its next gradient, from a wealth that wins and loses.

    Start:
        L = G = R = theta = w = 0*x
    Step t = 1, 2, ...:
        L = maximum(L, abs(g))
        G = G + abs(g)
        R = maximum(R - g*w, 0)
        theta = theta - g
        u = w - theta/(L*maximum(G + L, caution*L))*(L + R)
        w = w - u
        x = x - learning_rate*(u + weight_decay*x)

    At a rate of 1 and without decay x is the paper's x0 + w. The rate is not the paper's: a constant one is the unit in
    which all parameters are measured (the first step is learning_rate/caution), and a schedule that ends at 0 brings
    them to rest. Optax multiplies the gradient by it, which changes nothing, as the scale of gradients does not matter.
    `caution` is the paper's alpha, 100; about so many steps the bets stay small. w is the rule's own bet, as in the
    authors' TensorFlow code, not what rounding, decay or a mask made of x - x0, as in their later one and Optax. Decay
    is decoupled, times the rate: at 1 it takes weight_decay*x in each step. The paper's L starts at 0 and divides 0 by
    0 where no gradient has come yet: here nothing moves then; others start L at 1e-8. While a gradient keeps its sign,
    wealth grows by a factor a step; bets are cut at 1e12 (float32).
    """
    return lift("cocob", cocob_rule(caution), Descent(learning_rate, weight_decay, mask), state_dtype)
