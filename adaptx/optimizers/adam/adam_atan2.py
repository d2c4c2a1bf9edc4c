"""Adam-atan2: Adam with an arc tangent for the quotient, bounded and without eps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, reciprocal, safe_div, safe_sqrt
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rule import Rule
from adaptx.optimizers.adam.adam import adam_rule


@jax.custom_jvp
def safe_arctan2(y: Array, x: Array) -> Array:
    """arctan2(y, x) for x >= 0, whose derivatives at (0, 0) are 0."""
    return jnp.arctan2(y, x)


@safe_arctan2.defjvp
def _safe_arctan2_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (y, x), (dy, dx) = primals, tangents
    radius = safe_sqrt(x * x + y * y)
    across = safe_div(x, radius) * dy - safe_div(y, radius) * dx
    return safe_arctan2(y, x), across * reciprocal(radius)


def adam_atan2_rule(b1: Any, b2: Any, amplitude: Any, stretch: Any) -> Rule:
    """Adam's rule with another quotient; a complex mean keeps its phase."""

    def direction(g: Array, m: Array, v: Array, t: Clock) -> Array:
        root = safe_sqrt(v)
        if jnp.iscomplexobj(m):
            size = jnp.abs(m)
            return amplitude * safe_arctan2(size, stretch * root) * safe_div(m, size)
        return amplitude * safe_arctan2(m, stretch * root)

    return adam_rule(b1, b2, 0.0, 0.0, direction=direction)


@checked
def scale_by_adam_atan2(
    b1: Any = 0.9, b2: Any = 0.99, *, amplitude: Any = 1.27, stretch: Any = 1.0, state_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
    """The direction of `adam_atan2`: u in its equations, before the rate, the decay and the sign."""
    return lift("scale_by_adam_atan2", adam_atan2_rule(b1, b2, amplitude, stretch), state_dtype=state_dtype)


@optimizer(
    paper=Paper(
        "Scaling Exponents Across Parameterizations and Optimizers (Everett et al.)",
        2024,
        "https://arxiv.org/abs/2407.05872",
    ),
    family="adam",
    direction=scale_by_adam_atan2,
    typical_rate=1e-3,
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=1e-3),
        dict(learning_rate=0.02, b1=0.8, b2=0.95, amplitude=1.5, stretch=0.7, weight_decay=0.1, mask=True),
    ),
)
def adam_atan2(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.99,
    *,
    amplitude: Any = 1.27,
    stretch: Any = 1.0,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam-atan2: Adam's step through an arc tangent, which bounds it and needs no eps.

    Start:
        m = v = 0
    Step t = 1, 2, ...:
        m = b1*m + (1 - b1)*g
        v = b2*v + (1 - b2)*g**2
        u = amplitude*arctan2(m/(1 - b1**t), stretch*sqrt(v/(1 - b2**t)))
        x = x - learning_rate*(u + weight_decay*x)

    `amplitude` and `stretch` are the paper's a and b. With a = 1.27, about 4/pi, and b = 1 the step is Adam's where the
    quotient is 1; a small quotient q gives 1.27 q, and none gives more than 2. arctan2(0, 0) is 0, and so are its
    derivatives here. Where g^2 is too small for a float and v vanishes beside m, the step is the largest one.
    """
    rule = adam_atan2_rule(b1, b2, amplitude, stretch)
    return lift("adam_atan2", rule, Descent(learning_rate, weight_decay, mask), state_dtype)
