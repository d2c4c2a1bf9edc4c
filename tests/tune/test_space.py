"""The space of a sweep: grids, draws, and what is no axis."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from adaptx.tune import choice, log_uniform, uniform
from adaptx.tune.space import axes_of, grid, random


def test_a_grid_has_every_combination_in_order() -> None:
    axes = axes_of({"a": [1, 2], "b": choice(0.1, 0.2, 0.3)})
    assert grid(axes, None) == [dict(a=a, b=b) for a in (1, 2) for b in (0.1, 0.2, 0.3)]
    assert grid(axes_of({"a": np.float32([1, 2])}), None) == [dict(a=1.0), dict(a=2.0)]


def test_ranges_of_a_grid_get_equally_many_points() -> None:
    points = grid(axes_of({"a": log_uniform(1e-4, 1), "b": uniform(0, 1), "c": [1, 2]}), 40)
    assert len(points) == 32  # 4 x 4 x 2; 5 x 5 x 2 were too many
    np.testing.assert_allclose(sorted({p["a"] for p in points}), np.geomspace(1e-4, 1, 4))
    np.testing.assert_allclose(sorted({p["b"] for p in points}), np.linspace(0, 1, 4))
    assert grid(axes_of({"a": log_uniform(0.01, 1), "b": uniform(0, 1)}), 3) == [dict(a=pytest.approx(0.1), b=0.5)]


def test_random_draws_are_of_the_seed_and_of_the_density() -> None:
    axes = axes_of({"a": log_uniform(1e-4, 1), "b": uniform(-1, 3), "c": [1, 2, 5]})
    drawn = random(axes, 4000, seed=3)
    assert drawn == random(axes, 4000, seed=3) != random(axes, 4000, seed=4)
    a, b, c = (np.array([t[name] for t in drawn]) for name in axes)
    # Standard errors over 4000 draws: 4/sqrt(12 * 4000) = 0.018 for both ranges, 0.0075 for a third.
    assert abs(np.mean(np.log10(a)) + 2) < 0.08
    assert abs(np.mean(b) - 1) < 0.08
    assert 1e-4 <= a.min() < 2e-4
    assert 0.5 < a.max() <= 1
    assert [abs(np.mean(c == v) - 1 / 3) < 0.03 for v in (1, 2, 5)] == [True] * 3


def test_draws_from_lists_alone_are_different_points() -> None:
    axes = axes_of({"a": [1, 2, 3], "b": [1, 2]})
    drawn = random(axes, 6, seed=0)
    assert sorted(map(str, drawn)) == sorted(map(str, grid(axes, None)))
    assert drawn != grid(axes, None)
    with pytest.raises(ValueError, match=r"^sweep: the space has only 6 points, and trials is 7$"):
        random(axes, 7, seed=0)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: axes_of({}),
            "sweep: the space is empty; give values by name, such as {",
        ),
        (lambda: axes_of([1]), "sweep: the space must be a dict of values by name, got [1]"),
        (lambda: axes_of({1: [1]}), "sweep: the space's names must be strings, got 1"),
        (lambda: axes_of({"a": []}), "sweep: a has no values"),
        (lambda: axes_of({"a": 1.0}), "sweep: a must be a list of values, log_uniform, uniform or choice, got 1.0"),
        (lambda: axes_of({"a": "ab"}), "sweep: a must be a list of values, log_uniform, uniform or choice, got 'ab'"),
        (lambda: axes_of({"a": [1.0, None]}), "sweep: a has None, which is no finite number"),
        (lambda: axes_of({"a": [True]}), "sweep: a has True, which is no finite number"),
        (lambda: axes_of({"a": [1.0, np.inf]}), "sweep: a has inf, which is no finite number"),
        (lambda: axes_of({"a": [1.0, 2, 1]}), "sweep: a has 1 twice"),
        (choice, "choice has no values"),
        (lambda: uniform(1, 1), "uniform: low and high must be finite numbers, low < high, got 1 and 1"),
        (lambda: uniform(0, np.inf), "uniform: low and high must be finite numbers, low < high, got 0"),
        (lambda: log_uniform(0, 1), "log_uniform: low and high must be finite numbers, 0 < low < high, got 0"),
        (
            lambda: log_uniform("a", 1),
            "log_uniform: low and high must be finite numbers, 0 < low < high, got 'a' and 1",
        ),
        (lambda: grid(axes_of({"a": uniform(0, 1)}), None), "sweep: a grid over a range (a) needs trials"),
        (lambda: grid(axes_of({"a": [1, 2, 3]}), 2), "sweep: the grid has at least 3 points, and trials is 2"),
        (lambda: random(axes_of({"a": [1]}), None, 0), "sweep: random trials need their number, trials"),
    ],
)
def test_what_is_no_space(make: Any, text: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape(text)}") as error:
        make()
    assert "\n" not in str(error.value)
