"""schedule_free: an average of the iterates in place of a falling learning rate."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.core import Tracer

from adaptx.core import checks
from adaptx.core.descent import rate_at
from adaptx.core.moments import Decay, next_count, safe_div
from adaptx.core.registry import Paper, checked
from adaptx.core.rule import Params, copied
from adaptx.wrappers.leaves import cast, first, joined, no_steps, number, on_leaves, working


class ScheduleFreeState(NamedTuple):
    """The state of schedule_free; the parameters in training are y."""

    steps: Array  # t
    b1: Any  # of which y was made; None where x is there
    largest_rate: Array
    weight_sum: Array  # S, in units of the last weight
    z: Params  # the iterates of the wrapped optimizer, float32 or wider
    x: Params  # their average, float32 or wider; None where it follows from y and z
    inner: Any


@functools.partial(
    checked,
    paper=Paper("The Road Less Scheduled (Defazio, Yang, Mehta, et al.)", 2024, "https://arxiv.org/abs/2405.15682"),
)
def schedule_free(
    tx: Any,
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    weight_power: Any = 2.0,
    *,
    step_power: Any = 0.0,
    keep_average: bool | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Schedule-Free: gradients at y, steps on z, their average x for use; no falling rate, no end to plan for.

    Start:
        x = y = z
    Step t = 1, 2, ..., g the gradient at y, u(g, y) the update of `tx`:
        w = t**step_power * (largest learning_rate so far)**weight_power
        S = S + w
        z = z + u(g, y)
        x = x + w/S * (z - x)
        y = b1*x + (1 - b1)*z

    The parameters that are trained are y. Evaluate and save x, which `schedule_free_eval_params(state, params)` gives:

        tx = adaptx.schedule_free(adaptx.adamw(0.01, b1=0.0, weight_decay=0.1), 0.01)
        state = tx.init(params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        average = adaptx.schedule_free_eval_params(state, params)

    Any optimizer can be wrapped that steps from where it is (dual averaging, `madgrad` and `adagrad_da`, steps from the
    first parameters, and overshoots here), and both get the same rate: constant, or a warm-up that ends in one. Both
    ask a schedule for step 0 first (Optax's wrapper begins at 1, optax#1744). Switch the momentum of the wrapped
    optimizer off (`optax.sgd(rate)`, `b1=0.0`): b1 here takes its place. Weight decay of `adamw` or `with_weight_decay`
    is taken at y, as in the authors' optimizers. Their RAdam is Adam with the rate times its rectification, which is a
    schedule for both. `weight_power` is their `weight_lr_power`, `step_power` their `r`.

    b1 = 0 averages the plain iterates (Polyak, Ruppert); torch refuses it, and Optax gives NaN. Then y = z, and x must
    be kept, as also where y is rounded to 16 bits: what rounding takes from y would be taken for a move of x, and y
    stalls. `keep_average=None` sees to both by what init is given; a b1 that is traced when init runs, or set to 0
    later, needs True. Kept or not, b1 may change from step to step. A change of the parameters from outside is lost
    where x is kept, and else moves x. `optax.tree.map_params`, which calls init without parameters, needs True where it
    would have kept x.
    """
    tx, decay = optax.with_extra_args_support(tx), Decay.of(b1)
    plain = not isinstance(decay.value, Tracer) and float(decay.value) == 0
    if plain and keep_average is not None and not keep_average:
        raise ValueError("schedule_free: b1 = 0 needs keep_average: y is z then, and x does not follow from them")

    def init(params: Any) -> ScheduleFreeState:
        checks.check_inexact("schedule_free", "parameter", params)
        bits = (jnp.finfo(jnp.result_type(leaf)).bits for leaf in jax.tree.leaves(params))
        kept = keep_average if keep_average is not None else plain or 16 in bits
        return ScheduleFreeState(
            steps=no_steps(params),
            b1=None if kept else number(decay.value, params),
            largest_rate=number(0, params),
            weight_sum=number(0, params),
            z=first(copied, params),
            x=first(copied, params) if kept else None,
            inner=tx.init(params),
        )

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, ScheduleFreeState]:
        checks.check_kind("schedule_free", ScheduleFreeState, state)
        checks.require("schedule_free", ["params"], {"params": params})
        checks.check_inexact("schedule_free", "gradient", updates)
        us, inner = tx.update(updates, state.inner, params, **extra)

        width = state.largest_rate.dtype
        t, b = next_count(state.steps).astype(width), Decay(*(cast(v, width) for v in (decay.value, decay.complement)))
        top = jnp.maximum(state.largest_rate, cast(rate_at(learning_rate, state.steps), width))
        p, r = cast(weight_power, width), cast(step_power, width)
        # In units of the last weight the sum of equal ones is exact, and small rates to a power do not vanish.
        last = safe_div(t - 1, t) ** r * safe_div(state.largest_rate, top) ** p
        counts = jnp.where(top == 0, jnp.zeros_like(top), jnp.ones_like(top)) ** p  # a rate of 0 does not, unless p = 0
        weight_sum = counts * (1 + last * state.weight_sum)
        share = safe_div(jnp.ones_like(weight_sum), weight_sum)
        turn = 0.0
        if state.x is None:  # 0 unless b1 was changed
            turn = jnp.where(b.value == state.b1, 0, 1 - safe_div(b.value, state.b1))

        def leaf(g: Any, y: Any, u: Any, z: Any, x: Any) -> Any:
            return (None, z, x) if g is None else _step(g, y, u, z, x, share, b, turn)

        trees = {"update of the wrapped optimizer": us, "state field `z`": state.z, "state field `x`": state.x}
        us, z, x = on_leaves("schedule_free", leaf, updates, trees, params, results=3)
        own = dict(b1=b.value, x=None) if state.x is None else dict(b1=None, x=x)
        return us, ScheduleFreeState(
            steps=next_count(state.steps), largest_rate=top, weight_sum=weight_sum, z=z, inner=inner, **own
        )

    return optax.GradientTransformationExtraArgs(init, update)


@jax.jit
def _step(g: Array, y: Array, u: Array, z: Array, x: Any, share: Array, b: Decay, turn: Any) -> Any:
    """One leaf: the update of y, and the next z and x."""
    dtype, stored = working(y, u, z), z.dtype
    c, a, rest, turn = (cast(v, dtype) for v in (share, b.value, b.complement, turn))
    at, u, z = y.astype(dtype), u.astype(dtype), z.astype(dtype)
    if x is None:  # what the equations come to without x
        move = (rest + a * c) * u - (c + (1 - c) * turn) * (at - z)
        return joined(move, g, y), (z + u).astype(stored), None
    z = z + u
    x = x.astype(dtype) + c * (z - x.astype(dtype))
    return joined(z + a * (x - z) - at, g, y), z.astype(stored), x.astype(stored)


def schedule_free_eval_params(state: Any, params: Any) -> Any:
    """The averaged parameters x of `schedule_free`, to evaluate and to save; training goes on from `params`.

    x = z + (params - z)/b1, or the x that the state keeps, in the parameters' dtypes. Parameters that are trained
    without it, behind a mask or in another group of a partition, are as they are.

    Arguments:
        state: of `schedule_free`, or one that has such a state in it: of a chain, an injected optimizer, a partition.
        params: the parameters in training.

    Errors:
        ValueError: no such state, or two for one parameter; trees or shapes that do not fit.
    """
    name, is_ours = "schedule_free_eval_params", lambda s: isinstance(s, ScheduleFreeState)
    found = [s for s in jax.tree.leaves(state, is_leaf=is_ours) if is_ours(s)]
    if not found:
        raise ValueError(f"{name}: there is no ScheduleFreeState in the state")
    ys, treedef = jax.tree.flatten(params, is_leaf=checks.is_none)
    at, average, owned = checks.paths(params), list(ys), set()

    def leaves(tree: Any, field: str) -> list[Any]:
        plain = jax.tree.leaves(tree)  # nnx.Optimizer keeps each array in a variable of its own
        try:
            return checks.aligned(name, params, tree, f"state field `{field}`", "params")
        except ValueError:
            if len(plain) != len(ys):
                raise
            return plain

    for s in found:
        b1 = None if s.b1 is None else jax.tree.leaves(s.b1)[0]
        kept = [None] * len(ys) if s.x is None else leaves(s.x, "x")
        for i, (y, z, x) in enumerate(zip(ys, leaves(s.z, "z"), kept, strict=True)):
            if y is None or not jax.tree.leaves(z):
                continue
            if i in owned:
                raise ValueError(f"{name}: the parameter at {at[i]} is in more than one ScheduleFreeState")
            owned.add(i)
            (z,) = jax.tree.leaves(z)
            checks.check_like(f"{name}: the parameter at {at[i]}", z, checks.array(y))
            average[i] = _average(checks.array(y), z, x, b1)
    return treedef.unflatten(average)


@jax.jit
def _average(y: Array, z: Array, x: Any, b1: Any) -> Array:
    if x is not None:
        return joined(x, y, None)
    dtype = working(y, z)
    z = z.astype(dtype)
    return joined(z + (y.astype(dtype) - z) / cast(b1, dtype), y, None)
