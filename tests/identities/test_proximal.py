"""The proximal step of l1: weights that are exactly zero, and the minimum that the theory names."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptx
from tests.equations.references import replay

STEPS = 12


def _drawn(dtype: Any, size: int = 64) -> tuple[jax.Array, jax.Array]:
    """Small weights, so that many reach the threshold from either side, and gradients of several sizes."""
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(0, 0.1, size), jnp.float32), jnp.asarray(rng.normal(0, 0.3, (STEPS, size)), dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("extra", [{}, dict(momentum=0.5, weight_decay=0.1)], ids=["plain", "all"])
def test_weights_become_exactly_zero(dtype: str, extra: dict[str, Any]) -> None:
    """float32 weights, float32 or bfloat16 gradients: zero exactly where the paper's iterates are."""
    arguments = dict(learning_rate=0.1, initial_accumulator=1.0, l1=0.3, **extra)
    x, grads = _drawn(dtype)
    tx = adaptx.adagrad(**arguments)

    def step(carry: Any, g: Any) -> Any:
        x, state = carry
        u, state = tx.update(g, state, x)
        return (optax.apply_updates(x, u), state), (x, u)

    (last, _), (before, updates) = jax.lax.scan(step, (x, tx.init(x)), grads)
    iterates = [np.asarray(a, float) for a in (*before, last)]
    steps = replay("adagrad", iterates[0], [np.asarray(g, float) for g in grads], arguments, iterates[:STEPS])

    cut = 0
    for t, (expected, _) in enumerate(steps):
        ends = np.abs(iterates[t] + expected)
        zero, far = ends == 0, ends > 1e-6  # between them the threshold is a matter of rounding
        assert np.all(iterates[t + 1][zero] == 0), f"step {t + 1}: a weight that is cut is not exactly zero"
        assert np.all(iterates[t + 1][far] != 0), f"step {t + 1}: a weight that is not cut is zero"
        np.testing.assert_allclose(np.asarray(updates[t], float), expected, rtol=0, atol=1e-6)
        cut += int(np.sum(zero & (iterates[t] != 0)))
    assert cut > 10  # otherwise nothing was tested


def test_the_minimum_of_a_lasso() -> None:
    """(x - a)^2 / 2 + l1 |x| is smallest at sign(a) max(|a| - l1, 0), and the iteration ends there."""
    a, l1 = jnp.array([-2.0, -0.5, 0.0, 0.3, 0.9, 3.0]), 0.7
    tx = adaptx.adagrad(0.5, l1=l1, initial_accumulator=1e-3)

    def step(carry: Any, _: Any) -> Any:
        x, state = carry
        u, state = tx.update(x - a, state, x)
        return (x + u, state), None

    x = jnp.full_like(a, 0.1)
    (x, _), _ = jax.lax.scan(step, (x, tx.init(x)), length=4000)
    expected = np.sign(a) * np.maximum(np.abs(a) - l1, 0)
    np.testing.assert_allclose(x, expected, atol=1e-5)
    assert np.array_equal(x == 0, expected == 0)
