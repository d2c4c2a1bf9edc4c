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
