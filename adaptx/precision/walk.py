"""walk: one leaf and its compressed state, updated in place, a chunk after the other."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import PartitionSpec

from adaptx.precision.codecs import Codec
from adaptx.precision.compress import array_of, block_of, decoded, is_stored, on_shards, own_salt, rows_of, specs


class Walk(NamedTuple):
    """A leaf that is updated a chunk after the other."""

    tx: optax.GradientTransformationExtraArgs  # for this array alone
    g: Array
    x: Array
    slots: dict[str, Any]  # arrays, or `Stored`
    salts: dict[str, Array]  # of their noise
    chunk: int  # numbers, in whole blocks; at most half of what a device has

    def result(self, state: Any, turn: Array) -> Any:
        """The parameter and its slots after the step; and the turn of the next leaf."""
        arrays = {"": self.x, **self.slots}
        sharding = next(s.sharding for s in self.slots.values() if is_stored(s))
        leaf, rows = specs(sharding)
        split, one = {f: rows if is_stored(a) else leaf for f, a in arrays.items()}, PartitionSpec()
        held = {f: a.parts if is_stored(a) else a for f, a in arrays.items()}
        numbers = jax.tree.map(decoded, state._replace(**dict.fromkeys(self.slots)), is_leaf=is_stored)
        lanes = {f: _Rows.of(a) if is_stored(a) else _Plain(a.dtype) for f, a in arrays.items()}
        walked = functools.partial(self.walked, lanes, lambda salt: own_salt(salt, sharding))
        args = held, self.g, numbers, self.salts, turn
        if sharding is None:
            new, turn = walked(*args)
        else:  # what one shard is at is nothing to the others
            new = on_shards(lambda *args: walked(*args)[0], sharding, (split, leaf, *[one] * 3), split)(*args)
        slots = {f: dataclasses.replace(s, parts=new[f]) if is_stored(s) else new[f] for f, s in self.slots.items()}
        return (new[""], slots), turn

    def walked(self, lanes: Any, own: Any, held: Any, g: Array, numbers: Any, salts: Any, turn: Array) -> Any:
        """The parameter, at "", and the slots of a shard after the step.

        What is new of a chunk is written before the next one is read. So no buffer is read after it was written to,
        and XLA copies none.
        """
        gradient, shape, size, salts = _Plain(g.dtype), g.shape, g.size, jax.tree.map(own, salts)
        held, g = {f: lane.opened(held[f]) for f, lane in lanes.items()}, gradient.opened(g)

        def computed(held: Any, at: Any, size: int) -> Any:
            now = {f: lane.read(held[f], at, size) for f, lane in lanes.items()}
            x = now.pop("")
            u, s = self.tx.update(gradient.read(g, at, size), numbers._replace(**now), x)
            new = {"": optax.apply_updates(x, u), **{f: getattr(s, f) for f in now}}
            return {f: lane.form(new[f], at, salts.get(f)) for f, lane in lanes.items()}

        def written(held: Any, at: Any, new: Any) -> Any:
            return {f: lane.written(held[f], at, new[f]) for f, lane in lanes.items()}

        def after(new: Any) -> Array:
            """0, which the compiler does not know before these results."""
            return jnp.where(numbers.count < 0, (new[""][0] != 0).astype(jnp.int32), 0)

        def body(i: Any, carry: Any) -> Any:
            held, new = carry
            held = written(held, (i - 1) * self.chunk, new)
            return held, computed(held, i * self.chunk, self.chunk)

        chunks, tail = divmod(size, self.chunk)
        last = chunks * self.chunk
        # Leaves take turns, else the chunks of all would be in memory at once.
        held, new = jax.lax.fori_loop(1 + turn, chunks, body, (held, computed(held, turn, self.chunk)))
        held, turn = written(held, last - self.chunk, new), after(new)
        if tail:
            end = lambda held: computed(held, last, tail)
            blank = jax.tree.map(lambda a, full: full[: a.shape[0]], jax.eval_shape(end, held), new)
            # In a loop of a length that the compiler does not know: else reading and writing are fused, by a copy.
            new = jax.lax.fori_loop(turn, jnp.where(numbers.count < 0, 0, 1), lambda _, new: end(held), blank)
            held, turn = written(held, last, new), after(new)
        return {f: lane.closed(held[f], shape) for f, lane in lanes.items()}, turn


class _Plain(NamedTuple):
    """An array that is read and written in parts. One of bfloat16 is taken for integers, which XLA on CPU copies; to
    read a part of a bfloat16 array it would widen it whole."""

    dtype: Any

    def form(self, a: Array, at: Any = 0, salt: Any = None) -> Array:
        del at, salt
        a = a.astype(self.dtype)
        return jax.lax.bitcast_convert_type(a, jnp.uint16) if self.dtype == jnp.bfloat16 else a

    def opened(self, a: Array) -> Array:
        return self.form(a.reshape(-1))

    def read(self, a: Array, at: Any, size: int) -> Array:
        part = jax.lax.dynamic_slice_in_dim(a, at, size)
        return part if part.dtype == self.dtype else jax.lax.bitcast_convert_type(part, self.dtype)

    def written(self, a: Array, at: Any, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(a, new, at, 0)

    def closed(self, a: Array, shape: Any) -> Array:
        return (a if a.dtype == self.dtype else jax.lax.bitcast_convert_type(a, self.dtype)).reshape(shape)


class _Rows(NamedTuple):
    """A compressed array that is read and written in parts, at whole rows."""

    codec: Codec
    block: int
    dtype: Any

    @classmethod
    def of(cls, s: Any) -> _Rows:
        return cls(s.codec, block_of(s), s.dtype)

    def form(self, a: Array, at: Any, salt: Any) -> Any:
        return rows_of(a.astype(self.dtype), self.codec, self.block, salt, at)

    def opened(self, parts: Any) -> Any:
        return parts

    def read(self, parts: Any, at: Any, size: int) -> Array:
        rows = -(-size // self.block)
        part = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, at // self.block, rows), parts)
        return array_of(part, self.codec, (size,), self.dtype)

    def written(self, parts: Any, at: Any, new: Any) -> Any:
        write = lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, at // self.block, 0)
        return jax.tree.map(write, parts, new)

    def closed(self, parts: Any, shape: Any) -> Any:
        return parts
