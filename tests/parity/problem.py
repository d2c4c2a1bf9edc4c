"""The problem that every framework and every preset is run on: parameters, gradients of mixed scale, a schedule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
STEPS = 25
KEPT = (1, 6, STEPS)  # the steps whose parameters the golden files hold; RAdam's first rectified step is the sixth
SHAPES = {"w": (5, 4), "b": (3,), "s": ()}
SEED = 20260115

Tree = dict[str, Any]


class Problem(NamedTuple):
    """Parameters, and gradients with the steps on the leading axis."""

    params: Tree
    grads: Tree


class Setting(NamedTuple):
    """A preset's arguments, in the framework's words; `slowing` d makes a schedule rate / (1 + d count) of its rate."""

    kwargs: dict[str, Any]
    slowing: float | None = None


def drawn(seed: int = SEED) -> Problem:
    """Entries of the parameters about 1; of the gradients from 1e-5 to 10, each with a scale of its own, one that is 0
    in the first steps, and one below every eps."""
    rng = np.random.default_rng(seed)
    params = {k: rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape) for k, shape in SHAPES.items()}
    scales = {k: 10 ** rng.uniform(-5, 1, shape) for k, shape in SHAPES.items()}
    grads = {k: scales[k] * (0.5 + rng.standard_normal((STEPS, *shape))) for k, shape in SHAPES.items()}
    grads["b"][:3, 1] = 0
    grads["b"][:, 2] *= 1e-17 / scales["b"][2]
    return Problem({k: np.asarray(x) for k, x in params.items()}, grads)


def stored() -> Problem:
    """The problem of the golden files, as it was drawn once."""
    with np.load(GOLDEN / "problem.npz") as file:
        return Problem(*({k: file[f"{what}.{k}"] for k in SHAPES} for what in Problem._fields))


def rate_name(framework: str) -> str:
    return "lr" if framework == "torch" else "learning_rate"


def schedule(rate: float, slowing: float) -> Callable[[Any], Any]:
    """The rate at a count from 0."""
    return lambda count: rate / (1 + slowing * count)


def flat(tree: Tree) -> np.ndarray:
    """A tree as one vector; leading axes of all leaves alike stay."""
    lead = np.ndim(tree["s"])
    return np.concatenate([np.reshape(tree[k], (*np.shape(tree[k])[:lead], -1)) for k in SHAPES], axis=-1)


def deviation(ours: np.ndarray, theirs: np.ndarray, steps: Any, start: np.ndarray) -> float:
    """The largest error in units of the way travelled so far and of 1e12 times what t additions to a parameter round
    off: 1e-12 allows for 1e-12 of the way and for that rounding."""
    way = np.max(np.abs(theirs - start), axis=-1)
    rounding = np.asarray(steps) * np.finfo(float).eps * np.max(np.abs(theirs), axis=-1)
    return float(np.max(np.max(np.abs(ours - theirs), axis=-1) / (way + 1e12 * rounding)))  # NaN stays NaN
