"""schedule_free: its fixed points, its average, its weights, and the roads where others fall."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import adaptx
from adaptx.hyperparams import inject_hyperparams
from tests.conformance.cases import grads_like, params_like
from tests.conformance.compare import assert_close
from tests.conftest import x64

SGD = optax.sgd(0.1)


def steps(tx: Any, params: Any, grads: Any, state: Any = None) -> tuple[Any, Any]:
    """Parameters and state after the gradients in turn."""
    state = tx.init(params) if state is None else state
    for g in grads:
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("b1", [0.0, 0.9, 0.98])
def test_where_x_y_and_z_meet_nothing_moves(b1: float, dtype: str) -> None:
    """Bit for bit, with zero gradients from the start: no rounding of b1 x + (1 - b1) x gets in."""
    params = params_like(jnp.dtype(dtype))
    zero = jax.tree.map(jnp.zeros_like, params)
    tx = adaptx.schedule_free(adaptx.adam(0.1, b1=0.0), 0.1, b1)
    end, state = steps(tx, params, [zero] * 3)
    average = adaptx.schedule_free_eval_params(state, end)
    for x, y, z, start in zip(*map(jax.tree.leaves, (average, end, state.z, params)), strict=True):
        assert x.dtype == y.dtype == start.dtype
        assert np.array_equal(x, start)
        assert np.array_equal(y, start)
        assert np.array_equal(z.astype(start.dtype), start)


@pytest.mark.parametrize("keep_average", [True, False])
def test_with_zero_gradients_y_and_x_come_to_z(keep_average: bool) -> None:
    """z is where it is, and what is left of the distances to it goes like the product of 1 - 1/t."""
    tx = adaptx.schedule_free(SGD, 0.1, keep_average=keep_average)
    params, state = steps(tx, jnp.array([1.0, -2.0]), [jnp.array([1.0, 3.0]), jnp.array([-4.0, 1.0])])
    z, x = state.z, adaptx.schedule_free_eval_params(state, params)
    still, state = steps(tx, params, [jnp.zeros(2)] * 6, state)
    np.testing.assert_array_equal(state.z, z)
    np.testing.assert_allclose(adaptx.schedule_free_eval_params(state, still) - z, (x - z) * 2 / 8, rtol=1e-4)
    np.testing.assert_allclose(still - z, (params - z) * 2 / 8, rtol=1e-4)


def test_the_average_is_the_mean_of_z() -> None:
    """At a constant rate and step_power 0; with b1 = 0 it is that of plain SGD (Polyak, Ruppert)."""
    grads = [jnp.array([float(k), -1.0]) for k in (1, -3, 2, 5)]
    start = jnp.array([0.5, 1.0])
    zs = np.asarray(start) - 0.1 * np.cumsum(np.stack(grads), 0)
    for b1 in (0.0, 0.7):
        params, state = steps(adaptx.schedule_free(SGD, 0.1, b1), start, grads)
        np.testing.assert_allclose(adaptx.schedule_free_eval_params(state, params), zs.mean(0), rtol=1e-6)
    np.testing.assert_allclose(steps(adaptx.schedule_free(SGD, 0.1, 0.0), start, grads)[0], zs[-1], atol=1e-6)


def test_a_schedule_is_asked_for_step_0_first() -> None:
    """optax#1744: Optax's begins at 1."""
    asked: list[int] = []

    def rate(count: Any) -> Any:
        asked.append(int(count))
        return 0.1

    steps(adaptx.schedule_free(SGD, rate), jnp.ones(2), [jnp.ones(2)] * 3)
    assert asked == [0, 1, 2]


def test_a_warm_up_from_0_has_no_weight() -> None:
    """The first rate is 0: nothing moves, nothing is NaN, and that step is not in the average."""
    rate = optax.linear_schedule(0.0, 0.2, 2)
    params, state = steps(adaptx.schedule_free(optax.sgd(rate), rate), jnp.ones(1), [jnp.ones(1)] * 3)
    z2, z3 = 1 - 0.1, 1 - 0.3
    expected = (0.1**2 * z2 + 0.2**2 * z3) / (0.1**2 + 0.2**2)
    np.testing.assert_allclose(adaptx.schedule_free_eval_params(state, params), [expected], rtol=1e-6)
    params, state = steps(adaptx.schedule_free(SGD, rate), jnp.ones(1), [jnp.ones(1)])  # SGD moves all the same
    np.testing.assert_allclose(adaptx.schedule_free_eval_params(state, params), [1], rtol=1e-6)
    np.testing.assert_allclose(state.z, [0.9], rtol=1e-6)


@pytest.mark.parametrize(("rate", "at"), [(1e-3, 10**7), (1e-25, 10)])
def test_the_weights_keep_their_digits(rate: float, at: int) -> None:
    """After 10^7 equal weights the share is 1/(10^7 + 1), and a rate whose square underflows has weight too."""
    tx = adaptx.schedule_free(SGD, rate)
    state = tx.init(jnp.ones(1))
    _, after = tx.update(jnp.ones(1), state, jnp.ones(1))
    after = after._replace(steps=jnp.int32(at), weight_sum=jnp.float32(at))
    assert float(tx.update(jnp.ones(1), after, jnp.ones(1))[1].weight_sum) == at + 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_parameters_follow_float32(dtype: str) -> None:
    """Steps far below a last place of y, 300 of them: z and x are kept, and y is their float32 mixture rounded.

    Without x in the state, as in Optax, y never moves.
    """

    def run(dtype: str, tx: Any) -> Any:
        params = jnp.ones(2, dtype)
        body = lambda _, carry: steps(tx, carry[0], [jnp.array([1.0, -1.0], dtype)], carry[1])
        end, state = jax.lax.fori_loop(0, 300, body, (params, tx.init(params)))
        return np.asarray(end, float), np.asarray(adaptx.schedule_free_eval_params(state, end), float)

    tx = adaptx.schedule_free(optax.sgd(2.0**-10), 2.0**-10)
    y, x = run("float32", tx)
    got_y, got_x = run(dtype, tx)
    np.testing.assert_allclose(got_y, y, rtol=2.0**-8)
    np.testing.assert_allclose(got_x, x, rtol=2.0**-8)
    if dtype == "bfloat16":
        stuck, _ = run(dtype, adaptx.schedule_free(optax.sgd(2.0**-10), 2.0**-10, keep_average=False))
        assert np.max(np.abs(stuck - y)) > 0.1


@pytest.mark.parametrize("keep_average", [True, False])
def test_b1_may_change(keep_average: bool) -> None:
    """x is what it would have been, and y is made of it with the new b1."""
    start, grads = jnp.array([1.0, -2.0]), [jnp.array([1.0, 3.0]), jnp.array([-4.0, 1.0])]
    params, state = steps(adaptx.schedule_free(SGD, 0.1, 0.9, keep_average=keep_average), start, grads)
    other = adaptx.schedule_free(SGD, 0.1, 0.6, keep_average=keep_average)
    params, state = steps(other, params, [jnp.array([2.0, 2.0])], state)
    zs = np.asarray(start) - 0.1 * np.cumsum(np.stack([*grads, np.array([2.0, 2.0])]), 0)
    np.testing.assert_allclose(adaptx.schedule_free_eval_params(state, params), zs.mean(0), rtol=1e-5)
    np.testing.assert_allclose(params, 0.6 * zs.mean(0) + 0.4 * zs[-1], rtol=1e-5)


@pytest.mark.parametrize("keep_average", [True, False])
def test_b1_may_be_traced(keep_average: bool) -> None:
    """A sweep by vmap, with b1 = 0 in it: y is right in any case, x there only if it is kept."""
    grads = [jnp.array([1.0, 3.0]), jnp.array([-4.0, 1.0])]

    def run(b1: Any) -> Any:
        params, state = steps(adaptx.schedule_free(SGD, 0.1, b1, keep_average=keep_average), jnp.ones(2), grads)
        return params, adaptx.schedule_free_eval_params(state, params)

    many = jax.vmap(run)(jnp.array([0.0, 0.5]))
    for k, b1 in enumerate((0.0, 0.5)):
        params, state = steps(adaptx.schedule_free(SGD, 0.1, b1), jnp.ones(2), grads)
        np.testing.assert_allclose(many[0][k], params, rtol=1e-6)
        if b1 or keep_average:
            expected = adaptx.schedule_free_eval_params(state, params)
            np.testing.assert_allclose(many[1][k], expected, rtol=1e-6)
        else:
            assert np.isnan(many[1][k]).all()


def test_the_state_is_found_where_it_is() -> None:
    """In a chain, injected, under MultiSteps, in a partition's group, and in nnx.Optimizer."""
    params, g = params_like(), params_like(seed=3)
    tx = adaptx.schedule_free(SGD, 0.1)
    end, state = steps(tx, params, [g])
    expected = adaptx.schedule_free_eval_params(state, end)
    injected = inject_hyperparams(adaptx.schedule_free)(SGD, 0.1)
    for around in (optax.chain(optax.identity(), tx), injected, optax.MultiSteps(tx, 1)):
        moved, state = steps(around, params, [g])
        assert_close("eval", adaptx.schedule_free_eval_params(state, moved), expected, 1e-6)
    with pytest.raises(ValueError, match=r"parameter at \['b'\] is in more than one ScheduleFreeState"):
        adaptx.schedule_free_eval_params(optax.chain(tx, tx).init(params), params)
    with pytest.raises(ValueError, match="no ScheduleFreeState in the state"):
        adaptx.schedule_free_eval_params(SGD.init(params), params)
    with pytest.raises(ValueError, match=r"parameter at \['w'\] must be like float32\[3, 2\]"):
        adaptx.schedule_free_eval_params(tx.init(params), {**params, "w": jnp.ones((1, 2))})
    groups = optax.partition({"a": tx, "b": tx, "plain": SGD}, {"b": "a", "s": "plain", "w": "b"})
    moved, state = steps(groups, params, [g, g])
    alone, own = steps(tx, params, [g, g])
    plain, _ = steps(SGD, params, [g, g])
    expected = {**adaptx.schedule_free_eval_params(own, alone), "s": plain["s"]}
    assert_close("groups", adaptx.schedule_free_eval_params(state, moved), expected, 1e-6)

    layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(layer, tx, wrt=nnx.Param)
    first = nnx.to_pure_dict(nnx.state(layer, nnx.Param))
    grads = jax.tree.map(jnp.ones_like, nnx.state(layer, nnx.Param))
    optimizer.update(layer, grads)
    average = adaptx.schedule_free_eval_params(optimizer.opt_state, nnx.state(layer, nnx.Param))
    got = nnx.to_pure_dict(average)
    assert_close("nnx", got, jax.tree.map(lambda a: a - 0.1, first), 1e-6)  # the first average is z


def test_it_minimises_where_the_last_iterate_wanders() -> None:
    """Noisy gradients at a constant rate: the average ends far nearer the minimum than plain SGD's last iterate."""
    noise = jax.random.normal(jax.random.key(0), (2000, 50))

    def run(tx: Any) -> Any:
        def body(carry: Any, n: Any) -> Any:
            params, state = carry
            updates, state = tx.update(params + n, state, params)
            return (optax.apply_updates(params, updates), state), None

        params = jnp.full(50, 3.0)
        return jax.lax.scan(body, (params, tx.init(params)), noise)[0]

    params, state = run(adaptx.schedule_free(optax.sgd(0.2), 0.2))
    plain, _ = run(optax.sgd(0.2))
    average = adaptx.schedule_free_eval_params(state, params)
    assert np.linalg.norm(average) < 0.25 * np.linalg.norm(plain)


def test_float64_parameters_have_float64_numbers() -> None:
    with x64():
        state = adaptx.schedule_free(SGD, 0.1).init({"w": jnp.ones(2), "v": jnp.ones(2, jnp.bfloat16)})
        assert {str(a.dtype) for a in (state.b1, state.weight_sum, state.z["w"]) if a is not None} == {"float64"}
        assert str(state.z["v"].dtype) == "float32"


def test_the_gradients_may_come_with_masks() -> None:
    """A frozen group keeps its parameters, and its average is they."""
    params, grads = params_like(), grads_like(2)
    tx = optax.masked(adaptx.schedule_free(SGD, 0.1), {"b": True, "s": False, "w": True})
    state = tx.init(params)
    updates, state = tx.update({**jax.tree.map(lambda a: a[0], grads), "s": jnp.float32(0)}, state, params)
    end = optax.apply_updates(params, updates)
    assert np.array_equal(end["s"], params["s"])
