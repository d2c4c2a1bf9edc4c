"""Optax's D-Adaptation, Prodigy, DoWG and COCOB: the same updates in float64 where Optax equals the papers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import adaptx
from tests.conftest import x64
from tests.identities.test_parameter_free import steps_of, tree


def schedule(count: Any) -> Any:
    return 1 / (1 + 0.1 * count)


# Optax always corrects the bias, and multiplies Prodigy's eps by the next d instead of the step's.
PAIRS = {
    "dadapt_adam": (
        lambda: adaptx.dadapt_adam(schedule, 0.8, 0.99, 1e-3, 1e-4, bias_correction=True, weight_decay=0.1),
        lambda: contrib.dadapt_adamw(schedule, (0.8, 0.99), 1e-3, 1e-4, weight_decay=0.1),
    ),
    "prodigy": (
        lambda: adaptx.prodigy(schedule, eps=0.0, bias_correction=True, weight_decay=0.1),
        lambda: contrib.prodigy(schedule, eps=0.0, weight_decay=0.1),
    ),
    "prodigy, all of it": (
        lambda: adaptx.prodigy(
            schedule, 0.8, 0.99, 0.9, 0.0, 1e-3, 2.0, safeguard_warmup=True, bias_correction=True, weight_decay=0.1
        ),
        lambda: contrib.prodigy(schedule, (0.8, 0.99), 0.9, 0.0, 1e-3, 2.0, 0.1, safeguard_warmup=True),
    ),
    "dowg": (adaptx.dowg, contrib.dowg),
    "dowg, all of it": (lambda: adaptx.dowg(schedule, d0=0.1, eps=0.3), lambda: contrib.dowg(schedule, 0.01, 0.3)),
    "cocob": (adaptx.cocob, contrib.cocob),
    "cocob, less cautious": (lambda: adaptx.cocob(caution=5.0), lambda: contrib.cocob(alpha=5.0)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_optax_takes_the_same_steps(name: str) -> None:
    ours, theirs = PAIRS[name]
    with x64():
        params, grads = tree(steps=24)
        turned = jax.tree.map(
            lambda g: g.at[16:].multiply(jnp.asarray([-1.0, 1.0] * 4).reshape(-1, *[1] * (g.ndim - 1))), grads
        )
        expected, _ = steps_of(theirs(), params, turned)
        got, _ = steps_of(ours(), params, turned)
    for a, b in zip(got, expected, strict=True):
        assert np.max(np.abs(a - b)) <= 1e-12 * np.max(np.abs(b))


def test_optax_scales_what_cocob_does_not_see() -> None:
    """Its learning rate multiplies the gradient of a rule that the gradient's scale does not reach."""
    with x64():
        params, grads = tree()
        one, _ = steps_of(contrib.cocob(1.0), params, grads)
        small, _ = steps_of(contrib.cocob(1e-3), params, grads)
        ours, _ = steps_of(optax.chain(adaptx.scale_by_cocob(), optax.scale(-1e-3)), params, grads)
    for a, b, c in zip(one, small, ours, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-9)
        np.testing.assert_allclose(c, 1e-3 * a, rtol=1e-9)
