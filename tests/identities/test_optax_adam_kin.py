"""The optimizers of Adam's later kin that Optax has too: the same in float64 where it is right."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import adaptx
from tests.conftest import x64
from tests.identities.test_limits import updates_of

DECAY = dict(weight_decay=0.1)
# Ours, Optax's.
SAME: dict[str, tuple[Any, Any]] = {
    "adan at b2 = 1/2": (
        lambda: adaptx.adan(0.1, 0.8, 0.5, 0.95, 1e-3, 1e-2, **DECAY),
        lambda: optax.adan(0.1, 0.8, 0.5, 0.95, 1e-3, 1e-2, **DECAY),
    ),
    "adopt": (lambda: adaptx.adopt(0.1, 0.8, 0.95, 1e-3), lambda: optax.contrib.adopt(0.1, 0.8, 0.95, 1e-3)),
    "adopt without clipping": (
        lambda: adaptx.adopt(0.1, clip_power=None),
        lambda: optax.contrib.adopt(0.1, use_clipping=False),
    ),
    "ademamix": (
        lambda: adaptx.ademamix(0.1, 0.8, 0.95, 0.99, 2.0, 1e-3, 1e-2, **DECAY),
        lambda: optax.contrib.ademamix(0.1, 0.8, 0.95, 0.99, 2.0, 1e-3, 1e-2, **DECAY),
    ),
    "simplified_ademamix": (
        lambda: adaptx.simplified_ademamix(0.1, 0.9, 0.95, 2.0, 1e-3, 1e-2, **DECAY),
        lambda: optax.contrib.simplified_ademamix(0.1, 0.9, 0.95, 2.0, 1e-3, 1e-2, **DECAY),
    ),
    "novograd": (
        lambda: adaptx.novograd(0.1, 0.8, 0.7, 1e-3, 1e-2, inner_decay=0.1),
        lambda: optax.novograd(0.1, 0.8, 0.7, 1e-3, 1e-2, **DECAY),
    ),
}


def both(ours: Any, theirs: Any) -> Any:
    """The updates of ten steps, on gradients that vary in size."""
    rng = np.random.default_rng(9)
    with x64():
        draw = lambda size: {k: jnp.asarray(size * rng.normal(size=(3, 2))) for k in "ab"}
        params, *grads = [draw(size) for size in (1, 1, 3, 0.1, 1, 10, 1, 0.3, 1, 1, 2)]
        sides = jax.jit(lambda p, g: [updates_of(tx, g, p, False) for tx in (ours(), theirs())])(params, grads)
        return [np.stack([np.concatenate([u[k].ravel() for k in "ab"]) for u in side]) for side in sides]


@pytest.mark.parametrize(("ours", "theirs"), SAME.values(), ids=SAME)
def test_the_same_as_optax(ours: Any, theirs: Any) -> None:
    a, b = both(ours, theirs)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


def test_optax_weighs_the_differences_of_adan_by_the_complement() -> None:
    a, b = both(lambda: adaptx.adan(0.1), lambda: optax.adan(0.1, eps_root=0.0))
    assert np.abs(a - b).max() > 0.1 * np.abs(b).max()
