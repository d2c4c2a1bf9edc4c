"""The range test: a ramp, a smooth mean, an end where it diverges, and a rate that trains."""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np
import optax
import pytest

import adaptx
from adaptx import tune
from adaptx.hyperparams import get_hyperparams
from tests.tune.problem import BATCHES, Training, fresh


def ramped(training: Training, **changed: Any) -> tune.RangeTest:
    given = dict(batches=BATCHES, progress=False) | changed
    return tune.lr_range_test(training.make_state, training.train_step, **given)


@pytest.mark.parametrize(
    "factory",
    [
        adaptx.adam,
        optax.sgd,
        lambda learning_rate: optax.chain(optax.clip(1.0), optax.adam(learning_rate)),
    ],
)
def test_the_curve_is_that_of_a_scheduled_run(factory: Any) -> None:
    """The rate of step i is low (high / low)^(i / (steps - 1)): the run of that schedule, from one trace."""
    training = Training(factory)
    test = ramped(training, low=1e-4, high=0.1, steps=20, smoothing=0.8, stop=np.inf)
    assert training.traced == 1
    ramp = lambda count: 1e-4 * 1e3 ** (count / 19)
    np.testing.assert_allclose(test.rates, ramp(np.arange(20)), rtol=1e-12)
    np.testing.assert_allclose(test.losses, fresh(factory(ramp), [BATCHES[i % 6] for i in range(20)]), rtol=2e-5)
    mean = 0.0
    for i, loss in enumerate(test.losses):
        mean = 0.8 * mean + 0.2 * loss
        assert test.smoothed[i] == pytest.approx(mean / (1 - 0.8 ** (i + 1)), rel=1e-12)
    assert test.stopped == "to the end"


def test_it_stops_where_the_loss_explodes_and_suggests_less() -> None:
    whole = [tuple(np.concatenate(part) for part in zip(*BATCHES, strict=True))]
    test = ramped(Training(optax.sgd), batches=whole, low=1e-4, high=1e3, steps=100)
    assert len(test.rates) < 100
    assert re.fullmatch(r"where the loss had risen from [\d.]+ to [\d.]+", test.stopped)
    assert test.smoothed[-1] > 4 * test.smoothed.min() >= 0
    assert (test.smoothed[10:-1] <= 4 * np.minimum.accumulate(test.smoothed)[10:-1]).all()
    assert test.suggestion is not None
    assert test.suggestion < test.lowest < test.rates[-1]
    # The suggested rate trains: on noiseless data the loss falls to a part of the first.
    losses = fresh(optax.sgd(test.suggestion), whole * 100)
    assert losses[-1] < 0.1 * losses[0]
    assert f"suggested learning_rate {test.suggestion:.3g}; smallest loss at" in str(test)


def test_it_stops_at_once_where_the_loss_is_not_finite() -> None:
    test = ramped(Training(optax.sgd), low=1e20, high=1e30, steps=10, stop=np.inf)
    assert test.stopped in ("where the loss was inf", "where the loss was nan")
    assert not np.isfinite(test.losses[-1])
    assert np.isfinite(test.losses[:-1]).all()
    assert test.suggestion is None
    assert "suggested learning_rate none: the loss falls no further than by chance" in str(test)


def test_a_schedule_is_put_aside_and_the_state_of_the_caller_is_not_touched() -> None:
    training = Training(adaptx.adam, optax.constant_schedule(0.5))
    first = training.make_state()
    training.make_state = lambda: first
    test = ramped(training, low=1e-4, high=0.1, steps=5)
    np.testing.assert_allclose(test.losses, ramped(Training(), low=1e-4, high=0.1, steps=5).losses, rtol=1e-6)
    assert float(get_hyperparams(first)["learning_rate"]) == 0.5
    jax.block_until_ready(first)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("offset", [0.0, -5.0])
def test_noise_is_no_fall(seed: int, offset: float) -> None:
    """Small batches, whose losses differ by a third: the rate trains all the same, and noise alone suggests none."""
    x = np.random.default_rng(seed).normal(size=(20, 32, 3)).astype(np.float32)
    batches = [(b, b.sum(1)) for b in x]
    training = Training(adaptx.adam)
    step = training.train_step
    moved = lambda state, batch: (step(state, batch)[0], step(state, batch)[1] + offset)
    test = tune.lr_range_test(training.make_state, moved, batches, progress=False)
    assert test.suggestion is not None
    assert 0.003 < test.suggestion < 0.3
    assert len(test.rates) > 100
    losses = fresh(adaptx.adam(test.suggestion), batches * 20)
    assert losses[-1] < 0.05 * losses[0]
    still = lambda state, batch: (state, step(state, batch)[1])
    assert tune.lr_range_test(training.make_state, still, batches, progress=False).suggestion is None


def test_losses_below_zero_end_it_too() -> None:
    training = Training(optax.sgd)
    step = training.train_step
    moved = lambda state, batch: (step(state, batch)[0], step(state, batch)[1] - 50)
    test = tune.lr_range_test(training.make_state, moved, BATCHES, low=1e-3, high=1e3, steps=60, progress=False)
    assert "had risen from -" in test.stopped
    assert np.isfinite(test.losses).all()


def test_batches_that_are_not_alike_do_not_end_it_at_once() -> None:
    """Of losses 1, 10, 1, 1, ... the second mean is 5.7 times the first."""
    train_step = lambda state, batch: (state, batch + 0 * state[0]["b"])
    training = Training()
    test = tune.lr_range_test(
        training.make_state, train_step, np.float32([1, 10] + [1] * 38), steps=40, low=1e-3, high=1, progress=False
    )
    assert len(test.rates) == 40


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (dict(low=0), "lr_range_test: low and high must be numbers, 0 < low < high, got 0 and 10.0"),
        (dict(high=np.nan), "lr_range_test: low and high must be numbers, 0 < low < high, got 1e-06 and nan"),
        (dict(steps=2), "lr_range_test: steps must be an int >= 3, got 2"),
        (dict(smoothing=1.0), "lr_range_test: smoothing must be in [0, 1), got 1.0"),
        (dict(stop=1), "lr_range_test: stop must be > 1, got 1"),
        (dict(name="rate"), "lr_range_test: rate is not there; there are b1, b2, eps, eps_root, learning_rate"),
        (
            dict(train_step=lambda s, b: s),
            "lr_range_test: train_step must return (state, loss), the loss one",
        ),
        (dict(train_step=3), "lr_range_test: train_step must be a function, got 3"),
        (dict(make_state=lambda rate: 0), "lr_range_test: make_state must need no arguments, and needs rate"),
        (dict(make_state=lambda: "text"), "lr_range_test: make_state must return a tree of arrays, got 'text'"),
        (dict(batches=[]), "lr_range_test: there are no batches"),
        (dict(batches=[(x * np.nan, y) for x, y in BATCHES]), "lr_range_test: the first loss is nan: look at the data"),
    ],
)
def test_bad_input_is_one_line(changed: dict[str, Any], text: str) -> None:
    training = Training()
    given = dict(make_state=training.make_state, train_step=training.train_step, batches=BATCHES, progress=False)
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape(text)}") as error:
        tune.lr_range_test(**given | changed)
    assert "\n" not in str(error.value)
