"""Two real tasks with tables of which a step uses few rows, on the sources of Python's standard library.

    python -m benchmarks.embeddings                      # both, about two minutes on 2 cores
    python -m benchmarks.embeddings --task words --steps 20000
    python -m benchmarks.embeddings --quick              # few steps: shows that it runs

words: skip-gram word vectors, dense optax.adagrad next to sparse.adagrad and sparse.rowwise_adagrad.
packages: hashed logistic regression with l1, AdaGrad's proximal step next to FTRL.
"""

import argparse
import importlib.util
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks import package_guess, word_vectors
    from benchmarks.corpus import Source

MODULE = "benchmarks.embeddings"
EXTRAS = {"flax": "demo", "matplotlib": "plot", "tqdm": "plot"}
TASKS = ("words", "packages")
BLOCK = 50  # steps that are timed together
LARGE = 50_000  # words
SAME_CURVE = 1e-3  # the largest relative difference of two loss curves that are the same
CLEARLY = 0.2  # above the majority's accuracy
WORDS_LEGEND = f"""\
Loss: of a pair and its negatives, the mean over a block of steps. *x as fast*: the median over blocks of the
dense run's time to this one's, forward and gradient included. *apart*: the largest relative difference of the loss
curve from the dense one's. sparse.adagrad, the same rule, must stay within {SAME_CURVE:g}; the row-wise rule must end
within 5 %.
"""
PACKAGES_LEGEND = f"""\
*exactly 0*: of those. Accuracy: on the files held out; every run must be {100 * CLEARLY:.0f} points above the majority
class. FTRL's penalty is on the sum of all gradients, the proximal step's on each, so that equal numbers do not mean
equal penalties.
"""
QUICK_NOTE = "**QUICK RUN OF FEW STEPS: this shows that the benchmark runs. Its figures mean nothing.**"

Report = tuple[list[str], list[bool]]  # Markdown lines, and which rows miss a target


def words_report(corpus: "word_vectors.Corpus", runs: Sequence["word_vectors.Run"], told: str) -> Report:
    from benchmarks.side_by_side import aligned
    from benchmarks.word_vectors import neighbours, speed_up

    dense, lines, misses = runs[0], [], []
    row = lambda run, *more: [
        run.name, f"{1e3 * statistics.median(run.seconds):.2f}", f"{speed_up(run, dense):.1f}",
        f"{run.losses[0]:.4f}", f"{run.losses[-1]:.4f}", *more,
    ]  # fmt: skip
    lines.append(row(dense, "", ""))
    for run in runs[1:]:
        apart = max(abs(a - b) / a for a, b in zip(dense.losses, run.losses, strict=True))
        # Row-wise AdaGrad is another rule; what it must do is learn as well.
        is_same_rule = run.name == "sparse.adagrad"
        miss = apart > SAME_CURVE if is_same_rule else run.losses[-1] > 1.05 * dense.losses[-1]
        misses.append(miss)
        lines.append(row(run, f"{apart:.1e}", "MISS" if miss else "ok"))
    header = ["optimizer", "ms a step", "x as fast", "first loss", "last loss", "apart", "verdict"]
    near = {run.name: neighbours(run, corpus) for run in runs[1:]}
    asked = [[word, *(", ".join(found[word]) for found in near.values())] for word in near[runs[1].name]]
    return [
        "## Word vectors",
        "",
        told,
        "",
        aligned(header, lines, (0, 6)),
        "",
        WORDS_LEGEND,
        "![Loss against steps and against seconds](word_vectors.png)",
        "",
        "The nearest words:",
        "",
        aligned(["word", *near], asked, range(1 + len(near))),
        "",
    ], misses  # fmt: skip


def packages_report(data: "package_guess.Data", runs: Sequence["package_guess.Run"], told: str) -> Report:
    from benchmarks.package_guess import trained_weights
    from benchmarks.side_by_side import aligned

    moved, misses = trained_weights(data), []
    lines = [["the majority class", "", "", f"{data.majority:.1%}", "", "", ""]]
    for run in runs:
        miss = run.accuracies[-1] < data.majority + CLEARLY
        misses.append(miss)
        lines.append(
            [f"sparse.{run.optimizer}", f"{run.l1:g}" if run.l1 else "none", f"{run.losses[-1]:.3f}",
             f"{run.accuracies[-1]:.1%}", f"{run.nonzero[-1]:,}", f"{1 - run.nonzero[-1] / moved:.1%}",
             "MISS" if miss else "ok"]
        )  # fmt: skip
    header = ["optimizer", "l1", "train loss", "accuracy", "weights not 0", "exactly 0", "verdict"]
    return [
        "## Packages",
        "",
        told,
        "",
        aligned(header, lines, (0, 6)),
        "",
        f"Weights: {moved:,}, of features that the training files have; the others never move.",
        PACKAGES_LEGEND,
        "![Accuracy against weights that are not zero](package_guess.png)",
        "",
    ], misses  # fmt: skip


def words(sources: Sequence["Source"], arguments: argparse.Namespace) -> tuple[list[str], list[bool], bool]:
    """The report of the task, which of its rows miss a target, and whether it is of all steps."""
    import numpy as np

    from benchmarks import embedding_plots, word_vectors
    from benchmarks.side_by_side import Progress

    rng = np.random.default_rng(arguments.seed)
    corpus = word_vectors.encoded(sources, rng)
    count, steps, block = len(corpus.vocabulary), arguments.steps, min(BLOCK, arguments.steps)
    hint = "" if arguments.sources else ": are the library's tests installed?"
    few = "" if count >= LARGE else f" (fewer than {LARGE:,}{hint})"
    print(f"words: {count:,} are seen at least twice{few}")
    bar = Progress(-(-steps // block))
    bar.say("word vectors")
    runs = word_vectors.train(corpus, rng, steps, arguments.batch, arguments.width, block, bar.tick)
    bar.close()
    done = block * len(runs[0].losses)
    if not done:
        return [], [], False
    told = (
        "Which words stand near which? Vectors are trained so that the product of a word's and a neighbour's is large "
        f"and that with words drawn at random is small. {_of(sources, arguments)}; {count:,} words seen at least "
        f"twice{few}, {len(corpus.stream):,} places left after thinning out frequent ones; vectors of "
        f"{arguments.width} numbers; {done:,} steps, each of {arguments.batch:,} pairs with "
        f"{word_vectors.NEGATIVES} negatives."
    )
    embedding_plots.word_vectors(runs, block, arguments.out.with_name("word_vectors.png"))
    return *words_report(corpus, runs, told), done >= steps


def packages(sources: Sequence["Source"], arguments: argparse.Namespace) -> tuple[list[str], list[bool], bool]:
    """The same of the other task."""
    import numpy as np

    from benchmarks import embedding_plots, package_guess
    from benchmarks.side_by_side import Progress

    rng = np.random.default_rng(arguments.seed)
    data = package_guess.split(sources, rng)
    bar = Progress(arguments.epochs)
    bar.say("packages")
    runs = package_guess.train(data, rng, arguments.epochs, bar.tick)
    bar.close()
    done = len(runs[0].nonzero) - 1
    told = (
        f"Which top-level package does a file belong to, by the words in it? {_of(sources, arguments)}, of "
        f"which {len(data.train.label):,} to train on and {len(data.test.label):,} held out, of {len(data.classes)} "
        f"packages ({', '.join(data.classes)}); 2^20 hashed features; {done} epochs of batches of "
        f"{package_guess.BATCH} files."
    )
    embedding_plots.package_guess(runs, data.majority, arguments.out.with_name("package_guess.png"))
    return *packages_report(data, runs, told), done == arguments.epochs


def _of(sources: Sequence["Source"], arguments: argparse.Namespace) -> str:
    """What the corpus is."""
    where = f"below {arguments.sources}" if arguments.sources else "of the standard library of this Python"
    return f"{len(sources):,} source files {where}"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    from benchmarks.side_by_side import OneLineParser, parsed, positive

    parser = OneLineParser(prog=f"python -m {MODULE}", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--task", action="append", choices=TASKS, help="repeatable; default: both")
    add("--sources", type=Path, metavar="DIR", help="Python sources (default: this Python's standard library)")
    add("--steps", type=positive, default=6000, help="of word vectors (default %(default)s)")
    add("--batch", type=positive, default=512, help="pairs of a step (default %(default)s)")
    add("--width", type=positive, default=64, help="numbers of a vector (default %(default)s)")
    add("--epochs", type=positive, default=12, help="of packages (default %(default)s)")
    add("--seed", type=int, default=0, help="default 0")
    add(
        "--out",
        type=Path,
        default=Path("benchmarks/results/embeddings.md"),
        help="the Markdown report; pictures beside it",
    )
    add("--quick", action="store_true", help="few steps, where no number is given, to see that it runs")
    if "--quick" in argv:
        parser.set_defaults(steps=20, batch=64, width=8, epochs=2)
    arguments = parsed(parser, argv)
    if arguments.seed < 0:
        parser.error(f"argument --seed: must be at least 0, got {arguments.seed}")
    arguments.parser = parser
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    for package, extra in EXTRAS.items():
        if importlib.util.find_spec(package) is None:
            print(f"this benchmark needs {package}: pip install 'adaptx[{extra}]'", file=sys.stderr)
            return 2
    from benchmarks import corpus
    from benchmarks.side_by_side import heading, published

    arguments = parse(argv)
    tasks = list(dict.fromkeys(arguments.task or TASKS))
    lines, misses, whole = [], [], True
    try:
        sources = corpus.read(arguments.sources or corpus.standard_library())
        for task in tasks:
            found, verdicts, whole = {"words": words, "packages": packages}[task](sources, arguments)
            lines, misses = [*lines, *found], [*misses, *verdicts]
            if not whole:
                break
    except corpus.CorpusError as error:
        arguments.parser.error(f"--sources: {error}")
    except KeyboardInterrupt:
        whole = False
    if lines:
        first = heading(
            "Real tasks with tables of few rows a step", argv, MODULE, QUICK_NOTE if arguments.quick else ""
        )
        published("\n".join([*first, "", *lines]), sum(misses), len(misses), arguments.out)
    return 0 if whole else 130


if __name__ == "__main__":
    sys.exit(main())
