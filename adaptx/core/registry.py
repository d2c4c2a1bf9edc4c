"""Registry: what every optimizer declares, and the checks of its arguments against the glossary.

One `@optimizer(...)` line buys the conformance laws, the table row, the catalogue entry and the demo.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, ParamSpec, TypeVar

from jax import Array

from adaptx.core.checks import shown
from adaptx.core.moments import Decay
from adaptx.glossary import ERRORS, GLOSSARY, INSTEAD, RENAMED, Argument, is_flag, is_number

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
    emits: PerCase = None  # the dtype of 16-bit updates where it is not the wider of gradient's and parameter's


OPTIMIZERS: dict[str, Entry] = {}


def optimizer(*, direction: Callable[..., Any] | str, **declared: Any) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Registers a factory with the fields of an Entry; a field with one value for each case may be given as one value.

    direction: the `scale_by_` factory, or the reason why there is none. A case that decays `needs` params unsaid.
    """

    def register(factory: Callable[P, T]) -> Callable[P, T]:
        public, count = checked(factory, declared["paper"]), len(declared["cases"])
        spread = lambda value: tuple(value) if isinstance(value, list) else (value,) * count
        flags = {
            f.name: spread(declared.get(f.name, f.default)) for f in dataclasses.fields(Entry) if f.type == "PerCase"
        }
        if any(len(values) != count for values in flags.values()):
            raise TypeError(f"{factory.__name__}: a list needs one value for each of the {count} cases")
        own = inspect.signature(factory).parameters.get("weight_decay")
        decays = [case.get("weight_decay", own and own.default) is not None for case in declared["cases"]]
        pairs = zip(flags["needs"], decays, strict=True)
        flags["needs"] = tuple((*n, *["params"] * (decayed and "params" not in n)) for n, decayed in pairs)
        named = {"direction_reason": direction} if isinstance(direction, str) else {"direction": direction}
        OPTIMIZERS[factory.__name__] = Entry(name=factory.__name__, factory=public, **{**declared, **flags, **named})
        return public

    return register


def checked(
    factory: Callable[P, T], paper: Paper | tuple[()] = (), words: Mapping[str, Argument] = GLOSSARY, name: str = ""
) -> Callable[P, T]:
    """A factory whose arguments are validated by the glossary; its docstring lists them, its errors and its source.

    words: the glossary, where it is another; name: what errors call the factory, if not by its own name.
    """
    signature, name = inspect.signature(factory), name or factory.__name__
    defaults = {argument: parameter.default for argument, parameter in signature.parameters.items()}
    allowed = ", ".join(defaults)

    @functools.wraps(factory)
    def public(*args: P.args, **kwargs: P.kwargs) -> T:
        for argument in [a for a in kwargs if a not in defaults]:
            ours = RENAMED.get(f"{name}.{argument}", RENAMED.get(argument, ()))
            ours = [a for a in defaults if a in ours or argument in RENAMED.get(a, ())]  # or our name, in a preset
            ours = ours or difflib.get_close_matches(argument, defaults, 1, 0.85)
            hint = INSTEAD.get(f"{name}.{argument}") or (f"it is {' and '.join(ours)} here; " if ours else "")
            raise TypeError(f"{name}: no argument {argument}; {hint}allowed are {allowed}")
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}: {error}; allowed are {allowed}") from None
        given = bound.arguments
        for argument, value in given.items():
            if value is not None or defaults[argument] is not None:  # a default of None may be given too
                check_argument(name, argument, value, words)
            needed = words[argument].needs
            off = value is defaults[argument] or (is_flag(value) and value == defaults[argument])
            if needed and not off and given.get(needed, defaults.get(needed)) is None:
                raise ValueError(f"{name}: {argument} needs {needed}")
        given |= {a: _watched(name, a, v) for a, v in given.items() if words[a].schedulable and callable(v)}
        return factory(*bound.args, **bound.kwargs)

    text = inspect.cleandoc(factory.__doc__ or "")
    lines = ["", "", "Arguments:", *(_described(p, words[p.name]) for p in signature.parameters.values())]
    lines += ([] if "Errors:" in text else ["", *ERRORS]) + (["", "Source: {}, {}, {}".format(*paper)] if paper else [])
    public.__doc__ = text + "\n".join(lines)
    return public


def _described(parameter: inspect.Parameter, argument: Argument) -> str:
    default = "required" if parameter.default is parameter.empty else f"default {parameter.default}"
    none = f"; None = {argument.none}" if argument.none else ""
    return f"    {parameter.name}: {argument.meaning}; {argument.allowed}{none}; {default}."


def check_argument(name: str, argument: str, value: Any, words: Mapping[str, Argument] = GLOSSARY) -> None:
    """One line for a value that the glossary does not allow; schedules pass, and tracers of one number."""
    meaning = words[argument]
    number = value.value if meaning.decay and isinstance(value, Decay) else value
    if not (meaning.test(number) or (value is None and meaning.none)):
        allowed = meaning.allowed + " or None" * bool(meaning.none)
        hint = " (optax.inject_hyperparams: name it in static_args)" * (meaning.static and isinstance(value, Array))
        raise ValueError(f"{name}: {argument} must be {allowed}, got {shown(value)}{hint}")
    if meaning.decay and value is not None:
        Decay.of(value, f"{name}: {argument}: ")


def _watched(name: str, argument: str, schedule: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """The schedule, with one line for a value that is not one number: it would broadcast into the update."""

    def value(count: Array) -> Any:
        rate = schedule(count)
        if not is_number(rate):
            raise ValueError(f"{name}: the schedule of {argument} must give one real number, got {shown(rate)}")
        return rate

    return value
