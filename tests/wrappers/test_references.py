"""Every wrapper equals its paper: float64 trajectories on a noisy quadratic, against loops in NumPy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptx
from tests.conftest import x64
from tests.wrappers import references as ref

STEPS = 10
EXACT = 1e-12
START = {"b": np.array([0.7, -1.2]), "w": np.array([[1.0, -0.5], [0.3, 2.0], [-1.5, 0.8]])}
_noise = np.random.default_rng(0).normal(size=(STEPS + 1, 8))


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with x64():
        yield


def grads(t: Any, x: Any) -> Any:
    """The gradient of batch t at x: of a quadratic about a random point. For NumPy and, with another module, JAX."""
    return {k: 3 * x[k] + n for k, n in zip("bw", (_noise[t, :2], _noise[t, 2:].reshape(3, 2)), strict=True)}


def trained(tx: Any, exact: bool = False) -> Iterator[tuple[Any, Any]]:
    """Parameters and state after each step."""
    params = before = {k: jnp.asarray(v) for k, v in START.items()}
    state, update = tx.init(params), jax.jit(tx.update)
    for t in range(1, STEPS + 1):
        extra = {"previous_grads": grads(t, before)} if exact else {}
        updates, state = update(grads(t, params), state, params, **extra)
        before, params = params, optax.apply_updates(params, updates)
        yield params, state


def assert_same(got: Any, expected: Any) -> None:
    for k in expected:
        np.testing.assert_allclose(np.asarray(got[k]), expected[k], rtol=EXACT, atol=EXACT)


def warm(count: Any) -> Any:
    """A warm-up from 0, then a fall: the largest rate so far is not the newest."""
    count = jnp.asarray(count, float)  # an int32 would make a float32 of it
    return 0.06 * (count / 3 * (count < 3) + (count >= 3) * (1 - count / 40))


@pytest.mark.parametrize("b1", [0.9, 0.0])
@pytest.mark.parametrize("keep_average", [True, None])
def test_schedule_free(b1: float, keep_average: bool | None) -> None:
    inner = adaptx.adamw(warm, b1=0.0, b2=0.9, eps=1e-3, weight_decay=0.1)
    tx = adaptx.schedule_free(inner, warm, b1, 1.5, step_power=0.7, keep_average=keep_average)
    numpy_inner = ref.AdamW(warm, 0.0, 0.9, 1e-3, 0.1)
    expected = ref.schedule_free(START, grads, numpy_inner, warm, b1, 1.5, 0.7)
    for (params, state), (y, x) in zip(trained(tx), expected, strict=False):
        assert_same(params, y)
        assert_same(adaptx.schedule_free_eval_params(state, params), x)


RATES = {"sgd": 0.05, "adamw": warm, "radam": ref.rectified(0.05, 0.95)}


@pytest.mark.parametrize("name", RATES)
def test_schedule_free_is_that_of_its_authors(name: str) -> None:
    """With decay, which is taken at y; their RAdam as Adam with the rectified rate as a schedule."""
    rate, b2, eps, decay = RATES[name], 0.95, 1e-4, 0.1
    if name == "sgd":
        inner = adaptx.with_weight_decay(optax.sgd(rate), decay, kind="l2")
    else:
        inner = adaptx.adamw(rate, b1=0.0, b2=b2, eps=eps, weight_decay=decay)
    expected = ref.authors_schedule_free(START, grads, rate, 0.9, None if name == "sgd" else b2, eps, decay)
    for (params, state), (y, x) in zip(trained(adaptx.schedule_free(inner, rate)), expected, strict=False):
        assert_same(params, y)
        assert_same(adaptx.schedule_free_eval_params(state, params), x)


def test_schedule_free_is_optaxs_at_a_constant_rate() -> None:
    ours = trained(adaptx.schedule_free(optax.sgd(0.05), 0.05))
    theirs = trained(optax.contrib.schedule_free(optax.sgd(0.05), 0.05))
    for (params, state), (y, other) in zip(ours, theirs, strict=True):
        assert_same(params, y)
        x = optax.contrib.schedule_free_eval_params(other, y)
        assert_same(adaptx.schedule_free_eval_params(state, params), x)


@pytest.mark.parametrize("min_mean", [1e-3, 0.7])
def test_cautious(min_mean: float) -> None:
    tx = adaptx.cautious(optax.sgd(0.1, momentum=0.9), min_mean)
    expected = ref.cautious(START, grads, ref.sgd(0.1, 0.9), min_mean)
    for (params, _), x in zip(trained(tx), expected, strict=False):
        assert_same(params, x)


@pytest.mark.parametrize("kind", ["decoupled", "l2", "independent", "stable", "cautious"])
def test_with_weight_decay(kind: str) -> None:
    """Both numbers are schedules, and a mask leaves one tensor out."""
    decay = lambda count: 0.3 / (1 + jnp.asarray(count, float))
    given = {} if kind in ("l2", "independent") else {"learning_rate": warm}
    given |= {"b2": 0.9} if kind == "stable" else {}
    tx = adaptx.adam(warm, b1=0.8, b2=0.9, eps=1e-3)
    tx = adaptx.with_weight_decay(tx, decay, kind=kind, mask={"b": False, "w": True}, **given)
    inner = ref.AdamW(warm, 0.8, 0.9, 1e-3)
    expected = ref.weight_decay(START, grads, inner, kind, decay, warm, {"b": False, "w": True}, 0.9)
    for (params, _), x in zip(trained(tx), expected, strict=False):
        assert_same(params, x)


@pytest.mark.parametrize("exact", [False, True], ids=["approx", "exact"])
def test_mars(exact: bool) -> None:
    """Some gradients are within the norm and some are not."""
    tx = adaptx.mars(adaptx.adam(0.1, b1=0.95, b2=0.99), 0.95, 0.03, 6.0, exact=exact)
    expected = ref.mars(START, grads, ref.AdamW(0.1, 0.95, 0.99), 0.95, 0.03, 6.0, exact)
    for (params, _), x in zip(trained(tx, exact), expected, strict=False):
        assert_same(params, x)


def test_update_clipping() -> None:
    rate = lambda count: 0.1 / (1 + jnp.asarray(count, float))
    bound = 2.5
    tx = optax.chain(optax.sgd(rate), adaptx.update_clipping(bound, rate))
    expected = ref.update_clipping(START, grads, ref.sgd(rate), bound, rate)
    for (params, _), x in zip(trained(tx), expected, strict=False):
        assert_same(params, x)


def test_graft() -> None:
    tx = adaptx.graft(optax.sgd(0.05, momentum=0.9), adaptx.adam(1.0))
    expected = ref.graft(START, grads, ref.sgd(0.05, 0.9), ref.AdamW(1.0))
    for (params, _), x in zip(trained(tx), expected, strict=False):
        assert_same(params, x)


def test_the_references_bite() -> None:
    """In these runs masks mask, norms clip some of the time, and the warm-up matters."""
    runs = {
        "mask": (ref.cautious(START, grads, ref.sgd(0.1, 0.9)), ref.cautious(START, grads, ref.sgd(0.1, 0.9), 1.0)),
        "norm": tuple(ref.mars(START, grads, ref.AdamW(0.1), 0.95, 0.03, clip) for clip in (6.0, 1e9)),
        "correction": tuple(ref.mars(START, grads, ref.AdamW(0.1), 0.95, gamma, 6.0) for gamma in (0.03, 0.0)),
        "clip": tuple(ref.update_clipping(START, grads, ref.sgd(0.1), b, 0.1) for b in (2.5, 1e9)),
    }
    for name, (a, b) in runs.items():
        *_, last_a = itertools.islice(a, STEPS)
        *_, last_b = itertools.islice(b, STEPS)
        assert max(np.max(np.abs(last_a[k] - last_b[k])) for k in last_a) > 1e-3, name
