"""Descent: from a direction u to the update -lr (u + wd x)."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array


class Descent(NamedTuple):
    """x <- x - learning_rate scale(u + weight_decay x); the decay is decoupled and applies where the mask is True."""

    learning_rate: Any
    weight_decay: Any = None
    mask: Any = None
    scale: Callable[[Array, Array], Array] | None = None

    def apply(self, u: Array, x: Any, learning_rate: Array, weight_decay: Array | None) -> Array:
        """The update of one array; both rates are 0-d, the decay None on masked leaves."""
        if weight_decay is not None:
            u = u + weight_decay * x
        if self.scale is not None:
            u = self.scale(u, x)
        return -learning_rate * u

    def rates(self, count: Array) -> tuple[Any, Any]:
        """The learning rate and the weight decay after `count` steps."""
        return rate_at(self.learning_rate, count), rate_at(self.weight_decay, count)


def rate_at(rate: Any, count: Array) -> Any:
    """The value of a number, array or schedule; a schedule is asked for step 0 first."""
    return rate(count) if callable(rate) else rate
