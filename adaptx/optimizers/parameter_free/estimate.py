"""What the methods that estimate the distance D to a solution share."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax import Array

from adaptx.core.moments import Clock, Decay, safe_sqrt
from adaptx.core.rounding import largest_sum


def product(a: Array, b: Array) -> Array:
    """The products that the inner product of two arrays sums, real also for complex ones."""
    return jnp.real(jnp.conj(a) * b) if jnp.iscomplexobj(a) else a * b


def inner(a: Array, b: Array) -> Array:
    """The inner product of two arrays."""
    return jnp.sum(product(a, b))


def cut(a: Array) -> Array:
    """a, each entry at most what the squares of a tensor's extreme gradients come to; complex ones as they are."""
    most = largest_sum(a.dtype, 1)
    return a if jnp.iscomplexobj(a) else jnp.clip(a, -most, most)


def root(b: Decay) -> Decay:
    """sqrt(b), with its complement."""
    value = math.sqrt(b.value) if isinstance(b.value, float) else safe_sqrt(b.value)
    return Decay(value, b.complement / (1 + value))


def rate_of(t: Clock) -> Array:
    """The learning rate as an array, also among the numbers of the whole tree."""
    return jnp.asarray(t.learning_rate, t.t.dtype)


def correction(t: Clock, b1: Decay, b2: Decay, bias_correction: bool) -> Any:
    """What a step of Adam is multiplied by to correct both moments for their zero start."""
    return safe_sqrt(t.bias(b2)) / t.bias(b1) if bias_correction else 1


def grown(d: Array, d_hat: Array, growth_rate: Any) -> Array:
    """The larger of the two, at most growth_rate d; NaN passes.

    While gradients do not change no solution is near, and d grows by a factor a step: an estimate beyond 1e6 (float32)
    is cut, so that d^2 g^2 stays finite.
    """
    most = jnp.minimum(d_hat, largest_sum(d.dtype, 1) ** 0.25)
    return jnp.maximum(d, most if growth_rate is None else jnp.minimum(most, growth_rate * d))


def renewed(s: Any, d: Array, **scalars: Array) -> Any:
    """The state with the next estimate d, and as `previous` the one of this step: NaN if d is, so that a step in which
    the estimate was lost shows it at once. Its update then depends on d, without which XLA copies what it writes."""
    return s._replace(d=d, previous=jnp.where(jnp.isnan(d), d, s.d), **scalars)


def decayed(u: Array, rate: Array, x: Any, t: Clock) -> Array:
    """The signed update u with decoupled decay, times the whole rate; never past zero, however large the rate is."""
    return u if t.weight_decay is None else u - jnp.minimum(rate * t.weight_decay, 1) * x
