"""References: Trust ratios."""

from typing import Any

from numpy import sqrt

from tests.equations.references.loop import Steps, Yields, heavy_ball, norm


def lamb(
    steps: Steps, learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-6, eps_root: Any = 0.0,
    weight_decay: Any = 1e-2,
) -> Yields:  # fmt: skip
    """You et al. 2020, algorithm 2, phi the identity; its ratio is 1 where a norm is 0."""
    m, v = 0, 0
    for t, x, g in steps:
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * abs(g) ** 2
        r = m / (1 - b1**t) / (sqrt(v / (1 - b2**t) + eps_root) + eps)
        direction = r + weight_decay * x
        ratio = norm(x) / norm(direction) if norm(x) > 0 and norm(direction) > 0 else 1
        yield -learning_rate * ratio * direction, {"mu": m, "nu": v}


def lars(
    steps: Steps, learning_rate: Any, weight_decay: Any = 0.0, mask: bool = True, trust_coefficient: Any = 1e-3,
    eps: Any = 0.0, momentum: Any = 0.9, nesterov: bool = False,
) -> Yields:  # fmt: skip
    """You, Gitman, Ginsburg 2017, algorithm 1: the local rate lambda = eta |w| / (|g| + beta |w|), the buffer v."""
    v = 0
    for _, w, g in steps:
        divisor = norm(g) + norm(weight_decay * w) + eps
        local = trust_coefficient * norm(w) / divisor if mask and norm(w) > 0 and divisor > 0 else 1
        direction, v = heavy_ball(v, learning_rate * local * (g + weight_decay * w), momentum, nesterov)
        yield -direction, {"trace": v}
