"""Hyperparameters in the state: what is kept, how it is read and changed, and that nothing is compiled for it."""

from __future__ import annotations

import functools
import logging
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization

import adaptx
from adaptx.core.moments import Decay
from adaptx.hyperparams import DecayPair, InjectState, get_hyperparams, inject_hyperparams, set_hyperparams
from tests.conftest import x64

X = {"b": jnp.ones(2), "w": jnp.ones((3, 2))}
HALF = jax.tree.map(lambda x: x.astype(jnp.bfloat16), X)
adam = inject_hyperparams(adaptx.adam)


def steps(tx: Any, state: Any, params: Any = X, count: int = 3) -> tuple[Any, Any]:
    """Parameters and state after some eager steps."""
    for i in range(count):
        grads = jax.tree.map(lambda x, i=i: jnp.cos(x + i), params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_what_is_kept() -> None:
    """Numbers, as float32 also where parameters are not; a decay rate with its exact complement; nothing else."""
    for params in (X, HALF):
        state = adam(0.1, b2=0.9999).init(params)
        assert state.hyperparams.keys() == {"learning_rate", "b1", "b2", "eps", "eps_root"}
        b2 = state.hyperparams["b2"]
        assert isinstance(b2, DecayPair)
        assert float(b2.complement) == np.float32(1 - 0.9999)
        assert {a.dtype for a in jax.tree.leaves(state.hyperparams)} == {jnp.dtype(jnp.float32)}
    assert "weight_decay" in adam(0.1, weight_decay=0.0).init(X).hyperparams
    with x64():
        state = adam(0.1).init({"w": jnp.ones(2, jnp.float64)})
        assert state.hyperparams["learning_rate"].dtype == jnp.float64
        assert float(state.hyperparams["b1"].complement) == 1 - 0.9


def test_static_arguments() -> None:
    """What the library declares static is no number of the state, nor is what the caller names."""
    mask = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
    tx = inject_hyperparams(adaptx.adamw)(0.1, amsgrad=True, mask=mask)
    assert not {"amsgrad", "mask"} & tx.init(X).hyperparams.keys()
    rounds = inject_hyperparams(adaptx.sparse.adagrad)(0.1, seed=3)
    assert "seed" not in rounds.init(X).hyperparams
    assert "eps" not in inject_hyperparams(adaptx.adam, static="eps")(0.1).init(X).hyperparams
    with pytest.raises(TypeError, match="inject_hyperparams: adam has no argument lr; allowed are learning_rate, b1"):
        inject_hyperparams(adaptx.adam, static=["lr"])


def test_values_are_checked_when_they_are_given() -> None:
    with pytest.raises(ValueError, match=r"adam: b1 must be in \[0, 1\), got 1.5"):
        adam(0.1, b1=1.5)
    with pytest.raises(TypeError, match="adam: no argument lr; it is learning_rate here"):
        adam(lr=0.1)


def test_nothing_is_compiled_for_a_new_value(caplog: pytest.LogCaptureFixture) -> None:
    """Not in a jitted step, and an eager update is compiled once."""
    tx, traced = adam(0.1), []

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        traced.append(1)
        return tx.update(params, state, params)

    state = tx.init(X)
    for rate in (0.1, 0.2, 0.3):
        state = set_hyperparams(state, learning_rate=rate, b1=rate)
        _, state = step(X, state)
        tx.update(X, state, X)
    assert len(traced) == 1
    np.testing.assert_allclose(get_hyperparams(state)["b1"], 0.3)
    changed = set_hyperparams(state, learning_rate=0.7)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        tx.update(X, changed, X)
    assert not [line for line in caplog.messages if "compil" in line.lower()]
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        tx.update({"w": jnp.ones(7)}, tx.init({"w": jnp.ones(7)}))
    assert [line for line in caplog.messages if "compil" in line.lower()]  # which would have been seen


def test_set_values_are_those_of_a_closed_over_optimizer() -> None:
    tx = adam(0.1)
    params, state = steps(tx, tx.init(X))
    got = steps(tx, set_hyperparams(state, learning_rate=0.02, b2=0.9999), params)
    expected = steps(adaptx.adam(0.02, b2=0.9999), state.inner, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), (got[0], got[1].inner), expected)


def test_schedules() -> None:
    """The value of the step that was taken last stands in the state; a set value stops the schedule, if it is meant."""
    tx = adam(optax.linear_schedule(0.4, 0.0, 4), weight_decay=optax.constant_schedule(0.5))
    state = tx.init(X)
    assert float(get_hyperparams(state)["learning_rate"]) == np.float32(0.4)
    params, state = steps(tx, state)
    np.testing.assert_allclose(get_hyperparams(state)["learning_rate"], 0.2, rtol=1e-6)  # of the third step
    same, _ = steps(adaptx.adam(optax.linear_schedule(0.4, 0.0, 4), weight_decay=0.5), adaptx.adam(0.1).init(X))
    # Parameters of size 1, of which the steps leave a twentieth: the rounding is that of 1.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), params, same)
    with pytest.raises(ValueError, match="set_hyperparams: learning_rate is scheduled; override=True stops"):
        set_hyperparams(state, learning_rate=1.0)
    state = set_hyperparams(state, override=True, learning_rate=1.0)
    _, state = steps(tx, state, params)
    assert float(get_hyperparams(state)["learning_rate"]) == 1
    assert float(get_hyperparams(state)["weight_decay"]) == 0.5


def test_chains_partitions_and_names() -> None:
    tx = optax.chain(optax.clip(1.0), adam(0.1), inject_hyperparams(adaptx.zero_small)(1e-3))
    state = tx.init(X)
    found = get_hyperparams(state)
    assert float(found["threshold"]) == np.float32(1e-3)
    state = set_hyperparams(state, threshold=0.5, b1=0.0)
    assert float(state[1].hyperparams["b1"].complement) == 1
    groups = optax.partition({"a": adam(0.1), "z": adam(0.2)}, {"b": "a", "w": "z"})
    state = groups.init(X)
    found = get_hyperparams(state)
    paths = ["a/learning_rate", "z/learning_rate"]
    assert [float(found[p]) for p in paths] == [np.float32(0.1), np.float32(0.2)]
    with pytest.raises(ValueError, match=r"learning_rate may be any of a/learning_rate, z/learning_rate; give"):
        set_hyperparams(state, learning_rate=1.0)
    state = set_hyperparams(state, {paths[1]: 0.3})
    assert [float(get_hyperparams(state)[p]) for p in paths] == [np.float32(0.1), np.float32(0.3)]
    with pytest.raises(ValueError, match="set_hyperparams: b3 is not there; there are "):
        set_hyperparams(state, b3=1.0)
    with pytest.raises(ValueError, match="learning_rate is not there; there are none"):
        set_hyperparams(adaptx.adam(0.1).init(X), learning_rate=1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"b1": 1.5}, r"b1 must be in \[0, 1\), got 1.5"),
        ({"b1": None}, r"b1 must be in \[0, 1\), got None"),
        ({"eps": -1}, "eps must be >= 0, got -1"),
        ({"learning_rate": "fast"}, "learning_rate must be a number, 0-d array or schedule >= 0, got 'fast'"),
        ({"learning_rate": optax.constant_schedule(1.0)}, r"learning_rate must be a number or of shape \(\), got <"),
        ({"eps": np.ones(3)}, r"eps must be a number or of shape \(\), got float64\[3\]"),
        ({"b2": np.array([0.5, 2.0])}, r"b2 must be in \[0, 1\), got np.float64\(2.0\)"),
    ],
)
def test_bad_values(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^set_hyperparams: {message}"):
        set_hyperparams(adam(0.1).init(X), **values)


def test_a_sweep_is_a_vmapped_state() -> None:
    tx, rates = adam(0.1), jnp.array([0.1, 0.2, 0.4])
    state = jax.vmap(lambda _: tx.init(X))(rates)
    state = set_hyperparams(state, learning_rate=rates, b1=0.5)
    assert state.hyperparams["b1"].value.shape == (3,)
    updates, _ = jax.vmap(tx.update, (None, 0, None))(X, state, X)
    one, _ = adaptx.adam(0.4, b1=0.5).update(X, adaptx.adam(0.1).init(X), X)
    np.testing.assert_allclose(updates["w"][2], one["w"], rtol=1e-6)


def test_optax_factories() -> None:
    """A drop-in for Optax's own: integers stay integers, rates are float32, and what differs is the rounding of b2."""
    tx = inject_hyperparams(optax.adamw)(optax.constant_schedule(0.1), mask=lambda params: True)
    got, _ = steps(tx, tx.init(X))
    expected, _ = steps(optax.adamw(0.1), optax.adamw(0.1).init(X))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), got, expected)
    ema = inject_hyperparams(lambda decay, k: optax.ema(decay + 0 * k))(0.9, 3)
    assert ema.init(X).hyperparams["k"].dtype == jnp.int32


def test_extra_arguments_and_the_wrong_state() -> None:
    tx = adam(0.1)
    state = tx.init(X)
    plain, _ = tx.update(X, state, X)
    for extra in ({"value": 1.0}, {"of_no_use": "x"}, {"value_fn": jnp.sum}):
        jax.tree.map(np.testing.assert_array_equal, tx.update(X, state, X, **extra)[0], plain)
    with pytest.raises(TypeError, match="the state must be the InjectState that init gives, got AdamState"):
        tx.update(X, state.inner, X)
    assert isinstance(jax.eval_shape(tx.init, X), InjectState)


def test_hyperparameters_are_differentiable() -> None:
    def after(rate: Any) -> Any:
        tx = adam(0.1)
        updates, _ = tx.update(X, set_hyperparams(tx.init(X), learning_rate=rate), X)
        return jnp.sum(updates["w"])

    np.testing.assert_allclose(jax.grad(after)(0.3), -6, rtol=1e-5)


LINEAR = optax.linear_schedule(0.1, 0.0, 8)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("factory", "kwargs"),
    [
        (optax.adamw, dict(learning_rate=0.1)),
        (optax.sgd, dict(learning_rate=0.1, momentum=0.9)),
        (optax.rmsprop, dict(learning_rate=0.1)),
        (optax.sgd, dict(learning_rate=LINEAR)),
        (optax.adagrad, dict(learning_rate=LINEAR)),
        (optax.adafactor, dict(learning_rate=LINEAR)),
        (optax.adamw, dict(learning_rate=LINEAR, weight_decay=0.1)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_factories_of_optax(factory: Any, kwargs: dict[str, Any], dtype: Any) -> None:
    """Dtypes are those of closed-over numbers, so that a scan runs; schedules also where Optax would add the count."""
    params = jax.tree.map(lambda x: x.astype(dtype), X)

    def run(tx: Any) -> Any:
        def body(carry: Any, i: Any) -> Any:
            params, state = carry
            grads = jax.tree.map(lambda x: jnp.cos(x + i.astype(x.dtype)), params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), updates

        return jax.jit(lambda: jax.lax.scan(body, (params, tx.init(params)), jnp.arange(6)))()

    (got, state), updates = run(inject_hyperparams(factory)(**kwargs))
    (expected, _), like = run(factory(**kwargs))
    kinds = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
    assert kinds(updates) == kinds(like)
    tolerance = 1e-4 if dtype == jnp.float32 else 0.05
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, expected)
    if callable(kwargs["learning_rate"]):
        np.testing.assert_allclose(get_hyperparams(state)["learning_rate"], LINEAR(5), rtol=1e-6)


@pytest.mark.parametrize("name", ["count", "c"])
def test_a_parameter_may_be_called_count(name: str) -> None:
    """Only a field of a state that is one integer is a count."""
    factory = lambda learning_rate: optax.chain(
        optax.trace(0.9), optax.scale_by_adam(), optax.scale_by_learning_rate(learning_rate)
    )
    tx, params = inject_hyperparams(factory)(LINEAR), {name: jnp.ones(2)}
    _, state = steps(tx, tx.init(params), params, 4)
    np.testing.assert_allclose(get_hyperparams(state)["learning_rate"], LINEAR(3), rtol=1e-6)


def test_what_is_given_as_an_array_is_not_donated() -> None:
    rate, rates = jnp.float32(0.1), jnp.float32(0.2)
    tx = adam(rate)
    step = jax.jit(lambda state, grads: tx.update(grads, state)[1], donate_argnums=0)
    step(set_hyperparams(step(tx.init(X), X), learning_rate=rates), X)
    assert (float(rate), float(rates)) == (np.float32(0.1), np.float32(0.2))
    assert float(get_hyperparams(tx.init(X))["learning_rate"]) == np.float32(0.1)


def test_the_state_is_saved_and_loaded() -> None:
    """By Flax's serialization, whose named tuples all parts of the state are."""
    tx = adam(LINEAR, weight_decay=0.1)
    params, state = steps(tx, tx.init(X))
    loaded = serialization.from_bytes(tx.init(X), serialization.to_bytes(state))
    jax.tree.map(np.testing.assert_array_equal, loaded, state)
    jax.tree.map(np.testing.assert_array_equal, steps(tx, loaded, params), steps(tx, state, params))


def test_a_partial_of_our_factory_is_ours() -> None:
    part = inject_hyperparams(functools.partial(adaptx.adam, b2=0.9999))(0.1)
    assert isinstance(part.init(X).hyperparams["b2"], DecayPair)
    given = inject_hyperparams(lambda rate, b: adaptx.adam(rate, b2=b))(0.1, Decay.of(0.9999))
    for tx in (part, given):
        expected = steps(adaptx.adam(0.1, b2=0.9999), adaptx.adam(0.1).init(X))[1]
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), steps(tx, tx.init(X))[1].inner.nu, expected.nu
        )


def test_numbers_of_others() -> None:
    """Ints that were given are kept as ints and set as such; keys, flags and what was left at default are not kept."""
    factory = lambda decay, every=2, size=3: optax.ema(decay + 0.0 * every * size)
    tx, traced = inject_hyperparams(factory)(0.9, every=4), []

    @jax.jit
    def step(state: Any) -> Any:
        traced.append(1)
        return tx.update(X, state)[1]

    state = step(tx.init(X))
    assert state.hyperparams.keys() == {"decay", "every"}
    step(set_hyperparams(state, every=5, decay=0.8))
    assert len(traced) == 1
    with pytest.raises(ValueError, match=r"set_hyperparams: every must be an integer or of shape \(\), got 2.7"):
        set_hyperparams(state, every=2.7)
    noise = inject_hyperparams(optax.add_noise)(0.1, 0.5, jax.random.key(0))
    assert noise.init(X).hyperparams.keys() == {"eta", "gamma"}
    noise.update(X, noise.init(X))
    sgd = inject_hyperparams(optax.sgd)(-0.1)  # upwards: no rate of ours, so it may stay one
    assert float(get_hyperparams(set_hyperparams(sgd.init(X), learning_rate=-0.2))["learning_rate"]) == np.float32(-0.2)


def test_every_extra_argument_arrives() -> None:
    """Arrays through the compiled step, anything else beside it; a bool stays one."""
    seen = []

    def factory(learning_rate: Any) -> Any:
        def update(updates: Any, state: Any, params: Any = None, *, value: Any = None, refresh: Any = None) -> Any:
            seen.append(refresh)
            return jax.tree.map(lambda u: -learning_rate * value * u, updates), state

        return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)

    tx = inject_hyperparams(factory)(0.5)
    updates, _ = tx.update(X, tx.init(X), X, value=3.0)
    np.testing.assert_array_equal(updates["w"], -1.5)
    updates, _ = tx.update(X, tx.init(X), X, value=jnp.float32(2.0), refresh=True)
    np.testing.assert_array_equal(updates["w"], -1.0)
    assert seen[-1] is True


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: inject_hyperparams(3), "inject_hyperparams: it needs a function that makes an optimizer, got 3"),
        (
            lambda: inject_hyperparams(adaptx.adam, static=[3]),
            "inject_hyperparams: adam has no argument 3; allowed are ",
        ),
        (lambda: set_hyperparams(adam(0.1).init(X), 0.1), "give values by name, or in a dict of names, not 0.1"),
        (lambda: set_hyperparams(adam(0.1).init(X), {"b1": 0.1}, b1=0.2), "set_hyperparams: b1 is given twice"),
        (lambda: adam(lambda t: jnp.ones(2)).init(X), "adam: the schedule of learning_rate must give one real number"),
        (lambda: inject_hyperparams(optax.adam)(lambda t: None).init(X), "must give one real number, got None"),
    ],
    ids=range(6),
)
def test_what_does_not_fit_is_refused_in_one_line(call: Any, line: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(line)) as refusal:
        call()
    assert "\n" not in str(refusal.value)
