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
from jax import Array
from jax.core import Tracer

from adaptx.core.moments import Decay

P = ParamSpec("P")
T = TypeVar("T")


class Paper(NamedTuple):
    """Where the method comes from."""

    title: str
    year: int
    url: str


PerCase = Any  # one value, spread by `optimizer` to a tuple with one for each case


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One optimizer. The fields from `reduces` on have one value for each case; the laws verify them all."""

    name: str
    factory: Callable[..., Any]
    direction: Callable[..., Any] | None = None  # the `scale_by_` factory
    direction_reason: str = ""  # why there is none
    paper: Paper
    family: str
    cases: tuple[Mapping[str, Any], ...]  # complete keyword arguments: first the default case, last the fullest
    typical_rate: float
    maturity: str = "stable"
    reduces: PerCase = "element"  # how far one element's update looks: "element", "tensor" or "tree"
    needs: PerCase = ()  # what `update` must be given beside gradients and state
    normalised: PerCase = False  # the step for huge gradients is 0.5 to 2 times the step for gradients of 1
    odd: PerCase = True  # (-g, -x) gives -u
    scale_free: PerCase = False  # g -> c g changes nothing when eps, eps_root, decay and first accumulator are 0
    zero_is_fixed: PerCase = True  # zero gradients give the decay alone
    emits: PerCase = None  # the update's dtype where it is not the wider of gradient's and parameter's


OPTIMIZERS: dict[str, Entry] = {}


def optimizer(*, direction: Callable[..., Any] | str, **declared: Any) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Registers a factory with the fields of an Entry; a field with one value for each case may be given as one value.

    direction: the `scale_by_` factory, or the reason why there is none.
    """

    def register(factory: Callable[P, T]) -> Callable[P, T]:
        public, count = checked(factory), len(declared["cases"])
        spread = lambda value: tuple(value) if isinstance(value, list) else (value,) * count
        flags = {
            f.name: spread(declared.get(f.name, f.default)) for f in dataclasses.fields(Entry) if f.type == "PerCase"
        }
        if any(len(values) != count for values in flags.values()):
            raise TypeError(f"{factory.__name__}: a list needs one value for each of the {count} cases")
        named = {"direction_reason": direction} if isinstance(direction, str) else {"direction": direction}
        OPTIMIZERS[factory.__name__] = Entry(name=factory.__name__, factory=public, **{**declared, **flags, **named})
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
    needs: str = ""  # the argument without which this one would change nothing


_rate = functools.partial(Argument, allowed="a number, array or schedule >= 0", test=lambda v: v >= 0, schedulable=True)
_decay = functools.partial(Argument, allowed="in [0, 1)", test=lambda v: (v >= 0) & (v < 1))
_size = functools.partial(Argument, allowed=">= 0", test=lambda v: v >= 0)
_positive = functools.partial(Argument, allowed="> 0", test=lambda v: v > 0)
_mask = functools.partial(Argument, allowed="a prefix tree of bools or a function giving one")
_switch = functools.partial(Argument, allowed="True or False")

GLOSSARY: dict[str, Argument] = {
    "learning_rate": _rate("the step size"),
    "b1": _decay("decay of the first moment"),
    "b2": _decay("decay of the second moment"),
    "eps": _size("added to the root in the denominator (outside)"),
    "eps_root": _size("added under the root (inside)"),
    "momentum": _decay("decay of a momentum buffer over the directions, before the rate", none="off"),
    "nesterov": _switch("look one momentum step ahead; needs momentum", needs="momentum"),
    "weight_decay": _rate("decoupled decay, times the learning rate", none="off"),
    "mask": _mask("where the decay applies; needs weight_decay", none="everywhere", needs="weight_decay"),
    "initial_accumulator": _size("the second moment's first value"),
    "lr_decay": _size("the rate at step t is divided by 1 + (t - 1) lr_decay", none="off"),
    "l1": _size("l1 penalty, by the proximal step: small weights become exactly zero", none="off"),
    "centered": _switch("subtract the squared mean from the second moment (a variance, clamped at 0)"),
    "bias_correction": _switch("divide the moments by 1 - b2^t, for their zero start"),
    "amsgrad": _switch("divide by the largest second moment so far"),
    "momentum_decay": _size("psi in the momentum schedule b1 (1 - 0.96^(t psi) / 2)", none="constant b1"),
    "final_learning_rate": _rate("the SGD rate that both bounds tend to"),
    "gamma": _positive("how fast the bounds close"),
    "amsbound": _switch("divide by the largest second moment so far"),
    "per": Argument("one accumulator for each", "'tensor' or 'tree'", choices=("tensor", "tree")),
    "threshold": _size("the largest |g| that is dropped"),
    "initial_distance": _positive("the first distance, relative to 1 + the norm of the first parameters"),
}

# Optax's names for what is called otherwise here.
RENAMED = {"decay": "b2", "rho": "b2", "weight_decay_mask": "mask", "init_step": "initial_distance"}
RENAMED |= {"initial_accumulator_value": "initial_accumulator", "initial_scale": "initial_accumulator"}
RENAMED |= {"eps_in_sqrt": "eps_root (inside the root) and eps (outside)", "mu_dtype": "always float32 or wider"}


def checked(factory: Callable[P, T]) -> Callable[P, T]:
    """A factory whose concrete arguments are validated by the glossary and listed in its docstring."""
    signature, name = inspect.signature(factory), factory.__name__
    defaults = {argument: parameter.default for argument, parameter in signature.parameters.items()}

    @functools.wraps(factory)
    def public(*args: P.args, **kwargs: P.kwargs) -> T:
        for argument in kwargs:
            if argument not in signature.parameters:
                allowed = f"allowed are {', '.join(signature.parameters)}"
                hint = f"it is {RENAMED[argument]} here" if argument in RENAMED else allowed
                raise TypeError(f"{name}: no argument {argument}; {hint}")
        given = signature.bind(*args, **kwargs).arguments
        for argument, value in given.items():
            _check(name, argument, value)
            needed = GLOSSARY[argument].needs
            if needed and value is not defaults[argument] and given.get(needed, defaults.get(needed)) is None:
                raise ValueError(f"{name}: {argument} needs {needed}")
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
    if (value is None and meaning.none) or (callable(value) and (meaning.schedulable or argument == "mask")):
        return
    if argument == "mask":
        ok = all(isinstance(leaf, bool | np.bool_ | Array) for leaf in jax.tree.leaves(value))
    elif meaning.test is None:
        ok = value in meaning.choices if meaning.choices else isinstance(value, bool | np.bool_)
    else:
        value = value.value if isinstance(value, Decay) else value
        if meaning.allowed == "in [0, 1)" and hasattr(value, "dtype"):
            Decay.of(value, f"{name}: {argument}: ")
        number = isinstance(value, int | float | np.ndarray | np.generic | Array) and np.ndim(value) == 0
        ok = isinstance(value, Tracer) or (number and not isinstance(value, bool) and meaning.test(float(value)))
    if not ok:
        allowed = meaning.allowed + " or None" * bool(meaning.none)
        raise ValueError(f"{name}: {argument} must be {allowed}, got {value!r}")
