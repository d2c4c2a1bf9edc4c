"""Laws G: what is wrong is said at once, in one line that names the optimizer and the leaf or argument."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adaptx.glossary import RENAMED
from adaptx.registry import GLOSSARY
from tests.conformance.cases import STAND_INS, Case, params_like
from tests.conformance.law import law
from tests.conformance.program import transformation


def fails(what: str, call: Callable[[], Any], kind: type[Exception], *named: str) -> None:
    """`call` raises `kind` with one line that has every one of `named` in it, and no second error hangs on it."""
    try:
        call()
    except Exception as error:
        raised: Exception | None = error
    else:
        raised = None
    assert raised is not None, f"{what}: accepted"
    message = str(raised)
    assert type(raised) is kind, f"{what}: {type(raised).__name__}, not {kind.__name__}: {message}"
    assert "\n" not in message, f"{what}: more than one line: {message}"
    for name in named:
        assert name in message, f"{what}: {name} is not named: {message}"
    chained = raised.__cause__ is not None or (raised.__context__ is not None and not raised.__suppress_context__)
    assert not chained, f"{what}: the error shows another one that it came from"


def _broadcasts(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Shapes are left to broadcasting, as in Optax: a gradient of (1, 2) moves a parameter of (3, 2)."""

    def fitted(g: Any, x: Any) -> Any:
        fits = len(g.shape) <= len(x.shape) and all(
            n in (1, m) for n, m in zip(g.shape[::-1], x.shape[::-1], strict=False)
        )
        return jnp.broadcast_to(g, x.shape) if fits else g

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        same = params is not None and jax.tree.structure(updates) == jax.tree.structure(params)
        return tx.update(jax.tree.map(fitted, updates, params) if same else updates, state, params)

    return optax.GradientTransformationExtraArgs(tx.init, update)


@law("G1", tier="C", plant=lambda case: case.broken(_broadcasts))
def wrong_gradients_are_named(case: Case) -> None:
    """A wrong shape, leaf or dtype and a missing need raise one line with the optimizer's name and the leaf's path."""
    tx, params, name = transformation(case), params_like(), case.entry.name
    good, state = params_like(seed=7), tx.init(params)
    needs = set(case.flag("needs"))
    # Without parameters only the state can tell: whether some field has the parameters' tree, and their shapes.
    fields = [field for field in state if jax.tree.structure(field) == jax.tree.structure(params)]
    knows_tree = bool(fields)
    knows_shapes = any(jax.tree.map(jnp.shape, field) == jax.tree.map(jnp.shape, params) for field in fields)

    def check(what: str, grads: Any, kind: type[Exception], path: str, known: bool) -> None:
        fails(f"{case.id}: {what}", lambda: tx.update(grads, state, params), kind, name, path)
        if known and not needs:
            fails(f"{case.id}: {what}, no parameters", lambda: tx.update(grads, state), kind, name, path)

    for path, shape in (
        ("w", (2, 3)),
        ("w", (1, 2)),
        ("w", (2,)),
        ("w", ()),
        ("w", (1, 3, 2)),
        ("b", (1,)),
        ("s", (1,)),
    ):
        check(f"shape {shape} at {path}", {**good, path: jnp.ones(shape)}, ValueError, f"['{path}']", knows_shapes)
    for path in good:
        rest = {k: g for k, g in good.items() if k != path}
        check(f"no leaf {path}", rest, ValueError, f"['{path}']", knows_tree)
    check("an extra leaf", {**good, "extra": jnp.ones(2)}, ValueError, "['extra']", knows_tree)
    check("a subtree for a leaf", {**good, "w": {"deeper": good["w"]}}, ValueError, "['w']", knows_tree)
    for dtype in (jnp.int32, jnp.bool_, np.int64):
        grads = {**good, "b": np.ones(2, dtype)}
        check(f"a {np.dtype(dtype)} gradient", grads, TypeError, "['b']", True)
    check("a complex gradient", {**good, "w": good["w"] + 0j}, TypeError, "['w']", False)
    fails(f"{case.id}: int32 parameters", lambda: tx.init({"b": jnp.arange(2)}), TypeError, name, "['b']")

    every = {"params": params} | {need: STAND_INS[need](good, params) for need in needs - {"params"}}
    for need in sorted(needs):
        given = {**every, need: None}
        fails(f"{case.id}: no {need}", lambda given=given: tx.update(good, state, **given), ValueError, name, need)
    if not needs:
        jax.eval_shape(tx.update, good, state)  # what is not declared is not needed


# What is no number, and what lies outside and inside of each range that the glossary ends its texts with.
NO_NUMBER: tuple[Any, ...] = (
    "0.1", [0.1], {"b": 0.1}, (0.1, 0.2), object(), True, float("nan"), np.full(3, 0.1)
)  # fmt: skip
OUTSIDE: dict[str, tuple[Any, ...]] = {
    "in [0, 1)": (-1e-3, 1.0, 1, 1.5, np.float32(1.0), *NO_NUMBER),
    "in [0, 1]": (-1e-3, 1.001, 2, np.float32(1.5), *NO_NUMBER),
    "an int >= 1": (0, -1, 1.0, np.float32(2.0), jnp.int32(2), *NO_NUMBER),
    "in (0, 1/2]": (0.0, 0, -1e-3, 0.6, 1, *NO_NUMBER),
    ">= 4": (3.9, 3, 0, -5.0, *NO_NUMBER),
    "an int >= 0": (-1, 1.0, np.float32(2.0), jnp.int32(2), *NO_NUMBER),
    "an int": (1.0, np.float32(2.0), jnp.int32(2), *NO_NUMBER),
    ">= 0": (-1e-3, -1, np.float32(-1.0), jnp.float32(-1.0), *NO_NUMBER),
    "> 0": (0.0, 0, -1e-3, *NO_NUMBER),
    ">= 1": (0.5, 0, -1, *NO_NUMBER),
    "True or False": (1, 0.0, "True", [True]),
    "a dict of fields with these": (
        "int8",
        "brain",
        16,
        0.5,
        jnp.int32,
        "float8_e4m3fn",
        "float16",
        {},
        {"mu": "int8"},
        {"mu": None},
        np.zeros(3),
    ),
}
INSIDE: dict[str, tuple[Any, ...]] = {
    "in [0, 1)": (0.0, 0.5, np.float32(0.5), jnp.float32(0.5)),
    "in [0, 1]": (0.0, 1, 0.5, np.float32(1.0), jnp.float32(0.5)),
    "an int >= 1": (1, 7, np.int64(3)),
    "in (0, 1/2]": (1e-3, 0.5, np.float32(0.1), jnp.float32(0.1)),
    ">= 4": (4, 4.0, 5.5, np.float32(6.0), jnp.float32(5.0)),
    "an int >= 0": (0, 7, np.int64(3)),
    "an int": (0, -1, np.int64(3)),
    ">= 0": (0.0, 1, np.float32(0.1), jnp.float32(0.1)),
    "> 0": (1e-3, 1, jnp.float32(0.1)),
    ">= 1": (1, 1.5, jnp.float32(100)),
    "True or False": (True, False),
    "a dict of fields with these": ("bfloat16", jnp.float32, np.dtype("float32"), "float64"),
}


def _schedule(count: Any) -> Any:
    return 0.1 / (1 + count)


def _check_argument(name: str, make: Callable[[Any], Any], argument: str) -> None:
    """One argument: what is outside its range raises and says which range, what is inside passes, and so do tracers."""
    about = GLOSSARY[argument]
    if about.choices:
        outside, inside = (3, "nonsense"), about.choices
    else:
        known = next((known for known in OUTSIDE if about.allowed.endswith(known)), None)
        assert known, f"{name}: {argument} is {about.allowed!r}: what lies outside of that?"
        outside, inside = OUTSIDE[known], INSIDE[known]
    outside, inside = (outside, (*inside, _schedule)) if about.schedulable else ((*outside, _schedule), inside)
    outside, inside = ((*outside, None), inside) if not about.none else (outside, (*inside, None))
    for value in outside:
        what = f"{name}({argument}={value!r})"
        fails(what, lambda: make(value), ValueError, f"{name}: {argument} must be {about.allowed}")  # noqa: B023  (called before the loop goes on)
    for value in inside:
        try:
            make(value)
        except Exception as error:
            if about.storage and "no array to store" in str(error):
                continue  # law C6 knows which cases keep none
            raise AssertionError(f"{name}({argument}={value!r}) is refused: {error}") from error
    if about.test(0.5):
        jax.eval_shape(lambda v: make(v).init(params_like()), jnp.float32(-2.0))


def _check_mask(name: str, make: Callable[[Any], Any]) -> None:
    """A mask meets its tree in `update`: no prefix of it, or no bools, raises there."""
    params = params_like()
    for mask in (
        {"b": True},
        {"b": True, "s": True, "v": True},
        {"b": 0.5, "s": True, "w": True},
        "b",
        3,
        lambda p: "b",
    ):
        call = lambda mask=mask: make(mask).update(params, make(mask).init(params), params)
        fails(f"{name}(mask={mask!r})", call, ValueError, f"{name}: mask ")
    make({"b": True, "s": np.bool_(False), "w": False}).init(params)


def _allowed(argument: str) -> Any:
    """A value that the argument may have."""
    return next(v for v in (True, 0.1, 7, *GLOSSARY[argument].choices) if GLOSSARY[argument].test(v))


def _check_factory(name: str, factory: Callable[..., Any], kwargs: dict[str, Any]) -> None:
    """Every argument of one factory, the names that Optax uses, and names that nobody does."""
    signature = inspect.signature(factory).parameters
    for argument in signature:
        needed = GLOSSARY[argument].needs
        given = {k: v for k, v in kwargs.items() if GLOSSARY[k].needs != argument}  # so that it may be None
        if needed and given.get(needed) is None:
            given[needed] = _allowed(needed)
        make = lambda value, argument=argument, given=given: factory(**{**given, argument: value})
        if argument == "mask":
            _check_mask(name, make)
        else:
            _check_argument(name, make, argument)
        if needed:
            value = _allowed(argument)
            call = lambda argument=argument, needed=needed, v=value: factory(**{**kwargs, needed: None, argument: v})
            fails(f"{name}({argument}={value})", call, ValueError, f"{name}: {argument} needs {needed}")
    for theirs in RENAMED.keys() - signature.keys():
        call = lambda theirs=theirs: factory(**{**kwargs, theirs: 0.5})
        fails(f"{name}({theirs}=...)", call, TypeError, name, theirs, *(a for a in RENAMED[theirs] if a in signature))
    fails(f"{name}(nonsense=...)", lambda: factory(**kwargs, nonsense=1), TypeError, name, "nonsense", *signature)


@law("G2", tier="O", plant=lambda case: dataclasses.replace(case, factory=inspect.unwrap(case.factory)))
def wrong_arguments_are_named(case: Case) -> None:
    """An argument out of range, of a wrong type or by another library's name raises one line; schedules pass."""
    _check_factory(case.entry.name, case.factory, dict(case.kwargs))
    direction = case.entry.direction
    if direction is not None:
        accepted = inspect.signature(direction).parameters
        kwargs = {argument: value for argument, value in case.kwargs.items() if argument in accepted}
        _check_factory(f"scale_by_{case.entry.name}", direction, kwargs)
