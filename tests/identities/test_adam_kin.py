"""Limits of Adam's later kin, in float64 to 8 eps of the largest update."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptx
from adaptx.core.clipping import rms, rms_excess
from adaptx.core.moments import Decay
from adaptx.optimizers.adam.adam_atan2 import safe_arctan2
from adaptx.optimizers.adam.ademamix import rising
from tests.conftest import x64
from tests.identities.test_limits import Limit, check_limit, growing

SOME = dict(b1=0.8, b2=0.95, eps=1e-3, eps_root=1e-2)


def lagging(scaled: Any, b1: float, b2: float) -> optax.GradientTransformation:
    """A momentum over `scaled(g, v)`, v an average that has not seen g; the first step only fills it."""

    def update(g: Any, state: Any, p: Any = None) -> Any:
        if state is None:
            return jax.tree.map(jnp.zeros_like, g), (jax.tree.map(jnp.zeros_like, g), jax.tree.map(jnp.square, g))
        m, v = state
        m = jax.tree.map(lambda m, g, v: b1 * m + (1 - b1) * scaled(g, v), m, g, v)
        return m, (m, jax.tree.map(lambda g, v: b2 * v + (1 - b2) * g**2, g, v))

    return optax.chain(optax.GradientTransformation(lambda p: None, update), optax.scale(-0.1))


LIMITS = {
    "ademamix without its slow moment is adamw": Limit(
        lambda: adaptx.ademamix(0.1, alpha=0.0, **SOME, weight_decay=0.1),
        lambda: adaptx.adamw(0.1, **SOME, weight_decay=0.1),
    ),
    "ademamix whose slow moment is fast is adam at another rate": Limit(
        lambda: adaptx.ademamix(0.1, b1=0.0, b3=0.0, alpha=2.0), lambda: adaptx.adam(0.3, b1=0.0)
    ),
    "alpha warmed up is alpha as that schedule": Limit(
        lambda: adaptx.ademamix(0.1, alpha_warmup=4),
        lambda: adaptx.ademamix(0.1, alpha=lambda count: 5.0 * jnp.minimum((count + 1) / 4, 1)),
    ),
    "no decay rate rises above its end": Limit(
        lambda: adaptx.ademamix(0.1, b1=0.9, b3=0.5, b3_warmup=100), lambda: adaptx.ademamix(0.1, b1=0.9, b3=0.5)
    ),
    "the warm-up of b1 starts at 0.9": Limit(
        lambda: adaptx.simplified_ademamix(0.1, b1_warmup=20),
        lambda: adaptx.simplified_ademamix(0.1, b1_warmup=20, b1_start=0.9),
    ),
    "simplified_ademamix without memory is adam without b1": Limit(
        lambda: adaptx.simplified_ademamix(0.1, b1=0.0, b2=0.95, alpha=2.0),
        lambda: adaptx.adam(0.3, b1=0.0, b2=0.95),
    ),
    "simplified_ademamix is adam whose mean is not corrected, at a larger rate": Limit(
        lambda: adaptx.simplified_ademamix(lambda count: 0.02 / (1 - 0.8 ** (count + 1.0)), b1=0.8, b2=0.95),
        lambda: adaptx.adam(0.1, b1=0.8, b2=0.95),
    ),
    "simplified_ademamix is ademamix without a fast moment": Limit(
        lambda: adaptx.simplified_ademamix(0.1 * 2 * 0.125, b1=0.875, b2=0.95, alpha=1 / (2 * 0.125)),
        lambda: adaptx.ademamix(0.1, b1=0.0, b2=0.95, b3=0.875, alpha=2.0),
    ),
    "adan without differences is adam": Limit(
        lambda: adaptx.adan(0.1, b1=0.8, b2=0.0, b3=0.95, eps=1e-3, eps_root=1e-2),
        lambda: adaptx.adam(0.1, **SOME),
    ),
    "adopt without momentum lags behind": Limit(
        lambda: adaptx.adopt(0.1, b1=0.0, b2=0.95, eps=0.0, clip_power=None),
        lambda: lagging(lambda g, v: g / jnp.sqrt(v), 0.0, 0.95),
    ),
    "adopt clipped to 1 while gradients grow is momentum over signs": Limit(
        lambda: adaptx.adopt(0.1, b2=0.9, clip_power=0.0),
        lambda: lagging(lambda g, v: jnp.sign(g), 0.9, 0.9),
        sizes=growing(10.0),
    ),
    "adam_atan2 of small quotients is adam": Limit(
        lambda: adaptx.adam_atan2(0.1, amplitude=1e9, stretch=1e9), lambda: adaptx.adam(0.1, b2=0.99, eps=0.0)
    ),
    "adam_atan2 without memory is a sign": Limit(
        lambda: adaptx.adam_atan2(0.1, b1=0.0, b2=0.0, amplitude=4 / np.pi),
        lambda: optax.chain(optax.scale_by_sign(), optax.scale(-0.1)),
    ),
    "stable_adamw that never clips is adamw": Limit(
        lambda: adaptx.stable_adamw(0.1, b1=0.8, b2=0.95, eps=1e-3, clipping_threshold=1e9, weight_decay=0.1),
        lambda: adaptx.adamw(0.1, b1=0.8, b2=0.95, eps=1e-3, weight_decay=0.1),
    ),
    "stable_adamw without a threshold is adamw": Limit(
        lambda: adaptx.stable_adamw(0.1, eps=1e-3, clipping_threshold=None, weight_decay=0.1),
        lambda: adaptx.adamw(0.1, b2=0.99, eps=1e-3, weight_decay=0.1),
        sizes=growing(3.0),
    ),
    "stable_adamw on numbers, without momentum and far above its threshold, is a sign": Limit(
        lambda: adaptx.stable_adamw(0.1, b1=0.0, eps=0.0, clipping_threshold=1e-3, weight_decay=None),
        lambda: optax.chain(optax.scale_by_sign(), optax.scale(-0.1 * 1e-3)),
        sizes=growing(3.0),
        shape=(1,),
    ),
    "novograd on numbers of constant size is momentum over signs": Limit(
        lambda: adaptx.novograd(0.1, eps=0.0),
        lambda: optax.chain(optax.trace(0.95), optax.scale(-0.1)),
        signs=True,
        shape=(1,),
    ),
    "the decays of novograd agree without momentum": Limit(
        lambda: adaptx.novograd(0.1, b1=0.0, inner_decay=0.3), lambda: adaptx.novograd(0.1, b1=0.0, weight_decay=0.3)
    ),
}


@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
def test_limit(limit: Limit) -> None:
    check_limit(limit)


def test_the_half_life_rises_in_a_line() -> None:
    half_life = lambda b: float(np.log(0.5) / np.log1p(-float(b.complement)))
    with x64():
        ends = Decay.of(0.9), Decay.of(0.9999)
        lives = [half_life(rising(ends[1], ends[0], 8, jnp.float64(t))) for t in (0, 2, 4, 8, 9)]
        fast, slow = map(half_life, ends)
        np.testing.assert_allclose(
            lives, [fast, 0.75 * fast + 0.25 * slow, 0.5 * (fast + slow), slow, slow], rtol=1e-12
        )
    # In float32 too, the complement keeps its digits.
    np.testing.assert_allclose(half_life(rising(ends[1], ends[0], 8, jnp.float32(4))), lives[2], rtol=1e-6)


def test_the_arc_tangent_has_derivatives_at_zero() -> None:
    at = lambda y, x: [float(d) for d in jax.grad(safe_arctan2, (0, 1))(y, x)]
    assert at(0.0, 0.0) == [0.0, 0.0]
    np.testing.assert_allclose(at(0.3, 0.4), jax.grad(jnp.arctan2, (0, 1))(0.3, 0.4), rtol=1e-6)
    assert np.isfinite(at(1e-30, 1e-30)).all()


def test_a_complex_clip_keeps_the_phase() -> None:
    tx = adaptx.adopt(1.0, b1=0.0, clip_power=0.0)
    state = tx.init(jnp.zeros(2, jnp.complex64))
    _, state = tx.update(jnp.array([1 + 0j, 1 + 0j]), state)
    u, _ = tx.update(jnp.array([3 + 4j, 0.3 + 0.4j]), state)
    np.testing.assert_allclose(u, [-0.6 - 0.8j, -0.3 - 0.4j], rtol=1e-6)


def test_root_mean_square() -> None:
    x = jnp.array([[3.0, -4.0]])
    np.testing.assert_allclose(rms(x), np.sqrt(12.5), rtol=1e-6)
    np.testing.assert_allclose(rms(x * 1j), np.sqrt(12.5), rtol=1e-6)
    np.testing.assert_allclose(rms(x / rms_excess(x, 0.5)), 0.5, rtol=1e-6)
    np.testing.assert_array_equal(x / rms_excess(x, 10.0), x)
    assert rms_excess(x, None) == 1
    assert rms(jnp.zeros((0,))) == 0
    assert jax.grad(lambda x: rms_excess(x, 1.0))(jnp.zeros(2)).tolist() == [0, 0]
    infinite = jnp.array([1.0, jnp.inf])
    assert jnp.isnan((infinite / rms_excess(infinite, 1.0))[1])
    huge = jnp.array([1e38, 1e38])  # whose squares overflow: the transformation takes its size out first
    np.testing.assert_allclose(adaptx.update_clipping(1.0).update(huge, adaptx.update_clipping(1.0).init(huge))[0], 1.0)
