"""Adam-mini: Adam with one second moment for each block of a tensor."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Decay, abs_sq, ema
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rule import Rule, real_zeros
from adaptx.optimizers.adam.adam import adam_rule


def block_mean(a: Array, block_axis: int | None, blocks: int | None) -> Array:
    """The mean over each block: a number for each index of that axis, the same within a block; one number for an array
    that has no such axis."""
    if block_axis is None or not -a.ndim <= block_axis < a.ndim:
        return jnp.sum(a) / max(a.size, 1)
    axis = block_axis % a.ndim
    sums, length = jnp.sum(a, axis=[i for i in range(a.ndim) if i != axis], keepdims=True), a.shape[axis]
    others, width = max(a.size // max(length, 1), 1), -(-length // (blocks or max(length, 1)))
    if width <= 1:
        return sums / others
    sizes = np.minimum(width, length - np.arange(0, length, width)) * others  # the last block may be shorter
    means = jnp.sum(jnp.pad(sums.ravel(), (0, -length % width)).reshape(-1, width), axis=1) / sizes.astype(a.dtype)
    return jnp.broadcast_to(means[:, None], (means.size, width)).ravel()[:length].reshape(sums.shape)


def adam_mini_rule(b1: Any, b2: Any, eps: Any, eps_root: Any, block_axis: int | None, blocks: int | None) -> Rule:
    """Adam's equations on one array, with the mean square of each block for the square."""
    b2 = Decay.of(b2)
    one_each = lambda x: real_zeros(block_mean(jnp.asarray(x), block_axis, None))
    second = lambda g, m, s: ema(s.nu, block_mean(abs_sq(g), block_axis, blocks), b2)
    return adam_rule(b1, b2, eps, eps_root, nu=one_each, second=second)


@checked
def scale_by_adam_mini(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    block_axis: int | None = None,
    blocks: int | None = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of `adam_mini`: u in its equations, before the rate, the decay and the sign."""
    return lift(
        "scale_by_adam_mini", adam_mini_rule(b1, b2, eps, eps_root, block_axis, blocks), state_dtype=state_dtype
    )


@optimizer(
    paper=Paper("Adam-mini: Use Fewer Learning Rates To Gain More (Zhang et al.)", 2024, "https://arxiv.org/abs/2406.16793"),
    family="factored",
    direction=scale_by_adam_mini,
    typical_rate=1e-3,
    reduces="tensor",
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=1e-3),
        dict(learning_rate=0.01, block_axis=0),
        dict(
            learning_rate=0.02, b1=0.8, b2=0.95, eps=1e-3, eps_root=1e-4, block_axis=-1, blocks=2, weight_decay=0.1,
            mask=True,
        ),
    ),
)  # fmt: skip
def adam_mini(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    block_axis: int | None = None,
    blocks: int | None = None,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam-mini: Adam with one step size for each block of a tensor, from the mean of the block's squares.

    Start:
        m = v = 0
    Step t = 1, 2, ...:
        m = b1*m + (1 - b1)*g
        v = b2*v + (1 - b2)*block_mean(abs(g)**2, block_axis, blocks)
        u = m/(1 - b1**t) / (sqrt(v/(1 - b2**t) + eps_root) + eps)
        x = x - learning_rate*(u + weight_decay*x)

    The mean runs over the whole tensor; with `block_axis` over all that shares one index of that axis (the tokens of
    an embedding, the neurons of a layer), or one of `blocks` equal parts of it (the heads of a query or key, where
    they lie side by side). Where the number does not divide the axis, parts have ceil(length/blocks) entries while
    they last: the last is shorter, and of 8 entries 5 blocks are 4 pairs. A tensor without that axis is one block.
    Each block needs its own scale of curvature, and which axis has it depends on the layout: a kernel of Flax is (in,
    out), so that its neurons are `block_axis=-1`. To label leaves give `optax.partition` one adam_mini for each kind.

    The authors' code finds the kinds by the names of parameters: queries and keys by heads, embedding and output layer
    as plain Adam (`adam`; in the paper by tokens), all else by tensor. Optax, torch and Keras have no Adam-mini.
    """
    rule = adam_mini_rule(b1, b2, eps, eps_root, block_axis, blocks)
    return lift("adam_mini", rule, Descent(learning_rate, weight_decay, mask), state_dtype)
