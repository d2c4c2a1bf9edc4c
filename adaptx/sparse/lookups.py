"""Lookups: where a traced loss looks up rows of a table, and the same loss with a tap at each of these places.

A tap is zeros, added to the rows that were looked up: the derivative with respect to it is the rows' gradient. So the
table itself is not differentiated, and nothing of its size is made.
"""

from __future__ import annotations

import functools
import os
import site
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun
from jax.lax import GatherScatterMode
from jax.sharding import NamedSharding, PartitionSpec

from adaptx.sparse.decay import left
from adaptx.sparse.rows import known

# The names of primitives change between versions of JAX: tests/sparse/test_value_and_grad.py fails when they do.
_INLINED = {"jit", "pjit"}
_RECOMPUTED = {"checkpoint", "remat", "remat2"}
_CAST = "convert_element_type"
_PASSING = {_CAST, "copy", "sharding_constraint", "reshard", "pvary", "pcast"}


class TableUse(ValueError):
    """A table is used otherwise than by looking up rows of it, so its gradient is not one of rows."""


class Passed(NamedTuple):
    """A table, and the equations that it passed through: casts and such."""

    table: int
    way: tuple[JaxprEqn, ...] = ()


class Lookup(NamedTuple):
    """An equation that looks up rows of a table."""

    of: Passed
    rows: Any  # abstract: what it gives
    row_axes: tuple[int, ...]  # the axes of `rows` that are a row's

    def by_place(self, tapped: Array, ids: Array) -> Array:
        """The rows' gradient of shape (*ids.shape, *row)."""
        places = [axis for axis in range(tapped.ndim) if axis not in self.row_axes]
        return jnp.transpose(tapped, (*places, *self.row_axes))


class Plan(NamedTuple):
    """For each equation of a jaxpr the Lookup that it is, or the Plan of the jaxpr inside it, or None: nothing new."""

    steps: list[Any]
    lookups: list[Lookup]  # all, in order, those of the plans inside too


def plan_of(
    jaxpr: Jaxpr, at: dict[Any, Passed], tables: Sequence[str], owing: Any = (), line: str = ""
) -> tuple[Plan, list[Any]]:
    """How to run a jaxpr with taps, and which of its results are tables; `at` says which of its variables are.

    tables: their names; owing: the numbers of those whose rows owe decay; line: where the jaxpr is called.

    Errors: TableUse.
    """
    steps, lookups, at = [], [], dict(at)
    is_table = lambda v: None if isinstance(v, Literal) else at.get(v)
    for eqn in jaxpr.eqns:
        found = [is_table(v) for v in eqn.invars]
        passed, name, step = next(filter(None, found), None), eqn.primitive.name, None
        if passed is None:
            steps.append(step)
            continue
        here = _line(eqn) or line
        without_gradient = not any(jnp.issubdtype(_aval(v).dtype, jnp.inexact) for v in eqn.outvars)
        if name in _INLINED | _RECOMPUTED:
            inner = _inner(eqn)
            inside = {v: p for v, p in zip(inner.invars, found, strict=True) if p}
            step, out = plan_of(inner, inside, tables, owing, here)
            lookups += step.lookups
            at |= {v: p for v, p in zip(eqn.outvars, out, strict=True) if p}
        elif name == "stop_gradient" or without_gradient:
            if passed.table in owing:
                raise TableUse(
                    f"value_and_grad: {tables[passed.table]} is used whole by `{name}`{here}, but its rows owe decay, "
                    "which is paid where rows are looked up: give what sparse.flush gives, or change the loss"
                )
        elif name in _PASSING:
            at[eqn.outvars[0]] = passed._replace(way=(*passed.way, eqn))
        elif found[0] and (row_axes := _looks_up(eqn)) is not None:
            step = Lookup(passed, _aval(eqn.outvars[0]), row_axes)
            lookups.append(step)
        else:
            raise TableUse(
                f"value_and_grad: {tables[passed.table]} is used by `{name}`{here}; its gradient is one of rows only "
                "where rows are looked up, as in table[ids] or jnp.take(table, ids, axis=0), outside of scan, cond "
                "and custom derivatives: leave it out of `tables`, or change the loss"
            )
        steps.append(step)
    return Plan(steps, lookups), [is_table(v) for v in jaxpr.outvars]


def run(
    jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any], plan: Plan, tables: Sequence[Any], taps: Iterator[Array]
) -> tuple[list[Any], list[Array]]:
    """Results of the jaxpr with taps added, and for each lookup the ids, as they are after clamping.

    tables: for each table the array and what its rows owe (None: nothing).
    """
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    value = lambda v: v.val if isinstance(v, Literal) else values[v]
    ids: list[Array] = []
    for eqn, step in zip(jaxpr.eqns, plan.steps, strict=True):
        ins = [value(v) for v in eqn.invars]
        if isinstance(step, Lookup):
            found, rows = _looked_up(eqn, ins, step, tables[step.of.table], next(taps))
            ids.append(_on(found, NamedSharding(jax.sharding.get_abstract_mesh(), PartitionSpec())))
            outs = [rows]
        elif isinstance(step, Plan):
            inside = [next(taps) for _ in step.lookups]
            once = lambda ins, inside, eqn=eqn, step=step: run(
                _inner(eqn), getattr(eqn.params["jaxpr"], "consts", ()), ins, step, tables, iter(inside)
            )
            if eqn.primitive.name in _RECOMPUTED:
                # JAX may say for each input whether to prevent it; the taps are more inputs.
                prevent = any(jax.tree.leaves(eqn.params["prevent_cse"]))
                once = jax.checkpoint(once, policy=eqn.params["policy"], prevent_cse=prevent)
            outs, more = once(ins, inside)
            ids += more
        else:
            outs = _evaluated(jaxpr, eqn, ins)
        values |= zip(eqn.outvars, outs, strict=True)
    return [value(v) for v in jaxpr.outvars], ids


def _aval(v: Any) -> Any:
    return v.aval


def _bound(eqn: JaxprEqn, *ins: Any, **changed: Any) -> Array:
    """What an equation of one result gives, with some of its parameters changed."""
    with eqn.ctx.manager:
        out: Any = eqn.primitive.bind(*ins, **{**eqn.params, **changed})
    return out[0] if eqn.primitive.multiple_results else out


def _inner(eqn: JaxprEqn) -> Jaxpr:
    """The jaxpr that an equation calls."""
    return getattr(eqn.params["jaxpr"], "jaxpr", eqn.params["jaxpr"])


def _evaluated(jaxpr: Jaxpr, eqn: JaxprEqn, ins: list[Any]) -> list[Any]:
    """One equation, by JAX's own evaluation of a jaxpr that has no other."""
    inputs = {v: x for v, x in zip(eqn.invars, ins, strict=True) if not isinstance(v, Literal)}
    alone = jaxpr.replace(constvars=[], invars=[*inputs], outvars=eqn.outvars, eqns=[eqn])
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*inputs.values())


def _looks_up(eqn: JaxprEqn) -> tuple[int, ...] | None:
    """The axes of a row in what the equation gives, if it gives whole rows of its first operand."""
    name, of = eqn.primitive.name, eqn.params
    (_, *row), ndim = _aval(eqn.invars[0]).shape, _aval(eqn.outvars[0]).ndim
    if name == "gather":
        d = of["dimension_numbers"]
        whole = of["slice_sizes"] == (1, *row) and 0 in d.start_index_map and not d.operand_batching_dims
        return d.offset_dims if whole else None
    if name == "dynamic_slice":
        whole = of["slice_sizes"][1:] == (*row,)
    else:
        whole = name == "slice" and _aval(eqn.outvars[0]).shape[1:] == (*row,)
    return tuple(range(1, ndim)) if whole else None


def _ids(eqn: JaxprEqn, ins: list[Any]) -> Array:
    """Which rows it looks up; what is outside the table has no gradient."""
    name, of, rows = eqn.primitive.name, eqn.params, _aval(eqn.invars[0]).shape[0]
    if name == "slice":
        return jnp.arange(of["start_indices"][0], of["limit_indices"][0], (of["strides"] or (1,))[0])
    if name == "dynamic_slice":
        size = of["slice_sizes"][0]
        return _clamped(ins[1], rows - size) + jnp.arange(size, dtype=jnp.int32)
    columns, indices = of["dimension_numbers"].start_index_map, ins[1]
    ids = indices[..., columns.index(0)]
    if of["mode"] == GatherScatterMode.CLIP:
        return _clamped(ids, rows - 1)
    # A whole row begins at 0 along the other axes; elsewhere it is outside the table, wherever it is along the first.
    others = [indices[..., i] != 0 for i, axis in enumerate(columns) if axis != 0]
    return jnp.where(functools.reduce(jnp.logical_or, others), rows, known(ids, rows)) if others else known(ids, rows)


def _clamped(ids: Any, top: int) -> Array:
    ids = jnp.asarray(ids)
    return jnp.clip(ids, 0, min(top, np.iinfo(ids.dtype).max)).astype(jnp.int32)


def _looked_up(eqn: JaxprEqn, ins: list[Any], lookup: Lookup, of: tuple[Any, Any], tap: Array) -> tuple[Array, Array]:
    """The ids, and the rows with the tap added."""
    with eqn.ctx.manager:  # also among automatic axes, where `.at[ids].get(out_sharding=...)` looks up
        ids = _ids(eqn, ins)
        rows = _rows(eqn, ins, lookup, of, ids)
        return ids, rows + _on(tap, jax.typeof(rows).sharding)


def _on(x: Array, lies: Any) -> Array:
    """An array of other mesh axes (explicit ones, or automatic), on those where another lies."""
    mesh = jax.typeof(x).sharding.mesh
    return x if mesh.empty or lies.mesh.empty or mesh == lies.mesh else jax.sharding.reshard(x, lies)


def _rows(eqn: JaxprEqn, ins: list[Any], lookup: Lookup, of: tuple[Any, Any], ids: Array) -> Array:
    """The equation on the table itself: the casts, and the decay that is owed, come after it and cost rows only."""
    table, owed = of
    casts = [_aval(passed.outvars[0]).dtype for passed in lookup.of.way if passed.primitive.name == _CAST]
    for passed in lookup.of.way:
        if passed.primitive.name != _CAST:
            table = _bound(passed, table)
    filling = eqn.params.get("fill_value") if casts else None  # it was given in the last of the dtypes
    rows = _bound(eqn, table, *ins[1:], **({} if filling is None else {"fill_value": 0}))
    by_row = lambda v: v.reshape([1 if axis in lookup.row_axes else size for axis, size in enumerate(rows.shape)])
    if owed is not None:
        rows = rows * by_row(left(owed, ids))
    for dtype in (*casts, lookup.rows.dtype):
        rows = rows.astype(dtype)
    if filling is not None:
        rows = jnp.where(by_row(ids < table.shape[0]), rows, jnp.asarray(filling, rows.dtype))
    return rows


_LIBRARIES = tuple(
    os.path.join(place, "")
    for place in (sysconfig.get_path("stdlib"), *site.getsitepackages(), Path(__file__).parents[1])
)


def _line(eqn: JaxprEqn) -> str:
    """Where in the user's sources the equation was written, as far as known."""
    trace = eqn.source_info.traceback
    frames = traceback.extract_tb(trace.as_python_traceback()) if trace else []
    own = [f for f in frames if not f.filename.startswith((*_LIBRARIES, "<"))]
    return f" at {own[-1].filename}:{own[-1].lineno} (in {own[-1].name})" if own else ""
