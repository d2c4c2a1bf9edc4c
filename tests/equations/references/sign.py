"""References: The sign line."""

from typing import Any

import numpy as np
from numpy import maximum, minimum

from tests.equations.references.loop import Steps, Yields


def rprop(
    steps: Steps, learning_rate: Any, eta_minus: Any = 0.5, eta_plus: Any = 1.2, min_step_size: Any = 1e-6,
    max_step_size: Any = 50.0,
) -> Yields:  # fmt: skip
    """Riedmiller, Braun 1993, without taking back the last step: Delta changes by the sign of g g_-1."""
    delta, last = learning_rate, 0
    for _, _x, g in steps:
        product = (g * np.conj(last)).real
        delta = np.where(product > 0, minimum(delta * eta_plus, max_step_size), delta)
        delta = np.where(product < 0, maximum(delta * eta_minus, min_step_size), delta)
        last = np.where(product < 0, 0, g)
        size = np.where(product < 0, -1, 1) * delta / learning_rate
        yield -delta * np.sign(last), {"step_size": size, "last_step": delta / learning_rate * np.sign(last)}


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
