"""Estimators of the Hessian's diagonal, each a pure function of parameters and a random key."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from adaptx.core.checks import array, check_inexact, is_key, paths, shown
from adaptx.core.rule import accumulator_dtype
from adaptx.glossary import is_count, is_number


def hutchinson(loss: Callable[[Any], Any], params: Any, key: Array, *, samples: int = 1, has_aux: bool = False) -> Any:
    """Hutchinson's estimate z * (H z), whose mean over random signs z is the diagonal of the Hessian H.

    One Hessian-vector product, forward over reverse: about the cost of two more gradients. It is exact where H is
    diagonal; elsewhere its variance is the sum of the squares beside the diagonal, and `samples` divides it. Take
    another key in every step, for example `jax.random.fold_in(key, step)`.

    Arguments:
        loss: a function of the parameters alone that gives one real number: `lambda p: loss(p, batch)`.
        params: a tree of real arrays.
        key: a random key; each leaf draws by its path.
        samples: how many estimates, one after the other, are averaged; an int >= 1.
        has_aux: whether loss gives a pair of the number and something else.

    Returns: a tree like the parameters, in float32 or wider.

    Errors:
        TypeError: a key that is none; integer or complex parameters.
        ValueError: a loss that does not give one real number, or no pair with has_aux; samples below 1.

    Source: AdaHessian (Yao et al., https://arxiv.org/abs/2006.00719), section 3.1; Sophia
    (https://arxiv.org/abs/2305.14342), algorithm 1, draws z from a normal distribution, which adds variance.
    """
    params = _checked(params, key, "hutchinson")
    if not is_count(samples, 1):
        raise ValueError(f"hutchinson: samples must be an int >= 1, got {shown(samples)}")

    def number(p: Any) -> Any:
        value = loss(p)
        if has_aux and not (isinstance(value, tuple) and len(value) == 2):
            raise ValueError(f"hutchinson: with has_aux loss must give a pair, got {shown(value)}")
        value = value[0] if has_aux else value
        if not is_number(value):
            raise ValueError(f"hutchinson: loss must give one real number, got {shown(value)}")
        return value

    def estimate(key: Array) -> Any:
        signs = _by_path(key, params, lambda k, x: jax.random.rademacher(k, x.shape, x.dtype) + jnp.zeros_like(x))
        products = jax.jvp(jax.grad(number), (params,), (signs,))[1]
        return jax.tree.map(lambda z, hz: (z * hz).astype(accumulator_dtype(z)), signs, products)

    if samples == 1:
        return estimate(key)
    add = lambda i, total: jax.tree.map(jnp.add, total, estimate(jax.random.fold_in(key, i)))
    total = jax.lax.fori_loop(1, samples, add, estimate(jax.random.fold_in(key, 0)))
    return jax.tree.map(lambda h: h / samples, total)


def gauss_newton_bartlett(
    model: Callable[[Any], Array],
    params: Any,
    key: Array,
    *,
    where: Any = None,
    sample: Callable[[Array, Array], Any] = jax.random.categorical,
    loss: Callable[[Array, Any], Array] = optax.softmax_cross_entropy_with_integer_labels,
) -> Any:
    """The Gauss-Newton-Bartlett estimate B g * g: g is the gradient at labels drawn from the model's own distribution.

    One gradient. Its mean over labels is the diagonal of the Gauss-Newton matrix (Fisher's), which is never negative
    and is the Hessian's where the model is linear in the parameters. B is the number of labels.

    Arguments:
        model: a function of the parameters alone that gives the outputs: `lambda p: model.apply(p, batch)`.
        params: a tree of real arrays.
        key: a random key. Take another one in every step, for example `jax.random.fold_in(key, step)`.
        where: which labels count, of their shape; bools (padding is False). None counts all.
        sample: sample(key, outputs) draws labels; by default of classes, with the outputs as logits in the last axis.
        loss: loss(outputs, labels): of each label the negative logarithm of its probability, which is what makes the
            estimate that of this loss. Not their mean: B counts the numbers. For a squared error (f - y)^2 / 2 draw
            y = f + normal(key, f.shape).

    Returns: a tree like the parameters, in float32 or wider.

    Errors:
        TypeError: a key that is none; integer or complex parameters.
        ValueError: outputs that are no logits, or losses that are not one for each label (with the default sample);
            losses that are not real, or none; where of another shape than theirs.

    Source: Sophia (Liu et al., https://arxiv.org/abs/2305.14342), algorithm 2. The authors' code multiplies by B in its
    step, not here, and clips g like a gradient.
    """
    params = _checked(params, key, "gauss_newton_bartlett")

    def mean(p: Any) -> tuple[Any, Any]:
        outputs = model(p)
        of_classes = sample is jax.random.categorical
        real = hasattr(outputs, "dtype") and jnp.issubdtype(outputs.dtype, jnp.floating)
        if of_classes and not (real and outputs.ndim):
            raise ValueError(
                "gauss_newton_bartlett: model must give an array of logits, classes in the last axis, got "
                f"{shown(outputs)} (of other outputs, give sample and loss)"
            )
        losses = loss(outputs, jax.lax.stop_gradient(sample(key, outputs)))
        if not (hasattr(losses, "dtype") and jnp.issubdtype(losses.dtype, jnp.floating) and losses.size):
            raise ValueError(f"gauss_newton_bartlett: loss must give a real number a label, got {shown(losses)}")
        if of_classes and losses.shape != outputs.shape[:-1]:
            like = jax.ShapeDtypeStruct(outputs.shape[:-1], losses.dtype)
            raise ValueError(
                f"gauss_newton_bartlett: loss must give one number for each label, {shown(like)}, got {shown(losses)}"
            )
        if where is None:
            return jnp.mean(losses), jnp.asarray(losses.size, accumulator_dtype(losses))
        if np.shape(where) != losses.shape or getattr(where, "dtype", None) != np.bool_:
            like = jax.ShapeDtypeStruct(losses.shape, bool)
            raise ValueError(f"gauss_newton_bartlett: where must be {shown(like)}, got {shown(where)}")
        count = jnp.sum(where, dtype=accumulator_dtype(losses))
        kept = jnp.where(where, losses, 0)  # a mean by hand: with no label at all it would be 0 / 0
        return jnp.sum(kept) / jnp.maximum(count, 1).astype(losses.dtype), count

    gradient, count = jax.grad(mean, has_aux=True)(params)
    squared = lambda g: jnp.square(g.astype(accumulator_dtype(g)))
    return jax.tree.map(lambda g: count.astype(squared(g).dtype) * squared(g), gradient)


def spatial_average(hessian: Any, block_size: int | None = None) -> Any:
    """AdaHessian's average over blocks, which makes a noisy diagonal smoother; every element gets its block's mean.

    Arguments:
        hessian: a tree of estimates. The arrays are laid out as Flax's kernels: outputs last, inputs before them.
        block_size: of arrays with two axes or more, this many neighbouring inputs of one output form a block (the last
            is what remains), an int >= 1; None: the spatial axes of a convolution, all but the last two, form one, and
            arrays with fewer than three axes are left alone.

    Errors:
        TypeError: what is no tree of real or complex arrays, such as a function that makes one.
        ValueError: a block_size below 1.

    Source: AdaHessian (Yao et al., https://arxiv.org/abs/2006.00719), section 3.2; None is its authors' choice for
    images, 32 for text. They average |h|; here it is h, as in the paper.
    """
    if block_size is not None and not is_count(block_size, 1):
        raise ValueError(f"spatial_average: block_size must be an int >= 1 or None, got {shown(block_size)}")
    check_inexact("spatial_average", "estimate", hessian)

    def averaged(h: Array) -> Array:
        if block_size is None:
            return jnp.broadcast_to(jnp.mean(h, axis=tuple(range(h.ndim - 2)), keepdims=True), h.shape)
        inputs = jnp.moveaxis(h, -2, 0)
        block = np.arange(len(inputs)) // block_size
        means = jax.ops.segment_sum(inputs, block, block[-1] + 1, indices_are_sorted=True)
        means = means / np.bincount(block).astype(h.dtype).reshape(-1, *[1] * (h.ndim - 1))
        return jnp.moveaxis(means[block], 0, -2)

    least = 3 if block_size is None else 2
    return jax.tree.map(lambda h: averaged(h) if jnp.ndim(h) >= least and h.size else h, hessian)


def _checked(params: Any, key: Any, name: str) -> Any:
    """The parameters as arrays; one line for those that have no real gradient, and for a key that is none."""
    check_inexact(name, "parameter", params)
    for path, x in zip(paths(params), jax.tree.leaves(params, is_leaf=lambda x: x is None), strict=True):
        if x is not None and jnp.iscomplexobj(x):
            raise TypeError(f"{name}: the parameter at {path} is {x.dtype}; it must be real")
    raw = getattr(key, "dtype", None) == jnp.uint32 and key.ndim == 1  # of jax.random.PRNGKey
    if not (raw or (is_key(key) and not key.ndim)):
        raise TypeError(f"{name}: key must be one random key, as of jax.random.key(0), got {shown(key)}")
    return jax.tree.map(array, params)


def _by_path(key: Array, tree: Any, draw: Callable[[Array, Any], Any]) -> Any:
    """draw(key, leaf) for every leaf, with the key folded with its path: the order of leaves does not matter."""
    at = lambda path: jax.random.fold_in(key, zlib.crc32(jax.tree_util.keystr(path).encode()))
    return jax.tree_util.tree_map_with_path(lambda path, x: draw(at(path), x), tree)
