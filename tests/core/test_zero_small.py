"""zero_small: which entries it drops, and what it leaves alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptx


def dropped(g: object, threshold: object) -> object:
    tx = adaptx.zero_small(threshold)
    return tx.update(g, tx.init(g))[0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_entries_up_to_the_threshold_become_zero(dtype: str) -> None:
    g = jnp.asarray([0.5, -0.5, 0.25, -0.75, 0.0], dtype)
    u = dropped(g, 0.5)
    assert u.dtype == dtype
    np.testing.assert_array_equal(np.asarray(u, float), [0, 0, 0, -0.75, 0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("threshold", [0.0, 1.0, 1e5])
def test_nan_and_inf_pass(dtype: str, threshold: float) -> None:
    """Also where the threshold is beyond the dtype's range."""
    g = jnp.asarray([jnp.nan, jnp.inf, -jnp.inf], dtype)
    np.testing.assert_array_equal(np.asarray(dropped(g, threshold), float), [np.nan, np.inf, -np.inf])


def test_the_modulus_of_complex_entries_counts() -> None:
    np.testing.assert_array_equal(dropped(jnp.array([0.6 + 0.6j, 0.6 + 0.1j]), 0.7), jnp.array([0.6 + 0.6j, 0]))


def test_a_threshold_of_zero_changes_nothing() -> None:
    g = jnp.array([1e-30, -1e-37, 0.0])
    np.testing.assert_array_equal(dropped(g, 0.0), g)


def test_trees_with_none_and_empty_leaves() -> None:
    g = {"a": jnp.ones(2), "b": None, "c": jnp.zeros((3, 0)), "d": ()}
    u = dropped(g, 0.5)
    assert jax.tree.structure(u) == jax.tree.structure(g)
    assert u["b"] is None


@pytest.mark.parametrize("bad", [-1e-3, float("nan"), "0.1", None])
def test_a_threshold_out_of_range_is_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="zero_small: threshold must be >= 0"):
        adaptx.zero_small(bad)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_traced_threshold(dtype: str) -> None:
    g = jnp.asarray([0.25, 2.0], dtype)
    u = jax.jit(dropped)(g, jnp.float32(1))
    assert u.dtype == dtype
    np.testing.assert_array_equal(np.asarray(u, float), [0, 2])


def test_in_a_chain_the_rule_sees_zeros() -> None:
    params, g = jnp.ones(2), jnp.array([1e-3, 1.0])
    tx = optax.chain(adaptx.zero_small(1e-2), adaptx.adagrad(0.1))
    u, state = tx.update(g, tx.init(params), params)
    np.testing.assert_allclose(u, [0, -0.1], rtol=1e-6)
    np.testing.assert_array_equal(state[1].nu, [0, 1])
