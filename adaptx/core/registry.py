"""Registry: what every optimizer declares, and the meaning and range of every argument.

One `@optimizer(...)` line buys the conformance laws, the table rows, the catalogue entry and the benchmark row.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import numpy as np

P = ParamSpec("P")
T = TypeVar("T")


class Paper(NamedTuple):
    """Where the method comes from."""

    title: str
    year: int
    url: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """One optimizer. What may differ between cases is a tuple as long as `cases`; the laws verify every flag."""

    name: str
    factory: Callable[..., Any]
    direction: Callable[..., Any] | None
    direction_reason: str
    paper: Paper
    family: str
    cases: tuple[Mapping[str, Any], ...]
    typical_rate: float
    reduces: tuple[str, ...]
    needs: tuple[tuple[str, ...], ...]
    normalised: tuple[bool, ...]
    odd: tuple[bool, ...]
    scale_free: tuple[bool, ...]
    zero_is_fixed: tuple[bool, ...]
    emits: tuple[str | None, ...]
    maturity: str


OPTIMIZERS: dict[str, Entry] = {}


def optimizer(
    *,
    paper: Paper,
    family: str,
    cases: tuple[Mapping[str, Any], ...],
    typical_rate: float,
    direction: Callable[..., Any] | str,
    reduces: str | tuple[str, ...] = "element",
    needs: tuple[str, ...] | tuple[tuple[str, ...], ...] = (),
    normalised: bool | tuple[bool, ...] = False,
    odd: bool | tuple[bool, ...] = True,
    scale_free: bool | tuple[bool, ...] = False,
    zero_is_fixed: bool | tuple[bool, ...] = True,
    emits: str | None | tuple[str | None, ...] = None,
    maturity: str = "stable",
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Registers a factory.

    cases: complete keyword arguments; the first is the default case, the last moves every argument it can.
    direction: the `scale_by_` factory, or the reason why there is none.
    reduces: how far one element's update looks: "element", "tensor" or "tree".
    needs: what `update` must be given beside gradients and state.
    normalised: a step does not shrink when the gradients grow. odd: (-g, -x) gives -u.
    scale_free: g -> c g changes nothing when eps = eps_root = 0. zero_is_fixed: zero gradients give the decay alone.
    emits: the update's dtype where it is not the wider of gradient's and parameter's.
    """

    def per_case(flag: Any) -> tuple[Any, ...]:
        return flag if isinstance(flag, tuple) and len(flag) == len(cases) and flag else (flag,) * len(cases)

    def register(factory: Callable[P, T]) -> Callable[P, T]:
        name = factory.__name__
        public = checked(factory)
        OPTIMIZERS[name] = Entry(
            name,
            public,
            None if isinstance(direction, str) else direction,
            direction if isinstance(direction, str) else "",
            paper,
            family,
            cases,
            typical_rate,
            per_case(reduces),
            needs if needs and isinstance(needs[0], tuple) else (needs,) * len(cases),  # pyright: ignore
            per_case(normalised),
            per_case(odd),
            per_case(scale_free),
            per_case(zero_is_fixed),
            per_case(emits),
            maturity,
        )
        return public

    return register


class Argument(NamedTuple):
    """The meaning of an argument, the same in every factory, and what it may be."""

    meaning: str
    allowed: str
    test: Callable[[Any], bool] | None = None
    schedulable: bool = False
    choices: tuple[str, ...] = ()
    none: str = ""  # what None means, where it is allowed


def _rate(meaning: str, none: str = "") -> Argument:
    return Argument(meaning, "a number, array or schedule >= 0", lambda v: v >= 0, schedulable=True, none=none)


def _decay(meaning: str, none: str = "") -> Argument:
    return Argument(meaning, "in [0, 1)", lambda v: (v >= 0) & (v < 1), none=none)


def _size(meaning: str, none: str = "") -> Argument:
    return Argument(meaning, ">= 0", lambda v: v >= 0, none=none)


def _switch(meaning: str) -> Argument:
    return Argument(meaning, "True or False")


GLOSSARY: dict[str, Argument] = {
    "learning_rate": _rate("the step size"),
    "b1": _decay("decay of the first moment"),
    "b2": _decay("decay of the second moment"),
    "eps": _size("added to the root in the denominator (outside)"),
    "eps_root": _size("added under the root (inside)"),
    "momentum": _decay("decay of a momentum buffer over the directions, which the rate multiplies afterwards", none="off"),
    "nesterov": _switch("look one momentum step ahead; needs momentum"),
    "weight_decay": _rate("decoupled decay, times the learning rate", none="off"),
    "mask": Argument("where the decay applies: a prefix tree of bools, or a function of them", "a tree or function", none="everywhere"),
    "initial_accumulator": _size("the second moment's first value"),
    "lr_decay": _size("the rate at step t is divided by 1 + (t - 1) lr_decay", none="off"),
    "l1": _size("l1 penalty, by the proximal step: small weights become exactly zero", none="off"),
    "centered": _switch("subtract the squared mean from the second moment (a variance, clamped at 0)"),
    "bias_correction": _switch("divide the moments by 1 - b2^t, for their zero start"),
    "amsgrad": _switch("divide by the largest second moment so far"),
    "momentum_decay": _size("psi in the momentum schedule b1 (1 - 0.96^(t psi) / 2)", none="constant b1"),
    "final_learning_rate": _rate("the SGD rate that both bounds tend to"),
    "gamma": Argument("how fast the bounds close", "> 0", lambda v: v > 0),
    "amsbound": _switch("divide by the largest second moment so far"),
    "per": Argument("one accumulator for each", "'tensor' or 'tree'", choices=("tensor", "tree")),
    "threshold": _size("the largest |g| that is dropped"),
    "initial_distance": Argument("the first distance, relative to 1 + the norm of the initial parameters", "> 0", lambda v: v > 0),
}

# Optax's names for arguments that are called otherwise here.
RENAMED = {
    "decay": "it is b2 here",
    "rho": "it is b2 here",
    "initial_accumulator_value": "it is initial_accumulator here",
    "initial_scale": "it is initial_accumulator here",
    "weight_decay_mask": "it is mask here",
    "eps_in_sqrt": "here eps_root is inside the root and eps outside",
    "mu_dtype": "moments are float32 or wider here",
    "reps_rel": "it is initial_distance here",
}


def checked(factory: Callable[P, T]) -> Callable[P, T]:
    """A factory whose concrete arguments are validated by the glossary and listed in its docstring."""
    signature, name = inspect.signature(factory), factory.__name__

    @functools.wraps(factory)
    def public(*args: P.args, **kwargs: P.kwargs) -> T:
        for argument in kwargs:
            if argument not in signature.parameters:
                hint = RENAMED.get(argument, f"allowed: {', '.join(signature.parameters)}")
                raise TypeError(f"{name}: no argument {argument}; {hint}")
        for argument, value in signature.bind(*args, **kwargs).arguments.items():
            _check(name, argument, value)
        return factory(*args, **kwargs)

    lines = [_described(parameter) for parameter in signature.parameters.values()]
    public.__doc__ = inspect.cleandoc(factory.__doc__ or "") + "\n\nArguments:\n" + "\n".join(lines)
    return public


def _described(parameter: inspect.Parameter) -> str:
    argument = GLOSSARY[parameter.name]
    default = "required" if parameter.default is parameter.empty else f"default {parameter.default}"
    none = f"; None = {argument.none}" if argument.none else ""
    return f"    {parameter.name}: {argument.meaning}; {argument.allowed}{none}; {default}."


def _check(name: str, argument: str, value: Any) -> None:
    """One line for a concrete value out of range; tracers and schedules pass."""
    meaning = GLOSSARY[argument]
    allowed = meaning.allowed + (" or None" if meaning.none else "")
    if argument == "mask" or (value is None and meaning.none) or isinstance(value, jax.core.Tracer):
        return
    if meaning.schedulable and callable(value):
        return
    if meaning.test is None:
        ok = value in meaning.choices if meaning.choices else isinstance(value, bool | np.bool_)
    else:
        halves = jax.tree.leaves(value)  # a Decay has two
        ok = bool(halves) and not isinstance(value, str) and all(isinstance(v, jax.core.Tracer) or _in(meaning.test, v) for v in halves[:1])
    if not ok:
        raise ValueError(f"{name}: {argument} must be {allowed}, got {value!r}")


def _in(test: Callable[[Any], bool], value: Any) -> bool:
    try:
        return bool(np.all(test(np.asarray(value, dtype=float))))
    except (TypeError, ValueError):
        return False
