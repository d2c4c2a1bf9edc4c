"""Checks: bad trees, shapes, dtypes and missing arguments become one line that names the leaf. Free under jit."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path

from adaptx.core.rule import Like


def is_none(x: Any) -> bool:
    """A None gradient is a leaf: its parameter is left alone."""
    return x is None


def paths(tree: Any) -> list[str]:
    """The path of every leaf, None included, in flattening order."""
    return [keystr(path) or "the root" for path, _ in tree_flatten_with_path(tree, is_leaf=is_none)[0]]


def check_inexact(name: str, what: str, tree: Any) -> None:
    """Every leaf is floating or complex."""
    for i, leaf in enumerate(jax.tree.leaves(tree, is_leaf=is_none)):
        if leaf is not None and not jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.inexact):
            found = getattr(leaf, "dtype", type(leaf).__name__)
            raise TypeError(
                f"{name}: the {what} at {paths(tree)[i]} is {found}; it must be floating or complex "
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


def array(x: Any) -> Any:
    """Numpy arrays and Python numbers as JAX sees them; anything else as it is."""
    return jnp.asarray(x) if isinstance(x, np.ndarray | np.generic | complex | float | int) else x


def matching_params(name: str, grads: Any, gs: list[Any], params: Any) -> list[Any]:
    """The parameter of each gradient: of its shape, and complex exactly where it is."""
    if params is None:
        return [None] * len(gs)
    xs = [x if g is None else array(x) for g, x in zip(gs, aligned(name, grads, params, "parameters"), strict=True)]
    for i, (g, x) in enumerate(zip(gs, xs, strict=True)):
        if g is None:
            continue
        if not hasattr(x, "shape"):
            raise ValueError(f"{name}: only the gradients have a leaf at {paths(grads)[i]}, not the parameters")
        try:
            chex.assert_equal_shape([g, x])
        except AssertionError:
            found = f"has shape {g.shape}, its parameter {x.shape}"
            raise ValueError(f"{name}: the gradient at {paths(grads)[i]} {found}") from None
        if jnp.iscomplexobj(g) != jnp.iscomplexobj(x):
            raise TypeError(f"{name}: the gradient at {paths(grads)[i]} is {g.dtype}, its parameter {x.dtype}")
    return xs


def check_state(name: str, kind: Any, state: Any, unused: list[str]) -> None:
    """The state is what init gives: of its kind, and with nothing that would be lost."""
    if not isinstance(state, kind):
        raise TypeError(f"{name}: the state must be the {kind.__name__} that init gives, got {type(state).__name__}")
    lost = [field for field in unused if getattr(state, field) is not None]
    if lost:
        raise ValueError(f"{name}: the state has {', '.join(lost)}, which these arguments do not keep")


def matching_state(name: str, grads: Any, gs: list[Any], state: Any, slots: Any) -> dict[int, dict[str, Any]]:
    """The state of each gradient leaf by field, with the shapes that `init` gives a parameter of that shape."""
    made = lambda field, shape, dtype: _shapes(jax.eval_shape(slots[field], jax.ShapeDtypeStruct(shape, dtype)))
    expected = functools.cache(lambda field, *like: like[0] if isinstance(slots[field], Like) else made(field, *like))
    by_field = {field: aligned(name, grads, tree, f"state fields `{field}`") for field, tree in state.items()}
    for field, leaves in by_field.items():
        for i, (g, slot) in enumerate(zip(gs, leaves, strict=True)):
            if g is not None and _shapes(slot) != expected(field, g.shape, g.dtype):
                found = f"needs state `{field}` of shape {expected(field, g.shape, g.dtype)}, got {_shapes(slot)}"
                raise ValueError(f"{name}: the gradient at {paths(grads)[i]} {found}")
    return {i: {field: leaves[i] for field, leaves in by_field.items()} for i in range(len(gs))}


def _shapes(tree: Any) -> Any:
    return jax.tree.map(jnp.shape, tree)


def is_flag(m: Any) -> bool:
    """One bool, of Python, NumPy or JAX."""
    return isinstance(m, bool) or (getattr(m, "dtype", None) == np.bool_ and not m.ndim)


def expanded_mask(name: str, mask: Any, grads: Any) -> list[bool]:
    """A prefix tree of bools as one bool for each gradient leaf."""
    spread = lambda m, below: jax.tree.map(lambda _: m, below, is_leaf=is_none)
    try:
        flat = jax.tree.structure(grads, is_leaf=is_none).flatten_up_to(jax.tree.map(spread, mask, grads))
        if all(map(is_flag, flat)):
            return [bool(m) for m in flat]
        found = "not all its leaves are bools"
    except (ValueError, TypeError, jax.errors.TracerBoolConversionError):
        wrong = [p for p in paths(mask) if not any(q.startswith(p) for q in paths(grads))]
        without = [q for q in paths(grads) if not any(q.startswith(p) for p in paths(mask))]
        found = ", ".join([f"there is no {p}" for p in wrong] + [f"it says nothing of {q}" for q in without][:3])
        found = found if jax.tree.leaves(mask) else "it has no leaves"
    raise ValueError(f"{name}: mask must be a tree of bools that is a prefix of the parameters' tree; {found}")


def require(name: str, needs: Any, given: dict[str, Any]) -> None:
    """What the optimizer needs beside gradients and state must be there."""
    for need in needs:
        if given.get(need) is None:
            raise ValueError(f"{name}: update needs {need}; call update(grads, state, params, ...) with it")
