"""QHAdam: Adam whose moments are mixed with the newest gradient."""

from __future__ import annotations

from typing import Any

import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, abs_sq, divide, safe_sqrt
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rule import Rule
from adaptx.optimizers.adam.adam import adam_rule


def qhadam_rule(b1: Any, b2: Any, eps: Any, eps_root: Any, nu1: Any, nu2: Any) -> Rule:
    """QHAdam's equations on one array: Adam's but for the two mixtures."""

    def direction(g: Array, m: Array, v: Array, t: Clock) -> Array:
        mixed_sq = (1 - nu2) * abs_sq(g) + nu2 * v
        return divide((1 - nu1) * g + nu1 * m, safe_sqrt(mixed_sq + eps_root), eps)

    return adam_rule(b1, b2, eps, eps_root, direction=direction)


@checked
def scale_by_qhadam(
    b1: Any = 0.995,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    nu1: Any = 0.7,
    nu2: Any = 1.0,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of `qhadam`: u in its equations, before the rate, the decay and the sign."""
    return lift("scale_by_qhadam", qhadam_rule(b1, b2, eps, eps_root, nu1, nu2), state_dtype=state_dtype)


@optimizer(
    paper=Paper(
        "Quasi-hyperbolic Momentum and Adam for Deep Learning (Ma, Yarats)", 2018, "https://arxiv.org/abs/1810.06801"
    ),
    family="adam",
    direction=scale_by_qhadam,
    typical_rate=1e-3,
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=1e-3),
        dict(
            learning_rate=0.02, b1=0.8, b2=0.95, eps=1e-3, eps_root=1e-4, nu1=0.6, nu2=0.9, weight_decay=0.1,
            mask=True,
        ),
    ),
)  # fmt: skip
def qhadam(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.995,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    nu1: Any = 0.7,
    nu2: Any = 1.0,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """QHAdam: Adam that takes each moment as a mixture of its average and the newest gradient.

    Start:
        m = v = 0
    Step t = 1, 2, ...:
        m = b1*m + (1 - b1)*g
        v = b2*v + (1 - b2)*g**2
        n = (1 - nu1)*g + nu1*m/(1 - b1**t)
        w = (1 - nu2)*g**2 + nu2*v/(1 - b2**t)
        u = n / (sqrt(w + eps_root) + eps)
        x = x - learning_rate*(u + weight_decay*x)

    With nu1 = nu2 = 1 it is Adam, with nu1 = 0 and nu2 = 1 RMSprop with bias correction. The defaults are what the
    authors recommend to start from; those of their code are Adam's (b1=0.9, nu1=1). Their decay is coupled unless asked
    otherwise. Their NAdam (nu1 = b1, nu2 = 1) is close to `nadam(momentum_decay=None)` and not equal to it: the two
    correct the bias of the mixture differently.
    """
    rule = qhadam_rule(b1, b2, eps, eps_root, nu1, nu2)
    return lift("qhadam", rule, Descent(learning_rate, weight_decay, mask), state_dtype)
