"""Limits in which two optimizers must coincide, in float64 to 8 eps of the largest update."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptx
from benchmarks.needs import supplied
from tests.conformance.cases import CASES, STAND_INS, Case
from tests.conftest import x64

STEPS = 6


class Limit(NamedTuple):
    """Two makers of transformations that coincide, on which gradients and parameters."""

    left: Callable[[], Any]
    right: Callable[[], Any]
    sizes: Any = 1.0  # of the gradients, by step
    signs: bool = False  # gradients of -1 and 1 only
    shape: tuple[int, ...] = (3,)
    held: float | None = None  # parameters that stay at this value


def growing(factor: float) -> Any:
    return factor ** np.arange(STEPS)


def inverse_time(count: Any) -> Any:
    return 0.1 / (1 + 0.3 * count)


LIMITS = {
    # Adam's line
    "amsgrad is adam while v grows": Limit(
        lambda: adaptx.adam(0.1, amsgrad=True), lambda: adaptx.adam(0.1), sizes=growing(2.0)
    ),
    "adam without b1 is rmsprop with bias correction": Limit(
        lambda: adaptx.adam(0.1, b1=0.0, b2=0.95, eps=1e-3, eps_root=1e-2),
        lambda: adaptx.rmsprop(0.1, b2=0.95, eps=1e-3, eps_root=1e-2, bias_correction=True),
    ),
    "adamw without decay is adam": Limit(lambda: adaptx.adamw(0.1, weight_decay=None), lambda: adaptx.adam(0.1)),
    "adam with decay is adamw": Limit(lambda: adaptx.adam(0.1, weight_decay=1e-2), lambda: adaptx.adamw(0.1)),
    "a mask of False is no decay": Limit(lambda: adaptx.adamw(0.1, mask=False), lambda: adaptx.adam(0.1)),
    "adam without memory is a sign": Limit(
        lambda: adaptx.adam(0.1, b1=0.0, b2=0.0, eps=0.0),
        lambda: optax.chain(optax.scale_by_sign(), optax.scale(-0.1)),
    ),
    "adamax without memory is a sign": Limit(
        lambda: adaptx.adamax(0.1, b1=0.0, b2=0.0), lambda: optax.chain(optax.scale_by_sign(), optax.scale(-0.1))
    ),
    "adamax is adam without b1 while |g| is constant": Limit(
        lambda: adaptx.adamax(0.1, b1=0.0), lambda: adaptx.adam(0.1, b1=0.0, eps=0.0), signs=True
    ),
    "nadam without b1 is adam without b1": Limit(lambda: adaptx.nadam(0.1, b1=0.0), lambda: adaptx.adam(0.1, b1=0.0)),
    "a momentum schedule that is over is none": Limit(
        lambda: adaptx.nadam(0.1, momentum_decay=1e6), lambda: adaptx.nadam(0.1, momentum_decay=None)
    ),
    "nadam without a schedule is the form its author programs": Limit(
        lambda: adaptx.nadam(0.1, b1=0.8, b2=0.95, eps=0.0, momentum_decay=None),
        lambda: _corrected_as_it_goes(0.1, 0.8, 0.95),
    ),
    "adabound between open bounds is adam": Limit(
        lambda: adaptx.adabound(0.1, eps=0.0, gamma=1e-30), lambda: adaptx.adam(0.1, eps=0.0)
    ),
    "amsbound between open bounds is amsgrad": Limit(
        lambda: adaptx.adabound(0.1, eps=0.0, gamma=1e-30, amsbound=True),
        lambda: adaptx.adam(0.1, eps=0.0, amsgrad=True),
        sizes=growing(0.01),
    ),
    "adabound between closed bounds is momentum": Limit(
        lambda: adaptx.adabound(0.1, final_learning_rate=0.3, gamma=1e30),
        lambda: optax.chain(optax.ema(0.9, debias=False), optax.scale(-0.3)),
    ),
    "lamb on zero parameters is adam": Limit(lambda: adaptx.lamb(0.1), lambda: adaptx.adam(0.1, eps=1e-6), held=0.0),
    "lamb is a step of the parameters' size along adamw's": Limit(
        lambda: adaptx.lamb(0.1, eps=1e-8), lambda: _rescaled(adaptx.adamw(1.0), 0.1), held=0.7
    ),
    # AdaGrad's line
    "adagrad_norm on numbers is adagrad": Limit(
        lambda: adaptx.adagrad_norm(0.1, eps=1e-3), lambda: adaptx.adagrad(0.1, eps=1e-3), shape=(1,)
    ),
    "adagrad with lr_decay is adagrad with that schedule": Limit(
        lambda: adaptx.adagrad(0.1, lr_decay=0.3), lambda: adaptx.adagrad(inverse_time)
    ),
    "adagrad with l1 on numbers far from zero is a constant pull": Limit(
        lambda: adaptx.adagrad(1e-3, initial_accumulator=1e30, l1=1e14),
        lambda: optax.chain(adaptx.adagrad(1e-3, initial_accumulator=1e30), _minus(1e-3 * 1e14 / 1e15)),
        held=5.0,
    ),
    "rmsprop that forgets everything is a sign": Limit(
        lambda: adaptx.rmsprop(0.1, b2=0.0, eps=0.0), lambda: optax.chain(optax.scale_by_sign(), optax.scale(-0.1))
    ),
    "rmsprop that forgets everything has no variance": Limit(
        lambda: adaptx.rmsprop(0.1, b2=0.0, eps=0.0, eps_root=0.25, centered=True), lambda: optax.scale(-0.1 / 0.5)
    ),
    "adadelta with a huge eps_root is sgd": Limit(
        lambda: adaptx.adadelta(0.1, eps_root=1e30), lambda: optax.scale(-0.1)
    ),
    # Parameter-free
    "dog that has not moved far is adagrad_norm over the tree": Limit(
        lambda: adaptx.dog(1.0, initial_distance=10.0, eps_root=1e-3),
        lambda: adaptx.adagrad_norm(10.0, eps_root=1e-3, per="tree"),
        held=0.0,
    ),
}


def _rescaled(tx: optax.GradientTransformation, rate: float) -> optax.GradientTransformation:
    """Updates of rate times the parameters' length, in each tensor."""

    def update(g: Any, s: Any, p: Any) -> Any:
        u, s = tx.update(g, s, p)
        length = lambda a: jnp.sqrt(jnp.sum(a**2))
        return jax.tree.map(lambda u, x: rate * u * length(x) / length(u), u, p), s

    return optax.GradientTransformation(tx.init, update)


def _corrected_as_it_goes(rate: float, mu: float, ups: float) -> optax.GradientTransformation:
    """Dozat's code: the decay rates grow from 0, so that the averages need no correction afterwards."""
    at = lambda b, t: b * (1 - b ** (t - 1)) / (1 - b**t)

    def update(g: Any, state: Any, p: Any = None) -> Any:
        t, m, v = state[0] + 1, *state[1:]
        m = jax.tree.map(lambda m, g: at(mu, t) * m + (1 - at(mu, t)) * g, m, g)
        v = jax.tree.map(lambda v, g: at(ups, t) * v + (1 - at(ups, t)) * g**2, v, g)
        ahead = jax.tree.map(lambda m, g: at(mu, t + 1) * m + (1 - at(mu, t)) * g, m, g)
        return jax.tree.map(lambda a, v: -rate * a / jnp.sqrt(v), ahead, v), (t, m, v)

    zero = lambda p: jax.tree.map(jnp.zeros_like, p)
    return optax.GradientTransformation(lambda p: (0.0, zero(p), zero(p)), update)


def _minus(constant: float) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u: u - constant, updates))


def updates_of(tx: Any, grads: list[Any], params: Any, held: bool) -> list[Any]:
    state, updates = tx.init(params), []
    for g in grads:
        u, state = tx.update(g, state, params)
        params = params if held else optax.apply_updates(params, u)
        updates.append(u)
    return updates


def assert_same(left: Any, right: Any) -> None:
    """Norm-wise: the largest difference against the largest update."""
    a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(updates)]) for updates in (left, right))
    assert np.all(np.isfinite(a))
    assert np.max(np.abs(b)) > 0
    assert np.max(np.abs(a - b)) <= 8 * np.finfo(float).eps * np.max(np.abs(b))


def check_limit(limit: Limit) -> None:
    """Both sides give the same updates."""
    rng = np.random.default_rng(7)
    draw = lambda: rng.uniform(0.5, 1.5, limit.shape) * rng.choice([-1.0, 1.0], limit.shape)
    gradient = lambda: np.sign(draw()) if limit.signs else draw()
    with x64():
        params = {key: jnp.asarray(draw() if limit.held is None else np.full(limit.shape, limit.held)) for key in "ab"}
        sizes = np.broadcast_to(limit.sizes, STEPS)
        grads = [{key: jnp.asarray(size * gradient()) for key in "ab"} for size in sizes]
        sides = jax.jit(
            lambda params, grads: [
                updates_of(tx, grads, params, limit.held is not None) for tx in (limit.left(), limit.right())
            ]
        )(params, grads)
    assert_same(*sides)


@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
def test_limit(limit: Limit) -> None:
    check_limit(limit)


# The direction has neither: l1 needs the rate, and lr_decay is part of it.
WITH_DIRECTION = [c for c in CASES if c.entry.direction is not None and not {"l1", "lr_decay"} & {*c.kwargs}]


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.suite] * bool(c.index), id=c.id) for c in WITH_DIRECTION]
)
def test_the_ready_optimizer_is_its_direction_then_the_descent(case: Case) -> None:
    """scale_by_x, then decay, then -rate, as one chains them by hand."""
    own = {"learning_rate", "weight_decay", "mask"}
    default = getattr(inspect.signature(case.factory).parameters.get("weight_decay"), "default", None)
    direction = supplied(case.entry, STAND_INS, case.entry.direction)
    chained = optax.chain(
        direction(**{k: v for k, v in case.kwargs.items() if k not in own}),
        optax.add_decayed_weights(case.kwargs.get("weight_decay", default) or 0.0),
        optax.scale(-case.kwargs["learning_rate"]),
    )
    rng = np.random.default_rng(8)
    with x64():
        params, *grads = [{key: jnp.asarray(rng.normal(size=3)) for key in "ab"} for _ in range(9)]  # RAdam starts late
        sides = jax.jit(lambda p, g: [updates_of(tx, g, p, False) for tx in (case.tx(), chained)])(params, grads)
    assert_same(*sides)
