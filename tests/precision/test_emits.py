"""What ends a chain for 16-bit parameters keeps the laws with the flag emits="float32", and not without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import optax
import pytest

import tests.conformance.laws  # noqa: F401  (registers the laws)
from adaptx.precision import kahan, stochastic_rounding
from tests.conformance.cases import CASES, Case
from tests.conformance.law import LAWS

ADAM = next(case for case in CASES if case.id == "adam-0")


def landing(last: Callable[[], Any], emits: str | None) -> Case:
    """Adam with this at its end, as a registry entry would declare it."""
    entry = dataclasses.replace(ADAM.entry, needs=(("params",),) * 9, emits=(emits,) * 9)
    return dataclasses.replace(ADAM, entry=entry, factory=lambda **kwargs: optax.chain(ADAM.factory(**kwargs), last()))


@pytest.mark.parametrize("law", ["C1", "B8-strict"])
@pytest.mark.parametrize("last", [kahan, stochastic_rounding])
def test_float32_is_declared(last: Callable[[], Any], law: str) -> None:
    LAWS[law].check(landing(last, "float32"))
    with pytest.raises(AssertionError, match="the update is float32"):
        LAWS[law].check(landing(last, None))
