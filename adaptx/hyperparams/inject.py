"""Inject: hyperparameters as values of the state, which can be logged, changed and swept without compiling again."""

from __future__ import annotations

import collections
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.core import Tracer
from jax.tree_util import GetAttrKey, keystr, tree_flatten_with_path
from optax.transforms import PartitionState

from adaptx.core.checks import check_kind, shown
from adaptx.core.moments import Decay
from adaptx.core.registry import check_argument
from adaptx.core.rounding import real, wider
from adaptx.glossary import GLOSSARY, is_number
from adaptx.hyperparams.schedules import Recurrent


class Scheduled(NamedTuple):
    """A scheduled hyperparameter: its value at the step that was taken last, and whether it was set by hand since."""

    value: Array
    frozen: Array  # bool: the schedule is asked no more


class DecayPair(NamedTuple):
    """A decay rate b and 1 - b, as a Decay has them; a named tuple, which Flax's serialization knows."""

    value: Array
    complement: Array


class InjectState(NamedTuple):
    """Hyperparameters by name, and the state of the optimizer that they are given to."""

    hyperparams: dict[str, Any]  # 0-d arrays, a DecayPair where there is a decay rate, or Scheduled
    inner: Any


class Counted(NamedTuple):
    """The state of an optimizer that keeps no count itself, with one for the schedules."""

    count: Array
    inner: Any


def inject_hyperparams(
    factory: Callable[..., Any], static: str | Iterable[str] = ()
) -> Callable[..., optax.GradientTransformationExtraArgs]:
    """A factory whose numbers live in the optimizer's state: `inject_hyperparams(adaptx.adam)(1e-3, b1=0.8)`.

    They can be read by `get_hyperparams` and changed by `set_hyperparams`; a vmapped state holds a sweep. Nothing is
    compiled again, and the steps are those of `factory(1e-3, b1=0.8)`: numbers are float32 or wider, whatever the
    parameters are, and a decay rate b is kept with its complement 1 - b, which float32 alone would round.

    A schedule stays one where the argument is a learning rate or weight decay (by its name here: `learning_rate`,
    `weight_decay`, `final_learning_rate`). It reads the optimizer's own count, the first that is found; its value
    at the step that was taken last stands in the state.

    Arguments:
        factory: an optimizer of this library or of Optax, or any function of numbers that gives a transformation.
            Of other libraries' decay rates only b is kept: a float32 b2 of 0.999 makes 1 - b2 wrong by 1.3e-5, and
            their trajectories differ from closed-over ones by as much; dtypes are those of closed-over numbers. What a
            factory hands on to an injected one inside is only the first value there.
        static: names of arguments to leave as they are. In any case left: None, strings, bools, keys, masks and other
            functions, what this library declares to be static, and of others the ints that were not given.

    Returns: a function of the factory's arguments that gives the transformation.

    Errors:
        TypeError: no factory; a name in `static` that is no argument; whatever the factory raises for its arguments.
    """
    if not callable(factory):
        raise TypeError(f"inject_hyperparams: it needs a function that makes an optimizer, got {shown(factory)}")
    signature = inspect.signature(factory)
    name = getattr(factory, "__name__", "the factory")
    fixed = {static} if isinstance(static, str) else set(static)
    if unknown := [str(a) for a in fixed if a not in signature.parameters]:
        allowed = ", ".join(signature.parameters)
        raise TypeError(f"inject_hyperparams: {name} has no argument {', '.join(unknown)}; allowed are {allowed}")
    made_by: Any = factory
    while isinstance(made_by, functools.partial):
        made_by = made_by.func
    ours = getattr(made_by, "__module__", "").startswith("adaptx.") and signature.parameters.keys() <= GLOSSARY.keys()

    @functools.wraps(factory)
    def injected(*args: Any, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
        factory(*args, **kwargs)  # whose errors are those of the values as they were given
        bound = signature.bind(*args, **kwargs)
        said = set(bound.arguments)
        bound.apply_defaults()
        given = dict(bound.arguments)
        free = {a: v for a, v in given.items() if a not in fixed and not _shapes(a, v, a in said, ours)}
        schedules = {a: v for a, v in free.items() if callable(v) and _schedulable(a)}
        numbers = {a: v for a, v in free.items() if _is_number(v)}
        others = {a: v for a, v in given.items() if a not in schedules and a not in numbers}

        def made(values: dict[str, Any]) -> optax.GradientTransformationExtraArgs:
            values = {a: Decay(*v) if isinstance(v, DecayPair) else v for a, v in values.items()}
            call = inspect.BoundArguments(signature, {a: {**others, **values}[a] for a in given})
            return optax.with_extra_args_support(factory(*call.args, **call.kwargs))

        closed_over = made({**numbers, **dict.fromkeys(schedules, 1.0)})

        def scheduled(count: Array, old: dict[str, Any], dtype: Any) -> dict[str, Any]:
            """The schedules' values after so many steps."""
            new = {}
            for a, schedule in schedules.items():
                if isinstance(schedule, Recurrent):
                    now = schedule.after(old[a].value if a in old else schedule.init, count)
                else:
                    now = schedule(count)
                if not is_number(now):
                    raise ValueError(f"{name}: the schedule of {a} must give one real number, got {shown(now)}")
                value, frozen = jnp.asarray(now, dtype), jnp.zeros((), bool)
                if a in old:
                    value, frozen = jnp.where(old[a].frozen, old[a].value, value), old[a].frozen
                new[a] = Scheduled(value, frozen)
            return new

        def init(params: Any) -> InjectState:
            dtype = real(wider(jnp.float32, *(jnp.result_type(x) for x in jax.tree.leaves(params))))
            values = {a: _stored(a, v, dtype, ours) for a, v in numbers.items()}
            first = scheduled(jnp.zeros((), jnp.int32), {}, dtype)
            inner = made({**values, **{a: s.value for a, s in first.items()}}).init(params)
            if schedules and _count(inner) is None:
                inner = Counted(jnp.zeros((), jnp.int32), inner)
            return InjectState({a: {**values, **first}[a] for a in given if a not in others}, inner)

        def step(updates: Any, state: InjectState, params: Any, extra: Any) -> Any:
            old, before = state.hyperparams, state.inner
            if schedules:
                dtype = old[next(iter(schedules))].value.dtype
                old = {**old, **scheduled(_count(before), old, dtype)}
            values = {a: v.value if isinstance(v, Scheduled) else v for a, v in old.items()}
            count = before.count if isinstance(before, Counted) else None
            before = before if count is None else before.inner
            result = made(values).update(updates, before, params, **extra)
            if (
                not ours
            ):  # a float32 rate makes float32 of others' bfloat16, which a number that is closed over does not
                like = jax.eval_shape(lambda: closed_over.update(updates, before, params, **extra))
                result = jax.tree.map(lambda a, b: a if a.dtype == b.dtype else a.astype(b.dtype), result, like)
            updates, inner = result
            return updates, InjectState(old, inner if count is None else Counted(count + 1, inner))

        compiled = jax.jit(step)  # once: an eager update would otherwise be a new function at each step

        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, InjectState]:
            check_kind("inject_hyperparams", InjectState, state)
            arrays = all(isinstance(x, Array | np.ndarray) or is_number(x) for x in jax.tree.leaves(extra))
            return (compiled if arrays else step)(updates, state, params, extra)

        return optax.GradientTransformationExtraArgs(init, update)

    return injected


def _schedulable(argument: str) -> bool:
    return argument in GLOSSARY and GLOSSARY[argument].schedulable


def _shapes(argument: str, value: Any, said: bool, ours: bool) -> bool:
    """Whether an argument shapes the program: what the glossary says, and of others' arguments ints left at default."""
    return GLOSSARY[argument].static if ours else isinstance(value, int) and not said


def _is_number(value: Any) -> bool:
    """Whether a value is kept in the state: a number, or an array of numbers."""
    several = isinstance(value, Array | np.ndarray) and jnp.issubdtype(value.dtype, jnp.number)
    return is_number(value) or several or isinstance(value, Decay)


def _is_decay(argument: str, ours: bool) -> bool:
    return ours and GLOSSARY[argument].decay


def _stored(argument: str, value: Any, dtype: Any, ours: bool) -> Any:
    """A number as the state keeps it: floats in one dtype, other libraries' integers as they are."""
    # Copies: a state is donated, the caller's array is not.
    if _is_decay(argument, ours) or isinstance(value, Decay):
        b = Decay.of(value)
        return DecayPair(jnp.array(b.value, dtype), jnp.array(b.complement, dtype))
    own = jnp.result_type(value)
    return jnp.array(value, own if not ours and not jnp.issubdtype(own, jnp.floating) else dtype)


def _count(inner: Any) -> Any:
    """How many steps the optimizer has taken: the first field `count` that is one integer; None where there is none."""
    for path, leaf in tree_flatten_with_path(inner)[0]:
        field = [key for key in path if key != GetAttrKey("value")][-1:]  # an nnx variable's
        if field == [GetAttrKey("count")] and leaf.ndim == 0 and jnp.issubdtype(leaf.dtype, jnp.integer):
            return leaf
    return None


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

    What only init reads (`initial_accumulator`, `initial_distance`, `d0`) is kept for the next init and changes no
    step.

    Arguments:
        state: what an injected optimizer, or a chain or partition that has one, gave.
        by_path: the same as a dict, by the names that `get_hyperparams` gives: "embed/learning_rate", or a path.
        override: also scheduled ones, whose schedules then stop at that value.
        by_name: numbers, or arrays of the shape that is there (of a vmapped state, one for each member).

    Errors:
        ValueError: a name that is not there, is there more than once or is given twice; a value out of range or
            of another shape; a scheduled hyperparameter without `override`.
        TypeError: what is no dict in place of one.
    """
    if not isinstance(by_path, Mapping | None):
        raise TypeError(f"set_hyperparams: give values by name, or in a dict of names, not {shown(by_path)}")
    given = [*(by_path or {}).items(), *by_name.items()]
    return with_hyperparams(state, chosen_hyperparams("set_hyperparams", state, given, override))


def chosen_hyperparams(caller: str, state: Any, given: Iterable[tuple[str, Any]], override: bool) -> dict[str, Any]:
    """Values by name as the state would keep them, by path; one line in the caller's name for what it cannot keep."""
    named, new = _named(state), {}
    found = dict(named.values())
    for key, value in given:
        paths = [key] if key in found else [path for path, kept in found.items() if key in (kept.argument, kept.name)]
        if len(paths) != 1:
            theirs = [name for name, (path, _) in named.items() if path in paths]
            there = (
                f"may be any of {', '.join(theirs)}; give it by that name, in a dict"
                if paths
                else f"is not there; there are {', '.join(named) or 'none'}"
            )
            raise ValueError(f"{caller}: {key} {there}")
        if paths[0] in new:
            raise ValueError(f"{caller}: {key} is given twice")
        kept = found[paths[0]]
        new[paths[0]] = _replaced(caller, kept.argument, kept.value, value, override)
    return new


def with_hyperparams(state: Any, new: dict[str, Any], where: str = "") -> Any:
    """The state with what is kept at some paths replaced."""

    def at(path: Any, s: Any) -> Any:
        if not isinstance(s, InjectState):
            return s
        here = where + keystr(path)
        kept = {a: new.get(f"{here}[{a!r}]", old) for a, old in s.hyperparams.items()}
        return InjectState(kept, with_hyperparams(s.inner, new, f"{here}.inner"))

    return jax.tree_util.tree_map_with_path(at, state, is_leaf=lambda s: isinstance(s, InjectState))


def _replaced(caller: str, argument: str, kept: Any, value: Any, override: bool) -> Any:
    """A value in the form of what is kept."""
    if isinstance(kept, Scheduled) and not override:
        raise ValueError(f"{caller}: {argument} is scheduled; override=True stops the schedule at the value")
    if argument in GLOSSARY and all(map(GLOSSARY[argument].test, _members(jax.tree.leaves(kept)[0]))):
        for member in _members(value):
            check_argument(caller, argument, member)
    first = jax.tree.leaves(kept)[0]
    whole = jnp.issubdtype(first.dtype, jnp.integer)

    def like(v: Any, old: Any) -> Any:
        (leaf,), treedef = jax.tree.flatten(old)  # an array, or nnx's variable with one
        if whole and not jnp.issubdtype(jnp.result_type(v), jnp.integer):
            raise TypeError
        return treedef.unflatten([jnp.array(jnp.broadcast_to(jnp.asarray(v, leaf.dtype), leaf.shape))])

    try:
        if isinstance(kept, Scheduled):
            return Scheduled(like(value, kept.value), like(True, kept.frozen))
        if isinstance(kept, DecayPair):
            b = Decay.of(value)
            return DecayPair(like(b.value, kept.value), like(b.complement, kept.complement))
        return like(value, kept)
    except (TypeError, ValueError):
        allowed = f"{'an integer' if whole else 'a number'} or of shape {first.shape}"
        raise ValueError(f"{caller}: {argument} must be {allowed}, got {shown(value)}") from None


def _members(value: Any) -> Any:
    """The numbers of a concrete array, one by one; anything else as it is."""
    concrete = isinstance(value, Array | np.ndarray) and not isinstance(value, Tracer)
    return np.ravel(value) if concrete else [value]
