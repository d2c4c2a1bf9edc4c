"""Leaves: the gradients' leaves beside those of other trees, and first values of a wrapper's own state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from adaptx.core import checks
from adaptx.core.rounding import real, rounded, wider
from adaptx.core.rule import Slot, accumulator_dtype


def on_leaves(
    name: str,
    f: Callable[..., Any],
    grads: Any,
    trees: Mapping[str, Any],
    params: Any = None,
    results: int = 1,
    partial: bool = False,
) -> Any:
    """f(g, x, ...) at every leaf of the gradients, also where g is None; what it gives, as trees like the gradients.

    x is the parameter (None if not given), then comes what each of `trees` has there, in partial trees maybe None. f
    gives one value, or a tuple of so many `results`.
    """
    gs, treedef = jax.tree.flatten(jax.tree.map(checks.array, grads, is_leaf=checks.is_none), is_leaf=checks.is_none)
    at = checks.paths(grads)
    columns = [checks.matching_tree(name, grads, at, gs, params)]
    for what, tree in trees.items():
        columns.append(checks.aligned(name, grads, tree, what) if tree is not None else [None] * len(gs))
        for path, g, leaf in zip(at, gs, columns[-1], strict=True):
            absent = tree is None or (partial and leaf is None)
            if g is not None and not absent and not isinstance(leaf, bool):
                checks.check_like(f"{name}: the {what} at {path}", g, leaf)
    rows = [f(*row) for row in zip(gs, *columns, strict=True)]
    if results == 1:
        return treedef.unflatten(rows)
    return tuple(treedef.unflatten([row[i] for row in rows]) for i in range(results))


def working(*arrays: Any) -> Any:
    """The dtype for arithmetic with these arrays: float32 or wider."""
    return wider(jnp.float32, *(a.dtype for a in arrays))


def cast(value: Any, dtype: Any) -> Array:
    """A real number in the width of a dtype."""
    return jnp.asarray(value, real(dtype))


def largest(x: Array) -> Array:
    """The largest |x|, or 1 where all are 0: divided by it, no square overflows. It has no derivative."""
    top = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), initial=0)
    return jnp.where(top == 0, jnp.ones_like(top), top)


def joined(u: Array, g: Array, x: Any) -> Array:
    """An update, rounded once to the gradient's dtype, or to the wider of gradient and parameter."""
    return rounded(u, g.dtype if x is None else wider(g.dtype, x.dtype))


def first(slot: Slot, params: Any) -> Any:
    """A slot for each parameter; for an abstract one its shape, with its sharding."""
    abstract = lambda x: x.update(dtype=accumulator_dtype(x))
    return jax.tree.map(lambda x: abstract(x) if isinstance(x, jax.ShapeDtypeStruct) else slot(x), params)


def number(value: Any, params: Any, dtype: Any = None) -> Any:
    """A 0-d number of the whole tree, abstract if the parameters are: float32, or float64 if any of them is."""
    leaves = jax.tree.leaves(params)
    dtype = dtype or real(wider(jnp.float32, *(jnp.result_type(x) for x in leaves)))
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in leaves):
        return jax.ShapeDtypeStruct((), dtype)
    return jnp.array(value, dtype)


def no_steps(params: Any) -> Any:
    """A count of steps, at 0. It is called `steps` so that the wrapped optimizer's `count` stays the only one."""
    return number(0, params, jnp.int32)
