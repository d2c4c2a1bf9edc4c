"""The cost of a training step on a large table of which it uses few rows, next to dense optax and torch's sparse step.

    python -m benchmarks.sparse                              # everything, about ten minutes on 2 cores
    python -m benchmarks.sparse --optimizer adagrad --ids 4096
    python -m benchmarks.sparse --quick                      # small tables: shows that it runs, measures nothing

A step is one jitted, donating call with forward, gradient and update: rows are looked up, and their scores against a
fixed vector give a squared loss. All libraries run in this process, in turn. From 16,384 ids on ours makes them unique
on the host first, and the time of that counts. Ours runs twice, built and compiled separately: the noise.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adaptx import sparse
from benchmarks.side_by_side import (
    Run,
    Start,
    Times,
    aligned,
    heading,
    measured,
    options,
    parsed,
    published,
    step_seconds,
)

RATE = 0.01
SPEED_TARGET = 25.0  # times dense optax's, at 4,096 uniform ids
FLAT_TARGET = 2.0  # the slowest table's step over the fastest's
TARGET_IDS = 4096
UNIQUE_FROM = 16_384  # from so many ids on they are made unique on the host
BATCHES = 4  # in turn, so that no run finds its rows still in the cache


@dataclass(frozen=True)
class Rival:
    """One of our optimizers, and what does its work elsewhere."""

    ours: Callable[[], optax.GradientTransformation]
    optax: Callable[[], optax.GradientTransformation] | None = None
    torch: str | None = None


RIVALS: dict[str, Rival] = {
    "adagrad": Rival(lambda: sparse.adagrad(RATE, 0.1), lambda: optax.adagrad(RATE), "Adagrad"),
    "adam": Rival(lambda: sparse.adam(RATE), lambda: optax.adam(RATE), "SparseAdam"),
    "rowwise_adagrad": Rival(lambda: sparse.rowwise_adagrad(RATE)),
    "partial_rowwise_adam": Rival(lambda: sparse.partial_rowwise_adam(RATE)),
    "ftrl": Rival(lambda: sparse.ftrl(RATE, l1=0.01)),
    "lamb_rows": Rival(lambda: sparse.lamb_rows(RATE)),
}


class Table(NamedTuple):
    """A table of float32, and the ids of a step."""

    rows: int
    width: int
    ids: int
    kind: str  # "uniform" or "zipf"

    @property
    def label(self) -> str:
        rows = f"{self.rows // 1_000_000}M" if self.rows >= 1_000_000 else f"{self.rows // 1000}k"
        return f"{rows} x {self.width}"

    @property
    def on_host(self) -> bool:
        return self.ids >= UNIQUE_FROM

    def batches(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids and targets. Under zipf the id of rank k comes with probability in proportion to 1/k."""
        rng = np.random.default_rng(0)
        drawn = []
        for _ in range(BATCHES):
            if self.kind == "uniform":
                ids = rng.integers(0, self.rows, self.ids)
            else:
                rank = np.exp(rng.uniform(0, np.log(self.rows), self.ids)).astype(np.int64)
                ids = rank * 7919 % self.rows  # popular rows do not lie side by side
            drawn.append((ids.astype(np.int32), rng.normal(size=self.ids).astype(np.float32)))
        return drawn


ROWS, WIDTH = 1_000_000, 64
FLAT_ROWS = (10_000, 100_000, 1_000_000, 3_000_000)
IDS = (256, 4096, 65_536)


# The steps ------------------------------------------------------------------------------------------------------


def scores(rows: jax.Array) -> jax.Array:
    """The same fixed vector everywhere."""
    return rows @ jnp.linspace(-1, 1, rows.shape[-1])


def sparse_step(tx: optax.GradientTransformation) -> jax.stages.Wrapped:
    """(table, state, ids, y) -> (table, state, loss), the first two donated."""
    value_and_grad = sparse.rows_value_and_grad(lambda dense, rows, y: jnp.mean((scores(rows) - y) ** 2))

    def step(table: Any, state: Any, ids: Any, y: Any) -> Any:
        loss, (_, g) = value_and_grad((), table, ids, y)
        updates, state = tx.update(g, state, table)
        return optax.apply_updates(table, updates), state, loss

    return jax.jit(step, donate_argnums=(0, 1))


def dense_step(tx: optax.GradientTransformation) -> jax.stages.Wrapped:
    """The same with the gradient as an array of the table's size."""

    def step(table: Any, state: Any, ids: Any, y: Any) -> Any:
        loss, g = jax.value_and_grad(lambda table: jnp.mean((scores(table[ids]) - y) ** 2))(table)
        updates, state = tx.update(g, state, table)
        return optax.apply_updates(table, updates), state, loss

    return jax.jit(step, donate_argnums=(0, 1))


def jax_run(step: jax.stages.Wrapped, tx: optax.GradientTransformation, table: Table, prepare: Any) -> Run:
    """Steps from a table of its own, each with the next batch."""
    x = jnp.zeros((table.rows, table.width)) + 0.01
    state, batches, done = tx.init(x), table.batches(), 0

    def run(steps: int) -> None:
        nonlocal x, state, done
        loss = None
        for _ in range(steps):
            ids, y = batches[done % BATCHES]
            x, state, loss = step(x, state, prepare(ids), y)
            done += 1
        jax.block_until_ready((x, state, loss))

    return run


def torch_run(name: str, table: Table) -> Run | None:
    """torch's embedding with sparse gradients, and its optimizer for these."""
    try:
        torch = importlib.import_module("torch")  # optional, and its types are of no use here
    except ImportError:
        return None
    embedding = torch.nn.Embedding(table.rows, table.width, sparse=True)
    torch.nn.init.constant_(embedding.weight, 0.01)
    settings = {"initial_accumulator_value": 0.1} if name == "Adagrad" else {}
    optimizer = getattr(torch.optim, name)(embedding.parameters(), lr=RATE, **settings)
    batches = [(torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(y)) for ids, y in table.batches()]
    vector, done = torch.linspace(-1, 1, table.width), 0

    def run(steps: int) -> None:
        nonlocal done
        for _ in range(steps):
            ids, y = batches[done % BATCHES]
            optimizer.zero_grad()
            ((embedding(ids) @ vector - y) ** 2).mean().backward()
            optimizer.step()
            done += 1

    return run


def ours_run(tx: optax.GradientTransformation, table: Table) -> Run:
    prepare = (lambda ids: sparse.unique_ids(ids, table.rows)) if table.on_host else (lambda ids: ids)
    return jax_run(sparse_step(tx), tx, table, prepare)


def as_they_are(runs: dict[str, Run]) -> dict[str, Start]:
    """Runs that go on from block to block: one large table has no place that matters."""
    return {name: lambda run=run: run for name, run in runs.items()}


def temporary_bytes(name: str, table: Table) -> int:
    """What the compiled sparse step sets aside, without unique ids."""
    tx, f32 = RIVALS[name].ours(), jnp.float32
    x = jax.ShapeDtypeStruct((table.rows, table.width), f32)
    ids, y = jax.ShapeDtypeStruct((table.ids,), jnp.int32), jax.ShapeDtypeStruct((table.ids,), f32)
    compiled = sparse_step(tx).lower(x, jax.eval_shape(tx.init, x), ids, y).compile()
    memory = compiled.memory_analysis()
    assert memory is not None, "this backend reports no memory"
    return memory.temp_size_in_bytes


# One row --------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    optimizer: str
    table: Table
    ours: float  # seconds
    noise: float  # ours against itself
    rivals: dict[str, Times]  # how many times slower than ours
    temporary: int
    rounds: int

    def misses(self) -> list[str]:
        """Which targets this row misses; most rows are only reported."""
        if self.table.ids != TARGET_IDS:
            return []
        dense, torch = self.rivals.get("optax"), self.rivals.get("torch")
        slow = dense is not None and self.table.kind == "uniform" and dense.ratio < SPEED_TARGET
        behind = torch is not None and torch.ratio * max(1.0, self.noise) < 1
        return ["speed"] * slow + ["torch"] * behind


def measure(name: str, table: Table, rounds: int, tick: Callable[[], None]) -> Row:
    rival = RIVALS[name]
    runs = {"adaptx": ours_run(rival.ours(), table), "adaptx again": ours_run(rival.ours(), table)}
    if rival.optax is not None:
        tx = rival.optax()
        runs["optax"] = jax_run(dense_step(tx), tx, table, lambda ids: ids)
    torch = torch_run(rival.torch, table) if rival.torch else None
    if torch is not None:
        runs["torch"] = torch
    seconds, _ = step_seconds(as_they_are(runs), rounds, tick)
    times = {who: Times.of(seconds, who, "adaptx", "adaptx again") for who in runs}
    rivals = {who: times[who] for who in runs if not who.startswith("adaptx")}
    ours = statistics.median(seconds["adaptx"])
    return Row(name, table, ours, times["adaptx again"].ratio, rivals, temporary_bytes(name, table), rounds)


class Flat(NamedTuple):
    """Steps on tables of several sizes, measured in turn."""

    tables: tuple[Table, ...]
    seconds: tuple[float, ...]

    @property
    def ratio(self) -> float:
        return max(self.seconds) / min(self.seconds)

    def misses(self) -> list[str]:
        return ["flat"] * (self.ratio > FLAT_TARGET)


def measure_flat(sizes: Sequence[int], ids: int, rounds: int, tick: Callable[[], None]) -> Flat:
    tables = tuple(Table(rows, WIDTH, ids, "uniform") for rows in sizes)
    runs = {table.label: ours_run(RIVALS["adagrad"].ours(), table) for table in tables}
    seconds, _ = step_seconds(as_they_are(runs), rounds, tick)
    return Flat(tables, tuple(statistics.median(seconds[table.label]) for table in tables))


# The report -----------------------------------------------------------------------------------------------------

HEADER = ["optimizer", "table", "ids", "step ms", "A/A", "dense optax ms", "x ours", "torch sparse ms", "x ours",
          "temp, in rows", "verdict"]  # fmt: skip
QUICK_NOTE = "**QUICK RUN ON SMALL TABLES: this shows that the benchmark runs. Its times mean nothing.**"
LEGEND = f"""\
A step is forward, gradient and update in one donating call. *x ours*: the median over the rounds of the other's time
to ours in the same round; A/A: ours to ours, built and compiled a second time: the noise. *temp, in rows*: the
compiled step's temporary memory over the bytes of the ids' rows. From {UNIQUE_FROM:,} ids on, ours makes them unique
on the host, in the time shown. zipf: the id of rank k comes with probability in proportion to 1/k. Dense optax walks
the whole table.

Targets, at {TARGET_IDS:,} ids: at least {SPEED_TARGET:.0f} x dense optax (uniform), at least torch's sparse step
(x ours >= 1 within the noise); adagrad's step flat within {FLAT_TARGET:.0f} x from the smallest table to the largest.
"""


def cells(row: Row) -> list[str]:
    def of(who: str) -> list[str]:
        times = row.rivals.get(who)
        return ["", ""] if times is None else [f"{1e3 * times.ours:.2f}", f"{times.ratio:.2f}"]

    rows_bytes = row.table.ids * row.table.width * 4
    return [
        row.optimizer, row.table.label, f"{row.table.ids} {row.table.kind}",
        f"{1e3 * row.ours:.2f}", f"{row.noise:.2f}",
        *of("optax"), *of("torch"), f"{row.temporary / rows_bytes:.1f}",
        "MISS: " + ", ".join(row.misses()) if row.misses() else "ok",
    ]  # fmt: skip


def report(rows: Sequence[Row], flat: Flat | None, argv: Sequence[str], quick: bool) -> str:
    lines = [
        *heading(
            "Row-sparse steps: adaptx against dense optax and torch's sparse optimizers",
            argv,
            "benchmarks.sparse",
            QUICK_NOTE if quick else "",
        ),
        *([f"- Medians of {rows[0].rounds} rounds"] if rows else []),
        "",
        *([aligned(HEADER, [cells(row) for row in rows], (0, 1, 2, len(HEADER) - 1)), ""] if rows else []),
    ]
    if flat is not None:
        steps = zip(flat.tables, flat.seconds, strict=True)
        sizes = ", ".join(f"{table.label}: {1e3 * seconds:.2f} ms" for table, seconds in steps)
        verdict = "MISS: flat" if flat.misses() else "ok"
        what = f"adagrad, {flat.tables[0].ids} uniform ids: {sizes}"
        lines += [f"{what}; slowest to fastest {flat.ratio:.2f}: {verdict}", ""]
    return "\n".join([*lines, LEGEND])


# The command ----------------------------------------------------------------------------------------------------


def parse(argv: Sequence[str]) -> argparse.Namespace:
    out, quick = Path("benchmarks/results/sparse.md"), "small tables, to see that it runs"
    parser = options("python -m benchmarks.sparse", __doc__, RIVALS, out, quick)
    parser.add_argument("--ids", action="append", type=int, choices=IDS, help="ids of a step; repeatable; default: all")
    return parsed(parser, argv)


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse(argv)
    if arguments.quick:
        print(QUICK_NOTE)
    jobs: list[tuple[str, Callable[[Callable[[], None]], Row | Flat]]] = []
    for name in dict.fromkeys(arguments.optimizer or RIVALS):
        for ids in dict.fromkeys(arguments.ids or IDS):
            for kind in ("uniform", "zipf"):
                # Where there is no rival only the size of the targets is of interest.
                if RIVALS[name].optax is not None or (ids == TARGET_IDS and kind == "uniform"):
                    table = Table(10_000 if arguments.quick else ROWS, WIDTH, ids, kind)
                    label = f"{name} {table.label} {ids} {kind}"
                    jobs.append((label, functools.partial(measure, name, table, arguments.repeats)))
    if "adagrad" in (arguments.optimizer or RIVALS) and TARGET_IDS in (arguments.ids or IDS):
        sizes = (1000, 10_000) if arguments.quick else FLAT_ROWS
        jobs.append(("several sizes", functools.partial(measure_flat, sizes, TARGET_IDS, arguments.repeats)))
    results = measured(jobs, len(jobs) * arguments.repeats)
    if results:
        rows = [result for result in results if isinstance(result, Row)]
        flat = next((result for result in results if isinstance(result, Flat)), None)
        text = report(rows, flat, argv, arguments.quick)
        published(text, sum(bool(result.misses()) for result in results), len(results), arguments.out)
    return 0 if len(results) == len(jobs) else 130


if __name__ == "__main__":
    sys.exit(main())
