"""Whole trainings under vmap: over tasks, over hyperparameters, and their derivatives."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptx
from adaptx.hyperparams import inject_hyperparams, set_hyperparams
from tests.conftest import x64

STEPS = 20
RATES = (0.01, 0.05, 0.2)


def _trained(tx: Any, values: dict[str, Any], data: Any) -> Any:
    """Validation loss of a linear regression after 20 steps, with hyperparameters set in the state."""
    params = {"b": jnp.zeros(()), "w": jnp.zeros(3)}
    loss = lambda params, x, y: jnp.mean((x @ params["w"] + params["b"] - y) ** 2)
    state = set_hyperparams(tx.init({k: p.astype(data["x"].dtype) for k, p in params.items()}), values)

    def body(carry: Any, _: Any) -> Any:
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, data["x"], data["y"]), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(body, (params, state), None, STEPS)
    return loss(params, data["x_val"], data["y_val"])


def _tasks(count: int) -> Any:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(count, 3))
    x, x_val = rng.normal(size=(count, 8, 3)), rng.normal(size=(count, 8, 3))
    of = lambda x: np.einsum("tnd,td->tn", x, w) + 0.3 + 0.1 * rng.normal(size=x.shape[:2])
    return {"x": jnp.asarray(x), "y": jnp.asarray(of(x)), "x_val": jnp.asarray(x_val), "y_val": jnp.asarray(of(x_val))}


@pytest.mark.parametrize(
    "factory", [adaptx.adagrad, adaptx.rmsprop, adaptx.adamw, adaptx.lamb], ids=lambda f: f.__name__
)
def test_vmapped_trainings_and_their_hypergradients(factory: Any) -> None:
    """Over tasks and over rates, each is the training alone, and so is its derivative by rate, b2, eps and decay."""
    with x64():
        tx, tasks = inject_hyperparams(factory)(0.1), _tasks(2)
        if factory is not adaptx.adagrad:
            tx = inject_hyperparams(factory)(0.1, weight_decay=0.01)
        others = {"eps": 1e-3} if factory is adaptx.adagrad else {"b2": 0.9, "eps": 1e-3, "weight_decay": 0.02}
        values = lambda rate: {"learning_rate": rate, **{k: jnp.asarray(v) for k, v in others.items()}}
        both = jax.value_and_grad(lambda values, data: _trained(tx, values, data))
        over_rates = jax.vmap(both, in_axes=(0, None))
        batch = {k: jnp.broadcast_to(v, (len(RATES),)) for k, v in values(0.0).items()} | {
            "learning_rate": jnp.asarray(RATES)
        }
        losses, slopes = jax.jit(jax.vmap(over_rates, in_axes=(None, 0)))(batch, tasks)
        alone = jax.jit(both)
        for i in range(2):
            for j, rate in enumerate(RATES):
                loss, slope = alone(values(jnp.asarray(rate)), {k: v[i] for k, v in tasks.items()})
                np.testing.assert_allclose(losses[i, j], loss, rtol=1e-10)
                for name, expected in slope.items():
                    assert expected != 0, name
                    np.testing.assert_allclose(slopes[name][i, j], expected, rtol=1e-8, err_msg=name)


def test_a_learned_rate_is_better() -> None:
    """Ten steps down the hypergradient of log rate improve the mean validation loss of several tasks."""
    with x64():
        tx, tasks = inject_hyperparams(adaptx.adam)(0.1), _tasks(4)
        mean = lambda log_rate: jnp.mean(
            jax.vmap(lambda data: _trained(tx, {"learning_rate": jnp.exp(log_rate)}, data))(tasks)
        )
        step = jax.jit(jax.value_and_grad(mean))
        log_rate, losses = jnp.log(0.01), []
        for _ in range(10):
            loss, slope = step(log_rate)
            losses.append(float(loss))
            log_rate = log_rate - 0.5 * slope
        assert losses[-1] < 0.5 * losses[0]
