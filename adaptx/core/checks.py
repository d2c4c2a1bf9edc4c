"""Checks: bad trees, shapes, dtypes and missing arguments become one line that names the leaf. Free under jit."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_flatten_with_path


def is_none(x: Any) -> bool:
    """A None gradient is a leaf: its parameter is left alone."""
    return x is None


def paths(tree: Any) -> list[str]:
    """The path of every leaf, None included, in flattening order."""
    return [keystr(path) or "the root" for path, _ in tree_flatten_with_path(tree, is_leaf=is_none)[0]]


def check_inexact(name: str, what: str, tree: Any) -> None:
    """Every leaf is floating or complex."""
    for i, leaf in enumerate(jax.tree.leaves(tree, is_leaf=is_none)):
        if leaf is not None and not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                f"{name}: the {what} at {paths(tree)[i]} is {jnp.result_type(leaf)}; it must be floating or complex "
                "(leave other leaves out with optax.masked or None)"
            )


def aligned(name: str, grads: Any, other: Any, what: str) -> list[Any]:
    """What `other` (parameters, a state field) has at each gradient leaf; whole subtrees only under a None."""
    treedef = jax.tree.structure(grads, is_leaf=is_none)
    try:
        return treedef.flatten_up_to(other)
    except (ValueError, TypeError, KeyError):
        ours, theirs = paths(grads), paths(other)
        missing = [p for p in theirs if p not in ours]
        extra = [p for p in ours if p not in theirs]
        found = "; ".join(
            [f"only the gradients have {', '.join(extra[:3])}"] * bool(extra)
            + [f"only the {what} have {', '.join(missing[:3])}"] * bool(missing)
        )
        raise ValueError(f"{name}: gradients and {what} differ as trees: {found or 'the containers differ'}") from None


def check_like_params(name: str, grads: Any, leaves: list[Any], params: list[Any]) -> None:
    """Each gradient has its parameter's shape, and is complex exactly where the parameter is."""
    pairs = [(i, g, x) for i, (g, x) in enumerate(zip(leaves, params, strict=True)) if g is not None]
    try:
        for _, g, x in pairs:
            chex.assert_equal_shape([g, x])
    except (AssertionError, AttributeError, ValueError, TypeError):
        for i, g, x in pairs:
            if not hasattr(x, "shape"):
                raise ValueError(f"{name}: only the gradients have a leaf at {paths(grads)[i]}, not the parameters") from None
            if g.shape != x.shape:
                raise ValueError(
                    f"{name}: the gradient at {paths(grads)[i]} has shape {g.shape}, its parameter {x.shape}"
                ) from None
        raise
    for i, g, x in pairs:
        if jnp.iscomplexobj(g) != jnp.iscomplexobj(x):
            raise TypeError(f"{name}: the gradient at {paths(grads)[i]} is {g.dtype}, its parameter {x.dtype}")


def check_slot(name: str, grads: Any, i: int, field: str, slot: Any, expected: Any) -> None:
    """One leaf of the state has the structure and shapes that `init` gives a parameter of the gradient's shape."""
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (slot, expected)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{name}: the gradient at {paths(grads)[i]} needs state `{field}` of shape {shapes[1]}, got {shapes[0]}"
        )


def require(name: str, needs: Any, given: dict[str, Any]) -> None:
    """What the optimizer needs beside gradients and state must be there."""
    for need in needs:
        if given.get(need) is None:
            raise ValueError(f"{name}: update needs {need}; call update(grads, state, params, ...) with it")
