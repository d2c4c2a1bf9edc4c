"""What a sweep costs: 64 learning rates x 200 steps of an MLP on digits, compilation included, beside the other ways.

    python -m benchmarks.sweep           # some minutes on 2 cores
    python -m benchmarks.sweep --quick   # few rates and steps: shows that it runs, measures nothing

Every way starts with empty caches, in one process, in turn. A second table shows when trials side by side pay.
"""

from __future__ import annotations

import functools
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adaptx
from adaptx import tune
from adaptx.hyperparams import inject_hyperparams
from adaptx.tune.batches import Batches
from adaptx.tune.plan import available_cores, planned
from adaptx.tune.programs import Programs, checked_step, flops, traced
from adaptx.tune.run import at_the_same_time
from adaptx.tune.values import each_trials_values
from benchmarks.data import digits
from benchmarks.dense import QUICK_NOTE
from benchmarks.side_by_side import aligned, heading, interleaved, measured, options, parsed, published

FASTER = 12.0  # at least so many times as fast as the loop that compiles anew
BESIDE = 1.05  # at most so many times as long as the best of the others
SAME = 1e-5  # final losses of the sweep and of fresh runs
EXPLODED = 4.0  # a loss so many times the first: beyond it rounding decides where the trial ends
LOOP = "fresh optax.adam each, step loop"
OURS = "tune.sweep, adaptx.adam"
OURS_OPTAX = "tune.sweep, optax.adam"
BATCH = 128


class Task(NamedTuple):
    """An MLP on digits: rates to try, and batches, one for each step."""

    rates: list[float]
    batches: list[tuple[Any, Any]]
    hidden: int = 128

    @classmethod
    def of(cls, trials: int, steps: int, hidden: int = 128, batch: int = BATCH) -> Task:
        rows, rng = digits(0).train, np.random.default_rng(0)
        chosen = [rng.integers(0, len(rows.x), batch) for _ in range(steps)]
        return cls(np.geomspace(1e-4, 1.0, trials).tolist(), [(rows.x[i], rows.y[i]) for i in chosen], hidden)

    def params(self) -> dict[str, jax.Array]:
        rng = np.random.default_rng(1)
        normal = lambda *shape: jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)
        return {
            "w1": normal(64, self.hidden),
            "b1": jnp.zeros(self.hidden),
            "w2": normal(self.hidden, 10),
            "b2": jnp.zeros(10),
        }


def loss(params: dict[str, jax.Array], batch: tuple[Any, Any]) -> jax.Array:
    hidden = jax.nn.relu(batch[0] @ params["w1"] + params["b1"][None])
    logits = hidden @ params["w2"] + params["b2"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


def train_step(tx: Any, state: Any, batch: Any) -> Any:
    params, opt_state = state
    value, grads = jax.value_and_grad(loss)(params, batch)
    updates, opt_state = tx.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), value


def step_loop(step: Callable[..., Any], state: Any, batches: Sequence[Any]) -> float:
    value: Any = None
    for batch in batches:
        state, value = step(state, batch)
    return float(value)


def fresh(factory: Callable[..., Any], task: Task) -> list[float]:
    """The loop that people write: an optimizer for each rate, and a step compiled for it."""
    losses = []
    for rate in task.rates:
        tx, params = factory(rate), task.params()
        step = jax.jit(functools.partial(train_step, tx), donate_argnums=0)
        losses.append(step_loop(step, (params, tx.init(params)), task.batches))
    return losses


def optax_injected(task: Task) -> list[float]:
    """One compiled step, whose state holds the rate."""
    tx, losses = optax.inject_hyperparams(optax.adam)(1e-3), []
    step = jax.jit(functools.partial(train_step, tx), donate_argnums=0)
    for rate in task.rates:
        params = task.params()
        state: Any = tx.init(params)
        state.hyperparams["learning_rate"] = jnp.asarray(rate, jnp.float32)
        losses.append(step_loop(step, (params, state), task.batches))
    return losses


def scanned(tx: Any, state: Any, batches: Any) -> jax.Array:
    return jax.lax.scan(functools.partial(train_step, tx), state, batches)[1][-1]


def stacked(task: Task) -> Any:
    return jax.tree.map(lambda *xs: jnp.asarray(np.stack(xs)), *task.batches)


def optax_injected_scan(task: Task) -> list[float]:
    """The same, its steps in one scan."""
    tx, losses, batches = optax.inject_hyperparams(optax.adam)(1e-3), [], stacked(task)
    run = jax.jit(functools.partial(scanned, tx))
    for rate in task.rates:
        params = task.params()
        state: Any = tx.init(params)
        state.hyperparams["learning_rate"] = jnp.asarray(rate, jnp.float32)
        losses.append(float(run((params, state), batches)))
    return losses


def traced_rate(params: Any, batches: Any, rate: Any) -> jax.Array:
    tx = optax.adam(rate)
    return scanned(tx, (params, tx.init(params)), batches)


def traced_scan(task: Task) -> list[float]:
    """A scan of the steps as a function of the rate, compiled once and called for each."""
    run, batches = jax.jit(traced_rate), stacked(task)
    return [float(run(task.params(), batches, rate)) for rate in task.rates]


def traced_vmap(task: Task) -> list[float]:
    """The same function, mapped over all rates at once."""
    run = jax.jit(jax.vmap(traced_rate, in_axes=(None, None, 0)))
    return run(task.params(), stacked(task), jnp.asarray(task.rates)).tolist()


def swept(factory: Callable[..., Any], task: Task, static: Sequence[str] = ()) -> tune.Results:
    tx, params = inject_hyperparams(factory, static)(1e-3), task.params()
    make_state = lambda: (params, tx.init(params))
    space = {"learning_rate": task.rates}
    return tune.sweep(make_state, functools.partial(train_step, tx), space, batches=task.batches, progress=False)


# What is left of optax.adam's numbers would lose its exact complement, 1 - b, in the state.
DECAYS = ("b1", "b2", "eps", "eps_root")
WAYS: dict[str, Callable[[Task], Any]] = {
    LOOP: functools.partial(fresh, optax.adam),
    "optax.inject_hyperparams, step loop": optax_injected,
    "optax.inject_hyperparams, scan": optax_injected_scan,
    "scan with a traced rate": traced_scan,
    "vmap of that scan": traced_vmap,
    OURS_OPTAX: lambda task: swept(optax.adam, task, DECAYS),
    OURS: lambda task: swept(adaptx.adam, task),
}
OTHERS = [way for way in WAYS if way not in (OURS, OURS_OPTAX, LOOP)]


class Row(NamedTuple):
    way: str
    seconds: float
    faster: float  # than the loop that compiles anew
    beside: float  # times the time of the best of the others
    apart: float  # the largest difference from fresh runs of the same optimizer, of trials that do not explode

    def missed(self) -> bool:
        ours = self.way in (OURS, OURS_OPTAX)
        return ours and (self.faster < FASTER or self.beside > BESIDE or self.apart > SAME)


def timed(task: Task, rounds: int, tick: Callable[[], None]) -> tuple[list[Row], str]:
    """Rows, and a line on what the sweep did."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    finals: dict[str, Any] = {}
    for names in interleaved(list(WAYS), rounds):
        for way in names:
            jax.clear_caches()
            start = time.perf_counter()
            finals[way] = WAYS[way](task)
            seconds[way].append(time.perf_counter() - start)
            tick()
    results: tune.Results = finals[OURS]
    calm = [max(o.losses) < EXPLODED * o.losses[0] and o.diverged is None for o in results.outcomes]
    for way in (OURS, OURS_OPTAX):
        finals[way] = [o.loss for o in finals[way].outcomes]
    truth = {OURS: fresh(adaptx.adam, task)}
    ratio = lambda a, b: statistics.median(x / y for x, y in zip(seconds[a], seconds[b], strict=True))
    best = min(OTHERS, key=lambda way: statistics.median(seconds[way]))
    rows = []
    for way in WAYS:
        difference = np.abs(np.asarray(finals[way]) - np.asarray(truth.get(way, finals[LOOP])))[calm]
        apart = float(difference.max(initial=0.0))
        rows.append(Row(way, statistics.median(seconds[way]), ratio(LOOP, way), ratio(way, best), apart))
    wild = np.flatnonzero(np.logical_not(calm))
    equal = np.abs(np.subtract(finals[OURS], truth[OURS]))[wild] <= SAME
    said = (
        f"tune.sweep: {results.how}. The loss exceeds {EXPLODED:g} times the first at {len(wild)} of {len(calm)} rates"
        f"{''.join(f', from {task.rates[i]:.2g} on' for i in wild[:1])}; {sum(equal)} of them are as near all the same."
    )
    return rows, said


class Width(NamedTuple):
    """Trials side by side: milliseconds a step of all trials, by width."""

    hidden: int
    batch: int
    flops: float
    milliseconds: dict[int, float]
    chosen: int


def timed_widths(hidden: int, batch: int, trials: int, steps: int, rounds: int, tick: Callable[[], None]) -> Width:
    """Compiled programs only: how long a sweep trains at each width."""
    task = Task.of(trials, steps, hidden, batch)
    tx, params = inject_hyperparams(adaptx.adam)(1e-3), task.params()
    step, template = functools.partial(train_step, tx), (params, tx.init(params))
    widths = [w for w in (1, 4, 16, 64) if w <= trials]
    runs = {w: tune_at(step, template, task, w) for w in widths}
    seconds: dict[int, list[float]] = {w: [] for w in widths}
    for names in interleaved([str(w) for w in widths], rounds):
        for w in map(int, names):
            start = time.perf_counter()
            runs[w]()
            seconds[w].append(time.perf_counter() - start)
        tick()
    cost = flops(step, template, task.batches[0])
    chosen = planned(trials, jax.local_devices()[:1], cost, 1, 1 << 40, available_cores()).width
    return Width(hidden, batch, cost, {w: 1e3 * statistics.median(s) / steps for w, s in seconds.items()}, chosen)


def tune_at(step: Callable[..., Any], template: Any, task: Task, width: int) -> Callable[[], None]:
    """Trains all trials of a task, `width` at a time; compiled before it is called."""
    _, values = each_trials_values(lambda: template, [{"learning_rate": rate} for rate in task.rates])
    data = Batches("sweep", task.batches, None)
    checked = traced(functools.partial(checked_step, "sweep", step), template, *data.example)
    programs = Programs(lambda: template, checked, None, template, jax.local_devices()[:1], width, data.size)
    data.onto = programs.shared
    (segment,) = data.segments()
    programs.compile(values[0], segment)

    def run() -> None:
        groups = [values[at : at + width] for at in range(0, len(values), width)]
        train = lambda some: jax.block_until_ready(programs.advance(programs.start(some), segment, 0, segment.steps))
        list(at_the_same_time(train, groups, available_cores(), threading.Event()))

    run()
    return run


HEADER = ["way", "s", "x the loop", "x best other", "max apart", "verdict"]
LEGEND = f"""\
*s*: median, compilation included, caches emptied before each. *x the loop*: how many times as fast as the first row.
*x best other*: time / that of the best of the rows between. Ratios are medians of the rounds' ratios. *max apart*:
largest difference of final losses from fresh runs of the same optimizer ({OURS_OPTAX}, and rows of Optax: of
optax.adam; the last row: of adaptx.adam), over all trials whose loss stays below {EXPLODED:g} times the first.

Targets for tune.sweep: >= {FASTER:g} x the loop, <= {BESIDE} x the best other, apart <= {SAME:g}.
"""
WIDTHS = """\
Milliseconds that a step of all trials takes, by how many of them run side by side (vmap) in each of as many threads as
there are cores; compilation excluded. The width nearest to what a sweep's plan would choose is marked *.
"""


def report(rows: Sequence[Row], said: str, widths: Sequence[Width], argv: Sequence[str], quick: bool) -> str:
    lines = []
    for r in rows:
        verdict = "" if r.way not in (OURS, OURS_OPTAX) else "MISS" if r.missed() else "ok"
        figures = [f"{r.seconds:.2f}", f"{r.faster:.1f}", f"{r.beside:.2f}", f"{r.apart:.1e}"]
        lines.append([r.way, *figures, verdict])
    parts = [
        *heading("A sweep beside the other ways", argv, "benchmarks.sweep", QUICK_NOTE if quick else ""),
        "",
        aligned(HEADER, lines, (0,)),
        "",
        said,
        "",
        LEGEND,
    ]
    if widths:
        every = list(widths[0].milliseconds)
        mark = lambda w, n: f"{w.milliseconds[n]:.2f}{'*' if n == nearest(w) else ''}"
        cells = [[str(w.hidden), str(w.batch), f"{w.flops / 1e6:.3g}", *(mark(w, n) for n in every)] for w in widths]
        header = ["hidden", "batch", "MFLOP a step", *(f"width {n}" for n in every)]
        parts += ["## When trials side by side pay", "", aligned(header, cells, ()), "", WIDTHS]
    return "\n".join(parts)


def nearest(width: Width) -> int:
    """The measured width that is nearest to the chosen one."""
    return min(width.milliseconds, key=lambda n: abs(np.log(n / width.chosen)))


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    out, quick = Path("benchmarks/results/sweep.md"), "few rates and steps, to see that it runs"
    parser = options("python -m benchmarks.sweep", __doc__, ["adam"], out, quick)
    parser.set_defaults(repeats=3)
    arguments = parsed(parser, argv)
    trials, steps = (3, 4) if arguments.quick else (64, 200)
    sizes = [(8, 16)] if arguments.quick else [(8, 16), (32, 32), (64, 64), (128, 128), (512, 128)]
    if arguments.quick:
        print(QUICK_NOTE)
    rounds, said = arguments.repeats, ""
    rows: list[Row] = []
    widths: list[Width] = []

    def main_table(tick: Callable[[], None]) -> None:
        nonlocal said
        found, said = timed(Task.of(trials, steps), rounds, tick)
        rows.extend(found)

    def width_table(hidden: int, batch: int, tick: Callable[[], None]) -> None:
        widths.append(timed_widths(hidden, batch, trials, steps, rounds, tick))

    jobs = [("ways", main_table), *((f"{h} x {b}", functools.partial(width_table, h, b)) for h, b in sizes)]
    done = measured(jobs, rounds * (len(WAYS) + len(sizes)))
    if rows:
        ours = [row for row in rows if row.way in (OURS, OURS_OPTAX)]
        text = report(rows, said, widths, argv, arguments.quick)
        published(text, sum(row.missed() for row in ours), len(ours), arguments.out)
    return 0 if len(done) == len(jobs) else 130


if __name__ == "__main__":
    sys.exit(main())
