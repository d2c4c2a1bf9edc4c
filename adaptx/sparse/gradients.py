"""Row gradients: look up first, differentiate with respect to the rows; and each index once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from adaptx.sparse.decay import following, read
from adaptx.sparse.rows import RowSparse, UniqueIds, check_num_rows, column, distinct, integers, known


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
        grads = [
            RowSparse.concat(
                *[RowSparse(p, next(rows), table.shape[0], unique=_is_unique(i)) for p, i in zip(at, each, strict=True)]
            )
            for table, at, (each, _) in zip(leaves, places, looked, strict=True)
        ]
        return value, (of_dense, treedef.unflatten(grads))

    return value_and_grad


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
