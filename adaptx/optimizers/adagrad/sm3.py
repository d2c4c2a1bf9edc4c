"""SM3: AdaGrad's sums bounded by one number for each row and column."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, Decay, abs_sq, divide, ema, safe_sqrt
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rounding import real
from adaptx.core.rule import Params, Rule, accumulator_dtype, zeros


class SM3State(NamedTuple):
    """The state of SM3."""

    count: Array  # t
    cover: Params  # mu: for each axis of a tensor a vector, the largest nu of each slice; for a number that number
    trace: Params = None  # the momentum buffer


def _largest(nu: Array) -> tuple[Array, ...]:
    """For each axis the largest entry of each slice, 0 of an empty one; of a vector or number itself."""
    axes = range(nu.ndim)
    return tuple(jnp.max(nu, [a for a in axes if a != axis], initial=0) for axis in axes) if nu.ndim > 1 else (nu,)


def _smallest(cover: tuple[Array, ...], ndim: int) -> Array:
    """For each entry the smallest among the numbers of its slices."""
    spread = [v.reshape([-1 if a == axis else 1 for a in range(ndim)]) for axis, v in enumerate(cover)]
    return functools.reduce(lambda a, b: jnp.minimum(*jnp.broadcast_arrays(a, b)), spread)


def sm3_rule(momentum: Any, eps: Any, eps_root: Any) -> Rule:
    """SM3-II's equations on one array."""
    momentum = None if momentum is None else Decay.of(momentum)

    def first_cover(x: Array) -> tuple[Array, ...]:
        return _largest(jnp.zeros_like(x, real(accumulator_dtype(x))))

    def step(g: Array, s: SM3State, x: Any, t: Clock) -> tuple[Array, SM3State]:
        nu = _smallest(s.cover, g.ndim) + abs_sq(g)
        u, trace = divide(g, safe_sqrt(nu + eps_root), eps), None
        if momentum is not None:
            u = trace = ema(s.trace, u, momentum)
        return u, s._replace(cover=_largest(nu), trace=trace)

    return Rule(SM3State, step, dict(cover=first_cover, trace=None if momentum is None else zeros))


@checked
def scale_by_sm3(
    momentum: Any = 0.9, *, eps: Any = 0.0, eps_root: Any = 0.0, state_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
    """The direction of `sm3`: u in its equations, before the rate, the decay and the sign."""
    return lift("scale_by_sm3", sm3_rule(momentum, eps, eps_root), state_dtype=state_dtype)


@optimizer(
    paper=Paper("Memory-Efficient Adaptive Optimization (Anil, Gupta, Koren, Singer)", 2019,
                "https://arxiv.org/abs/1901.11150"),
    family="adagrad",
    direction=scale_by_sm3,
    typical_rate=0.1,
    reduces="tensor",
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=0.1),
        dict(learning_rate=0.1, momentum=None),
        dict(learning_rate=0.1, momentum=0.8, eps=1e-2, eps_root=1e-2, weight_decay=0.1, mask=True),
    ),
)  # fmt: skip
def sm3(
    learning_rate: optax.ScalarOrSchedule,
    momentum: Any = 0.9,
    *,
    eps: Any = 0.0,
    eps_root: Any = 0.0,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """SM3: AdaGrad whose sum of squares is bounded by the smallest of what is kept for the entry's row and column.

    Start:
        m = 0
        c = [0*sum(abs(x), tuple(b for b in range(x.ndim) if b != a), keepdims=True) for a in range(x.ndim)] or [0]
    Step t = 1, 2, ...:
        v = c[0]
        for k in c:
            v = minimum(v, k)
        v = v + g**2
        c = [v.max(tuple(b for b in range(v.ndim) if b != a), keepdims=True) for a in range(v.ndim)] or [v]
        u = g/(sqrt(v + eps_root) + eps)
        m = momentum*m + (1 - momentum)*u
        u = m
        x = x - learning_rate*(u + weight_decay*x)

    This is SM3-II with the cover of the authors' code: all slices along each axis, so that an m x n matrix keeps m + n
    numbers, and vectors and numbers have AdaGrad. Momentum is an average over the directions, as in their code and
    Optax, with the experiments' 0.9; it keeps a buffer like the parameters, which is most of the memory: None saves it.
    The paper sets 0/0 = 0; the authors' code adds 1e-30 under the root, Optax 1e-8, which is `eps_root` here. Optax's
    state calls the cover mu and the momentum nu, and numbers and empty tensors fail there.
    """
    return lift("sm3", sm3_rule(momentum, eps, eps_root), Descent(learning_rate, weight_decay, mask), state_dtype)
