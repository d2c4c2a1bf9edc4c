"""A small training for the tests: a line through points, some batches, and what happens to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adaptx
from adaptx.hyperparams import inject_hyperparams

X = np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float32)
BATCHES = [(x, x @ np.float32([1.0, -2.0, 0.5]) + np.float32(0.1)) for x in X]
PARAMS = {"w": np.zeros(3, np.float32), "b": np.float32(0)}


def loss(params: Any, batch: Any) -> jax.Array:
    x, y = batch
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


class Training:
    """make_state and train_step for an injected optimizer, with a count of the traces of each."""

    def __init__(self, factory: Callable[..., Any] = adaptx.adam, *args: Any, **kwargs: Any) -> None:
        self.tx = inject_hyperparams(factory)(*(args or (1e-3,)), **kwargs)
        self.traced = 0

    def make_state(self) -> Any:
        params = jax.tree.map(jnp.asarray, PARAMS)
        return params, self.tx.init(params)

    def train_step(self, state: Any, batch: Any) -> Any:
        self.traced += 1
        params, opt_state = state
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, opt_state = self.tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value


def fresh(tx: Any, batches: Sequence[Any] = BATCHES) -> list[float]:
    """The losses of a plain loop over an optimizer that closes over its numbers."""
    params = jax.tree.map(jnp.asarray, PARAMS)
    state, losses = tx.init(params), []
    step = jax.jit(lambda p, s, b: (jax.value_and_grad(loss)(p, b), s))
    for batch in batches:
        (value, grads), state = step(params, state, batch)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(value))
    return losses
