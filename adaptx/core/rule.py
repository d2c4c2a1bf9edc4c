"""Rule: an algorithm as equations on ONE array, with what it stores declared beside it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from adaptx.core.moments import Decay
from adaptx.core.rounding import real, wider

Params = Any  # in a State: a tree like the parameters; inside a rule: one array of it
Slot = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Rule:
    """What the lift needs to run an algorithm on a pytree.

    State: a NamedTuple whose first field is `count`; every other field is a slot or a scalar.
    step(g, s, x, t) -> (u, s): the equations, on one array. g is the gradient, x the parameter (None if not given),
        s the State with arrays of this leaf, t the Clock. A rule that needs "learning_rate" emits the signed update.
    slots: field -> how its first value is made from one parameter array; None leaves the field unused.
    scalars: field -> first value of a 0-d number of the whole tree: a number, a random key, or a function of the list
        of parameter arrays (which may be empty). A key reaches each leaf folded with the crc32 of the leaf's path.
    part(g, s, x, t) -> (summands, s): what this leaf adds to the sums over the tree. It sees the old scalars, and a g
        that is not clamped: `sum_sq` clamps it, and shows an Inf. A plain sum costs less. The lift cuts it at what the
        clamp would leave if all entries were huge, which hides an Inf: only where something else shows it.
    advance(s, totals, t) -> s: the new scalars from those sums (None without part); `step` sees the new ones.
    decays: the Decays whose bias corrections are computed once for the whole tree.
    shared(s, t) -> anything: what else is the same on every leaf, from the new scalars; `step` has it as t.shared.
    needs: what `update` must be given: "params", "value", ...; "learning_rate" if the rule owns the rate, which then
        arrives as t.learning_rate, with t.weight_decay (None where masked).
    trees: those of `needs` that come as a tree of real arrays like the gradients: t has the array of this leaf.
    """

    State: Any
    step: Callable[..., Any]
    slots: Mapping[str, Slot | None]
    scalars: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    part: Any = None
    advance: Callable[..., Any] | None = None
    decays: tuple[Decay, ...] = ()
    shared: Callable[..., Any] | None = None
    needs: tuple[str, ...] = ()
    trees: tuple[str, ...] = ()


def accumulator_dtype(x: Any) -> Any:
    """float32 or wider: what a slot like x is stored in."""
    return wider(jnp.float32, jnp.result_type(x))


@dataclasses.dataclass(frozen=True)
class Like:
    """A slot of the parameter's shape, made by full_like, which keeps the sharding of x. A constant in a compiled init
    would lie whole on every device, so there it is made to depend on x."""

    value: Any
    dtype_of: Callable[[Any], Any]

    def __call__(self, x: Any) -> Array:
        full = jnp.full_like(x, self.value, dtype=self.dtype_of(accumulator_dtype(x)))
        return jnp.where(x != x, full, full) if isinstance(x, Tracer) else full


def narrowed(slot: Like, dtype: Any) -> Like:
    """The slot in another dtype; complex numbers stay as they are."""
    kept = lambda own: own if jnp.issubdtype(own, jnp.complexfloating) else jnp.dtype(dtype)
    return Like(slot.value, lambda wide: kept(slot.dtype_of(wide)))


def filled(value: Any) -> Slot:
    """A second moment: like the parameter but real; it starts at a value."""
    return Like(value, real)


zeros: Slot = Like(0, jnp.dtype)  # a first moment: like the parameter, float32 or wider, complex if it is
real_zeros: Slot = filled(0)


def per_tensor(value: Any) -> Slot:
    """One real number for each tensor."""
    return lambda x: jnp.asarray(value, dtype=real(accumulator_dtype(x)))


def copied(x: Any) -> Array:
    """The parameter's first value, in a buffer of its own so that parameters and state can be donated together."""
    return jnp.array(x, dtype=accumulator_dtype(x), copy=True)
