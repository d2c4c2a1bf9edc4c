"""The presets on the same problem: many settings in one program."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import numpy as np

from adaptx import presets
from tests.parity.problem import Problem, Setting, Tree, flat, rate_name, schedule


def preset(framework: str, method: str) -> Any:
    """The factory; None where the framework's method has none."""
    return getattr(getattr(presets, framework), method, None)


def transformation(framework: str, method: str, setting: Setting) -> Any:
    """The preset of a setting, with its schedule."""
    factory, kwargs, rate = preset(framework, method), dict(setting.kwargs), rate_name(framework)
    if setting.slowing is not None:
        default = inspect.signature(factory).parameters[rate].default
        kwargs[rate] = schedule(kwargs.get(rate, default), setting.slowing)
    return factory(**kwargs)


def by_tensor(method: str, setting: Setting) -> bool:
    """Whether the leaves matter: a norm is taken of each."""
    return method == "adafactor" or any("clip" in argument for argument in setting.kwargs)


def trajectories(framework: str, method: str, settings: list[Setting], problem: Problem) -> list[np.ndarray]:
    """The parameters after each step, flat, for each setting. 64-bit numbers must be on.

    The first setting runs on the tree, and those that look at leaves; the others on one vector, which compiles faster.
    """
    txs = [transformation(framework, method, setting) for setting in settings]
    whole = [i == 0 or by_tensor(method, setting) for i, setting in enumerate(settings)]
    tree = jax.tree.map(jax.numpy.asarray, tuple(problem))
    vector = jax.tree.map(jax.numpy.asarray, tuple(flat(part) for part in problem))
    run = jax.jit(lambda *on: [scanned(tx, *on[w]) for tx, w in zip(txs, whole, strict=True)])
    return [flat(path) if w else np.asarray(path) for path, w in zip(run(vector, tree), whole, strict=True)]


def scanned(tx: Any, params: Tree, grads: Tree) -> Tree:
    """The parameters after each step of a transformation."""

    def step(carry: Any, g: Tree) -> Any:
        x, state = carry
        u, state = tx.update(g, state, x)
        x = jax.tree.map(jax.numpy.add, x, u)
        return (x, state), x

    return jax.lax.scan(step, (params, tx.init(params)), grads)[1]
