"""Laws E: zero, tiny and huge gradients, counts, parameters and eps; NaN and Inf."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adaptx.optimizers.adam.adam import AdamState
from tests.conformance.cases import Case, grads_like, params_like
from tests.conformance.compare import assert_finite, wide
from tests.conformance.law import law, leaves_named
from tests.conformance.program import RECORDED, Run, numbers, run, run_traced

LAST_COUNT = 2**31 - 1


@functools.cache
def constant_gradients(size: float, dtype: str) -> Any:
    """RECORDED gradients of one modulus, with the signs of ordinary ones."""
    return jax.tree.map(lambda g: jnp.sign(g) * jnp.asarray(size, g.dtype), grads_like(RECORDED, dtype))


@functools.cache
def steady_gradients(size: float, dtype: str) -> Any:
    """RECORDED gradients that differ in the fourth digit: what is left of a variance is rounding, of either sign."""
    jitter = lambda g: jnp.asarray(size * np.sign(g[:1]) * (1 + 1e-4 * np.asarray(g, float)), dtype)
    return jax.tree.map(jitter, grads_like(RECORDED))


def naive_adam(case: Case) -> Case:
    """Adam as it is often written: all in the gradient's dtype, an eps that float16 cannot hold, no clamp."""

    def init(params: Any) -> AdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AdamState(jnp.zeros([], jnp.int32), zeros, zeros)

    def update(updates: Any, state: AdamState, params: Any = None) -> Any:
        count = state.count + 1
        b1, b2 = 1 - 0.9**count, 1 - 0.999**count
        mu = jax.tree.map(lambda m, g: (0.9 * m + 0.1 * g).astype(g.dtype), state.mu, updates)
        nu = jax.tree.map(lambda v, g: (0.999 * v + 0.001 * g * g).astype(g.dtype), state.nu, updates)
        eps = lambda v: jnp.asarray(1e-8, v.dtype)
        u = jax.tree.map(lambda m, v: (-1e-3 * (m / b1) / (jnp.sqrt(v / b2) + eps(v))).astype(m.dtype), mu, nu)
        return u, AdamState(count, mu, nu)

    return dataclasses.replace(case, factory=lambda **_: optax.GradientTransformationExtraArgs(init, update))


def _is_decay_alone(case: Case, result: Run, recorded: int, dtype: str) -> bool:
    """Every recorded update is zero or, with weight decay, takes one and the same part of each entry of a tensor."""
    decays = "weight_decay" in numbers(case)
    eps, smallest = float(jnp.finfo(dtype).eps), float(jnp.finfo(dtype).smallest_subnormal)
    updates, iterates = (jax.tree.map(wide, tree) for tree in (result.updates, result.iterates))
    for u, x in zip(jax.tree.leaves(updates), jax.tree.leaves(iterates), strict=True):
        for u_t, x_t in zip(u[:recorded], x[:recorded], strict=True):
            part = -np.sum(u_t * x_t) / np.sum(x_t * x_t)
            # Half an ulp for the cast, which may end in a subnormal number, and as much for the mean over the tensor.
            same = np.abs(u_t + part * x_t).max() <= eps * np.abs(u_t).max() + smallest
            if u_t.any() and not (decays and part > 0 and same):
                return False
    return True


@law("E1", tier="C", plant=naive_adam)
def zero_gradients(case: Case) -> None:
    """Zero gradients, 3 steps and 10,000, in every dtype: all stays finite, and nothing or the decay alone moves."""
    for dtype in ("float16", "bfloat16", "float32"):
        params, grads = params_like(dtype), jax.tree.map(jnp.zeros_like, grads_like(RECORDED, dtype))
        few, many = run(case, params, grads, 3), run(case, params, grads, 10_000)
        held = run(case, params, grads, 10_000, held=True)  # decayed parameters would end in subnormal numbers
        for name, result in (("3 steps", few), ("10,000 steps", many), ("10,000 steps, held", held)):
            assert_finite(f"{case.id} {dtype}: {name} of zero gradients, ", result)
        fixed = _is_decay_alone(case, few, 3, dtype) and _is_decay_alone(case, held, RECORDED, dtype)
        assert fixed == case.flag("zero_is_fixed"), (
            f"{case.id} {dtype}: zero gradients give {'' if fixed else 'more than '}the decay alone, "
            f"but zero_is_fixed is {case.flag('zero_is_fixed')}"
        )


# The ends of each format, and where squares and their sums leave float32's.
SIZES = {
    "float32": (1e-45, 1e-38, 1e-30, 1e-19, 1.0, 123.46, 1e17, 1e19, 1e30, 1e38),
    "float16": (6e-8, 65504.0),
    "bfloat16": (1e-38, 3.3895314e38),
}


@law("E2", tier="C", plant=naive_adam)
def any_size_is_finite(case: Case) -> None:
    """Steady gradients of any finite size give finite updates and states, until long after averages have settled."""
    for dtype, sizes in SIZES.items():
        for size in sizes:
            # Held in 16 bits: parameters that a huge rate takes beyond 65504 are no fault of the update.
            result = run(case, params_like(dtype), steady_gradients(size, dtype), 400, held=dtype != "float32")
            assert_finite(f"{case.id}: |g| = {size:g} in {dtype}, ", (result.updates, result.state))


def _step_sizes(case: Case, size: float, dtype: str) -> np.ndarray:
    """The mean |u| of each leaf over 5 steps of constant gradients."""
    updates = jax.tree.map(wide, run(case, params_like(dtype), constant_gradients(size, dtype), 5).updates)
    return np.array([np.abs(u[:5]).mean() for u in jax.tree.leaves(updates)])


@law("E3", tier="C", plant=naive_adam)
def huge_gradients_do_not_stall(case: Case) -> None:
    """`normalised`: the step for huge gradients is at least half the step for 1, and not larger than twice that."""
    ratios = [
        _step_sizes(case, huge, dtype) / _step_sizes(case, 1.0, dtype)
        for dtype, huge in (("float32", 1e20), ("float16", 300.0))
    ]
    normalised = all((0.5 <= r).all() and (r <= 2).all() for r in ratios)
    flag = case.flag("normalised")
    assert normalised == flag, f"{case.id}: steps change by {[r.tolist() for r in ratios]}, but normalised is {flag}"


def _wrapping_count(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """count + 1 without saturation: negative after 2^31 - 1."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        u, after = tx.update(updates, state, params, **extra)
        return u, after._replace(count=state.count + 1)

    return optax.GradientTransformationExtraArgs(tx.init, update)


@law("E4", tier="O", plant=lambda case: case.broken(_wrapping_count))
def counts_saturate(case: Case) -> None:
    """At 2^24 +- 1 and up to 2^31 - 1, with a schedule and without, all is finite and the count never turns back."""
    for count in (2**24 - 1, 2**24 + 1, LAST_COUNT - 1, LAST_COUNT):
        for slope in (0.0, 1e-3):
            result = run_traced(case, params_like(), grads_like(RECORDED), slope=slope, count=count)
            assert_finite(f"{case.id}: count {count}, slope {slope}, ", (result.updates, result.state))
            expected = min(count + RECORDED, LAST_COUNT)
            assert int(result.state.count) == expected, (
                f"{case.id}: from {count} the count went to {result.state.count}"
            )


def _poisoned(grads: Any, value: float, slot: int) -> Any:
    return {**grads, "w": grads["w"].at[slot, 1, 0].set(value)}


def _hides(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """A clamp that takes Inf for a large number."""
    clamp = lambda g: jnp.clip(g, -1e12, 1e12)
    return optax.GradientTransformationExtraArgs(
        tx.init, lambda updates, state, params=None: tx.update(jax.tree.map(clamp, updates), state, params)
    )


@law("E5", tier="O", plant=lambda case: case.broken(_hides))
def nan_stays_and_shows(case: Case) -> None:
    """NaN or Inf in one entry shows there and goes no further than `reduces` says; apply_if_finite rolls back."""
    params, grads = params_like(), grads_like(RECORDED)
    clean = jax.tree.map(wide, run(case, params, grads, 1).updates)
    for value in (np.nan, np.inf, -np.inf):
        updates = jax.tree.map(wide, run(case, params, _poisoned(grads, value, 0), 1).updates)
        assert not np.isfinite(updates["w"][0, 1, 0]), f"{case.id}: {value} in the gradient is hidden"
        if case.flag("reduces") != "tree":
            for leaf in ("b", "s"):
                same = np.array_equal(updates[leaf][0], clean[leaf][0])
                assert same, f"{case.id}: {value} in leaf w changes leaf {leaf}"
        if case.flag("reduces") == "element":
            others = np.arange(6).reshape(3, 2) != 2
            same = np.array_equal(updates["w"][0][others], clean["w"][0][others])
            assert same, f"{case.id}: {value} in one entry changes others of its leaf"

    guarded = case.broken(lambda tx: optax.apply_if_finite(tx, 5))
    before, after = run(guarded, params, grads, 1), run(guarded, params, _poisoned(grads, np.nan, 1), 2)
    for path, u in leaves_named(after.updates):
        assert not np.any(np.asarray(u)[1]), f"{case.id}: apply_if_finite lets an update through at {path}"
    same = jax.tree.map(
        np.array_equal, (before.params, before.state.inner_state), (after.params, after.state.inner_state)
    )
    assert all(jax.tree.leaves(same)), f"{case.id}: apply_if_finite does not roll back"


def _unsafe_trust_ratio(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """|x| u / |u| without a guard: 0/0 for a zero update."""

    def update(updates: Any, state: Any, params: Any) -> Any:
        u, state = tx.update(updates, state, params)
        ratio = lambda u, x: u * (jnp.sqrt(jnp.sum(x * x)) / jnp.sqrt(jnp.sum(u * u)))
        return jax.tree.map(ratio, u, params), state

    return optax.GradientTransformationExtraArgs(tx.init, update)


@law("E7", tier="O", plant=lambda case: case.broken(_unsafe_trust_ratio))
def zero_norms_and_any_eps(case: Case) -> None:
    """Zero parameters, zero gradients and both, with eps = 0 or huge, or a rate of 0: finite."""
    params, grads = params_like(), grads_like(RECORDED)
    zero_params, zero_grads = jax.tree.map(jnp.zeros_like, (params, grads))
    late = jax.tree.map(lambda g: g.at[:2].set(0), grads)  # the first real gradient meets zero moments
    for changes in (
        {},
        dict(eps=0.0, eps_root=0.0, initial_accumulator=0.0),
        dict(eps=1e30),
        dict(eps_root=1e30),
        dict(learning_rate=0.0),
    ):
        for x, g in ((zero_params, grads), (zero_params, zero_grads), (params, zero_grads), (params, late)):
            result = run_traced(case, x, g, **changes)
            what = f"{case.id}: {'zero' if x is zero_params else 'ordinary'} parameters"
            assert_finite(f"{what}, {changes or 'its own arguments'}, ", (result.updates, result.state))
