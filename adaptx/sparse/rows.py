"""RowSparse: the gradient of a table of which few rows were used."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import ShapedArray
from jax.sharding import PartitionSpec

from adaptx.core.checks import aligned, paths, shown
from adaptx.core.rounding import wider

_INT32 = 2**31 - 1
_MARK = np.uint32(0x726F7773)  # in the second word of each index: it was put there on purpose
# Before jax 0.8 no all-gather is known to give the same on all devices.
_REPLICATED: Any = {"to": "invarying"} if "to" in inspect.signature(jax.lax.all_gather).parameters else {}
_HINTS: Any = {"wrap_negative_indices": False}  # `known` has left none


@jax.tree_util.register_pytree_with_keys_class
class RowSparse:
    """Rows of a gradient, or of an update, and where they belong: `table[indices[i]]` gets `values[i]`.

    Rows of one index add up; an index outside [0, num_rows) is dropped everywhere (-1 is padding, not the last row).
    It stands in a tree where the table stands. `optax.apply_updates`, `masked`, `multi_transform`, Flax's TrainState
    and nnx.Optimizer take it as it is; an optimizer takes it inside `lazy_rows`. Other arithmetic raises: the indices
    are kept as a typed array, which cannot be scaled, clipped, cast or added to.

    Arguments:
        indices: integers of any dtype and shape, here (n,) or (batch, length); kept as one vector.
        values: the rows, of shape (*indices.shape, *row).
        num_rows: the table's rows, static, from 1 to 2^31 - 1 less the number of indices.
        unique: promises that no index within [0, num_rows) is there twice; static. `coalesce` and `unique_ids` see to
            it.

    Errors:
        TypeError: indices that are no integers, values that are neither floating nor complex.
        ValueError: shapes that do not fit, too many rows.
    """

    __array_ufunc__ = None  # a numpy table leaves `table + rows` to __radd__

    values: Any  # (n, *row)
    num_rows: int
    unique: bool

    def __init__(self, indices: Any, values: Any, num_rows: int, *, unique: bool = False) -> None:
        indices = integers(indices, "RowSparse", "indices")
        values = jnp.asarray(values)
        if not (jnp.issubdtype(values.dtype, jnp.inexact) and jnp.finfo(values.dtype).bits >= 16):
            raise TypeError(f"RowSparse: values must be floating or complex, got {values.dtype}")
        if values.shape[: indices.ndim] != indices.shape:
            raise ValueError(
                f"RowSparse: values of shape {values.shape} do not begin with {indices.shape}, the indices'"
            )
        check_num_rows("RowSparse", num_rows, indices.size)
        indices, values = _gathered(indices, indices.ndim), _gathered(values, indices.ndim)
        n, row = indices.size, values.shape[indices.ndim :]
        self._set(known(indices.reshape(n), int(num_rows)), values.reshape(n, *row), int(num_rows), bool(unique))

    def _set(self, indices: Array, values: Array, num_rows: int, unique: bool) -> RowSparse:
        """Fields as they are; indices int32 of shape (n,), none negative."""
        self._keys = _locked(indices)
        self.values, self.num_rows, self.unique = values, num_rows, unique
        return self

    @property
    def indices(self) -> Array:
        """int32 of shape (n,); what is to be dropped is num_rows or more."""
        words = jax.random.key_data(self._keys)
        # What `zeros_like` makes of the typed array is no index, and so is dropped.
        return jnp.where(words[..., 1] == _MARK, words[..., 0].astype(jnp.int32), self.num_rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """The table's."""
        return (self.num_rows, *self.values.shape[1:])

    @property
    def dtype(self) -> Any:
        """The values'."""
        return self.values.dtype

    @property
    def ndim(self) -> int:
        """The table's."""
        return self.values.ndim

    def __repr__(self) -> str:
        try:
            rows = f"{self.dtype}{list(self.values.shape)} of {self.num_rows} rows"
        except AttributeError:  # in the middle of a tree operation the leaves may be anything
            rows = repr(self.values)
        return f"RowSparse({rows}{', unique' * self.unique})"

    def __getitem__(self, index: Any) -> RowSparse:
        """`rows[...]`, all of it, as nnx reads a variable."""
        if index is not Ellipsis:
            allowed = "rows[...], all of it; for others index rows.values or rows.todense()"
            raise TypeError(f"RowSparse: the index must be {allowed}; got {shown(index)}")
        return self

    def with_values(self, values: Array) -> RowSparse:
        """Other rows in the same places."""
        return object.__new__(RowSparse)._set(self.indices, values, self.num_rows, self.unique)

    def coalesce(self) -> RowSparse:
        """Each index once, with the sum of its rows in float32 or wider; ascending, unless `unique` was promised.

        n stays: what is left over gets the distinct indices num_rows, num_rows + 1, ... and zeros, as does what was
        dropped, so that no NaN in it reaches a norm.
        """
        indices, values = self.indices, self.values.astype(wider(jnp.float32, self.dtype))
        n = indices.shape[0]
        places = jnp.arange(n, dtype=jnp.int32)
        if n and not self.unique:
            ordered, rank, slot = distinct(indices)
            values = jnp.zeros_like(values).at[slot].add(values, **_HINTS, **_lies(values))
            indices = jnp.full(n, self.num_rows, jnp.int32).at[rank].set(ordered, indices_are_sorted=True)
        kept = indices < self.num_rows
        indices = jnp.where(kept, indices, self.num_rows + places)
        values = jnp.where(column(kept, values), values, jnp.zeros_like(values))
        return object.__new__(RowSparse)._set(indices, values, self.num_rows, True)

    def todense(self) -> Array:
        """The table's gradient as one array, in the values' dtype."""
        return (jnp.zeros(self.shape, wider(jnp.float32, self.dtype)) + self).astype(self.dtype)

    @classmethod
    def concat(cls, *parts: RowSparse) -> RowSparse:
        """One gradient of several: of two look-ups in one table, of micro-batches, of devices.

        What a scan stacked, or an all-gather of `indices` and of `values` brought, is joined by the constructor, which
        takes indices of any shape.

        Errors: TypeError for what is no RowSparse; ValueError for no parts, or for parts of different tables.
        """
        for part in parts:
            if not isinstance(part, RowSparse):
                raise TypeError(f"RowSparse.concat: the parts must be RowSparse, got {type(part).__name__}")
        shapes = dict.fromkeys(part.shape for part in parts)
        if len(shapes) != 1:
            raise ValueError(f"RowSparse.concat: the parts must be of one table, got tables of {list(shapes)}")
        if len(parts) == 1:
            return parts[0]
        width = wider(*(part.dtype for part in parts))
        values = jnp.concatenate([part.values.astype(width) for part in parts])
        return cls(jnp.concatenate([part.indices for part in parts]), values, parts[0].num_rows)

    def __radd__(self, table: Any) -> Array:
        """table + rows: the table with those rows added, each sum rounded once to the table's dtype."""
        if not isinstance(table, Array | np.ndarray):
            return NotImplemented  # also another RowSparse: concat says what is meant
        table = jnp.asarray(table)
        if table.shape != self.shape:
            raise ValueError(
                f"RowSparse: rows of a table of shape {self.shape} cannot be added to one of {table.shape}"
            )
        rows = self.coalesce()
        if not jnp.issubdtype(table.dtype, jnp.inexact) or jnp.iscomplexobj(table) < jnp.iscomplexobj(rows.values):
            raise TypeError(f"RowSparse: rows of {rows.dtype} cannot be added to a table of {table.dtype}")
        width = wider(table.dtype, rows.dtype)
        # Written by set, not add: XLA then sees that the old rows are read first, and writes in place.
        return put(table, rows.indices, take(table, rows.indices).astype(width) + rows.values.astype(width))

    def tree_flatten_with_keys(self) -> Any:
        """The typed indices and the rows are the leaves."""
        key = jax.tree_util.GetAttrKey
        return ((key("indices"), self._keys), (key("values"), self.values)), (self.num_rows, self.unique)

    @classmethod
    def tree_unflatten(cls, static: tuple[int, bool], leaves: Any) -> RowSparse:
        """Whatever a tree operation has made of the leaves."""
        rows = object.__new__(cls)
        rows._keys, rows.values = leaves
        rows.num_rows, rows.unique = static
        return rows


class UniqueIds(NamedTuple):
    """Each index once, as `unique_ids` gives them."""

    ids: Any  # int32 (capacity,), ascending; what is left over holds num_rows, num_rows + 1, ...
    inverse: Any  # int32, of the shape of the indices: where each of them is in `ids`; -1 for padding
    count: Any  # how many different ones there are; more than the capacity: it was too small

    @property
    def overflow(self) -> Any:
        """Whether the capacity was too small. What found no room reads NaN, so that the loss shows it."""
        return self.count > self.ids.shape[0]


def integers(ids: Any, name: str, what: str = "ids") -> Any:
    """Ids as a JAX array, if they are one, or a NumPy array, which keeps 64 bits."""
    ids = ids if isinstance(ids, Array) else np.asarray(ids)
    if ids.size == 0 and not isinstance(ids, Array):
        ids = ids.astype(np.int32)  # of an empty list
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"{name}: {what} must be integers, got {ids.dtype}")
    return ids


def check_num_rows(name: str, num_rows: Any, ids: int) -> None:
    """A table has rows, and int32 counts them and the places of what is dropped."""
    number = isinstance(num_rows, int | np.integer) and not isinstance(num_rows, bool)
    if not (number and 1 <= num_rows <= _INT32 - ids):
        raise ValueError(f"{name}: num_rows must be an int from 1 to 2^31 - 1 less {ids} ids, got {num_rows!r}")


def known(indices: Any, num_rows: int) -> Array:
    """Indices as int32, those outside [0, num_rows) as num_rows; compared in their own dtype, before int32 wraps."""
    if not isinstance(indices, Array):
        indices = np.where((indices < 0) | (indices >= num_rows), num_rows, indices).astype(np.int32)
        return jnp.asarray(indices)
    if num_rows > jnp.iinfo(indices.dtype).max:  # all of them fit; the comparison would not
        return jnp.where(indices < 0, num_rows, indices.astype(jnp.int32))
    outside = (indices < 0) | (indices >= jnp.asarray(num_rows, indices.dtype))
    return jnp.where(outside, num_rows, indices.astype(jnp.int32))


def distinct(indices: Array) -> tuple[Array, Array, Array]:
    """Indices in order; the rank of each among the different ones; and the rank of each as it stood before.

    Sorting alone and looking the places up takes a quarter of the time of sorting with the places.
    """
    ordered = jnp.sort(indices)
    first = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
    rank = jnp.cumsum(first, dtype=jnp.int32) - 1
    return ordered, rank, rank[jnp.searchsorted(ordered, indices)]


def _locked(indices: Array) -> Array:
    """Indices as a typed array (of the kind of random keys, the only public one): it can be indexed and moved, not
    computed with."""
    words = jnp.stack([indices.astype(jnp.uint32), jnp.full(indices.shape, _MARK)], axis=-1)
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def take(table: Array, indices: Array, unique: bool = True) -> Array:
    """The rows of some indices, by default distinct ones; zeros where an index is outside."""
    table = jnp.asarray(table)
    lies = _lies(table, indices)
    return table.at[indices].get(mode="fill", fill_value=0, unique_indices=unique, **_HINTS, **lies)


def put(table: Array, indices: Array, rows: Array) -> Array:
    """The table with the rows of distinct indices replaced; nothing where an index is outside."""
    rows = rows.astype(table.dtype)
    return table.at[indices].set(rows, mode="drop", unique_indices=True, **_HINTS, **_lies(table))


def _lies(table: Array, indices: Any = None) -> dict[str, Any]:
    """On a mesh of explicit axes, where the result of an indexed operation lies: as the table does, or, for a look-up,
    as the indices and the table's rows do. Elsewhere nothing need be said."""
    _, *row = spec = jax.typeof(table).sharding.spec
    looked_up = spec[:1] if indices is None else jax.typeof(indices).sharding.spec
    row = [None if axis in looked_up else axis for axis in row]
    return {"out_sharding": PartitionSpec(*looked_up, *row)} if any((*spec, *looked_up)) else {}


def _gathered(x: Any, ndim: int) -> Any:
    """On a mesh of explicit axes, ids or rows that all devices have, however a batch's axes were split; a row may stay
    split. Where axes are not explicit the compiler does it."""
    if not isinstance(x, Array) or not any((spec := jax.typeof(x).sharding.spec)[:ndim]):
        return x
    return jax.sharding.reshard(x, PartitionSpec(*[None] * ndim, *spec[ndim:]))


def varying(x: Any) -> tuple[str, ...]:
    """The axes of `shard_map` over which an array differs from device to device, where JAX keeps count of it."""
    aval = x if isinstance(x, ShapedArray) else jax.typeof(x)
    axes = aval.manual_axis_type.varying if hasattr(aval, "manual_axis_type") else getattr(aval, "vma", ())
    return tuple(sorted(axes))


def vary(x: Array, axes: Any) -> Array:
    """The array, counted as different from device to device over these axes too."""
    axes = tuple(axis for axis in axes if axis not in varying(x))
    lax: Any = jax.lax  # jax 0.7 has pvary for what is pcast now
    if not axes:
        return x
    return lax.pcast(x, axes, to="varying") if hasattr(lax, "pcast") else lax.pvary(x, axes)


def blank(aval: Any, dtype: Any = None) -> Array:
    """Zeros like an abstract array: on a mesh of explicit axes they lie as it does, and they vary over its devices."""
    device = aval.sharding if any(aval.sharding.spec) else None
    return vary(jnp.zeros(aval.shape, dtype or aval.dtype, device=device), varying(aval))


def of_all_devices(rows: RowSparse, axes: Any) -> RowSparse:
    """The rows of all devices over axes of `shard_map`, the same on each."""
    gather = lambda a: jax.lax.all_gather(a, axes, **_REPLICATED)
    return RowSparse(gather(rows.indices), gather(rows.values), rows.num_rows)


def whole(rows: RowSparse, table: Array) -> RowSparse:
    """A table's gradient of all devices, where `shard_map` keeps count of what differs between them and the table does
    not: there JAX adds up dense gradients too."""
    axes = tuple(axis for axis in varying(rows.values) if axis not in varying(table))
    if not axes:
        return rows
    return of_all_devices(RowSparse(vary(rows.indices, axes), rows.values, rows.num_rows), axes)


def column(v: Array, like: Array) -> Array:
    """A number for each row (or for each place where one is named), shaped to meet the rows."""
    return v.reshape(*v.shape, *[1] * (like.ndim - v.ndim))


def is_rows(x: Any) -> bool:
    """A leaf that is a RowSparse."""
    return isinstance(x, RowSparse)


def flattened(updates: Any) -> tuple[list[Any], Any, Any]:
    """Leaves, which may be None or RowSparse; their structure; and a tree with the number of each in its place."""
    leaves, treedef = jax.tree.flatten(updates, is_leaf=lambda g: g is None or is_rows(g))
    return leaves, treedef, treedef.unflatten(range(len(leaves)))


def matching_tables(name: str, leaves: list[Any], numbers: Any, params: Any) -> list[Any]:
    """The parameter of each leaf; a RowSparse is of its shape."""
    found = aligned(name, numbers, params, "parameters")
    for g, x, path in zip(leaves, found, paths(numbers), strict=True):
        if is_rows(g) and g.shape != x.shape:
            raise ValueError(
                f"{name}: the gradient at {path} is of a table of shape {g.shape}, its parameter has {x.shape}"
            )
    return found
