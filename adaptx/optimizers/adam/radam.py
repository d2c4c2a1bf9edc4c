"""RAdam: Adam that waits until its second moment has seen enough."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, Decay, divide, safe_sqrt
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rule import Rule
from adaptx.optimizers.adam.adam import AdamState, adam_rule

# y coth(y) - 1 = y^2/3 - y^4/45 + ...: what six terms leave out is below 1e-14 of t in `averaged_length`.
COTH = (1 / 3, -1 / 45, 2 / 945, -1 / 4725, 2 / 93555, -1382 / 638512875)


def averaged_length(b: Decay, t: Clock) -> tuple[Array, Array]:
    """rho_t = rho_inf - 2 t b^t / (1 - b^t) and rho_inf = 2 / (1 - b) - 1: how many gradients an average is made of.

    While t (1 - b) is small the difference cancels: at b = 1 - 1e-7 and t = 6 nothing of float32 would be left. With
    b = exp(-2 y) it is t - (t y coth(t y) - y coth(y)) / y, and what is taken from t is small.
    """
    one = jnp.ones_like(t.t)
    c, bias = (1 - b) * one, t.bias(b)
    near = t.t * c < 0.4
    far = (2 - c) / c
    steps, y = jnp.where(near, t.t, one), -0.5 * jnp.log1p(-jnp.where(near, c, 0.25))
    series = lambda z: z * sum(a * z**i for i, a in enumerate(COTH))
    return jnp.where(near, t.t - (series((steps * y) ** 2) - series(y**2)) / y, far - 2 * t.t * (1 - bias) / bias), far


def rectification(b: Decay, rho_threshold: Any, t: Clock) -> tuple[Array, Array]:
    """Whether the variance is tractable, and r_t; 0 where it is not."""
    rho, rho_inf = averaged_length(b, t)
    tractable = (rho > rho_threshold) & (rho > 4)
    rho, rho_inf = jnp.where(tractable, rho, 5), jnp.where(tractable, rho_inf, 5)
    r_sq = (rho - 4) / (rho_inf - 4) * ((rho - 2) / (rho_inf - 2)) * (rho_inf / rho)
    return tractable, jnp.where(tractable, safe_sqrt(r_sq), 0)


def radam_rule(
    b1: Any,
    b2: Any,
    eps: Any,
    eps_root: Any,
    rho_threshold: Any,
    degenerated_to_sgd: bool,
    *,
    eps_hat: bool = False,
    nesterov: bool = False,
) -> Rule:
    """RAdam's equations on one array: Adam's direction times r_t, the same number on every leaf.

    eps_hat: eps is added before v is corrected for its zero start (torch). nesterov: as in `adam_rule` (Optax).
    """
    b2 = Decay.of(b2)

    def shared(s: AdamState, t: Clock) -> tuple[Array, Array]:
        return rectification(b2, rho_threshold, t)

    def direction(g: Array, m: Array, v: Array, t: Clock) -> Array:
        tractable, r = t.shared
        u = r * divide(m, safe_sqrt(v + eps_root), eps / jnp.sqrt(t.bias(b2)) if eps_hat else eps)  # r = 0 hides no NaN
        return jnp.where(tractable, u, m) if degenerated_to_sgd else u

    return adam_rule(b1, b2, eps, eps_root, nesterov=nesterov, direction=direction, shared=shared)


@checked
def scale_by_radam(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    rho_threshold: Any = 4,
    *,
    degenerated_to_sgd: bool = True,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of `radam`: u in its equations, before the rate, the decay and the sign."""
    return lift(
        "scale_by_radam", radam_rule(b1, b2, eps, eps_root, rho_threshold, degenerated_to_sgd), state_dtype=state_dtype
    )


@optimizer(
    paper=Paper(
        "On the Variance of the Adaptive Learning Rate and Beyond (Liu et al.)",
        2019,
        "https://arxiv.org/abs/1908.03265",
    ),
    family="adam",
    direction=scale_by_radam,
    typical_rate=1e-3,
    normalised=[False, True, False],
    scale_free=[False, True, False],
    cases=(
        dict(learning_rate=1e-3),
        dict(learning_rate=1e-3, degenerated_to_sgd=False),
        dict(
            learning_rate=0.02, b1=0.8, b2=0.95, eps=1e-3, eps_root=1e-4, rho_threshold=5, weight_decay=0.1,
            mask=True,
        ),
    ),
)  # fmt: skip
def radam(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    rho_threshold: Any = 4,
    *,
    degenerated_to_sgd: bool = True,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """RAdam: Adam times a factor that grows from 0 to 1 as its second moment becomes reliable; before that, momentum.

    Start:
        m = v = 0
        rho_inf = 2/(1 - b2) - 1
    Step t = 1, 2, ...:
        m = b1*m + (1 - b1)*g
        v = b2*v + (1 - b2)*g**2
        rho = rho_inf - 2*t*b2**t/(1 - b2**t)
        tractable = rho > rho_threshold
        r = sqrt((rho - 4)*(rho - 2)*rho_inf/((rho_inf - 4)*(rho_inf - 2)*rho)) if tractable else 0
        u = r*m/(1 - b1**t) / (sqrt(v/(1 - b2**t) + eps_root) + eps)
        u = u if tractable else m/(1 - b1**t) if degenerated_to_sgd else 0*m
        x = x - learning_rate*(u + weight_decay*x)

    The paper's threshold is 4, which at b2 >= 0.8 lets Adam in at t = 5; torch, Optax and the authors' code ask for 5
    (t = 6). The first steps, along the plain momentum, are as large as the gradients: degenerated_to_sgd=False leaves
    them out, as the authors' code does by default, there together with the decay. The paper has no eps; torch and the
    authors add it to the root of the uncorrected v, Optax where it is here.
    """
    rule = radam_rule(b1, b2, eps, eps_root, rho_threshold, degenerated_to_sgd)
    return lift("radam", rule, Descent(learning_rate, weight_decay, mask), state_dtype)
