"""Inject: hyperparameters as values of the state, which can be logged, changed and swept without compiling again."""

from __future__ import annotations

import collections
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.core import Tracer
from jax.tree_util import keystr, tree_flatten_with_path
from optax.transforms import PartitionState

from adaptx.core.checks import shown
from adaptx.core.moments import Decay
from adaptx.core.registry import check_argument
from adaptx.core.rounding import real, wider
from adaptx.glossary import GLOSSARY
from adaptx.hyperparams.schedules import Recurrent


class Scheduled(NamedTuple):
    """A scheduled hyperparameter: its value at the step that was taken last, and whether it was set by hand since."""

    value: Array
    frozen: Array  # bool: the schedule is asked no more


class InjectState(NamedTuple):
    """Hyperparameters by name, and the state of the optimizer that they are given to."""

    hyperparams: dict[str, Any]  # 0-d arrays, a Decay where there is a decay rate, or Scheduled
    inner: Any


def inject_hyperparams(
    factory: Callable[..., Any], static: str | Iterable[str] = ()
) -> Callable[..., optax.GradientTransformationExtraArgs]:
    """A factory whose numbers live in the optimizer's state: `inject_hyperparams(adaptx.adam)(1e-3, b1=0.8)`.

    They can be read by `get_hyperparams` and changed by `set_hyperparams`; a vmapped state holds a sweep. Nothing is
    compiled again, and the steps are those of `factory(1e-3, b1=0.8)`: numbers are float32 or wider, whatever the
    parameters are, and a decay rate b is kept with its complement 1 - b, which float32 alone would round.

    A schedule stays one, where the argument may be a schedule. It reads the optimizer's own count, and its value at
    the step that was taken last stands in the state.

    Arguments:
        factory: an optimizer of this library or of Optax, or any function of numbers that gives a transformation.
            Of other libraries' decay rates only b is kept: a float32 b2 of 0.999 makes 1 - b2 wrong by 1.3e-5, and
            their trajectories differ from closed-over ones by as much.
        static: names of arguments to leave as they are. In any case left: None, strings, bools, masks and other
            functions, and what this library declares to be static.

    Returns: a function of the factory's arguments that gives the transformation.

    Errors:
        TypeError: a name in `static` that is no argument; whatever the factory raises for its arguments.
        ValueError: a schedule in an optimizer that keeps no count.
    """
    signature = inspect.signature(factory)
    name = getattr(factory, "__name__", "the factory")
    fixed = {static} if isinstance(static, str) else set(static)
    if unknown := sorted(fixed - set(signature.parameters)):
        allowed = ", ".join(signature.parameters)
        raise TypeError(f"inject_hyperparams: {name} has no argument {', '.join(unknown)}; allowed are {allowed}")
    ours = getattr(factory, "__module__", "").startswith("adaptx.") and signature.parameters.keys() <= GLOSSARY.keys()

    @functools.wraps(factory)
    def injected(*args: Any, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
        factory(*args, **kwargs)  # whose errors are those of the values as they were given
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = dict(bound.arguments)
        schedules = {a: v for a, v in given.items() if a not in fixed and callable(v) and _schedulable(a)}
        numbers = {a: v for a, v in given.items() if a not in fixed and _is_number(a, v, ours)}
        others = {a: v for a, v in given.items() if a not in schedules and a not in numbers}

        def made(values: dict[str, Any]) -> optax.GradientTransformationExtraArgs:
            call = inspect.BoundArguments(signature, {a: {**others, **values}[a] for a in given})
            return optax.with_extra_args_support(factory(*call.args, **call.kwargs))

        def scheduled(count: Array, old: dict[str, Any], dtype: Any) -> dict[str, Any]:
            """The schedules' values after so many steps."""
            new = {}
            for a, schedule in schedules.items():
                if a not in old:
                    first = schedule.init if isinstance(schedule, Recurrent) else schedule(count)
                    new[a] = Scheduled(jnp.asarray(first, dtype), jnp.zeros((), bool))
                    continue
                previous, frozen = old[a]
                now = schedule.after(previous, count) if isinstance(schedule, Recurrent) else schedule(count)
                new[a] = Scheduled(jnp.where(frozen, previous, jnp.asarray(now, dtype)), frozen)
            return new

        def init(params: Any) -> InjectState:
            dtype = real(wider(jnp.float32, *(jnp.result_type(x) for x in jax.tree.leaves(params))))
            values = {a: _stored(a, v, dtype, ours) for a, v in numbers.items()}
            first = scheduled(jnp.zeros((), jnp.int32), {}, dtype)
            inner = made({**values, **{a: s.value for a, s in first.items()}}).init(params)
            if schedules:
                _count(name, inner)
            return InjectState({a: {**values, **first}[a] for a in given if a not in others}, inner)

        def step(updates: Any, state: InjectState, params: Any, extra: Any) -> Any:
            old = state.hyperparams
            if schedules:
                dtype = old[next(iter(schedules))].value.dtype
                old = {**old, **scheduled(_count(name, state.inner), old, dtype)}
            values = {a: v.value if isinstance(v, Scheduled) else v for a, v in old.items()}
            updates, inner = made(values).update(updates, state.inner, params, **extra)
            return updates, InjectState(old, inner)

        compiled = jax.jit(step)  # once: an eager update would otherwise be a new function at each step

        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, InjectState]:
            if not isinstance(state, InjectState):
                kind = type(state).__name__
                raise TypeError(f"inject_hyperparams: the state must be the InjectState that init gives, got {kind}")
            arrays = all(isinstance(x, Array | np.ndarray | np.generic | int | float) for x in jax.tree.leaves(extra))
            return (compiled if arrays else step)(updates, state, params, extra)

        return optax.GradientTransformationExtraArgs(init, update)

    return injected


def _schedulable(argument: str) -> bool:
    return argument in GLOSSARY and GLOSSARY[argument].schedulable


def _is_number(argument: str, value: Any, ours: bool) -> bool:
    """Whether an argument is to be kept in the state."""
    if isinstance(value, bool | np.bool_) or not isinstance(
        value, int | float | np.ndarray | np.generic | Array | Decay
    ):
        return False
    return not (ours and GLOSSARY[argument].static)


def _is_decay(argument: str, ours: bool) -> bool:
    return ours and GLOSSARY[argument].decay


def _stored(argument: str, value: Any, dtype: Any, ours: bool) -> Any:
    """A number as the state keeps it: floats in one dtype, other libraries' integers as they are."""
    if _is_decay(argument, ours):
        b = Decay.of(value)
        return Decay(jnp.asarray(b.value, dtype), jnp.asarray(b.complement, dtype))
    if not ours and jnp.issubdtype(jnp.result_type(value), jnp.integer):
        return jnp.asarray(value)
    return jnp.asarray(value, dtype)


def _count(name: str, inner: Any) -> Array:
    """How many steps the optimizer has taken."""
    counts = optax.tree_utils.tree_get_all_with_path(inner, "count")
    if not counts:
        raise ValueError(f"inject_hyperparams: {name} keeps no count, so there is nothing that a schedule could read")
    return counts[0][1]


class Kept(NamedTuple):
    """A hyperparameter in a state."""

    argument: str
    group: str  # of the `optax.partition` it stands in, or ""
    value: Any

    @property
    def name(self) -> str:
        return f"{self.group}/{self.argument}" if self.group else self.argument

    @property
    def number(self) -> Array:
        # nnx.Optimizer keeps each array of its state in a variable, which is a tree of one leaf.
        return jax.tree.leaves(self.value)[0]


def kept_hyperparams(state: Any, where: str = "", group: str = "") -> dict[str, Kept]:
    """Every hyperparameter of a state, by its path."""
    found = {}
    for path, s in tree_flatten_with_path(state, is_leaf=lambda s: isinstance(s, InjectState | PartitionState))[0]:
        here = where + keystr(path)
        if isinstance(s, InjectState):
            found |= {f"{here}[{a!r}]": Kept(a, group, kept) for a, kept in s.hyperparams.items()}
            found |= kept_hyperparams(s.inner, f"{here}.inner", group)
        elif isinstance(s, PartitionState):
            for name, inner in s.inner_states.items():
                found |= kept_hyperparams(inner, f"{here}.inner_states[{name!r}]", str(name))
    return found


def get_hyperparams(state: Any) -> dict[str, Array]:
    """The hyperparameters in a state, wherever they stand in a chain or a partition.

    Of a decay rate this is b itself, of a schedule its value at the step that was taken last.

    Returns: by name; where a name is there more than once, by the group of the partition, "embed/b1", or else by path,
        such as "[1]['b1']".
    """
    return {name: kept.number for name, (_, kept) in _named(state).items()}


def _named(state: Any) -> dict[str, tuple[str, Kept]]:
    """Path and hyperparameter by the shortest name that no other has."""
    found = kept_hyperparams(state)
    count = collections.Counter(name for kept in found.values() for name in {kept.argument, kept.name})
    unique = lambda path, kept: next((n for n in (kept.argument, kept.name) if count[n] == 1), path)
    return {unique(path, kept): (path, kept) for path, kept in found.items()}


def set_hyperparams(state: Any, /, by_path: Any = None, *, override: bool = False, **by_name: Any) -> Any:
    """The state with other hyperparameters; nothing is compiled again for them.

        state = set_hyperparams(state, learning_rate=1e-4, b2=0.9999)

    Arguments:
        state: what an injected optimizer, or a chain or partition that has one, gave.
        by_path: the same as a dict, by the names that `get_hyperparams` gives: "embed/learning_rate", or a path.
        override: also scheduled ones, whose schedules then stop at that value.
        by_name: numbers, or arrays of the shape that is there (of a vmapped state, one for each member).

    Errors:
        ValueError: a name that is not there, or is there more than once; a value out of range or of another shape; a
            scheduled hyperparameter without `override`.
    """
    named, new = _named(state), {}
    found = dict(named.values())
    for key, value in {**(by_path or {}), **by_name}.items():
        paths = [key] if key in found else [path for path, kept in found.items() if key in (kept.argument, kept.name)]
        if len(paths) != 1:
            theirs = [name for name, (path, _) in named.items() if path in paths]
            there = (
                f"may be any of {', '.join(theirs)}; give it by that name, in a dict"
                if paths
                else f"is not there; there are {', '.join(named) or 'none'}"
            )
            raise ValueError(f"set_hyperparams: {key} {there}")
        kept = found[paths[0]]
        new[paths[0]] = _replaced(kept.argument, kept.value, value, override)
    return _with(state, new)


def _with(state: Any, new: dict[str, Any], where: str = "") -> Any:
    """The state with what is kept at some paths replaced."""

    def at(path: Any, s: Any) -> Any:
        if not isinstance(s, InjectState):
            return s
        here = where + keystr(path)
        kept = {a: new.get(f"{here}[{a!r}]", old) for a, old in s.hyperparams.items()}
        return InjectState(kept, _with(s.inner, new, f"{here}.inner"))

    return jax.tree_util.tree_map_with_path(at, state, is_leaf=lambda s: isinstance(s, InjectState))


def _replaced(argument: str, kept: Any, value: Any, override: bool) -> Any:
    """A value in the form of what is kept."""
    if isinstance(kept, Scheduled) and not override:
        raise ValueError(f"set_hyperparams: {argument} is scheduled; override=True stops the schedule at the value")
    if argument in GLOSSARY:
        members = (
            np.ravel(value) if isinstance(value, Array | np.ndarray) and not isinstance(value, Tracer) else [value]
        )
        for member in members:
            check_argument("set_hyperparams", argument, member)
    like = lambda v, old: jax.tree.map(lambda a: jnp.broadcast_to(jnp.asarray(v, a.dtype), a.shape), old)
    try:
        if isinstance(kept, Scheduled):
            return Scheduled(like(value, kept.value), like(True, kept.frozen))
        if isinstance(kept, Decay):
            b = Decay.of(value)
            return Decay(like(b.value, kept.value), like(b.complement, kept.complement))
        return like(value, kept)
    except (TypeError, ValueError):
        shape = jax.tree.leaves(kept)[0].shape
        raise ValueError(
            f"set_hyperparams: {argument} must be a number or of shape {shape}, got {shown(value)}"
        ) from None
