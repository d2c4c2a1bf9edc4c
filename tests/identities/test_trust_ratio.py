"""LAMB's trust ratio where a norm is zero."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptx.optimizers.trust_ratio.lamb import trust_ratio


@pytest.mark.parametrize("size", [0.0, 2.0])
@pytest.mark.parametrize("length", [0.0, 3.0])
@pytest.mark.parametrize("differentiate", [jax.jacfwd, jax.jacrev])
def test_value_and_derivatives(size: float, length: float, differentiate: object) -> None:
    x, u = size * jnp.array([0.6, 0.8]), length * jnp.array([0.0, 1.0])
    ratio = size / length if size and length else 1
    np.testing.assert_allclose(trust_ratio(u, x), ratio * u, rtol=1e-6)
    by_u, by_x = differentiate(trust_ratio, (0, 1))(u, x)  # type: ignore[operator]
    assert np.all(np.isfinite(by_u))
    assert np.all(np.isfinite(by_x))
    if not size or not length:
        np.testing.assert_array_equal(by_u, np.eye(2))  # u itself
