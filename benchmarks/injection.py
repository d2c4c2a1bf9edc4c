"""What it costs to keep hyperparameters in the state: a step of the injected optimizer beside the closed-over one.

    python -m benchmarks.injection                               # some minutes on 2 cores
    python -m benchmarks.injection --optimizer adamw --tree 64   # one row
    python -m benchmarks.injection --quick                       # small trees: shows that it runs, measures nothing

All steps run in one process, in turn. The closed-over optimizer runs twice, compiled separately: what it differs from
itself (A/A) is noise. Optax's own injection beside Optax's optimizer is measured too, where it has the optimizer.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adaptx.hyperparams import inject_hyperparams, set_hyperparams
from adaptx.registry import OPTIMIZERS
from benchmarks.dense import QUICK_NOTE, QUICK_TREES, TREES, Tree, compile_step, jax_start
from benchmarks.needs import supplied
from benchmarks.side_by_side import Start, Times, aligned, heading, measured, options, parsed, published, step_seconds

TARGET = 1.05
RATE = 1e-3


class Row(NamedTuple):
    optimizer: str
    tree: Tree
    ours: Times
    optax: Times | None
    bytes_accessed: tuple[float, float]  # a parameter, injected and closed over
    temporary: tuple[int, int]
    traced: int  # how often 100 changes of the rate traced the step again

    def missed(self) -> bool:
        return self.ours.misses(TARGET) or self.traced > 0


def builders(name: str) -> dict[str, Callable[[], optax.GradientTransformation]]:
    factory, theirs = supplied(OPTIMIZERS[name]), getattr(optax, name, None)
    made: dict[str, Callable[[], optax.GradientTransformation]] = {
        "injected": lambda: inject_hyperparams(factory)(RATE),
        "closed over": lambda: factory(RATE),
        "again": lambda: factory(RATE),
    }
    if theirs is not None:
        made |= {
            "optax injected": lambda: optax.inject_hyperparams(theirs)(RATE),
            "optax closed over": lambda: theirs(RATE),
        }
    return made


def traced_by_changes(name: str, tree: Tree) -> int:
    """How often a jitted step is traced again while its rate is changed 100 times."""
    tx, traced = inject_hyperparams(supplied(OPTIMIZERS[name]))(RATE), []
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree.abstract())

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        traced.append(None)
        return tx.update(params, state, params)[1]

    state = step(params, tx.init(params))
    for i in range(100):
        state = step(params, set_hyperparams(state, learning_rate=RATE / (1 + i)))
    return len(traced) - 1


def measure(name: str, tree: Tree, repeats: int, tick: Callable[[], None]) -> Row:
    params, grads = tree.normal(0), jax.tree.map(jnp.array, tree.normal(1))
    starts: dict[str, Start] = {}
    compiled: dict[str, jax.stages.Compiled] = {}
    for who, build in builders(name).items():
        tx = build()
        compiled[who] = compile_step(tx, tree)
        starts[who] = functools.partial(jax_start, compiled[who], tx, params, grads)
    seconds, _ = step_seconds(starts, repeats, tick)
    theirs = Times.of(seconds, "optax injected", "optax closed over", "again") if "optax injected" in starts else None
    pair: list[Any] = [(compiled[who].cost_analysis(), compiled[who].memory_analysis()) for who in list(starts)[:2]]
    moved = tuple(cost["bytes accessed"] / tree.parameters for cost, _ in pair)
    held = tuple(memory.temp_size_in_bytes for _, memory in pair)
    return Row(
        name,
        tree,
        Times.of(seconds, "injected", "closed over", "again"),
        theirs,
        (moved[0], moved[1]),
        (held[0], held[1]),
        traced_by_changes(name, QUICK_TREES["64"]),
    )


HEADER = ["optimizer", "tree", "step ms", "ratio", "A/A", "optax ratio", "B/param", "temp B", "traced", "verdict"]

LEGEND = f"""\
Pairs are injected / closed over. A ratio is the median over the rounds; A/A is that of the closed-over optimizer to
itself, compiled separately: the noise. *optax ratio*: optax.inject_hyperparams to the same optimizer of Optax closed
over. *B/param*, *temp*: bytes accessed a parameter and temporary memory of the compiled step. *traced*: how often
100 changes of the learning rate trace the step again. Parameters and state are donated.

Targets: step <= {TARGET} x max(1, A/A), never traced again.
"""


def cells(row: Row) -> list[str]:
    return [
        row.optimizer,
        row.tree.label,
        f"{1e3 * row.ours.ours:.2f} / {1e3 * row.ours.theirs:.2f}",
        f"{row.ours.ratio:.2f}",
        f"{row.ours.noise:.2f}",
        f"{row.optax.ratio:.2f}" if row.optax else "",
        f"{row.bytes_accessed[0]:.2f} / {row.bytes_accessed[1]:.2f}",
        f"{row.temporary[0]} / {row.temporary[1]}",
        str(row.traced),
        "MISS" if row.missed() else "ok",
    ]


def report(rows: Sequence[Row], argv: Sequence[str], repeats: int, quick: bool) -> str:
    title = "Injected hyperparameters: a step beside the closed-over one"
    return "\n".join(
        [
            *heading(title, argv, "benchmarks.injection", QUICK_NOTE if quick else ""),
            f"- Medians of: {repeats} blocks of steps",
            "",
            aligned(HEADER, [cells(row) for row in rows], (0, 1, len(HEADER) - 1)),
            "",
            LEGEND,
        ]
    )


def parse(argv: Sequence[str]) -> argparse.Namespace:
    out, quick = Path("benchmarks/results/injection.md"), "small trees, to see that it runs"
    parser = options("python -m benchmarks.injection", __doc__, OPTIMIZERS, out, quick)
    parser.add_argument("--tree", action="append", choices=list(TREES), help="leaves; repeatable; default: one and 64")
    return parsed(parser, argv)


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse(argv)
    trees, repeats = QUICK_TREES if arguments.quick else TREES, arguments.repeats
    names = dict.fromkeys(arguments.optimizer or ["adagrad", "rmsprop", "adam", "adamw", "lamb"])
    pairs = [(name, trees[tree]) for name in names for tree in dict.fromkeys(arguments.tree or ["one", "64"])]
    if arguments.quick:
        print(QUICK_NOTE)
    jobs = [(f"{name} {tree.label}", functools.partial(measure, name, tree, repeats)) for name, tree in pairs]
    rows = measured(jobs, repeats * len(jobs))
    if rows:
        text = report(rows, argv, repeats, arguments.quick)
        published(text, sum(row.missed() for row in rows), len(rows), arguments.out)
    return 0 if len(rows) == len(jobs) else 130


if __name__ == "__main__":
    sys.exit(main())
