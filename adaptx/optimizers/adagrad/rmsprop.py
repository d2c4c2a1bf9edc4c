"""RMSprop, plain or centered, with momentum."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.combinators import with_momentum
from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, Decay, abs_sq, debias, divide, ema, safe_sqrt
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rule import Params, Rule, filled, zeros


class RMSPropState(NamedTuple):
    """The state of RMSprop."""

    count: Array  # t
    nu: Params  # v, the mean of squared gradients, real
    mu: Params = None  # m, the mean of gradients; centered only
    trace: Params = None  # the momentum buffer


def rmsprop_rule(
    b2: Any,
    eps: Any,
    eps_root: Any,
    initial_accumulator: Any = 0.0,
    centered: bool = False,
    momentum: Any = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> Rule:
    """RMSprop's equations on one array."""
    b2 = Decay.of(b2)

    def step(g: Array, s: RMSPropState, x: Any, t: Clock) -> tuple[Array, RMSPropState]:
        v = variance = ema(s.nu, abs_sq(g), b2)
        m = mean = ema(s.mu, g, b2) if centered else None
        if bias_correction:
            variance = debias(v, b2, t)
            mean = None if m is None else debias(m, b2, t)
        if mean is not None:
            variance = jnp.maximum(variance - abs_sq(mean), 0)  # rounding can make it negative
        return divide(g, safe_sqrt(variance + eps_root), eps), s._replace(nu=v, mu=m)

    slots = dict(nu=filled(initial_accumulator), mu=zeros if centered else None)
    decays = (b2,) if bias_correction else ()
    return with_momentum(Rule(RMSPropState, step, slots, decays=decays), momentum, nesterov)


@checked
def scale_by_rmsprop(
    b2: Any = 0.9,
    eps: Any = 1e-8,
    *,
    eps_root: Any = 0.0,
    initial_accumulator: Any = 0.0,
    centered: bool = False,
    momentum: Any = None,
    nesterov: bool = False,
    bias_correction: bool = False,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of `rmsprop`: u in its equations, before the rate, the decay and the sign."""
    rule = rmsprop_rule(b2, eps, eps_root, initial_accumulator, centered, momentum, nesterov, bias_correction)
    return lift("scale_by_rmsprop", rule, state_dtype=state_dtype)


@optimizer(
    paper=Paper(
        "Neural Networks for Machine Learning, lecture 6e (Hinton); centered: Graves 2013, arXiv:1308.0850",
        2012,
        "https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf",
    ),
    family="adagrad",
    direction=scale_by_rmsprop,
    typical_rate=1e-3,
    normalised=[True, True, True, False],  # a constant gradient has no variance once the start is corrected for
    scale_free=True,
    cases=(
        dict(learning_rate=0.01),
        dict(learning_rate=0.01, centered=True, eps_root=1e-4),
        dict(learning_rate=0.01, momentum=0.8, bias_correction=True),
        dict(
            learning_rate=0.02, b2=0.95, eps=1e-3, eps_root=1e-2, initial_accumulator=0.2, centered=True, momentum=0.8,
            nesterov=True, bias_correction=True, weight_decay=0.1, mask=True,
        ),
    ),
)  # fmt: skip
def rmsprop(
    learning_rate: optax.ScalarOrSchedule,
    b2: Any = 0.9,
    eps: Any = 1e-8,
    *,
    eps_root: Any = 0.0,
    initial_accumulator: Any = 0.0,
    centered: bool = False,
    momentum: Any = None,
    nesterov: bool = False,
    bias_correction: bool = False,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """RMSprop: AdaGrad with a moving average in place of the sum.

    Start:
        v = initial_accumulator
        m = b = 0
    Step t = 1, 2, ...:
        v = b2*v + (1 - b2)*g**2
        m = b2*m + (1 - b2)*g
        c = 1 - b2**t if bias_correction else 1
        d = maximum(v/c - abs(m/c)**2, 0) if centered else v/c
        u = g/(sqrt(d + eps_root) + eps)
        b = momentum*b + u
        u = u + momentum*b if nesterov else b
        x = x - learning_rate*(u + weight_decay*x)

    The rate multiplies after the momentum, as in torch; in Keras and Optax before it, which differs once the rate
    changes. Optax and Keras have eps inside the root: that is `eps_root` here. Graves's centered form is eps=0,
    eps_root=1e-4, b2=0.95, momentum=0.9. With bias correction use initial_accumulator=0, which it corrects for.
    """
    rule = rmsprop_rule(b2, eps, eps_root, initial_accumulator, centered, momentum, nesterov, bias_correction)
    return lift("rmsprop", rule, Descent(learning_rate, weight_decay, mask), state_dtype)
