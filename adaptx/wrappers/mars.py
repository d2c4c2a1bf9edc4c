"""mars: gradients whose variance a difference of two gradients reduces, for any optimizer."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core import checks
from adaptx.core.moments import Decay, next_count, norm
from adaptx.core.registry import Paper, checked
from adaptx.core.rounding import bounded
from adaptx.core.rule import Params, zeros
from adaptx.wrappers.leaves import cast, first, joined, no_steps, on_leaves, working


class MarsState(NamedTuple):
    """The state of mars."""

    steps: Array
    previous: Params  # the gradient before, float32 or wider; None if exact
    inner: Any


@functools.partial(
    checked,
    paper=Paper(
        "MARS: Unleashing the Power of Variance Reduction for Training Large Models (Yuan, Liu, Wu, Zhou, Gu)",
        2024,
        "https://arxiv.org/abs/2411.10438",
    ),
)
def mars(
    tx: Any, b1: Any = 0.95, correction: Any = 0.025, clip_norm: Any = 1.0, *, exact: bool = False
) -> optax.GradientTransformationExtraArgs:
    """MARS: `tx` gets the gradient plus a part of its change since the step before, clipped to a norm.

    Step t = 1, 2, ..., for each tensor, g the gradient, p the one before (p = g at the first step):
        c = g + correction*b1/(1 - b1)*(g - p)
        c = c*minimum(1, clip_norm/norm(c))
        the update is that of `tx` for c

    MARS-AdamW is

        tx = adaptx.mars(adaptx.adamw(3e-3, b1=0.95, b2=0.99), b1=0.95)

    and b1 is that of the wrapped optimizer. As it stands this is MARS-approx: p is the gradient that the step before
    got, of another batch. With `exact=True` p is what the method is derived for, this batch's gradient at the
    parameters before, which costs a second gradient and no state: give it as `update(grads, state, params,
    previous_grads=...)`, at the first step the gradients themselves.

    `correction` is the paper's gamma, and 0 with `clip_norm=None` changes nothing. The paper starts with x_1 = x_0, so
    the first step is not corrected; the authors' code takes p = 0 there. It clips each tensor, as here, and leaves
    tensors that are no matrices to plain AdamW: `optax.partition` does that.

    Errors:
        TypeError: an unknown argument; in init and update, a dtype that does not fit.
        ValueError: an argument out of range; in update, trees or shapes that do not fit, no `previous_grads` if exact,
            and some if not.
    """
    tx, decay = optax.with_extra_args_support(tx), Decay.of(b1)

    def init(params: Any) -> MarsState:
        checks.check_inexact("mars", "parameter", params)
        return MarsState(no_steps(params), None if exact else first(zeros, params), tx.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, MarsState]:
        checks.check_kind("mars", MarsState, state)
        checks.check_inexact("mars", "gradient", updates)
        given = extra.get("previous_grads")
        if exact:
            checks.require("mars", ["previous_grads"], extra)
        elif given is not None:
            raise ValueError("mars: update got previous_grads, which only exact=True uses")
        before = checks.laid_out_like(updates, given) if exact else state.previous
        is_first = jnp.zeros([], bool) if exact else state.steps == 0

        def leaf(g: Any, x: Any, p: Any) -> Any:
            p = p if g is None else checks.array(p)
            return (None, p) if g is None else _corrected(g, p, is_first, decay, correction, clip_norm)

        what = "previous_grads" if exact else "state field `previous`"
        corrected, previous = on_leaves("mars", leaf, updates, {what: before}, params, results=2)
        us, inner = tx.update(corrected, state.inner, params, **extra)
        return us, MarsState(next_count(state.steps), None if exact else previous, inner)

    return optax.GradientTransformationExtraArgs(init, update)


@jax.jit
def _corrected(g: Array, p: Array, is_first: Array, b1: Decay, correction: Any, clip_norm: Any) -> Any:
    dtype, stored = working(g, p), p.dtype
    now = bounded(g.astype(dtype)) + (g - g).astype(dtype)  # an Inf shows
    factor = cast(correction, dtype) * cast(b1.value, dtype) / cast(b1.complement, dtype)
    c = now + jnp.where(is_first, 0, factor) * (now - bounded(p.astype(dtype)))
    if clip_norm is not None:
        limit = cast(clip_norm, dtype)
        c = c * (limit / jnp.maximum(norm(c), limit))
    return joined(c, g, None), now.astype(stored)
