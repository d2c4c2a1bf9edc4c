"""Where a wrapper must change nothing, or come to what is already there."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptx
from tests.conformance.cases import grads_like, params_like
from tests.conformance.compare import assert_close

RATE = 0.05
ADAM = adaptx.adam(RATE)
STEPS = 4


@functools.cache
def _grads() -> Any:
    return [jax.tree.map(lambda a, i=i: a[i], grads_like(STEPS)) for i in range(STEPS)]


def trained(tx: Any, grads: Any = None) -> Any:
    params, update = params_like(), jax.jit(tx.update)
    state = tx.init(params)
    for g in _grads() if grads is None else grads:
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params


def same(a: Any, b: Any) -> bool:
    return all(map(np.array_equal, *map(jax.tree.leaves, (a, b))))


# cautious


def test_cautious_changes_nothing_where_all_signs_agree() -> None:
    """Bit for bit: SGD always goes down the gradient, Adam does where gradients keep their signs."""
    assert same(trained(adaptx.cautious(optax.sgd(RATE))), trained(optax.sgd(RATE)))
    steady = [jax.tree.map(lambda a, k=k: k * a, params_like(seed=5)) for k in (1.0, 3.0, 0.5, 2.0)]
    assert same(trained(adaptx.cautious(ADAM), steady), trained(ADAM, steady))
    assert not same(trained(adaptx.cautious(ADAM)), trained(ADAM))


def test_cautious_leaves_the_state_to_the_optimizer() -> None:
    """pytorch_optimizer#316: the mask must not get into the moments."""
    params, tx = params_like(), adaptx.cautious(ADAM)
    plain = masked = ADAM.init(params)
    for g in _grads():
        _, plain = ADAM.update(g, plain, params)
        _, masked = tx.update(g, masked, params)
    assert same(plain, masked)
    assert isinstance(masked, adaptx.AdamState)


def test_cautious_never_climbs() -> None:
    """The update of every tensor is at an obtuse angle to its gradient, whatever the optimizer did."""
    tx = adaptx.cautious(optax.sgd(-RATE, momentum=0.9))  # which climbs
    params = params_like()
    for u, g in zip(*map(jax.tree.leaves, (tx.update(_grads()[0], tx.init(params))[0], _grads()[0])), strict=True):
        assert float(jnp.sum(u * g)) == 0
    assert same(tx.update(_grads()[0], tx.init(params))[0], jax.tree.map(jnp.zeros_like, params))


def test_the_scale_makes_up_for_what_is_left_out() -> None:
    fixed = optax.stateless(lambda g, params: jnp.array([-1.0, -2.0, 1.0, 0.0]))
    update = lambda g, least: adaptx.cautious(fixed, least).update(g, optax.EmptyState())[0]
    np.testing.assert_array_equal(update(jnp.ones(4), 1e-3), [-2, -4, 0, 0])  # half are kept
    np.testing.assert_array_equal(update(jnp.ones(4), 0.8), [-1.25, -2.5, 0, 0])
    tiny = jnp.full(4, 1e-37)  # no product with an update of 1e-10 is a float32
    small = optax.stateless(lambda g, params: jnp.array([-1e-10, -1e-10, 1e-10, 1e-10]))
    np.testing.assert_allclose(adaptx.cautious(small).update(tiny, ())[0], [-2e-10, -2e-10, 0, 0])


# with_weight_decay


DECAY = adaptx.with_weight_decay
schedule = optax.linear_schedule(0.1, 0.02, 3)


def test_decoupled_is_adamw() -> None:
    """With a schedule and a mask."""
    mask = {"b": True, "s": False, "w": True}
    ours = DECAY(adaptx.adam(schedule), 0.3, schedule, mask=mask)
    assert_close("adamw", trained(ours), trained(adaptx.adamw(schedule, weight_decay=0.3, mask=mask)), 1e-6)
    assert_close("Optax", trained(ours), trained(optax.adamw(schedule, weight_decay=0.3, mask=mask)), 1e-5)


@pytest.mark.parametrize("tx", [ADAM, optax.sgd(RATE, momentum=0.9)], ids=["adam", "optax.sgd"])
def test_l2_is_decay_at_the_head_of_the_chain(tx: Any) -> None:
    assert_close(
        "l2", trained(DECAY(tx, 0.3, kind="l2")), trained(optax.chain(optax.add_decayed_weights(0.3), tx)), 1e-6
    )


def test_independent_is_decay_at_the_end_of_the_chain() -> None:
    expected = trained(optax.chain(ADAM, optax.add_decayed_weights(-0.03)))
    assert_close("independent", trained(DECAY(ADAM, 0.03, kind="independent")), expected, 1e-6)


def test_for_sgd_decoupled_and_l2_are_the_same() -> None:
    sgd = optax.sgd(RATE)
    assert_close("sgd", trained(DECAY(sgd, 0.3, RATE)), trained(DECAY(sgd, 0.3, kind="l2")), 1e-6)


def test_stable_is_decoupled_where_the_second_moment_is_1() -> None:
    """The same scale for all tensors; and of AdaGrad's sum no bias is taken."""
    ones = jax.tree.map(jnp.ones_like, params_like())
    got = trained(DECAY(ADAM, 0.3, RATE, kind="stable", b2=0.999), [ones] * 3)
    assert_close("stable", got, trained(DECAY(ADAM, 0.3, RATE), [ones] * 3), 1e-6)
    adagrad = adaptx.adagrad(RATE)
    got = trained(DECAY(adagrad, 0.3, RATE, kind="stable", b2=0.0), [ones])
    assert_close("stable", got, trained(DECAY(adagrad, 0.3, RATE), [ones]), 1e-6)


def test_cautious_decay_is_decoupled_where_both_pull_to_zero() -> None:
    params = params_like()
    for sign, expected in ((1.0, DECAY(ADAM, 0.3, RATE)), (-1.0, ADAM)):
        g = jax.tree.map(lambda x, sign=sign: sign * x, params)
        got = trained(DECAY(ADAM, 0.3, RATE, kind="cautious"), [g])
        assert_close(f"cautious {sign}", got, trained(expected, [g]), 1e-7)
    zero = jax.tree.map(jnp.zeros_like, params)  # u x = 0 decays, as the paper's >= says
    got = trained(DECAY(ADAM, 0.3, RATE, kind="cautious"), [zero])
    assert_close("cautious at 0", got, trained(DECAY(ADAM, 0.3, RATE), [zero]), 1e-7)


def test_no_decay_is_the_optimizer() -> None:
    assert same(trained(DECAY(ADAM, None, RATE)), trained(ADAM))
    assert_close("mask", trained(DECAY(ADAM, 0.3, RATE, mask=False)), trained(ADAM), 0)


def test_one_decay_that_no_mask_reaches() -> None:
    """A NaN parameter that is masked stays the only one."""
    params = {"a": jnp.array([jnp.nan]), "b": jnp.ones(1)}
    tx = DECAY(optax.sgd(RATE), 0.3, RATE, mask={"a": False, "b": True})
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose([updates["a"][0], updates["b"][0]], [0, -0.3 * RATE], rtol=1e-6)


# mars


def test_mars_without_correction_or_clip_is_the_optimizer() -> None:
    assert_close("mars", trained(adaptx.mars(ADAM, correction=0.0, clip_norm=None)), trained(ADAM), 1e-6)
    assert_close("mars", trained(adaptx.mars(ADAM, b1=0.0, clip_norm=None)), trained(ADAM), 1e-6)


def test_the_first_step_of_mars_is_not_corrected() -> None:
    """Nor is one whose gradient is that of before."""
    first = _grads()[:1]
    for grads in (first, first * 2):
        got = trained(adaptx.mars(ADAM, correction=10.0, clip_norm=None), grads)
        assert_close("mars", got, trained(ADAM, grads), 1e-6)


def test_exact_mars_with_the_gradient_itself_corrects_nothing() -> None:
    params, tx = params_like(), adaptx.mars(ADAM, correction=10.0, clip_norm=None, exact=True)
    state, plain = tx.init(params), ADAM.init(params)
    assert state.previous is None
    for g in _grads():
        got, state = tx.update(g, state, params, previous_grads=g)
        expected, plain = ADAM.update(g, plain, params)
        assert_close("exact", got, expected, 1e-6)


def test_exact_mars_takes_the_gradients_of_its_own_group() -> None:
    """optax.partition gives every group the whole of `previous_grads`."""
    g, p = {"m": jnp.array([3.0]), "o": jnp.array([2.0])}, {"m": jnp.array([1.0]), "o": jnp.array([7.0])}
    group = adaptx.mars(optax.sgd(1.0), 0.5, 0.5, clip_norm=None, exact=True)
    tx = optax.partition({"m": group, "o": optax.sgd(1.0)}, {"m": "m", "o": "o"})
    updates, _ = tx.update(g, tx.init(g), g, previous_grads=p)
    np.testing.assert_allclose(updates["m"], [-4.0], rtol=1e-6)  # 3 + 0.5*(3 - 1)
    np.testing.assert_allclose(updates["o"], [-2.0])


def test_mars_clips_each_tensor() -> None:
    tx = adaptx.mars(optax.sgd(1.0), clip_norm=2.0)
    g = {"small": jnp.array([0.6, 0.8]), "large": jnp.array([30.0, 40.0])}
    updates, _ = tx.update(g, tx.init(g))
    np.testing.assert_allclose(updates["small"], -g["small"], rtol=1e-6)
    np.testing.assert_allclose(updates["large"], [-1.2, -1.6], rtol=1e-6)


# update_clipping


def test_clipping_before_the_rate_and_behind_it() -> None:
    inside = optax.chain(adaptx.scale_by_adam(), adaptx.update_clipping(0.6), optax.scale_by_learning_rate(schedule))
    behind = optax.chain(adaptx.adam(schedule), adaptx.update_clipping(0.6, schedule))
    assert_close("clipping", trained(behind), trained(inside), 1e-6)
    theirs = optax.chain(adaptx.scale_by_adam(), optax.clip_by_block_rms(0.6), optax.scale_by_learning_rate(schedule))
    assert_close("Optax", trained(inside), trained(theirs), 1e-6)
    loose = optax.chain(ADAM, adaptx.update_clipping(1e6))
    assert same(trained(loose), trained(ADAM))


def test_clipping_at_a_rate_of_0_and_beyond_the_squares_of_float16() -> None:
    tx = adaptx.update_clipping(1.0, lambda count: 0.0)
    u = jnp.zeros(3)
    np.testing.assert_array_equal(tx.update(u, tx.init(u))[0], u)
    tx, large = adaptx.update_clipping(1.0), jnp.full(4, 60000.0, jnp.float16)
    np.testing.assert_array_equal(tx.update(large, tx.init(large))[0], np.ones(4))
    assert not np.all(np.isfinite(optax.clip_by_block_rms(1.0).update(large, ())[0])) or not np.all(
        optax.clip_by_block_rms(1.0).update(large, ())[0]
    )


# graft


def test_grafting_with_itself_is_the_optimizer() -> None:
    assert_close("graft", trained(adaptx.graft(ADAM, adaptx.adam(RATE))), trained(ADAM), 1e-5)


def test_grafting_takes_length_and_direction() -> None:
    params, g = params_like(), _grads()[0]
    sgd, sign = optax.sgd(RATE), adaptx.adam(7.0)
    tx = adaptx.graft(sgd, sign)
    got, m, d = (t.update(g, t.init(params), params)[0] for t in (tx, sgd, sign))
    for u, a, b in zip(*map(jax.tree.leaves, (got, m, d)), strict=True):
        np.testing.assert_allclose(np.linalg.norm(u), np.linalg.norm(a), rtol=1e-6)
        np.testing.assert_allclose(u / np.linalg.norm(u), b / np.linalg.norm(b), rtol=1e-5)


@pytest.mark.parametrize(("m", "d", "u"), [(0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 0.0), (2.0, -1.0, -2.0)])
def test_grafting_zero(m: float, d: float, u: float) -> None:
    fixed = lambda value: optax.stateless(lambda g, params: value * g)
    tx, g = adaptx.graft(fixed(m), fixed(d)), jnp.ones(3)
    np.testing.assert_array_equal(tx.update(g, tx.init(g))[0], u * g)
