"""Rules that keep one number for each row of a table: the leading axis is rows, the rest is one row."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from adaptx.core.descent import descend
from adaptx.core.moments import Clock, Decay, abs_sq, debias, divide, ema, safe_sqrt
from adaptx.core.rule import Params, Rule, Slot, filled, zeros
from adaptx.optimizers.trust_ratio.lamb import trust_ratio
from adaptx.sparse.rows import column


class RowwiseAdaGradState(NamedTuple):
    """The state of row-wise AdaGrad."""

    count: Array  # t
    nu: Params  # v, the sum of mean squared gradients, one for each row


class RowwiseAdamState(NamedTuple):
    """The state of Adam with a clock for each row."""

    count: Array  # t
    mu: Params  # m, like the parameters
    nu: Params  # v, real
    steps: Params  # how often each row was used, int32


class PartialRowwiseAdamState(NamedTuple):
    """The state of Adam with one second moment for each row."""

    count: Array  # t
    mu: Params  # m, like the parameters
    nu: Params  # v, one for each row


def per_row(value: Any, dtype: Any = None) -> Slot:
    """One real number for each row, lying where the row does; of a number, that number."""
    first = filled(value)
    whole = lambda x: jnp.sum(x, tuple(range(1, x.ndim)))
    return lambda x: first(whole(x)) if dtype is None else first(whole(x)).astype(dtype)


def row_mean(a: Array) -> Array:
    """The mean over each row, of shape (rows,)."""
    return jnp.sum(a, tuple(range(1, a.ndim))) / max(math.prod(a.shape[1:]), 1)


def rowwise_adagrad_rule(initial_accumulator: Any, eps: Any, eps_root: Any, l2: Any, max_norm: Any) -> Rule:
    """Row-wise AdaGrad; with max_norm the rule owns the rate, since it acts on the row after the step."""

    def step(g: Array, s: RowwiseAdaGradState, x: Any, t: Clock) -> tuple[Array, RowwiseAdaGradState]:
        if l2 is not None:
            g = g + l2 * x
        v = s.nu + row_mean(abs_sq(g))
        u = divide(g, column(safe_sqrt(v + eps_root), g), eps)
        if max_norm is not None:
            new = x + descend(u, x, t)
            size = column(safe_sqrt(row_mean(abs_sq(new)) * max(math.prod(x.shape[1:]), 1)), new)
            u = jnp.where(size > max_norm, max_norm / jnp.where(size > max_norm, size, 1), 1) * new - x
        return u, s._replace(nu=v)

    needs = () if max_norm is None else ("learning_rate", "params")
    return Rule(
        RowwiseAdaGradState, step, dict(nu=per_row(initial_accumulator)), needs=(*needs, *["params"] * (l2 is not None))
    )


def rowwise_adam_rule(b1: Any, b2: Any, eps: Any, eps_root: Any) -> Rule:
    """Adam whose bias corrections count the steps of each row."""
    b1, b2 = Decay.of(b1), Decay.of(b2)

    def step(g: Array, s: RowwiseAdamState, x: Any, t: Clock) -> tuple[Array, RowwiseAdamState]:
        m = ema(s.mu, g, b1)
        v = ema(s.nu, abs_sq(g), b2)
        steps = s.steps + (s.steps < jnp.iinfo(jnp.int32).max).astype(jnp.int32)
        own = Clock(t=column(steps, g).astype(v.dtype))
        u = divide(debias(m, b1, own), safe_sqrt(debias(v, b2, own) + eps_root), eps)
        return u, s._replace(mu=m, nu=v, steps=steps)

    return Rule(RowwiseAdamState, step, dict(mu=zeros, nu=filled(0), steps=per_row(0, jnp.int32)))


def partial_rowwise_adam_rule(b1: Any, b2: Any, eps: Any, eps_root: Any) -> Rule:
    """Adam whose second moment is the mean over each row."""
    b1, b2 = Decay.of(b1), Decay.of(b2)

    def step(g: Array, s: PartialRowwiseAdamState, x: Any, t: Clock) -> tuple[Array, PartialRowwiseAdamState]:
        m = ema(s.mu, g, b1)
        v = ema(s.nu, row_mean(abs_sq(g)), b2)
        root = column(safe_sqrt(debias(v, b2, t) + eps_root), g)
        return divide(debias(m, b1, t), root, eps), s._replace(mu=m, nu=v)

    return Rule(PartialRowwiseAdamState, step, dict(mu=zeros, nu=per_row(0)), decays=(b1, b2))


def row_trust_ratio(u: Array, x: Array) -> Array:
    """LAMB's ratio taken in each row: u |x| / |u|, and u itself where either norm is 0."""
    return jax.vmap(trust_ratio)(u, x) if u.ndim else trust_ratio(u, x)
