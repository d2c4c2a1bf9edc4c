"""compress_state: any optimizer, with its state stored in 16, 8 or 4 bits a number."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import FlattenedIndexKey, GetAttrKey, keystr

from adaptx.core.checks import check_kind
from adaptx.core.moments import next_count
from adaptx.core.registry import checked
from adaptx.core.rounding import noise, salted
from adaptx.glossary import GLOSSARY, Argument, is_count
from adaptx.precision import codecs
from adaptx.precision.codecs import Codec


class Store(NamedTuple):
    """How a state field is stored: the codec for the leaves of at least `min_size` numbers at paths that match."""

    field: str  # its name in the state: "mu", "nu", ...
    codec: Codec
    path: str = ""  # a regular expression, searched for in the parameter's path
    min_size: int = 4096


def _named(first: Codec, second: Codec) -> tuple[Store, ...]:
    """First and second moments, without embeddings: of their rows some are used seldom."""
    table = "(?i)^((?!embed).)*$"
    fields = [(first, ("mu", "trace", "momentum")), (second, ("nu", "nu_max", "sum_of_squares"))]
    return tuple(Store(field, codec, table) for codec, names in fields for field in names)


NAMED: dict[str, tuple[Store, ...]] = {
    "bfloat16": _named(codecs.bfloat16, codecs.bfloat16),
    "bfloat16_stochastic": _named(codecs.bfloat16_stochastic, codecs.bfloat16_stochastic),
    "8bit": _named(codecs.signed8, codecs.positive8),
    "4bit": _named(codecs.signed4, codecs.positive4),
}


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Stored:
    """One leaf of a state in its codec's form; what it is decoded to is known to the compiler."""

    parts: Any  # a row for each block
    shape: tuple[int, ...]
    dtype: Any
    sharding: NamedSharding | None  # of the leaf: each shard has blocks of its own
    codec: Codec

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        return ((FlattenedIndexKey(0), self.parts),), (self.shape, self.dtype, self.sharding, self.codec)

    @classmethod
    def tree_unflatten(cls, form: Any, children: Any) -> Stored:
        return cls(*children, *form)


class _Compressed(optax.GradientTransformationExtraArgs):
    tx: optax.GradientTransformationExtraArgs


def inside(tx: Any) -> Any:
    """The optimizer that `compress_state` was given; None of what is not from there."""
    return tx.tx if isinstance(tx, _Compressed) else None


class CompressedState(NamedTuple):
    """The state of compress_state."""

    inner: Any  # the state of the wrapped optimizer, with a `Stored` in place of each leaf that a rule is for
    steps: Any = None  # made so far, where a codec draws noise


WORDS = {
    "tx": GLOSSARY["tx"],
    "rules": Argument(
        "which leaves of the state are stored how; the first rule that fits counts, other leaves stay as they are",
        f"{', '.join(map(repr, NAMED))} or a sequence of `Store`(field, a codec, a regular expression, an int >= 0)",
        lambda v: v in NAMED if isinstance(v, str) else _are_rules(v),
    ),
    "block": Argument("how many numbers share a scale", "an even int >= 2", lambda v: is_count(v, 2) and v % 2 == 0),
}


def _are_rules(value: Any) -> bool:
    return isinstance(value, Sequence) and all(map(_is_rule, value))


def _is_rule(rule: Any) -> bool:
    if not isinstance(rule, Store) or not isinstance(rule.field, str) or not isinstance(rule.codec, Codec):
        return False
    try:
        re.compile(rule.path)
    except (TypeError, re.error):
        return False
    return is_count(rule.min_size)


@functools.partial(checked, words=WORDS)
def compress_state(
    tx: Any, rules: str | Sequence[Store] = "8bit", block: int = 128
) -> optax.GradientTransformationExtraArgs:
    """Compressed state: `tx` with its state stored in fewer bits, decoded for each update and encoded after it.

    Step:
        s = decode(codes)
        u, s = the update and the state of tx for s
        codes = encode(s)

        tx = adaptx.precision.compress_state(adaptx.adamw(1e-3), "8bit")
        print(adaptx.precision.memory(tx, params))

    tx is any transformation, of this library or of Optax. The named rules store first moments (`mu`,
    `trace`, `momentum`) and second ones (`nu`, `nu_max`, `sum_of_squares`) of at least 4,096 numbers, where the
    parameter's path does not say "embed". A `Store` says it for one field, with a codec of `precision.codecs` or your
    own. Blocks of `block` numbers of a leaf, in C order, have a scale of their own. The blocks of a sharded leaf lie
    within its shards, and so are sharded as it is: where parameters are sharded, call `init` outside of `jit`. (Not so
    under nnx.Optimizer, which hands the state back without saying how it was sharded: blocks are the whole array's. It
    takes compressed state from flax 0.12 on.)

    "bfloat16_stochastic" rounds up or down at random: an average that moves by less than half of the last place in a
    step (with b2 = 0.999 it shrinks by a quarter) moves in the mean. The noise is a hash of step, leaf and position.

    What is decoded and what is encoded are whole arrays for a moment: the state shrinks, and on CPU the memory that a
    step takes for that moment grows: by 4 bytes a parameter for 16 bits, 10 to 16 for 8 and 4. `step` does without.

    Errors:
        TypeError: an unknown argument; a state that is not this one's.
        ValueError: an argument out of range; a `Store` for a field that the state does not have; what was written with
            other rules, when flax restores it; and what `tx` raises.
    """
    tx, stores = optax.with_extra_args_support(tx), NAMED[rules] if isinstance(rules, str) else tuple(rules)

    def init(params: Any) -> CompressedState:
        _known_to_flax()
        found, treedef = jax.tree_util.tree_flatten_with_path(tx.init(params))
        split, fields = not _is_nnx(params), {key.name for path, _ in found for key in path if hasattr(key, "name")}
        if unknown := [s.field for s in stores if not isinstance(rules, str) and s.field not in fields]:
            raise ValueError(
                f"compress_state: no field {unknown[0]} in the state; there are {', '.join(sorted(fields))}"
            )
        inner = treedef.unflatten([_first(path, leaf, stores, block, split) for path, leaf in found])
        return CompressedState(inner, jnp.zeros([], jnp.int32) if any(s.codec.noisy for s in stores) else None)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, CompressedState]:
        check_kind("compress_state", CompressedState, state)
        found = jax.tree.leaves(state, is_leaf=lambda x: is_stored(x) or _is_nnx(x))
        if any(map(_is_nnx, found)) and not any(map(is_stored, jax.tree.leaves(state, is_leaf=is_stored))):
            state = _in_form(state, jax.eval_shape(init, updates if params is None else params))
        full = jax.tree.map(decoded, state.inner, is_leaf=is_stored)
        us, new = tx.update(updates, full, params, **extra)
        like = lambda path, old, a: _encoded_like(old, a, salt_of(state, keystr(path)))
        inner = jax.tree_util.tree_map_with_path(like, state.inner, new, is_leaf=is_stored)
        return us, CompressedState(inner, counted(state))

    compressed = _Compressed(init, update)
    compressed.tx = tx
    return compressed


def salt_of(state: CompressedState, path: str) -> Array:
    """What makes the noise of this step and of the leaf at a path of `inner` its own."""
    return jnp.uint32(0) if state.steps is None else salted(0, state.steps, path)


def counted(state: CompressedState) -> Any:
    """The steps after this one."""
    return None if state.steps is None else next_count(state.steps)


def is_stored(x: Any) -> bool:
    """A leaf in its codec's form."""
    return isinstance(x, Stored)


def _is_nnx(tree: Any) -> bool:
    """Whether nnx.Optimizer may have the state: it hands a compressed leaf back as its arrays alone."""
    return isinstance(tree, getattr(sys.modules.get("flax.nnx"), "State", ()))


def _in_form(state: CompressedState, like: CompressedState) -> CompressedState:
    """What nnx.Optimizer hands back, with its arrays in compressed leaves again; anything else as it is."""
    arrays, shape = jax.tree.leaves(state), lambda tree: [a.shape for a in jax.tree.leaves(tree)]
    return jax.tree.unflatten(jax.tree.structure(like), arrays) if shape(state) == shape(like) else state


def _known_to_flax() -> None:
    """Lets flax.serialization, where it is used, write and read compressed leaves."""
    flax: Any = sys.modules.get("flax.serialization")
    if flax is not None:
        write = lambda s: {"codec": s.codec.name, "parts": flax.to_state_dict(s.parts)}
        read = lambda s, kept: _restored(s, kept["codec"], flax.from_state_dict(s.parts, kept["parts"]))
        flax.register_serialization_state(Stored, write, read, override=True)


def _restored(like: Stored, codec: str, parts: Any) -> Stored:
    """A compressed leaf as it was written, if it is of the same codec and blocks."""
    shapes = lambda tree: [np.shape(a) for a in jax.tree.leaves(tree)]
    if codec != like.codec.name or shapes(parts) != shapes(like.parts):
        told = f"{codec} {shapes(parts)}, not {like.codec.name} {shapes(like.parts)}"
        raise ValueError(f"compress_state: what was written is {told}; restore it into a state of the same rules")
    return dataclasses.replace(like, parts=parts)


def _first(path: Any, leaf: Any, stores: Sequence[Store], block: int, split: bool) -> Any:
    """A leaf of a new state, encoded where a rule says so; `split`: with blocks of its shards' own."""
    store = next((s for s in stores if _fits(s, path, leaf)), None)
    if store is None:
        return leaf
    sharding = leaf.sharding if split and not isinstance(leaf, Tracer) else None
    sharding = sharding if isinstance(sharding, NamedSharding) and _axes(sharding) else None
    encode = jax.jit(lambda x: _encoded(x, sharding, store.codec, block, jnp.uint32(0)))
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return encode(leaf)
    form = jax.eval_shape(encode, leaf)
    placed = sharding and NamedSharding(sharding.mesh, PartitionSpec(_axes(sharding)))
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=placed), form)


def _axes(sharding: NamedSharding) -> tuple[str, ...]:
    """The axes of the mesh that a leaf is split along."""
    return tuple(name for names in sharding.spec if names for name in ([names] if isinstance(names, str) else names))


def _fits(store: Store, path: Any, leaf: Any) -> bool:
    at = next((i for i, key in enumerate(path) if isinstance(key, GetAttrKey) and key.name == store.field), None)
    real = jnp.issubdtype(getattr(leaf, "dtype", int), jnp.floating)
    if at is None or not real or math.prod(leaf.shape) < store.min_size:
        return False
    return re.search(store.path, keystr(path[at + 1 :])) is not None


def specs(sharding: NamedSharding | None) -> tuple[PartitionSpec, PartitionSpec]:
    """How a leaf is split over the mesh, and how the rows of its blocks are."""
    return (sharding.spec, PartitionSpec(_axes(sharding))) if sharding else (PartitionSpec(), PartitionSpec())


def on_shards(f: Any, sharding: NamedSharding | None, into: Any, out: Any) -> Any:
    """f on each shard of a leaf by itself, which moves nothing between devices."""
    return jax.shard_map(f, mesh=sharding.mesh, in_specs=into, out_specs=out) if sharding else f


def rows_of(x: Array, codec: Codec, block: int, salt: Any = None, start: Any = 0) -> Any:
    """An array in its codec's form, a row for each block; `start`: where it begins, if it is a part."""
    flat = x.astype(jnp.float32).reshape(-1)
    rows = jnp.pad(flat, (0, -flat.size % block)).reshape(-1, block)
    return codec.encode(rows, noise(rows.shape, salt, start)) if codec.noisy else codec.encode(rows)


def own_salt(salt: Array, sharding: NamedSharding | None) -> Array:
    """The salt of a shard, inside of `on_shards`: positions in it begin at 0."""
    return salted(0, jax.lax.axis_index(_axes(sharding)).astype(jnp.uint32) + salt, "") if sharding else salt


def array_of(parts: Any, codec: Codec, shape: tuple[int, ...], dtype: Any) -> Array:
    """The array that such rows are for."""
    return codec.decode(parts).reshape(-1)[: math.prod(shape)].reshape(shape).astype(dtype)


def block_of(s: Stored) -> int:
    """How many numbers share a scale."""
    return jax.eval_shape(s.codec.decode, s.parts).shape[-1]


def _encoded(x: Array, sharding: NamedSharding | None, codec: Codec, block: int, salt: Array) -> Stored:
    leaf, rows = specs(sharding)
    own = lambda x, *salt: rows_of(x, codec, block, *(own_salt(s, sharding) for s in salt))
    drawn = (salt,) if codec.noisy else ()
    encode = on_shards(own, sharding, (leaf, *(PartitionSpec() for _ in drawn)), rows)
    return Stored(encode(x, *drawn), x.shape, np.dtype(x.dtype), sharding, codec)


def decoded(s: Any) -> Any:
    """The leaf that was encoded; what is none passes."""
    if not is_stored(s):
        return s
    (leaf, rows), shape = specs(s.sharding), s.sharding.shard_shape(s.shape) if s.sharding else s.shape
    return on_shards(lambda parts: array_of(parts, s.codec, shape, s.dtype), s.sharding, (rows,), leaf)(s.parts)


def _encoded_like(old: Any, new: Any, salt: Array) -> Any:
    return _encoded(new.astype(old.dtype), old.sharding, old.codec, block_of(old), salt) if is_stored(old) else new
