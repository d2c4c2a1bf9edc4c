"""References: every optimizer as a NumPy float64 loop, transcribed from its paper and from nothing in the library.

A reference is a generator. It receives the steps (t, x, g) one by one and yields each step's update and the state that
the paper names, by the library's slot names. x and g are one array: a tensor, or for methods that look at the whole
tree all parameters as the one long vector that papers write, so that `norm` is the paper's norm in both.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from numpy import maximum, minimum, sqrt

Steps = Iterator[tuple[int, Any, Any]]
Yields = Iterator[tuple[Any, dict[str, Any]]]


def norm(x: Any) -> Any:
    return sqrt(np.sum(abs(x) ** 2))


def heavy_ball(b: Any, u: Any, momentum: float | None, nesterov: bool) -> tuple[Any, Any]:
    """Sutskever et al. 2013, with the rate outside the buffer: the direction and the buffer."""
    b = (momentum or 0) * b + u
    return (u + (momentum or 0) * b if nesterov else b), b


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


def adagrad_norm(
    steps: Steps, learning_rate: Any, initial_accumulator: Any = 0.0, eps: Any = 0.0, eps_root: Any = 0.0,
    weight_decay: Any = 0.0,
) -> Yields:  # fmt: skip
    """Ward, Wu, Bottou 2019, algorithm 1: b_t^2 = b_t-1^2 + |g|^2."""
    b_squared = initial_accumulator
    for _, x, g in steps:
        b_squared = b_squared + norm(g) ** 2
        yield -learning_rate * (g / (sqrt(b_squared + eps_root) + eps) + weight_decay * x), {"nu": b_squared}


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


# Name -> the loop. A registered optimizer that is missing here fails law A1.
REFERENCES: dict[str, Callable[..., Yields]] = {
    "adagrad": adagrad,
    "adagrad_norm": adagrad_norm,
    "rmsprop": rmsprop,
    "adadelta": adadelta,
    "adam": adam,
    "adamw": adamw,
    "adamax": adamax,
    "nadam": nadam,
    "adabound": adabound,
    "lamb": lamb,
    "dog": dog,
    "ftrl": ftrl,
}
# Methods that see the whole tree as one vector, by their arguments.
OVER_TREE: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "dog": lambda kwargs: True,
    "adagrad_norm": lambda kwargs: kwargs.get("per", "tensor") == "tree",
}


def replay(
    name: str, params: Any, grads: Sequence[Any], kwargs: Mapping[str, Any], iterates: Sequence[Any] | None = None
) -> list[tuple[Any, dict[str, Any]]]:
    """Each step's update, a tree like the parameters, and the slots, trees or numbers of the whole tree.

    Without `iterates` (the parameters before each step) the reference follows its own.
    """
    whole = OVER_TREE.get(name, lambda kwargs: False)(kwargs)
    settings = {k: v for k, v in kwargs.items() if k not in ("mask", "per")}
    flat = lambda tree: [_wide(leaf) for leaf in jax.tree.leaves(tree)]
    leaves, treedef = jax.tree.flatten(params)
    decayed = jax.tree.leaves(_expanded(kwargs.get("mask"), params))
    join = lambda arrays: [np.concatenate([a.ravel() for a in arrays])] if whole else arrays
    xs, gs = join(flat(params)), [join(flat(g)) for g in grads]
    seen = None if iterates is None else [join(flat(x)) for x in iterates]
    masks = join([np.full(leaf.shape, on) for leaf, on in zip(leaves, decayed, strict=True)])

    columns = [
        _loop(
            REFERENCES[name], x, [g[i] for g in gs], None if seen is None else [x[i] for x in seen], masks[i], settings
        )
        for i, x in enumerate(xs)
    ]
    steps = []
    for rows in zip(*columns, strict=True):
        updates = [update for update, _ in rows]
        slots = {k: rows[0][1][k] if whole else treedef.unflatten([s[k] for _, s in rows]) for k in rows[0][1]}
        steps.append((treedef.unflatten(_cut(updates[0], leaves) if whole else updates), slots))
    return steps


def _loop(
    reference: Any, x: Any, gs: list[Any], xs: list[Any] | None, mask: Any, settings: dict[str, Any]
) -> list[Any]:
    """One reference on one array."""
    decay = settings.get("weight_decay", inspect.signature(reference).parameters["weight_decay"].default)
    settings = {**settings, "weight_decay": (decay or 0.0) * mask}
    now = [x]

    def steps() -> Steps:
        for i, g in enumerate(gs):
            yield i + 1, now[0] if xs is None else xs[i], g

    rows = []
    for update, slots in reference(steps(), **settings):
        now[0] = now[0] + update
        rows.append((update, slots))
    return rows


def _wide(leaf: Any) -> Any:
    a = np.asarray(leaf)
    return a.astype(np.complex128 if np.iscomplexobj(a) else np.float64)


def _expanded(mask: Any, params: Any) -> Any:
    """A prefix tree of bools as one bool for each leaf; None decays everywhere."""
    mask = mask(params) if callable(mask) else mask
    return jax.tree.map(lambda on, below: jax.tree.map(lambda _: on, below), True if mask is None else mask, params)


def _cut(vector: Any, like: list[Any]) -> list[Any]:
    """The long vector, back in its pieces."""
    ends = np.cumsum([leaf.size for leaf in like])
    return [part.reshape(leaf.shape) for part, leaf in zip(np.split(vector, ends[:-1]), like, strict=True)]
