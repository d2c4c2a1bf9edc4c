"""The cost of one dense float32 step, next to optax's (and torch's, where it is installed).

    python -m benchmarks.dense                                   # everything, about half an hour on 2 cores
    python -m benchmarks.dense --optimizer adam --tree 64        # one row
    python -m benchmarks.dense --quick                           # small trees: shows that it runs, measures nothing

All libraries run in this one process, in turn, the order reversed each round, so that a slow minute of the machine
slows them all. optax runs twice, built and compiled separately: what it differs from itself (A/A) is noise.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib
import inspect
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from adaptx.registry import OPTIMIZERS
from benchmarks.needs import STAND_INS, supplied
from benchmarks.side_by_side import (
    Run,
    Start,
    Times,
    aligned,
    heading,
    in_turn,
    interleaved,
    measured,
    options,
    parsed,
    published,
    step_seconds,
)

RATE = 1e-3
STEP_TARGET = 1.05
MORE = 3  # a row over the step's target is measured again, with so many times the programs and twice the blocks
FIRST_TARGET = 1.1
FIRST_TARGET_ONE_LEAF = 1.3  # a fixed cost of milliseconds shows on one leaf and is nothing to a user
SCALAR_BYTES = 64  # what a scalar may take in memory; see `slack`


@dataclass(frozen=True)
class Pair:
    """One of our optimizers beside the same work elsewhere: the same slots, momenta and weight decay."""

    entry: str  # the registry's name
    ours: dict[str, Any]
    optax: Callable[..., optax.GradientTransformation]
    theirs: dict[str, Any]
    torch: str | None = None
    torch_arguments: dict[str, Any] = field(default_factory=dict)

    def build_ours(self) -> optax.GradientTransformation:
        return supplied(OPTIMIZERS[self.entry])(RATE, **self.ours)

    def build_optax(self) -> optax.GradientTransformation:
        return self.optax(RATE, **self.theirs)


def given_hessian() -> optax.GradientTransformation:
    """What Optax's Sophia takes an estimate from: the one that ours is given."""
    return optax.stateless(STAND_INS["hessian"])


# Defaults differ (ours are the papers'), so whatever changes the arithmetic is said on both sides.
PAIRS: dict[str, Pair] = {
    "adagrad": Pair(
        "adagrad",
        {"eps": 0.0, "eps_root": 1e-7, "initial_accumulator": 0.1},
        optax.adagrad,
        {"eps": 1e-7, "initial_accumulator_value": 0.1},
        "Adagrad",
        {"initial_accumulator_value": 0.1},
    ),
    "rmsprop": Pair(
        "rmsprop",
        {"b2": 0.9, "eps": 1e-8},
        optax.rmsprop,
        {"decay": 0.9, "eps": 1e-8, "eps_in_sqrt": False},
        "RMSprop",
        {"alpha": 0.9},
    ),
    "adadelta": Pair(
        "adadelta",
        {"b2": 0.9, "eps": 0.0, "eps_root": 1e-6},
        optax.adadelta,
        {"rho": 0.9, "eps": 1e-6},
        "Adadelta",
        {"rho": 0.9, "eps": 1e-6},
    ),
    "adam": Pair("adam", {}, optax.adam, {}, "Adam"),
    "amsgrad": Pair("adam", {"amsgrad": True}, optax.amsgrad, {}, "Adam", {"amsgrad": True}),
    "adamw": Pair(
        "adamw", {"weight_decay": 1e-2}, optax.adamw, {"weight_decay": 1e-2}, "AdamW", {"weight_decay": 1e-2}
    ),
    "adamax": Pair("adamax", {}, optax.adamax, {}, "Adamax"),
    "nadam": Pair("nadam", {}, optax.nadam, {}, "NAdam"),
    "radam": Pair("radam", {"rho_threshold": 5.0}, optax.radam, {}, "RAdam"),
    "yogi": Pair("yogi", {"bias_correction": True}, optax.yogi, {}),
    "adabelief": Pair("adabelief", {"eps_root": 1e-13}, optax.adabelief, {"eps_root": 1e-16}),
    "adan": Pair("adan", {}, optax.adan, {"eps_root": 0.0}),
    "adopt": Pair("adopt", {}, optax.contrib.adopt, {}),
    "ademamix": Pair("ademamix", {}, optax.contrib.ademamix, {}),
    "simplified_ademamix": Pair("simplified_ademamix", {}, optax.contrib.simplified_ademamix, {}),
    "novograd": Pair(
        "novograd",
        {"inner_decay": 1e-3},
        optax.novograd,
        {"b1": 0.95, "b2": 0.98, "eps": 1e-8, "weight_decay": 1e-3},
    ),
    "lamb": Pair("lamb", {"weight_decay": 1e-2}, optax.lamb, {"weight_decay": 1e-2}),
    "lion": Pair("lion", {"weight_decay": 1e-3}, optax.lion, {}),
    "lars": Pair("lars", {}, optax.lars, {}),
    "adafactor": Pair(
        "adafactor", {"min_dim_size_to_factor": 128, "relative_step": False, "factored": "largest"}, optax.adafactor, {}
    ),
    "dog": Pair("dog", {}, optax.contrib.dog, {}),
    "sophia": Pair("sophia", {}, optax.contrib.sophia, {"weight_decay": 0.2, "hessian_diagonal_fn": given_hessian()}),
    "sm3": Pair("sm3", {"eps_root": 1e-8}, optax.sm3, {}),
    "rprop": Pair("rprop", {}, optax.rprop, {}, "Rprop"),
    "dowg": Pair("dowg", {}, optax.contrib.dowg, {}),
    "prodigy": Pair("prodigy", {"bias_correction": True}, optax.contrib.prodigy, {}),
    "dadapt_adamw": Pair("dadapt_adam", {"bias_correction": True}, optax.contrib.dadapt_adamw, {}),
    "cocob": Pair("cocob", {}, optax.contrib.cocob, {}),
}
# Optax 0.2.6 has neither.
if hasattr(optax, "signum"):
    PAIRS["signum"] = Pair("signum", {}, optax.signum, {})
if hasattr(optax.contrib, "madgrad"):
    PAIRS["madgrad"] = Pair("madgrad", {}, optax.contrib.madgrad, {})


class Tree(NamedTuple):
    """`leaves` float32 vectors of `size` elements each."""

    leaves: int
    size: int
    first_calls: int  # how often the first call is measured at 5 repeats: 1000 leaves take many seconds each

    @property
    def label(self) -> str:
        for unit, scale in (("M", 1 << 20), ("k", 1 << 10)):
            if self.size >= scale:
                return f"{self.leaves} x {self.size // scale}{unit}"
        return f"{self.leaves} x {self.size}"

    @property
    def parameters(self) -> int:
        return self.leaves * self.size

    @property
    def slack(self) -> int:
        """Bytes no verdict looks at: a scalar a leaf (a norm, or two that are sorted and summed) and a few a tree (a
        count). Less than a leaf in TREES."""
        return SCALAR_BYTES * (self.leaves + 16)

    def abstract(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {f"w{i:04d}": jax.ShapeDtypeStruct((self.size,), jnp.float32) for i in range(self.leaves)}

    def normal(self, seed: int) -> dict[str, np.ndarray]:
        rows = np.random.default_rng(seed).standard_normal((self.leaves, self.size), dtype=np.float32)
        return dict(zip(self.abstract(), rows, strict=True))


TREES = {"one": Tree(1, 1 << 24, 9), "64": Tree(64, 1 << 18, 7), "1000": Tree(1000, 1 << 14, 3)}
QUICK_TREES = {"one": Tree(1, 1 << 16, 1), "64": Tree(8, 1 << 12, 1), "1000": Tree(20, 1 << 10, 1)}


# Compiling ------------------------------------------------------------------------------------------------------


def train_step(optimizer: optax.GradientTransformation) -> jax.stages.Wrapped:
    """A fresh function, so that no cache knows it: (params, state, grads) -> (params, state), the first two donated.

    jit pairs donated buffers with outputs in order: another order would cost a copy of everything.
    """

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def compile_step(optimizer: optax.GradientTransformation, tree: Tree) -> jax.stages.Compiled:
    params = tree.abstract()
    return train_step(optimizer).lower(params, jax.eval_shape(optimizer.init, params), params).compile()


class Structure(NamedTuple):
    """What the compiled step moves and holds; exact, so it needs no timer and no quiet machine."""

    bytes_accessed: int  # read and written, as XLA counts them
    temporary: int  # bytes that live only inside the step
    unaliased: int  # output bytes that reuse no donated buffer: a second copy of what they replace
    state: int  # what is kept from step to step


def structure_of(optimizer: optax.GradientTransformation, compiled: jax.stages.Compiled, tree: Tree) -> Structure:
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    assert cost is not None, "this backend reports no cost"
    assert memory is not None, "this backend reports no memory"
    return Structure(
        int(cost["bytes accessed"]),
        memory.temp_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
        state_bytes(optimizer, tree),
    )


def state_bytes(optimizer: optax.GradientTransformation, tree: Tree) -> int:
    state = jax.eval_shape(optimizer.init, tree.abstract())
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def structure(name: str, tree: Tree) -> tuple[Structure, Structure]:
    """Ours and optax's, compiled and not run."""
    pair = PAIRS[name]
    ours, theirs = pair.build_ours(), pair.build_optax()
    return structure_of(ours, compile_step(ours, tree), tree), structure_of(theirs, compile_step(theirs, tree), tree)


def structural_misses(ours: Structure, theirs: Structure, tree: Tree) -> list[str]:
    """The columns in which ours takes more than optax's."""
    more = [mine > other + tree.slack for mine, other in zip(ours, theirs, strict=True)]
    columns = {"bytes": more[0], "temp": more[1] or more[2], "state": more[3]}
    return [column for column, missed in columns.items() if missed]


# Timing ---------------------------------------------------------------------------------------------------------


def first_calls(
    builders: dict[str, Callable[[], optax.GradientTransformation]], tree: Tree, rounds: int, tick: Callable[[], None]
) -> tuple[dict[str, list[float]], dict[str, list[jax.stages.Compiled]]]:
    """Seconds to trace, lower and compile a step that nothing has seen yet; and the compiled steps."""
    seconds: dict[str, list[float]] = {name: [] for name in builders}
    compiled: dict[str, list[jax.stages.Compiled]] = {name: [] for name in builders}
    for names in interleaved(list(builders), rounds):
        for name in names:
            optimizer = builders[name]()
            params = tree.abstract()
            state = jax.eval_shape(optimizer.init, params)
            jax.clear_caches()
            gc.collect()  # else one side may pay for the other's garbage
            start = time.perf_counter()
            step = train_step(optimizer).lower(params, state, params).compile()
            seconds[name].append(time.perf_counter() - start)
            compiled[name].append(step)
            tick()
    return seconds, compiled


def jax_start(
    step: jax.stages.Compiled, optimizer: optax.GradientTransformation, host_params: dict[str, np.ndarray], grads: Any
) -> Run:
    params = jax.tree.map(jnp.array, host_params)
    state = jax.tree.map(lambda x: jnp.array(x, copy=True), optimizer.init(params))  # optax's dog keeps `params` itself

    def run(steps: int) -> None:
        nonlocal params, state
        for _ in range(steps):
            params, state = step(params, state, grads)
        jax.block_until_ready((params, state))

    return run


def torch_starts(pair: Pair, params: dict[str, np.ndarray], grads: dict[str, np.ndarray]) -> dict[str, Start]:
    """torch's optimizer, over all tensors at once (foreach) and in one native kernel (fused), where it has them."""
    try:
        torch = importlib.import_module("torch")  # optional, and its types are of no use here
    except ImportError:
        return {}
    if pair.torch is None:
        return {}
    factory = getattr(torch.optim, pair.torch)

    def start(way: str) -> Run:
        tensors = [torch.tensor(params[name], requires_grad=True) for name in params]
        for tensor, name in zip(tensors, params, strict=True):
            tensor.grad = torch.from_numpy(grads[name])
        return functools.partial(torch_run, factory(tensors, lr=RATE, **{way: True}, **pair.torch_arguments))

    ways = [way for way in ("foreach", "fused") if way in inspect.signature(factory).parameters]
    return {f"torch {way}": functools.partial(start, way) for way in ways}


def torch_run(optimizer: Any, steps: int) -> None:
    for _ in range(steps):
        optimizer.step()


# One row --------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    optimizer: str
    tree: Tree
    step: Times
    first: Times
    ours: Structure
    theirs: Structure
    torch: dict[str, Times]
    counts: tuple[int, int, int]  # rounds of the step, steps in a block, rounds of the first call
    again: Row | None = None  # the second measurement, which counts, whichever way it falls

    def misses(self) -> list[str]:
        first_target = FIRST_TARGET_ONE_LEAF if self.tree.leaves == 1 else FIRST_TARGET
        misses = ["step"] if self.step.misses(STEP_TARGET) else []
        if self.first.misses(first_target):
            misses.append("first")
        return misses + structural_misses(self.ours, self.theirs, self.tree)


def first_call_rounds(tree: Tree, repeats: int) -> int:
    """As many as at 5 repeats at most: a step's noise is what takes more of them."""
    return max(1, tree.first_calls * min(repeats, 5) // 5)


def measure(name: str, tree: Tree, repeats: int, tick: Callable[[], None]) -> Row:
    pair = PAIRS[name]
    builders = {"adaptx": pair.build_ours, "optax": pair.build_optax, "optax again": pair.build_optax}
    compiling, compiled = first_calls(builders, tree, first_call_rounds(tree, repeats), tick)

    params, host_grads = tree.normal(0), tree.normal(1)
    grads = jax.tree.map(jnp.array, host_grads)
    starts: dict[str, Start] = {
        who: in_turn([functools.partial(jax_start, step, build(), params, grads) for step in compiled[who]])
        for who, build in builders.items()
    }
    starts |= torch_starts(pair, params, host_grads)
    stepping, steps = step_seconds(starts, repeats, tick)

    return Row(
        name,
        tree,
        Times.of(stepping),
        Times.of(compiling),
        structure_of(pair.build_ours(), compiled["adaptx"][0], tree),
        structure_of(pair.build_optax(), compiled["optax"][0], tree),
        {who: Times.of(stepping, who) for who in starts if who.startswith("torch")},
        (repeats, steps["optax"], len(compiling["optax"])),
    )


def measure_all(asked: Sequence[tuple[str, Tree, int]]) -> list[Row]:
    """The rows of these optimizers, trees and repeats; Ctrl-C keeps those that are done."""
    jobs = [(f"{name} {tree.label}", functools.partial(measure, name, tree, repeats)) for name, tree, repeats in asked]
    return measured(jobs, sum(3 * first_call_rounds(tree, repeats) + repeats for _, tree, repeats in asked))


# The report -----------------------------------------------------------------------------------------------------

HEADER = [
    "optimizer", "tree", "step ms", "ratio", "A/A", "first call s", "ratio", "A/A", "B/param", "temp B",
    "state B/param", "verdict",
]  # fmt: skip


def size(count: float) -> str:
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f}{unit}"
    return f"{count:.0f}"


def cells(row: Row) -> list[list[str]]:
    """The row's line, ours / optax's, and one for each way torch has."""
    n = row.tree.parameters
    line = [
        row.optimizer,
        row.tree.label,
        f"{1e3 * row.step.ours:.2f} / {1e3 * row.step.theirs:.2f}",
        f"{row.step.ratio:.2f}",
        f"{row.step.noise:.2f}",
        f"{row.first.ours:.2f} / {row.first.theirs:.2f}",
        f"{row.first.ratio:.2f}",
        f"{row.first.noise:.2f}",
        f"{row.ours.bytes_accessed / n:.2f} / {row.theirs.bytes_accessed / n:.2f}",
        f"{size(row.ours.temporary)} / {size(row.theirs.temporary)}",
        f"{row.ours.state / n:.2f} / {row.theirs.state / n:.2f}",
        "MISS: " + ", ".join(row.misses()) if row.misses() else "ok",
    ]
    rest = [""] * (len(HEADER) - 4)
    return [line] + [
        [f"- {way}", row.tree.label, f"{1e3 * times.ours:.2f} / {1e3 * times.theirs:.2f}", f"{times.ratio:.2f}", *rest]
        for way, times in row.torch.items()
    ]


def table(rows: Sequence[Row]) -> str:
    again = lambda row: [row.again._replace(optimizer=f"{row.optimizer}, again")] if row.again else []
    lines = [line for row in rows for each in (row, *again(row)) for line in cells(each)]
    return aligned(HEADER, lines, (0, 1, len(HEADER) - 1))


QUICK_NOTE = "**QUICK RUN ON SMALL TREES: this shows that the benchmark runs. Its times mean nothing.**"


LEGEND = f"""\
Pairs are ours / optax's. A ratio is the median over the rounds of ours to optax's in the same round (torch's to
optax's on torch's lines); A/A is the same for a second, separately compiled optax: the noise. *first call*: trace,
lower and compile a function that no cache knows; the rounds of a step take the programs that came of it in turn.
*B/param*: bytes accessed a parameter by the compiled step. *temp*: its temporary memory. Parameters and state are
donated.

Targets: step <= {STEP_TARGET} x max(1, A/A); first call <= {FIRST_TARGET} x max(1, A/A), on one leaf
{FIRST_TARGET_ONE_LEAF} x; bytes accessed, temporary memory and state at most optax's (scalars are let pass).
One program compiled twice differs from itself by up to 15 % on many leaves: a row over the step's target is measured
again, once, with {MORE} times the programs and twice the blocks, and what comes of it counts.
"""


def counts(rows: Sequence[Row]) -> str:
    """How much was measured, by tree."""
    found = []
    for tree in dict.fromkeys(row.tree for row in rows):
        rounds, _, firsts = next(row.counts for row in rows if row.tree == tree)
        steps = sorted({row.counts[1] for row in rows if row.tree == tree})
        block = f"{steps[0]}-{steps[-1]}" if len(steps) > 1 else f"{steps[0]}"
        found.append(f"{tree.label}: step {rounds} blocks of {block} steps, first call {firsts}")
    return "; ".join(found)


def report(rows: Sequence[Row], argv: Sequence[str], quick: bool) -> str:
    spreads = [row.step.spread for row in rows]
    lines = [
        *heading("Dense float32 step: adaptx against optax", argv, "benchmarks.dense", QUICK_NOTE if quick else ""),
        f"- Medians of: {counts(rows)}",
        f"- Half the range of a row's step ratios: median {statistics.median(spreads):.3f}, most {max(spreads):.3f}",
        "",
        table(rows),
        "",
        LEGEND,
    ]
    return "\n".join(lines)


# The command ----------------------------------------------------------------------------------------------------


def parse(argv: Sequence[str]) -> argparse.Namespace:
    out, quick = Path("benchmarks/results/dense.md"), "small trees, to see that it runs"
    parser = options("python -m benchmarks.dense", __doc__, PAIRS, out, quick)
    parser.add_argument("--tree", action="append", choices=list(TREES), help="leaves; repeatable; default: all")
    return parsed(parser, argv)


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse(argv)
    jax.config.update("jax_enable_compilation_cache", False)  # a first call read from disk is no first call
    trees, repeats = QUICK_TREES if arguments.quick else TREES, arguments.repeats
    asked = [
        (name, trees[tree], repeats)
        for name in dict.fromkeys(arguments.optimizer or PAIRS)
        for tree in dict.fromkeys(arguments.tree or trees)
    ]
    if arguments.quick:
        print(QUICK_NOTE)
    rows = measure_all(asked)
    whole = len(rows) == len(asked)
    over = [i for i, row in enumerate(rows) if whole and "step" in row.misses()]
    more = lambda tree: tree._replace(first_calls=MORE * tree.first_calls)
    again = measure_all([(rows[i].optimizer, more(rows[i].tree), 2 * repeats) for i in over])
    for i, row in zip(over, again, strict=False):  # fewer when interrupted
        rows[i] = rows[i]._replace(again=row)
    if rows:
        missed = sum(bool((row.again or row).misses()) for row in rows)
        published(report(rows, argv, arguments.quick), missed, len(rows), arguments.out)
    return 0 if whole and len(again) == len(over) else 130


if __name__ == "__main__":
    sys.exit(main())
