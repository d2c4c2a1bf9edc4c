"""CAME: Adafactor with momentum, slowed where its steps and their average disagree."""

from __future__ import annotations

from typing import Any, NamedTuple

import optax
from jax import Array

from adaptx.core.clipping import rms_excess
from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, Decay, abs_sq, ema, safe_div
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rule import Params, Rule, zeros
from adaptx.optimizers.factored.adafactor import factor_axes, factored_ema, factored_root, factored_zeros


class CAMEState(NamedTuple):
    """The state of CAME."""

    count: Array  # t
    mu: Params  # m, like the parameters
    nu: Params  # v, real: a pair of the row means and the column means, or whole for vectors
    instability: Params  # the average of |u - m|^2, a pair like that; None for vectors


def came_rule(b1: Any, b2: Any, b3: Any, eps_root: Any, eps_instability: Any, clipping_threshold: Any) -> Rule:
    """CAME's equations on one array."""
    b1, b2, b3 = Decay.of(b1), Decay.of(b2), Decay.of(b3)

    def step(g: Array, s: CAMEState, x: Any, t: Clock) -> tuple[Array, CAMEState]:
        axes = factor_axes(g.shape, "last", 1)
        v = factored_ema(s.nu, abs_sq(g) + eps_root, b2, axes)
        u = safe_div(g, factored_root(v, axes))
        u = u / rms_excess(u, clipping_threshold)
        m = ema(s.mu, u, b1)
        if axes is None:
            return m, s._replace(mu=m, nu=v)
        w = factored_ema(s.instability, abs_sq(u - m) + eps_instability, b3, axes)
        return safe_div(m, factored_root(w, axes)), s._replace(mu=m, nu=v, instability=w)

    moment = factored_zeros("last", 1)

    def pair(x: Any) -> Any:
        made = moment(x)
        return made if isinstance(made, tuple) else None

    return Rule(CAMEState, step, dict(mu=zeros, nu=moment, instability=pair))


@checked
def scale_by_came(
    b1: Any = 0.9,
    b2: Any = 0.999,
    b3: Any = 0.9999,
    *,
    eps_root: Any = 1e-30,
    eps_instability: Any = 1e-16,
    clipping_threshold: Any = 1.0,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of `came`: u in its equations, before the rate, the decay and the sign."""
    return lift(
        "scale_by_came", came_rule(b1, b2, b3, eps_root, eps_instability, clipping_threshold), state_dtype=state_dtype
    )


@optimizer(
    paper=Paper(
        "CAME: Confidence-guided Adaptive Memory Efficient Optimization (Luo et al.)",
        2023,
        "https://arxiv.org/abs/2307.02047",
    ),
    family="factored",
    direction=scale_by_came,
    typical_rate=2e-4,
    reduces="tensor",
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=1e-3),
        dict(learning_rate=0.01, b1=0.8, b2=0.95, b3=0.9, eps_root=1e-3, eps_instability=1e-2, clipping_threshold=None),
        dict(
            learning_rate=0.01, b1=0.8, b2=0.95, b3=0.9, eps_root=1e-3, eps_instability=1e-2, clipping_threshold=0.8,
            weight_decay=0.1, mask=True,
        ),
    ),
)  # fmt: skip
def came(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    b3: Any = 0.9999,
    *,
    eps_root: Any = 1e-30,
    eps_instability: Any = 1e-16,
    clipping_threshold: Any = 1.0,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """CAME: the average of Adafactor's clipped steps, divided by the root of how far the steps stray from it.

    Start:
        v = r = c = m = R = C = 0
    Step t = 1, 2, ...:
        square = abs(g)**2 + eps_root
        if g.ndim > 1:
            r = b2*r + (1 - b2)*mean(square, axis=-1, keepdims=True)
            c = b2*c + (1 - b2)*mean(square, axis=-2, keepdims=True)
            v = r*c/mean(r, axis=-2, keepdims=True)
        else:
            v = b2*v + (1 - b2)*square
        u = g/sqrt(v)
        if clipping_threshold is not None:
            u = u/maximum(1, sqrt(mean(u**2))/clipping_threshold)
        m = b1*m + (1 - b1)*u
        S = 1
        if g.ndim > 1:
            strayed = abs(u - m)**2 + eps_instability
            R = b3*R + (1 - b3)*mean(strayed, axis=-1, keepdims=True)
            C = b3*C + (1 - b3)*mean(strayed, axis=-2, keepdims=True)
            S = R*C/mean(R, axis=-2, keepdims=True)
        x = x - learning_rate*(m/sqrt(S) + weight_decay*x)

    The paper speaks of matrices. As in the authors' code, a vector's second moment is whole and its step is m, and of
    more than two axes the last two are factored. Nothing is corrected for its zero start: the clipping absorbs that of
    v, and while R and C fill up, over about 1/(1 - b3) steps, the steps are larger. `eps_root` and `eps_instability`
    are the paper's eps1 and eps2. Optax, torch and Keras have no CAME.
    """
    rule = came_rule(b1, b2, b3, eps_root, eps_instability, clipping_threshold)
    return lift("came", rule, Descent(learning_rate, weight_decay, mask), state_dtype)
