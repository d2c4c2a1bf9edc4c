"""Schedules that Optax lacks. A schedule is a function of the steps taken before: it is asked for step 0 first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from adaptx.core.checks import shown
from adaptx.glossary import GLOSSARY, is_count, is_number

Schedule = Callable[[Any], Array]

# How the rate falls: 1 at x = 0, 0 at x = 1.
_SHAPES: dict[str, Callable[[Array], Array]] = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + jnp.cos(jnp.pi * x)) / 2,
    "sqrt": lambda x: 1 - jnp.sqrt(x),
}


def warmup_stable_decay(
    peak: Any,
    warmup_steps: int,
    stable_steps: int,
    decay_steps: int,
    *,
    init: Any = 0.0,
    end: Any = 0.0,
    shape: str = "linear",
) -> Schedule:
    """Warm-up, a long constant rate, and a short decay that may begin wherever the training is to end.

    After t steps, with w, s, d = warmup_steps, stable_steps, decay_steps:
        rate = init + (peak - init) t / w                      for t < w
        rate = peak                                            for w <= t < w + s
        rate = end + (peak - end) f((t - w - s) / d)           for w + s <= t < w + s + d, then end
    with f(x) = 1 - x (linear), (1 + cos(pi x)) / 2 (cosine) or 1 - sqrt(x) (sqrt).

    Arguments:
        peak: the rate of the constant part; as init and end a number >= 0, which may be a tracer.
        warmup_steps: 0 or more.
        stable_steps: 0 or more.
        decay_steps: 0 or more.
        init: the rate of step 0; default 0. Without warm-up it is not used.
        end: the rate after the decay; default 0.
        shape: "linear" (default), "cosine" or "sqrt".

    Errors:
        ValueError: a number or a shape that is none of these.

    Source: Hu et al., MiniCPM, 2024, https://arxiv.org/abs/2404.06395; the root in Hägele et al., Scaling Laws and
        Compute-Optimal Training Beyond Fixed Training Durations, 2024, https://arxiv.org/abs/2405.18392.
    """
    name = "warmup_stable_decay"
    for argument, rate in {"peak": peak, "init": init, "end": end}.items():
        _check_rate(name, argument, rate)
    for argument, steps in {
        "warmup_steps": warmup_steps,
        "stable_steps": stable_steps,
        "decay_steps": decay_steps,
    }.items():
        _check_steps(name, argument, steps, 0)
    if not isinstance(shape, str) or shape not in _SHAPES:
        raise ValueError(f"{name}: shape must be {', '.join(_SHAPES)}, got {shape!r}")

    def schedule(count: Any) -> Array:
        t = jnp.asarray(count, float)
        rising = init + (peak - init) * t / max(warmup_steps, 1)
        gone = jnp.clip((t - warmup_steps - stable_steps) / max(decay_steps, 1), 0, 1)
        falling = end + (peak - end) * _SHAPES[shape](gone)
        ended = t >= warmup_steps + stable_steps + decay_steps
        return jnp.where(t < warmup_steps, rising, jnp.where(ended, end, falling))

    return schedule


def inverse_sqrt(peak: Any, warmup_steps: int) -> Schedule:
    """Linear warm-up to peak, then a decay with the inverse square root of the step.

    Step t = 1, 2, ... (the schedule is asked for t - 1), w = warmup_steps:
        rate = peak min(t / w, sqrt(w / t))

    The paper's rate for a model of width d is peak = 1 / sqrt(d w).

    Arguments:
        peak: the rate at step w; a number >= 0, which may be a tracer.
        warmup_steps: 1 or more.

    Errors:
        ValueError: a number out of range.

    Source: Vaswani et al., Attention Is All You Need, 2017, https://arxiv.org/abs/1706.03762.
    """
    _check_rate("inverse_sqrt", "peak", peak)
    _check_steps("inverse_sqrt", "warmup_steps", warmup_steps, 1)

    def schedule(count: Any) -> Array:
        t = jnp.asarray(count, float) + 1
        return peak * jnp.minimum(t / warmup_steps, jnp.sqrt(warmup_steps / t))

    return schedule


@dataclasses.dataclass(frozen=True)
class Recurrent:
    """What `recurrent` gives."""

    f: Callable[[Array, Array], Any]
    init: Any

    def __call__(self, count: Any) -> Array:
        """No function of the count alone."""
        raise ValueError(
            "recurrent: the rate needs the one before it, which only `inject_hyperparams` keeps in the state"
        )

    def after(self, previous: Array, count: Array) -> Array:
        """The rate after `count` steps, from the one before."""
        # f never sees step 0: what it gave there would not be used, but its derivative, if NaN, would.
        rate = self.f(previous, jnp.maximum(count, 1))
        if not is_number(rate):
            raise ValueError(f"recurrent: f must give one real number, got {shown(rate)}")
        return jnp.where(count == 0, self.init, rate)


def recurrent(f: Callable[[Array, Array], Any], init: Any) -> Recurrent:
    """A rate that is defined by the one before it: rate_0 = init, rate_t = f(rate_(t-1), t).

        rate = recurrent(lambda rate, t: rate / (1 + rate * t), 0.1)
        tx = inject_hyperparams(adam)(rate)

    The state of `inject_hyperparams` holds the last value, so a step costs one call of f however long the run is. A
    value that `set_hyperparams` sets stops it.

    Arguments:
        f: a function of the rate before and of t, the steps taken before, from 1, both arrays.
        init: the first step's rate; a number >= 0.

    Returns: a schedule for `inject_hyperparams`; alone it has no value.

    Errors:
        ValueError: what is no function or no number.
    """
    if not callable(f):
        raise ValueError(f"recurrent: f must be a function of the rate before and the step, got {f!r}")
    _check_rate("recurrent", "init", init)
    return Recurrent(f, init)


def _check_rate(name: str, argument: str, value: Any) -> None:
    if not (is_number(value) and GLOSSARY["learning_rate"].test(value)):
        raise ValueError(f"{name}: {argument} must be a number >= 0, got {shown(value)}")


def _check_steps(name: str, argument: str, value: Any, least: int) -> None:
    if not is_count(value, least):
        raise ValueError(f"{name}: {argument} must be an int >= {least}, got {shown(value)}")
