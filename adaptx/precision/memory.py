"""memory: what an optimizer's state takes, before anything is allocated."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import GetAttrKey, keystr, tree_leaves_with_path

from adaptx.core.registry import check_argument
from adaptx.precision.compress import is_stored


class Leaf(NamedTuple):
    """One leaf of a state."""

    field: str  # of the state
    path: str  # of the parameter that it is for, or nothing
    form: str  # its dtype, or the codec that it is stored by
    shape: tuple[int, ...]
    bytes: int


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of an optimizer's state; printed, it is a table of its fields."""

    leaves: tuple[Leaf, ...]
    parameters: int  # how many there are
    parameter_bytes: int

    @property
    def fields(self) -> dict[str, int]:
        """Bytes of each state field, the largest first."""
        total: dict[str, int] = {}
        for leaf in self.leaves:
            total[leaf.field] = total.get(leaf.field, 0) + leaf.bytes
        return dict(sorted(total.items(), key=lambda item: -item[1]))

    @property
    def total(self) -> int:
        """Bytes of the whole state."""
        return sum(leaf.bytes for leaf in self.leaves)

    @property
    def per_parameter(self) -> float:
        """Bytes of state for each parameter."""
        return self.total / max(self.parameters, 1)

    def __str__(self) -> str:
        rows = {**self.fields, "state": self.total, "parameters": self.parameter_bytes}
        wide, digits = max(map(len, rows)), len(f"{max(rows.values()):,}")
        each = {name: count / max(self.parameters, 1) for name, count in rows.items()}
        return "\n".join(f"{name:<{wide}}  {rows[name]:>{digits},} B  {each[name]:8.4f} B/param" for name in rows)

    def by_leaf(self) -> str:
        """A table of all leaves: field, parameter, shape, form and bytes."""
        rows = [(leaf.field, leaf.path, str(list(leaf.shape)), leaf.form, f"{leaf.bytes:,} B") for leaf in self.leaves]
        wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, wide)).rstrip() for row in rows)


def memory(tx: optax.GradientTransformation, params: Any) -> Memory:
    """What the state of `tx` takes for these parameters, by field and in total.

        print(adaptx.precision.memory(adaptx.adamw(1e-3), params))

    Nothing is computed or allocated: the parameters may be arrays or `jax.ShapeDtypeStruct`s. A field is a name in a
    state, whatever it is nested in: `mu`, `nu`, `count`; what has none is called `state`. Sharded parameters count as
    whole ones: the last block of each shard may be padded, by less than a block.

    Arguments:
        tx: any transformation of Optax or of this library.
        params: a tree of arrays or of their shapes.

    Errors: ValueError for a tx that is no transformation; what `tx.init` raises.
    """
    check_argument("memory", "tx", tx)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), params)  # wherever it lies
    own = {path for path, _ in tree_leaves_with_path(like)}
    leaves = []
    for path, leaf in tree_leaves_with_path(jax.eval_shape(tx.init, like), is_leaf=is_stored):
        start = next((i for i in range(len(path)) if path[i:] in own), len(path))
        names = [key.name for key in path[:start] if isinstance(key, GetAttrKey)]
        form = leaf.codec.name if is_stored(leaf) else str(leaf.dtype)
        size = sum(map(_bytes, jax.tree.leaves(leaf)))
        leaves.append(Leaf(names[-1] if names else "state", keystr(path[start:]), form, leaf.shape, size))
    xs = jax.tree.leaves(like)
    return Memory(tuple(leaves), sum(math.prod(x.shape) for x in xs), sum(map(_bytes, xs)))


def _bytes(x: Any) -> int:
    return math.prod(x.shape) * x.dtype.itemsize
