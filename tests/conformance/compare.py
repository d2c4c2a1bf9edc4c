"""Comparing trees: a difference becomes one line that names the case and the leaf."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from tests.conformance.law import leaves_named
from tests.equations.references.loop import wide


@contextlib.contextmanager
def holds(what: str) -> Iterator[None]:
    """Whatever is raised inside is a law that does not hold, and says so with the case's name."""
    try:
        yield
    except AssertionError:
        raise
    except Exception as error:
        line = str(error).strip().partition("\n")[0]
        raise AssertionError(f"{what}: {type(error).__name__}: {line}") from error


def assert_close(what: str, got: Any, expected: Any, rel: float) -> None:
    """Each leaf differs by at most rel times its largest entry."""
    assert jax.tree.structure(got) == jax.tree.structure(expected), f"{what}: the trees differ"
    for (path, a), b in zip(leaves_named(got), jax.tree.leaves(expected), strict=True):
        a, b = wide(a), wide(b)
        assert a.shape == b.shape, f"{what}{path}: shape {a.shape}, expected {b.shape}"
        error, size = np.max(np.abs(a - b), initial=0), np.max(np.abs(b), initial=0)
        assert error <= rel * size, f"{what}{path}: off by {error:.2e}, the largest entry is {size:.2e}"


def assert_finite(what: str, tree: Any) -> None:
    """No leaf holds a NaN or an Inf."""
    for path, leaf in leaves_named(tree):
        wrong = np.sum(~np.isfinite(wide(leaf)))
        assert not wrong, f"{what}{path}: {wrong} of {np.size(leaf)} numbers are not finite"


def has_places(structure: Any, tree: Any) -> bool:
    """Whether a tree has something in the place of each leaf of that structure."""
    try:
        structure.flatten_up_to(tree)
    except (TypeError, ValueError, KeyError):
        return False
    return True
