"""Checks: bad trees, shapes, dtypes and missing arguments become one line that names the leaf. Free under jit."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.tree_util import keystr, tree_flatten_with_path

from adaptx.core.rounding import real
from adaptx.core.rule import Like, Slot, narrowed
from adaptx.glossary import is_flag


def is_none(x: Any) -> bool:
    """A None gradient is a leaf: its parameter is left alone."""
    return x is None


def paths(tree: Any) -> list[str]:
    """The path of every leaf, None included, in flattening order."""
    return [keystr(path) or "the root" for path, _ in tree_flatten_with_path(tree, is_leaf=is_none)[0]]


def check_inexact(name: str, what: str, tree: Any) -> None:
    """Every leaf is floating or complex, of at least 16 bits."""
    for i, leaf in enumerate(jax.tree.leaves(tree, is_leaf=is_none)):
        dtype = getattr(leaf, "dtype", type(leaf))
        if leaf is not None and not (jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 16):
            raise TypeError(
                f"{name}: the {what} at {paths(tree)[i]} is {getattr(dtype, '__name__', dtype)}; it must be floating "
                "or complex, of 16 bits or more (leave other leaves out with optax.masked or None)"
            )


def aligned(name: str, tree: Any, other: Any, what: str, whose: str = "gradients") -> list[Any]:
    """What `other` (parameters, a state field) has at each leaf of `tree` (the gradients); whole subtrees only under a
    None, or where `tree` is a prefix."""
    treedef = jax.tree.structure(tree, is_leaf=is_none)
    try:
        return treedef.flatten_up_to(other)
    except (ValueError, TypeError, KeyError):
        ours, theirs = paths(tree), paths(other)
        extra = [p for p in ours if not any(q.startswith(p) for q in theirs)]
        missing = [q for q in theirs if not any(q.startswith(p) for p in ours)]
        found = [f"{', '.join(at[:3])} only in the {of}" for at, of in ((extra, whose), (missing, what)) if at]
        text = "; ".join(found) or "the containers differ"
        raise ValueError(f"{name}: {whose} and {what} differ as trees: {text}") from None


def array(x: Any) -> Any:
    """Numpy arrays and Python numbers as JAX sees them; anything else as it is."""
    return jnp.asarray(x) if isinstance(x, np.ndarray | np.generic | complex | float | int) else x


def check_like(what: str, like: Any, value: Any) -> None:
    """A value, one array or a tree of them, has the shapes and kinds of `like`; the widths of its dtypes may differ."""
    try:
        chex.assert_trees_all_equal_comparator(_alike, lambda *_: "", like, value)
    except AssertionError:
        form = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype) if hasattr(a, "dtype") else a, like)
        error = TypeError if jax.tree.map(np.shape, value) == jax.tree.map(np.shape, like) else ValueError
        raise error(f"{what} must be like {shown(form)}, got {shown(value)}") from None


def _alike(a: Any, b: Any) -> bool:
    """Arrays of one shape, and both complex, both floating or of one other dtype."""
    kind = lambda d: next((k for k in (jnp.complexfloating, jnp.floating) if jnp.issubdtype(d, k)), d)
    return all(hasattr(x, "dtype") for x in (a, b)) and a.shape == b.shape and kind(a.dtype) == kind(b.dtype)


def is_key(a: Any) -> bool:
    """A typed random key."""
    return isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key)


def matching_tree(name: str, grads: Any, at: list[str], gs: list[Any], tree: Any, what: str = "") -> list[Any]:
    """The parameter of each gradient, which must be of its shape, and floating or complex like it; or, of a tree that
    is called `what`, the real array of its shape."""
    if tree is None:
        return [None] * len(gs)
    leaves = aligned(name, grads, tree, what or "parameters")
    xs = [x if g is None else array(x) for g, x in zip(gs, leaves, strict=True)]
    for path, g, x in zip(at, gs, xs, strict=True):
        if g is not None and what:
            check_like(f"{name}: the {what} at {path}", jax.ShapeDtypeStruct(g.shape, real(g.dtype)), x)
        elif g is not None and jnp.issubdtype(getattr(x, "dtype", bool), jnp.inexact):
            check_like(f"{name}: the gradient at {path}", x, g)
        elif g is not None:
            check_like(f"{name}: the parameter at {path}", g, x)
    return xs


def laid_out_like(updates: Any, tree: Any) -> Any:
    """The tree with Optax's MaskedNode where the updates have it, and its arrays out of boxes such as nnx.Param."""
    masked = lambda g: isinstance(g, optax.MaskedNode)
    bare = lambda h: jax.tree.leaves(h)[0] if len(jax.tree.leaves(h)) == 1 else h
    place = lambda g, h: g if masked(g) else bare(h)
    try:
        return jax.tree.map(place, updates, tree, is_leaf=lambda g: g is None or masked(g))
    except (ValueError, TypeError, KeyError):
        return tree  # trees that do not fit: the lift names the leaf


def check_kind(name: str, kind: Any, state: Any) -> None:
    """The state is of the kind that init gives."""
    if not isinstance(state, kind):
        raise TypeError(f"{name}: the state must be the {kind.__name__} that init gives, got {type(state).__name__}")


def check_state(name: str, kind: Any, state: Any, slots: Any, scalars: Any) -> None:
    """The state is what init gives: of its kind, one number in each scalar, and nothing that would be lost."""
    check_kind(name, kind, state)
    for field in ("count", *scalars):
        keys = [a.dtype for a in (scalars.get(field), getattr(state, field)) if is_key(a)]
        dtype = jnp.int32 if field == "count" else [*keys, jnp.float32][0]
        check_like(f"{name}: the state's `{field}`", jax.ShapeDtypeStruct((), dtype), getattr(state, field))
    kept = {"count", *slots, *scalars}
    lost = [field for field in state._fields if field not in kept and getattr(state, field) is not None]
    if lost:
        raise ValueError(f"{name}: the state has {', '.join(lost)}, which these arguments do not keep")


def matching_state(name: str, grads: Any, at: list[str], gs: list[Any], state: Any, slots: Any) -> dict[int, Any]:
    """The state of each gradient leaf by field, of the shapes and kinds that `init` gives a parameter like it.

    A slot of several arrays may come in another container than init's: nnx.Optimizer makes a State of a tuple.
    """

    @functools.cache
    def expected(field: str, shape: Any, dtype: Any) -> Any:
        like, slot = jax.ShapeDtypeStruct(shape, dtype), slots[field]
        return like.update(dtype=slot.dtype_of(dtype)) if isinstance(slot, Like) else jax.eval_shape(slot, like)

    # Only what is like a parameter: of a tree that is one array another slot may be None itself.
    lacking = [f for f, tree in state.items() if tree is None and grads is not None and isinstance(slots[f], Like)]
    if lacking:
        raise ValueError(f"{name}: the state has no {', '.join(lacking)}, which these arguments need")
    by_field = {field: aligned(name, grads, tree, f"state fields `{field}`") for field, tree in state.items()}
    for field, leaves in by_field.items():
        for i, (path, g) in enumerate(zip(at, gs, strict=True)):
            if g is not None:
                like, parts = expected(field, g.shape, g.dtype), jax.tree.leaves(leaves[i])
                if isinstance(like, tuple) and len(parts) == len(jax.tree.leaves(like)):
                    leaves[i] = jax.tree.unflatten(jax.tree.structure(like), parts)
                check_like(f"{name}: the `{field}` of the gradient at {path}", like, leaves[i])
    return {i: {field: leaves[i] for field, leaves in by_field.items()} for i in range(len(gs))}


def narrowed_slots(name: str, slots: dict[str, Slot], state_dtype: Any) -> dict[str, Slot]:
    """The slots in the dtype, or by field in the dtypes, that are asked for. Only those that are declared to be like a
    parameter: a first parameter that distances are measured from is none, nor are sums over rows and columns."""
    if state_dtype is None:
        return slots
    arrays = {field: slot for field, slot in slots.items() if isinstance(slot, Like)}
    asked = state_dtype if isinstance(state_dtype, dict) else dict.fromkeys(arrays, state_dtype)
    if not asked or not asked.keys() <= arrays.keys():
        unknown = ", ".join(str(field) for field in asked if field not in arrays) if arrays else "array"
        raise ValueError(f"{name}: state_dtype: no {unknown} to store; there are {', '.join(arrays) or 'none'}")
    return {**slots, **{field: narrowed(arrays[field], dtype) for field, dtype in asked.items()}}


def shown(value: Any) -> str:
    """A value on one line, not too long; arrays by dtype and shape."""
    known = lambda a: not getattr(a, "ndim", 0) and not isinstance(a, jax.ShapeDtypeStruct | Tracer)
    brief = lambda a: a if known(a) else f"{a.dtype}{list(a.shape)}"
    told = jax.tree.map(brief, value)
    text = told if hasattr(value, "dtype") and isinstance(told, str) else " ".join(repr(told).split())
    return text if len(text) <= 100 else text[:97] + "..."


def expanded_mask(name: str, mask: Any, params: Any, grads: Any, what: str = "mask") -> list[bool]:
    """A mask (None, a prefix tree of bools, a function of the parameters) as one bool for each gradient leaf."""
    gs = jax.tree.leaves(grads, is_leaf=is_none)
    if mask is None:
        return [True] * len(gs)
    if callable(mask) and jax.tree.leaves(mask) == [mask]:  # a module whose leaves are bools is callable too
        mask = mask(params)
    flags, prefix = jax.tree.flatten(mask, is_leaf=is_none)
    parts = aligned(name, mask, params, "parameters", what)
    spread = [jax.tree.map(lambda _, m=m: m, part, is_leaf=is_none) for m, part in zip(flags, parts, strict=True)]
    said = aligned(name, grads, prefix.unflatten(spread), what)
    said = [g is None or m for g, m in zip(gs, said, strict=True)]  # without a gradient it may say anything
    if not all(map(is_flag, said)):
        wrong = [f"{shown(m)} at {path}" for m, path in zip(said, paths(grads), strict=True) if not is_flag(m)]
        bools = "a tree of bools, known when the step is compiled and a prefix of the parameters'"
        raise ValueError(f"{name}: {what} must be {bools}, not {', '.join(wrong[:3])}")
    return list(map(bool, said))


def require(name: str, needs: Any, given: dict[str, Any]) -> None:
    """What the optimizer needs beside gradients and state must be there."""
    for need in needs:
        if given.get(need) is None:
            raise ValueError(f"{name}: update needs {need}; call update(grads, state, ..., {need}={need})")
