"""Run: trials go through the compiled programs, group by group and rung by rung."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from adaptx.tune.batches import Batches
from adaptx.tune.programs import Programs, Values
from adaptx.tune.results import Outcome
from adaptx.tune.rungs import Rung
from adaptx.tune.space import Trial

S = TypeVar("S")
T = TypeVar("T")

LAST = 0.1  # without a score of their own, trials are judged by the mean of the last tenth of their losses


class Runner(NamedTuple):
    """A trial on its way."""

    number: int
    state: Any = None  # None: it has not begun
    losses: tuple[np.ndarray, ...] = ()
    score: float = math.nan


def finished(
    programs: Programs,
    data: Batches,
    values: Sequence[Values],
    drawn: Sequence[Trial],
    rungs: Sequence[Rung],
    todo: Sequence[int],
    workers: int,
    tick: Callable[[int], Any],
) -> Iterator[list[Outcome]]:
    """Outcomes as they come: of a group at the end of the last rung or where trials diverge, else of a rung."""

    def outcome(runner: Runner, diverged: bool = False) -> Outcome:
        losses = np.concatenate(runner.losses)
        score = math.nan if diverged else runner.score
        return Outcome(runner.number, drawn[runner.number], score, losses, len(losses) if diverged else None)

    going, since = [Runner(i) for i in todo], 0
    for rung, after in zip(rungs, [*rungs[1:], None], strict=True):
        through: list[Runner] = []
        groups = [going[at : at + programs.size] for at in range(0, len(going), programs.size)]
        through_rung = partial(trained, programs, data, values, since, rung.until, tick)
        for some, alive in at_the_same_time(through_rung, groups, workers):
            good = [ok and math.isfinite(r.score) for r, ok in zip(some, alive, strict=True)]
            ended = [outcome(r, not ok) for r, ok in zip(some, good, strict=True) if after is None or not ok]
            if ended:
                yield ended
            # A state that is not needed any more is not held while the next group trains.
            through += [r for r, ok in zip(some, good, strict=True) if ok] if after else []
        if after is not None and len(through) > after.trials:
            through.sort(key=lambda r: (r.score, r.number))
            yield [outcome(r) for r in through[after.trials :]]
            through = through[: after.trials]
        going, since = sorted(through, key=lambda r: r.number), rung.until


def at_the_same_time(f: Callable[[S], T], items: Sequence[S], workers: int) -> Iterator[T]:
    """f of each item, from so many threads, in the order in which they come to an end."""
    if workers == 1:
        yield from map(f, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(f, item) for item in items]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:  # also after Ctrl-C: those that have not begun never do
            for future in futures:
                future.cancel()


def trained(
    programs: Programs,
    data: Batches,
    values: Sequence[Values],
    since: int,
    until: int,
    tick: Callable[[int], Any],
    some: Sequence[Runner],
) -> tuple[list[Runner], list[bool]]:
    """Some trials after the steps from since to until, and which of them are still finite."""
    if since == 0:
        group = programs.start([values[r.number] for r in some])
    else:
        group = programs.resumed([r.state for r in some], since)
    parts = []
    for segment in data.segments():
        first, last = max(since - segment.start, 0), min(until - segment.start, segment.steps)
        if first >= segment.steps:
            continue
        group, losses = programs.advance(group, segment, first, last)
        parts.append(np.asarray(losses)[:, first:last])
        tick((last - first) * len(some))
        if segment.start + segment.steps >= until or not np.any(group.alive):
            break
    alive, taken = np.asarray(group.alive), np.asarray(group.taken)
    losses = np.concatenate(parts, axis=1)
    scores = None if programs.score is None else np.asarray(programs.score(group.states))
    after = []
    for i, runner in enumerate(some):
        own = (*runner.losses, losses[i, : taken[i] - since])
        whole = np.concatenate(own)
        score = np.mean(whole[-math.ceil(LAST * len(whole)) :], dtype=float) if scores is None else scores[i]
        state = jax.tree.map(lambda x, i=i: x[i], group.states) if until < data.steps else None
        after.append(Runner(runner.number, state, own, float(score)))
    return after, alive[: len(some)].tolist()
