"""References: Adam and its line."""

from typing import Any

import numpy as np
from numpy import maximum, sqrt

from tests.equations.references.loop import Steps, Yields


def adam(
    steps: Steps, learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8, eps_root: Any = 0.0,
    amsgrad: bool = False, weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Kingma, Ba 2015, algorithm 1; Reddi, Kale, Kumar 2018, algorithm 2, whose v_hat is then corrected like v;
    Loshchilov, Hutter 2019, algorithm 2, with eta_t folded into the rate.
    """
    m, v, v_hat = 0, 0, 0
    for t, x, g in steps:
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * abs(g) ** 2
        v_hat = maximum(v_hat, v)
        corrected = (v_hat if amsgrad else v) / (1 - b2**t)
        u = m / (1 - b1**t) / (sqrt(corrected + eps_root) + eps)
        yield -learning_rate * (u + weight_decay * x), {"mu": m, "nu": v, "nu_max": v_hat}


def adamw(steps: Steps, learning_rate: Any, weight_decay: Any = 1e-2, **others: Any) -> Yields:
    """Loshchilov, Hutter 2019: Adam with the decay beside the gradient term."""
    return adam(steps, learning_rate, weight_decay=weight_decay, **others)


def adamax(
    steps: Steps, learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 0.0, weight_decay: Any = 0.0
) -> Yields:
    """Kingma, Ba 2015, algorithm 2; the paper's eps is 0."""
    m, u = 0, 0
    for t, x, g in steps:
        m = b1 * m + (1 - b1) * g
        u = maximum(b2 * u, abs(g))
        yield -learning_rate * (m / ((1 - b1**t) * (u + eps)) + weight_decay * x), {"mu": m, "nu": u}


def nadam(
    steps: Steps, learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8, eps_root: Any = 0.0,
    momentum_decay: Any = 4e-3, weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Dozat 2015 (project report): g' and m' have their own corrections by products of the momenta mu_1 ... mu_t+1."""
    mu = lambda i: b1 if momentum_decay is None else b1 * (1 - 0.5 * 0.96 ** (i * momentum_decay))
    m, n = 0, 0
    for t, x, g in steps:
        m = b1 * m + (1 - b1) * g
        n = b2 * n + (1 - b2) * abs(g) ** 2
        g_prime = g / (1 - np.prod([mu(i) for i in range(1, t + 1)]))
        m_prime = m / (1 - np.prod([mu(i) for i in range(1, t + 2)]))
        m_bar = (1 - mu(t)) * g_prime + mu(t + 1) * m_prime
        u = m_bar / (sqrt(n / (1 - b2**t) + eps_root) + eps)
        yield -learning_rate * (u + weight_decay * x), {"mu": m, "nu": n}


def adabound(
    steps: Steps, learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8, eps_root: Any = 0.0,
    final_learning_rate: Any = 0.1, gamma: Any = 1e-3, amsbound: bool = False, weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Luo et al. 2019, algorithms 2 and 3, as in the authors' code: bias corrected, without the factor 1 / sqrt(t)."""
    m, v, v_max = 0, 0, 0
    for t, x, g in steps:
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * abs(g) ** 2
        v_max = maximum(v_max, v)
        root = sqrt((v_max if amsbound else v) + eps_root) + eps
        eta = learning_rate * sqrt(1 - b2**t) / (1 - b1**t) / root
        lower = final_learning_rate * (1 - 1 / (gamma * t + 1))
        upper = final_learning_rate * (1 + 1 / (gamma * t))
        update = -np.clip(eta, lower, upper) * m - learning_rate * weight_decay * x
        yield update, {"mu": m, "nu": v, "nu_max": v_max}
