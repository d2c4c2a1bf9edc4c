"""Layer-wise learning-rate decay: when a trained network is tuned, its lower layers take smaller steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from adaptx.core.checks import array, check_inexact, shown
from adaptx.core.rounding import real, rounded, wider
from adaptx.glossary import is_count, is_number
from adaptx.hyperparams.paths import Matcher, Patterns, keys_of_leaves, leaves_by_path
from adaptx.sparse import RowSparse


class Stacked(NamedTuple):
    """Layers that are stacked along the first axis of their arrays, as a scan over layers wants them."""

    patterns: Patterns
    layers: int


def layerwise_decay(rate: Any, order: Sequence[Patterns | Stacked]) -> optax.GradientTransformation:
    """Updates times rate^(layers above): the last layer steps in full, the one below times rate, and so on.

        order = ["embed/**", "block_0/**", "block_1/**", ["norm/*", "head/*"]]
        order = ["embed/**", Stacked("blocks/**", 12), ["norm/*", "head/*"]]
        tx = optax.chain(adamw(1e-4), layerwise_decay(0.75, order))

    Layer k of n: u <- rate^(n - k) u. It stands after the optimizer, so that learning rate and decoupled decay shrink
    alike; before it, Adam would divide the factor out again.

    Arguments:
        rate: the factor from one layer to the next, a number > 0, usually 0.65 to 0.95; it may be a tracer, and
            `inject_hyperparams` keeps it in the state.
        order: the layers from input to output, each as the patterns of its leaves (see `group_by_path`), or as Stacked
            for several at once, which lie along the first axis. Each leaf is in one layer.

    Returns: the transformation; it keeps no state.

    Errors:
        ValueError: a rate <= 0, no layers; when it is used, a leaf in no layer or in several, a layer without leaves,
            a stacked leaf with another number of layers.
        TypeError: updates that are neither floating nor complex.

    Source: Howard and Ruder, Universal Language Model Fine-tuning for Text Classification, 2018,
        https://arxiv.org/abs/1801.06146 (discriminative fine-tuning); the constant factor as in Clark et al., ELECTRA,
        2020, https://arxiv.org/abs/2003.10555.
    """
    if not is_number(rate) or (not isinstance(rate, Tracer) and not 0 < float(rate) < float("inf")):
        raise ValueError(f"layerwise_decay: rate must be a number > 0, got {rate!r}")
    if not isinstance(order, list | tuple) or not order:
        raise ValueError(f"layerwise_decay: order must be a list of layers, from input to output, got {order!r}")
    stacked = [isinstance(layer, Stacked) for layer in order]
    layers = [layer if isinstance(layer, Stacked) else Stacked(layer, 1) for layer in order]
    if wrong := [layer.layers for layer in layers if not is_count(layer.layers, least=1)]:
        raise ValueError(f"layerwise_decay: Stacked needs a number of layers >= 1, got {wrong[0]!r}")
    names = [f"layer {i}" for i in range(1, len(layers) + 1)]
    matchers = {name: Matcher.of("layerwise_decay", layer.patterns) for name, layer in zip(names, layers, strict=True)}
    below = np.cumsum([layer.layers for layer in layers])
    above = dict(zip(names, below[-1] - below, strict=True))
    stacks = {name: layer.layers for name, layer, is_stack in zip(names, layers, stacked, strict=True) if is_stack}

    def scaled(path: str, u: Any, name: str) -> Any:
        if u is None:
            return None
        exponent: Any = above[name]
        if name in stacks:
            if isinstance(u, RowSparse) or jnp.shape(u)[:1] != (stacks[name],):
                there = f"{stacks[name]} stacked layers along its first axis"
                raise ValueError(f"layerwise_decay: {path} must have {there}, got {shown(u)}")
            exponent = exponent + np.arange(stacks[name])[::-1].reshape(-1, *[1] * (u.ndim - 1))
        values = u.values if isinstance(u, RowSparse) else u
        working = wider(jnp.float32, values.dtype)
        factor = jnp.asarray(rate, real(working)) ** jnp.asarray(exponent, real(working))
        values = rounded(values.astype(working) * factor, values.dtype)
        return u.with_values(values) if isinstance(u, RowSparse) else values

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        leaves, treedef = leaves_by_path(updates)
        leaves = [(path, array(u)) for path, u in leaves]
        check_inexact("layerwise_decay", "update", {path: u for path, u in leaves if not isinstance(u, RowSparse)})
        layer_of = keys_of_leaves("layerwise_decay", matchers, updates)
        return treedef.unflatten([scaled(*leaf, name) for leaf, name in zip(leaves, layer_of, strict=True)]), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
