"""Space: what a sweep tries. Axes by name, and the trials drawn from them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from adaptx.core.checks import shown
from adaptx.glossary import is_number

Trial = dict[str, float | int]  # values by name
COLUMNS = ("trial", "score", "loss", "steps", "diverged")  # of a table of trials, beside the names


class Range(NamedTuple):
    """All numbers between two, drawn with equal density on a linear or a logarithmic scale."""

    low: float
    high: float
    log: bool

    def spaced(self, points: int) -> list[float]:
        """So many values in equal steps, ends included; one value is the middle."""
        if points == 1:
            return [math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2]
        return (np.geomspace if self.log else np.linspace)(self.low, self.high, points).tolist()

    def at(self, u: float) -> float:
        """The value after a part u in [0, 1) of the way."""
        inside = self.low * (self.high / self.low) ** u if self.log else self.low + (self.high - self.low) * u
        return min(max(inside, self.low), self.high)


class Choice(NamedTuple):
    """One of some values."""

    values: tuple[float | int, ...]

    def at(self, u: float) -> float | int:
        return self.values[int(u * len(self.values))]


Axis = Range | Choice


def uniform(low: float, high: float) -> Range:
    """An axis of a sweep: numbers from low to high, all as likely; on a grid in equal steps.

    Arguments:
        low: a finite number.
        high: a finite number, larger.

    Errors:
        ValueError: numbers that are none of these.
    """
    return _range("uniform", low, high, log=False)


def log_uniform(low: float, high: float) -> Range:
    """An axis of a sweep: numbers from low to high, all magnitudes as likely; on a grid in equal ratios.

    Arguments:
        low: a finite number > 0.
        high: a finite number, larger.

    Errors:
        ValueError: numbers that are none of these.
    """
    return _range("log_uniform", low, high, log=True)


def choice(*values: float | int) -> Choice:
    """An axis of a sweep: some numbers, all as likely. A list of numbers in the space means the same.

    Errors:
        ValueError: no values, one that is no number, or one that comes twice.
    """
    return _choice("choice", values)


def _range(name: str, low: Any, high: Any, log: bool) -> Range:
    bounds = [float(v) if is_number(v) else math.nan for v in (low, high)]
    if not all(map(math.isfinite, bounds)) or not bounds[0] < bounds[1] or (log and not bounds[0] > 0):
        least = "0 < low < high" if log else "low < high"
        raise ValueError(f"{name}: low and high must be finite numbers, {least}, got {shown(low)} and {shown(high)}")
    return Range(bounds[0], bounds[1], log)


def _choice(name: str, values: Iterable[Any]) -> Choice:
    values = list(values)
    if not values:
        raise ValueError(f"{name} has no values")
    for v in values:
        if not is_number(v) or not math.isfinite(v):
            raise ValueError(
                f"{name} has {shown(v)}, which is no finite number; what shapes the program, such as a switch or a "
                "string, needs a sweep of its own for each value"
            )
    numbers = [v if isinstance(v, int | float) else np.asarray(v).item() for v in values]
    if twice := [v for i, v in enumerate(numbers) if v in numbers[:i]]:
        raise ValueError(f"{name} has {twice[0]!r} twice")
    return Choice(tuple(numbers if all(isinstance(v, int) for v in numbers) else map(float, numbers)))


def axes_of(space: Any) -> dict[str, Axis]:
    """The axes of a space, lists as choices."""
    if not isinstance(space, Mapping):
        raise TypeError(f"sweep: the space must be a dict of values by name, got {shown(space)}")
    if not space:
        raise ValueError("sweep: the space is empty; give values by name, such as {'learning_rate': [1e-3, 1e-2]}")
    axes: dict[str, Axis] = {}
    for name, axis in space.items():
        if not isinstance(name, str):
            raise TypeError(f"sweep: the space's names must be strings, got {shown(name)}")
        if name in COLUMNS:
            raise ValueError(f"sweep: {name} is a column of the results; give make_state's argument another name")
        if not isinstance(axis, Range | Choice):
            single = isinstance(axis, str | Mapping) or not isinstance(axis, Iterable)
            if single or getattr(axis, "ndim", 1) != 1:
                raise TypeError(
                    f"sweep: {name} must be a list of values, log_uniform, uniform or choice, got {shown(axis)}"
                )
            axis = _choice(f"sweep: {name}", axis)
        axes[name] = axis
    return axes


def grid(axes: Mapping[str, Axis], trials: int | None) -> list[Trial]:
    """Every combination. Ranges get equally many points each, so that there are at most so many trials."""
    ranges = [name for name, axis in axes.items() if isinstance(axis, Range)]
    listed = math.prod(len(axis.values) for axis in axes.values() if isinstance(axis, Choice))
    if ranges and trials is None:
        raise ValueError(f"sweep: a grid over a range ({', '.join(ranges)}) needs trials, the most points it may have")
    if trials is not None and listed > trials:
        raise ValueError(f"sweep: the grid has at least {listed} points, and trials is {trials}")
    points = 1
    while ranges and trials is not None and listed * (points + 1) ** len(ranges) <= trials:
        points += 1
    values = [axis.spaced(points) if isinstance(axis, Range) else axis.values for axis in axes.values()]
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*values)]


def random(axes: Mapping[str, Axis], trials: int | None, seed: int) -> list[Trial]:
    """So many draws; where all axes are lists, of different points."""
    if trials is None:
        raise ValueError("sweep: random trials need their number, trials")
    rng = np.random.default_rng(seed)
    if all(isinstance(axis, Choice) for axis in axes.values()):
        points = grid(axes, None)
        if trials > len(points):
            raise ValueError(f"sweep: the space has only {len(points)} points, and trials is {trials}")
        return [points[i] for i in rng.permutation(len(points))[:trials]]
    return [
        {name: axis.at(u) for (name, axis), u in zip(axes.items(), us, strict=True)}
        for us in rng.random((trials, len(axes)))
    ]
