"""References: AdaGrad and its line."""

from typing import Any

import numpy as np
from numpy import maximum, sqrt

from tests.equations.references.loop import Steps, Yields, heavy_ball, norm, over_tree


def adagrad(
    steps: Steps, learning_rate: Any, initial_accumulator: Any = 0.0, eps: Any = 1e-10, eps_root: Any = 0.0,
    lr_decay: Any = None, momentum: Any = None, nesterov: bool = False, l1: Any = None, weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Duchi, Hazan, Singer 2011: H = delta I + diag(s), s_i = |g_1:t,i|; section 5's step for an l1 penalty."""
    total, b = initial_accumulator, 0
    for t, x, g in steps:
        total = total + abs(g) ** 2
        H = sqrt(total + eps_root) + eps
        u, b = heavy_ball(b, g / H, momentum, nesterov)
        eta = learning_rate / (1 + (t - 1) * (lr_decay or 0))
        z = x - eta * (u + weight_decay * x)
        yield np.sign(z) * maximum(abs(z) - (l1 or 0) * eta / H, 0) - x, {"nu": total, "trace": b}


@over_tree(lambda kwargs: kwargs.get("per", "tensor") == "tree")
def adagrad_norm(
    steps: Steps, learning_rate: Any, initial_accumulator: Any = 0.0, eps: Any = 0.0, eps_root: Any = 0.0,
    weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Ward, Wu, Bottou 2019, algorithm 1: b_t^2 = b_t-1^2 + |g|^2."""
    b_squared = initial_accumulator
    for _, x, g in steps:
        b_squared = b_squared + norm(g) ** 2
        yield -learning_rate * (g / (sqrt(b_squared + eps_root) + eps) + weight_decay * x), {"nu": b_squared}


def ftrl(
    steps: Steps, learning_rate: Any, beta: Any = 1.0, l1: Any = None, l2: Any = None, initial_accumulator: Any = 0.0,
    weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """McMahan et al. 2013, algorithm 1. z starts as the one whose weight is x (the paper's 0 for x = 0) and is that
    again wherever x is not 0, so that the loop can follow iterates that were rounded.
    """
    alpha, lambda_1, lambda_2 = learning_rate, l1 or 0, l2 or 0
    n, z = initial_accumulator, 0
    for _, x, g in steps:
        z = np.where(x == 0, z, -x * ((beta + sqrt(n)) / alpha + lambda_2) - lambda_1 * np.sign(x))
        sigma = (sqrt(n + abs(g) ** 2) - sqrt(n)) / alpha
        z = z + g - sigma * x
        n = n + abs(g) ** 2
        w = -(z - np.sign(z) * lambda_1) / ((beta + sqrt(n)) / alpha + lambda_2)
        w = np.where(abs(z) <= lambda_1, 0, w)
        yield w - x, {"held": np.where(w == 0, z, 0), "nu": n}


def rmsprop(
    steps: Steps, learning_rate: Any, b2: Any = 0.9, eps: Any = 1e-8, eps_root: Any = 0.0,
    initial_accumulator: Any = 0.0, centered: bool = False, momentum: Any = None, nesterov: bool = False,
    bias_correction: bool = False, weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Hinton's lecture 6e: a running average of g^2. Centered: Graves 2013, equations 38 to 41, n - g^2."""
    n, mean, b = initial_accumulator, 0, 0
    for t, x, g in steps:
        n = b2 * n + (1 - b2) * abs(g) ** 2
        mean = b2 * mean + (1 - b2) * g
        correction = 1 - b2**t if bias_correction else 1
        variance = n / correction
        if centered:
            variance = maximum(variance - abs(mean / correction) ** 2, 0)
        u, b = heavy_ball(b, g / (sqrt(variance + eps_root) + eps), momentum, nesterov)
        yield -learning_rate * (u + weight_decay * x), {"nu": n, "mu": mean, "trace": b}


def adadelta(
    steps: Steps,
    learning_rate: Any = 1.0,
    b2: Any = 0.95,
    eps: Any = 0.0,
    eps_root: Any = 1e-6,
    weight_decay: Any = 0.0,
) -> Yields:
    """Zeiler 2012, algorithm 1, with delta x = -u: the paper's step is the rate 1."""
    E_g2, E_dx2 = 0, 0
    for _, x, g in steps:
        E_g2 = b2 * E_g2 + (1 - b2) * abs(g) ** 2
        u = sqrt(E_dx2 + eps_root) / (sqrt(E_g2 + eps_root) + eps) * g
        E_dx2 = b2 * E_dx2 + (1 - b2) * abs(u) ** 2
        yield -learning_rate * (u + weight_decay * x), {"nu": E_g2, "delta_sq": E_dx2}
