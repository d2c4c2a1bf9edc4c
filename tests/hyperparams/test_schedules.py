"""Schedules against their formulas, and rates that are defined by the rate before."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptx
from adaptx.hyperparams import (
    get_hyperparams,
    inject_hyperparams,
    inverse_sqrt,
    recurrent,
    set_hyperparams,
    warmup_stable_decay,
)

X = {"w": jnp.ones(2)}
FALL = {"linear": lambda x: 1 - x, "cosine": lambda x: (1 + np.cos(np.pi * x)) / 2, "sqrt": lambda x: 1 - np.sqrt(x)}


@pytest.mark.parametrize("shape", FALL)
@pytest.mark.parametrize("parts", [(4, 3, 5), (0, 3, 5), (4, 0, 5), (4, 3, 0), (0, 0, 0)])
def test_warmup_stable_decay(shape: str, parts: tuple[int, int, int]) -> None:
    warmup, stable, decay = parts
    schedule = warmup_stable_decay(0.8, *parts, init=0.2, end=0.1, shape=shape)

    def expected(t: int) -> float:
        if t < warmup:
            return 0.2 + 0.6 * t / warmup
        if t < warmup + stable:
            return 0.8
        if t < warmup + stable + decay:
            return 0.1 + 0.7 * FALL[shape]((t - warmup - stable) / decay)
        return 0.1

    got = jax.jit(jax.vmap(schedule))(jnp.arange(16))
    np.testing.assert_allclose(got, [expected(t) for t in range(16)], rtol=2e-6)
    np.testing.assert_allclose([schedule(t) for t in (0, 7)], [got[0], got[7]], rtol=1e-6)


def test_inverse_sqrt_is_the_papers() -> None:
    """d^-0.5 min(t^-0.5, t w^-1.5), with steps from 1."""
    d, w = 64, 5
    got = jax.vmap(inverse_sqrt(1 / np.sqrt(d * w), w))(jnp.arange(20))
    t = np.arange(1, 21)
    np.testing.assert_allclose(got, d**-0.5 * np.minimum(t**-0.5, t * w**-1.5), rtol=1e-6)
    assert int(np.argmax(got)) == w - 1


def test_schedules_take_tracers_and_go_into_optimizers() -> None:
    rate = jax.jit(lambda peak: warmup_stable_decay(peak, 2, 2, 2)(1) + inverse_sqrt(peak, 4)(0))(0.4)
    np.testing.assert_allclose(rate, 0.3, rtol=1e-6)
    for tx in (adaptx.adam(inverse_sqrt(0.1, 3)), optax.adam(warmup_stable_decay(0.1, 1, 2, 3))):
        updates, state = tx.update(X, tx.init(X), X)
    updates, _ = tx.update(X, state, X)
    np.testing.assert_allclose(updates["w"], -0.1, rtol=2e-5)  # a second step of Adam in float32


def _rates(tx: Any, state: Any, steps: int) -> tuple[list[float], list[float], Any]:
    """The rates in the state, and those that the updates of SGD-like steps show."""
    kept, taken = [], []
    for _ in range(steps):
        updates, state = jax.jit(tx.update)(X, state, X)
        kept.append(float(get_hyperparams(state)["learning_rate"]))
        taken.append(-float(updates["w"][0]))
    return kept, taken, state


def test_a_recurrent_rate() -> None:
    """Each rate from the one before and the step; it is the rate that is used; a set value stops it; a scan agrees."""
    tx = inject_hyperparams(adaptx.adam)(recurrent(lambda rate, t: rate / (1 + t), 0.6), b1=0.0, b2=0.0)
    state = tx.init(X)
    assert float(get_hyperparams(state)["learning_rate"]) == np.float32(0.6)
    kept, taken, state = _rates(tx, state, 4)
    np.testing.assert_allclose(kept, [0.6, 0.3, 0.1, 0.025], rtol=1e-6)
    np.testing.assert_allclose(taken, kept, rtol=1e-6)
    scanned, _ = jax.lax.scan(lambda s, _: (tx.update(X, s, X)[1], None), tx.init(X), length=4)
    np.testing.assert_allclose(get_hyperparams(scanned)["learning_rate"], kept[-1], rtol=1e-6)
    with pytest.raises(ValueError, match="learning_rate is scheduled"):
        set_hyperparams(state, learning_rate=1.0)
    state = set_hyperparams(state, learning_rate=0.5, override=True)
    assert _rates(tx, state, 2)[0] == [0.5, 0.5]


def test_a_skipped_step_does_not_advance_the_rate() -> None:
    """apply_if_finite keeps the old state, and with it count and rate."""
    tx = optax.apply_if_finite(inject_hyperparams(adaptx.adam)(recurrent(lambda rate, t: rate / 2, 0.8)), 5)
    state = tx.init(X)
    for grads in (X, {"w": jnp.full(2, jnp.nan)}, X):
        _, state = tx.update(grads, state, X)
    np.testing.assert_allclose(get_hyperparams(state)["learning_rate"], 0.4)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: warmup_stable_decay(-1.0, 1, 1, 1), "warmup_stable_decay: peak must be a number >= 0, got -1.0"),
        (lambda: warmup_stable_decay(0.1, 1, 1, 1, end="x"), "warmup_stable_decay: end must be a number >= 0, got 'x'"),
        (lambda: warmup_stable_decay(0.1, 1.5, 1, 1), "warmup_stable_decay: warmup_steps must be an int >= 0, got 1.5"),
        (lambda: warmup_stable_decay(0.1, 1, -1, 1), "warmup_stable_decay: stable_steps must be an int >= 0, got -1"),
        (
            lambda: warmup_stable_decay(0.1, 1, 1, True),
            "warmup_stable_decay: decay_steps must be an int >= 0, got True",
        ),
        (lambda: warmup_stable_decay(0.1, 1, 1, 1, shape="exp"), "shape must be linear, cosine, sqrt, got 'exp'"),
        (lambda: inverse_sqrt(0.1, 0), "inverse_sqrt: warmup_steps must be an int >= 1, got 0"),
        (lambda: inverse_sqrt(float("nan"), 1), "inverse_sqrt: peak must be a number >= 0, got nan"),
        (lambda: recurrent(0.1, 0.1), "recurrent: f must be a function of the rate before and the step, got 0.1"),
        (lambda: recurrent(lambda r, t: r, -0.1), "recurrent: init must be a number >= 0, got -0.1"),
        (lambda: recurrent(lambda r, t: r, 0.1)(3), "recurrent: the rate needs the one before it, which only"),
        (lambda: adaptx.adam(recurrent(lambda r, t: r, 0.1)).update(X, adaptx.adam(0.1).init(X)), "only `inject_hyper"),
        (
            lambda: warmup_stable_decay(0.1, 1, 1, 1, shape=["linear"]),
            "shape must be linear, cosine, sqrt, got ['linear']",
        ),
    ],
    ids=range(13),
)
def test_what_is_out_of_range_is_refused_in_one_line(make: Any, line: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(line)) as refusal:
        make()
    assert "\n" not in str(refusal.value)


def test_derivatives_through_a_recurrence() -> None:
    """Of a rate that divides by t, which f would be asked for at t = 0."""

    def end(first: Any) -> Any:
        tx = inject_hyperparams(adaptx.adam)(recurrent(lambda rate, t: rate / t, first), b1=0.0, b2=0.0)
        state = tx.init(X)
        for _ in range(3):
            updates, state = tx.update(X, state, X)
        return updates["w"][0]

    np.testing.assert_allclose(jax.jit(jax.value_and_grad(end))(0.4), (-0.2, -0.5), rtol=1e-5)


@pytest.mark.parametrize("value", [jnp.ones(2), None, True, [0.1]])
def test_a_recurrence_gives_one_number(value: Any) -> None:
    tx = inject_hyperparams(adaptx.adam)(recurrent(lambda rate, t: value, 0.1))
    with pytest.raises(ValueError, match="recurrent: f must give one real number, got "):
        tx.update(X, tx.init(X), X)
