"""Optax beside AdaGrad's line and Rprop, in float64: equal where Optax is right, elsewhere how it differs."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import adaptx
from tests.conftest import x64
from tests.identities.test_limits import updates_of


def _both(ours: Any, theirs: Any, positive: bool = False) -> tuple[Any, Any]:
    """Ten updates of each, on a matrix and a vector."""
    rng = np.random.default_rng(0)
    draw = lambda: {k: jnp.asarray(rng.normal(size=shape)) for k, shape in (("b", (3,)), ("w", (4, 3)))}
    with x64():
        x, *grads = (draw() for _ in range(11))
        if positive:
            grads = [{k: abs(g) for k, g in tree.items()} for tree in grads]
        results = [updates_of(tx, grads, x, False) for tx in (ours, theirs)]
    flat = lambda updates: np.array([np.concatenate([np.ravel(u[k]) for k in "bw"]) for u in updates])
    return flat(results[0]), flat(results[1])


def test_sm3() -> None:
    """Optax's eps is under the root."""
    np.testing.assert_allclose(*_both(adaptx.sm3(0.1, 0.8, eps_root=1e-8), optax.sm3(0.1, 0.8)), rtol=1e-12)


@pytest.mark.skipif(not hasattr(optax.contrib, "madgrad"), reason="Optax 0.2.6 has no MADGRAD")
def test_madgrad() -> None:
    """Optax adds eps to the rate, as the authors' code does and the paper does not; its weights are float32 numbers."""
    ours = adaptx.madgrad(0.1 + 1e-3, 0.8, eps=1e-3)
    np.testing.assert_allclose(*_both(ours, optax.contrib.madgrad(0.1, 0.8, eps=1e-3)), rtol=1e-6, atol=1e-7)


def test_rprop() -> None:
    """Optax's first update is 0 and each other one is the step before's, while no gradient turns."""
    ours, theirs = _both(adaptx.rprop(0.1), optax.rprop(0.1), positive=True)
    assert not theirs[0].any()
    np.testing.assert_allclose(ours[:-1], theirs[1:], rtol=1e-12)
