"""Descent: from a direction u to the update -lr (u + wd x)."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from adaptx.core.moments import Clock


class Descent(NamedTuple):
    """x <- x - learning_rate scale(u + weight_decay x); the decay is decoupled and applies where the mask is True."""

    learning_rate: Any
    weight_decay: Any = None
    mask: Any = None
    scale: Callable[[Array, Array], Array] | None = None


def descend(u: Array, x: Any, t: Clock, scale: Callable[[Array, Array], Array] | None = None) -> Array:
    """The update of one array; t has both rates, 0-d, the decay None on masked leaves."""
    if t.weight_decay is not None:
        u = u + t.weight_decay * x
    return -t.learning_rate * (u if scale is None else scale(u, x))


def and_decay(u: Array, x: Any, t: Clock) -> Array:
    """A way down of which the rule owns the rate, with decoupled decay: u - learning_rate weight_decay x."""
    return u if t.weight_decay is None else u - t.learning_rate * t.weight_decay * x


def rate_at(rate: Any, count: Array) -> Any:
    """The value of a number, array or schedule; a schedule is asked for step 0 first."""
    return rate(count) if callable(rate) else rate
