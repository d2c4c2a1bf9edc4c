"""References: methods that use the Hessian's diagonal."""

from typing import Any

from numpy import clip, maximum, sqrt

from tests.equations.references.loop import Steps, Yields, hessian_of


def adahessian(
    steps: Steps, learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-4, hessian_power: Any = 1.0,
    update_every: int = 1, weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Yao et al. 2021, algorithm 1 on blocks of one element; eps and the decay as in the authors' code."""
    m, weighted, refreshes = 0, 0, 0
    for t, x, g in steps:
        m = b1 * m + (1 - b1) * g
        if t % update_every == 1 % update_every:
            D = hessian_of(g)
            weighted, refreshes = b2 * weighted + (1 - b2) * D * D, refreshes + 1
        v = sqrt(weighted / (1 - b2**refreshes)) ** hessian_power
        step = m / (1 - b1**t) / (v + eps)
        yield -learning_rate * (step + weight_decay * x), {"mu": m, "nu": weighted}


def sophia(
    steps: Steps, learning_rate: Any, b1: Any = 0.96, b2: Any = 0.99, eps: Any = 1e-12, gamma: Any = 0.01,
    update_every: int = 10, weight_decay: Any = 0.2,
) -> Yields:  # fmt: skip
    """Liu et al. 2023, algorithm 3; a complex element is clipped by its modulus."""
    m, h = 0, 0
    for t, theta, g in steps:
        m = b1 * m + (1 - b1) * g
        if t % update_every == 1 % update_every:
            h = b2 * h + (1 - b2) * hessian_of(g)
        ratio = clip(abs(m) / maximum(gamma * h, eps), -1, 1)
        after_decay = theta - learning_rate * weight_decay * theta
        yield after_decay - learning_rate * ratio * m / abs(m) - theta, {"mu": m, "nu": h}
