"""Writes the golden files from the frameworks themselves: `python -m tests.parity.generate [method ...]`.

Runs in the environment that `make parity` makes.
"""

from __future__ import annotations

import json
import sys

import numpy as np

from tests.parity import frameworks
from tests.parity.problem import GOLDEN, KEPT, SEED, SHAPES, drawn, stored
from tests.parity.settings import METHODS, settings


def write_problem() -> None:
    """Drawn once, since NumPy may change what a seed gives."""
    if not (GOLDEN / "problem.npz").exists():
        arrays = {f"{what}.{k}": tree[k] for what, tree in drawn()._asdict().items() for k in SHAPES}
        np.savez(GOLDEN / "problem.npz", seed=SEED, numpy=np.__version__, **arrays)


def write(framework: str, method: str) -> None:
    """One file: the settings with the framework's version, and the parameters at the steps that are kept."""
    todo = settings(framework, method)
    with frameworks.in_float64():
        paths = [frameworks.trajectory(framework, method, setting, stored()) for setting in todo]
    about = dict(
        framework=framework,
        version=frameworks.VERSIONS[framework],
        default_rate=None if framework == "optax" else frameworks.default_rate(framework, method),
        settings=[setting._asdict() for setting in todo],
    )
    kept = np.stack(paths)[:, [t - 1 for t in KEPT]]
    assert np.isfinite(kept).all(), (framework, method)
    np.savez(GOLDEN / f"{framework}-{method}.npz", about=json.dumps(about), params=kept)


if __name__ == "__main__":
    write_problem()
    for framework, methods in METHODS.items():
        for method in methods:
            if not sys.argv[1:] or method in sys.argv[1:]:
                write(framework, method)
                print(framework, method)
