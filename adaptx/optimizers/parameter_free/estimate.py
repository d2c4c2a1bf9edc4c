"""What the methods that estimate the distance D to a solution share.

Their sums weigh each gradient by the estimate d of its step. All of them are stored in units of the newest d, or of its
square, and shrink when d grows: then no weight is tiny at d = 1e-6 and none overflows where d runs away, which it does
by a factor a step while gradients do not change (no solution is near). It is the papers' algorithm: d_hat is a quotient
of two such sums.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax import Array

from adaptx.core.moments import Clock, Decay, safe_sqrt
from adaptx.core.rounding import bounded


def visible(g: Array) -> Array:
    """g, clamped like an extreme gradient, in which an Inf shows as NaN: for sums over the tree."""
    return bounded(g) + (g - g)


def inner(a: Array, b: Array) -> Array:
    """The inner product of two arrays, real also for complex ones."""
    return jnp.sum(jnp.real(jnp.conj(a) * b) if jnp.iscomplexobj(a) else a * b)


def root(b: Decay) -> Decay:
    """sqrt(b), with its complement."""
    value = math.sqrt(b.value) if isinstance(b.value, float) else safe_sqrt(b.value)
    return Decay(value, b.complement / (1 + value))


def rate_of(t: Clock, b1: Decay, b2: Decay, bias_correction: bool) -> Array:
    """The learning rate, times what corrects both moments of Adam for their zero start."""
    rate = jnp.asarray(t.learning_rate, t.t.dtype)
    return rate * safe_sqrt(t.bias(b2)) / t.bias(b1) if bias_correction else rate


def grown(d: Array, d_hat: Array, growth_rate: Any) -> Array:
    """The larger of the two, at most growth_rate d; an estimate beyond 1e12 (float32) is cut, NaN passes."""
    most = d_hat if growth_rate is None else jnp.minimum(d_hat, growth_rate * d)
    return jnp.maximum(d, bounded(most))


def decayed(u: Array, rate: Array, x: Any, t: Clock) -> Array:
    """The signed update u with decoupled decay, times the whole rate; never past zero, however large the rate is."""
    return u if t.weight_decay is None else u - jnp.minimum(rate * t.weight_decay, 1) * x
