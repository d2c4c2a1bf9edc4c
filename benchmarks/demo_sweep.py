"""The demo's sweep: many values of one hyperparameter or two, from one compilation, for an optimizer on a task."""

import inspect
import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from adaptx import tune
from adaptx.hyperparams import inject_hyperparams
from benchmarks.training import (
    Task,
    default_rate,
    endless_batches,
    factory_of,
    loss,
    make_model,
    schedule_of,
    updates_of,
)

# What is tried; a rate is tried from a hundredth to a hundred times the usual one.
RANGES: dict[str, Any] = {
    "learning_rate": None,
    "b1": tune.choice(0.0, 0.5, 0.8, 0.9, 0.95, 0.99),
    "b2": tune.choice(0.5, 0.9, 0.99, 0.999, 0.9999),
    "eps": tune.log_uniform(1e-12, 1e-2),
    "momentum": tune.choice(0.0, 0.5, 0.8, 0.9, 0.95),
    "weight_decay": tune.log_uniform(1e-5, 1.0),
}


def sweep(
    task: Task, name: str, swept: Sequence[str], rate: float | None, trials: int, steps: int, seed: int
) -> tune.Results:
    """Trials of the demo's training. The score is the loss on the test rows.

    Errors:
        ValueError: a hyperparameter that the optimizer has not, in one line.
    """
    usual = default_rate(name)
    space = {a: RANGES[a] or tune.log_uniform(usual / 100, usual * 100) for a in swept}
    # What is off by default (None) is no number in the state; at 0 it is, and does the same.
    factory = factory_of(name)
    switched_on = {a: 0.0 for a in swept if _default(factory, a) is None}
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        inject_hyperparams(factory)(rate or usual, **switched_on),
        optax.scale_by_schedule(schedule_of(1.0, steps)),
    )
    graph, params = nnx.split(make_model(task.sizes, seed), nnx.Param)

    def train_step(state: Any, batch: Any) -> Any:
        params, opt_state, number = state
        key = jax.random.fold_in(jax.random.key(0), number)
        updates, opt_state, _, value = updates_of(graph, tx, params, opt_state, batch, key)
        return (optax.apply_updates(params, updates), opt_state, number + 1), value

    def evaluate(rows: Any, state: Any) -> Any:
        return loss(nnx.merge(graph, state[0])(rows.x), rows.y)

    return tune.sweep(
        lambda: (params, tx.init(params), jnp.int32(0)),
        train_step,
        space,
        trials,
        batches=itertools.islice(endless_batches(task.dataset.train, seed, task.batch), steps),
        steps=steps,
        evaluate=partial(evaluate, task.dataset.test),
    )


def _default(factory: Any, argument: str) -> Any:
    parameter = inspect.signature(factory).parameters.get(argument)
    return "" if parameter is None else parameter.default
