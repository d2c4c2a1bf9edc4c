"""The two pictures of `benchmarks.embeddings`."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks import package_guess as packages
from benchmarks import word_vectors as words
from benchmarks.plots import COLOURS, LOOK

LINES = (("-", 5, 0.35), ("-", 1.8, 1), ((0, (2, 2)), 1.8, 1))  # the curves lie on each other: style, width, opacity


def word_vectors(runs: Sequence[words.Run], block: int, path: Path) -> None:
    """The loss against steps, and against seconds of computing."""
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(9, 4), layout="constrained")
        by_step, by_second = figure.subplots(1, 2, sharey=True)
        for number, run in enumerate(runs):
            style = dict(zip(("linestyle", "linewidth", "alpha"), LINES[number], strict=True))
            style |= {"color": COLOURS[number], "label": run.name}
            by_step.plot(block * np.arange(1, 1 + len(run.losses)), run.losses, **style)
            by_second.plot(block * np.cumsum(run.seconds), run.losses, **style)
        by_step.set_xlabel("step")
        by_second.set_xlabel("seconds of computing (log)")
        by_second.set_xscale("log")
        by_step.set_ylabel("loss of a pair and its negatives")
        for axes in (by_step, by_second):
            axes.grid(alpha=0.3)
        by_step.legend(frameon=False)
        figure.suptitle("Word vectors: the same loss for each step, in less time")
        figure.savefig(path, dpi=130)


def package_guess(runs: Sequence[packages.Run], majority: float, path: Path) -> None:
    """Accuracy against the weights that are not zero, a curve over the penalties; and the course of training."""
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(9, 4), layout="constrained")
        course, end = figure.subplots(1, 2)
        for number, name in enumerate(packages.PENALTIES):
            own = sorted((run for run in runs if run.optimizer == name and run.l1), key=lambda run: run.l1)
            style = {"color": COLOURS[number], "marker": "o", "markersize": 4}
            end.plot([r.nonzero[-1] for r in own], [r.accuracies[-1] for r in own], **style, label=f"{name}, l1")
            for run in own:
                at = (run.nonzero[-1], run.accuracies[-1])
                side = {"xytext": (0, (-12, 6)[number]), "color": COLOURS[number]}  # below, above
                end.annotate(f"{run.l1:g}", at, textcoords="offset points", fontsize=7, ha="center", **side)
            for i, run in enumerate(own):
                epochs = np.arange(1, len(run.nonzero))
                fade = 0.35 + 0.65 * i / max(len(own) - 1, 1)
                label = f"{name}, l1 from {own[0].l1:g} to {own[-1].l1:g}" if i == len(own) - 1 else None
                course.plot(epochs, run.nonzero[1:], color=COLOURS[number], alpha=fade, label=label)
        free = runs[0]
        black = {"color": "black", "linewidth": 1.1}
        course.plot(np.arange(1, len(free.nonzero)), free.nonzero[1:], **black, label="adagrad, no penalty")
        end.plot(
            [free.nonzero[-1]], [free.accuracies[-1]], "s", color="black", markersize=5, label="adagrad, no penalty"
        )
        end.axhline(majority, **black, linestyle=":", label="the majority class")
        course.set_xlabel("epoch")
        course.set_ylabel("weights that are not zero")
        course.set_yscale("log")
        end.set_xscale("log")
        end.set_xlabel("weights that are not zero")
        end.set_ylabel("accuracy on files held out")
        end.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        end.set_ylim(0, 1)
        for axes in (course, end):
            axes.grid(alpha=0.3)
            axes.legend(frameon=False, fontsize=8)
        figure.suptitle("Which package does a file belong to? Few weights say it")
        figure.savefig(path, dpi=130)
