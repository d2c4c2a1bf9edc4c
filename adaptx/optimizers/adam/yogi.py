"""Yogi: Adam whose second moment moves by additive steps."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Decay, abs_sq
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rule import Rule, filled
from adaptx.optimizers.adam.adam import AdamState, adam_rule


def yogi_rule(b1: Any, b2: Any, eps: Any, eps_root: Any, initial_accumulator: Any, bias_correction: bool) -> Rule:
    """Yogi's equations on one array: Adam's but for v."""
    b2 = Decay.of(b2)

    def second(g: Array, m: Array, s: AdamState) -> Array:
        g_sq = abs_sq(g)
        return s.nu - jnp.sign(s.nu - g_sq) * ((1 - b2) * g_sq)

    return adam_rule(
        b1,
        b2,
        eps,
        eps_root,
        debias_mu=bias_correction,
        debias_nu="after" if bias_correction else None,
        nu=filled(initial_accumulator),
        second=second,
    )


@checked
def scale_by_yogi(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-3,
    eps_root: Any = 0.0,
    initial_accumulator: Any = 1e-6,
    *,
    bias_correction: bool = False,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of `yogi`: u in its equations, before the rate, the decay and the sign."""
    return lift(
        "scale_by_yogi", yogi_rule(b1, b2, eps, eps_root, initial_accumulator, bias_correction), state_dtype=state_dtype
    )


@optimizer(
    paper=Paper(
        "Adaptive Methods for Nonconvex Optimization (Zaheer, Reddi, Sachan, Kale, Kumar)",
        2018,
        "https://papers.nips.cc/paper/8186-adaptive-methods-for-nonconvex-optimization",
    ),
    family="adam",
    direction=scale_by_yogi,
    typical_rate=1e-2,
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=1e-2),
        dict(
            learning_rate=0.02,
            b1=0.8,
            b2=0.95,
            eps=2e-3,
            eps_root=1e-4,
            initial_accumulator=0.2,
            bias_correction=True,
            weight_decay=0.1,
            mask=True,
        ),
    ),
)
def yogi(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-3,
    eps_root: Any = 0.0,
    initial_accumulator: Any = 1e-6,
    *,
    bias_correction: bool = False,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Yogi: Adam whose second moment grows and falls by at most (1 - b2) g^2 a step, so that the rate rises slowly.

    Start:
        m = 0
        v = initial_accumulator
    Step t = 1, 2, ...:
        m = b1*m + (1 - b1)*g
        v = v - (1 - b2)*sign(v - g**2)*g**2
        c1 = 1 - b1**t if bias_correction else 1
        c2 = 1 - b2**t if bias_correction else 1
        u = m/c1 / (sqrt(v/c2 + eps_root) + eps)
        x = x - learning_rate*(u + weight_decay*x)

    The paper's algorithm corrects no bias. TensorFlow Addons' code and Optax do, though v does not start at 0: that is
    `bias_correction`. Addons then adds eps to the root of the uncorrected v; Optax starts m at `initial_accumulator`
    too, so that parameters move without a gradient, where the paper's m starts at 0. The defaults of eps and
    `initial_accumulator` are the same in both, and here.
    """
    rule = yogi_rule(b1, b2, eps, eps_root, initial_accumulator, bias_correction)
    return lift("yogi", rule, Descent(learning_rate, weight_decay, mask), state_dtype)
