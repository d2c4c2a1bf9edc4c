"""References: Factored and shared second moments."""

from typing import Any

import numpy as np
from numpy import maximum, minimum, sqrt

from tests.equations.references.loop import Steps, Yields


def _rms(x: Any) -> Any:
    return sqrt(np.mean(abs(x) ** 2))


def _clipped(u: Any, d: Any) -> Any:
    return u if d is None else u / maximum(1, _rms(u) / d)


def _rank_one(R: Any, C: Any, shape: tuple[int, ...]) -> Any:
    """R C / sum(R) from the sums over rows and columns, which are means here: divided by m and n, as is the answer."""
    n, m = shape
    return (m * R) @ (n * C) / np.sum(m * R)


def adafactor(
    steps: Steps, learning_rate: Any = 1e-2, min_dim_size_to_factor: int = 2, decay_rate: Any = 0.8,
    decay_offset: Any = 0, eps_root: Any = 1e-30, min_scale: Any = 1e-3, clipping_threshold: Any = 1.0,
    relative_step: bool = True, factored: Any = "last", momentum: Any = None, weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Shazeer, Stern 2018, algorithms 4 and 5, whose rho_t is min(rate, 1 / sqrt(t)); momentum as in algorithm 2 of
    their code. Matrices only, so that the last axes are the largest.
    """
    R, C, V, m = 0, 0, 0, 0
    for t, X, G in steps:
        beta = 1 - float(maximum(t - decay_offset, 1)) ** -decay_rate
        square = abs(G) ** 2 + eps_root
        split = factored is not None and G.ndim == 2 and min(G.shape) >= min_dim_size_to_factor
        R = beta * R + (1 - beta) * np.mean(square, -1, keepdims=True) if split else 0
        C = beta * C + (1 - beta) * np.mean(square, -2, keepdims=True) if split else 0
        V = _rank_one(R, C, G.shape) if split else beta * V + (1 - beta) * square
        rho = minimum(learning_rate, 1 / sqrt(t)) if relative_step else learning_rate
        alpha = rho * (1 if min_scale is None else maximum(min_scale, _rms(X)))
        m = (momentum or 0) * m + (1 - (momentum or 0)) * alpha * _clipped(G / sqrt(V), clipping_threshold)
        yield -m - learning_rate * weight_decay * X, {"nu": (R, C) if split else V, "mu": m}


def came(
    steps: Steps, learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, b3: Any = 0.9999, eps_root: Any = 1e-30,
    eps_instability: Any = 1e-16, clipping_threshold: Any = 1.0, weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Luo et al. 2023, algorithm 2; vectors as in the authors' code, which has no confidence for them."""
    moments = lambda a, s, b: tuple(b * s[-k - 1] + (1 - b) * np.mean(a, k, keepdims=True) for k in (-1, -2))
    v, w, V, m = (0, 0), (0, 0), 0, 0
    for _, x, g in steps:
        square = abs(g) ** 2 + eps_root
        if g.ndim == 2:
            v = moments(square, v, b2)
        V = _rank_one(*v, g.shape) if g.ndim == 2 else b2 * V + (1 - b2) * square
        u = _clipped(g / sqrt(V), clipping_threshold)
        m = b1 * m + (1 - b1) * u
        if g.ndim == 2:
            w = moments(abs(u - m) ** 2 + eps_instability, w, b3)
        S = _rank_one(*w, g.shape) if g.ndim == 2 else 1
        slots = {"mu": m, "nu": v if g.ndim == 2 else V, "instability": w if g.ndim == 2 else None}
        yield -learning_rate * (m / sqrt(S) + weight_decay * x), slots


def adam_mini(
    steps: Steps, learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8, eps_root: Any = 0.0,
    block_axis: Any = None, blocks: Any = None, weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Zhang et al. 2024, algorithm 1: v is the mean of g^2 over each block."""
    m, v = 0, 0
    for t, x, g in steps:
        m = b1 * m + (1 - b1) * g
        if block_axis is None or not g.ndim:
            means = np.mean(abs(g) ** 2)
        else:
            rows = np.moveaxis(abs(g) ** 2, block_axis, 0)
            width = 1 if blocks is None else -(-len(rows) // blocks)
            parts = [rows[i : i + width] for i in range(0, len(rows), width)]
            by_row = np.concatenate([np.full(len(part), np.mean(part)) for part in parts])
            means = np.moveaxis(by_row.reshape(-1, *[1] * (g.ndim - 1)), 0, block_axis)
        v = b2 * v + (1 - b2) * means
        u = m / (1 - b1**t) / (sqrt(v / (1 - b2**t) + eps_root) + eps)
        yield -learning_rate * (u + weight_decay * x), {"mu": m, "nu": v}
