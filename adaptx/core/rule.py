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
    part(g, s, x, t) -> (summands, s): what this leaf adds to the sums over the tree; it sees the old scalars, and a g
        that is not clamped (the lift cuts the sums): for a sum that stays in a slot use `sum_sq`.
    advance(s, totals, t) -> s: the new scalars from those sums (None without part); `step` sees the new ones.
    decays: the Decays whose bias corrections are computed once for the whole tree.
    needs: what `update` must be given: "params", "value", ...; "learning_rate" if the rule owns the rate, which then
        arrives as t.learning_rate, with t.weight_decay (None where masked).
    """

    State: Any
    step: Callable[..., Any]
    slots: Mapping[str, Slot | None]
    scalars: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    part: Any = None
    advance: Callable[..., Any] | None = None
    decays: tuple[Decay, ...] = ()
    needs: tuple[str, ...] = ()


def accumulator_dtype(x: Any) -> Any:
    """float32 or wider: what a slot like x is stored in."""
    return wider(jnp.float32, jnp.result_type(x))


def _full_like(x: Any, value: Any, dtype: Any) -> Array:
    """full_like, which keeps the sharding of x; a constant in a compiled init would lie whole on every device, so there
    it is made to depend on x."""
    full = jnp.full_like(x, value, dtype=dtype)
    return jnp.where(x != x, full, full) if isinstance(x, Tracer) else full


def zeros(x: Any) -> Array:
    """A first moment: like the parameter, float32 or wider, complex if it is."""
    return _full_like(x, 0, accumulator_dtype(x))


def filled(value: Any) -> Slot:
    """A second moment: like the parameter but real; it starts at a value."""
    return lambda x: _full_like(x, value, real(accumulator_dtype(x)))


real_zeros: Slot = filled(0)


def per_tensor(value: Any) -> Slot:
    """One real number for each tensor."""
    return lambda x: jnp.asarray(value, dtype=real(accumulator_dtype(x)))


def copied(x: Any) -> Array:
    """The parameter's first value, in a buffer of its own so that parameters and state can be donated together."""
    return jnp.array(x, dtype=accumulator_dtype(x), copy=True)
