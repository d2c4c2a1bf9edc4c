"""Padam: AMSGrad, divided by less than the root."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, safe_div, safe_sqrt
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rule import Rule
from adaptx.optimizers.adam.adam import adam_rule


def padam_rule(b1: Any, b2: Any, eps: Any, eps_root: Any, partial: Any, bias_correction: bool) -> Rule:
    """Padam's equations on one array: AMSGrad's but for the power of the denominator."""

    def direction(g: Array, m: Array, v: Array, t: Clock) -> Array:
        root = safe_sqrt(v + eps_root) + eps
        # A power of 0 has no derivative: where the root is 0, so is m, and nothing moves.
        power = jnp.where(root == 0, 1, root) ** (2 * partial)
        return safe_div(m, jnp.where(root == 0, 0, power))

    debias_nu = "after" if bias_correction else None
    return adam_rule(
        b1, b2, eps, eps_root, amsgrad=True, debias_mu=bias_correction, debias_nu=debias_nu, direction=direction
    )


@checked
def scale_by_padam(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    partial: Any = 0.125,
    bias_correction: bool = False,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of `padam`: u in its equations, before the rate, the decay and the sign."""
    return lift("scale_by_padam", padam_rule(b1, b2, eps, eps_root, partial, bias_correction), state_dtype=state_dtype)


@optimizer(
    paper=Paper(
        "Closing the Generalization Gap of Adaptive Gradient Methods in Training Deep Neural Networks (Chen et al.)",
        2018,
        "https://arxiv.org/abs/1806.06763",
    ),
    family="adam",
    direction=scale_by_padam,
    typical_rate=0.1,
    normalised=[False, True, False],
    scale_free=[False, True, False],
    cases=(
        dict(learning_rate=0.1),
        dict(learning_rate=1e-3, partial=0.5),
        dict(
            learning_rate=0.02, b1=0.8, b2=0.95, eps=1e-3, eps_root=1e-4, partial=0.3, bias_correction=True,
            weight_decay=0.1, mask=True,
        ),
    ),
)  # fmt: skip
def padam(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    partial: Any = 0.125,
    bias_correction: bool = False,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Padam: AMSGrad whose denominator is a smaller power of the second moment, between SGD (0) and AMSGrad (1/2).

    Start:
        m = v = w = 0
    Step t = 1, 2, ...:
        m = b1*m + (1 - b1)*g
        v = b2*v + (1 - b2)*g**2
        w = maximum(w, v)
        c1 = 1 - b1**t if bias_correction else 1
        c2 = 1 - b2**t if bias_correction else 1
        u = m/c1 / (sqrt(w/c2 + eps_root) + eps)**(2*partial)
        x = x - learning_rate*(u + weight_decay*x)

    The paper has no eps and corrects no bias; its experiments use p = 1/8, the default of `partial` here, with SGD's
    rate of 0.1. The authors' code (p = 1/4) adds eps to the root, as here, and always corrects the bias, but as if p
    were 1/2: it multiplies by sqrt(1 - b2^t) at any p. `bias_correction` corrects v itself, so that partial=0.5 is
    `adam(amsgrad=True)`. Their weight decay is coupled: it is added to the gradient.
    """
    rule = padam_rule(b1, b2, eps, eps_root, partial, bias_correction)
    return lift("padam", rule, Descent(learning_rate, weight_decay, mask), state_dtype)
