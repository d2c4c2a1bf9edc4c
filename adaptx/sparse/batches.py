"""One batch in parts: gradients of micro-batches, and of the devices' shares, put together without a table's size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import jaxpr_as_fun

from adaptx.core.checks import paths
from adaptx.core.rounding import wider
from adaptx.sparse.rows import RowSparse, blank, flattened, is_rows, of_all_devices, varying


def mean_over_batches(f: Callable[[Any], Any], batches: Any) -> Any:
    """The mean of `f` over micro-batches, one after the other, in the memory of one.

        value, grads = sparse.mean_over_batches(lambda batch: value_and_grad(params, *batch), (ids, targets))

    Arrays are added up; the rows of a RowSparse stand side by side, so that they cost what all ids cost, and an
    optimizer adds up those of one index as it does within one batch. With losses that are means, and micro-batches of
    one size, it is what the whole batch gives.

    Arguments:
        f: of one micro-batch, gives a tree of floating or complex arrays and RowSparse.
        batches: a tree of arrays with the micro-batches along the first axis: (micro-batches, ...).

    Returns: a tree like f's; sums are taken in float32 or wider, means have f's dtypes.

    Errors:
        TypeError: f gives integers, or something else that has no mean.
        ValueError: arrays of different first axes, or without any micro-batch.
    """
    sizes: set[Any] = {getattr(x, "shape", ())[:1] for x in jax.tree.leaves(batches)}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        found = [getattr(x, "shape", ()) for x in jax.tree.leaves(batches)]
        raise ValueError(f"mean_over_batches: batches must be arrays of one first axis, at least 1, got shapes {found}")
    (count,) = sizes.pop()
    traced, result = jax.make_jaxpr(f, return_shape=True)(jax.tree.map(lambda x: x[0], batches))
    structure = jax.tree.structure(result)
    abstract, treedef, numbers = flattened(structure.unflatten(traced.out_avals))
    dense = [i for i, x in enumerate(abstract) if x is not None and not is_rows(x)]
    rows = [i for i, x in enumerate(abstract) if is_rows(x)]
    for i in dense:
        if not jnp.issubdtype(abstract[i].dtype, jnp.inexact):
            path = paths(numbers)[i]
            raise TypeError(
                f"mean_over_batches: f gives {abstract[i].dtype} at {path}, which has no mean; leave it out"
            )

    def body(sums: list[Array], batch: Any) -> Any:
        found, _, _ = flattened(structure.unflatten(jaxpr_as_fun(traced)(*jax.tree.leaves(batch))))
        return [s + jnp.asarray(found[i], s.dtype) for s, i in zip(sums, dense, strict=True)], [found[i] for i in rows]

    zeros = [blank(abstract[i], wider(jnp.float32, abstract[i].dtype)) for i in dense]
    sums, stacked = jax.lax.scan(body, zeros, batches)
    means: list[Any] = [None] * len(abstract)
    for i, s in zip(dense, sums, strict=True):
        means[i] = (s / count).astype(abstract[i].dtype)
    for i, r in zip(rows, stacked, strict=True):
        means[i] = RowSparse(r.indices, r.values / count, r.num_rows)
    return treedef.unflatten(means)


def mean_over_devices(grads: Any, axis_name: Any) -> Any:
    """The mean over devices of their own gradients, inside `shard_map(..., check_vma=False)` or `pmap`.

    Dense gradients are averaged; of a RowSparse the devices exchange ids and rows, (width + 1) words for each id of the
    whole batch, in place of a sum of the table's size.

    With `check_vma`, which is the default, no such call is needed: JAX adds up the gradients of what is the same on all
    devices, as `sparse.value_and_grad` and `rows_value_and_grad` do, and the mean is taken in the loss:
    `jax.lax.pmean(loss, axis_name)`.

    Arguments:
        grads: a tree of gradients of the devices' own losses, of arrays, RowSparse and None.
        axis_name: the mesh axis, or a tuple of them, over which the batch is split.

    Errors:
        ValueError: a gradient that JAX has added up already.
    """
    axes = tuple(axis_name) if isinstance(axis_name, tuple | list) else (axis_name,)
    leaves, treedef, numbers = flattened(grads)
    size = jax.lax.axis_size(axes)
    counts = bool(varying(jax.lax.axis_index(axes)))  # check_vma: JAX knows what differs between devices

    def mean(g: Any, path: str) -> Any:
        if g is None:
            return None
        if counts and not set(axes) <= set(varying(g.values if is_rows(g) else g)):
            raise ValueError(
                f"mean_over_devices: with check_vma JAX has added up the gradient at {path} already; take the mean in "
                f"the loss, jax.lax.pmean(loss, {axis_name!r}), and leave this call out"
            )
        if is_rows(g):
            rows = of_all_devices(g, axes)
            return rows.with_values(rows.values / size)
        return jax.lax.psum(g, axes) / size

    return treedef.unflatten([mean(g, path) for g, path in zip(leaves, paths(numbers), strict=True)])
