"""Row gradients: look up first, differentiate with respect to the rows; and each index once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import keystr, tree_flatten_with_path

from adaptx.core.checks import expanded_mask, is_none, shown
from adaptx.sparse.decay import debts_of, following, read
from adaptx.sparse.lookups import Passed, TableUse, plan_of, run
from adaptx.sparse.rows import RowSparse, UniqueIds, blank, check_num_rows, column, distinct, integers, known, whole


def unique_ids(ids: Any, num_rows: int, capacity: int | None = None) -> UniqueIds:
    """Each index once, for `rows_value_and_grad`: a batch that names few rows many times then costs what few rows cost.

    Of a NumPy array or a list it is taken on the host, by NumPy, best in the input pipeline: there the number of
    different indices is known, and the capacity is the power of two that holds them, so that few programs are compiled.
    Of a JAX array it is taken on the device, inside jit too, where the capacity has to be known ahead.

    Arguments:
        ids: integers of any dtype and shape; those outside [0, num_rows) are padding, and read zeros.
        num_rows: the table's rows.
        capacity: how many different indices there is room for. By default, on the host the power of two that holds
            them, on the device the power of two that holds as many as there are indices.

    Returns: UniqueIds(ids, inverse, count), with the property `overflow`.

    Errors:
        TypeError: ids that are no integers.
        ValueError: a capacity below 1; on the host, one that is too small. On the device `overflow` tells, and the rows
            that found no room are NaN.
    """
    ids = integers(ids, "unique_ids")
    if capacity is not None and not (isinstance(capacity, int | np.integer) and capacity >= 1):
        raise ValueError(f"unique_ids: capacity must be an int of at least 1, got {capacity!r}")
    check_num_rows("unique_ids", num_rows, max(ids.size, capacity or 0))
    return _on_device(ids, num_rows, capacity) if isinstance(ids, Array) else _on_host(ids, num_rows, capacity)


def rows_value_and_grad(loss: Callable[..., Any], *, has_aux: bool = False) -> Callable[..., Any]:
    """`jax.value_and_grad` for a loss that takes rows of tables in place of the tables.

    The tables are looked up first, and the loss is differentiated with respect to the rows: the gradient of a table is
    a RowSparse of as many rows as there are ids, and nothing of the table's size is made.

    Arguments:
        loss: `loss(dense, rows, batch)`, a number (with has_aux: a number and anything). `rows` is a tree like `ids`,
            each array of ids of shape s replaced by rows of shape (*s, ...).
        has_aux: whether the loss returns more than its value.

    Returns: a function of (dense, tables, ids, batch), and `state` where rows owe decay, that returns the loss's value
        and (gradients of dense, gradients of tables).
        tables: a table of shape (rows, ...), or a tree of them.
        ids: for each table an array of integers of any shape, a `UniqueIds`, or a tree of these: several look-ups in
            one table make one gradient. Ids outside [0, rows) read zeros and have no gradient.
        state: the optimizer's state, for tables under decay_at="read", whose rows are then read by `sparse.read`.

    Errors: ValueError for ids that do not follow the tables, or a table without ids.
    """

    def value_and_grad(dense: Any, tables: Any, ids: Any, batch: Any = None, state: Any = None) -> Any:
        leaves, treedef = jax.tree.flatten(tables)
        looked = [jax.tree.flatten(i, is_leaf=_is_unique) for i in following("rows_value_and_grad", tables, ids)]
        if not all(each for each, _ in looked):
            raise ValueError("rows_value_and_grad: a table has no ids")
        places = [
            [_places(i, x.shape[0]) if _is_unique(i) else i for i in each]
            for x, (each, _) in zip(leaves, looked, strict=True)
        ]
        gathered = jax.tree.leaves(read(tables, state, treedef.unflatten(places)))

        def of_rows(dense: Any, gathered: list[Array]) -> Any:
            rows = iter(gathered)
            spread = [spec.unflatten([_spread(next(rows), i) for i in each]) for each, spec in looked]
            return loss(dense, treedef.unflatten(spread), batch)

        value, (of_dense, of_gathered) = jax.value_and_grad(of_rows, argnums=(0, 1), has_aux=has_aux)(dense, gathered)
        rows = iter(of_gathered)
        found = lambda p, i, x: whole(RowSparse(p, next(rows), x.shape[0], unique=_is_unique(i)), x)
        grads = [
            RowSparse.concat(*[found(p, i, table) for p, i in zip(at, each, strict=True)])
            for table, at, (each, _) in zip(leaves, places, looked, strict=True)
        ]
        return value, (of_dense, treedef.unflatten(grads))

    return value_and_grad


def value_and_grad(loss: Callable[..., Any], tables: Any, *, has_aux: bool = False) -> Callable[..., Any]:
    """`jax.value_and_grad` for a model as it is, with a RowSparse for the gradient of each table.

    The loss is traced, and where it looks up rows of a table (`table[ids]`, `jnp.take(table, ids, axis=0)`, the Embed
    of Flax, also inside jit and remat, after a cast, under vmap) zeros are added to them, and differentiated in the
    table's place: nothing of the table's size is made, unless all of it is looked up. Where `jax.grad` gives a table g,
    this gives rows whose `todense()` is g, up to the rounding of sums, and of casts of the table, which the gradient
    passes unrounded. The loss is traced, so it cannot branch on values, and jit inside it loses its shardings. Inside
    `shard_map(check_vma=True)` the gradient is that of all devices, as JAX's is.

    Arguments:
        loss: `loss(params, *args, **kwargs)`, a number (with has_aux: a number and anything); `params` is any pytree,
            such as linen's variables, nnx's State, or a module that is one.
        tables: which parameters are tables: a name, for all in whose path it is a key ("embedding"), or several, or a
            prefix tree of bools, or a function of the parameters giving one. A table has shape (rows, ...).
        has_aux: whether the loss returns more than its value.

    Returns: a function of (params, *args, optimizer_state=None, **kwargs) that returns the loss's value and gradients
        in a tree like the parameters: None for leaves that are neither floating nor complex, which are left alone.
        optimizer_state: the optimizer's state, for tables under decay_at="read", whose rows are then read as
            `sparse.read` does.

    Errors:
        TableUse (a ValueError): a table is used in another way, such as a softmax tied to the embedding, or inside scan
            or cond; it names the table, the primitive and the line.
        TypeError: a loss with has_aux that does not give two things, or one with an argument optimizer_state.
        ValueError: no table of that name, or a `tables` that is no such tree.
    """

    if "optimizer_state" in _arguments(loss):
        raise TypeError("value_and_grad: the loss has an argument optimizer_state, which the result takes for itself")

    def evaluate(params: Any, *args: Any, optimizer_state: Any = None, **kwargs: Any) -> Any:
        leaves, treedef = tree_flatten_with_path(params, is_leaf=is_none)
        chosen = _chosen(tables, params, leaves)
        kinds = ["table" if t else "dense" if _is_inexact(x) else "" for (_, x), t in zip(leaves, chosen, strict=True)]
        by_kind = {
            kind: [leaf for leaf, k in zip(leaves, kinds, strict=True) if k == kind] for kind in ("table", "dense", "")
        }
        named = [f"the table at {keystr(path) or 'the root'}" for path, _ in by_kind["table"]]
        debts = debts_of("value_and_grad", by_kind["table"], optimizer_state)
        arrays = [jnp.asarray(x) for _, x in by_kind["table"]]
        dense, rest = ([x for _, x in by_kind[kind]] for kind in ("dense", ""))

        def together(dense: list[Any], of_tables: list[Any], rest: list[Any]) -> Any:
            """A tree like the parameters."""
            left = {"table": iter(of_tables), "dense": iter(dense), "": iter(rest)}
            return treedef.unflatten([next(left[kind]) for kind in kinds])

        def of_leaves(dense: list[Array], arrays: list[Array]) -> Any:
            return loss(together(dense, arrays, rest), *args, **kwargs)

        traced, result = jax.make_jaxpr(of_leaves, return_shape=True)(dense, arrays)
        if has_aux and not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(
                f"value_and_grad: with has_aux the loss must give a value and more, two things, not {shown(result)}"
            )
        jaxpr, of_tables = traced.jaxpr, traced.jaxpr.invars[len(dense) :]
        owing = {number for number, owed in enumerate(debts) if owed is not None}
        todo, given = plan_of(jaxpr, {v: Passed(i) for i, v in enumerate(of_tables)}, named, owing)
        if unpaid := [named[passed.table] for passed in given if passed and passed.table in owing]:
            raise TableUse(f"value_and_grad: the loss gives {unpaid[0]} as it lies, but its rows owe decay")

        def tapped(dense: list[Array], taps: list[Array]) -> Any:
            outs, ids = run(
                jaxpr, traced.consts, [*dense, *arrays], todo, [*zip(arrays, debts, strict=True)], iter(taps)
            )
            out = jax.tree.unflatten(jax.tree.structure(result), outs)
            value, aux = out if has_aux else (out, None)
            return value, (aux, ids)

        grad = jax.value_and_grad(tapped, argnums=(0, 1), has_aux=True)
        (value, (aux, ids)), (of_dense, of_taps) = grad(dense, [blank(lookup.rows) for lookup in todo.lookups])
        none = [RowSparse([], jnp.zeros((0, *x.shape[1:]), x.dtype), x.shape[0]) for x in arrays]
        parts: list[list[RowSparse]] = [[] for _ in arrays]
        for lookup, i, g in zip(todo.lookups, ids, of_taps, strict=True):
            table = arrays[lookup.of.table]
            g = g if jnp.iscomplexobj(table) else g.real
            values = lookup.by_place(g, i).reshape(*i.shape, *table.shape[1:]).astype(table.dtype)
            parts[lookup.of.table].append(whole(RowSparse(i, values, table.shape[0]), table))
        rows = [RowSparse.concat(*(found or [nothing])) for found, nothing in zip(parts, none, strict=True)]
        grads = together(of_dense, rows, [None] * len(rest))
        return ((value, aux) if has_aux else value), grads

    return evaluate


def _arguments(f: Any) -> Any:
    """The names of a function's arguments, as far as they are known."""
    try:
        return inspect.signature(f).parameters
    except (TypeError, ValueError):
        return ()


def _chosen(tables: Any, params: Any, leaves: list[Any]) -> list[bool]:
    """Which leaves of the parameters are tables."""
    names = (tables,) if isinstance(tables, str) else tables
    if isinstance(names, tuple | list) and names and all(isinstance(name, str) for name in names):
        keys = [[keystr((key,), simple=True) for key in path] for path, _ in leaves]
        for name in names:
            if not any(name in path for path in keys):
                found = ", ".join(keystr(path) for path, _ in leaves[:8]) or "none"
                raise ValueError(f"value_and_grad: no parameter has {name!r} in its path; there are {found}")
        chosen = [x is not None and any(n in path for n in names) for (_, x), path in zip(leaves, keys, strict=True)]
    else:
        chosen = expanded_mask("value_and_grad", tables, params, params, "tables")
    chosen = [x is not None and is_table for (_, x), is_table in zip(leaves, chosen, strict=True)]
    for (path, x), is_table in zip(leaves, chosen, strict=True):
        if is_table and not (_is_inexact(x) and jnp.finfo(jnp.result_type(x)).bits >= 16 and np.ndim(x) and len(x)):
            where = keystr(path) or "the root"
            must = "must be floating or complex, of shape (rows, ...)"
            raise ValueError(f"value_and_grad: the table at {where} {must}, got {shown(x)}")
    return chosen


def _is_inexact(x: Any) -> bool:
    numbers = Array | np.ndarray | np.generic | float | complex
    return isinstance(x, numbers) and jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def _places(unique: UniqueIds, num_rows: int) -> Array:
    """The different ids; what is left over is outside this table, also if they were made for a smaller one."""
    left = jnp.arange(unique.ids.shape[0]) >= unique.count
    return jnp.where(left, num_rows, jnp.asarray(unique.ids))


def _is_unique(i: Any) -> bool:
    return isinstance(i, UniqueIds)


def _spread(rows: Array, ids: Any) -> Array:
    """The rows of distinct indices, at each place where one was named; padding reads zeros."""
    if not _is_unique(ids):
        return rows
    inverse = jnp.asarray(ids.inverse)
    spread = rows.at[inverse].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
    return jnp.where(column(inverse < 0, spread), jnp.zeros_like(spread), spread)


def _on_host(ids: np.ndarray, num_rows: int, capacity: int | None) -> UniqueIds:
    inside = (ids >= 0) & (ids < num_rows)
    found, where = np.unique(np.where(inside, ids, num_rows), return_inverse=True)
    count = int(np.sum(found < num_rows))
    if capacity is not None and count > capacity:
        raise ValueError(f"unique_ids: {count} different ids do not fit into a capacity of {capacity}")
    filled = num_rows + np.arange(capacity or _power_of_two(count))
    filled[:count] = found[:count]
    inverse = np.where(inside, where.reshape(ids.shape), -1)
    return UniqueIds(filled.astype(np.int32), inverse.astype(np.int32), count)


def _on_device(ids: Array, num_rows: int, capacity: int | None) -> UniqueIds:
    n = ids.size
    size = capacity or _power_of_two(n)
    filled = num_rows + jnp.arange(size, dtype=jnp.int32)
    if n == 0:
        return UniqueIds(filled, jnp.zeros(ids.shape, jnp.int32), jnp.int32(0))
    flat = known(ids.reshape(n), num_rows)
    ordered, rank, slot = distinct(flat)
    filled = filled.at[jnp.where(ordered < num_rows, rank, size)].set(ordered, mode="drop")
    inverse = jnp.where(flat < num_rows, slot, -1)
    return UniqueIds(filled, inverse.reshape(ids.shape), jnp.max(inverse) + 1)


def _power_of_two(count: int) -> int:
    """The smallest that is at least count."""
    return 1 << max(count - 1, 0).bit_length()
