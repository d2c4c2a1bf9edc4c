"""Rungs: how far the trials of a sweep go, and how many go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from adaptx.core.checks import shown
from adaptx.glossary import is_count


class Halving(NamedTuple):
    """Successive halving: all trials begin, and at each rung the best 1 / eta of them go on, eta times as far.

    Arguments:
        eta: an int >= 2; default 3.
        first: the steps of the first rung, an int >= 1; default: steps / eta^(rungs - 1), and 2 at least. The last
            rung, of fewer than eta trials, goes to the end in any case.
        draw: how the trials are drawn, "random" (default) or "grid".
    """

    eta: int = 3
    first: int | None = None
    draw: str = "random"


class Rung(NamedTuple):
    """So many trials train until they have taken so many steps."""

    trials: int
    until: int


def checked_method(method: Any) -> Halving | None:
    """None for grid and random."""
    halving = Halving() if isinstance(method, str) and method == "halving" else method
    if isinstance(halving, Halving):
        eta, first, draw = halving
        if not is_count(eta, 2) or not (first is None or is_count(first, 1)) or draw not in ("random", "grid"):
            raise ValueError(
                "sweep: a Halving needs eta, an int >= 2, first, an int >= 1 or None, and draw, 'random' or 'grid', "
                f"got {halving}"
            )
        return halving
    if not isinstance(method, str) or method not in ("grid", "random"):
        raise ValueError(f"sweep: method must be 'grid', 'random', 'halving' or a Halving, got {shown(method)}")
    return None


def rungs_of(halving: Halving | None, trials: int, steps: int) -> list[Rung]:
    """A single rung, or those of successive halving: the trials fall by eta, the steps rise by it to all of them."""
    if halving is None:
        return [Rung(trials, steps)]
    rungs = [Rung(trials, steps)]
    while rungs[-1].trials >= halving.eta:
        rungs.append(Rung(rungs[-1].trials // halving.eta, steps))
    # The first loss is that of the first parameters, the same for all: two steps at least.
    untils = [min(steps, max(2, -(-steps // halving.eta ** (len(rungs) - 1 - i)))) for i in range(len(rungs))]
    if halving.first is not None:
        untils = [min(steps, halving.first * halving.eta**i) for i in range(len(rungs) - 1)] + [steps]
    # Where there are fewer steps than rungs, the trials of a rung that adds no step skip it.
    return [Rung(r.trials, u) for r, u, before in zip(rungs, untils, [0, *untils[:-1]], strict=True) if u > before]


def rung_steps(rungs: Sequence[Rung], trials: int) -> list[int]:
    """How many steps each rung takes with all its trials."""
    return [
        min(trials, r.trials) * (r.until - before)
        for r, before in zip(rungs, [0, *(r.until for r in rungs)], strict=False)
    ]
