"""Moments: moving averages, their bias corrections, and the roots and quotients that stay right at zero.

Everything here works on one array in its working dtype (float32 or wider) and knows no algorithm.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from adaptx.core.rounding import bounded


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decay:
    """A decay rate b together with its complement 1 - b.

    Near 1 the complement is what matters, and a float32 b has already lost it: 1 - float32(0.999) is wrong by 1.3e-5.
    A Decay keeps both halves, so a traced or injected rate is as exact as a Python float.
    """

    value: Any
    complement: Any

    @classmethod
    def of(cls, b: Any, error: str = "") -> Decay:
        """A float gives both halves in double precision; a Decay passes; an array gives (b, 1 - b) in its own dtype."""
        if isinstance(b, Decay):
            return b
        if isinstance(b, int | float):
            return cls(float(b), 1.0 - b)
        b = jnp.asarray(b, None if jnp.issubdtype(jnp.result_type(b), jnp.inexact) else float)
        if jnp.finfo(b.dtype).bits < 32:
            raise ValueError(
                f"{error}a {b.dtype} decay rate turns 0.999 into 1; give a Python float or a float32 array "
                "(with optax.inject_hyperparams: hyperparam_dtype=jnp.float32)"
            )
        return cls(b, 1 - b)

    def __mul__(self, m: Array) -> Array:
        b = self.value if isinstance(self.value, float) else self.value.astype(jnp.finfo(m.dtype).dtype)
        return b * m

    def __rsub__(self, one: int) -> Decay:
        """`1 - b`: the complement, itself a Decay. No other difference is exact, so none is defined."""
        return Decay(self.complement, self.value) if one == 1 else NotImplemented

    def bias(self, t: Array) -> Array:
        """1 - b^t as -expm1(t log b), which does not cancel; t is a count from 1 in the working dtype."""
        if isinstance(self.value, float):
            return -jnp.expm1(t * math.log1p(-self.complement)) if self.value else jnp.ones_like(t)
        return _traced_bias(self.value.astype(t.dtype), self.complement.astype(t.dtype), t)


@jax.custom_jvp
def _traced_bias(value: Array, complement: Array, t: Array) -> Array:
    return -jnp.expm1(t * jnp.log1p(-complement))


@_traced_bias.defjvp
def _traced_bias_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    # d(1 - b^t) = t b^(t-1) d(1 - b): the derivative through log b would be NaN at b = 0. t is a count.
    value, complement, t = primals
    return _traced_bias(value, complement, t), t * jnp.power(value, t - 1) * tangents[1]


class Clock(types.SimpleNamespace):
    """What a step knows besides arrays: the count t (from 1), bias corrections, and what the rule `needs`."""

    t: Array
    biases: Mapping[int, Array] = types.MappingProxyType({})  # by id of the Decay
    learning_rate: Any = None
    weight_decay: Any = None
    shared: Any = None  # what the rule's `shared` gives

    def bias(self, b: Decay) -> Array:
        """1 - b^t; already there, once for the whole tree, if the rule lists b among its `decays`."""
        return self.biases[id(b)] if id(b) in self.biases else b.bias(self.t)


def next_count(count: Array) -> Array:
    """One more; at int32's largest it stays."""
    return jax.lax.add(jax.lax.min(count, np.int32(2**31 - 2)), np.int32(1))


def abs_sq(g: Array) -> Array:
    """|g|^2, real also for complex g: both parts share one second moment."""
    return jnp.real(g) ** 2 + jnp.imag(g) ** 2 if jnp.iscomplexobj(g) else g * g


def ema(m: Array, g: Array, b: Decay) -> Array:
    """The moving average b m + (1 - b) g."""
    return b * m + (1 - b) * g


def debias(m: Array, b: Decay, t: Clock) -> Array:
    """m / (1 - b^t): the average without the weight of its zero start."""
    return m / t.bias(b)


def heavy_ball(b: Array, u: Array, momentum: Decay, nesterov: bool) -> tuple[Array, Array]:
    """The buffer b <- momentum b + u, as the direction b or, one step ahead, u + momentum b; then the buffer."""
    b = momentum * b + u
    return u + momentum * b if nesterov else b, b


def sum_sq(g: Array) -> Array:
    """The sum of |g|^2 over one array, each entry clamped like an extreme gradient; an Inf or NaN gives NaN."""
    return jnp.sum(abs_sq(bounded(g) + (g - g)))


def tree_sum(parts: list[Array], width: Any, largest: Any = jnp.inf) -> Array:
    """A sum over leaves whose order cannot change a bit; each part is cut at +-largest, NaN passes."""
    largest = np.asarray(largest, width)
    stacked = jnp.clip(jnp.stack([jnp.asarray(p, width) for p in parts]), -largest, largest)
    return _sum_in_any_order(stacked) if len(parts) > 1 else stacked[0]


@jax.custom_jvp
def _sum_in_any_order(x: Array) -> Array:
    """Sorted by its bits first: of a thousand floats that takes a fifth of the time, but has no derivative."""
    ordered = jax.lax.sort(x.view(f"int{8 * x.dtype.itemsize}"), is_stable=False)
    return jnp.sum(ordered.view(x.dtype))


@_sum_in_any_order.defjvp
def _sum_in_any_order_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    return _sum_in_any_order(primals[0]), jnp.sum(tangents[0])


def reciprocal(x: Array) -> Array:
    """1 / x, and 0 at 0: a factor of derivatives."""
    return jnp.where(x == 0, 0, 1 / jnp.where(x == 0, 1, x))


@jax.custom_jvp
def safe_sqrt(x: Array) -> Array:
    """sqrt(x) whose derivative at 0 is 0, not infinite."""
    return jnp.sqrt(x)


@safe_sqrt.defjvp
def _safe_sqrt_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    root = jnp.sqrt(primals[0])
    return root, 0.5 * reciprocal(root) * tangents[0]


@jax.custom_jvp
def safe_div(n: Array, d: Array) -> Array:
    """n / d for d >= 0, and 0 where d is 0: nothing was measured there, so nothing moves (the pseudo-inverse)."""
    if jnp.iscomplexobj(n):
        return jnp.where(d == 0, 0, n / jnp.where(d == 0, 1, d))
    return n / jax.lax.select(d == 0, jnp.full_like(d, jnp.inf), d)  # jnp.where would be a call for each leaf


@safe_div.defjvp
def _safe_div_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (n, d), (dn, dd) = primals, tangents
    q = safe_div(n, d)
    return q, (dn - q * dd) * reciprocal(d)


def divide(n: Array, root: Array, eps: Any) -> Array:
    """n / (root + eps), and 0 where that denominator is 0; a positive number eps spares the test."""
    if isinstance(eps, int | float) and eps > 1e-37:
        return n / (root + eps)
    return safe_div(n, root + eps)


def norm(x: Array) -> Array:
    """The Euclidean norm of one array of any shape; 0 for an empty one."""
    return safe_sqrt(jnp.sum(abs_sq(x)))
