"""Every entry of the table against its law; and the one bug that no law fits."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import tests.conformance.laws  # noqa: F401  (registers the laws)
from tests.conformance.cases import CASES
from tests.conformance.law import LAWS
from tests.regressions.table import LATER, REGRESSIONS, Regression

PACKAGE = Path(__file__).parents[2] / "adaptx"
# Bugs that are themselves an exception; every other plant is caught by what the law compares.
CRASHES = {
    "optax#271, torchopt#232": "TypeError",
    "optax#913": "TypeError",
    "optax#1131": "TypeError",
    "optax#1736": "IndexError",
    "optax.adopt, optax.madgrad": "ValueError",
    "optax#1736, torch#100701": "ValueError",
    "equinox#69": "AttributeError",
}
PLANTED = [row for row in REGRESSIONS if row.plant is not None]


@pytest.mark.suite
@pytest.mark.parametrize("row", PLANTED, ids=[f"{row.law}-{row.bug.partition(',')[0]}" for row in PLANTED])
def test_law_catches(row: Regression) -> None:
    case = next(case for case in CASES if case.id == row.case)
    assert row.plant is not None
    with pytest.raises(AssertionError) as caught:
        LAWS[row.law].check(row.plant(case))
    crash = type(caught.value.__cause__).__name__ if caught.value.__cause__ else ""
    assert crash == CRASHES.get(row.bug, ""), str(caught.value)


@pytest.mark.parametrize("row", REGRESSIONS, ids=[row.bug for row in REGRESSIONS])
def test_row_names_a_law_and_a_case(row: Regression) -> None:
    # A law's own planted defect runs in tests/conformance/test_laws.py.
    law = LAWS[row.law]
    assert any(case.id == row.case and law.applies(case) for case in CASES)
    assert row.what


def test_what_comes_later_says_why() -> None:
    assert all(bug and why for bug, why in LATER)
    assert not {bug for bug, _ in LATER} & {row.bug for row in REGRESSIONS}


def private_imports(source: str) -> list[str]:
    """Modules and names with a leading underscore that are imported from other packages."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    private = lambda part: part.startswith("_") and part != "__future__"
    return [name for name in found if any(map(private, name.split("."))) and not name.startswith("adaptx.")]


def test_only_public_names_are_imported() -> None:
    """psgd_jax imports a private module of Optax, and does not import at all since that has moved."""
    wrong = {str(path): private_imports(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}
    assert {path: names for path, names in wrong.items() if names} == {}
    assert private_imports("from optax._src import base") == ["optax._src.base"]
    assert private_imports("import jax._src.core") == ["jax._src.core"]
