"""References: The sign line."""

from typing import Any

import numpy as np

from tests.equations.references.loop import Steps, Yields


def _sign(z: Any) -> Any:
    """z / |z|, and 0 at 0."""
    return np.where(z == 0, 0, z / np.where(z == 0, 1, abs(z)))


def lion(steps: Steps, learning_rate: Any, b1: Any = 0.9, b2: Any = 0.99, weight_decay: Any = 0.0) -> Yields:
    """Chen et al. 2023, algorithm 2."""
    m = 0
    for _, x, g in steps:
        c = b1 * m + (1 - b1) * g
        m = b2 * m + (1 - b2) * g
        yield -learning_rate * (_sign(c) + weight_decay * x), {"mu": m}


def signum(steps: Steps, learning_rate: Any, momentum: Any = 0.9, weight_decay: Any = 0.0) -> Yields:
    """Bernstein et al. 2018, algorithms 1 and 2."""
    m, beta = 0, momentum or 0
    for _, x, g in steps:
        m = beta * m + (1 - beta) * g
        yield -learning_rate * (_sign(m) + weight_decay * x), {"mu": m}
