"""step: an update of parameters and compressed state in place, which takes almost no memory beside them."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import keystr, tree_leaves_with_path

from adaptx.core import checks
from adaptx.core.lift import Made, lift, made_of
from adaptx.core.registry import OPTIMIZERS
from adaptx.precision.compress import CompressedState, block_of, inside, is_stored, salt_of
from adaptx.precision.walk import Walk

CHUNK = 1 << 15  # numbers; of half or twice as many the steps were slower or took more memory
SMALLEST = 1 << 16  # numbers; a smaller leaf is not worth the loop that the compiler must make for it


def step(tx: Any, grads: Any, params: Any, state: Any, **extra: Any) -> tuple[Any, Any]:
    """A step of an optimizer with compressed state: `update` and `optax.apply_updates` in one, a part at a time.

        tx = adaptx.precision.compress_state(adaptx.adamw(1e-3), "8bit")
        step = jax.jit(functools.partial(adaptx.precision.step, tx), donate_argnums=(1, 2))
        params, state = step(grads, params, state)

    The result is that of `update` and `apply_updates`. What those two hold in float32 for a moment, the decoded state
    and the update, is here held for 32,768 numbers at a time, and written where the old numbers were: the temporary
    memory stays below half a byte a parameter, where parameters and state are donated (jax 0.8 and newer; the XLA of
    0.7 keeps the chunks of several leaves at once). What is bfloat16 XLA on CPU copies once: 2 bytes a parameter for
    parameters, 2 for gradients, 2 for a state field that is not compressed.

    It needs an optimizer that looks at each number by itself, made by a factory of this library: `adamw`, `lion`, ...
    (the registry says "element"), not in a chain and without injected hyperparameters; a rate may be a traced number
    of a `tx` that is made inside of `jit`. For any other it is `update` and `apply_updates`, with their memory: for
    presets, `sophia` and `adahessian` too, for leaves, and shards of leaves, of fewer than 65,536 numbers, and for
    those that are not compressed. It has no derivative in reverse mode. On a mesh with explicit axes gradients are to
    be sharded as their parameters are, and rates no traced numbers.

    Arguments:
        tx: what `compress_state` gives.
        grads: gradients, a tree like the parameters; None leaves its parameter alone.
        params: the parameters.
        state: what `tx.init(params)` or the last step gave.
        extra: what else the optimizer's `update` needs: `hessian=diagonal`.

    Returns: parameters and state after the step.

    Errors:
        TypeError: a tx that is not from `compress_state`; a state that is not its own.
        ValueError: what `update` raises: shapes, and trees that differ.

    Source: the papers of the optimizers; the order of reads and writes is this library's.
    """
    inner = inside(tx)
    if inner is None:
        raise TypeError(f"precision.step: tx must be what compress_state gives, got {checks.shown(tx)}")
    checks.check_kind("precision.step", CompressedState, state)
    made = made_of(inner)
    walks = _walks(made, grads, params, state) if made and _by_element(made) else {}
    if not walks:
        updates, state = tx.update(grads, state, params, **extra)
        return jax.tree.map(_moved, updates, params, is_leaf=checks.is_none), state

    treedef = jax.tree.structure(grads, is_leaf=checks.is_none)
    fields = next(iter(walks.values())).slots

    def among(tree: Any, own: dict[int, Any]) -> Any:
        """The tree with some of its leaves replaced."""
        return treedef.unflatten([own.get(i, leaf) for i, leaf in enumerate(treedef.flatten_up_to(tree))])

    after: Any
    # The rest first, as a tree without these leaves: it also gives the new count.
    without = dict.fromkeys(walks)
    rest = state.inner._replace(**{f: among(getattr(state.inner, f), without) for f in fields})
    updates, after = tx.update(among(grads, without), CompressedState(rest, state.steps), params, **extra)
    new = after.inner
    pairs = zip(treedef.flatten_up_to(params), treedef.flatten_up_to(updates), strict=True)
    xs = {i: _moved(u, x) for i, (x, u) in enumerate(pairs)}
    walked, turn = {}, jnp.int32(0)
    for i, walk in walks.items():
        walked[i], turn = walk.result(state.inner, turn)
    slots = {f: among(getattr(new, f), {i: held[f] for i, (_, held) in walked.items()}) for f in fields}
    return among(params, {**xs, **{i: x for i, (x, _) in walked.items()}}), after._replace(inner=new._replace(**slots))


def _moved(u: Any, x: Any) -> Any:
    return x if u is None else optax.apply_updates(x, u)


def _by_element(made: Made) -> bool:
    """Whether each number's update looks at that number alone, in every case that the registry has."""
    entry = OPTIMIZERS.get(made.name.removeprefix("scale_by_"))
    return entry is not None and not made.rule.trees and set(entry.reduces) == {"element"}


def _walks(made: Made, grads: Any, params: Any, whole: CompressedState) -> dict[int, Walk]:
    """By position, the leaves that are walked through: large ones of which something is compressed."""
    state: Any = whole.inner
    name, first = f"precision.step: {made.name}", {f: slot for f, slot in made.rule.slots.items() if slot is not None}
    checks.require(name, ["params"], {"params": params})
    checks.check_kind(name, made.rule.State, state)
    grads = jax.tree.map(checks.array, grads, is_leaf=checks.is_none)
    at, gs = checks.paths(grads), jax.tree.leaves(grads, is_leaf=checks.is_none)
    keys = [keystr(path) for path, _ in tree_leaves_with_path(grads, is_leaf=checks.is_none)]
    xs = checks.matching_tree(name, grads, at, gs, params)
    full = lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype) if is_stored(s) else s
    forms = {f: jax.tree.map(full, getattr(state, f), is_leaf=is_stored) for f in first}
    checks.matching_state(name, grads, at, gs, forms, first)
    slots = {f: checks.aligned(name, grads, getattr(state, f), f"state fields `{f}`") for f in first}
    decayed = checks.expanded_mask(name, made.then.mask if made.then else None, params, grads)
    walks = {}
    for i, g in enumerate(gs):
        own = {f: slots[f][i] for f in first}
        stored = [s for s in own.values() if is_stored(s)]
        if not stored or g is None:
            continue
        block, shard = block_of(stored[0]), stored[0].sharding
        blocks = math.prod(shard.shard_shape(g.shape) if shard else g.shape) // block
        if blocks < max(SMALLEST // block, 2):
            continue
        then = made.then and made.then._replace(mask=None, weight_decay=made.then.weight_decay if decayed[i] else None)
        chunk = block * max(min(blocks // 2, CHUNK // block), 1)
        salts = {f: salt_of(whole, f".{f}{keys[i]}") for f in own}
        walks[i] = Walk(lift(made.name, made.rule, then), g, xs[i], own, salts, chunk)
    return walks
