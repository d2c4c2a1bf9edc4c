"""RAdam, Yogi and AdaBelief beside Optax's, in float64."""

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

STEPS = 25


def _yogi_from_zero(**kwargs: Any) -> optax.GradientTransformation:
    """Optax's Yogi with the paper's m = 0 at the start."""
    tx = optax.yogi(**kwargs)

    def init(params: Any) -> Any:
        state: Any = tx.init(params)
        direction, *others = state
        return (direction._replace(mu=jax.tree.map(jnp.zeros_like, direction.mu)), *others)

    return optax.GradientTransformation(init, tx.update)


ADAM: dict[str, Any] = dict(learning_rate=0.1, b1=0.8, b2=0.97)
PAIRS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "radam": (
        lambda: adaptx.radam(**ADAM, eps=1e-2, eps_root=1e-3, rho_threshold=5.0),
        lambda: optax.radam(**ADAM, eps=1e-2, eps_root=1e-3),
    ),
    "radam with the paper's threshold": (
        lambda: adaptx.radam(**ADAM, eps=1e-2),
        lambda: optax.radam(**ADAM, eps=1e-2, threshold=4.0),
    ),
    "yogi from zero": (
        lambda: adaptx.yogi(**ADAM, eps=1e-2, bias_correction=True),
        lambda: _yogi_from_zero(**ADAM, eps=1e-2),
    ),
    # Optax adds its eps_root to the accumulator in every step.
    "adabelief": (
        lambda: adaptx.adabelief(**ADAM, eps=1e-2, eps_root=1e-3 / (1 - 0.97)),
        lambda: optax.adabelief(**ADAM, eps=1e-2, eps_root=1e-3),
    ),
    "adabelief with the defaults": (lambda: adaptx.adabelief(0.1), lambda: optax.adabelief(0.1)),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_equals_optax(pair: Any) -> None:
    rng = np.random.default_rng(9)
    with x64():
        params = {"a": jnp.asarray(rng.normal(size=3)), "b": jnp.asarray(rng.normal(size=(2, 2)))}
        grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=(STEPS, *x.shape))), params)

        def train(tx: Any) -> Any:
            def body(carry: Any, g: Any) -> Any:
                x, state = carry
                u, state = tx.update(g, state, x)
                return (optax.apply_updates(x, u), state), u

            return jax.lax.scan(body, (params, tx.init(params)), grads)[1]

        ours, theirs = jax.jit(lambda: [train(make()) for make in pair])()
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), ours, theirs)


def test_yogi_moves_in_optax_without_a_gradient() -> None:
    """The difference that keeps the plain pair apart: should Optax's m start at 0 one day, this says so."""
    g = {"a": jnp.zeros(2)}
    first = lambda tx: np.asarray(tx.update(g, tx.init(g))[0]["a"])
    assert not np.any(first(adaptx.yogi(0.1)))
    assert np.all(first(optax.yogi(0.1)) != 0)
