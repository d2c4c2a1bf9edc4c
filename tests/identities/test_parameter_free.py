"""Methods that find their own rate: how near the estimates come, what they are when d does not move, and what zeros and
an Inf do to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptx
from tests.conftest import x64

STEPS = 6


def steps_of(tx: Any, params: Any, grads: Any, held: bool = False) -> tuple[list[Any], Any]:
    """The updates and the last state of a compiled loop; parameters that are `held` do not move."""

    def body(carry: Any, g: Any) -> Any:
        x, s = carry
        u, s = tx.update(g, s, x)
        return (x if held else optax.apply_updates(x, u), s), u

    (_, state), updates = jax.jit(lambda x, g: jax.lax.scan(body, (x, tx.init(x)), g))(params, grads)
    return jax.tree.leaves(jax.tree.map(np.asarray, updates)), state


def tree(seed: int = 0, steps: int = STEPS) -> tuple[Any, Any]:
    """Two parameters, and gradients that keep their signs, as far from a solution."""
    rng = np.random.default_rng(seed)
    params = {"a": jnp.asarray(rng.normal(size=3)), "b": jnp.asarray(rng.normal(size=(2, 2)))}
    signs = jax.tree.map(lambda x: rng.choice([-1, 1], x.shape), params)
    grads = jax.tree.map(lambda s: jnp.asarray(s * rng.uniform(0.5, 1.5, (steps, *s.shape))), signs)
    return params, grads


def estimate(state: Any) -> jax.Array:
    """d, or in DoWG the distance travelled."""
    return state.distance if hasattr(state, "distance") else state.d


# How near


class Bounds(NamedTuple):
    """Of d over the distance D = 10 to the solution of |x - 10|, from 0."""

    tx: Callable[[], Any]
    least: float
    most: float


NEAR = {
    # |sum of w (x0 - x) g| <= D |sum of w g| for a convex function, whatever the iterates are: no estimate exceeds D.
    "prodigy": Bounds(adaptx.prodigy, 1 / 4, 1.0),
    "prodigy, slowly": Bounds(lambda: adaptx.prodigy(growth_rate=1.1), 1 / 4, 1.0),
    # The same, if x0 - x is s times the step size; the forms without 1/2 (its factor 2) reach up to 2 D. The theorem's
    # least is D / (1 + sqrt(3)).
    "dadapt_sgd": Bounds(lambda: adaptx.dadapt_sgd(b1=0.0), 1 / (1 + 3**0.5), 2.0),
    "dadapt_adagrad": Bounds(adaptx.dadapt_adagrad, 1 / (1 + 3**0.5), 2.0),
    # With averages of the gradients, as in practice, the iterates lag behind s.
    "dadapt_adam": Bounds(adaptx.dadapt_adam, 1 / (1 + 3**0.5), 8.0),
    # The distance that was travelled: past the solution by a step, and back.
    "dowg": Bounds(adaptx.dowg, 1 / 2, 3.0),
}


@pytest.mark.parametrize("name", NEAR)
def test_the_estimate_comes_near_the_distance(name: str) -> None:
    near = NEAR[name]
    with x64():
        tx, x = near.tx(), jnp.zeros(1)

        def body(carry: Any, _: Any) -> Any:
            x, s = carry
            u, s = tx.update(jnp.sign(x - 10), s, x)
            return (optax.apply_updates(x, u), s), x[0]

        (_, state), xs = jax.jit(lambda x: jax.lax.scan(body, (x, tx.init(x)), None, length=1500))(x)
        d, mean = float(estimate(state)), float(np.mean(np.asarray(xs)[750:]))
    assert near.least <= d / 10 <= near.most, f"{name}: d is {d} where D is 10"
    assert abs(mean - 10) < 2, f"{name}: the iterates average {mean}"  # of SGD, whose step size does not fall


# What is left when d does not move


def _adam_without_correction(rate: float, eps: float) -> Any:
    """Adam whose averages keep the weight of their zero start."""
    moments = optax.chain(optax.ema(0.9, debias=False))

    def update(g: Any, s: Any, p: Any = None) -> Any:
        m, s_m = moments.update(g, s[0], p)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, s[1], g)
        return jax.tree.map(lambda m, v: -rate * m / (jnp.sqrt(v) + eps), m, v), (s_m, v)

    return optax.GradientTransformation(lambda p: (moments.init(p), jax.tree.map(jnp.zeros_like, p)), update)


def _dual_averaging(rate: float) -> Any:
    """x = x0 - rate * sum of g / (the root of the sum of squares + 1e-6), as steps."""
    zero = lambda p: jax.tree.map(jnp.zeros_like, p)
    where = lambda s, v: jax.tree.map(lambda s, v: rate * s / (jnp.sqrt(v) + 1e-6), s, v)

    def update(g: Any, state: Any, p: Any = None) -> Any:
        s, v, z = state
        s, v = jax.tree.map(jnp.add, s, g), jax.tree.map(lambda v, g: v + g**2, v, g)
        return jax.tree.map(jnp.subtract, z, where(s, v)), (s, v, where(s, v))

    init = lambda p: (zero(p), jax.tree.map(lambda x: jnp.full_like(x, 1e-6), p), zero(p))
    return optax.GradientTransformation(init, update)


class Held(NamedTuple):
    """Two makers that coincide while d stays; `first` is the norm of the first gradient."""

    left: Callable[[], Any]
    right: Callable[[float], Any]
    held: bool = False


SAME = {
    "dadapt_sgd is sgd with averaged gradients": Held(
        lambda: adaptx.dadapt_sgd(0.5, d0=0.1, growth_rate=1.0),
        lambda first: optax.chain(optax.ema(0.9, debias=False), optax.scale(-0.05 / first)),
    ),
    "dadapt_adagrad is dual averaging": Held(
        lambda: adaptx.dadapt_adagrad(0.5, d0=0.1, growth_rate=1.0), lambda first: _dual_averaging(0.05)
    ),
    "dadapt_adam is adam without bias correction": Held(
        lambda: adaptx.dadapt_adam(0.5, d0=0.1, eps=1e-3, growth_rate=1.0),
        lambda first: _adam_without_correction(0.05, 1e-3),
    ),
    "prodigy that has not moved is adam without bias correction": Held(
        lambda: adaptx.prodigy(0.5, d0=0.1, eps=1e-3), lambda first: _adam_without_correction(0.05, 1e-3), held=True
    ),
    "prodigy that has not moved, with bias correction, is adam": Held(
        lambda: adaptx.prodigy(0.5, d0=0.1, eps=0.0, bias_correction=True),
        lambda first: adaptx.adam(0.05, eps=0.0),
        held=True,
    ),
    "dowg that has not moved far is adagrad_norm over the tree": Held(
        lambda: adaptx.dowg(0.5, d0=0.1, eps=0.0), lambda first: adaptx.adagrad_norm(0.05, per="tree"), held=True
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_with_d_held_it_is_the_method_below(name: str) -> None:
    same = SAME[name]
    with x64():
        params, grads = tree()
        first = float(np.sqrt(sum(np.sum(np.asarray(g)[0] ** 2) for g in jax.tree.leaves(grads))))
        ours, _ = steps_of(same.left(), params, grads, same.held)
        theirs, _ = steps_of(same.right(first), params, grads, same.held)
    for a, b in zip(ours, theirs, strict=True):
        # dual averaging steps are differences of numbers up to STEPS times their size
        assert np.max(np.abs(a - b)) <= 8 * STEPS * np.finfo(float).eps * np.max(np.abs(b))


def test_prodigy_whose_d_has_settled_is_adam_with_that_rate() -> None:
    """With d frozen after it grew, and the averages of before forgotten, a step is Adam's, with the rate d."""
    with x64():
        params, grads = tree(steps=40)
        rule = dict(b1=0.1, b2=0.2, eps=1e-3)
        updates, state = steps_of(adaptx.prodigy(d0=0.1, growth_rate=1.0, **rule), params, grads)
        d = float(state.d)
        adam, _ = steps_of(adaptx.adam(d, **rule), params, grads)
    assert d > 0.1, "d did not grow"
    for a, b in zip(updates, adam, strict=True):
        np.testing.assert_allclose(a[-1], b[-1], rtol=1e-12)


# Zeros first, and what is not finite

FACTORIES = (adaptx.dadapt_sgd, adaptx.dadapt_adagrad, adaptx.dadapt_adam, adaptx.prodigy, adaptx.dowg)


@pytest.mark.parametrize("factory", [*FACTORIES, adaptx.cocob], ids=lambda f: f.__name__)
def test_zero_gradients_first_change_nothing(factory: Any) -> None:
    """Three steps of zeros, and then the same steps as without them: d stays at d0, G waits for the first gradient."""
    with x64():
        params, grads = tree()
        late = jax.tree.map(lambda g: jnp.concatenate([jnp.zeros_like(g[:3]), g]), grads)
        expected, _ = steps_of(factory(), params, grads)
        got, _ = steps_of(factory(), params, late)
    for a, b in zip(got, expected, strict=True):
        assert not a[:3].any()
        np.testing.assert_allclose(a[3:], b, rtol=1e-13)


@pytest.mark.parametrize("factory", FACTORIES, ids=lambda f: f.__name__)
def test_an_inf_shows_in_the_estimate(factory: Any) -> None:
    """One Inf makes d NaN, and so every step from the next one on; of dadapt_adam its own parameter for ever."""
    params, grads = jax.tree.map(lambda a: a.astype(jnp.float32), tree())
    grads["a"] = grads["a"].at[1, 0].set(jnp.inf)
    updates, state = steps_of(factory(), params, grads)
    assert all(np.isnan(u[1:, 0] if factory is adaptx.dadapt_adam else u[2:]).all() for u in updates[:1])
    if factory is not adaptx.dadapt_adam:
        assert np.isnan(np.asarray(estimate(state)))
        assert all(np.isnan(u[2:]).all() for u in updates)


@pytest.mark.parametrize("factory", FACTORIES, ids=lambda f: f.__name__)
def test_the_estimate_is_float32_beside_16_bit_parameters(factory: Any) -> None:
    params, grads = jax.tree.map(lambda a: a.astype(jnp.bfloat16), tree())
    updates, state = steps_of(factory(), params, grads)
    assert estimate(state).dtype == jnp.float32
    assert all(u.dtype == jnp.bfloat16 for u in updates)


def test_cocob_measures_in_its_rate_and_rests_where_it_ends() -> None:
    with x64():
        params, grads = tree()
        one, _ = steps_of(adaptx.cocob(), params, grads)
        half, _ = steps_of(adaptx.cocob(0.5), params, grads)
        ended, _ = steps_of(adaptx.cocob(lambda t: jnp.where(t < 3, 1.0, 0.0)), params, grads)
    for a, b, c in zip(one, half, ended, strict=True):
        np.testing.assert_allclose(b, 0.5 * a, rtol=1e-14)
        np.testing.assert_allclose(np.abs(a[0]), 1 / 100, rtol=1e-12)  # the first step: 1 / caution
        np.testing.assert_array_equal(c, [*a[:3], *(0 * a[3:])])
