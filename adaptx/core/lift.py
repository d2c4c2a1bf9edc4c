"""Lift: a Rule on one array, and a Descent, become an Optax transformation of a pytree.

All that is not the algorithm lives here, once: trees, None leaves, the count, working precision, the clamp of extreme
gradients, sums over the tree, the casts back, and the checks.
"""

import functools
import zlib
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core import checks
from adaptx.core.descent import Descent, descend, rate_at
from adaptx.core.moments import Clock, next_count, tree_sum
from adaptx.core.rounding import bounded, largest_sum, raised, real, rounded, wider
from adaptx.core.rule import Like, Rule

# Called with the name of each rule that is initialised: a wrapper for which not every rule will do looks here.
initialised: ContextVar[Any] = ContextVar("initialised", default=lambda name: None)


class Made(NamedTuple):
    """What a transformation was made of."""

    name: str
    rule: Rule
    then: Descent | None


class _Lifted(optax.GradientTransformationExtraArgs):
    made: Made


def made_of(tx: Any) -> Made | None:
    """What `lift` made a transformation of; None of others, and of those with something around."""
    return tx.made if isinstance(tx, _Lifted) else None


def lift(
    name: str, rule: Rule, then: Descent | None = None, state_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
    """The rule as a transformation; with `then`, the ready optimizer. `name` is what errors call it."""
    first = checks.narrowed_slots(name, {f: slot for f, slot in rule.slots.items() if slot is not None}, state_dtype)
    owns_rate = "learning_rate" in rule.needs
    extras = [need for need in rule.needs if need not in ("learning_rate", "params")]
    uses_params = then is not None and (then.weight_decay is not None or then.scale is not None)
    required = [*extras, *(["params"] if uses_params or "params" in rule.needs else [])]

    def init(params: Any) -> Any:
        initialised.get()(name)
        checks.check_inexact(name, "parameter", params)
        if not any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params)):
            return first_state(params)
        state = jax.eval_shape(first_state, params)
        return state._replace(**{field: jax.tree.map(_placed, params, getattr(state, field)) for field in first})

    def first_state(params: Any) -> Any:
        slots = {field: jax.tree.map(slot, params) for field, slot in first.items()}
        scalars = {field: _first_scalar(value, jax.tree.leaves(params)) for field, value in rule.scalars.items()}
        return rule.State(count=jnp.zeros([], jnp.int32), **slots, **scalars)

    def enter(g: Array, x: Any, slots: Any, scalars: Any, clock: Any, working: Any, decayed: bool) -> Any:
        """One leaf in working precision: g, s, x, t as the rule sees them."""
        count, biases, shared, learning_rate, weight_decay, needs = clock
        number: Any = lambda v: None if v is None else jnp.asarray(v, real(working))
        s = rule.State(count=count, **jax.tree.map(lambda a: raised(a, working), {**slots, **scalars}))
        rates = {"learning_rate": number(learning_rate), "weight_decay": number(weight_decay) if decayed else None}
        by_decay = dict(zip(map(id, rule.decays), biases, strict=True))
        # Clamped and shown like a gradient: a Hessian's diagonal is squared too.
        visible = lambda a: bounded(a) + (a - a)
        own = {need: visible(needs[need].astype(real(working))) for need in rule.trees}
        t = Clock(t=number(count), biases=by_decay, shared=shared, **rates, **{**needs, **own})
        return g.astype(working), s, None if x is None else x.astype(working), t

    def leave(s: Any, slots: Any) -> Any:
        """The slots, each back in the dtype it is stored in."""
        return {field: jax.tree.map(_stored, getattr(s, field), old) for field, old in slots.items()}

    # Leaves of equal shape and dtype share one trace: with 300 leaves the first call is otherwise twice as long.
    @functools.partial(jax.jit, static_argnums=(5, 6))
    def part(g: Array, x: Any, slots: Any, scalars: Any, clock: Any, working: Any, decayed: bool) -> Any:
        g, s, x, t = enter(g, x, slots, scalars, clock, working, decayed)
        # A clamp would keep XLA from fusing the sum, so each sum is cut instead.
        summands, s = rule.part(g, s, x, t)
        return summands, leave(s, slots)

    @functools.partial(jax.jit, static_argnums=(5, 6))
    def step(g: Array, x: Any, slots: Any, scalars: Any, clock: Any, working: Any, decayed: bool) -> Any:
        emitted = g.dtype if x is None else wider(g.dtype, x.dtype)
        g, s, x, t = enter(g, x, slots, scalars, clock, working, decayed)
        # The clamp hides an Inf. g - g is 0, or NaN where g is not finite; added to a moment it costs no more reading.
        moments = [f for f, slot in first.items() if isinstance(slot, Like)]
        lost, g = g - g, bounded(g)
        if moments and not jnp.iscomplexobj(g):
            s = s._replace(**{moments[0]: getattr(s, moments[0]) + lost})
        else:
            g = g + lost
        u, s = rule.step(g, s, x, t)
        if then is not None and not owns_rate:
            u = descend(u, x, t, then.scale)
        return rounded(u, emitted), leave(s, slots)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        checks.check_state(name, rule.State, state, first, rule.scalars)
        checks.check_inexact(name, "gradient", updates)
        grads = jax.tree.map(checks.array, updates, is_leaf=checks.is_none)
        checks.require(name, required, {**extra, "params": params})
        gs, treedef = jax.tree.flatten(grads, is_leaf=checks.is_none)
        at, live = checks.paths(grads), [i for i, g in enumerate(gs) if g is not None]
        xs = checks.matching_tree(name, grads, at, gs, params)
        trees = {need: checks.matching_tree(name, grads, at, gs, extra[need], need) for need in rule.trees}
        slots = checks.matching_state(name, grads, at, gs, {f: getattr(state, f) for f in first}, first)
        scalars = {f: getattr(state, f) for f in rule.scalars}

        count = next_count(state.count)
        rates = [rate_at(r, state.count) for r in (then.learning_rate, then.weight_decay)] if then else [None, None]
        needs = {need: extra[need] for need in extras if need not in rule.trees}
        decayed = checks.expanded_mask(name, then.mask if then else None, params, grads)
        working = {i: wider(jnp.float32, gs[i].dtype, *_dtypes([xs[i], slots[i]])) for i in live}
        biases = functools.cache(lambda dtype: [b.bias(count.astype(dtype)) for b in rule.decays])

        def whole(dtype: Any) -> Any:
            """State and clock of the tree: s and t without arrays of leaves."""
            now = {k: raised(v, dtype) for k, v in scalars.items()}
            t = Clock(t=count.astype(dtype), learning_rate=rates[0], weight_decay=rates[1], **needs)
            return rule.State(count=count, **now, **dict.fromkeys(first)), t

        def each(f: Any, shared: Any = lambda dtype: None) -> dict[int, Any]:
            """f on every leaf that has a gradient."""
            own = lambda i: {k: _folded(v, at[i]) if checks.is_key(v) else v for k, v in scalars.items()}
            here = lambda i: {**needs, **{need: leaves[i] for need, leaves in trees.items()}}
            clock = lambda i: (count, *(of(real(working[i])) for of in (biases, shared)), *rates, here(i))
            return {i: f(gs[i], xs[i], slots[i], own(i), clock(i), working[i], decayed[i]) for i in live}

        totals = None
        if rule.part is not None and live:
            parts = each(part)
            summands = [leaf_summands for leaf_summands, _ in parts.values()]
            width = wider(jnp.float32, *_dtypes(summands))
            largest = [largest_sum(working[i], gs[i].size) for i in live]
            totals = jax.tree.map(lambda *leaf: tree_sum(list(leaf), width, largest), *summands)
            slots |= {i: new for i, (_, new) in parts.items()}
        if rule.advance is not None and (rule.part is None or live):
            s, t = whole(wider(jnp.float32, *map(real, working.values())))
            new = rule.advance(s, totals, t)
            scalars = {k: _stored(getattr(new, k), v) for k, v in scalars.items()}

        results = each(step, functools.cache(lambda dtype: rule.shared and rule.shared(*whole(dtype))))
        slots |= {i: new for i, (_, new) in results.items()}
        us = [results[i][0] if i in results else None for i in range(len(gs))]
        fields = {f: treedef.unflatten([slots[i][f] for i in range(len(gs))]) for f in first}
        return treedef.unflatten(us), rule.State(count=count, **fields, **scalars)

    lifted = _Lifted(init, update)
    lifted.made = Made(name, rule, then)
    return lifted


def _folded(key: Array, path: str) -> Array:
    """The key of the leaf at a path, whatever the order of leaves."""
    return jax.random.fold_in(key, zlib.crc32(path.encode()))


def _stored(new: Array, old: Array) -> Array:
    """A new value in the dtype of the old one, which also makes a weak type strong."""
    return new if checks.is_key(new) else new.astype(old.dtype)


def _dtypes(tree: Any) -> list[Any]:
    return [a.dtype for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.inexact)]


def _placed(x: Any, slot: Any) -> Any:
    """The slot of an abstract parameter, where it has the parameter's shape with its sharding."""
    like = lambda a: isinstance(x, jax.ShapeDtypeStruct) and a.shape == x.shape
    return jax.tree.map(lambda a: a.update(sharding=x.sharding if like(a) else None), slot)


def _first_scalar(first: Any, leaves: list[Any]) -> Array:
    """A scalar's first value: float32, or float64 if any parameter is; a random key as it is."""
    value: Any = first(leaves) if callable(first) else first
    width = real(wider(jnp.float32, *(jnp.result_type(x) for x in leaves)))
    return value if checks.is_key(value) else jnp.asarray(value, width)
