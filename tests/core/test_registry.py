"""The registry: what `@checked` refuses and lets through, docstrings, and entries that are whole."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptx
from adaptx.core.moments import Decay
from adaptx.core.registry import RENAMED, checked, optimizer
from adaptx.registry import GLOSSARY, OPTIMIZERS, Paper


@checked
def toy(
    learning_rate: Any,
    b2: Any = 0.9,
    *,
    eps: Any = 0.0,
    gamma: Any = 1.0,
    momentum: Any = None,
    amsgrad: bool = False,
    per: str = "tensor",
    weight_decay: Any = 0.1,
    mask: Any = None,
) -> dict[str, Any]:
    """A toy that returns what it was given.

    Step t = 1, 2, ...:
        x = x
    """
    return dict(learning_rate=learning_rate, b2=b2, eps=eps, momentum=momentum, mask=mask)


BAD = {
    "learning_rate": [-1e-3, float("nan"), "0.1", None, -np.float32(1), np.array([0.1, -0.1])],
    "b2": [1.0, 1.5, -0.1, None, "0.9", float("nan"), np.float32(1)],
    "eps": [-1e-8, None],
    "gamma": [0.0, -1.0],
    "momentum": [1.0, -0.5],
    "amsgrad": [1, None, "yes", 0.0],
    "per": ["leaf", None, 1],
}
GOOD = {
    "learning_rate": [0, 0.1, np.float32(0.1), jnp.float32(0.1), optax.constant_schedule(-1.0), np.array(0.1)],
    "b2": [0, 0.0, 0.999, np.float64(0.9), jnp.float32(0.9), Decay.of(0.9)],
    "eps": [0, 1e3],
    "gamma": [1e-30],
    "momentum": [None, 0.0, 0.9],
    "amsgrad": [True, np.bool_(False)],
    "per": ["tree"],
    "mask": [None, True, {"a": False}, lambda params: True],
}


def _rows(table: dict[str, list[Any]]) -> list[Any]:
    """Numbered, since the text of a function differs from worker to worker."""
    return [pytest.param(k, v, id=f"{k}-{i}") for k, values in table.items() for i, v in enumerate(values)]


@pytest.mark.parametrize(("argument", "value"), _rows(BAD))
def test_a_value_out_of_range_is_refused_in_one_line(argument: str, value: Any) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011  (the message is checked below)
        toy(**{"learning_rate": 0.1, argument: value})
    message = str(refusal.value)
    assert message.startswith(f"toy: {argument} must be {GLOSSARY[argument].allowed}")
    assert repr(value) in message
    assert "\n" not in message or isinstance(value, np.ndarray)


@pytest.mark.parametrize(("argument", "value"), _rows(GOOD))
def test_a_value_in_range_passes(argument: str, value: Any) -> None:
    given = toy(**{"learning_rate": 0.1, argument: value})
    assert given.get(argument, value) is value


def test_positional_arguments_are_checked_too() -> None:
    assert toy(0.1, 0.5)["b2"] == 0.5
    with pytest.raises(ValueError, match=r"toy: b2 must be in \[0, 1\), got 1.5"):
        toy(0.1, 1.5)


def test_tracers_pass() -> None:
    traced = jax.jit(lambda b, e: toy(e, b, eps=e, momentum=Decay(b, 1 - b))["eps"])
    assert float(traced(1.5, -1.0)) == -1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_16_bit_decay_is_refused_by_name(dtype: str) -> None:
    with pytest.raises(ValueError, match=r"toy.*b2.*\n?.*inject_hyperparams"):
        toy(0.1, jnp.asarray(0.9, dtype))


def test_an_unknown_argument_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TypeError, match="toy: no argument beta2; allowed are learning_rate, b2, eps"):
        toy(0.1, beta2=0.9)


@pytest.mark.parametrize("argument", RENAMED)
def test_optax_names_lead_to_ours(argument: str) -> None:
    with pytest.raises(TypeError, match=f"toy: no argument {argument}; it is ") as refusal:
        toy(0.1, **{argument: 0.9})
    assert RENAMED[argument] in str(refusal.value)


@pytest.mark.parametrize(
    ("optimizer", "arguments"),
    [
        (optax.rmsprop, ["decay", "initial_scale", "eps_in_sqrt"]),
        (optax.adagrad, ["initial_accumulator_value"]),
        (optax.adadelta, ["rho", "weight_decay_mask"]),
        (optax.adamw, ["mu_dtype"]),
    ],
)
def test_those_names_are_optax_names(optimizer: Any, arguments: list[str]) -> None:
    """A hint about a name that Optax does not use would be noise."""
    theirs = inspect.signature(optimizer).parameters
    assert [a for a in arguments if a not in theirs] == []
    assert [a for a in arguments if a not in RENAMED] == []


def test_the_docstring_lists_every_argument() -> None:
    lines = (toy.__doc__ or "").splitlines()
    listed = lines[lines.index("Arguments:") + 1 :]
    assert [line.split(":")[0].strip() for line in listed] == [*inspect.signature(toy).parameters]
    assert listed[0].endswith("required.")
    assert "default 0.9." in listed[1]
    assert "None = off; default None." in listed[4]
    assert lines[0] == "A toy that returns what it was given."


def test_the_glossary_has_every_argument_and_no_other() -> None:
    factories = [getattr(adaptx, name) for name in adaptx.__all__ if callable(getattr(adaptx, name))]
    arguments = {a for f in factories if inspect.isfunction(f) for a in inspect.signature(f).parameters}
    assert arguments == set(GLOSSARY)


def test_everything_public_has_a_docstring() -> None:
    assert [name for name in adaptx.__all__ if not (getattr(adaptx, name).__doc__ or "").strip()] == []


PER_CASE = [f.name for f in dataclasses.fields(adaptx.registry.Entry) if f.type == "PerCase"]


@pytest.mark.parametrize("entry", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_entry_is_whole(entry: Any) -> None:
    assert entry.factory is getattr(adaptx, entry.name)
    assert (entry.direction is None) != (entry.direction_reason == "")
    if entry.direction is not None:
        assert entry.direction is getattr(adaptx, f"scale_by_{entry.name}")
    assert entry.paper.title
    assert 1950 < entry.paper.year < 2100
    assert entry.paper.url.startswith("https://")
    assert entry.typical_rate > 0
    for name in PER_CASE:
        values = getattr(entry, name)
        assert isinstance(values, tuple), name
        assert len(values) == len(entry.cases), name
    assert {*entry.reduces} <= {"element", "tensor", "tree"}
    for flags in (entry.normalised, entry.odd, entry.scale_free, entry.zero_is_fixed):
        assert {*map(type, flags)} == {bool}
    for case in entry.cases:
        assert "learning_rate" in case
        entry.factory(**case)


def test_registering_spreads_one_value_and_counts_lists() -> None:
    declared = dict(
        paper=Paper("Toy", 2000, "https://example.org"),
        family="toy",
        cases=({"learning_rate": 0.1}, {"learning_rate": 0.2}),
        typical_rate=0.1,
        direction="a toy",
    )

    def shortlived(learning_rate: Any) -> Any:
        """A toy."""
        return learning_rate

    try:
        assert optimizer(**declared, odd=[True, False], reduces="tree")(shortlived)(0.5) == 0.5
        entry = OPTIMIZERS["shortlived"]
        assert (entry.odd, entry.reduces, entry.emits) == ((True, False), ("tree", "tree"), (None, None))
    finally:
        OPTIMIZERS.pop("shortlived", None)
    with pytest.raises(TypeError, match="one value for each of the 2 cases"):
        optimizer(**declared, odd=[True])(shortlived)
    assert "shortlived" not in OPTIMIZERS
