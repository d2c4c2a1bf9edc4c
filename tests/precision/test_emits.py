"""What lets 16-bit parameters track float32 keeps the laws with the flag emits="float32", and not without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import optax
import pytest

import tests.conformance.laws  # noqa: F401  (registers the laws)
from adaptx.precision import kahan, master_weights, stochastic_rounding
from tests.conformance.cases import CASES, Case
from tests.conformance.law import LAWS

ADAM = next(case for case in CASES if case.id == "adam-0")


WAYS: dict[str, Callable[[Any], Any]] = {
    "kahan": lambda tx: optax.chain(tx, kahan()),
    "master_weights": master_weights,
    "stochastic_rounding": lambda tx: optax.chain(tx, stochastic_rounding()),
}


def landing(way: str, emits: str | None) -> Case:
    """Adam that lands on 16-bit numbers, as a registry entry would declare it."""
    each = len(ADAM.entry.cases)
    entry = dataclasses.replace(ADAM.entry, needs=(("params",),) * each, emits=(emits,) * each)
    return dataclasses.replace(ADAM, entry=entry, factory=lambda **kwargs: WAYS[way](ADAM.factory(**kwargs)))


@pytest.mark.parametrize("law", ["C1", "B8-strict"])
@pytest.mark.parametrize("way", WAYS)
def test_float32_is_declared(way: str, law: str) -> None:
    LAWS[law].check(landing(way, "float32"))
    with pytest.raises(AssertionError, match="the update is float32"):
        LAWS[law].check(landing(way, None))
