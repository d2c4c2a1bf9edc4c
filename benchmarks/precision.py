"""What low precision costs: a step's time, memory and bytes beside float32, and the losses that training ends at.

    python -m benchmarks.precision           # about 15 minutes on 2 cores
    python -m benchmarks.precision --quick   # small trees, few steps: shows that it runs, measures nothing

The step is timed in one process with optax.adamw in float32, in turn. The trainings are those of
`benchmarks.low_precision`.
"""

from __future__ import annotations

import functools
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

import adaptx
from adaptx import precision
from benchmarks import low_precision
from benchmarks.dense import QUICK_NOTE, RATE, Tree, jax_start, train_step
from benchmarks.low_precision import (
    NETWORKS,
    SEEDS,
    UPDATE_MOST,
    Problem,
    Result,
    bytes_problem,
    digits_problem,
    trained,
    update_errors,
)
from benchmarks.plots import COLOURS, LOOK
from benchmarks.side_by_side import Start, Times, aligned, heading, measured, options, parsed, published, step_seconds

TREE = Tree(8, 1 << 20, 1)
QUICK_TREE = Tree(2, 1 << 17, 1)
BASE = "optax.adamw"
AGAIN = "optax.adamw again"
DECAY = 1e-2

# Steps (params, state, grads) -> (params, state) ------------------------------------------------------------------


def in_place(tx: Any) -> jax.stages.Wrapped:
    """`precision.step` in the place of `train_step`."""
    return jax.jit(lambda params, state, grads: precision.step(tx, grads, params, state), donate_argnums=(0, 1))


class Way(NamedTuple):
    """Parameters and state stored in some way, and a step's targets: time in float32's, bytes a parameter."""

    name: str
    tx: Any
    step: Callable[[Any], jax.stages.Wrapped] = train_step
    dtype: Any = jnp.float32  # of parameters and gradients
    time: float = float("inf")
    temporary: float = float("inf")
    state: float = float("inf")


def ways() -> list[Way]:
    adamw = adaptx.adamw(RATE, weight_decay=DECAY)
    bf16, eight, four = (precision.compress_state(adamw, rules) for rules in ("bfloat16", "8bit", "4bit"))
    return [
        Way("adamw", adamw),
        Way("state_dtype='bfloat16'", adaptx.adamw(RATE, weight_decay=DECAY, state_dtype="bfloat16")),
        Way("bfloat16, precision.step", bf16, in_place, time=2.0, temporary=0.5, state=4.0),
        Way("8bit, precision.step", eight, in_place, time=3.5, temporary=0.5, state=2.1),
        Way("4bit, precision.step", four, in_place, time=6.0, temporary=0.5, state=1.15),
        Way("bfloat16, update", bf16, state=4.0),
        Way("8bit, update", eight, state=2.1),
        Way("4bit, update", four, state=1.15),
        Way("bfloat16 parameters, adamw", adamw, dtype=jnp.bfloat16),
        Way("the same, stochastic_rounding", optax.chain(adamw, precision.stochastic_rounding(0)), dtype=jnp.bfloat16),
        Way("the same, kahan", optax.chain(adamw, precision.kahan()), dtype=jnp.bfloat16),
        Way("the same, master_weights", precision.master_weights(adamw), dtype=jnp.bfloat16),
    ]


# Costs ------------------------------------------------------------------------------------------------------------


class Cost(NamedTuple):
    way: Way
    times: Times
    temporary: float  # bytes a parameter
    state: float

    def misses(self, slack: float) -> list[str]:
        """The targets that are missed; `slack` bytes a parameter are counts and such."""
        slow = self.times.ratio > self.way.time * max(1.0, self.times.noise)
        found = {"time": slow, "temporary": self.temporary > self.way.temporary + slack}
        found["state"] = self.state > self.way.state + slack
        return [name for name, missed in found.items() if missed]


def parameters(way: Way, tree: Tree) -> dict[str, jax.ShapeDtypeStruct]:
    return jax.tree.map(lambda a: a.update(dtype=way.dtype), tree.abstract())


def compiled(way: Way, tree: Tree) -> jax.stages.Compiled:
    params = parameters(way, tree)
    return way.step(way.tx).lower(params, jax.eval_shape(way.tx.init, params), params).compile()


def costs(tree: Tree, rounds: int, tick: Callable[[], None]) -> list[Cost]:
    exact = Way(BASE, optax.adamw(RATE, weight_decay=DECAY))
    every = [exact, exact._replace(name=AGAIN), *ways()]
    host, slopes = tree.normal(0), tree.normal(1)
    steps = {way.name: compiled(way, tree) for way in every}
    starts: dict[str, Start] = {}
    for way in every:
        cast = functools.partial(jax.tree.map, lambda a, dtype=way.dtype: np.asarray(a).astype(dtype))
        grads = jax.tree.map(jnp.asarray, cast(slopes))
        starts[way.name] = functools.partial(jax_start, steps[way.name], way.tx, cast(host), grads)
    seconds, _ = step_seconds(starts, rounds, tick)
    found = []
    for way in every:
        memory = steps[way.name].memory_analysis()
        assert memory is not None, "this backend reports no memory"
        kept = precision.memory(way.tx, parameters(way, tree)).per_parameter
        times = Times.of(seconds, way.name, BASE, AGAIN)
        found.append(Cost(way, times, memory.temp_size_in_bytes / tree.parameters, kept))
    return [cost for cost in found if cost.way.name != AGAIN]


# The report -------------------------------------------------------------------------------------------------------

COST_HEADER = ["AdamW", "step ms", "x float32", "temp B/param", "state B/param", "verdict"]
COST_LEGEND = """\
A step with parameters and state donated. *x float32*: the median over the rounds of its time to optax.adamw's in the
same round. *temp*: what the compiled step sets aside while it runs; *state*: what is kept from step to step. *update*
is `tx.update` and `optax.apply_updates`, the form for any transformation; `precision.step` is for those that look at
each number by itself. These are a CPU's figures; nothing was measured on accelerators.
"""
LOSS_HEADER = ["stored", "test loss", "beside float32", "least", "most", "train loss", "verdict"]
LOSS_LEGEND = """\
*beside float32*: the mean over the seeds of the final test loss beside float32's from the same seed, that is with the
same first weights and batches; *least* and *most* of them. *train loss*: the mean of the last 50 batches. Arithmetic is
float32's in all of them, parameters of bfloat16 are widened before they are used; their gradients are bfloat16.
"""


ERROR_LEGEND = """\
The L2 error of Adam's next update, as a share of it, when both moments were stored and read again: after 800 steps on
digits, over the arrays of at least 4,096 numbers. The bounds are for the first network: in others second moments may
span more within a block.
"""


def error_table(errors: dict[tuple[int, ...], dict[str, float]]) -> str:
    lines = []
    for number, (sizes, found) in enumerate(errors.items()):
        missed = number == 0 and any(found[rules] > most for rules, most in UPDATE_MOST.items())
        verdict = "" if number else "MISS" if missed else "ok"
        lines.append(["-".join(map(str, sizes)), *(f"{100 * found[rules]:.2f} %" for rules in UPDATE_MOST), verdict])
    most = ["at most", *(f"{100 * share:.1f} %" for share in UPDATE_MOST.values()), ""]
    return aligned(["network", *UPDATE_MOST, "verdict"], [*lines, most], (0, len(UPDATE_MOST) + 1))


def cost_table(found: Sequence[Cost], tree: Tree) -> str:
    slack, lines = tree.slack / tree.parameters, []
    for cost in found:
        has_target = min(cost.way.time, cost.way.temporary, cost.way.state) < float("inf")
        misses = cost.misses(slack)
        verdict = "MISS: " + ", ".join(misses) if misses else "ok" if has_target else ""
        figures = [f"{1e3 * cost.times.ours:.1f}", f"{cost.times.ratio:.2f}", f"{cost.temporary:.2f}"]
        lines.append([cost.way.name, *figures, f"{cost.state:.2f}", verdict])
    return aligned(COST_HEADER, lines, (0, len(COST_HEADER) - 1))


def too_lossy(result: Result, exact: Result) -> bool:
    most = result.way.most
    return most is not None and float(np.mean(result.excess(exact))) > most


def loss_table(results: Sequence[Result]) -> str:
    exact, lines = results[0], []
    for result in results:
        excess = 100 * result.excess(exact)
        lines.append(
            [
                result.way.name,
                f"{np.mean(result.test):.4f}",
                *(f"{share:+.2f} %" for share in (np.mean(excess), np.min(excess), np.max(excess))),
                f"{np.mean([losses[-50:].mean() for losses in result.train]):.4f}",
                "" if result.way.most is None else "MISS" if too_lossy(result, exact) else "ok",
            ]
        )
    return aligned(LOSS_HEADER, lines, (0, len(LOSS_HEADER) - 1))


def picture(found: dict[str, list[Result]], path: Path) -> None:
    """How far each seed's test loss ends from float32's, a row for each way, a panel for each problem."""
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
        for axes, (name, results) in zip(panels, found.items(), strict=True):
            shown = results[1:]
            for row, result in enumerate(shown):
                excess, colour = result.excess(results[0]), COLOURS[row % len(COLOURS)]
                axes.scatter(excess, np.full(len(excess), row), s=22, color=colour, alpha=0.6, edgecolors="none")
                axes.scatter([excess.mean()], [row], marker="|", s=320, color=colour)
                if result.way.most is not None:
                    axes.plot([result.way.most] * 2, [row - 0.3, row + 0.3], color="black", lw=1)
            axes.axvline(0, color="grey", lw=0.8)
            axes.set_yticks(range(len(shown)), [result.way.name for result in shown])
            axes.xaxis.set_major_formatter(PercentFormatter(1))
            axes.set_title(name)
            axes.set_xlabel("final test loss beside float32's")
            axes.grid(alpha=0.3, axis="x")
        panels[0].invert_yaxis()
        figure.suptitle("What low precision costs: each seed (dots), their mean (bars), what is allowed (black)")
        figure.savefig(path, dpi=130)


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    out, quick = Path("benchmarks/results/precision.md"), "small trees and few steps, to see that it runs"
    parser = options("python -m benchmarks.precision", __doc__, ["adamw"], out, quick)
    arguments = parsed(parser, argv)
    tree, seeds = (QUICK_TREE, 2) if arguments.quick else (TREE, SEEDS)
    rounds = arguments.repeats
    makers: list[Callable[[], Problem]] = [digits_problem, bytes_problem]
    if arguments.quick:
        print(QUICK_NOTE)
        makers = [functools.partial(digits_problem, 8)]
    found: list[Cost] = []
    losses: dict[str, list[Result]] = {}
    errors: dict[tuple[int, ...], dict[str, float]] = {}

    def look(tick: Callable[[], None]) -> None:
        for sizes in NETWORKS[: 1 if arguments.quick else None]:
            errors[sizes] = update_errors(sizes, 20 if arguments.quick else 800)
        tick()

    def train(make: Callable[[], Problem], tick: Callable[[], None]) -> None:
        problem = make()
        for results in trained(problem, seeds, tick):
            losses[problem.name] = results

    jobs = [("step", lambda tick: found.extend(costs(tree, rounds, tick))), ("moments", look)]
    jobs += [(f"training {i + 1}", functools.partial(train, make)) for i, make in enumerate(makers)]
    done = measured(jobs, rounds + 1 + len(low_precision.ways()) * seeds * len(makers))
    if found:
        missed = sum(bool(cost.misses(tree.slack / tree.parameters)) for cost in found)
        parts = [
            *heading("Low precision", argv, "benchmarks.precision", QUICK_NOTE if arguments.quick else ""),
            f"- {tree.label}, {rounds} rounds; A/A of optax.adamw "
            f"{statistics.median(cost.times.noise for cost in found):.2f}",
            *("", "## What a step costs", "", cost_table(found, tree), "", COST_LEGEND),
        ]
        if errors:
            missed += any(errors[NETWORKS[0]][rules] > most for rules, most in UPDATE_MOST.items())
            parts += ["## What is left of an update", "", error_table(errors), "", ERROR_LEGEND]
        for name, results in losses.items():
            missed += sum(too_lossy(result, results[0]) for result in results)
            parts += [f"## Training: {name}, {len(results[0].test)} seeds", "", loss_table(results), ""]
        if losses:
            image = arguments.out.with_suffix(".png")
            picture(losses, image)
            parts += [LOSS_LEGEND, f"![Final test losses beside float32]({image.name})", ""]
        rows = len(found) + len(errors) + sum(map(len, losses.values()))
        published("\n".join(parts), missed, rows, arguments.out)
    return 0 if len(done) == len(jobs) else 130


if __name__ == "__main__":
    sys.exit(main())
