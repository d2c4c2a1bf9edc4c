"""AdaGrad's line: where its members coincide, and what their papers promise beyond the equations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptx
from tests.conftest import x64
from tests.identities.test_limits import assert_same, updates_of


def _drawn(steps: int, *shape: int, seed: int = 0) -> tuple[Any, list[Any]]:
    rng = np.random.default_rng(seed)
    x, *grads = (jnp.asarray(rng.normal(size=shape)) for _ in range(steps + 1))
    return x, grads


LIMITS: dict[str, tuple[Callable[[], Any], Callable[[], Any], tuple[int, ...]]] = {
    "sm3 on vectors is adagrad": (
        lambda: adaptx.sm3(0.1, momentum=None, eps=1e-3, eps_root=1e-2),
        lambda: adaptx.adagrad(0.1, eps=1e-3, eps_root=1e-2),
        (5,),
    ),
    "adagrad_full on numbers is adagrad": (
        lambda: adaptx.adagrad_full(0.1, eps=1e-3),
        lambda: adaptx.adagrad(0.1, eps=1e-3),
        (),
    ),
    "kate with a huge eta is adagrad at the root of its rate": (
        lambda: adaptx.kate(0.1, eta=1e40, eps=0.0),
        lambda: adaptx.adagrad(0.1 * 1e20, eps=0.0),
        (3,),
    ),
    "rprop that does not adapt is a sign": (
        lambda: adaptx.rprop(0.1, eta_plus=1.0, min_step_size=0.1, max_step_size=0.1),
        lambda: optax.chain(optax.scale_by_sign(), optax.scale(-0.1)),
        (3,),
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limit(name: str) -> None:
    left, right, shape = LIMITS[name]
    with x64():
        x, grads = _drawn(5, *shape)
        if name.startswith("rprop"):
            grads = [abs(g) for g in grads]  # it waits where a gradient turns
        sides = jax.jit(lambda x, grads: [updates_of(tx, grads, x, False) for tx in (left(), right())])(x, grads)
    assert_same(*sides)


# Full-matrix AdaGrad


def test_full_matrices_turn_with_the_coordinates() -> None:
    """In turned coordinates the updates are the turned updates, which a diagonal does not do."""
    with x64():
        x, grads = _drawn(7, 4)
        turn = jnp.asarray(np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0])
        tx = adaptx.adagrad_full(0.1, eps=1e-3)
        updates = [turn @ u for u in updates_of(tx, grads, x, True)]
        turned = updates_of(tx, [turn @ g for g in grads], turn @ x, True)
    np.testing.assert_allclose(updates, turned, atol=1e-13)


@pytest.mark.parametrize("size", [1e-40, 1e-20, 1.0, 1e20, 1e30])
@pytest.mark.parametrize("eps", [0.0, 1e-38])
def test_nothing_moves_outside_of_the_span(size: float, eps: float) -> None:
    """float32, three directions in six dimensions, for 300 steps: no square overflows, and no rounding is divided by
    rounding."""
    rng = np.random.default_rng(0)
    span = np.linalg.qr(rng.normal(size=(6, 3)))[0].T
    grads = np.asarray(size * rng.normal(size=(300, 3)) @ span, np.float32)
    size = max(size, float(np.finfo(np.float32).tiny))  # XLA takes smaller numbers for 0
    tx = adaptx.scale_by_adagrad_full(eps)
    us = jax.lax.scan(lambda s, g: tx.update(g, s)[::-1], tx.init(jnp.zeros(6)), jnp.asarray(grads))[1]
    wide, us = np.minimum(np.abs(grads), 1e12) * np.sign(grads).astype(float), np.asarray(us, float)
    if size < 1e-37:
        assert np.all(np.isfinite(us))
        return
    if size > 1e12:  # the clamp turns the direction; the length stays
        assert np.all(np.isfinite(us)), "not finite"
        assert 0.5 < np.linalg.norm(us[0]) < 1.5
        return
    outside = us - us @ span.T @ span
    assert np.max(np.linalg.norm(outside, axis=1) / np.linalg.norm(us, axis=1)) < 1e-5
    for t in (0, 1, 2, 10, 299):
        _, s, vh = np.linalg.svd(wide[: t + 1], full_matrices=False)
        keep = s > 1e-5 * s[0]
        expected = vh[keep].T @ (vh[keep] @ wide[t] / s[keep])
        np.testing.assert_allclose(us[t], expected, atol=2e-5)


def test_small_directions_are_not_lost_in_large_ones() -> None:
    """Gradients of 1e-4 beside gradients of 1, in float32: squared, the one is rounding beside the other."""
    grads = jnp.asarray([[1.0, 0.0], [0.5, 1e-4], [-1.0, -1e-4]])
    tx = adaptx.scale_by_adagrad_full(0.0)
    _, us = jax.lax.scan(lambda s, g: tx.update(g, s)[::-1], tx.init(jnp.zeros(2)), grads)
    g = np.asarray(grads, float)
    _, s, vh = np.linalg.svd(g, full_matrices=False)
    np.testing.assert_allclose(us[-1], vh.T @ (vh @ g[-1] / s), rtol=1e-3)


@pytest.mark.parametrize("kind", ["equal eigenvalues", "one direction", "complex"])
def test_derivatives_of_full_matrices(kind: str) -> None:
    """Where eigenvalues are equal or zero, the derivatives of eigenvectors do not exist and those of the step do."""
    first = {"equal eigenvalues": [1.0, 0, 0], "one direction": [1.0, 2, 3], "complex": [1.0, 2j, 3 - 1j]}[kind]
    then = {"equal eigenvalues": [[0, 1.0, 0], [0, 0, 1.0]], "one direction": [], "complex": [[2, 1j, 1.0]]}[kind]
    tx = adaptx.scale_by_adagrad_full(0.3)

    def total(real: Any, imaginary: Any) -> Any:
        x = real + 1j * imaginary if kind == "complex" else real
        state, sum = tx.init(x[0]), 0.0
        for t, g in enumerate(x):
            u, state = tx.update(g, state)
            sum += jnp.sum(jnp.cos(t + jnp.arange(3.0)) * (u.real + 2 * u.imag))
        return sum + jnp.sum(jnp.sin(jnp.arange(9.0).reshape(3, 3)) * (state.root.real + 2 * state.root.imag))

    with x64():
        x = np.array([first, *then])
        at, rng = (jnp.asarray(x.real), jnp.asarray(x.imag)), np.random.default_rng(0)
        grads = jax.grad(total, (0, 1))(*at)
        for _ in range(3):
            d = [rng.normal(size=x.shape) for _ in at]
            ahead, behind = (total(*(a + h * b for a, b in zip(at, d, strict=True))) for h in (1e-6, -1e-6))
            slope = sum(jnp.sum(g * b) for g, b in zip(grads, d, strict=True))
            np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-6)


def test_a_tensor_too_large_for_a_full_matrix_is_refused() -> None:
    line = r"adagrad_full: a tensor of shape \(40, 30\) has 1200 elements, and max_size=1024 is the most"
    with pytest.raises(ValueError, match=line) as caught:
        adaptx.adagrad_full(0.1).init({"w": jnp.zeros((40, 30))})
    assert "\n" not in str(caught.value)
    assert adaptx.adagrad_full(0.1, max_size=1200).init({"w": jnp.zeros((40, 30))}).root["w"].shape == (1200, 1200)


def test_ftrl_without_beta_keeps_what_has_no_gradient() -> None:
    """Where l1 cuts, nothing is 0/0."""
    tx, x = adaptx.ftrl(0.1, beta=0.0, l1=1e-3), jnp.array([0.5, 0.5])
    state = tx.init(x)
    for _ in range(3):
        u, state = tx.update(jnp.array([1.0, 0.0]), state, x)
        x = optax.apply_updates(x, u)
    assert float(x[1]) == 0.5
    assert float(x[0]) < 0.4


# Dual averaging


def test_dual_averaging_from_zero_is_the_papers_closed_form() -> None:
    """And from elsewhere the weights that have no gradient, and no penalty, stay."""
    with x64():
        x, grads = _drawn(6, 8)
        grads = [g.at[0].set(0.0) for g in grads]
        tx = adaptx.adagrad_da(0.3, l1=0.5)
        end = np.asarray(sum(updates_of(tx, grads, 0 * x, False)))
        assert sum(updates_of(adaptx.adagrad_da(0.3), grads, x, False))[0] == 0
    g = np.asarray(grads)
    mean, h = g.mean(0), np.sqrt(0.1 + (g**2).sum(0))
    expected = np.sign(-mean) * 0.3 * 6 / h * np.maximum(np.abs(mean) - 0.5, 0)
    np.testing.assert_allclose(end, expected, atol=1e-15)
    assert 0 < np.sum(end == 0) < 8


def test_dual_averaging_ends_at_the_minimum_of_a_lasso() -> None:
    """The minimum of (x - a)^2 / 2 + l1 |x| is sign(a) max(|a| - l1, 0), from whatever start; zeros are exact."""
    a, l1 = jnp.array([-2.0, -0.5, 0.0, 0.3, 0.9, 3.0]), 0.7
    tx = adaptx.adagrad_da(2.0, l1=l1)

    def step(carry: Any, _: Any) -> Any:
        x, state = carry
        u, state = tx.update(x - a, state, x)
        return (x + u, state), None

    x = jnp.full_like(a, 0.4)
    (x, _), _ = jax.lax.scan(step, (x, tx.init(x)), length=4000)
    expected = np.sign(a) * np.maximum(np.abs(a) - l1, 0)
    np.testing.assert_allclose(x, expected, atol=2e-2)  # like 1 / the root of the steps
    assert np.array_equal(x == 0, expected == 0)


# KATE


def test_kate_does_not_see_the_scale_of_features() -> None:
    """Logistic regression on data whose features are multiplied by powers of two: the same predictions, bit for bit."""
    rng = np.random.default_rng(0)
    data, scale = rng.normal(size=(30, 4)).astype(np.float32), np.float32([1, 2**-9, 2**8, 4])
    labels = jnp.asarray(rng.random(30) < 0.5, jnp.float32)

    def predictions(data: Any, tx: Any) -> Any:
        def loss(w: Any) -> Any:
            return jnp.mean(optax.sigmoid_binary_cross_entropy(jnp.sum(data * w[None], 1), labels))

        def step(carry: Any, _: Any) -> Any:
            w, state = carry
            u, state = tx.update(jax.grad(loss)(w), state, w)
            return (w + u, state), None

        w = jnp.zeros(4)
        (w, _), _ = jax.lax.scan(step, (w, tx.init(w)), length=20)
        return np.asarray(jnp.sum(data * w[None], 1))

    for tx, invariant in ((adaptx.kate(0.1, eta=0.0, eps=0.0), True), (adaptx.adagrad(0.1), False)):
        plain, scaled = predictions(data, tx), predictions(data * scale, tx)
        assert np.any(plain != 0)
        assert np.array_equal(plain, scaled) == invariant


# Rprop


def test_rprop_is_not_late() -> None:
    tx, state, updates = adaptx.rprop(0.1), adaptx.rprop(0.1).init(jnp.zeros(())), []
    for g in (1.0, 1.0, 1.0, -1.0, 1.0):
        u, state = tx.update(jnp.asarray(g), state)
        updates.append(float(u))
    np.testing.assert_allclose(updates, [-0.1, -0.12, -0.144, 0, -0.072], rtol=1e-6)


def test_rprop_sees_the_signs_of_tiny_gradients() -> None:
    """1e-30 squared is nothing in float32."""
    tx = adaptx.rprop(0.1)
    state = tx.init(jnp.zeros(()))
    u, state = tx.update(jnp.float32(1e-30), state)
    u, state = tx.update(jnp.float32(1e-30), state)
    np.testing.assert_allclose(u, -0.12, rtol=1e-6)


def test_a_warm_up_does_not_start_rprop_at_its_largest_step() -> None:
    """Rates far below the smallest step size, and 0: the steps are the rate's until it is an ordinary one."""
    rates = jnp.asarray([0.0, 1e-12, 1e-9, 1e-2, 1e-2])
    tx = adaptx.rprop(lambda t: rates[t], eta_plus=1.5)
    state, updates = tx.init(jnp.zeros(())), []
    for _ in rates:
        u, state = tx.update(jnp.ones(()), state)
        updates.append(-float(u))
    grown = [1, 1.5, 1.5**2, 1.5**3, 1.5**4]  # in the first step there is no sign to agree with, and nothing grows
    np.testing.assert_allclose(updates, np.asarray(rates) * grown, rtol=1e-5)
