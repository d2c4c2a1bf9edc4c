"""16-bit parameters that track float32: where updates land, what they keep, and what they do not touch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import adaptx
from adaptx import precision
from adaptx.core.rounding import noise, rounded, salted, stochastic
from tests.conformance.cases import grads_like, params_like

SHORT = ("bfloat16", "float16")
CURES: dict[str, Callable[[Any], Any]] = {
    "stochastic_rounding": lambda tx: optax.chain(tx, precision.stochastic_rounding(0)),
    "kahan": lambda tx: optax.chain(tx, precision.kahan()),
    "master_weights": precision.master_weights,
}
cures = pytest.mark.parametrize("cure", CURES)


def trained(tx: Any, params: Any, grads: Callable[[Any], Any], steps: int) -> Any:
    """The parameters after so many steps, and the state."""

    @jax.jit
    def run(params: Any) -> Any:
        def body(_: Any, carry: Any) -> Any:
            params, state = carry
            updates, state = tx.update(grads(params), state, params)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, steps, body, (params, tx.init(params)))

    return run(params)


@cures
@pytest.mark.parametrize("dtype", SHORT)
def test_pure_decay_does_not_stall(cure: str, dtype: str) -> None:
    """2,000 AdamW steps of decay alone: float32 goes to 0.819, and a plain 16-bit weight stays where it is."""
    tx = adaptx.adamw(1e-3, weight_decay=0.1)
    nothing = functools.partial(jax.tree.map, jnp.zeros_like)
    full, _ = trained(tx, jnp.ones(512), nothing, 2000)
    np.testing.assert_allclose(full, 0.8187, atol=1e-4)
    start = jnp.ones(512, dtype)
    assert np.all(np.asarray(trained(tx, start, nothing, 2000)[0]) == 1), "without a cure"
    found, _ = trained(CURES[cure](tx), start, nothing, 2000)
    assert found.dtype == dtype
    # Each weight of stochastic rounding walks at random, in steps of at most one part in 128; their mean does not.
    assert abs(np.mean(found, dtype=float) / 0.8187 - 1) < 2e-3
    if cure != "stochastic_rounding":
        np.testing.assert_allclose(np.asarray(found, float), 0.8187, rtol=float(jnp.finfo(dtype).eps))


@cures
@pytest.mark.parametrize("dtype", SHORT)
def test_a_regression_tracks_float32(cure: str, dtype: str) -> None:
    """The loss after 1,000 small steps is float32's to 5 %; the plain 16-bit run's is larger by a fifth and more."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 16)), jnp.float32)
    y = x @ jnp.asarray(rng.normal(size=16), jnp.float32)
    loss = lambda w: jnp.mean((x @ w.astype(jnp.float32) - y) ** 2)
    tx, start = adaptx.adam(1e-3), jnp.full(16, 4.0)
    after = lambda tx, w: float(loss(trained(tx, w, jax.grad(loss), 1000)[0]))
    full = after(tx, start)
    assert abs(after(CURES[cure](tx), start.astype(dtype)) / full - 1) < 0.05
    assert after(tx, start.astype(dtype)) > 1.2 * full


@pytest.mark.parametrize("dtype", SHORT)
def test_updates_land_bit_for_bit(dtype: str) -> None:
    """On 2 million values, with updates from 2^-30 to 8 times the parameter."""
    rng = np.random.default_rng(0)
    size = 1_000_000
    x = jnp.asarray(rng.normal(size=size) * 2.0 ** rng.integers(-8, 8, size), dtype)
    u = x.astype(jnp.float32) * jnp.asarray(rng.normal(size=size) * 2.0 ** rng.integers(-30, 4, size), jnp.float32)
    y = x.astype(jnp.float32) + u
    nearest = rounded(y, dtype)
    for tx, target in (
        (precision.kahan(), nearest),
        (precision.master_weights(optax.identity()), nearest),
        (precision.stochastic_rounding(3), stochastic(y, dtype, noise(x.shape, salted(3, jnp.int32(0), "the root")))),
    ):
        updates, _ = tx.update(u, tx.init(x), x)
        assert updates.dtype == jnp.float32
        np.testing.assert_array_equal(optax.apply_updates(x, updates).view(jnp.uint16), target.view(jnp.uint16))


@cures
def test_other_parameters_are_as_without(cure: str) -> None:
    """float32, complex and None leaves beside 16-bit ones: the same bits, and nothing kept for them."""
    params = {"f": params_like(), "c": params_like(jnp.complex64), "n": None, "h": jnp.ones(3, jnp.bfloat16)}
    tx = adaptx.adam(0.1)
    outcome = lambda tx: tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    (plain, _), (cured, _) = outcome(tx), outcome(CURES[cure](tx))
    for name in "fcn":
        assert jax.tree.all(jax.tree.map(np.array_equal, plain[name], cured[name]))
    assert cured["h"].dtype == jnp.float32
    extra = precision.memory(CURES[cure](tx), params).total - precision.memory(tx, params).total
    assert extra == {"stochastic_rounding": 4, "kahan": 6, "master_weights": 12}[cure]


@pytest.mark.parametrize("dtype", SHORT)
def test_kahan_and_the_parameter_are_float32_together(dtype: str) -> None:
    """After 200 steps x + lost is the sum in float64, to a rounding of `lost` a step."""
    rng = np.random.default_rng(1)
    tx, x = precision.kahan(), jnp.asarray(rng.uniform(1, 2, 100), dtype)
    state, exact = tx.init(x), np.asarray(x, float)
    update = jax.jit(tx.update)
    for _ in range(200):
        u = jnp.asarray(rng.normal(size=100) * 1e-4, jnp.float32)
        updates, state = update(u, state, x)
        x, exact = optax.apply_updates(x, updates), exact + np.asarray(u, float)
    eps = float(jnp.finfo(dtype).eps)
    assert state.lost.dtype == dtype
    assert np.any(np.asarray(x, float) != exact)
    bound = 200 * (eps / 2) ** 2 * 2  # `lost` is at most half a unit of x, and is rounded like x
    assert np.abs(np.asarray(x, float) + np.asarray(state.lost, float) - exact).max() < bound


def test_the_noise_is_that_of_seed_step_and_path() -> None:
    params = {"a": jnp.ones(256, jnp.bfloat16), "b": jnp.ones(256, jnp.bfloat16)}
    half = jax.tree.map(lambda x: jnp.full(x.shape, 2.0**-9), params)  # half way to the number below or above

    def rounding(seed: int, steps: int, params: Any = params) -> Any:
        tx = precision.stochastic_rounding(seed)
        state = tx.init(params)._replace(steps=jnp.int32(steps))
        return tx.update({k: half[k] for k in params}, state, params)[0]

    first = rounding(0, 0)
    assert np.array_equal(first["a"], rounding(0, 0, {"a": params["a"]})["a"]), "other leaves do not matter"
    for other in (rounding(1, 0)["a"], rounding(0, 1)["a"], first["b"], rounding(0, 30_000_000)["a"]):
        agree = np.mean(np.asarray(other) == np.asarray(first["a"]))
        assert 0.3 < agree < 0.7


@pytest.mark.suite
@cures
def test_sharding_changes_nothing(cure: str) -> None:
    """The same bits however the tree is sharded, and what is kept is sharded like the parameters."""
    tx, grads = CURES[cure](adaptx.adam(0.01)), grads_like(3, jnp.bfloat16)
    params = params_like(jnp.bfloat16)
    mesh = jax.make_mesh((3,), ("x",), devices=jax.devices()[:3])
    by_row = NamedSharding(mesh, PartitionSpec("x"))

    def run(params: Any) -> Any:
        state, update = tx.init(params), jax.jit(tx.update)
        for i in range(3):
            updates, state = update(jax.tree.map(lambda a, i=i: a[i], grads), state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    expected, _ = run(params)
    found, state = run({**params, "w": jax.device_put(params["w"], by_row)})
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(a, float), np.asarray(b, float))
    assert all(a.sharding.is_equivalent_to(by_row, 2) for a in jax.tree.leaves(state) if a.shape == (3, 2))


@cures
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_inf_show_where_they_are(cure: str, bad: float) -> None:
    tx, x = CURES[cure](optax.identity()), jnp.ones(4, jnp.bfloat16)
    updates, state = tx.update(jnp.array([0.0, bad, 0.0, 0.0]), tx.init(x), x)
    x = optax.apply_updates(x, updates)
    np.testing.assert_array_equal(np.isfinite(np.asarray(x, float)), [True, False, True, True])
    if cure == "kahan":
        assert np.all(np.isfinite(np.asarray(state[1].lost, float))), "the rest of what is lost is no number"


def test_masters_are_the_optimizers_parameters() -> None:
    """Weight decay and norms are those of the float32 copy; an injected rate inside is found and set."""
    tx = precision.master_weights(adaptx.hyperparams.inject_hyperparams(adaptx.adamw)(0.1, weight_decay=0.1))
    x = jnp.full(4, 1.0, jnp.bfloat16)
    state = tx.init(x)._replace(master=jnp.full(4, 1.001))
    _, after = tx.update(jnp.zeros(4, jnp.bfloat16), state, x)
    np.testing.assert_allclose(after.master, 1.001 * (1 - 0.01), rtol=1e-6)
    assert float(adaptx.hyperparams.get_hyperparams(after)["learning_rate"]) == np.float32(0.1)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: precision.stochastic_rounding(-1), "stochastic_rounding: seed must be an int >= 0, got -1"),
        (lambda: precision.stochastic_rounding(0.5), "stochastic_rounding: seed must be an int >= 0, got 0.5"),
        (lambda: precision.master_weights(adaptx.adam), "master_weights: tx must be an optax.GradientTransformation"),
        (lambda: precision.kahan(dtype="bfloat16"), "kahan: no argument dtype; allowed are "),
        (lambda: precision.kahan().init(jnp.ones(2, int)), "kahan: the parameter at the root is int32"),
    ],
)
def test_bad_arguments(call: Callable[[], Any], line: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [precision.stochastic_rounding, precision.kahan])
def test_what_update_needs(make: Callable[[], Any]) -> None:
    tx, x, name = make(), jnp.ones(2, jnp.bfloat16), make.__name__
    with pytest.raises(ValueError, match=f"^{name}: update needs params"):
        tx.update(x, tx.init(x))
    with pytest.raises(TypeError, match=f"^{name}: the state must be the .*State that init gives, got EmptyState"):
        tx.update(x, optax.EmptyState(), x)
    with pytest.raises(ValueError, match=f"^{name}: the gradient at the root must be like bfloat16"):
        tx.update(jnp.ones(1, jnp.bfloat16), tx.init(x), x)
