"""Adafactor: a second moment kept as the means of its rows and columns, and steps relative to the parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.clipping import rms, rms_excess
from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, Decay, abs_sq, ema, safe_div, safe_sqrt
from adaptx.core.registry import Paper, optimizer
from adaptx.core.rule import Params, Rule, Slot, real_zeros, zeros


class AdafactorState(NamedTuple):
    """The state of Adafactor."""

    count: Array  # t
    nu: Params  # v, real: a pair of the row means and the column means, or whole where it is not factored
    mu: Params = None  # m, like the parameters; with momentum only


def factor_axes(shape: tuple[int, ...], factored: str | None, least: int) -> tuple[int, int] | None:
    """The axes of rows and columns: the last two or the largest two; None where one is shorter than `least`."""
    if factored is None or len(shape) < 2:
        return None
    axes = range(len(shape)) if factored == "last" else sorted(range(len(shape)), key=shape.__getitem__)
    row, column = sorted(axes[-2:])
    return (row, column) if min(shape[row], shape[column]) >= max(least, 1) else None


def factored_zeros(factored: str | None, least: int) -> Slot:
    """A second moment that starts at 0: the means of rows and columns, or whole."""

    def slot(x: Any) -> Any:
        axes = factor_axes(jnp.shape(x), factored, least)
        if axes is None:
            return real_zeros(x)
        row, column = axes  # sums of x, for the shardings of the axes that are left
        return tuple(real_zeros(jnp.sum(jnp.asarray(x), axis=over, keepdims=True)) for over in (column, row))

    return slot


def factored_ema(v: Any, square: Array, b: Decay, axes: tuple[int, int] | None) -> Any:
    """The moving average of a square, by its means or whole."""
    if axes is None:
        return ema(v, square, b)
    (rows, columns), (row, column) = v, axes
    mean = lambda axis: jnp.mean(square, axis=axis, keepdims=True)
    return ema(rows, mean(column), b), ema(columns, mean(row), b)


def factored_root(v: Any, axes: tuple[int, int] | None, floor: Any = None) -> Array:
    """sqrt(rows x columns / their common mean), whose square has those means; at least `floor` (as is the mean)."""
    if axes is None:
        root = safe_sqrt(v)
    else:
        rows, columns = v
        mean = jnp.mean(rows, axis=axes[0], keepdims=True)
        mean = mean if floor is None else jnp.maximum(mean, floor)
        root = safe_sqrt(safe_div(rows, mean)) * safe_sqrt(columns)  # the product of the squares may underflow
    return root if floor is None else jnp.maximum(root, floor)


def adafactor_rule(
    min_dim_size_to_factor: int,
    decay_rate: Any,
    decay_offset: Any,
    eps_root: Any,
    min_scale: Any,
    clipping_threshold: Any,
    relative_step: bool,
    factored: str | None,
    momentum: Any,
    *,
    floor: Any = None,
    decay: str = "rate",
) -> Rule:
    """Adafactor's equations on one array; the rate is capped by 1/sqrt(t) and averaged with the steps, so the rule owns
    it.

    Where frameworks differ beyond the arguments: `floor`, torch's eps1, is the least root (and mean of rows), and goes
    with eps_root=0. `decay` is times the "rate", or "bare" (Optax), or times the rate and "before" the size of the
    parameters is taken (Keras).
    """
    b1 = None if momentum is None else Decay.of(momentum)

    def shared(s: AdafactorState, t: Clock) -> Decay:
        """b2 = 1 - t^-c, with its complement."""
        log = -decay_rate * jnp.log(jnp.maximum(t.t - jnp.asarray(decay_offset, t.t.dtype), 1))
        return Decay(-jnp.expm1(log), jnp.exp(log))

    def step(g: Array, s: AdafactorState, x: Any, t: Clock) -> tuple[Array, AdafactorState]:
        axes = factor_axes(g.shape, factored, min_dim_size_to_factor)
        v = factored_ema(s.nu, abs_sq(g) + eps_root, t.shared, axes)
        u = safe_div(g, factored_root(v, axes, floor))
        fade = None if t.weight_decay is None else t.weight_decay * (1 if decay == "bare" else t.learning_rate)
        rate = jnp.minimum(t.learning_rate, 1 / jnp.sqrt(t.t)) if relative_step else t.learning_rate
        if min_scale is not None:
            rate = rate * jnp.maximum(rms(x if fade is None or decay != "before" else x - fade * x), min_scale)
        u = rate / rms_excess(u, clipping_threshold) * u
        m = None if b1 is None else ema(s.mu, u, b1)
        u = u if m is None else m
        return -u if fade is None else -u - fade * x, s._replace(nu=v, mu=m)

    return Rule(
        AdafactorState,
        step,
        dict(nu=factored_zeros(factored, min_dim_size_to_factor), mu=None if b1 is None else zeros),
        shared=shared,
        needs=("learning_rate",) if min_scale is None else ("learning_rate", "params"),
    )


@optimizer(
    paper=Paper(
        "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost (Shazeer, Stern)",
        2018,
        "https://arxiv.org/abs/1804.04235",
    ),
    family="factored",
    direction="the rate is capped by 1/sqrt(t) and the momentum averages whole steps, so it sits inside the rule",
    typical_rate=1e-2,
    reduces=["tensor", "element", "tensor"],  # nothing is factored or clipped in the second
    needs=[("params",), (), ("params",)],
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=0.6),
        dict(
            learning_rate=0.6, min_dim_size_to_factor=3, min_scale=None, clipping_threshold=None, relative_step=False,
            factored="largest", momentum=0.9,
        ),
        dict(
            learning_rate=0.6, decay_rate=0.7, decay_offset=2, eps_root=1e-3, min_scale=0.9, clipping_threshold=0.8,
            momentum=0.8, weight_decay=1e-3, mask=True,
        ),
    ),
)  # fmt: skip
def adafactor(
    learning_rate: optax.ScalarOrSchedule = 1e-2,
    min_dim_size_to_factor: int = 2,
    decay_rate: Any = 0.8,
    decay_offset: Any = 0,
    *,
    eps_root: Any = 1e-30,
    min_scale: Any = 1e-3,
    clipping_threshold: Any = 1.0,
    relative_step: bool = True,
    factored: str | None = "last",
    momentum: Any = None,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Adafactor: a matrix's second moment is guessed from its means over rows and over columns, n + m numbers for n m.

    Start:
        v = r = c = m = 0
    Step t = 1, 2, ...:
        b = 1 - maximum(t - decay_offset, 1)**-decay_rate
        square = abs(g)**2 + eps_root
        if factored and g.ndim > 1 and min(g.shape[-2:]) >= min_dim_size_to_factor:
            r = b*r + (1 - b)*mean(square, axis=-1, keepdims=True)
            c = b*c + (1 - b)*mean(square, axis=-2, keepdims=True)
            v = r*c/mean(r, axis=-2, keepdims=True)
        else:
            v = b*v + (1 - b)*square
        u = g/sqrt(v)
        if clipping_threshold is not None:
            u = u/maximum(1, sqrt(mean(u**2))/clipping_threshold)
        rate = minimum(learning_rate, 1/sqrt(t)) if relative_step else learning_rate
        if min_scale is not None:
            rate = rate*maximum(min_scale, sqrt(mean(x**2)))
        m = momentum*m + (1 - momentum)*rate*u
        x = x - m - learning_rate*weight_decay*x

    Every number is the paper's. `factored` picks the two axes: "last" as torch and Keras, "largest" as Optax (which
    factors only from 128 on); the authors' code factors matrices alone. `eps_root` is added to the square, as in the
    paper, Keras and Optax; torch instead keeps the root above its eps1. `momentum` averages the steps, rate included,
    as in the authors' code and Optax; the paper's final method has none. The decay is that of torch: times
    `learning_rate`, whatever the cap and the parameters' size; Optax's is not times the rate, Keras's comes before
    that size is taken. Optax's learning_rate=None is 1 here, with relative_step=False. Up to step `decay_offset` only
    the last square counts; Optax's second moment is NaN there and stays so, as at the last count, and its decay is
    float32's for float64 parameters too.
    """
    rule = adafactor_rule(
        min_dim_size_to_factor, decay_rate, decay_offset, eps_root, min_scale, clipping_threshold, relative_step,
        factored, momentum,
    )  # fmt: skip
    return lift("adafactor", rule, Descent(learning_rate, weight_decay, mask), state_dtype)
