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


def adagrad_full(
    steps: Steps, learning_rate: Any, eps: Any = 1e-10, max_size: int = 1024, weight_decay: Any = 0.0
) -> Yields:
    """Duchi, Hazan, Singer 2011, figure 1, full: S = G^1/2, H = eps I + S on the span of the gradients, which are the
    rows of a matrix; its singular vectors are G's eigenvectors.
    """
    rows = []
    for _, x, g in steps:
        rows.append(np.ravel(g).conj())
        _, s, vh = np.linalg.svd(np.array(rows), full_matrices=False)
        s, vh = s[s > 1e-12 * s[0]], vh[s > 1e-12 * s[0]]
        u = vh.conj().T @ (vh @ np.ravel(g) / (s + eps))
        yield -learning_rate * (u.reshape(np.shape(g)) + weight_decay * x), {"root": (vh.conj().T * s) @ vh}


def adagrad_da(
    steps: Steps, learning_rate: Any, initial_accumulator: Any = 0.1, eps: Any = 0.0, l1: Any = None, l2: Any = None
) -> Yields:
    """Duchi, Hazan, Singer 2011, equation 3 and section 5's closed form, its function centred at the first x:
    minimise eta <mean g, x> + eta phi(x) + h (x - x_0)^2 / 2t, phi = l1 |x| + l2 x^2 / 2.
    """
    squares, mean, x_0, eta = initial_accumulator, 0, None, learning_rate
    for t, x, g in steps:
        x_0 = x if t == 1 else x_0
        squares, mean = squares + abs(g) ** 2, mean + (g - mean) / t
        h = sqrt(squares) + eps
        target = h * x_0 / t - eta * mean
        shrunk = maximum(abs(target) - eta * (l1 or 0), 0) * np.sign(target)
        new = shrunk / (h / t + eta * (l2 or 0))
        yield new - x, {"nu": squares, "grad_sum": eta * t * mean}


def sm3(
    steps: Steps, learning_rate: Any, momentum: Any = 0.9, eps: Any = 0.0, eps_root: Any = 0.0, weight_decay: Any = 0.0
) -> Yields:
    """Anil et al. 2019, SM3-II: nu_t(i) = min over the sets r with i of mu_t-1(r), + g_t(i)^2; mu_t(r) = max nu_t."""
    m, nu, beta = 0, None, momentum or 0
    for _, x, g in steps:
        nu = np.zeros(np.shape(g)) if nu is None else nu
        others = [tuple(b for b in range(np.ndim(g)) if b != a) for a in range(np.ndim(g))]
        cover = [nu.max(axes, keepdims=True) for axes in others] or [nu]
        nu = np.min(np.broadcast_arrays(*cover), 0) + abs(g) ** 2
        m = beta * m + (1 - beta) * g / (sqrt(nu + eps_root) + eps)
        yield -learning_rate * (m + weight_decay * x), {"trace": m}


def kate(steps: Steps, learning_rate: Any, eta: Any = 1e-3, eps: Any = 1e-8, weight_decay: Any = 0.0) -> Yields:
    """Choudhury et al. 2024, algorithm 1, b_-1 = m_-1 = 0, with the eps of the authors' code."""
    b_squared, m_squared = 0, 0
    for _, x, g in steps:
        b_squared = b_squared + abs(g) ** 2
        m_squared = m_squared + eta * abs(g) ** 2 + abs(g) ** 2 / (b_squared + eps)
        u = sqrt(m_squared) / (b_squared + eps) * g
        yield -learning_rate * (u + weight_decay * x), {"nu": b_squared, "numerator": m_squared}


def madgrad(steps: Steps, learning_rate: Any, momentum: Any = 0.9, eps: Any = 1e-6, weight_decay: Any = 0.0) -> Yields:
    """Defazio, Jelassi 2021, algorithm 1, c = 1 - momentum; the decay as the authors' code decouples it."""
    s, nu, x_0, c = 0, 0, None, 1 - (momentum or 0)
    for t, x, g in steps:
        x_0 = x if t == 1 else x_0
        lamb = learning_rate * sqrt(t)
        s, nu = s + lamb * g, nu + lamb * abs(g) ** 2
        z = x_0 - s / (np.cbrt(nu) + eps)
        yield (1 - c) * x + c * z - learning_rate * weight_decay * x - x, {"grad_sum": s, "nu": nu}
