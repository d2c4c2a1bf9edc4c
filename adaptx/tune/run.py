"""Run: trials go through the compiled programs, group by group and rung by rung."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from adaptx.tune.batches import Batches
from adaptx.tune.programs import Programs
from adaptx.tune.results import Outcome
from adaptx.tune.rungs import Rung
from adaptx.tune.space import Trial
from adaptx.tune.values import Values

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

    stop = threading.Event()

    def step(count: int) -> None:
        """Also where threads see that they are to end."""
        if stop.is_set():
            raise CancelledError
        tick(count)

    going, since = [Runner(i) for i in todo], 0
    for rung, after in zip(rungs, [*rungs[1:], None], strict=True):
        through: list[Runner] = []
        groups = [going[at : at + programs.size] for at in range(0, len(going), programs.size)]
        through_rung = partial(trained, programs, data, values, since, rung.until, step)
        for some, alive in at_the_same_time(through_rung, groups, workers, stop):
            on = [ok and math.isfinite(r.score) and after is not None for r, ok in zip(some, alive, strict=True)]
            ended = [outcome(r, not ok) for r, ok, more in zip(some, alive, on, strict=True) if not more]
            if ended:
                yield ended
            through += [r for r, more in zip(some, on, strict=True) if more]
            if after is not None:  # the states of those that are certain to stop here are not held
                through.sort(key=lambda r: (r.score, r.number))
                through[after.trials :] = [r._replace(state=None) for r in through[after.trials :]]
        if after is not None and len(through) > after.trials:
            yield [outcome(r) for r in through[after.trials :]]
            through = through[: after.trials]
        going, since = sorted(through, key=lambda r: r.number), rung.until


def at_the_same_time(f: Callable[[S], T], items: Sequence[S], workers: int, stop: threading.Event) -> Iterator[T]:
    """f of each item, from so many threads, in the order in which they come to an end."""
    if workers == 1:
        yield from map(f, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(f, item) for item in items]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:  # Ctrl-C among them: those that have begun end at their next step, others never begin
            stop.set()
            for future in futures:
                future.cancel()
            raise


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
    # To the host: there is more memory, and a slice of an array on several devices is a program of them all.
    states = jax.device_put(group.states, jax.local_devices(backend="cpu")[0]) if until < data.steps else None
    after = []
    for i, runner in enumerate(some):
        own = (*runner.losses, losses[i, : taken[i] - since])
        whole = np.concatenate(own)
        score = np.mean(whole[-math.ceil(LAST * len(whole)) :], dtype=float) if scores is None else scores[i]
        state = jax.tree.map(lambda x, i=i: x[i], states)
        after.append(Runner(runner.number, state, own, float(score)))
    return after, alive[: len(some)].tolist()
