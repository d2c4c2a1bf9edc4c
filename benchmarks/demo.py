"""Trains Flax models on real data with adaptx optimizers, and shows what each of them did.

    python -m benchmarks.demo
    python -m benchmarks.demo --dataset digits --optimizer adam --optimizer dog --steps 1000
    python -m benchmarks.demo --data path/to/fashion-mnist
    python -m benchmarks.demo --sweep learning_rate

Three tasks (a linear and an MLP regression on diabetes, a two-layer classifier on digits), one table, two pictures.
Every optimizer runs at its usual rate, untuned: the table shows that they work, not which one is best.
"""

import argparse
import importlib.util
import math
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from benchmarks.data import Dataset
    from benchmarks.training import Run

EXTRAS = {"flax": "demo", "sklearn": "demo", "matplotlib": "plot", "tqdm": "plot"}
DATASETS = ("diabetes", "digits")
OPTIMIZERS = ("adagrad", "rmsprop", "adadelta", "adam", "adamw", "sgd")
INTERRUPTED = 130  # what a shell reports for Ctrl-C
HEADER = ("task", "optimizer", "rate", "initial loss", "train loss", "test loss", "accuracy", "ms/step", "bytes/param")
NOTES = """\
loss: mean squared error of standardised targets, or mean cross-entropy, over all rows; accuracy: on the test rows
ms/step: median, compilation excluded, making the batch and the layers' norms for the picture included
bytes/param: the chain's state per model parameter, its counters included
no ranking of the optimizers: their rates are typical or given, not tuned, and the runs are short"""


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return demo(argv)
    except KeyboardInterrupt:  # in the seconds of imports and loading, or again while the results are written
        print("interrupted while no training was under way", file=sys.stderr)
        return INTERRUPTED


def demo(argv: Sequence[str] | None) -> int:
    for package, extra in EXTRAS.items():
        if importlib.util.find_spec(package) is None:
            print(f"the demo needs {package}: pip install 'adaptx[{extra}]'", file=sys.stderr)
            return 2
    from benchmarks import plots, training  # late: they import what was just looked for

    parser = make_parser(training.NAMES)
    args = parser.parse_args(argv)
    if args.sweep:
        return demo_sweep(args, parser)
    if args.trials:
        parser.error("--trials: it needs --sweep")
    datasets = load(args, parser)
    make_writable(args.out, parser)

    names = list(dict.fromkeys(args.optimizer or OPTIMIZERS))
    runs = [
        training.Run(task, name, args.learning_rate or training.default_rate(name), args.steps, args.seed)
        for dataset in datasets
        for tasks in zip(*(training.tasks_on(dataset, name) for name in names), strict=True)
        for task, name in zip(tasks, names, strict=True)
    ]
    for run in runs:
        if problem := training.refusal(run):
            parser.error(f"--optimizer {run.optimizer}: {problem}")
    try:
        train_all(runs)
    except KeyboardInterrupt:
        pass  # the runs keep what they measured, and the count below tells
    begun = [run for run in runs if run.done]
    if begun:
        print(table(begun))
        for draw, name in ((plots.learning_curves, "learning_curves"), (plots.effective_rates, "effective_rates")):
            path = args.out / f"{name}.png"
            draw(begun, path)
            print(f"wrote {path}")
    complete = sum(run.done == run.steps for run in runs)
    if complete < len(runs):
        print(f"interrupted: {complete} of {len(runs)} runs complete; what was done is kept", file=sys.stderr)
        return INTERRUPTED
    return 0


def demo_sweep(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """A sweep for each task and optimizer: by default adam on digits."""
    from benchmarks import training
    from benchmarks.demo_sweep import RANGES, sweep

    swept = list(dict.fromkeys(args.sweep))
    if unknown := [name for name in swept if name not in RANGES]:
        parser.error(f"--sweep: invalid choice: {unknown[0]!r} (choose from {', '.join(RANGES)})")
    if len(swept) > 2:
        parser.error("--sweep: one hyperparameter or two")
    if args.learning_rate and "learning_rate" in swept:
        parser.error("--learning-rate: it is swept")
    args.dataset = args.dataset or ["digits"]
    datasets = load(args, parser)
    make_writable(args.out, parser)
    trials = args.trials or (16 if len(swept) == 1 else 48)
    names = dict.fromkeys(args.optimizer or ["adam"])
    runs = [(task, name) for dataset in datasets for name in names for task in training.tasks_on(dataset, name)]
    for task, name in runs:
        try:
            results = sweep(task, name, swept, args.learning_rate, trials, args.steps, args.seed)
        except ValueError as error:
            parser.error(f"--sweep with {name}: {error}")
        print(f"{task.name}, {name}, {args.steps} steps; score: loss on the test rows\n{results}")
        path = args.out / re.sub("[ ,]+", "_", f"sweep {' '.join(swept)} {task.name} {name}.png")
        results.plot(path)
        print(f"wrote {path}\n")
        if not results.complete:
            return INTERRUPTED
    return 0


def train_all(runs: Sequence["Run"]) -> None:
    from tqdm import tqdm

    from benchmarks.training import train

    with tqdm(total=sum(run.steps for run in runs), unit="step", smoothing=0, disable=None) as bar:
        for run in runs:
            bar.set_description(f"{run.task.name}, {run.optimizer}")
            for steps in train(run):
                bar.update(steps)


def table(runs: Sequence["Run"]) -> str:
    rows = [HEADER, *map(table_row, runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row, above in zip(rows, [HEADER, *rows], strict=False):
        if row[0] != above[0]:
            lines.append("  ".join("-" * width for width in widths))
        task, optimizer, *figures = [
            word.ljust(width) if column < 2 else word.rjust(width)
            for column, (word, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join([task, optimizer, *figures]))
    return "\n".join([*lines, NOTES])


def table_row(run: "Run") -> tuple[str, ...]:
    first, last = run.measured[0], run.measured[-1]
    losses = (first.train_loss, last.train_loss, last.test_loss)
    seconds = [m.seconds for m in run.measured if not math.isnan(m.seconds)]
    return (
        run.task.name,
        run.optimizer if run.done == run.steps else f"{run.optimizer} (to step {run.done})",
        f"{run.rate:g}",
        *(f"{loss:.4f}" if loss < 1e4 else f"{loss:.2e}" for loss in losses),
        "-" if math.isnan(last.accuracy) else f"{last.accuracy:.2%}",
        f"{1e3 * median(seconds):.3f}" if seconds else "-",
        f"{run.state_bytes:.3f}",
    )


def load(args: argparse.Namespace, parser: argparse.ArgumentParser) -> list["Dataset"]:
    from benchmarks import data

    names = dict.fromkeys(args.dataset or DATASETS)
    if args.data and "digits" not in names:
        parser.error("--data takes the place of digits: add --dataset digits, or leave --dataset out")
    try:
        classified = data.idx_directory(args.data) if args.data else None
    except data.DataError as error:
        parser.error(f"--data: {error}")
    readers = {"diabetes": data.diabetes, "digits": lambda seed: classified or data.digits(seed)}
    return [readers[name](args.seed) for name in names]


def make_writable(directory: Path, parser: argparse.ArgumentParser) -> None:
    """Makes the directory, and finds out before the training whether the pictures can go there."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except FileExistsError:
        parser.error(f"--out: {directory} is not a directory")
    except OSError as error:
        parser.error(f"--out: {directory} cannot be written to: {error.strerror}")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage in front of it."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def make_parser(names: Sequence[str]) -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--dataset",
        action="append",
        choices=DATASETS,
        help="repeatable; diabetes: the two regressions, digits: the classifier (default: both)",
    )
    add(
        "--optimizer",
        action="append",
        choices=names,
        metavar="NAME",
        help=f"repeatable; {', '.join(names)} (default: {' '.join(OPTIMIZERS)})",
    )
    add(
        "--learning-rate",
        type=positive,
        metavar="RATE",
        help="the schedule's peak, for all of them (default: each optimizer's typical rate)",
    )
    add(
        "--sweep",
        action="append",
        metavar="NAME",
        help="repeatable, at most twice: learning_rate, b1, b2, eps, momentum or weight_decay; trains once for each of "
        "many values, and prints a table (default then: adam on digits)",
    )
    add("--trials", type=whole(1), metavar="N", help="of a sweep, at most (default: 16; of two hyperparameters 48)")
    add("--steps", type=whole(1), default=2000, metavar="N", help="of each run (default: %(default)s)")
    add(
        "--seed",
        type=whole(0),
        default=0,
        metavar="N",
        help="draws the test rows, the weights and the batches (default: 0)",
    )
    add(
        "--data",
        type=Path,
        metavar="DIR",
        help="where the classifier's data is instead of digits: MNIST's format, train- and t10k- with "
        "images-idx3-ubyte and labels-idx1-ubyte, each with .gz or without",
    )
    add(
        "--out",
        type=Path,
        default=Path("out/demo"),
        metavar="DIR",
        help="where the pictures go (default: %(default)s)",
    )
    return parser


def whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isdecimal() and least <= int(text) < 2**31):
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {2**31 - 1}, got {text}")
        return int(text)

    return parse


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1e-38 < value < 1e38:  # beyond, float32 makes it 0 or infinite
        raise argparse.ArgumentTypeError(f"must be a positive float32 number, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
