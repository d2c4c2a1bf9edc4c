"""AdaBelief: Adam whose second moment is of the gradient's surprise."""

from __future__ import annotations

from typing import Any

import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Decay, abs_sq, ema
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rule import Rule
from adaptx.optimizers.adam.adam import AdamState, adam_rule


def adabelief_rule(b1: Any, b2: Any, eps: Any, eps_root: Any) -> Rule:
    """AdaBelief's equations on one array: Adam's but for v."""
    b2 = Decay.of(b2)

    def second(g: Array, m: Array, s: AdamState) -> Array:
        return ema(s.nu, abs_sq(g - m), b2)

    return adam_rule(b1, b2, eps, eps_root, second=second)


@checked
def scale_by_adabelief(
    b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-16, eps_root: Any = 1e-13, *, state_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
    """The direction of `adabelief`: u in its equations, before the rate, the decay and the sign."""
    return lift("scale_by_adabelief", adabelief_rule(b1, b2, eps, eps_root), state_dtype=state_dtype)


@optimizer(
    paper=Paper(
        "AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients (Zhuang et al.)",
        2020,
        "https://arxiv.org/abs/2010.07468",
    ),
    family="adam",
    direction=scale_by_adabelief,
    typical_rate=1e-3,
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=1e-3),
        dict(learning_rate=0.02, b1=0.8, b2=0.95, eps=1e-3, eps_root=1e-4, weight_decay=0.1, mask=True),
    ),
)
def adabelief(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-16,
    eps_root: Any = 1e-13,
    *,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """AdaBelief: Adam divided by how far gradients stray from their average, not by how large they are.

    Start:
        m = v = 0
    Step t = 1, 2, ...:
        m = b1*m + (1 - b1)*g
        v = b2*v + (1 - b2)*(g - m)**2
        u = m/(1 - b1**t) / (sqrt(v/(1 - b2**t) + eps_root) + eps)
        x = x - learning_rate*(u + weight_decay*x)

    The paper, the authors' code and Optax add an eps to v in every step. After the bias correction that is exactly
    eps/(1 - b2) under the root, at every t, and here it is written so: Optax's eps_root=1e-16, also the authors'
    default, is eps_root=1e-13 at b2=0.999, and the paper's 1e-8 for images is 1e-5. Gradients that do not change have
    v near 0: then eps_root alone bounds the step, which grows with the gradient. The authors' code also rectifies by
    default, as `radam` does; the paper does not.
    """
    return lift(
        "adabelief", adabelief_rule(b1, b2, eps, eps_root), Descent(learning_rate, weight_decay, mask), state_dtype
    )
