"""Journal: the file that keeps a sweep's finished trials, a line of JSON each, so that it can go on after an end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adaptx.tune.results import Outcome
from adaptx.tune.space import Trial


class Journal:
    """Its first line says which sweep it is of; each other line is one finished trial.

    Errors:
        ValueError: a file of something else, or of another sweep.
    """

    def __init__(self, path: str | Path, sweep: Mapping[str, Any], trials: list[Trial]) -> None:
        self.path: Path = Path(path)
        self.outcomes: list[Outcome] = []
        head = json.dumps({"adaptx sweep": sweep})
        kept: list[str] = []
        try:
            if self.path.exists():
                text = self.path.read_text(encoding="utf-8", errors="replace")
                first, *lines = text.split("\n")
                if text and first != head:
                    raise ValueError(f"sweep: {self.path} {_difference(first, sweep)}; give another path, or remove it")
                kept = lines[:-1]  # the last may have been cut short by the end of the process
                self.outcomes = [self._outcome(i, line, trials) for i, line in enumerate(kept, start=2)]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            whole = self.path.with_name(self.path.name + ".new")
            whole.write_text("".join(f"{line}\n" for line in [head, *kept]), encoding="utf-8")
            os.replace(whole, self.path)
        except OSError as problem:
            raise ValueError(f"sweep: path {self.path} cannot be written to: {problem.strerror}") from None

    def _outcome(self, line: int, text: str, trials: list[Trial]) -> Outcome:
        try:
            record = json.loads(text)
            i, losses = record["trial"], np.array(record["losses"], float)
            if record["hyperparams"] != trials[i] or i < 0 or losses.ndim != 1 or not losses.size:
                raise ValueError
            return Outcome(i, trials[i], float(record["score"]), losses, record["diverged"])
        except (ValueError, TypeError, KeyError, IndexError):
            raise ValueError(
                f"sweep: line {line} of {self.path} is no trial of this sweep; remove the line, or give another path"
            ) from None

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Finished trials, on the disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(o.record()) + "\n" for o in outcomes))
            file.flush()
            os.fsync(file.fileno())


def _difference(line: str, sweep: Mapping[str, Any]) -> str:
    try:
        theirs = json.loads(line)["adaptx sweep"]
        names = [name for name in sweep if theirs.get(name) != json.loads(json.dumps(sweep[name]))]
    except (ValueError, TypeError, KeyError, AttributeError):
        return "is no file of a sweep"
    return "is of another sweep: " + ", ".join(f"its {name} is {theirs.get(name)}, not {sweep[name]}" for name in names)
