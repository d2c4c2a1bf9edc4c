"""cautious: entries whose update does not go down the gradient stay where they are."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core import checks
from adaptx.core.registry import Paper, checked
from adaptx.core.rounding import real
from adaptx.wrappers.leaves import cast, joined, on_leaves, working


@functools.partial(
    checked,
    paper=Paper(
        "Cautious Optimizers: Improving Training with One Line of Code (Liang, Chen, Liu, Liu)",
        2024,
        "https://arxiv.org/abs/2411.16085",
    ),
)
def cautious(tx: Any, min_mean: Any = 1e-3) -> optax.GradientTransformationExtraArgs:
    """Cautious: of each update of `tx` only the entries that go against the gradient, scaled up for the others.

    Step, for each tensor, u the update of `tx` (which is added to the parameters), g the gradient:
        kept = u*g < 0
        u = u*kept / maximum(mean(kept), min_mean)

    Where every entry goes down the gradient nothing changes. The state is that of `tx`, which does not notice.

        tx = adaptx.with_weight_decay(adaptx.cautious(adaptx.adam(1e-3)), 0.01, 1e-3)

    This is C-AdamW: the decay is added behind the mask, while `cautious(adamw(...))` would mask it too. The paper has
    1 / (mean + eps) or n / (number kept + 1) for the scale; this is what the authors' C-AdamW came to. An entry without
    a gradient counts as not kept, so in a table of which a step uses few rows those are scaled up by as much, up to
    1 / min_mean: leave tables out, by `optax.partition`. A product that underflows has its sign all the same; of
    complex numbers the real part of u conj(g) counts.
    """
    tx = optax.with_extra_args_support(tx)

    def init(params: Any) -> Any:
        checks.check_inexact("cautious", "parameter", params)
        return tx.init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        checks.check_inexact("cautious", "gradient", updates)
        us, state = tx.update(updates, state, params, **extra)
        leaf = lambda g, x, u: u if g is None else _masked(g, u, min_mean)
        return on_leaves("cautious", leaf, updates, {"update of the wrapped optimizer": us}, params), state

    return optax.GradientTransformationExtraArgs(init, update)


@jax.jit
def _masked(g: Array, u: Array, min_mean: Any) -> Array:
    dtype = working(u, g)
    kept = (agreement(u, g) < 0).astype(real(dtype))
    share = jnp.sum(kept) / max(u.size, 1)
    u_kept = u.astype(dtype) * kept / jnp.maximum(share, cast(min_mean, dtype))
    return joined(u_kept + (u - u).astype(dtype), u, None)  # u - u is 0, or NaN where a NaN or Inf must show


def agreement(a: Array, b: Array) -> Array:
    """The sign of a b, without the product, which could underflow; the real part of a conj(b) if they are complex."""
    dtype = working(a, b)
    return jnp.real(jnp.sign(a.astype(dtype)) * jnp.conj(jnp.sign(b.astype(dtype))))
