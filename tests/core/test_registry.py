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
from adaptx.core.registry import checked, optimizer
from adaptx.glossary import INSTEAD, RENAMED
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
    return dict(learning_rate=learning_rate, b2=b2, eps=eps, momentum=momentum, weight_decay=weight_decay, mask=mask)


BAD = {
    "learning_rate": [
        -1e-3,
        float("nan"),
        float("inf"),
        "0.1",
        None,
        -np.float32(1),
        [0.1],
        1j,
        np.complex64(1),
        True,
        np.True_,
        jnp.array(True),
        jnp.array(1j),
    ],
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
    assert message.endswith(f", got {value!r}")
    assert "\n" not in message


@pytest.mark.parametrize("argument", ["learning_rate", "b2", "eps", "weight_decay"])
def test_an_array_is_no_number(argument: str) -> None:
    """It would broadcast into the update; concrete or traced."""
    line = f"toy: {argument} must be .*, got "
    with pytest.raises(ValueError, match=line + r"float32\[3\]"):
        toy(**{"learning_rate": 0.1, argument: np.full(3, 0.1, np.float32)})
    with pytest.raises(ValueError, match=line + r"float32\[1, 2\]"):
        jax.eval_shape(lambda a: toy(**{"learning_rate": 0.1, argument: a})["eps"], jnp.full((1, 2), 0.1))


@pytest.mark.parametrize("value", [jnp.full(1, 0.1), np.ones((2, 1)), None, "0.1", True, 1j, jnp.array(1j)], ids=repr)
def test_a_schedule_gives_one_real_number(value: Any) -> None:
    schedule = toy(lambda count: value)["learning_rate"]
    with pytest.raises(
        ValueError, match="toy: the schedule of learning_rate must give one real number, got "
    ) as refusal:
        schedule(jnp.int32(0))
    assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match=r"toy: the schedule of weight_decay .* got float32\[2\]"):
        jax.eval_shape(
            toy(0.1, weight_decay=lambda count: jnp.stack([count, count]) * 0.1)["weight_decay"], jnp.int32(0)
        )


@pytest.mark.parametrize("value", [0.1, 0, np.float64(0.1), jnp.float32(0.1), jnp.bfloat16(0.5)], ids=repr)
def test_what_a_schedule_gives_is_passed_on(value: Any) -> None:
    assert toy(lambda count: value)["learning_rate"](jnp.int32(0)) is value


@pytest.mark.parametrize(("argument", "value"), _rows(GOOD))
def test_a_value_in_range_passes(argument: str, value: Any) -> None:
    given = toy(**{"learning_rate": 0.1, argument: value}).get(argument, value)
    assert given is value or (callable(value) and given(0) == value(0))


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


ARGUMENTS = "learning_rate, b2, eps, gamma, momentum, amsgrad, per, weight_decay, mask"


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((0.1,), dict(nonsense=1), "no argument nonsense; "),
        ((0.1,), dict(amsgard=True), "no argument amsgard; it is amsgrad here; "),
        ((), dict(lr=0.1), "no argument lr; it is learning_rate here; "),
        ((0.1,), dict(weight_decay_mask=True), "no argument weight_decay_mask; it is mask here; "),
        ((0.1,), dict(rho=0.9), "no argument rho; it is b2 here; "),
        ((0.1,), dict(beta_1=0.9), "no argument beta_1; "),  # it has no b1
        ((0.1,), dict(betas=(0.9, 0.999)), "no argument betas; it is b2 here; "),
        ((0.1,), dict(eps_in_sqrt=True), "no argument eps_in_sqrt; it is eps here; "),
        ((), {}, "missing a required argument: 'learning_rate'; "),
        ((0.1, 0.9, 0.0), {}, "too many positional arguments; "),
        ((0.1,), dict(learning_rate=0.1), "multiple values for argument 'learning_rate'; "),
    ],
    ids=repr,
)
def test_a_call_that_does_not_fit(args: tuple[Any, ...], kwargs: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError) as refusal:
        toy(*args, **kwargs)
    assert str(refusal.value) == f"toy: {says}allowed are {ARGUMENTS}"


@pytest.mark.parametrize(
    ("optimizer", "arguments"),
    [
        (optax.rmsprop, ["decay", "initial_scale", "eps_in_sqrt"]),
        (optax.adagrad, ["initial_accumulator_value"]),
        (optax.adadelta, ["rho", "weight_decay_mask"]),
        (optax.contrib.dog, ["init_step"]),
    ],
)
def test_those_names_are_optax_names(optimizer: Any, arguments: list[str]) -> None:
    """A hint about a name that Optax does not use would be noise."""
    theirs = inspect.signature(optimizer).parameters
    assert [a for a in arguments if a not in theirs] == []
    assert [a for a in arguments if a not in RENAMED and f"{optimizer.__name__}.{a}" not in RENAMED] == []


def test_what_is_no_argument_here_has_something_in_its_place() -> None:
    for of, hint in INSTEAD.items():
        name, argument = of.split(".")
        with pytest.raises(TypeError) as refusal:
            getattr(adaptx, name)(**{argument: True})
        assert str(refusal.value).startswith(f"{name}: no argument {argument}; {hint}allowed are ")
    params, g = jnp.ones(2), jnp.array([0.1, -2.0])
    # Both decays are exact in float32; of others Optax's 1 - b2 is not.
    theirs, ours = optax.adam(0.1, 0.5, 0.75, nesterov=True), adaptx.nadam(0.1, 0.5, 0.75, momentum_decay=None)
    state, own = theirs.init(params), ours.init(params)
    for i in range(3):  # the words are true
        a, state = theirs.update(g - i, state, params)
        b, own = ours.update(g - i, own, params)
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_renamed_leads_to_arguments_and_is_none() -> None:
    assert {ours for names in RENAMED.values() for ours in names} <= GLOSSARY.keys()
    assert not RENAMED.keys() & GLOSSARY.keys()


def test_values_that_are_long_or_arrays_end_in_one_short_line() -> None:
    with pytest.raises(ValueError, match=r"toy: eps must be >= 0, got 10{96}\.\.\.$"):
        toy(0.1, eps=10**400)
    for large in (2**63, 2**63 + 1, 2**64, -(2**63)):
        with pytest.raises(ValueError, match=f"toy: eps must be >= 0, got {large}$"):
            toy(0.1, eps=large)
    toy(0.1, eps=2**63 - 1)
    with pytest.raises(ValueError, match=r"toy: per must be 'tensor' or 'tree', got int64\[2\]$"):
        toy(0.1, per=np.array([1, 2]))
    with pytest.raises(ValueError, match=r"toy: mask must be .*, got \{'w': 'float32\[3, 3\]'\}$"):
        toy(0.1, mask={"w": jnp.ones((3, 3))})


@checked
def seeded(seed: int | None = None) -> int | None:
    """A toy with an argument that shapes the program."""
    return seed


@pytest.mark.parametrize("value", [True, np.True_, 1.0, -1, "1", jnp.int32(1)])
def test_a_static_argument_is_an_int_in_its_range(value: Any) -> None:
    assert (seeded(3), seeded(np.int64(3)), seeded(0), seeded()) == (3, 3, 0, None)
    with pytest.raises(ValueError, match="seeded: seed must be an int >= 0 or None, got "):
        seeded(value)


def test_a_switch_of_numpy_that_is_off_needs_nothing() -> None:
    adaptx.rmsprop(0.1, nesterov=np.False_)
    with pytest.raises(ValueError, match="nesterov needs momentum"):
        adaptx.rmsprop(0.1, nesterov=np.True_)


@pytest.mark.parametrize(
    ("factory", "argument", "hint"),
    [
        (adaptx.rmsprop, "alpha", "it is b2 here; "),
        (adaptx.adam, "alpha", "it is learning_rate here; "),
        (adaptx.rmsprop, "decay", "it is b2 here; "),
        (adaptx.dog, "reps_rel", "it is initial_distance here; "),
        (adaptx.adabound, "final_lr", "it is final_learning_rate here; "),
        (adaptx.adam, "wd", "it is weight_decay here; "),
        (adaptx.adam, "betas", "it is b1 and b2 here; "),
        (adaptx.came, "betas", "it is b1 and b2 and b3 here; "),
        (adaptx.adafactor, "eps", "it is eps_root and min_scale here; "),
        (adaptx.adam, "learnin_rate", "it is learning_rate here; "),
        (adaptx.ftrl, "learning_rate_power", ""),  # not the rate
    ],
)
def test_hints_are_of_the_optimizer(factory: Any, argument: str, hint: str) -> None:
    with pytest.raises(TypeError, match=f"^{factory.__name__}: no argument {argument}; {hint}allowed are "):
        factory(0.1, **{argument: 0.1})
    for unknown in ("lr_decay", "decay"):
        with pytest.raises(TypeError, match=f"adam: no argument {unknown}; allowed are"):
            adaptx.adam(0.1, **{unknown: 0.1})


def test_the_docstring_lists_every_argument() -> None:
    lines = (toy.__doc__ or "").splitlines()
    listed = lines[lines.index("Arguments:") + 1 : lines.index("Errors:") - 1]
    assert [line.split(":")[0].strip() for line in listed] == [*inspect.signature(toy).parameters]
    assert listed[0].endswith("required.")
    assert "default 0.9." in listed[1]
    assert "None = off; default None." in listed[4]
    assert lines[0] == "A toy that returns what it was given."


@pytest.mark.parametrize("entry", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_docstring_ends_with_errors_and_source(entry: Any) -> None:
    *_, blank, source = (entry.factory.__doc__ or "").splitlines()
    assert blank == ""
    assert source == f"Source: {entry.paper.title}, {entry.paper.year}, {entry.paper.url}"
    assert "\n\nErrors:\n    TypeError: " in entry.factory.__doc__


def test_the_glossary_has_every_argument_and_no_other() -> None:
    factories = [f for room in (adaptx, adaptx.sparse) for f in map(vars(room).get, room.__all__)]
    # `checked` lists the arguments; what it does not wrap has arguments of its own.
    factories = [
        f
        for f in factories
        if inspect.isfunction(f) and "\nArguments:\n    " in (f.__doc__ or "") and hasattr(f, "__wrapped__")
    ]
    arguments = {a for f in factories for a in inspect.signature(f).parameters}
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
