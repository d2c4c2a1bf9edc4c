"""Adam's line: limits in which two of its methods coincide, and the factor that rectifies Adam."""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptx
from adaptx.core.moments import Clock, Decay
from adaptx.optimizers.adam.radam import averaged_length, rectification
from tests.conftest import x64
from tests.identities import test_limits as limits
from tests.identities.test_limits import Limit

SIGN = (optax.scale_by_sign(), optax.scale(-0.1))

LIMITS = {
    "padam with the power 1/2 is amsgrad": Limit(
        lambda: adaptx.padam(0.1, eps=1e-3, eps_root=1e-2, partial=0.5, bias_correction=True),
        lambda: adaptx.adam(0.1, eps=1e-3, eps_root=1e-2, amsgrad=True),
        sizes=limits.growing(0.5),
    ),
    "padam with almost no power is momentum": Limit(
        lambda: adaptx.padam(0.1, partial=1e-30), lambda: optax.chain(optax.ema(0.9, debias=False), optax.scale(-0.1))
    ),
    "qhadam of averages alone is adam": Limit(
        lambda: adaptx.qhadam(0.1, eps=1e-3, nu1=1.0, nu2=1.0), lambda: adaptx.adam(0.1, b1=0.995, eps=1e-3)
    ),
    "qhadam without a first average is rmsprop with bias correction": Limit(
        lambda: adaptx.qhadam(0.1, b2=0.95, nu1=0.0, nu2=1.0),
        lambda: adaptx.rmsprop(0.1, b2=0.95, bias_correction=True),
    ),
    "qhadam without averages is a sign": Limit(
        lambda: adaptx.qhadam(0.1, eps=0.0, nu1=0.0, nu2=0.0), lambda: optax.chain(*SIGN)
    ),
    "laprop is rmsprop with bias correction, then a corrected average": Limit(
        lambda: adaptx.laprop(0.1, b2=0.95, eps=1e-3, eps_root=1e-2),
        lambda: optax.chain(
            adaptx.scale_by_rmsprop(b2=0.95, eps=1e-3, eps_root=1e-2, bias_correction=True),
            optax.ema(0.9, debias=True),
            optax.scale(-0.1),
        ),
    ),
    "laprop without momentum is adam without momentum": Limit(
        lambda: adaptx.laprop(0.1, b1=0.0), lambda: adaptx.adam(0.1, b1=0.0, eps=1e-15)
    ),
    "laprop is adam while |g| is constant": Limit(
        lambda: adaptx.laprop(0.1, eps=1e-3), lambda: adaptx.adam(0.1, eps=1e-3), signs=True
    ),
    "adamod that forgets all but the last step size is adam": Limit(
        lambda: adaptx.adamod(0.1, b3=0.0), lambda: adaptx.adam(0.1)
    ),
    "adamod at a constant step size warms up": Limit(
        lambda: adaptx.adamod(0.1, b1=0.0, b2=0.0, b3=0.5, eps=0.0), lambda: _averaged_rate(0.1, 0.5), signs=True
    ),
    "radam that never rectifies is corrected momentum": Limit(
        lambda: adaptx.radam(0.1, rho_threshold=1e9), lambda: optax.chain(optax.ema(0.9), optax.scale(-0.1))
    ),
    "radam with a short average never rectifies": Limit(
        lambda: adaptx.radam(0.1, b2=0.6), lambda: optax.chain(optax.ema(0.9), optax.scale(-0.1))
    ),
    "yogi while its second moment grows is adagrad": Limit(
        lambda: adaptx.yogi(0.1, b1=0.0, eps=0.0, initial_accumulator=0.0),
        lambda: adaptx.adagrad(0.1 / np.sqrt(1 - 0.999), eps=0.0),
    ),
    "adabelief without a prediction is sgd": Limit(
        lambda: adaptx.adabelief(0.1, b1=0.0, eps=0.0, eps_root=1.0), lambda: optax.scale(-0.1)
    ),
}


def _averaged_rate(rate: float, b: float) -> optax.GradientTransformation:
    """Signs times the uncorrected average of a constant rate."""
    return optax.chain(optax.scale_by_schedule(lambda count: -rate * (1 - b ** (count + 1.0))))


@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
def test_limit(limit: Limit) -> None:
    limits.test_limit(limit)


@pytest.mark.parametrize("degenerated_to_sgd", [True, False])
def test_radam_late_is_adam(degenerated_to_sgd: bool) -> None:
    """After a million steps the factor is 1: from there on both take the same steps."""
    g = {"a": jnp.asarray([1.0, -2.0, 0.5])}
    updates = []
    tx: Any
    for tx in (adaptx.radam(0.1, degenerated_to_sgd=degenerated_to_sgd), adaptx.adam(0.1)):
        updates.append(tx.update(g, tx.init(g)._replace(count=jnp.int32(10**6)))[0]["a"])
    np.testing.assert_allclose(*updates, rtol=2e-6)


def test_radam_takes_a_traced_threshold() -> None:
    """The bound on rho may be a number of the program's own, as any other."""
    g = {"a": jnp.asarray([1.0, -2.0])}

    def fifth(rho_threshold: Any) -> Any:
        tx: Any = adaptx.radam(0.1, rho_threshold=rho_threshold)
        return tx.update(g, tx.init(g)._replace(count=jnp.int32(4)))[0]["a"]

    thresholds = (4.0, 4.99, 5.0)
    got = jax.jit(jax.vmap(fifth))(jnp.asarray(thresholds))
    np.testing.assert_allclose(got, [fifth(bound) for bound in thresholds], rtol=1e-6)
    assert np.array_equal(got[0], got[1])
    assert np.all(np.abs(got[2]) > np.abs(got[1]))


def exact_length(c: float, t: int) -> float:
    """rho_t in 80 digits; c is 1 - b."""
    with localcontext() as digits:
        digits.prec = 80
        b = 1 - Decimal(c)
        power = b**t
        return float(2 / Decimal(c) - 1 - 2 * t * power / (1 - power))


COUNTS = [1, 2, 3, 4, 5, 6, 7, 10, 39, 41, 399, 400, 401, 1000, 10**4, 10**5, 4 * 10**6, 10**8, 2**31 - 1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("c", [1.0, 0.3, 0.1, 1e-2, 1e-3, 1e-4, 1e-7])
def test_the_averaged_length_does_not_cancel(c: float, dtype: str) -> None:
    """rho_t to a few roundings from the first count to the last, as a number and traced; r_t is in [0, 1]."""
    with x64(dtype == "float64"):
        t = jnp.asarray(COUNTS, dtype)
        expected = [exact_length(c, int(n)) for n in np.asarray(t, float)]
        traced = Decay(jnp.asarray(1 - c, dtype), jnp.asarray(c, dtype))
        for b in (Decay(1 - c, c), traced):
            rho, rho_inf = averaged_length(b, Clock(t=t))
            # Where both forms meet, at t (1 - b) = 0.4, the difference still loses a digit.
            np.testing.assert_allclose(rho, expected, rtol=24 * float(jnp.finfo(dtype).eps))
            tractable, r = rectification(b, 4.0, Clock(t=t))
            assert np.all((np.asarray(r) >= 0) & (np.asarray(r) <= 1 + 1e-6))
            assert np.array_equal(tractable, np.asarray(rho) > 4)
            np.testing.assert_allclose(rho_inf, 2 / c - 1, rtol=1e-6)


@pytest.mark.parametrize("count", [0, 3, 8, 1000])
def test_radam_has_derivatives_by_b2(count: int) -> None:
    """On both sides of the threshold and of the two forms of rho; finite also where nothing is rectified."""
    with x64():
        g = {"a": jnp.asarray([1.0, -2.0, 0.0])}

        def size(b2: Any) -> Any:
            tx: Any = adaptx.radam(0.1, b2=b2, eps=1e-3)
            state = tx.init(g)._replace(count=jnp.int32(count), nu={"a": jnp.ones(3)})
            return jnp.sum(tx.update(g, state)[0]["a"] ** 2)

        of = jax.jit(jax.vmap(jax.grad(size)))
        b2 = jnp.asarray([0.9, 0.97, 0.999, 0.0, 0.6, 0.5])
        derivatives = np.asarray(of(b2))
        assert np.all(np.isfinite(derivatives))
        ahead, behind = (jax.vmap(size)(b2[:3] + h) for h in (1e-7, -1e-7))
        np.testing.assert_allclose(derivatives[:3], (ahead - behind) / 2e-7, rtol=1e-5, atol=1e-9)


def test_padam_has_derivatives_where_nothing_was_measured() -> None:
    """A power of 0: finite by the gradient and by p, with and without eps."""
    for eps in (0.0, 1e-8):

        def size(g: Any, partial: Any, eps: float = eps) -> Any:
            tx: Any = adaptx.padam(0.1, eps=eps, partial=partial)
            return jnp.sum(tx.update(g, tx.init(g))[0])

        derivatives = jax.grad(size, (0, 1))(jnp.asarray([0.0, 1.0]), 0.125)
        assert all(np.all(np.isfinite(d)) for d in derivatives)


def test_adamod_cuts_a_step_size_that_jumps() -> None:
    """When gradients shrink a thousandfold Adam's step size jumps, and AdaMod's stays at its average."""
    tx: Any = adaptx.adamod(0.1, b1=0.0, b2=0.0, b3=0.9, eps=0.0)
    g = {"a": jnp.ones(1)}
    state = tx.init(g)
    for _ in range(200):
        _, state = tx.update(g, state)
    u, _ = tx.update({"a": jnp.full(1, 1e-3)}, state)
    # eta = 0.1 before and 100 now: s = 0.9 * 0.1 + 0.1 * 100.
    np.testing.assert_allclose(u["a"], -1e-3 * (0.9 * 0.1 + 0.1 * 100), rtol=1e-5)
