"""Results: the trials of a sweep as a table, a file or a picture."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from adaptx.tune import plots
from adaptx.tune.space import Axis, Range, Trial


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """What became of one trial."""

    number: int  # from 0, in the order in which the trials were drawn
    hyperparams: Trial
    score: float  # the smaller the better; NaN where the trial diverged, or where evaluate gave it
    losses: NDArray[np.floating]  # of every step that was taken
    diverged: int | None = None  # the step, from 1, whose loss was the first that is not finite

    @property
    def loss(self) -> float:
        """Of the last step."""
        return float(self.losses[-1])

    @property
    def steps(self) -> int:
        return len(self.losses)

    @property
    def finite(self) -> bool:
        """Whether there is a score to rank it by."""
        return self.diverged is None and math.isfinite(self.score)

    def record(self) -> dict[str, Any]:
        fields = {"score": self.score, "loss": self.loss, "steps": self.steps, "diverged": self.diverged}
        return {"trial": self.number, "hyperparams": self.hyperparams, **fields, "losses": self.losses.tolist()}


@dataclasses.dataclass(frozen=True, eq=False)
class Results(plots.Pictured):
    """The finished trials of a sweep, in the order in which they were drawn; print it, or see `best`, `plot`."""

    outcomes: Sequence[Outcome]
    axes: dict[str, Axis]
    trials: int  # that were to run
    steps: int  # of a trial that runs to its end
    how: str  # side by side or one after the other, and where; the times

    @property
    def complete(self) -> bool:
        """Whether all trials are there: not so after an interruption."""
        return len(self.outcomes) == self.trials

    @property
    def ranked(self) -> list[Outcome]:
        """Best first: those that went further, then by score; those that diverged last."""
        key = lambda o: (not o.finite, -o.steps, o.score if o.finite else math.inf, o.number)
        return sorted(self.outcomes, key=key)

    @property
    def best(self) -> Outcome:
        """The trial of the smallest score, of those that ran longest.

        Errors:
            ValueError: every trial diverged or has no finite score, or none is finished.
        """
        first = next(iter(self.ranked), None)
        if first is None or not first.finite:
            diverged = all(o.diverged is not None for o in self.outcomes)
            why = "all diverged; try smaller rates" if diverged else "no score is finite; look at evaluate"
            why = why if self.outcomes else "none is finished"
            raise ValueError(f"sweep: there is no best trial: {why}")
        return first

    def table(self, most: int | None = None) -> str:
        """One line a trial, best first.

        Arguments:
            most: at most so many lines; default: all.
        """
        shown = self.ranked[:most]
        rows = [["trial", *self.axes, "score", "loss", "steps", ""]]
        for o in shown:
            numbers = [f"{v:.6g}" for v in (*o.hyperparams.values(), o.score, o.loss)]
            rows.append([str(o.number), *numbers, str(o.steps), self._end(o)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.rjust(w) for cell, w in zip(row[:-1], widths, strict=False)) + "  " + row[-1] for row in rows
        ]
        return "\n".join([line.rstrip() for line in lines])

    def _end(self, outcome: Outcome) -> str:
        if outcome.diverged is not None:
            return f"diverged at step {outcome.diverged}"
        if not outcome.finite:
            return "no finite score"
        return "stopped early" if outcome.steps < self.steps else ""

    @property
    def at_the_edge(self) -> list[str]:
        """The ranges at whose end the best trial lies: beyond it there may be a better one."""
        ranges = {name: axis[:2] for name, axis in self.axes.items() if isinstance(axis, Range)}
        found = any(o.finite for o in self.outcomes)
        return [name for name, ends in ranges.items() if found and self.best.hyperparams[name] in ends]

    def __str__(self) -> str:
        edge = "".join(f"the best trial is at the edge of {name}: widen it\n" for name in self.at_the_edge)
        left = "" if self.complete else f"interrupted: {len(self.outcomes)} of {self.trials} trials are finished\n"
        return f"{self.table()}\n{edge}{left}{self.how}"

    def to_csv(self, path: str | Path) -> None:
        """The table as a file, a line for each trial in the order in which they were drawn.

        Arguments:
            path: of the file, which is written anew.
        """
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["trial", *self.axes, "score", "loss", "steps", "diverged"])
            for o in self.outcomes:
                writer.writerow([o.number, *o.hyperparams.values(), o.score, o.loss, o.steps, o.diverged])

    def to_json(self, path: str | Path) -> None:
        """A list of the trials, each with all its losses; numbers that are not finite are null.

        Arguments:
            path: of the file, which is written anew.
        """
        finite = lambda x: None if isinstance(x, float) and not math.isfinite(x) else x
        records = [jax.tree.map(finite, o.record()) for o in self.outcomes]
        Path(path).write_text(json.dumps(records, allow_nan=False, indent=1), encoding="utf-8")

    def _picture(self) -> Any:
        return plots.sweep_picture(self)
