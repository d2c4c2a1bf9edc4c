"""The sign line and LARS: where they are one another, a plain sign, or LAMB's ratio."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptx
from adaptx.optimizers.trust_ratio.lamb import trust_ratio
from tests.conftest import x64
from tests.identities.test_limits import assert_same, updates_of


def sign(rate: float) -> Any:
    return optax.chain(optax.scale_by_sign(), optax.scale(-rate))


def by_trust_ratio(rate: float) -> Any:
    """The plain gradient at LAMB's ratio."""
    scaled = lambda g, x: jax.tree.map(lambda g, x: -rate * trust_ratio(g, x), g, x)
    return optax.stateless(scaled)


SAME: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "signum without momentum is a sign": (lambda: adaptx.signum(0.1, None), lambda: sign(0.1)),
    "lion without b1 is a sign": (lambda: adaptx.lion(0.1, 0.0), lambda: sign(0.1)),
    "lion with one decay rate is signum": (lambda: adaptx.lion(0.1, 0.8, 0.8), lambda: adaptx.signum(0.1, 0.8)),
    "signum is the sign of a first moment": (
        lambda: adaptx.signum(0.1, 0.8),
        lambda: optax.chain(optax.ema(0.8), sign(0.1)),
    ),
    "lars of coefficient 1 without momentum has lamb's ratio": (
        lambda: adaptx.lars(0.1, trust_coefficient=1.0, momentum=None),
        lambda: by_trust_ratio(0.1),
    ),
    "lars where the mask is False is momentum": (
        lambda: adaptx.lars(0.1, 0.3, False, momentum=0.8),
        lambda: optax.sgd(0.1, 0.8),
    ),
}


@pytest.mark.parametrize(("left", "right"), SAME.values(), ids=SAME)
def test_limit(left: Any, right: Any) -> None:
    rng = np.random.default_rng(3)
    with x64():
        params, *grads = [{k: jnp.asarray(rng.normal(size=(3, 2))) for k in "ab"} for _ in range(7)]
        assert_same(*(updates_of(tx(), grads, params, False) for tx in (left, right)))


def test_zero_tensors_can_start_and_zero_gradients_decay() -> None:
    """LARS's ratio is 1 where the tensor is 0; where only the gradient is 0 the decay is trust_coefficient x."""
    g, x = {"w": jnp.array([3.0, -4.0])}, {"w": jnp.array([6.0, 8.0])}
    zero = jax.tree.map(jnp.zeros_like, x)
    tx = adaptx.lars(0.5, 0.1)
    np.testing.assert_allclose(tx.update(g, tx.init(zero), zero)[0]["w"], -0.5 * g["w"], rtol=1e-6)
    np.testing.assert_allclose(tx.update(zero, tx.init(x), x)[0]["w"], -0.5 * 1e-3 * x["w"], rtol=1e-6)


@pytest.mark.parametrize("factory", [adaptx.lion, adaptx.signum])
def test_the_rate_and_the_decay_have_derivatives(factory: Any) -> None:
    """What law H6 leaves open: it stops at the numbers that only decide a sign."""
    grads = [{"w": jnp.asarray(g)} for g in np.random.default_rng(4).normal(size=(5, 3))]

    def end(rate: Any, decay: Any) -> Any:
        updates = updates_of(factory(rate, weight_decay=decay), grads, {"w": jnp.ones(3)}, False)
        return sum(jnp.sum(u["w"]) for u in updates)

    with x64():
        slopes = jax.grad(end, (0, 1))(0.1, 0.2)
        for i, slope in enumerate(slopes):
            step = [1e-6 * (i == k) for k in range(2)]
            around = end(0.1 + step[0], 0.2 + step[1]) - end(0.1 - step[0], 0.2 - step[1])
            np.testing.assert_allclose(slope, around / 2e-6, rtol=1e-7)
