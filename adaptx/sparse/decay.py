"""Decoupled decay that is exact for rows that are not used: paid when they are read."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.tree_util import keystr, tree_flatten_with_path

from adaptx.core.checks import aligned, expanded_mask, is_none, paths
from adaptx.core.descent import rate_at
from adaptx.core.rounding import noise, salted, stochastic, wider
from adaptx.core.rule import Params
from adaptx.sparse.rows import UniqueIds, column, flattened, integers, is_rows, known, matching_tables, put, take


class ReadDecayState(NamedTuple):
    """An optimizer's state beside what its tables still owe.

    A row owes prod(1 - learning_rate weight_decay) over the steps since it was last written; a step with
    learning_rate weight_decay >= 1 leaves as good as nothing. The logarithm of that product from the first step on is
    one number, kept in two parts so that it loses nothing in long runs.
    """

    inner: Any
    log_decay: Array  # (2,): the sum of log(1 - learning_rate weight_decay) so far, its high part and the rest
    paid: Params  # for each decayed parameter (rows, 2): log_decay when the row was last written; None for the others


def decay_at_read(
    tx: optax.GradientTransformationExtraArgs, learning_rate: Any, weight_decay: Any, mask: Any
) -> optax.GradientTransformationExtraArgs:
    """`tx`, which decays the rows that it steps on by itself; the others owe, until `read` or `flush`."""

    def init(params: Any) -> ReadDecayState:
        leaves, treedef = jax.tree.flatten(params, is_leaf=is_none)
        on = expanded_mask("decay_at_read", mask, params, params)
        # From the sum of each row, so that what is owed lies on the devices that its rows lie on.
        blank = lambda x: jnp.stack([jnp.zeros_like(jnp.sum(x, range(1, x.ndim)), jnp.float32)] * 2, -1)
        abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in leaves)
        make = (lambda x: jax.eval_shape(blank, x)) if abstract else blank
        owes = [decayed and x is not None for x, decayed in zip(leaves, on, strict=True)]
        paid = treedef.unflatten([make(x) if owed else None for x, owed in zip(leaves, owes, strict=True)])
        return ReadDecayState(tx.init(params), jax.eval_shape(_none_yet) if abstract else _none_yet(), paid)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, ReadDecayState]:
        if params is None:
            raise ValueError("decay_at_read: update needs params; call update(grads, state, params, ...) with it")
        if not isinstance(state, ReadDecayState):
            raise TypeError(f"decay_at_read: the state must be the ReadDecayState of init, got {type(state).__name__}")
        gs, treedef, numbers = flattened(updates)
        stored = matching_tables("decay_at_read", gs, numbers, params)
        paid = aligned("decay_at_read", numbers, state.paid, "state field `paid`")
        gs = [g.coalesce() if is_rows(g) else g for g in gs]

        def as_read(g: Any, x: Any, p: Any) -> Any:
            """What `tx` sees as parameters."""
            if is_rows(g):
                return g.with_values(_read(x, p, state.log_decay, g.indices))
            return x if g is None or p is None else x * _factor(state.log_decay, p, x)

        xs = [as_read(g, x, p) for g, x, p in zip(gs, stored, paid, strict=True)]
        count = optax.tree_utils.tree_get(state.inner, "count")
        rate = jnp.asarray(rate_at(learning_rate, count) * rate_at(weight_decay, count), jnp.float32)
        us, inner = tx.update(treedef.unflatten(gs), state.inner, treedef.unflatten(xs), **extra)
        step = jnp.log1p(-jnp.minimum(rate, 1 - 2**-24))  # of a row that a step decays to nothing 2^-24 is left
        now = _added(state.log_decay, step)

        def settled(g: Any, p: Any, u: Any) -> Any:
            """When each row was last written."""
            if p is None:
                return None
            if g is None:  # left alone: owes nothing new
                return _added(p, jnp.broadcast_to(step, p.shape[:-1]))
            if not is_rows(g):
                return jnp.broadcast_to(now, p.shape)
            # Always so, as the sum only falls, but for a NaN: what is written must follow from all that was read, or
            # XLA copies the whole.
            old = take(p, g.indices)
            due = (old[:, 0] >= now[0]) & ~jnp.isnan(jnp.sum(u.values, tuple(range(1, u.ndim))))
            return put(p, g.indices, jnp.where(due[:, None], jnp.broadcast_to(now, old.shape), old))

        def from_stored(u: Any, x: Any, old: Any) -> Any:
            """The way from what lies in the table to what was read and stepped on."""
            if is_rows(u):
                return u.with_values(u.values + (x.values - take(old, u.indices).astype(x.dtype)))
            return u if u is None or x is old else u + (x - old.astype(x.dtype))

        us = [from_stored(u, x, old) for u, x, old in zip(treedef.flatten_up_to(us), xs, stored, strict=True)]
        paid = [settled(g, p, u) for g, p, u in zip(gs, paid, us, strict=True)]
        return treedef.unflatten(us), ReadDecayState(inner, now, treedef.unflatten(paid))

    return optax.GradientTransformationExtraArgs(init, update)


def read(params: Any, state: Any, ids: Any) -> Any:
    """The rows of tables as they are after all decay: what a forward pass must see under `decay_at="read"`.

    Arguments:
        params: a table, or a tree of tables, of shape (rows, ...).
        state: the optimizer's state, whole, also inside a chain or a `multi_transform`; a table is found in it by its
            path in the parameters, or by the end of it. A state without such decay reads tables as they lie.
        ids: for each table an array of integers of any shape, or a tree of such; outside [0, rows) the rows are zeros.

    Returns: for each array of ids the rows, of shape (*ids.shape, ...), float32 or wider where decay is owed.

    Errors: ValueError for trees that do not fit, or a table that the state does not have, or has in several places.
    """
    tables, treedef = tree_flatten_with_path(params)
    owed = debts_of("read", tables, state)
    looked = following("read", params, ids)
    if any(isinstance(i, UniqueIds) for i in jax.tree.leaves(looked, is_leaf=lambda i: isinstance(i, UniqueIds))):
        raise TypeError("read: ids must be integers; of UniqueIds give `.ids`")
    rows = zip(tables, owed, looked, strict=True)
    return treedef.unflatten([jax.tree.map(functools.partial(_looked_up, x, o), below) for (_, x), o, below in rows])


def following(name: str, tables: Any, ids: Any) -> list[Any]:
    """For each table what stands in its place in `ids`."""
    try:
        return jax.tree.structure(tables).flatten_up_to(ids)
    except (ValueError, TypeError, KeyError):
        raise ValueError(
            f"{name}: ids must be a tree like the tables, with ids at {', '.join(paths(tables))}"
        ) from None


def flush(params: Any, state: Any, seed: int | None = None) -> tuple[Any, Any]:
    """Parameters and state with all decay paid: what to evaluate, export or hand to another optimizer.

    It walks the whole tables; the training loop needs `read` only. Without such decay both come back as they are.

    Arguments:
        params, state: those that the optimizer was given and has given, whole.
        seed: rounds bfloat16 tables up or down at random, with the right mean (give another seed each time); None = to
            nearest, which loses what is small each time.

    Errors: ValueError for parameters that are not all those of the state.
    """
    found, treedef = tree_flatten_with_path(params)
    debts = {path: owed for path, owed in _debts(state).items() if owed[1] is not None}
    ours = [_path(path) for path, _ in found]
    if missing := [path for path in debts if path not in ours]:
        raise ValueError(f"flush: the state is of other parameters, or of more: {', '.join(missing)} must be there too")
    new = []
    for path, (_, x) in zip(ours, found, strict=True):
        if path not in debts:
            new.append(x)
            continue
        decay, paid = debts[path]
        _check_table("flush", path, x, paid)
        left = x * _factor(decay, paid, x)
        if seed is not None and x.dtype == jnp.bfloat16:
            drawn = noise(x.shape, salted(seed, jnp.int32(0), path))
            left = stochastic(left.astype(jnp.float32), x.dtype, drawn)
        new.append(left.astype(x.dtype))
    every = lambda decay, paid: jax.tree.map(lambda p: jnp.broadcast_to(decay, p.shape), paid)
    settle = lambda s: s._replace(paid=every(jax.tree.leaves(s.log_decay)[0], s.paid)) if _is_decayed(s) else s
    return treedef.unflatten(new), jax.tree.map(settle, state, is_leaf=_is_decayed)


def _looked_up(x: Any, owed: tuple[Array, Array] | None, ids: Any) -> Array:
    """Rows by ids of any shape."""
    indices = known(integers(ids, "read"), x.shape[0])
    decay, paid = owed or (None, None)
    return _read(x, paid, decay, indices)


def _read(x: Array, paid: Any, decay: Any, indices: Array) -> Array:
    """Rows as they are after the decay that they owe."""
    rows = take(x, indices, unique=False)
    if paid is None:
        return rows
    rows = rows.astype(wider(jnp.float32, x.dtype))
    return rows * _factor(decay, take(paid, indices, unique=False), rows)


def left(owed: tuple[Array, Array], indices: Array) -> Array:
    """What the decay that is owed leaves of each row, of the indices' shape; 1 where there is no row."""
    decay, paid = owed
    indices = known(indices, paid.shape[0])
    factor = _factor(decay, take(paid, indices, unique=False), indices.astype(jnp.float32))
    return jnp.where(indices < paid.shape[0], factor, 1)


def _factor(decay: Array, paid: Array, rows: Array) -> Array:
    """What is left of rows that were written at `paid`; shaped to multiply with them."""
    owed = jnp.broadcast_to(decay, paid.shape) - paid
    left = jnp.exp(owed[..., 0] + owed[..., 1])
    return column(left, rows).astype(wider(jnp.float32, rows.real.dtype))


def _added(total: Array, step: Array) -> Array:
    """A sum of two parts with one more number: what rounding takes from the first part is kept in the second."""
    high, low = total[..., 0], total[..., 1]
    new = high + step
    of_step = new - high
    low = low + ((high - (new - of_step)) + (step - of_step))
    high = new + low
    return jnp.stack([high, low - (high - new)], axis=-1)


def _none_yet() -> Array:
    return jnp.zeros(2, jnp.float32)


def _is_decayed(s: Any) -> bool:
    return isinstance(s, ReadDecayState)


def _path(path: Any) -> str:
    """Where a parameter stands; nnx keeps each array of a state in a variable, as its value."""
    return keystr(path).removesuffix(".value")


def _debts(state: Any) -> dict[str, tuple[Array, Any]]:
    """For each parameter of an optimizer with decay at read: log_decay, and the paid array, None where masked."""
    debts = {}
    for s in filter(_is_decayed, jax.tree.leaves(state, is_leaf=_is_decayed)):
        (decay,) = jax.tree.leaves(s.log_decay)
        debts |= {_path(path): (decay, paid) for path, paid in tree_flatten_with_path(s.paid, is_leaf=is_none)[0]}
    return debts


def debts_of(name: str, tables: list[Any], state: Any) -> list[Any]:
    """What each table, given with its path, owes: found by the whole path where these are all the tables, else by the
    end of it."""
    debts, ours = _debts(state), [_path(path) for path, _ in tables]
    owed = []
    for path, (_, x) in zip(ours, tables, strict=True):
        ends = [p for p in debts if (p == path if {*ours} == debts.keys() else p.endswith(path))]
        if debts and len(ends) != 1:
            found = f"may be any of {', '.join(ends)} in the state" if ends else "is not in the state"
            raise ValueError(
                f"{name}: the table at {path or 'the root'} {found}; give it by its path in the parameters"
            )
        decay, paid = debts[ends[0]] if ends else (None, None)
        _check_table(name, path, x, paid)
        owed.append(None if paid is None else (decay, paid))
    return owed


def _check_table(name: str, path: str, x: Any, paid: Any) -> None:
    if not getattr(x, "ndim", 0):
        raise ValueError(f"{name}: the table at {path or 'the root'} has no rows")
    if paid is not None and paid.shape[0] != x.shape[0]:
        found = f"has {x.shape[0]} rows, in the state {paid.shape[0]}"
        raise ValueError(f"{name}: the table at {path or 'the root'} {found}")
