"""The demo's two pictures, drawn from the runs' measurements."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from operator import attrgetter
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from benchmarks.training import BASELINE, NAMES, STRETCHES, Measurement, Run

# Okabe and Ito's colours, which colour-blind readers can tell apart, then some darker ones.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#8C510A", "#7F7F7F", "#332288", "#999933", "#882255"),
)
# No line is dashed like its neighbours: adam and adamw often lie on each other.
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1)), (0, (5, 1.5, 1, 1.5)), (0, (9, 2)))
LOOK: dict[Any, Any] = {"font.size": 10, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False}


def learning_curves(runs: Sequence[Run], path: Path) -> None:
    """Training loss above, test loss below, a column for each task; side by side for a single one."""
    tasks = list(dict.fromkeys(run.task for run in runs))
    down, across = (2, len(tasks)) if len(tasks) > 1 else (1, 2)
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(0.8 + 4 * across, 1.1 + 3.2 * down), layout="constrained")
        for column, task in enumerate(tasks):
            shown = [run for run in runs if run.task == task]
            for row, part in enumerate(("train", "test")):
                axes = figure.add_subplot(down, across, 1 + column + row * len(tasks))
                loss = attrgetter(f"{part}_loss")
                # What diverges leaves the panel instead of pressing the other curves flat.
                highest = 3 * loss(shown[0].measured[0])
                _draw(axes, shown, loss, highest)
                _note(axes, shown, loss, {"diverged": np.inf, "above the panel": highest})
                axes.set_title(f"{task.name}: {part}")
                axes.set_ylabel("mean squared error" if task.dataset.classes is None else "mean cross-entropy")
        _finish(figure, "Learning curves", path)


def effective_rates(runs: Sequence[Run], path: Path) -> None:
    """How far each layer moves for the gradient it gets, a panel for each layer of each task."""
    layers = [(task, i) for task in dict.fromkeys(run.task for run in runs) for i in range(len(task.sizes) - 1)]
    across = min(3, len(layers))
    down = -(-len(layers) // across)
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(0.8 + 4 * across, 1.1 + 3.2 * down), layout="constrained")
        for number, (task, layer) in enumerate(layers, start=1):
            axes = figure.add_subplot(down, across, number)
            shown = [run for run in runs if run.task == task]
            _draw(axes, shown, lambda m, layer=layer: m.layer_rates[layer])
            _note(axes, shown, attrgetter("train_loss"), {"diverged": np.inf})
            sizes = f"{task.sizes[layer]} to {task.sizes[layer + 1]}"
            axes.set_title(f"{task.name}\nlayer {layer + 1} of {len(task.sizes) - 1}, {sizes}")
            axes.set_ylabel("effective learning rate")
        most = -(-runs[0].steps // STRETCHES)
        over = "at each step" if most == 1 else f"over stretches of at most {most} steps"
        caption = f"RMS of the layer's update / RMS of its gradient before clipping, {over}"
        _finish(figure, f"Effective learning rate\n{caption}", path)


def _draw(axes: Axes, runs: Sequence[Run], value: Callable[[Measurement], float], highest: float = np.inf) -> None:
    seen = [np.nan]
    for run in runs:
        y = np.array([value(m) for m in run.measured], float)
        y[~(np.isfinite(y) & (y > 0))] = np.nan
        there = np.pad(np.isfinite(y), 1)
        alone = np.flatnonzero(there[1:-1] & ~there[:-2] & ~there[2:])  # no line shows a point without neighbours
        marks = {"marker": "o", "markevery": alone.tolist()} if alone.size else {}
        axes.plot([m.step for m in run.measured], y, **marks, **_style(run.optimizer))
        seen += y[y <= highest].tolist()
    axes.set_xlabel("step")
    end = max(run.done for run in runs)
    axes.set_xlim(-0.02 * end, 1.02 * end)  # also where there is nothing to draw
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.grid(alpha=0.3)
    _log_scale(axes, np.asarray(seen))


def _note(axes: Axes, runs: Sequence[Run], loss: Callable[[Measurement], float], limits: Mapping[str, float]) -> None:
    """Says in the panel which losses are beyond a limit at the end, and from which step on."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for what, limit in limits.items():
            beyond = [m.step for m in takewhile(lambda m, limit=limit: not loss(m) < limit, reversed(run.measured))]
            if beyond:
                found.setdefault(f"{what} by step {beyond[-1]}", []).append(run.optimizer)
                break
    text = "\n".join(textwrap.fill(f"{what}: {', '.join(names)}", 50) for what, names in found.items())
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8}
    axes.text(0.99, 0.98, text, transform=axes.transAxes, ha="right", va="top", fontsize=8, bbox=box)


def _log_scale(axes: Axes, values: NDArray) -> None:
    """A log axis around the values, the more labels between the powers of ten the less it spans."""
    values = values[~np.isnan(values)]
    low, high = (values.min() / 1.15, values.max() * 1.15) if values.size else (0.1, 10)
    subs = (1,) if high / low > 2000 else (1, 2, 5) if high / low > 10 else (1, 1.5, 2, 3, 4, 5, 7)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _style(name: str) -> dict[str, Any]:
    """An optimizer looks the same in every picture of every selection."""
    if name == BASELINE:
        return {"label": f"{name} (baseline)", "color": "black", "linewidth": 1.1, "zorder": 1.9}
    number = NAMES.index(name)
    dash, colour = DASHES[number % len(DASHES)], COLOURS[number % len(COLOURS)]
    return {"label": name, "color": colour, "linestyle": dash, "linewidth": 1.8}


def _finish(figure: Figure, title: str, path: Path) -> None:
    handles = {str(line.get_label()): line for axes in figure.axes for line in axes.get_lines()}
    across = max(3, round(figure.get_figwidth() / 2))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=across, frameon=False, handlelength=3
    )
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
