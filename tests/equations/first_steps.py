"""First steps in closed form: what the equations of each paper reduce to at t = 1.

Bias corrections cancel, so no decay rate is left where the method corrects its averages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy import sqrt

from tests.equations.references.loop import norm

First = Callable[[Any, Any, Any], Any]  # (g, x, arguments by name) -> the update


def decayed(u: Any, x: Any, k: Any) -> Any:
    """-learning_rate (u + weight_decay x)."""
    return -k.learning_rate * (u + (k.weight_decay or 0) * x)


def ahead(k: Any) -> float:
    """Nesterov's look ahead from an empty buffer."""
    return 1 + (k.momentum or 0) if k.nesterov else 1


def adagrad(g: Any, x: Any, k: Any) -> Any:
    H = sqrt(k.initial_accumulator + g**2 + k.eps_root) + k.eps
    step = decayed(ahead(k) * g / H, x, k)
    threshold = (k.l1 or 0) * k.learning_rate / H
    return np.where(abs(x + step) <= threshold, -x, step - np.sign(x + step) * threshold)


def rmsprop(g: Any, x: Any, k: Any) -> Any:
    one = 1 - k.b2 if k.bias_correction else 1
    mean_sq = (1 - k.b2) ** 2 / one**2 * g**2 if k.centered else 0
    variance = (k.b2 * k.initial_accumulator + (1 - k.b2) * g**2) / one - mean_sq
    return decayed(ahead(k) * g / (sqrt(variance + k.eps_root) + k.eps), x, k)


def adadelta(g: Any, x: Any, k: Any) -> Any:
    return decayed(sqrt(k.eps_root) * g / (sqrt((1 - k.b2) * g**2 + k.eps_root) + k.eps), x, k)


def adam(g: Any, x: Any, k: Any) -> Any:
    return decayed(g / (sqrt(g**2 + k.eps_root) + k.eps), x, k)


def adamax(g: Any, x: Any, k: Any) -> Any:
    return decayed(g / (abs(g) + k.eps), x, k)


def nadam(g: Any, x: Any, k: Any) -> Any:
    mu_1, mu_2 = (k.b1 if k.momentum_decay is None else k.b1 * (1 - 0.96 ** (t * k.momentum_decay) / 2) for t in (1, 2))
    lead = 1 + mu_2 * (1 - k.b1) / (1 - mu_1 * mu_2)
    return decayed(lead * g / (sqrt(g**2 + k.eps_root) + k.eps), x, k)


def adabound(g: Any, x: Any, k: Any) -> Any:
    rate = k.learning_rate * sqrt(1 - k.b2) / (1 - k.b1) / (sqrt((1 - k.b2) * g**2 + k.eps_root) + k.eps)
    bounds = k.final_learning_rate * k.gamma / (k.gamma + 1), k.final_learning_rate * (1 + 1 / k.gamma)
    return -np.clip(rate, *bounds) * (1 - k.b1) * g - k.learning_rate * (k.weight_decay or 0) * x


def radam(g: Any, x: Any, k: Any) -> Any:
    return decayed(g if k.degenerated_to_sgd else 0 * g, x, k)


def yogi(g: Any, x: Any, k: Any) -> Any:
    v = k.initial_accumulator + (1 - k.b2) * np.sign(g**2 - k.initial_accumulator) * g**2
    of_m, of_v = (1, 1 - k.b2) if k.bias_correction else (1 - k.b1, 1)
    return decayed(of_m * g / (sqrt(v / of_v + k.eps_root) + k.eps), x, k)


def adabelief(g: Any, x: Any, k: Any) -> Any:
    return decayed(g / (sqrt((k.b1 * g) ** 2 + k.eps_root) + k.eps), x, k)


def padam(g: Any, x: Any, k: Any) -> Any:
    of_m, of_v = (1, 1) if k.bias_correction else (1 - k.b1, 1 - k.b2)
    return decayed(of_m * g / (sqrt(of_v * g**2 + k.eps_root) + k.eps) ** (2 * k.partial), x, k)


def adamod(g: Any, x: Any, k: Any) -> Any:
    eta = (1 - k.b3) * k.learning_rate / (sqrt(g**2 + k.eps_root) + k.eps)
    return -eta * g - k.learning_rate * (k.weight_decay or 0) * x


def adam_atan2(g: Any, x: Any, k: Any) -> Any:
    return decayed(k.amplitude * np.arctan2(g, k.stretch * abs(g)), x, k)


def adopt(g: Any, x: Any, k: Any) -> Any:
    return decayed(0 * g, x, k)


def simplified_ademamix(g: Any, x: Any, k: Any) -> Any:
    return decayed((1 + k.alpha) * g / (sqrt(g**2 + k.eps_root) + k.eps), x, k)


def novograd(g: Any, x: Any, k: Any) -> Any:
    return decayed(g / (sqrt(norm(g) ** 2 + k.eps_root) + k.eps) + (k.inner_decay or 0) * x, x, k)


def adagrad_norm(g: Any, x: Any, k: Any) -> Any:
    return decayed(g / (sqrt(k.initial_accumulator + norm(g) ** 2 + k.eps_root) + k.eps), x, k)


def lamb(g: Any, x: Any, k: Any) -> Any:
    u = g / (sqrt(g**2 + k.eps_root) + k.eps) + (k.weight_decay or 0) * x
    return -k.learning_rate * norm(x) / norm(u) * u


def dog(g: Any, x: Any, k: Any) -> Any:
    rate = k.initial_distance * (1 + norm(x)) / (sqrt(norm(g) ** 2 + k.eps_root) + k.eps)
    return rate * decayed(g, x, k)


def ftrl(g: Any, x: Any, k: Any) -> Any:
    h, l1 = k.beta + sqrt(k.initial_accumulator + g**2) + k.learning_rate * (k.l2 or 0), k.l1 or 0
    pull = g - l1 * np.sign(x)
    z = k.learning_rate * pull - h * x
    return np.where(abs(z) <= k.learning_rate * l1, -x, -k.learning_rate * (pull - l1 * np.sign(z)) / h)


def adagrad_full(g: Any, x: Any, k: Any) -> Any:
    return decayed(g / (norm(g) + k.eps), x, k)


def adagrad_da(g: Any, x: Any, k: Any) -> Any:
    h, l1, l2 = sqrt(k.initial_accumulator + g**2) + k.eps, k.l1 or 0, k.l2 or 0
    w = h * x - k.learning_rate * g
    shrunk = np.sign(w) * np.maximum(abs(w) - k.learning_rate * l1, 0)
    return shrunk / (h + k.learning_rate * l2) - x


def sm3(g: Any, x: Any, k: Any) -> Any:
    return decayed((1 - (k.momentum or 0)) * g / (sqrt(g**2 + k.eps_root) + k.eps), x, k)


def kate(g: Any, x: Any, k: Any) -> Any:
    return decayed(g / (g**2 + k.eps) * sqrt(k.eta * g**2 + g**2 / (g**2 + k.eps)), x, k)


def madgrad(g: Any, x: Any, k: Any) -> Any:
    rate = k.learning_rate
    pull = rate * g / (np.cbrt(rate * g**2) + k.eps)
    return -(1 - (k.momentum or 0)) * pull - rate * (k.weight_decay or 0) * x


def rprop(g: Any, x: Any, k: Any) -> Any:
    return -k.learning_rate * np.sign(g)


# Name -> the first update; for a tree-level method g and x are the whole tree as one vector.
FIRST_STEPS: Mapping[str, First] = {
    "adagrad": adagrad,
    "adagrad_norm": adagrad_norm,
    "rmsprop": rmsprop,
    "adadelta": adadelta,
    "adam": adam,
    "adamw": adam,
    "adamax": adamax,
    "nadam": nadam,
    "adabound": adabound,
    "radam": radam,
    "yogi": yogi,
    "adabelief": adabelief,
    "padam": padam,
    "qhadam": adam,
    "laprop": adam,
    "adamod": adamod,
    "adam_atan2": adam_atan2,
    "adan": adam,
    "adopt": adopt,
    "simplified_ademamix": simplified_ademamix,
    "novograd": novograd,
    "lamb": lamb,
    "dog": dog,
    "ftrl": ftrl,
    "adagrad_full": adagrad_full,
    "adagrad_da": adagrad_da,
    "sm3": sm3,
    "kate": kate,
    "madgrad": madgrad,
    "rprop": rprop,
}
