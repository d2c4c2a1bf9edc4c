"""References: Parameter-free methods."""

from typing import Any

import numpy as np
from numpy import maximum, minimum, sqrt

from tests.equations.references.loop import Steps, Yields, inner, norm, over_tree


@over_tree()
def dog(
    steps: Steps, learning_rate: Any = 1.0, initial_distance: Any = 1e-6, eps: Any = 0.0, eps_root: Any = 1e-8,
    weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Ivgi, Hinder, Carmon 2023: eta_t = max_i |x_i - x_0| / sqrt(sum |g_i|^2), the first distance r_eps."""
    squares, x_0, r_bar = 0, None, 0
    for t, x, g in steps:
        if t == 1:
            x_0, r_bar = x, initial_distance * (1 + norm(x))
        r_bar = max(r_bar, norm(x - x_0))
        squares = squares + norm(g) ** 2
        eta = learning_rate * r_bar / (sqrt(squares + eps_root) + eps)
        yield -eta * g - minimum(eta * weight_decay, 1) * x, {"distance": r_bar, "grad_sq": squares}


@over_tree()
def dowg(
    steps: Steps, learning_rate: Any = 1.0, d0: Any = 1e-2, eps: Any = 1e-4, weight_decay: Any = 0.0
) -> Yields:  # fmt: skip
    """Khaled, Mishchenko, Jin 2023, algorithm 1: v_t = v_t-1 + r_t^2 |g_t|^2 and eta_t = r_t^2 / sqrt(v_t)."""
    v, x_0, r_bar = 0, None, d0
    for t, x, g in steps:
        x_0 = x if t == 1 else x_0
        r_bar = max(r_bar, norm(x - x_0))
        v = v + r_bar**2 * norm(g) ** 2
        eta = learning_rate * r_bar**2 / (sqrt(v) + eps)
        yield -eta * g - minimum(eta * weight_decay, 1) * x, {"distance": r_bar, "grad_sq": v / r_bar**2}


@over_tree()
def dadapt_sgd(
    steps: Steps, learning_rate: Any = 1.0, b1: Any = 0.9, d0: Any = 1e-6, growth_rate: Any = np.inf,
    weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Defazio, Mishchenko 2023, algorithm 4 (z and its average y = x without decay from x_0 = 0), G the first norm."""
    s, z, y, r, d, G = 0, 0, 0, 0, d0, None
    for t, x, g in steps:
        G = norm(g) if t == 1 else G
        lam = learning_rate * d / G
        r = r + lam * inner(g, s)
        s = s + lam * g
        z = z - lam * g
        d = max(d, min(2 * r / norm(s), growth_rate * d))
        y, before = b1 * y + (1 - b1) * z, y
        yield y - before - minimum(lam * weight_decay, 1) * x, {"grad_sum": s, "d": d, "grad_norm": G}


@over_tree()
def dadapt_adagrad(
    steps: Steps, learning_rate: Any = 1.0, d0: Any = 1e-6, eps: Any = 1e-6, growth_rate: Any = np.inf,
    initial_accumulator: Any = 1e-6, weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Defazio, Mishchenko 2023, algorithm 3, in the authors' form: A_k+1 in both sums, and no 1/2."""
    s, a_sq, weighted, d, z, A = 0, initial_accumulator, 0, d0, 0, None
    for _, x, g in steps:
        lam = d * learning_rate
        s, a_sq = s + lam * g, a_sq + abs(g) ** 2
        A = sqrt(a_sq) + eps
        weighted = weighted + np.sum(abs(lam * g) ** 2 / A)
        d = max(d, min((np.sum(abs(s) ** 2 / A) - weighted) / np.sum(abs(s)), growth_rate * d))
        z, before = -s / A, z
        yield z - before - minimum(lam * weight_decay, 1) * x, {"nu": a_sq, "grad_sum": s, "d": d}


@over_tree()
def dadapt_adam(
    steps: Steps, learning_rate: Any = 1.0, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8, d0: Any = 1e-6,
    growth_rate: Any = np.inf, bias_correction: bool = False, weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Defazio, Mishchenko 2023, algorithm 5, with A_k in r_k+1 as in the authors' code."""
    m, v, s, r, d, b = 0, 0, 0, 0, d0, sqrt(b2)
    for t, x, g in steps:
        lam = d * learning_rate * (sqrt(1 - b2**t) / (1 - b1**t) if bias_correction else 1)
        r = b * r + (1 - b) * lam * inner(g, s / (sqrt(v) + eps))
        m = b1 * m + (1 - b1) * lam * g
        v = b2 * v + (1 - b2) * abs(g) ** 2
        s = b * s + (1 - b) * lam * g
        old, d = d, max(d, min(r / ((1 - b) * np.sum(abs(s))), growth_rate * d))
        slots = {"mu": m, "nu": v, "grad_sum": s, "d": d, "numerator": r / old}
        yield -m / (sqrt(v) + eps) - minimum(lam * weight_decay, 1) * x, slots


@over_tree()
def prodigy(
    steps: Steps, learning_rate: Any = 1.0, b1: Any = 0.9, b2: Any = 0.999, d_decay: Any = None, eps: Any = 1e-8,
    d0: Any = 1e-6, d_coef: Any = 1.0, growth_rate: Any = np.inf, bias_correction: bool = False,
    safeguard_warmup: bool = False, weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Mishchenko, Defazio 2023, algorithm 4; growth_rate and the two switches as in the authors' code."""
    m, v, s, r, d, d_max, x_0, b3 = 0, 0, 0, 0, d0, d0, None, d_decay or sqrt(b2)
    for t, x, g in steps:
        x_0 = x if t == 1 else x_0
        dlr = d * learning_rate * (sqrt(1 - b2**t) / (1 - b1**t) if bias_correction else 1)
        m = b1 * m + (1 - b1) * d * g
        v = b2 * v + (1 - b2) * d**2 * abs(g) ** 2
        r = b3 * r + (1 - b3) * d * dlr * inner(g, x_0 - x)
        s = b3 * s + (1 - b3) * d * (d if safeguard_warmup else dlr) * g
        update = -dlr * m / (sqrt(v) + d * eps) - minimum(dlr * weight_decay, 1) * x
        d_hat = d_coef * r / np.sum(abs(s))
        d_max, old = max(d_max, d_hat), d
        d = max(d, d_hat) if d == d0 else min(d_max, d * growth_rate)
        yield update, {"mu": m, "nu": v, "grad_sum": s, "d": d, "numerator": r / old**2}


def cocob(steps: Steps, learning_rate: Any = 1.0, caution: Any = 100.0, weight_decay: Any = 0.0) -> Yields:
    """Orabona, Tommasi 2017, algorithm 2; the rate measures x - x_1, and the decay shifts x_1."""
    L, G, reward, theta, w = 0, 0, 0, 0, 0
    for _, x, g in steps:
        L = maximum(L, abs(g))
        G = G + abs(g)
        reward = maximum(reward - np.real(np.conj(g) * w), 0)
        theta = theta - g
        before, w = w, theta / (L * maximum(G + L, caution * L)) * (L + reward)
        slots = {"grad_sum": theta, "abs_sum": G, "reward": reward, "scale": L, "bet": w}
        yield learning_rate * (w - before - weight_decay * x), slots
