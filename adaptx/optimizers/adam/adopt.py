"""ADOPT: Adam that divides by the second moment of the steps before, and converges with any b2."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, Decay, abs_sq, ema, safe_div, safe_sqrt
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rule import Rule, real_zeros, zeros
from adaptx.optimizers.adam.adam import AdamState


def adopt_rule(b1: Any, b2: Any, eps: Any, clip_power: Any) -> Rule:
    """ADOPT's equations on one array."""
    b1, b2 = Decay.of(b1), Decay.of(b2)

    def step(g: Array, s: AdamState, x: Any, t: Clock) -> tuple[Array, AdamState]:
        first = t.t == 1  # fills v and moves nothing
        u = safe_div(g, jnp.maximum(safe_sqrt(s.nu), eps))
        if clip_power is not None:
            u = _cut(u, jnp.maximum(t.t - 1, 1) ** clip_power)
        m = jnp.where(first, s.mu, ema(s.mu, u, b1))
        v = jnp.where(first, abs_sq(g), ema(s.nu, abs_sq(g), b2))
        return m, s._replace(mu=m, nu=v)

    return Rule(AdamState, step, dict(mu=zeros, nu=real_zeros, nu_max=None))


def _cut(u: Array, largest: Array) -> Array:
    """Entries cut at a modulus; a complex one keeps its phase."""
    if jnp.iscomplexobj(u):
        size = jnp.abs(u)
        return u * jnp.where(size > largest, largest / jnp.where(size > largest, size, 1), 1)
    return jnp.clip(u, -largest, largest)


@checked
def scale_by_adopt(
    b1: Any = 0.9, b2: Any = 0.9999, eps: Any = 1e-6, *, clip_power: Any = 0.25, state_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
    """The direction of `adopt`: m in its equations, before the rate, the decay and the sign."""
    return lift("scale_by_adopt", adopt_rule(b1, b2, eps, clip_power), state_dtype=state_dtype)


@optimizer(
    paper=Paper(
        "ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal Rate (Taniguchi et al.)",
        2024,
        "https://arxiv.org/abs/2411.02853",
    ),
    family="adam",
    direction=scale_by_adopt,
    typical_rate=1e-3,
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=1e-3),
        dict(learning_rate=1e-3, clip_power=None),
        dict(learning_rate=0.02, b1=0.8, b2=0.95, eps=0.8, clip_power=0.1, weight_decay=0.1, mask=True),
    ),
)
def adopt(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.9999,
    eps: Any = 1e-6,
    *,
    clip_power: Any = 0.25,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """ADOPT: momentum over gradients, each divided by the root of a second moment that has not seen it.

    Start:
        m = v = 0
    Step t = 1, 2, ...:
        u = g/maximum(sqrt(v), eps)
        c = (t - 1)**clip_power if clip_power is not None else abs(u)
        m = b1*m + (1 - b1)*clip(u, -c, c) if t > 1 else 0
        v = b2*v + (1 - b2)*g**2 if t > 1 else g**2
        x = x - learning_rate*(m + weight_decay*x)

    The first step only fills v: with weight decay it is the decay alone. It is the paper's step 0, so its t is our
    t - 1. `eps` stands outside the root, as everywhere here, but is the least that the root counts for instead of
    something added to it: that is the paper's; its first versions had sqrt(max(v, eps^2)), which is the same.
    Clipping is the authors' second version, as Optax has it; clip_power=None is the first, and clip_power=0 clips at
    1. Newer code of theirs has a larger eps in the first steps, 0.9^(t - 2), and starts m at u; without them it is
    this. Their decay is L2 unless asked otherwise; Optax has none, and refuses complex parameters when it clips.
    """
    return lift("adopt", adopt_rule(b1, b2, eps, clip_power), Descent(learning_rate, weight_decay, mask), state_dtype)
