"""memory: what an optimizer's state takes, before anything is allocated."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import optax


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of an optimizer's state; printed, it is a table."""

    fields: Mapping[str, int]  # state field -> bytes, the largest first
    parameters: int  # how many there are
    parameter_bytes: int

    @property
    def total(self) -> int:
        """Bytes of the whole state."""
        return sum(self.fields.values())

    @property
    def per_parameter(self) -> float:
        """Bytes of state for each parameter."""
        return self.total / max(self.parameters, 1)

    def __str__(self) -> str:
        rows = {**self.fields, "state": self.total, "parameters": self.parameter_bytes}
        wide, digits = max(map(len, rows)), len(f"{max(rows.values()):,}")
        each = {name: count / max(self.parameters, 1) for name, count in rows.items()}
        return "\n".join(f"{name:<{wide}}  {rows[name]:>{digits},} B  {each[name]:8.4f} B/param" for name in rows)


def memory(tx: optax.GradientTransformation, params: Any) -> Memory:
    """What the state of `tx` takes for these parameters, by field and in total.

        print(adaptx.precision.memory(adaptx.adamw(1e-3), params))

    Nothing is computed or allocated: the parameters may be arrays or `jax.ShapeDtypeStruct`s. A field is a name in a
    state, whatever it is nested in: `mu`, `nu`, `count`; what has none is under the name of its container.

    Arguments:
        tx: any transformation of Optax or of this library.
        params: a tree of arrays or of their shapes.

    Errors: what `tx.init` raises.
    """
    like = jax.eval_shape(lambda tree: tree, params)
    fields: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.eval_shape(tx.init, like)):
        names = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
        name = names[-1] if names else "state"
        fields[name] = fields.get(name, 0) + _bytes(leaf)
    leaves = jax.tree.leaves(like)
    largest_first = dict(sorted(fields.items(), key=lambda item: -item[1]))
    return Memory(largest_first, sum(math.prod(x.shape) for x in leaves), sum(map(_bytes, leaves)))


def _bytes(x: Any) -> int:
    return math.prod(x.shape) * x.dtype.itemsize
