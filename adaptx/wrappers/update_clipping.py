"""update_clipping: no tensor's update is larger, in the root of its mean square, than a bound."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core import checks
from adaptx.core.clipping import rms
from adaptx.core.descent import rate_at
from adaptx.core.moments import next_count
from adaptx.core.registry import Paper, checked
from adaptx.wrappers.leaves import cast, joined, largest, no_steps, on_leaves, working


class UpdateClippingState(NamedTuple):
    """The state of update_clipping."""

    steps: Array  # taken before: what the schedule is asked for


@functools.partial(
    checked,
    paper=Paper(
        "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost (Shazeer, Stern)",
        2018,
        "https://arxiv.org/abs/1804.04235",
    ),
)
def update_clipping(max_rms: Any = 1.0, learning_rate: Any = 1.0) -> optax.GradientTransformationExtraArgs:
    """Adafactor's update clipping, to be chained behind what gives the update: a tensor that is too large shrinks.

    Step, for each tensor, u the update that comes in:
        u = u / maximum(1, rms(u)/(max_rms*learning_rate))     with rms(u) = sqrt(mean(u**2))

    The paper clips the direction, before the rate. So put it between the two, or behind a ready optimizer whose rate it
    is told; these are the same:

        tx = optax.chain(adaptx.scale_by_adam(), adaptx.update_clipping(1.0), optax.scale(-1e-3))
        tx = optax.chain(adaptx.adam(1e-3), adaptx.update_clipping(1.0, 1e-3))

    Weight decay comes behind it, by `with_weight_decay`. StableAdamW (Wortsman et al. 2023,
    https://arxiv.org/abs/2304.13013) divides its rate by the same factor, but takes the rms of the gradient over the
    root of the second moment, without the momentum. `optax.clip_by_block_rms` is the first form; in float16 its squares
    overflow.
    """

    def init(params: Any) -> UpdateClippingState:
        return UpdateClippingState(no_steps(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, UpdateClippingState]:
        del params, extra
        checks.check_kind("update_clipping", UpdateClippingState, state)
        checks.check_inexact("update_clipping", "update", updates)
        rate = rate_at(learning_rate, state.steps)
        leaf = lambda u, x: u if u is None else _clipped(u, max_rms, rate)
        return on_leaves("update_clipping", leaf, updates, {}), UpdateClippingState(next_count(state.steps))

    return optax.GradientTransformationExtraArgs(init, update)


@jax.jit
def _clipped(u: Array, max_rms: Any, rate: Any) -> Array:
    dtype = working(u)
    bound = jnp.maximum(cast(max_rms, dtype) * cast(rate, dtype), jnp.finfo(dtype).tiny)  # at a rate of 0, nearly 0
    size = largest(u.astype(dtype))
    part = u.astype(dtype) / size
    mean = jnp.maximum(rms(part), 0.5 / max(u.size, 1) ** 0.5)  # it is twice that, or the tensor is 0
    return joined(part * jnp.minimum(size, bound / mean), u, None)
