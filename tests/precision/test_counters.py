"""Counts of long runs: the noise of rounding is NumPy's hash at 30 million steps too. Bias corrections are law E6, in
tests/core/test_moments.py."""

from __future__ import annotations

import zlib

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptx
from adaptx import precision
from adaptx.core.rounding import noise, salted
from adaptx.precision.kahan import KahanState
from adaptx.precision.stochastic_rounding import StochasticRoundingState

LATE = (0, 1, 2**24 - 1, 2**24 + 1, 30_000_000, 30_000_001, 2**31 - 2)


def mixed(x: int) -> int:
    """lowbias32, in Python's integers."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) % 2**32
    x = ((x ^ (x >> 15)) * 0x846CA68B) % 2**32
    return x ^ (x >> 16)


@pytest.mark.parametrize("count", LATE)
def test_the_noise_is_the_hash(count: int) -> None:
    salt = mixed(mixed(mixed(7) ^ count) ^ zlib.crc32(b"['w']"))
    expected = np.array([mixed((position * 0x9E3779B9 + salt) % 2**32) for position in range(10)], np.uint32)
    found = noise((2, 5), salted(7, jnp.int32(count), "['w']"))
    assert found.dtype == jnp.uint32
    np.testing.assert_array_equal(found, expected.reshape(2, 5))
    np.testing.assert_array_equal(noise((1, 5), salted(7, jnp.int32(count), "['w']"), 5), found[1:])


@pytest.mark.parametrize("count", LATE)
def test_each_step_draws_anew(count: int) -> None:
    """As a float32 a count would stop at 2^24, and its noise with it."""
    tx = precision.stochastic_rounding(7)
    params, updates = {"w": jnp.ones(4096, jnp.bfloat16)}, {"w": jnp.full(4096, 1e-3, jnp.float32)}
    state = StochasticRoundingState(jnp.int32(count))
    first, state = tx.update(updates, state, params)
    assert state.steps == count + 1
    second, state = tx.update(updates, state, params)
    assert state.steps == min(count + 2, 2**31 - 1)
    if count < 2**31 - 2:
        assert np.any(first["w"] != second["w"])
    for u in (first, second):
        # 1/8 of the way to the next number: its share of 4,096 draws, to five standard deviations.
        assert abs(np.mean(np.asarray(u["w"]) > 0) - 0.128) < 5 * np.sqrt(0.128 * 0.872 / 4096)


def test_a_late_step_is_taken_in_full() -> None:
    """Kahan after 30 million steps of Adam, where biases are 1."""
    adam = adaptx.adam(1e-2)
    params, g = {"w": jnp.full(8, 2.0, jnp.bfloat16)}, {"w": jnp.ones(8, jnp.bfloat16)}
    tx = optax.chain(adam, precision.kahan())
    state = tx.init(params)
    late = (state[0]._replace(count=jnp.int32(30_000_000), mu={"w": jnp.ones(8)}, nu={"w": jnp.ones(8)}), state[1])
    assert isinstance(late[1], KahanState)
    for _ in range(4):
        updates, late = tx.update(g, late, params)
        params = optax.apply_updates(params, updates)
    # Four steps of 0.01 from 2, where bfloat16's numbers are 1/64 apart below: 1.96 is between two of them.
    np.testing.assert_allclose(np.asarray(params["w"], float), 1.96, atol=2**-8)
    assert late[0].count == 30_000_004
