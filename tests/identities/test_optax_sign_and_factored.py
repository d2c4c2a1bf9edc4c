"""Optax's Lion, Signum, LARS and Adafactor, in float64, under arguments where both mean the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptx
from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.optimizers.factored.adafactor import adafactor_rule
from tests.conftest import x64
from tests.identities.test_factored import SHAPES, assert_equal, draws, iterates

MATRICES = {k: len(shape) > 1 for k, shape in SHAPES.items()}


def falling(count: Any) -> Any:
    return 0.1 / (1 + 0.3 * count)


def adafactor_of_optax(
    rate: Any, factored: bool, least: int, eps: float, momentum: Any, decay: Any, scale: bool
) -> Any:
    """optax.adafactor's chain, but for the decay 1 - t^-0.8: Optax takes it in float32, whatever the parameters are."""
    in_float64 = lambda i, c: 1.0 - (i + 1).astype(float) ** -c
    return optax.chain(
        optax.scale_by_factored_rms(factored, 0.8, 0, least, eps, in_float64),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_learning_rate(rate, flip_sign=False),
        optax.scale_by_param_block_rms() if scale else optax.identity(),
        optax.ema(momentum, debias=False) if momentum is not None else optax.identity(),
        optax.add_decayed_weights(decay) if decay is not None else optax.identity(),
        optax.scale(-1),
    )


def adafactor_as_optax(
    rate: Any, factored: bool, least: int, eps: float, momentum: Any, decay: Any, scale: bool
) -> Any:
    axes = "largest" if factored else None
    rule = adafactor_rule(least, 0.8, 0, eps, 1e-3 if scale else None, 1.0, False, axes, momentum, decay="bare")
    return lift("adafactor", rule, Descent(rate, decay))


ADAFACTORS = {
    "small": (0.01, True, 1, 1e-30, None, None, True),
    "all": (falling, True, 3, 1e-3, 0.9, 0.1, True),
    "whole": (1.0, False, 1, 1e-30, 0.5, None, False),
}

PAIRS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "lion": (
        lambda: adaptx.lion(falling, 0.8, 0.95, weight_decay=0.1),
        lambda: optax.lion(falling, 0.8, 0.95, weight_decay=0.1),
    ),
    "lars": (
        lambda: adaptx.lars(falling, None, None, 0.02, 0.1, momentum=0.8, nesterov=True),
        lambda: optax.lars(falling, 0.0, True, 0.02, 0.1, momentum=0.8, nesterov=True),
    ),
    "lars for matrices": (
        lambda: adaptx.lars(1.0, 0.0, MATRICES),
        lambda: optax.lars(1.0, trust_ratio_mask=MATRICES),
    ),
    **{
        f"adafactor, {name}": (lambda a=a: adafactor_as_optax(*a), lambda a=a: adafactor_of_optax(*a))
        for name, a in ADAFACTORS.items()
    },
}
if hasattr(optax, "signum"):  # not in 0.2.6
    PAIRS["signum"] = (lambda: adaptx.signum(falling, 0.8), lambda: optax.signum(falling, 0.8))


@pytest.mark.parametrize(("ours", "theirs"), PAIRS.values(), ids=PAIRS)
def test_optax(ours: Any, theirs: Any) -> None:
    x, *grads = draws(7)
    assert_equal(iterates(ours(), x, grads), iterates(theirs(), x, grads))


def test_that_chain_is_optax_adafactor() -> None:
    x, *grads = draws(4)
    chain = iterates(adafactor_of_optax(0.01, True, 1, 1e-3, 0.9, 0.1, True), x, grads)
    whole = iterates(optax.adafactor(0.01, 1, eps=1e-3, momentum=0.9, weight_decay_rate=0.1), x, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(b).max()), chain, whole)


def test_lars_decays_by_the_papers_ratio() -> None:
    """|g| + wd |x| where Optax has |g + wd x|: the same only where g and x point the same way."""
    with x64():
        x = {"w": jnp.asarray([1.0, 2.0])}
        step = lambda tx, g: tx.update(g, tx.init(x), x)[0]["w"]
        ours, theirs = adaptx.lars(1.0, 0.1), optax.lars(1.0, 0.1)
        along, across = {"w": 3 * x["w"]}, {"w": jnp.asarray([2.0, -1.0])}
        np.testing.assert_allclose(step(ours, along), step(theirs, along), rtol=1e-14)
        factor = np.hypot(1.0, 0.1) / 1.1
        np.testing.assert_allclose(step(ours, across), factor * step(theirs, across), rtol=1e-14)
