"""Pictures: what is drawn is what was measured, for one axis, two and three, with trials that diverged or stopped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adaptx.tune import Outcome, RangeTest, Results, choice, log_uniform
from adaptx.tune.space import grid


def results(axes: dict[str, Any], trials: int | None, lost: int = 1, steps: int = 30) -> Results:
    """Made-up outcomes: the nearer the first axis to 0.1, the better; the last ones diverged."""
    drawn = grid(axes, trials)
    outcomes = []
    for i, trial in enumerate(drawn):
        score = 0.1 + abs(np.log10(next(iter(trial.values()))) + 1)
        losses = score * (1 + np.exp(-np.arange(steps) / 5.0))
        ends = i >= len(drawn) - lost
        if ends:
            losses = np.append(losses[:10], np.inf)
        outcomes.append(Outcome(i, trial, float("nan") if ends else score, losses, 11 if ends else None))
    return Results(outcomes, axes, len(drawn), steps, "how")


def lines(axes: Any, label: str) -> list[tuple[Any, Any]]:
    return [line.get_data() for line in axes.get_lines() if line.get_label() == label]


def test_one_axis(tmp_path: Path) -> None:
    found = results({"learning_rate": log_uniform(1e-3, 1)}, 7)
    figure = found.plot(tmp_path / "one.png")
    curves, score = figure.axes[:2]
    np.testing.assert_array_equal(
        sorted(len(line.get_xdata()) for line in curves.get_lines() if len(line.get_xdata()) > 1), [11] + [30] * 6
    )
    (x, y), *_ = lines(score, "to the end")
    np.testing.assert_allclose(x, [o.hyperparams["learning_rate"] for o in found.outcomes[:-1]])
    np.testing.assert_allclose(y, [o.score for o in found.outcomes[:-1]])
    assert lines(score, "best")[0][1] == [found.best.score]
    np.testing.assert_allclose(lines(score, "diverged")[0][0], [1.0])
    assert score.get_xscale() == "log"
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.width > 800


def test_the_table_says_that_the_best_is_at_the_edge() -> None:
    inside = results({"learning_rate": log_uniform(1e-3, 10), "b": choice(1.0, 2.0)}, 10)
    assert "edge" not in str(inside)
    edge = results({"learning_rate": log_uniform(0.1, 10), "b": choice(1.0, 2.0)}, 6)
    assert "\nthe best trial is at the edge of learning_rate: widen it\n" in str(edge)
    assert edge.at_the_edge == ["learning_rate"]
    assert "edge" not in str(results({"learning_rate": log_uniform(0.1, 10)}, 3, lost=3))


def test_two_axes_are_a_map() -> None:
    found = results({"learning_rate": log_uniform(1e-3, 1), "b2": choice(0.9, 0.99)}, 8)
    score = found.plot().axes[1]
    cells = score.collections[0].get_array()
    np.testing.assert_allclose(np.ma.filled(cells[0], np.nan), [o.score for o in found.outcomes[::2]])
    assert np.ma.getmaskarray(cells).sum() == 1  # the one that diverged
    assert [*map(list, lines(score, "diverged")[0])] == [[3.5], [1.5]]
    assert [t.get_text() for t in score.get_yticklabels()] == ["0.9", "0.99"]


def test_points_of_random_trials_and_three_axes() -> None:
    found = results({"learning_rate": log_uniform(1e-3, 1), "b2": choice(0.9, 0.99)}, 8)
    thinned = Results(found.outcomes[1:], found.axes, 7, 30, "")  # no full grid: points
    score = thinned.plot().axes[1]
    np.testing.assert_allclose(
        score.collections[0].get_offsets()[:, 0], [o.hyperparams["learning_rate"] for o in found.outcomes[1:-1]]
    )
    assert score.get_xscale() == "log"
    three = results({"learning_rate": log_uniform(1e-3, 1), "a": choice(0.0, 1.0), "b": choice(1.0, 2.0)}, 16)
    assert [axes.get_xlabel() for axes in three.plot().axes[:4]] == ["step", "learning_rate", "a", "b"]


def test_a_mean_of_losses_tells_of_the_rate_of_their_mean_age() -> None:
    rates = np.arange(1.0, 101)
    test = RangeTest("learning_rate", rates, rates, rates, 0.9, "")
    for i in (0, 1, 5, 20, 99):
        weights = 0.9 ** np.arange(i + 1)
        age = np.sum(weights * np.arange(i + 1)) / np.sum(weights)
        assert test.rate_at(i) == rates[i - round(age)]


@pytest.mark.parametrize(("trials", "lost"), [(4, 4), (1, 0), (1, 1), (2, 1)])
def test_few_trials_and_none_that_trains(trials: int, lost: int) -> None:
    results({"learning_rate": log_uniform(1e-3, 1)}, trials, lost).plot()
    results({"learning_rate": log_uniform(1e-3, 1), "b": choice(0.5)}, trials, lost).plot()


def test_no_trials_and_negative_losses() -> None:
    axes = {"learning_rate": log_uniform(1e-3, 1)}
    Results([], axes, 3, 10, "").plot()
    outcome = Outcome(0, {"learning_rate": 0.1}, -1.0, np.linspace(1, -1, 10))
    assert Results([outcome], axes, 1, 10, "").plot().axes[0].get_yscale() == "linear"


def test_a_range_test(tmp_path: Path) -> None:
    rates = np.geomspace(1e-4, 1, 50)
    losses = 1 / (1 + (100 * rates) ** 2) + rates**3 * 5
    test = RangeTest("learning_rate", rates, losses, losses, 0.0, "to the end")
    axes = test.plot(tmp_path / "range.png").axes[0]
    np.testing.assert_allclose(lines(axes, "smoothed")[0][1], losses)
    # d/d log r of 1 / (1 + (100 r)^2) is steepest at r = 0.01; a step is a factor of 1.2.
    assert test.suggestion == pytest.approx(0.01, rel=0.25)
    # After an explosion the loss may fall faster than ever; that is no suggestion.
    again = np.where(rates > 0.3, 100 * (0.3 / rates) ** 3, losses)
    assert RangeTest("learning_rate", rates, again, again, 0.0, "").suggestion == test.suggestion
    assert lines(axes, f"suggested: {test.suggestion:.2g}")[0][0][0] == test.suggestion
    RangeTest("learning_rate", rates[:1], losses[:1], losses[:1], 0.9, "").plot()


def test_without_matplotlib_one_line() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from adaptx.tune import Results\n"
        "try: Results([], {}, 0, 0, '').plot()\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout == 'a picture needs matplotlib: pip install "adaptx[plot]"\n', done.stderr
