"""Combinators: grafting and momentum against the equations, over rules that are tested elsewhere."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptx
from adaptx.core.combinators import graft, with_momentum
from adaptx.core.lift import lift
from adaptx.optimizers.adagrad.adagrad import adagrad_rule
from adaptx.optimizers.adam.adam import AdamState, adam_rule
from adaptx.optimizers.adam.nadam import nadam_rule
from adaptx.optimizers.parameter_free.dog import dog_rule
from tests.conformance.cases import grads_like, params_like
from tests.conftest import x64

STEPS = 5


def run(tx: Any, params: Any, grads: Any) -> tuple[Any, Any]:
    """The updates of STEPS steps at held parameters, stacked, and the last state."""

    def body(state: Any, g: Any) -> Any:
        updates, state = tx.update(g, state, params)
        return state, updates

    state, updates = jax.jit(lambda s: jax.lax.scan(body, s, grads))(tx.init(params))
    return updates, state


def adam() -> Any:
    return adam_rule(0.9, 0.99, 1e-8, 0.0)


def adagrad() -> Any:
    return adagrad_rule(0.0, 1e-10, 0.0)


def test_graft_has_one_direction_and_the_other_length() -> None:
    with x64():
        params, grads = params_like("float64"), grads_like(STEPS, "float64")
        got, state = run(lift("grafted", graft(adagrad(), adam())), params, grads)
        lengths, of_adagrad = run(adaptx.scale_by_adagrad(), params, grads)
        directions, of_adam = run(adaptx.scale_by_adam(b2=0.99), params, grads)
    for u, m, d in zip(*map(jax.tree.leaves, (got, lengths, directions)), strict=True):
        for u_t, m_t, d_t in zip(*map(np.asarray, (u, m, d)), strict=True):
            np.testing.assert_allclose(u_t, d_t * np.linalg.norm(m_t) / np.linalg.norm(d_t), rtol=1e-12)
    assert state._fields[:3] == ("count", "magnitude_nu", "magnitude_trace")
    assert state._fields[3:] == ("direction_mu", "direction_nu", "direction_nu_max")
    for ours, theirs in ((state.magnitude_nu, of_adagrad.nu), (state.direction_mu, of_adam.mu)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14), ours, theirs)


def test_grafting_a_rule_onto_itself_changes_nothing() -> None:
    params, grads = params_like(), grads_like(STEPS)
    got, expected = run(lift("twice", graft(adam(), adam())), params, grads), run(lift("once", adam()), params, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got[0], expected[0])


def test_a_state_fits_every_graft_of_the_same_two() -> None:
    first, second = lift("grafted", graft(adagrad(), adam())), lift("grafted", graft(adagrad(), adam()))
    params = params_like()
    second.update(params, first.init(params), params)


def test_graft_of_zero_gradients_stays() -> None:
    params = params_like(jnp.float16)
    updates, _ = run(lift("grafted", graft(adagrad(), adam())), params, jax.tree.map(jnp.zeros_like, grads_like(STEPS)))
    assert not any(np.any(u) for u in jax.tree.leaves(updates))


@pytest.mark.parametrize("rule", [dog_rule(1e-6, 0.0, 1e-8), nadam_rule(0.9, 0.999, 1e-8, 0.0, None)])
def test_graft_refuses_what_looks_beyond_its_tensor(rule: Any) -> None:
    with pytest.raises(TypeError, match=r"^graft: the magnitude must be a rule that leaves the rate out and keeps"):
        graft(rule, adam())
    with pytest.raises(TypeError, match=r"^graft: the direction must be"):
        graft(adam(), rule)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_is_the_heavy_ball(nesterov: bool) -> None:
    with x64():
        params, grads = params_like("float64"), grads_like(STEPS, "float64")
        got, state = run(adaptx.scale_by_momentum(0.8, nesterov), params, grads)
    for u, g, trace in zip(*map(jax.tree.leaves, (got, grads, state.trace)), strict=True):
        b = 0
        for u_t, g_t in zip(np.asarray(u), np.asarray(g), strict=True):
            b = 0.8 * b + g_t
            np.testing.assert_allclose(u_t, g_t + 0.8 * b if nesterov else b, rtol=1e-14)
        np.testing.assert_allclose(trace, b, rtol=1e-14)


def test_momentum_in_a_chain_is_the_optimizers_own() -> None:
    params, grads = params_like(), grads_like(STEPS)
    chained = optax.chain(adaptx.scale_by_adagrad(), adaptx.scale_by_momentum(0.9, True), optax.scale(-0.1))
    ours = run(adaptx.adagrad(0.1, momentum=0.9, nesterov=True), params, grads)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), run(chained, params, grads)[0], ours)


def test_momentum_needs_a_place_in_the_state() -> None:
    assert with_momentum(adagrad(), None).slots["trace"] is None
    assert "trace" not in AdamState._fields
    with pytest.raises(TypeError, match="trace"):
        lift("adam with momentum", with_momentum(adam(), 0.9)).init(params_like())
