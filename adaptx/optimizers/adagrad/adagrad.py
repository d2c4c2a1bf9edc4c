"""AdaGrad, diagonal, with the proximal step for l1."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.combinators import with_momentum
from adaptx.core.descent import Descent, descend, rate_at
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, abs_sq, divide, safe_sqrt
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rule import Params, Rule, filled


class AdaGradState(NamedTuple):
    """The state of AdaGrad."""

    count: Array  # t
    nu: Params  # s, the sum of squared gradients, real
    trace: Params = None  # the momentum buffer


def adagrad_rule(
    initial_accumulator: Any, eps: Any, eps_root: Any, momentum: Any = None, nesterov: bool = False, l1: Any = None
) -> Rule:
    """AdaGrad's equations on one array; with l1 the rule owns the rate, since the threshold depends on it."""

    def step(g: Array, s: AdaGradState, x: Any, t: Clock) -> tuple[Array, AdaGradState]:
        nu = s.nu + abs_sq(g)
        return divide(g, safe_sqrt(nu + eps_root), eps), s._replace(nu=nu)

    smooth = with_momentum(Rule(AdaGradState, step, dict(nu=filled(initial_accumulator))), momentum, nesterov)

    def proximal(g: Array, s: AdaGradState, x: Array, t: Clock) -> tuple[Array, AdaGradState]:
        """The step and the shrinkage as one update: exactly -x where the parameter ends within the threshold."""
        u, s = smooth.step(g, s, x, t)
        step = descend(u, x, t)
        threshold = t.learning_rate * divide(l1, safe_sqrt(s.nu + eps_root), eps)
        return jnp.where(jnp.abs(x + step) <= threshold, -x, step - jnp.sign(x + step) * threshold), s

    owns = dict(step=proximal, needs=("learning_rate", "params"))
    return smooth if l1 is None else dataclasses.replace(smooth, **owns)


@checked
def scale_by_adagrad(
    initial_accumulator: Any = 0.0,
    eps: Any = 1e-10,
    *,
    eps_root: Any = 0.0,
    momentum: Any = None,
    nesterov: bool = False,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of `adagrad`: u in its equations, before the rate, the decay, the sign and l1."""
    return lift(
        "scale_by_adagrad",
        adagrad_rule(initial_accumulator, eps, eps_root, momentum, nesterov),
        state_dtype=state_dtype,
    )


@optimizer(
    paper=Paper(
        "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization (Duchi, Hazan, Singer)",
        2011,
        "https://jmlr.org/papers/v12/duchi11a.html",
    ),
    family="adagrad",
    direction=scale_by_adagrad,
    typical_rate=0.1,
    normalised=True,
    scale_free=[True, True, True, False],
    zero_is_fixed=[True, True, True, False],
    needs=[(), (), (), ("params",)],
    cases=(
        dict(learning_rate=0.1),
        dict(learning_rate=0.1, initial_accumulator=0.2, eps=1e-3, eps_root=1e-2, lr_decay=0.3, weight_decay=0.05),
        dict(learning_rate=0.1, momentum=0.8),
        dict(
            learning_rate=0.1, initial_accumulator=0.2, eps=1e-3, eps_root=1e-2, lr_decay=0.3, momentum=0.8,
            nesterov=True, l1=0.04, weight_decay=0.07, mask=True,
        ),
    ),
)  # fmt: skip
def adagrad(
    learning_rate: optax.ScalarOrSchedule,
    initial_accumulator: Any = 0.0,
    eps: Any = 1e-10,
    *,
    eps_root: Any = 0.0,
    lr_decay: Any = None,
    momentum: Any = None,
    nesterov: bool = False,
    l1: Any = None,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """AdaGrad: every coordinate divided by the root of the sum of its squared gradients.

    Start:
        s = initial_accumulator
        b = 0
    Step t = 1, 2, ...:
        s = s + g**2
        h = sqrt(s + eps_root) + eps
        u = g/h
        b = momentum*b + u
        u = u + momentum*b if nesterov else b
        rate = learning_rate/(1 + (t - 1)*lr_decay)
        z = x - rate*(u + weight_decay*x)
        x = sign(z)*maximum(abs(z) - rate*l1/h, 0)

    With `l1` the last line is the paper's composite mirror descent step (its section 5): weights become exactly zero.
    A coordinate whose gradient has always been zero then has h = eps, a huge threshold, and is cut to zero at once,
    unless `initial_accumulator` is positive. Momentum is not the paper's; without it b = u. Optax starts s at 0.1 and
    adds its only eps inside the root; torch's and these defaults are 0, and eps outside.
    """
    rule = adagrad_rule(initial_accumulator, eps, eps_root, momentum, nesterov, l1)
    return lift("adagrad", rule, Descent(slowed(learning_rate, lr_decay), weight_decay, mask), state_dtype)


def slowed(learning_rate: optax.ScalarOrSchedule, lr_decay: Any) -> Any:
    """learning_rate / (1 + (t - 1) lr_decay), as a schedule of t - 1."""
    if lr_decay is None:
        return learning_rate
    return lambda count: rate_at(learning_rate, count) / (1 + lr_decay * jnp.asarray(count, float))
