"""Sophia is Optax's where both are given the same estimates, apart from Optax's refresh, which comes a step late."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import adaptx
from tests.conftest import x64

STEPS = 8


def _given() -> optax.GradientTransformationExtraArgs:
    """An estimator for Optax that gives what `update` is given."""
    update = lambda updates, state, params=None, *, hessian, **extra: (hessian, state)
    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


@pytest.mark.parametrize("every", [1, 3])
def test_sophia_is_optax_s_a_step_later(every: int) -> None:
    """Optax divides by the average before it refreshes it. With the first refresh done in its state, and each estimate
    given a step early, it is the paper's. b1 = 0, since Optax corrects m for its zero start."""
    with x64():
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.normal(size=20))
        gs, hs = jnp.asarray(rng.normal(size=(STEPS, 20))), jnp.asarray(rng.normal(size=(STEPS + 1, 20)) + 1)
        numbers = dict(b1=0.0, b2=0.6, eps=1e-3, gamma=0.7, weight_decay=0.1)
        ours = adaptx.sophia(0.1, update_every=every, **numbers)
        theirs = optax.contrib.sophia(0.1, update_interval=every, hessian_diagonal_fn=_given(), **numbers)
        a, b = ours.init(x), theirs.init(x)
        b = (b[0]._replace(nu=0.4 * hs[0], count=jnp.int32(1)), *b[1:])
        clipped = []
        for i in range(STEPS):
            u, a = ours.update(gs[i], a, x, hessian=hs[i])
            v, b = theirs.update(gs[i], b, x, hessian=hs[i + 1])
            np.testing.assert_allclose(u, v, rtol=1e-12)
            clipped.append(np.mean(np.isclose(np.abs(u + 0.1 * 0.1 * x), 0.1)))
            x = optax.apply_updates(x, u)
        assert 0.1 < np.mean(clipped) < 0.9, "the clip matters, and is not all"


def test_moments_are_optax_s() -> None:
    """With its own estimator, on a quadratic whose Hessian is diagonal, which random signs give exactly."""
    with x64():
        diagonal = jnp.asarray(np.random.default_rng(0).uniform(0.5, 2.0, 6))
        loss = lambda p: 0.5 * jnp.sum(diagonal * p["x"] ** 2)
        p = {"x": jnp.ones(6)}
        ours = adaptx.sophia(0.01, b1=0.9, update_every=2)
        theirs = optax.contrib.sophia(0.01, b1=0.9, update_interval=2)
        a, b = ours.init(p), theirs.init(p)
        for i in range(4):
            g, key = jax.grad(loss)(p), jax.random.key(i)
            u, a = ours.update(g, a, p, hessian=lambda p=p, key=key: adaptx.curvature.hutchinson(loss, p, key))
            _, b = theirs.update(g, b, p, obj_fn=loss)
            np.testing.assert_allclose(a.mu["x"], b[0].mu["x"], rtol=1e-12)
            np.testing.assert_allclose(a.nu["x"], b[0].nu["x"], rtol=1e-12)
            p = optax.apply_updates(p, u)
