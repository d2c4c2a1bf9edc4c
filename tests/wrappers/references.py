"""The wrappers in NumPy float64, each from its paper; and the optimizers of facebookresearch/schedule_free.

An inner optimizer is a function that makes its `update(g, x)`; what goes in and comes out are dicts of arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

Tree = dict[str, np.ndarray]
Update = Callable[[Tree, Tree], Tree]


def each(f: Callable[..., Any], *trees: Any) -> Any:
    return {k: f(*(t[k] for t in trees)) for k in trees[0]}


def rate_of(rate: Any, t: int) -> float:
    """The rate of step t = 1, 2, ...: a schedule is asked for step 0 first."""
    return float(rate(t - 1)) if callable(rate) else rate


def sgd(rate: Any, momentum: float = 0.0) -> Update:
    buffer: dict[str, Any] = {}
    steps = [0]

    def update(g: Tree, x: Tree) -> Tree:
        steps[0] += 1
        buffer.update(each(lambda a, b: a + b, g, {k: momentum * buffer.get(k, 0.0) for k in g}))
        return each(lambda b: -rate_of(rate, steps[0]) * b, dict(buffer))

    return update


class AdamW:
    """An update whose second moments can be read, as stable decay does."""

    def __init__(self, rate: Any, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, decay: float = 0.0) -> None:
        self.rate, self.b1, self.b2, self.eps, self.decay = rate, b1, b2, eps, decay
        self.m: dict[str, Any] = {}
        self.v: dict[str, Any] = {}
        self.t = 0

    def __call__(self, g: Tree, x: Tree) -> Tree:
        self.t += 1
        self.m = {k: self.b1 * self.m.get(k, 0.0) + (1 - self.b1) * g[k] for k in g}
        self.v = {k: self.b2 * self.v.get(k, 0.0) + (1 - self.b2) * g[k] ** 2 for k in g}
        u = {k: self.m[k] / (1 - self.b1**self.t) / (np.sqrt(self.v[k] / (1 - self.b2**self.t)) + self.eps) for k in g}
        return each(lambda u, x: -rate_of(self.rate, self.t) * (u + self.decay * x), u, x)


# The wrappers: parameters and gradient function in, parameters after each step out.


def schedule_free(
    x: Tree, grads: Any, inner: Update, rate: Any, b1: float = 0.9, p: float = 2.0, r: float = 0.0
) -> Iterator[tuple[Tree, Tree]]:
    """The paper's three sequences; yields y and x."""
    z, y, total, top, t = x, x, 0.0, 0.0, 0
    while True:
        t += 1
        top = max(top, rate_of(rate, t))
        weight = t**r * top**p
        total += weight
        c = weight / total if total else 0.0
        z = each(lambda z, u: z + u, z, inner(grads(t, y), y))
        x = each(lambda x, z, c=c: (1 - c) * x + c * z, x, z)
        y = each(lambda x, z: b1 * x + (1 - b1) * z, x, z)
        yield y, x


def authors_schedule_free(
    y: Tree, grads: Any, rate: Any, b1: float, b2: Any = None, eps: float = 1e-8, decay: float = 0.0
) -> Iterator[tuple[Tree, Tree]]:
    """SGDScheduleFree, and with b2 AdamWScheduleFree: y and z in place; yields y and what `eval()` shows."""
    z, v, total, top, t = dict(y), dict.fromkeys(y, 0.0), 0.0, -1.0, 0
    y = dict(y)
    while True:
        t += 1
        lr, g = rate_of(rate, t), grads(t, y)
        top = max(lr, top)
        total += top**2
        c = top**2 / total if total else 0.0
        for k in y:
            d = g[k]
            if b2 is not None:
                v[k] = b2 * v[k] + (1 - b2) * g[k] ** 2
                d = g[k] / (np.sqrt(v[k] / (1 - b2**t)) + eps)
            d = d + decay * y[k]
            y[k] = y[k] + c * (z[k] - y[k]) + lr * (b1 * (1 - c) - 1) * d
            z[k] = z[k] - lr * d
        yield dict(y), each(lambda y, z: y + (1 - 1 / b1) * (z - y), y, z)


def rectified(rate: float, b2: float) -> Callable[[Any], Any]:
    """The rate of the authors' RAdamScheduleFree: 0 while the variance of Adam's step is out of control."""

    def schedule(count: Any) -> Any:  # for NumPy's loops and for JAX
        t = jnp.asarray(count, float) + 1
        longest = 2 / (1 - b2) - 1
        length = longest - 2 * t * b2**t / (1 - b2**t)
        r = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        return rate * jnp.where(length > 4, jnp.sqrt(jnp.abs(r)), 0)

    return schedule


def cautious(x: Tree, grads: Any, inner: Update, least: float = 1e-3) -> Iterator[Tree]:
    t = 0
    while True:
        t += 1
        g = grads(t, x)
        u = inner(g, x)
        mask = each(lambda u, g: (-u * g > 0).astype(float), u, g)
        x = each(lambda x, u, m: x + u * m / max(m.mean(), least), x, u, mask)
        yield x


def weight_decay(
    x: Tree, grads: Any, inner: Any, kind: str, decay: Any, rate: Any, on: dict[str, bool], b2: float = 0.0
) -> Iterator[Tree]:
    t = 0
    while True:
        t += 1
        g, wd, lr = grads(t, x), rate_of(decay, t), rate_of(rate, t)
        if kind == "l2":
            g = {k: g[k] + wd * x[k] * on[k] for k in g}
        u = inner(g, x)
        factor = dict.fromkeys(x, wd if kind == "independent" else lr * wd * (kind != "l2"))
        if kind == "stable":
            v = np.concatenate([a.ravel() for a in inner.v.values()]) / (1 - b2**t)
            factor = dict.fromkeys(x, lr * wd / np.sqrt(v.mean()))
        if kind == "cautious":
            factor = each(lambda f, u, x: f * (-u * x >= 0), factor, u, x)
        x = {k: x[k] + u[k] - factor[k] * x[k] * on[k] for k in x}
        yield x


def mars(
    x: Tree, grads: Any, inner: Update, b1: float, gamma: float, clip: float, exact: bool = False
) -> Iterator[Tree]:
    before, t = x, 0
    while True:
        t += 1
        g = grads(t, x)
        previous = g if t == 1 else grads(t if exact else t - 1, before)
        c = each(lambda g, p: g + gamma * b1 / (1 - b1) * (g - p), g, previous)
        c = each(lambda c: c / np.linalg.norm(c) * clip if np.linalg.norm(c) > clip else c, c)
        before, x = x, each(lambda x, u: x + u, x, inner(c, x))
        yield x


def update_clipping(x: Tree, grads: Any, inner: Update, bound: float, rate: Any) -> Iterator[Tree]:
    t = 0
    while True:
        t += 1
        lr = rate_of(rate, t)
        u = each(lambda u, lr=lr: u / lr, inner(grads(t, x), x))
        u = each(lambda u: u / max(1, np.sqrt(np.mean(u**2)) / bound), u)
        x = each(lambda x, u, lr=lr: x + lr * u, x, u)
        yield x


def graft(x: Tree, grads: Any, magnitude: Update, direction: Update) -> Iterator[Tree]:
    t = 0
    while True:
        t += 1
        g = grads(t, x)
        m, d = magnitude(g, x), direction(g, x)
        x = each(lambda x, m, d: x + np.linalg.norm(m) / np.linalg.norm(d) * d, x, m, d)
        yield x
