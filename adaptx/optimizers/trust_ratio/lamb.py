"""LAMB: Adam's direction, rescaled in each tensor to the size of the parameters."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import norm
from adaptx.core.registry import Paper, optimizer
from adaptx.optimizers.adam.adam import adam_rule


def ratio(size: Array, length: Array) -> Array:
    """size / length, and 1 where either is 0, so that zero tensors can start to move."""
    return jnp.where((size == 0) | (length == 0), 1, size / jnp.where(length == 0, 1, length))


def trust_ratio(u: Array, x: Array) -> Array:
    """u |x| / |u|; u itself where either norm is 0."""
    return ratio(norm(x), norm(u)) * u


@optimizer(
    paper=Paper(
        "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes (You et al.)",
        2020,
        "https://arxiv.org/abs/1904.00962",
    ),
    family="trust_ratio",
    direction="the ratio compares the decayed direction with the parameters, so it belongs to the descent",
    typical_rate=1e-2,
    reduces="tensor",
    needs=("params",),
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=1e-2),
        dict(learning_rate=0.02, weight_decay=None),
        dict(learning_rate=0.02, b1=0.8, b2=0.95, eps=1e-3, eps_root=1e-4, weight_decay=0.1, mask=True),
    ),
)
def lamb(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-6,
    eps_root: Any = 0.0,
    *,
    weight_decay: Any = 1e-2,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """LAMB: Adam with decay, each tensor's step rescaled to learning_rate times the tensor's norm.

    Start:
        m = v = 0
    Step t = 1, 2, ...:
        m = b1*m + (1 - b1)*g
        v = b2*v + (1 - b2)*g**2
        u = m/(1 - b1**t) / (sqrt(v/(1 - b2**t) + eps_root) + eps) + weight_decay*x
        r = norm(x)/norm(u) if norm(x) > 0 and norm(u) > 0 else 1
        x = x - learning_rate*r*u

    The paper's phi is the identity and the decay 1e-2, as in its experiments (Optax's default decay is 0). `mask` turns
    off the decay only: every tensor gets its ratio r, which keeps small biases moving slowly.
    """
    return lift(
        "lamb", adam_rule(b1, b2, eps, eps_root), Descent(learning_rate, weight_decay, mask, trust_ratio), state_dtype
    )
