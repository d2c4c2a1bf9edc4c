"""The suite itself: every law that is due is there, and no flag of the registry is taken at its word."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import tests.conformance.laws  # noqa: F401  (registers the laws)
from adaptx.registry import Entry
from tests.conformance.cases import CASES, Case
from tests.conformance.law import LAWS

DUE = """
    A1 A3 A4 A5
    B1 B2 B3 B4 B5 B6 B7 B8 B9
    C1 C2 C3 C4 C5 C6
    D1 D2
    E1 E2 E3 E4 E5 E7
    F1 F2 F3 F4 F5 F6
    G1 G2
    H1 H2 H3 H4 H5 H6
    I1
    K2 K3 K4
    L1 L4 L7 L8
""".split()
# E6 (bias corrections) is tests/core/test_moments.py; L3 is `make mutate`; L5 is `make test-oldest` and `test-latest`.

# Flag of a case -> the laws that verify it, and another value that each of them must refuse.
FLAGS: dict[str, tuple[tuple[str, ...], Any]] = {
    "reduces": (("F2", "F6"), {"element": "tree", "tensor": "element", "tree": "tensor"}),
    "needs": (("G1",), {(): ("params",), ("params",): ()}),
    "normalised": (("E3",), {True: False, False: True}),
    "odd": (("F3",), {True: False, False: True}),
    "scale_free": (("F4",), {True: False, False: True}),
    "zero_is_fixed": (("E1",), {True: False, False: True}),
    "emits": (("C1",), {None: "float32", "float32": None}),
}


def test_every_law_that_is_due_is_registered() -> None:
    assert [id for id in DUE if id not in LAWS] == []


@pytest.mark.parametrize("id", LAWS)
def test_law_is_stated_and_can_be_planted(id: str) -> None:
    law = LAWS[id]
    assert law.title.endswith("."), f"{id}: the docstring's first line is its statement"
    assert law.tier in ("C", "D", "O", "F")
    assert any(case.entry.name == law.planted_on for case in law.cases(every=True)), (
        f"{id} is planted on {law.planted_on}"
    )


def test_every_flag_has_a_law() -> None:
    assert {field.name for field in dataclasses.fields(Entry) if field.type == "PerCase"} == FLAGS.keys()


def _turned(case: Case, flag: str) -> Case:
    """The same case with a wrong flag."""
    values = list(getattr(case.entry, flag))
    values[case.index] = FLAGS[flag][1][values[case.index]]
    return dataclasses.replace(case, entry=dataclasses.replace(case.entry, **{flag: tuple(values)}))


@pytest.mark.parametrize(
    ("law", "flag", "id"),
    [
        ("F2", "reduces", "adam-0"),
        ("F2", "reduces", "adagrad_norm-0"),
        ("F2", "reduces", "adagrad_norm-1"),
        ("F6", "reduces", "adam-0"),
        ("F6", "reduces", "adagrad_norm-1"),
        ("G1", "needs", "adam-0"),
        ("G1", "needs", "dog-0"),
        ("E3", "normalised", "adam-0"),
        ("E3", "normalised", "adabound-0"),
        ("F3", "odd", "adam-0"),
        ("F4", "scale_free", "adam-0"),
        ("F4", "scale_free", "adabound-0"),
        ("E1", "zero_is_fixed", "adagrad-0"),
        ("E1", "zero_is_fixed", "adagrad-3"),
        ("C1", "emits", "adam-0"),
    ],
)
def test_a_wrong_flag_is_refused(law: str, flag: str, id: str) -> None:
    case = next(case for case in CASES if case.id == id)
    with pytest.raises(AssertionError):
        LAWS[law].check(_turned(case, flag))


def test_every_flag_is_turned_somewhere() -> None:
    (parameters,) = (mark for mark in test_a_wrong_flag_is_refused.pytestmark if mark.name == "parametrize")
    turned = {(law, flag) for law, flag, _ in parameters.args[1]}
    assert turned == {(law, flag) for flag, (laws, _) in FLAGS.items() for law in laws}
