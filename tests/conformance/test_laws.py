"""Every law on every case of its tier; the ledger of exceptions; and each law against its planted defect."""

from __future__ import annotations

import pytest

import tests.conformance.laws  # noqa: F401  (registers the laws)
from tests.conformance.cases import CASES, Case
from tests.conformance.law import LAWS, Law
from tests.conformance.ledger import LEDGER


def _parameters() -> list[object]:
    rows = []
    # Case by case, so that a worker which gets neighbours compiles each program once.
    for case in CASES:
        for law in (law for law in LAWS.values() if case in law.cases(every=True)):
            fast = not case.index and (law.tier in "CD" or case.entry.name == law.planted_on)  # see Law.tier
            marks = [] if fast else [pytest.mark.suite if case in law.cases() else pytest.mark.slow]
            if (law.id, case.id) in LEDGER:
                marks.append(pytest.mark.xfail(strict=True, raises=AssertionError, reason=LEDGER[law.id, case.id]))
            rows.append(pytest.param(law, case, id=f"{law.id}-{case.id}", marks=marks))
    return rows


@pytest.mark.parametrize(("law", "case"), _parameters())
def test_law(law: Law, case: Case) -> None:
    law.check(case)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_law_catches_its_planted_defect(law: Law) -> None:
    sound = next(case for case in law.cases(every=True) if case.entry.name == law.planted_on)
    with pytest.raises(AssertionError) as caught:
        law.check(law.plant(sound))
    # By what it compares, not because the planted defect happened to crash.
    crash = type(caught.value.__cause__).__name__ if caught.value.__cause__ else ""
    assert crash == law.crash


def test_ledger_names_laws_and_cases() -> None:
    ids = {case.id for case in CASES}
    for law, case in LEDGER:
        assert law in LAWS
        assert case in ids
        assert LEDGER[law, case]
