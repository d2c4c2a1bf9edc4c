"""lazy_rows: any transformation whose state has a row for each row of a table, run on the rows that a gradient has."""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import optax
import optax.contrib

from adaptx.core import checks
from adaptx.core.lift import initialised
from adaptx.core.registry import OPTIMIZERS
from adaptx.sparse.rows import flattened, is_rows, matching_tables, put, take

# Transformations that mix rows, or keep something of a row for later, though their state has the table's shape.
_KEEPS = "keeps a row's gradient until the row is used again; join gradients by RowSparse.concat"
_MIXES = {
    optax.MultiStepsState: f"MultiSteps {_KEEPS}",
    optax.ApplyEvery: f"apply_every {_KEEPS}",
    optax.contrib.SAMState: "sam leaves the rows of its adversarial step where they are, if the next does not use them",
    optax.contrib.MuonState: "muon turns a whole matrix; put lazy_rows on the tables alone, by optax.multi_transform",
}


def lazy_rows(inner: optax.GradientTransformation, *, on_dense: str = "inner") -> optax.GradientTransformationExtraArgs:
    """`inner` on the rows that a gradient has: a step costs what the rows cost, whatever the table's size.

    In each RowSparse leaf equal indices are summed. Then the rows of those indices are gathered from the parameters and
    from every part of the state that has a row for each of theirs; `inner` steps on these small arrays; its rows go
    back in place, and its update is again a RowSparse. The state is `inner`'s own, of the table's size.

    A row that is not in the gradient keeps its parameters and its state: it is absent, which is not a gradient of zero.
    For a rule that a zero gradient leaves alone (SGD, AdaGrad, row-wise AdaGrad, FTRL) that is the dense step exactly;
    for one with memory (momentum, averages, decay) it is its lazy form, in which a row's clock stands still while the
    row is not used. A norm over the tree, as in `optax.clip_by_global_norm`, is the dense one. Optax's norms and means
    over one tensor are not: `optax.lamb`'s span the used rows (`sparse.lamb_rows` takes them row by row), and means, as
    in `optax.clip_by_block_rms`, count padding too.

    The step must be jitted with parameters and state donated and returned in the order they came; otherwise XLA copies
    the table. `sparse.check_in_place` looks.

    Arguments:
        inner: a transformation whose state for a parameter of shape (rows, ...) has shape (rows, ...), or (rows,).
        on_dense: what becomes of leaves that are ordinary arrays: "inner" steps on them too, in the same call; "pass"
            returns them as they came and leaves their state alone.

    Errors:
        ValueError: in init, an `inner` whose state is not of that shape, or one that is known to mix rows (a registered
            rule that looks further than one element, muon) or to keep rows for later (MultiSteps, apply_every, sam);
            in update, rows of another table than the parameter or the state is.
    """
    if on_dense not in ("inner", "pass"):
        raise ValueError(f"lazy_rows: on_dense must be 'inner' or 'pass', got {on_dense!r}")
    if isinstance(inner, optax.MultiSteps):
        raise ValueError(f"lazy_rows: {_MIXES[optax.MultiStepsState]}")
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(f"lazy_rows: inner must be an optax transformation, got {type(inner).__name__}")
    tx = optax.with_extra_args_support(inner)

    def init(params: Any) -> Any:
        _check_rows(tx, params)
        return tx.init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        leaves, treedef, numbers = flattened(updates)
        rows = {i: g.coalesce() for i, g in enumerate(leaves) if is_rows(g)}
        passed = {i for i, g in enumerate(leaves) if i not in rows and g is not None} if on_dense == "pass" else set()

        def compact(i: int, whole: Any) -> Any:
            """What `inner` sees of leaf i, or of the state that follows it."""
            if i in passed:
                return optax.MaskedNode()
            return take(whole, rows[i].indices) if i in rows and not is_rows(whole) else whole

        xs = None
        if params is not None:
            found = matching_tables("lazy_rows", leaves, numbers, params)
            xs = treedef.unflatten([_values(compact(i, x)) for i, x in enumerate(found)])
        try:
            owners = _owners(tx, state, treedef)
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                "lazy_rows: gradients and state differ as trees; is it the state that init gave?"
            ) from None
        gs = treedef.unflatten([_values(compact(i, rows.get(i, g))) for i, g in enumerate(leaves)])
        whole, statedef = jax.tree.flatten(state)
        for i, a in zip(owners, whole, strict=True):
            if i in rows and a.shape[:1] != rows[i].shape[:1]:
                found = f"has {rows[i].num_rows} rows, the state {a.shape[0]}"
                raise ValueError(f"lazy_rows: the table of the gradient at {checks.paths(numbers)[i]} {found}")
        us, new = tx.update(gs, statedef.unflatten(map(compact, owners, whole)), xs, **extra)

        def restored(i: int, old: Any, part: Any) -> Any:
            """The whole of a state array, with its new rows."""
            if i in passed:
                return old
            return put(old, rows[i].indices, part) if i in rows else part

        us = [
            leaves[i] if i in passed else rows[i].with_values(u) if i in rows else u
            for i, u in enumerate(treedef.flatten_up_to(us))
        ]
        parts = statedef.flatten_up_to(new)
        return treedef.unflatten(us), statedef.unflatten(map(restored, owners, whole, parts))

    return optax.GradientTransformationExtraArgs(init, update)


def _values(x: Any) -> Any:
    """Rows that were gathered before, as the array that `inner` sees."""
    return x.values if is_rows(x) else x


def _owners(tx: optax.GradientTransformation, state: Any, treedef: Any) -> list[int]:
    """For each array of the state the number of the parameter that it follows; -1 for none (a count)."""
    numbers = treedef.unflatten(range(treedef.num_leaves))
    masked = lambda x: x is None or isinstance(x, optax.MaskedNode)
    owner = lambda leaf, i: leaf if masked(leaf) else i
    none = lambda value: jax.tree.map(lambda _: -1, value)
    return jax.tree.leaves(
        optax.tree_utils.tree_map_params(tx.init, owner, state, numbers, transform_non_params=none, is_leaf=masked)
    )


def _check_rows(tx: optax.GradientTransformation, params: Any) -> None:
    """Refuses an inner transformation that cannot run on some rows of a parameter."""
    checks.check_inexact("lazy_rows", "parameter", params)
    leaves, treedef = jax.tree.flatten(params)
    # Every first axis gets a length that no other axis has, so that a state array shows whether it follows it.
    rows = 1 + max((d for x in leaves for d in x.shape), default=0)
    probe = [jax.ShapeDtypeStruct((rows, *x.shape[1:]) if x.ndim else (), x.dtype) for x in leaves]
    with _initialised(_refuse_wide):
        state = jax.eval_shape(tx.init, treedef.unflatten(probe))
    for kind, why in _MIXES.items():
        if any(isinstance(s, kind) for s in jax.tree.leaves(state, is_leaf=lambda s, kind=kind: isinstance(s, kind))):
            raise ValueError(f"lazy_rows: {why}")
    wrong = "some"
    try:
        owners = _owners(tx, state, treedef)
        arrays = jax.tree_util.tree_flatten_with_path(state)[0]
        for i, (path, a) in zip(owners, arrays, strict=True):
            if i >= 0 and probe[i].shape and (a.shape[:1] != (rows,) or rows in a.shape[1:]):
                wrong = f"{jax.tree_util.keystr(path)} of shape {tuple('rows' if d == rows else d for d in a.shape)}"
                break
        else:
            return
    except (ValueError, TypeError, KeyError):
        pass  # state that is no tree like the parameters
    raise ValueError(
        f"lazy_rows: the state of inner must have a row for each row of a parameter, but {wrong} has not; "
        "give such parameters to it outside lazy_rows, by optax.multi_transform"
    )


@contextlib.contextmanager
def _initialised(visit: Any) -> Any:
    """Inside, every rule that is initialised is reported to `visit` by name."""
    token = initialised.set(visit)
    try:
        yield
    finally:
        initialised.reset(token)


def _refuse_wide(name: str) -> None:
    """A registered rule must look at one element at a time."""
    for entry in OPTIMIZERS.values():
        named = name == entry.name or (entry.direction is not None and name == entry.direction.__name__)
        if named and any(reach != "element" for reach in entry.reduces):
            reach = next(reach for reach in entry.reduces if reach != "element")
            raise ValueError(
                f"lazy_rows: {name} looks at the whole {reach}, of which it would see the used rows only; "
                "allowed are rules that look at one element at a time"
            )
