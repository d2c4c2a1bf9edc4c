"""graft: where one optimizer goes, as far as another would."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import optax
from jax import Array

from adaptx.core import checks
from adaptx.core.combinators import grafted
from adaptx.core.registry import Paper, checked
from adaptx.wrappers.leaves import joined, largest, on_leaves, working


class GraftState(NamedTuple):
    """The state of graft: those of both optimizers."""

    magnitude: Any
    direction: Any


@functools.partial(
    checked,
    paper=Paper(
        "Disentangling Adaptive Gradient Methods from Learning Rates (Agarwal, Anil, Hazan, Koren, Zhang)",
        2020,
        "https://arxiv.org/abs/2002.11803",
    ),
)
def graft(magnitude: Any, direction: Any) -> optax.GradientTransformationExtraArgs:
    """Grafting: each tensor moves in the direction of one optimizer, by the length of the other's update.

    Step, for each tensor, m and d the updates of the two for the same gradient:
        u = norm(m)/norm(d)*d          0 where d is 0

    Both see every gradient and keep their state, so the rate is that of the magnitude; the one of the direction has no
    say. Weight decay belongs behind it, by `with_weight_decay`.

        tx = adaptx.graft(optax.sgd(0.1, momentum=0.9), adaptx.adam(1.0))

    Where d is 0 there is no direction and nothing moves, whatever m is; Meta's Shampoo adds 1e-16 to norm(d), which is
    the same there. The lengths are taken so that nothing overflows.
    """
    parts = {"magnitude": magnitude, "direction": direction}
    parts = {part: optax.with_extra_args_support(tx) for part, tx in parts.items()}

    def init(params: Any) -> GraftState:
        checks.check_inexact("graft", "parameter", params)
        return GraftState(**{part: tx.init(params) for part, tx in parts.items()})

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, GraftState]:
        checks.check_kind("graft", GraftState, state)
        checks.check_inexact("graft", "gradient", updates)
        both = {part: tx.update(updates, getattr(state, part), params, **extra) for part, tx in parts.items()}
        leaf = lambda g, x, m, d: d if g is None else _grafted(m, d)
        us = on_leaves("graft", leaf, updates, {f"update of the {part}": u for part, (u, _) in both.items()}, params)
        return us, GraftState(**{part: own for part, (_, own) in both.items()})

    return optax.GradientTransformationExtraArgs(init, update)


@jax.jit
def _grafted(m: Array, d: Array) -> Array:
    dtype = working(m, d)
    length, direction = m.astype(dtype), d.astype(dtype)
    size = largest(length)
    return joined(grafted(length / size, direction / largest(direction)) * size, d, m)
