"""Measuring side by side: several ways to do one thing in one process, in turn, and the report of it.

The order is reversed each round, so that a slow minute of the machine slows them all; what is compared are ratios
within a round.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib
import itertools
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeVar

import jax
import numpy as np

from adaptx.tune.progress import progress_bar

BLOCK_SECONDS = 0.3  # a timed block lasts about this long, so that a timer's tick or one interrupt does not show

T = TypeVar("T")
Run = Callable[[int], None]  # takes that many steps and waits until they are done
Start = Callable[[], Run]  # a run from the beginning, in memory of its own


def interleaved(names: Sequence[str], rounds: int) -> Iterator[Iterable[str]]:
    for i in range(rounds):
        yield names if i % 2 == 0 else reversed(names)


def step_seconds(
    starts: dict[str, Start], rounds: int, tick: Callable[[], None]
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds a step, once a round; and the steps in a block of each. Every block starts afresh, in other memory.

    Python's garbage collector waits outside, as in timeit: a step that makes thousands of arrays calls for it about
    once in thirty, it takes as long as three steps, and whether a block has such a step or not was most of its noise.
    """

    def seconds_of(run: Run, steps: int) -> float:
        run(2)  # the first steps touch fresh memory
        gc.collect()
        gc.disable()
        try:
            start = time.perf_counter()
            run(steps)
            return (time.perf_counter() - start) / steps
        finally:
            gc.enable()

    steps = {name: int(np.clip(BLOCK_SECONDS / seconds_of(start(), 2), 3, 50)) for name, start in starts.items()}
    seconds: dict[str, list[float]] = {name: [] for name in starts}
    for names in interleaved(list(starts), rounds):
        for name in names:
            seconds[name].append(seconds_of(starts[name](), steps[name]))
        tick()
    return seconds, steps


def in_turn(starts: Sequence[Start]) -> Start:
    """Each block runs another of several equal programs: a thousand kernels take up to 15 % longer in one than in the
    next, for as long as both are in memory."""
    turns = itertools.cycle(starts)
    return lambda: next(turns)()


class Times(NamedTuple):
    """Medians over the rounds. A ratio is the median of the rounds' ratios: what slows a whole round cancels."""

    ours: float
    theirs: float
    ratio: float
    noise: float  # theirs against itself, built and compiled separately
    spread: float  # of the ratio: half its range

    @classmethod
    def of(
        cls, seconds: dict[str, list[float]], ours: str = "adaptx", theirs: str = "optax", again: str = "optax again"
    ) -> Times:
        def ratios(name: str) -> list[float]:
            return [a / b for a, b in zip(seconds[name], seconds[theirs], strict=True)]

        mine = ratios(ours)
        return cls(
            statistics.median(seconds[ours]),
            statistics.median(seconds[theirs]),
            statistics.median(mine),
            statistics.median(ratios(again)),
            (max(mine) - min(mine)) / 2,
        )

    def misses(self, target: float) -> bool:
        return self.ratio > target * max(1.0, self.noise)


def aligned(header: Sequence[str], lines: Sequence[Sequence[str]], words: Iterable[int]) -> str:
    """Columns that are aligned and Markdown, so that screen and file show the same; `words` are left-aligned."""
    lines, left = [header, *lines], set(words)
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def show(line: Sequence[str]) -> str:
        padded = [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 1) + ("-" if i in left else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([show(header), rule, *(show(line) for line in lines[1:])])


def machine() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores, {platform.system()} {platform.machine()}, jax on {jax.default_backend()}"


def versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for name in ("adaptx", "jax", "jaxlib", "optax", "numpy", "torch"):
        try:
            found.append(f"{name} {importlib.import_module(name).__version__}")
        except ImportError:
            found.append(f"no {name}")
    return ", ".join(found)


def heading(title: str, argv: Sequence[str], module: str, note: str = "") -> list[str]:
    """A report's first lines."""
    return [
        f"# {title}",
        "",
        *([note, ""] if note else []),
        f"- Date: {datetime.date.today().isoformat()}",
        f"- Command: `{shlex.join(['python', '-m', module, *argv])}`",
        f"- Machine: {machine()}",
        f"- Versions: {versions()}",
    ]


class OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def options(prog: str, doc: str | None, optimizers: Iterable[str], out: Path, quick: str) -> OneLineParser:
    """The options that every report has."""
    parser = OneLineParser(prog=prog, description=(doc or "").splitlines()[0])
    parser.add_argument("--optimizer", action="append", choices=list(optimizers), help="repeatable; default: all")
    parser.add_argument("--repeats", type=positive, default=5, help="timed blocks a library (default 5)")
    parser.add_argument("--out", type=Path, default=out, help="the Markdown report")
    parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def parsed(parser: OneLineParser, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; ends the program now, not after half an hour, where the report cannot be written."""
    arguments = parser.parse_args(argv)
    try:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=arguments.out.parent).close()
        if arguments.out.exists():
            arguments.out.open("a").close()
    except OSError as problem:
        parser.error(f"--out {arguments.out}: {problem.strerror}")
    return arguments


def measured(jobs: Sequence[tuple[str, Callable[[Callable[[], None]], T]]], ticks: int) -> list[T]:
    """What each job gives, under a bar of so many ticks; Ctrl-C keeps what was done."""
    progress, results = Progress(ticks), []
    try:
        for label, job in jobs:
            progress.say(label)
            results.append(job(progress.tick))
    except KeyboardInterrupt:
        print(f"interrupted: {len(results)} of {len(jobs)} rows measured", file=sys.stderr)
    finally:
        progress.close()
    return results


def published(text: str, missed: int, rows: int, out: Path) -> None:
    """The report, on the screen and in its file."""
    out.write_text(text)
    print(text)
    print(f"{missed} of {rows} rows miss a target; report: {out}")


class Progress:
    """A bar on stderr; silent where tqdm is not installed."""

    def __init__(self, total: int) -> None:
        self.bar = progress_bar(total, "it", None)

    def say(self, text: str) -> None:
        self.bar.set_description(text)

    def tick(self) -> None:
        self.bar.update(1)

    def close(self) -> None:
        self.bar.close()
