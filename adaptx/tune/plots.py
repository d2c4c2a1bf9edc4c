"""Plots: pictures of a sweep and of a range test. matplotlib, of the extra `plot`, is imported when one is drawn."""

from __future__ import annotations

import abc
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from adaptx.tune.space import Axis, Choice

LOOK: dict[Any, Any] = {"font.size": 10, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False}
COLOURS = "viridis"
GOOD = "viridis_r"  # for scores: the brighter the better
DIVERGED: dict[str, Any] = dict(marker="x", linestyle="none", color="#D55E00", label="diverged")
BEST: dict[str, Any] = dict(
    marker="*", markersize=12, linestyle="none", color="#E69F00", markeredgecolor="black", label="best"
)
MANY = 20  # values that are spread over so many times the smallest want a logarithmic scale


def drawing() -> Any:
    """matplotlib; one line where it is not installed."""
    try:
        import matplotlib
        import matplotlib.cm
        import matplotlib.colors
        import matplotlib.figure
    except ImportError:
        raise ImportError('a picture needs matplotlib: pip install "adaptx[plot]"') from None
    return matplotlib


class Pictured(abc.ABC):
    """What has a picture, which a subclass draws as `_picture`."""

    @abc.abstractmethod
    def _picture(self) -> Any:
        """The figure."""

    def plot(self, path: str | Path | None = None) -> Any:
        """A picture: of a sweep the loss curves and the score over the axes (two: a map), of a range test the losses.

        Arguments:
            path: where to write it, by the ending as PNG, SVG or PDF; default: nowhere.

        Returns: the matplotlib Figure.

        Errors:
            ImportError: matplotlib is missing; pip install "adaptx[plot]" brings it.
        """
        with drawing().rc_context(LOOK):
            figure = self._picture()
            if path is not None:
                figure.savefig(path, dpi=130)
        return figure


def sweep_picture(results: Any) -> Any:
    """Loss curves, coloured by score, beside the score over each axis; over two axes a map."""
    names = list(results.axes)
    panels = 2 if len(names) <= 2 else 1 + len(names)
    figure = drawing().figure.Figure(figsize=(1 + 4.2 * panels, 4.2), layout="constrained")
    panel = iter(figure.subplots(1, panels))
    curves(figure, next(panel), results)
    if len(names) == 2:
        score_map(figure, next(panel), results)
    else:
        for name in names:
            score_over(next(panel), results, name)
    said = "" if results.complete else f", {len(results.outcomes)} of {results.trials} finished"
    figure.suptitle(f"Sweep of {', '.join(names)}: {results.trials} trials{said}")
    return figure


def curves(figure: Any, axes: Any, results: Any) -> None:
    """A line for each trial, the best ones on top; with one axis coloured by its value, else by the score."""
    names = list(results.axes)
    one = names[0] if len(names) == 1 else None
    shade = (lambda o: o.hyperparams[one]) if one else (lambda o: o.score)
    colours = COLOURS if one else GOOD
    finite = [o for o in results.ranked if o.finite]
    norm = scale([shade(o) for o in (results.outcomes if one else finite)])
    colour = lambda o: drawing().colormaps[colours](norm(shade(o))) if np.isfinite(shade(o)) else "lightgrey"
    for o in reversed(results.ranked):
        step, loss = stretches(o.losses)
        axes.plot(step, loss, color=colour(o), linewidth=1.2)
        if o.diverged is not None:
            seen = loss[np.isfinite(loss)]
            axes.plot(step[len(seen) - 1 : len(seen)], seen[-1:], marker="x", color=colour(o))
    positive = all(np.nanmin(o.losses) > 0 for o in finite)
    if positive:
        axes.set_yscale("log")
    first = [o.losses[0] for o in results.outcomes if np.isfinite(o.losses[0])]
    lowest = [np.nanmin(stretches(o.losses)[1]) for o in finite]
    if first and lowest:  # what diverges leaves the panel instead of pressing the others flat
        axes.set_ylim(min(lowest) * (0.8 if positive else 1), 3 * max(first) if positive else None)
    axes.set(xlabel="step", ylabel="loss", title="training loss (x: diverged)")
    axes.grid(alpha=0.3)
    mappable = drawing().cm.ScalarMappable(norm, colours)
    figure.colorbar(mappable, ax=axes, label=one or "score", shrink=0.9)


def score_over(axes: Any, results: Any, name: str) -> None:
    """A point for each trial; those that diverged stand at the upper edge."""
    finite = [o for o in results.outcomes if o.finite]
    last = [o for o in finite if o.steps == results.steps]
    early = [o for o in finite if o.steps < results.steps]
    for some, label, look in (
        (last, "to the end", dict(color="#0072B2")),
        (early, "stopped early", dict(color="#56B4E9", alpha=0.7)),
    ):
        if some:
            x, y = np.array([(o.hyperparams[name], o.score) for o in some]).T
            order = np.argsort(x)
            line = "-" if len(results.axes) == 1 and some is last else "none"
            axes.plot(x[order], y[order], marker="o", markersize=4, linestyle=line, label=label, **look)
    values = [o.hyperparams[name] for o in results.outcomes]
    if finite and min(o.score for o in finite) > 0:
        axes.set_yscale("log")
    lost = [o.hyperparams[name] for o in results.outcomes if not o.finite]
    if lost:
        top = axes.get_ylim()[1]
        axes.plot(lost, [top] * len(lost), clip_on=False, **DIVERGED)
        axes.set_ylim(top=top)
    if finite:
        best = results.best
        axes.plot([best.hyperparams[name]], [best.score], **BEST)
    if logarithmic(results.axes[name], values):
        axes.set_xscale("log")
    axes.set(xlabel=name, ylabel="score", title=f"score over {name}")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(frameon=False)


def score_map(figure: Any, axes: Any, results: Any) -> None:
    """Two axes: cells of a grid, else points, coloured by score; a cross where a trial diverged."""
    (across, down), outcomes = results.axes, results.outcomes
    finite = [o for o in outcomes if o.finite]
    norm = scale([o.score for o in finite])
    xs, ys = (sorted({o.hyperparams[name] for o in outcomes}) for name in (across, down))
    gridded = len(xs) * len(ys) == results.trials
    where = lambda o: (
        (xs.index(o.hyperparams[across]), ys.index(o.hyperparams[down]))
        if gridded
        else (o.hyperparams[across], o.hyperparams[down])
    )
    if gridded:
        cells = np.full((len(ys), len(xs)), np.nan)
        for o in outcomes:
            x, y = where(o)
            cells[y, x] = o.score if o.finite else np.nan
        shown = axes.pcolormesh(cells, norm=norm, cmap=GOOD, edgecolors="white")
        for axis, values in ((axes.xaxis, xs), (axes.yaxis, ys)):
            every = -(-len(values) // 12)
            axis.set_ticks(np.arange(len(values))[::every] + 0.5, [f"{v:.3g}" for v in values[::every]])
        axes.tick_params(axis="x", rotation=45)
    else:
        x, y = np.array([where(o) for o in finite], float).reshape(-1, 2).T
        shown = axes.scatter(x, y, c=[o.score for o in finite], norm=norm, cmap=GOOD)
        for name, set_scale in ((across, axes.set_xscale), (down, axes.set_yscale)):
            if logarithmic(results.axes[name], [o.hyperparams[name] for o in outcomes]):
                set_scale("log")
    middle = 0.5 if gridded else 0.0
    place = lambda some: np.array([where(o) for o in some], float).reshape(-1, 2).T + middle
    axes.plot(*place([o for o in outcomes if not o.finite]), **DIVERGED)
    axes.plot(*place([results.best] if finite else []), **BEST)
    axes.grid(False)
    axes.set(xlabel=across, ylabel=down, title="score (star: best, x: diverged)")
    figure.colorbar(shown, ax=axes, label="score", shrink=0.9)


def range_picture(test: Any) -> Any:
    """The losses and their smooth mean over the rate, and the rate that is suggested."""
    figure = drawing().figure.Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(test.rates, test.losses, color="lightgrey", linewidth=1, label="loss")
    axes.plot(test.rates, test.smoothed, color="#0072B2", linewidth=1.8, label="smoothed")
    finite = test.smoothed[np.isfinite(test.smoothed)]
    if finite.size:
        low, first = finite.min(), test.smoothed[0] if np.isfinite(test.smoothed[0]) else finite.max()
        axes.set_ylim(low - 0.1 * abs(first - low) - 1e-12, max(first, low) + 0.5 * abs(first - low) + 1e-12)
    if test.suggestion is not None:
        axes.axvline(test.suggestion, color="#D55E00", linestyle="--", label=f"suggested: {test.suggestion:.2g}")
    axes.set_xscale("log")
    axes.set(xlabel=test.name, ylabel="loss", title=f"Range test of {test.name}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def stretches(losses: Any) -> tuple[np.ndarray, np.ndarray]:
    """A curve of at most 200 points: the mean of each stretch of steps."""
    edges = np.unique(np.linspace(0, len(losses), min(len(losses), 200) + 1, dtype=int))
    means = np.array([np.mean(losses[a:b]) for a, b in itertools.pairwise(edges)])
    return edges[1:], means


def logarithmic(axis: Axis, values: list[float]) -> bool:
    """Whether an axis is better seen on a logarithmic scale."""
    if isinstance(axis, Choice):
        return min(values) > 0 and max(values) >= MANY * min(values)
    return axis.log


def scale(values: list[float]) -> Any:
    """A colour scale over the values, logarithmic where they spread far."""
    found = np.array([v for v in values if np.isfinite(v)] or [1.0], float)
    low, high = float(found.min()), float(found.max())
    colors = drawing().colors
    if low == high:
        return colors.Normalize(low - 0.5, high + 0.5)
    return colors.LogNorm(low, high) if low > 0 and high >= MANY * low else colors.Normalize(low, high)
