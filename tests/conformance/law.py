"""What a law is: a check on a Case that raises when it does not hold, with a planted defect that it must catch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from tests.conformance.cases import CASES, DEFAULT, FULLEST, ONE_OF_A_FAMILY, PER_OPTIMIZER, Case


@dataclasses.dataclass(frozen=True)
class Law:
    """`check(case)` raises AssertionError when the law does not hold."""

    id: str
    # In `make test`, "C": each optimizer's default case and its fullest; "D": the default; "O": the fullest; "F": the
    # fullest of one optimizer of a family. `make test-all` takes every case. The fast suite takes default cases only:
    # of each optimizer for "C" and "D", for "O" and "F" of the one that the defect is planted in.
    tier: str
    check: Callable[[Case], None]
    plant: Callable[[Case], Case]  # turns a sound case into a faulty one that the law must catch
    planted_on: str  # the optimizer the defect is planted in
    crash: str  # the exception that the planted defect ends in, where crashing is what the law forbids
    applies: Callable[[Case], bool]  # a declared flag of the registry, never a list of names

    @property
    def title(self) -> str:
        return (self.check.__doc__ or "").strip().splitlines()[0]

    def cases(self, every: bool = False) -> list[Case]:
        """The cases of its tier that it applies to; `every` for `make test-all`."""
        tier = CASES if every else {"C": PER_OPTIMIZER, "D": DEFAULT, "O": FULLEST, "F": ONE_OF_A_FAMILY}[self.tier]
        return [case for case in tier if self.applies(case)]


LAWS: dict[str, Law] = {}


def law(
    id: str,
    tier: str,
    plant: Callable[[Case], Case],
    planted_on: str = "adam",
    crash: str = "",
    applies: Callable[[Case], bool] = lambda case: True,
) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Registers a law. Its docstring's first line is its statement."""

    def register(check: Callable[[Case], None]) -> Callable[[Case], None]:
        assert id not in LAWS, f"law {id} is there twice"
        LAWS[id] = Law(id, tier, check, plant, planted_on, crash, applies)
        return check

    return register


def leaves_named(tree: Any) -> list[tuple[str, Any]]:
    """Leaves with their paths, for messages."""
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]
