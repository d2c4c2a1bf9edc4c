"""What references share: the loop that runs one on a tree, and the few words that several papers use."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from numpy import sqrt

Steps = Iterator[tuple[int, Any, Any]]
Yields = Iterator[tuple[Any, dict[str, Any]]]
Reference = Callable[..., Yields]

# Methods that see the whole tree as one vector, by their arguments.
OVER_TREE: dict[str, Callable[[Mapping[str, Any]], bool]] = {}


def over_tree(when: Callable[[Mapping[str, Any]], bool] = lambda kwargs: True) -> Callable[[Reference], Reference]:
    """The reference sees all parameters as the one long vector that papers write."""

    def mark(reference: Reference) -> Reference:
        OVER_TREE[reference.__name__] = when
        return reference

    return mark


def norm(x: Any) -> Any:
    return sqrt(np.sum(abs(x) ** 2))


def inner(a: Any, b: Any) -> Any:
    return np.sum(np.real(np.conj(a) * b))


def heavy_ball(b: Any, u: Any, momentum: float | None, nesterov: bool) -> tuple[Any, Any]:
    """Sutskever et al. 2013, with the rate outside the buffer: the direction and the buffer."""
    b = (momentum or 0) * b + u
    return (u + (momentum or 0) * b if nesterov else b), b


def hessian_of(g: Any) -> Any:
    """The diagonal that stands for the Hessian's in the tests: of the gradient's scale, even, and not |g| itself.

    Less than twice |g|: huge ones are clamped at one limit, which changes no step by more than that.
    """
    return 1.5 * abs(g)


def replay(
    reference: Reference,
    params: Any,
    grads: Sequence[Any],
    kwargs: Mapping[str, Any],
    iterates: Sequence[Any] | None = None,
) -> list[tuple[Any, dict[str, Any]]]:
    """Each step's update, a tree like the parameters, and the slots, trees or numbers of the whole tree.

    Without `iterates` (the parameters before each step) the reference follows its own.
    """
    whole = OVER_TREE.get(reference.__name__, lambda kwargs: False)(kwargs)
    own = inspect.signature(reference).parameters
    unknown = ("mask", "per")  # what one array, or one vector, cannot know
    settings = {k: v for k, v in kwargs.items() if k not in unknown or k in own}
    flat = lambda tree: [wide(leaf) for leaf in jax.tree.leaves(tree)]
    leaves, treedef = jax.tree.flatten(params)
    decayed = jax.tree.leaves(_expanded(kwargs.get("mask"), params))
    join = lambda arrays: [np.concatenate([a.ravel() for a in arrays])] if whole else arrays
    xs, gs = join(flat(params)), [join(flat(g)) for g in grads]
    seen = None if iterates is None else [join(flat(x)) for x in iterates]
    masks = join([np.full(leaf.shape, on) for leaf, on in zip(leaves, decayed, strict=True)])

    columns = [
        _loop(reference, x, [g[i] for g in gs], None if seen is None else [x[i] for x in seen], masks[i], settings)
        for i, x in enumerate(xs)
    ]

    def tree_of(arrays: list[Any]) -> Any:
        """One array for each leaf; of the long vector's the pieces, and a number of the whole tree as it is."""
        if whole and np.ndim(arrays[0]):
            arrays = _cut(arrays[0], leaves)
        return arrays[0] if whole and not np.ndim(arrays[0]) else treedef.unflatten(arrays)

    return [
        (tree_of([update for update, _ in rows]), {k: tree_of([s[k] for _, s in rows]) for k in rows[0][1]})
        for rows in zip(*columns, strict=True)
    ]


def _loop(reference: Reference, x: Any, gs: list[Any], xs: list[Any] | None, mask: Any, settings: Any) -> list[Any]:
    """One reference on one array."""
    own = inspect.signature(reference).parameters
    if "weight_decay" in own:
        decay = settings.get("weight_decay", own["weight_decay"].default)
        settings = {**settings, "weight_decay": (decay or 0.0) * mask}
    if "mask" in own:  # a method whose mask is about more than the decay sees its own bool
        settings = {**settings, "mask": bool(mask.all())}
    now = [x]

    def steps() -> Steps:
        for i, g in enumerate(gs):
            yield i + 1, now[0] if xs is None else xs[i], g

    rows = []
    for update, slots in reference(steps(), **settings):
        now[0] = now[0] + update
        rows.append((update, slots))
    return rows


def wide(leaf: Any) -> Any:
    """A leaf as float64 or complex128 numbers."""
    a = np.asarray(leaf)
    return a.astype(np.complex128 if np.iscomplexobj(a) else np.float64)


def _expanded(mask: Any, params: Any) -> Any:
    """A prefix tree of bools as one bool for each leaf; None decays everywhere."""
    mask = mask(params) if callable(mask) else mask
    return jax.tree.map(lambda on, below: jax.tree.map(lambda _: on, below), True if mask is None else mask, params)


def _cut(vector: Any, like: list[Any]) -> list[Any]:
    """The long vector, back in its pieces."""
    ends = np.cumsum([leaf.size for leaf in like])
    return [part.reshape(leaf.shape) for part, leaf in zip(np.split(vector, ends[:-1]), like, strict=True)]
