"""The Hessian's diagonal: how the optimizers are given it and what they do with it, and its estimators."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import adaptx
from adaptx import curvature
from adaptx.hyperparams import inject_hyperparams
from tests.conformance.cases import grads_like, params_like
from tests.conformance.compare import assert_close
from tests.conftest import x64

FACTORIES = {
    "adahessian": functools.partial(adaptx.adahessian, 0.1, update_every=3),
    "sophia": functools.partial(adaptx.sophia, 0.1, b2=0.5, gamma=0.5, update_every=3),
}
STEPS = 7
KEY = jax.random.key(0)


def gradients() -> list[Any]:
    return [jax.tree.map(lambda g, i=i: g[i], grads_like(STEPS)) for i in range(STEPS)]


def hessian_at(i: Any) -> Any:
    """Of both signs, and different in each step."""
    return jax.tree.map(lambda x: jnp.sin(x * (i + 1)), params_like())


def trained(tx: Any, hessian: Callable[[Any], Any], masked: Any = lambda tree: tree) -> Any:
    """The parameters after STEPS steps of a scan."""
    stacked = jax.tree.map(lambda *g: jnp.stack(g), *gradients())

    def step(carry: Any, numbered: Any) -> Any:
        params, state = carry
        i, g = numbered
        updates, state = tx.update(masked(g), state, params, hessian=hessian(i))
        return (optax.apply_updates(params, updates), state), None

    params = masked(params_like())
    return jax.jit(lambda: jax.lax.scan(step, (params, tx.init(params)), (jnp.arange(STEPS), stacked))[0])()


# As a function ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FACTORIES)
def test_a_function_is_the_tree_and_runs_in_every_third_step_only(name: str) -> None:
    asked: list[int] = []

    def make(i: Any) -> Any:
        def estimate() -> Any:
            jax.debug.callback(lambda i: asked.append(int(i)), i)
            return hessian_at(i)

        return estimate

    got = trained(FACTORIES[name](), make)
    jax.effects_barrier()
    assert asked == [0, 3, 6]
    assert_close(name, got, trained(FACTORIES[name](), hessian_at), 0)


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda factory: optax.chain(optax.identity(), factory()),
        lambda factory: optax.MultiSteps(factory(), 1),
        lambda factory: optax.apply_if_finite(factory(), 3),
        lambda factory: inject_hyperparams(factory.func)(*factory.args, **factory.keywords),
    ],
    ids=["chain", "MultiSteps", "apply_if_finite", "injected"],
)
def test_a_function_goes_through_wrappers(name: str, wrap: Callable[[Any], Any]) -> None:
    got, _ = trained(wrap(FACTORIES[name]), lambda i: lambda: hessian_at(i))
    assert_close(name, got, trained(FACTORIES[name](), hessian_at)[0], 1e-6)


@pytest.mark.parametrize("as_function", [False, True])
def test_parameters_that_are_masked_are_left_out_of_the_tree(as_function: bool) -> None:
    labels = {"b": "still", "s": "moves", "w": "moves"}
    tx = optax.partition({"moves": FACTORIES["sophia"](), "still": optax.set_to_zero()}, labels)
    got, _ = trained(tx, lambda i: (lambda: hessian_at(i)) if as_function else hessian_at(i))
    alone, _ = trained(FACTORIES["sophia"](), hessian_at)
    assert_close("sophia", got, {**alone, "b": params_like()["b"]}, 0)


def test_micro_steps_use_the_last_estimate() -> None:
    tx = optax.MultiSteps(adaptx.sophia(0.1, b2=0.0, gamma=0.5, update_every=1), 2)
    params = params_like()
    state = tx.init(params)
    for i in range(2):
        _, state = tx.update(gradients()[i], state, params, hessian=lambda i=i: hessian_at(i))
    assert_close("nu", state.inner_opt_state.nu, hessian_at(1), 1e-6)


def test_a_donated_step_that_asks_copies_nothing() -> None:
    """The estimate is a temporary; parameters and state stay where they are."""
    tx, n = adaptx.sophia(0.1), 1 << 14

    def loss(p: Any) -> Any:
        return jnp.sum(jnp.sin(p["a"]) * p["b"])

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, key: Any) -> Any:
        estimate = lambda: curvature.hutchinson(loss, params, key)
        updates, state = tx.update(jax.grad(loss)(params), state, params, hessian=estimate)
        return optax.apply_updates(params, updates), state

    params = {"a": jnp.ones(n), "b": jnp.ones(n)}
    state = tx.init(params)
    memory = step.lower(params, state, KEY).compile().memory_analysis()
    assert memory.alias_size_in_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves((params, state)))


def test_a_module_that_can_be_called_is_a_tree() -> None:
    @jax.tree_util.register_pytree_node_class
    class Module:
        def __init__(self, w: Any) -> None:
            self.w = w

        def __call__(self) -> None:
            raise AssertionError("called")

        def tree_flatten(self) -> Any:
            return (self.w,), None

        @classmethod
        def tree_unflatten(cls, _: Any, leaves: Any) -> Any:
            return cls(*leaves)

    params, tx = Module(jnp.ones(2)), adaptx.sophia(0.1)
    tx.update(params, tx.init(params), params, hessian=params)


# What is not right --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("as_function", [False, True])
@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda h: {**h, "w": h["w"][:1]}, ValueError, r"the hessian at \['w'\] must be like .*\[3, ?2\]"),
        (lambda h: {**h, "b": h["b"] * 1j}, TypeError, r"the hessian at \['b'\] must be like"),
        (lambda h: {"b": h["b"], "w": h["w"]}, ValueError, r"\['s'\] only in the gradients"),
    ],
    ids=["shape", "complex", "leaf missing"],
)
def test_a_wrong_hessian_is_named(
    name: str, as_function: bool, change: Callable[[Any], Any], error: type[Exception], says: str
) -> None:
    tx, params, h = FACTORIES[name](), params_like(), change(hessian_at(0))
    with pytest.raises(error, match=f"^{name}: .*{says}") as caught:
        tx.update(gradients()[0], tx.init(params), params, hessian=(lambda: h) if as_function else h)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FACTORIES)
def test_a_missing_hessian_is_named(name: str) -> None:
    tx, params = FACTORIES[name](), params_like()
    with pytest.raises(
        ValueError, match=rf"^{name}: update needs hessian; call update\(grads, state, \.\.\., hessian=hessian\)$"
    ):
        tx.update(gradients()[0], tx.init(params), params, hessian=None)
    with pytest.raises(
        TypeError, match=rf"^{name}: hessian, a function, must give a tree of arrays .*, got None(\n|$)"
    ):  # pytest adds JAX's note
        tx.update(gradients()[0], tx.init(params), params, hessian=lambda: None)


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_what_is_not_finite_shows_where_it_is_used(name: str, bad: float) -> None:
    """In its element, from then on; in a step that does not use the Hessian it changes nothing."""
    tx, params = FACTORIES[name](), params_like()
    wrong = lambda i: jax.tree.map(lambda h: h.at[..., 0].set(bad) if h.ndim else h, hessian_at(i))
    sound = tx.init(params)
    for i in range(2):
        _, sound = tx.update(gradients()[i], sound, params, hessian=wrong(i) if i else hessian_at(i))
    after = tx.init(params)
    for i in range(2):
        u, after = tx.update(gradients()[i], after, params, hessian=hessian_at(i) if i else wrong(i))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(sound))
    for leaf in jax.tree.leaves([u, after.nu]):
        at = np.zeros(leaf.shape, bool)
        if leaf.ndim:
            at[..., 0] = True
        np.testing.assert_array_equal(np.isnan(leaf), at)


# Sophia's clip ------------------------------------------------------------------------------------------------------


def test_sophia_steps_by_signs_where_curvature_is_negative_or_small() -> None:
    g = jnp.array([2.0, -3.0, 4.0, 0.0, 5.0, -6.0])
    h = jnp.array([-1.0, 0.0, 1e-3, 0.0, 10.0, 20.0])
    tx = adaptx.scale_by_sophia(b1=0.0, b2=0.0, gamma=1.0)
    np.testing.assert_array_equal(tx.update(g, tx.init(g), hessian=h)[0], np.float32([1, -1, 1, 0, 0.5, -0.3]))


@pytest.mark.parametrize("eps", [0.0, 1e-12])
def test_sophia_never_steps_further_than_the_rate(eps: float) -> None:
    g = jnp.array([1e-45, 1e-38, 1.0, 1e30, jnp.finfo(jnp.float32).max])
    tx = adaptx.scale_by_sophia(eps=eps)
    for h in (jnp.zeros(5), -g, g, jnp.full(5, jnp.finfo(jnp.float32).max)):
        u, _ = tx.update(g, tx.init(g), hessian=h)
        assert np.all(np.abs(u) <= 1)


def test_sophia_clips_a_complex_element_by_its_modulus() -> None:
    g = jnp.array([3 + 4j, 0.3 + 0.4j])
    tx = adaptx.scale_by_sophia(b1=0.0, b2=0.0, gamma=1.0)
    u, _ = tx.update(g, tx.init(g), hessian=jnp.ones(2))
    np.testing.assert_allclose(u, [0.6 + 0.8j, 0.3 + 0.4j], rtol=1e-6)


def test_sophias_first_version() -> None:
    """clip(m / max(h, eps), rho) is its current form with gamma = rho, other rates and another decay."""
    rho, rate, decay, eps = 0.04, 0.5, 0.2, 1e-3
    with x64():
        rng = np.random.default_rng(0)
        x, (g, h) = rng.normal(size=5), rng.normal(size=(2, 5)) * 0.1
        tx = adaptx.sophia(rho * rate, b1=0.0, b2=0.0, eps=rho * eps, gamma=rho, weight_decay=decay / rho)
        u, _ = tx.update(jnp.asarray(g), tx.init(jnp.asarray(x)), jnp.asarray(x), hessian=jnp.asarray(h))
        expected = -rate * (np.clip(g / np.maximum(h, eps), -rho, rho) + decay * x)
        np.testing.assert_allclose(u, expected, rtol=1e-12)


# AdaHessian -----------------------------------------------------------------------------------------------------------


def test_adahessian_is_adam_where_h_is_the_gradient() -> None:
    with x64():
        params, grads = params_like("float64"), grads_like(STEPS, "float64")
        ours, adam = adaptx.adahessian(0.1, b2=0.9, eps=1e-3), adaptx.adam(0.1, b2=0.9, eps=1e-3)
        a, b = ours.init(params), adam.init(params)
        for i in range(3):
            g = jax.tree.map(lambda g, i=i: g[i], grads)
            (u, a), (v, b) = ours.update(g, a, hessian=g), adam.update(g, b)
            assert_close("update", u, v, 1e-15)


def test_adahessian_with_power_0_is_momentum() -> None:
    g = jnp.array([0.5, -2.0, 0.0])
    tx = adaptx.scale_by_adahessian(hessian_power=0.0, eps=0.0)
    np.testing.assert_allclose(tx.update(g, tx.init(g), hessian=jnp.array([0.0, 3.0, 1.0]))[0], g, rtol=1e-6)


def test_adahessian_is_its_paper_on_a_convolution() -> None:
    """Algorithm 1 with the blocks of section 3.2: D of a kernel is averaged over its 3 x 3 positions, signs and all."""
    with x64():
        rng = np.random.default_rng(0)
        x, m, v = rng.normal(size=(3, 3, 2, 4)), 0, 0
        tx = adaptx.adahessian(0.15)
        params = {"kernel": jnp.asarray(x), "bias": jnp.zeros(4)}
        state = tx.init(params)
        for t in range(1, 4):
            g, D = rng.normal(size=(2, 3, 3, 2, 4))
            bias = rng.normal(size=4)
            h = curvature.spatial_average({"kernel": jnp.asarray(D), "bias": jnp.asarray(bias)})
            np.testing.assert_array_equal(h["bias"], bias)
            grads = {"kernel": jnp.asarray(g), "bias": jnp.zeros(4)}
            updates, state = tx.update(grads, state, params, hessian=h)
            params = optax.apply_updates(params, updates)
            blocks = np.empty_like(D)
            for i in range(2):
                for o in range(4):
                    blocks[:, :, i, o] = sum(D[a, b, i, o] for a in range(3) for b in range(3)) / 9
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * blocks**2
            x = x - 0.15 * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-4)
            np.testing.assert_allclose(params["kernel"], x, rtol=1e-12, atol=1e-14)


def test_blocks_of_neighbouring_inputs() -> None:
    with x64():
        h = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)))
        got = np.asarray(curvature.spatial_average({"a": h, "b": h[0], "c": h[0, 0]}, 2)["a"])
        for start, stop in ((0, 2), (2, 4), (4, 5)):
            mean = np.mean(h[:, start:stop], axis=1, keepdims=True)
            np.testing.assert_allclose(got[:, start:stop], np.broadcast_to(mean, (2, stop - start, 3)), rtol=1e-14)
        np.testing.assert_array_equal(curvature.spatial_average(h[0, 0], 2), h[0, 0])
        np.testing.assert_array_equal(curvature.spatial_average(h[0]), h[0])


# Hutchinson -----------------------------------------------------------------------------------------------------------


def quadratic(matrix: Any) -> Callable[[Any], Any]:
    """x A x / 2 for a tree of three numbers and a pair."""

    def loss(p: Any) -> Any:
        x = jnp.concatenate([p["a"], p["b"]])
        return 0.5 * x @ jnp.asarray(matrix, x.dtype) @ x

    return loss


POINT = {"a": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array([3.0, -1.0])}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_diagonal_hessian_is_found_exactly(dtype: str) -> None:
    diagonal = [1.0, -2.0, 0.0, 4.0, 0.25]
    point = jax.tree.map(lambda x: x.astype(dtype), POINT)
    h = jax.jit(lambda key: curvature.hutchinson(quadratic(np.diag(diagonal)), point, key))(KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves(h)} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(np.concatenate([h["a"], h["b"]]), diagonal)


def test_the_mean_is_the_diagonal_and_samples_divide_the_variance() -> None:
    rng = np.random.default_rng(0)
    A = rng.normal(size=(5, 5))
    A = A + A.T
    keys = jax.random.split(KEY, 4096)

    @functools.partial(jax.jit, static_argnums=0)
    def estimates(samples: int) -> Any:
        h = jax.vmap(lambda key: curvature.hutchinson(quadratic(A), POINT, key, samples=samples))(keys)
        return jnp.concatenate([h["a"], h["b"]], axis=1)

    variance = np.sum(A**2, axis=1) - np.diag(A) ** 2
    for samples in (1, 4):
        h = np.asarray(estimates(samples))
        # Five standard errors of 5 means; the variance of 4096 values is known to about 5 %.
        assert np.all(np.abs(h.mean(0) - np.diag(A)) < 5 * np.sqrt(variance / samples / 4096))
        np.testing.assert_allclose(h.var(0), variance / samples, rtol=0.2)


def test_the_order_of_leaves_does_not_matter() -> None:
    A = np.random.default_rng(0).normal(size=(5, 5))
    forward = curvature.hutchinson(quadratic(A + A.T), POINT, KEY)
    with_more = curvature.hutchinson(quadratic(A + A.T), {"0": jnp.ones(2), **POINT}, KEY)
    assert_close("estimate", {k: with_more[k] for k in POINT}, forward, 0)
    assert not np.any(with_more["0"])


def test_more_than_a_number_and_leaves_of_nothing() -> None:
    h = curvature.hutchinson(lambda p: (jnp.sum(p["x"] ** 3), "aux"), {"x": jnp.ones(2), "no": None}, KEY, has_aux=True)
    assert h["no"] is None
    np.testing.assert_allclose(h["x"], 6.0)
    old = curvature.hutchinson(lambda p: jnp.sum(p**3), jnp.ones(2), jax.random.PRNGKey(0))
    np.testing.assert_allclose(old, 6.0)


X, Y = np.float32(np.random.default_rng(0).normal(size=(8, 3))), np.arange(8) % 2


def asked(factory: Any, found: Any, x: Any = X) -> None:
    tx = factory() if factory is adaptx.scale_by_sophia else factory(0.1)
    tx.update(x, tx.init(x), x, hessian=lambda: found)


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: optax.chain(optax.identity(), tx)], ids=["bare", "chain"])
def test_a_function_goes_through_an_nnx_optimizer(name: str, wrap: Callable[[Any], Any]) -> None:
    """What it gives holds the arrays in nnx's boxes, out of which the optimizer takes gradients and trees only."""
    loss = lambda model: jnp.mean((model(X) - 1.0) ** 2)
    trained = []
    for as_function in (False, True):
        model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, wrap(FACTORIES[name]()), wrt=nnx.Param)
        graph, params = nnx.split(model, nnx.Param)
        h = curvature.hutchinson(lambda p, graph=graph: loss(nnx.merge(graph, p)), params, KEY)
        for _ in range(2):
            optimizer.update(model, nnx.grad(loss)(model), hessian=(lambda h=h: h) if as_function else h)
        trained.append(jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert all(map(np.array_equal, *trained))


def test_flax_models() -> None:
    linear = linen.Dense(2)
    variables = linear.init(KEY, X)
    graph, state = nnx.split(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param)
    for params, model in ((variables, lambda p: linear.apply(p, X)), (state, lambda p: nnx.merge(graph, p)(X))):
        of_params = lambda p, model=model: optax.softmax_cross_entropy_with_integer_labels(model(p), Y).mean()
        for h in (curvature.hutchinson(of_params, params, KEY), curvature.gauss_newton_bartlett(model, params, KEY)):
            assert jax.tree.structure(h) == jax.tree.structure(params)
            tx = adaptx.sophia(0.1)
            tx.update(jax.grad(of_params)(params), tx.init(params), params, hessian=h)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh(kind: AxisType) -> None:
    """The same numbers as on one device, also where the optimizer asks under its condition."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    loss = lambda p: jnp.sum(jnp.sin(p["w"]) * p["w"]) + jnp.sum(p["b"] ** 3)
    tx = adaptx.sophia(0.1, b2=0.0, update_every=2)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        estimate = lambda: curvature.hutchinson(loss, params, KEY, samples=2)
        updates, state = tx.update(jax.grad(loss)(params), state, params, hessian=estimate)
        return optax.apply_updates(params, updates), state

    params = {"w": jnp.arange(32.0).reshape(8, 4) / 10, "b": jnp.arange(4.0)}
    expected = step(params, tx.init(params))
    with jax.set_mesh(mesh) if hasattr(jax, "set_mesh") else jax.sharding.use_mesh(mesh):
        place = lambda a, *axes: jax.device_put(a, NamedSharding(mesh, PartitionSpec(*axes)))
        sharded = {"w": place(params["w"], "x", "y"), "b": place(params["b"], "x")}
        got = step(sharded, tx.init(sharded))
        assert got[1].nu["w"].sharding.is_equivalent_to(sharded["w"].sharding, 2)
    assert_close("sharded", got, expected, 1e-5)


# Gauss-Newton-Bartlett ------------------------------------------------------------------------------------------------


def logits(p: Any) -> Any:
    return X @ p


def test_its_mean_is_the_hessian_of_a_linear_classifier() -> None:
    p = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)), jnp.float32)
    estimate = lambda key, **more: curvature.gauss_newton_bartlett(logits, p, key, **more)
    where = jnp.arange(8) < 5
    for chosen, more in ((slice(None), {}), (slice(5), {"where": where})):
        many = np.asarray(jax.jit(jax.vmap(lambda key, more=more: estimate(key, **more)))(jax.random.split(KEY, 8192)))
        x, probability = X[chosen], np.asarray(jax.nn.softmax(X[chosen] @ p))
        hessian = np.einsum("bi,bo->io", x**2, probability * (1 - probability)) / len(x)
        assert many.min() >= 0
        error = np.abs(many.mean(0) - hessian)
        assert np.all(error < 5 * many.std(0) / np.sqrt(8192)), "five standard errors of 12 means"


def test_one_label_is_its_squared_gradient() -> None:
    p = jnp.ones((3, 4))
    h = curvature.gauss_newton_bartlett(logits, p, KEY, sample=lambda key, outputs: Y)
    g = jax.grad(lambda p: optax.softmax_cross_entropy_with_integer_labels(logits(p), Y).mean())(p)
    np.testing.assert_allclose(h, 8 * g**2, rtol=1e-6)


def test_a_squared_error() -> None:
    """Labels from a normal distribution around the outputs, through which no gradient flows."""
    p = jnp.ones((3, 1))
    estimate = lambda key: curvature.gauss_newton_bartlett(
        lambda p: (X @ p)[:, 0],
        p,
        key,
        sample=lambda key, f: f + jax.random.normal(key, f.shape),
        loss=lambda f, y: 0.5 * (f - y) ** 2,
    )
    many = np.asarray(jax.jit(jax.vmap(estimate))(jax.random.split(KEY, 8192)))
    error = np.abs(many.mean(0)[:, 0] - np.mean(X**2, axis=0))
    assert np.all(error < 5 * many.std(0)[:, 0] / np.sqrt(8192))


def test_padding_alone_is_no_curvature() -> None:
    h = curvature.gauss_newton_bartlett(logits, jnp.ones((3, 4)), KEY, where=jnp.zeros(8, bool))
    np.testing.assert_array_equal(h, np.zeros((3, 4)))


# Bad input ------------------------------------------------------------------------------------------------------------

square = lambda p: jnp.sum(p**2)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: curvature.hutchinson(lambda p: p**2, jnp.ones(2), KEY), ValueError, "loss must give one real number"),
        (lambda: curvature.hutchinson(lambda p: (p[0], 1), jnp.ones(2), KEY), ValueError, "loss must give one real"),
        (lambda: curvature.hutchinson(lambda p: None, jnp.ones(2), KEY), ValueError, "one real number, got None"),
        (
            lambda: curvature.hutchinson(square, jnp.ones(2), KEY, has_aux=True),
            ValueError,
            r"with has_aux loss must give a pair, got float32\[\]",
        ),
        (
            lambda: curvature.gauss_newton_bartlett(jnp.sum, jnp.ones((3, 4)), KEY),
            ValueError,
            r"model must give an array of logits, classes in the last axis, got float32\[\]",
        ),
        (
            lambda: curvature.gauss_newton_bartlett(lambda p: (p, p), jnp.ones((3, 4)), KEY),
            ValueError,
            "model must give an array of logits",
        ),
        (
            lambda: optax.inject_hyperparams(adaptx.sophia)(0.1).init(jnp.ones(2)),
            ValueError,
            r"sophia: update_every must be .*, got .*\(optax.inject_hyperparams: name it in static_args\)",
        ),
        (lambda: curvature.hutchinson(square, jnp.ones(2), None), TypeError, "key must be one random key"),
        (lambda: curvature.hutchinson(square, jnp.ones(2), 0), TypeError, "key must be one random key.*got 0"),
        (lambda: curvature.hutchinson(square, jnp.ones(2), jax.random.split(KEY)), TypeError, "key must be one random"),
        (lambda: curvature.hutchinson(square, {"w": jnp.ones(2, int)}, KEY), TypeError, r"parameter at \['w'\] is int"),
        (
            lambda: curvature.hutchinson(square, {"w": jnp.ones(2) * 1j}, KEY),
            TypeError,
            r"\['w'\] is complex64; .*real",
        ),
        (lambda: curvature.hutchinson(square, jnp.ones(2), KEY, samples=0), ValueError, "samples must be an int >= 1"),
        (lambda: curvature.gauss_newton_bartlett(logits, jnp.ones((3, 4)), 1), TypeError, "key must be one random key"),
        (
            lambda: curvature.gauss_newton_bartlett(logits, jnp.ones((3, 4)), KEY, where=jnp.ones(8)),
            ValueError,
            r"where must be bool\[8\], got float32\[8\]",
        ),
        (
            lambda: curvature.gauss_newton_bartlett(logits, jnp.ones((3, 4)), KEY, where=jnp.ones(7, bool)),
            ValueError,
            r"where must be bool\[8\], got bool\[7\]",
        ),
        (
            lambda: curvature.gauss_newton_bartlett(logits, jnp.ones((3, 4)), KEY, loss=lambda f, y: y),
            ValueError,
            "loss must give a real number a label",
        ),
        (
            lambda: curvature.gauss_newton_bartlett(logits, jnp.ones((3, 4)), KEY, where=[True] * 8),
            ValueError,
            r"where must be bool\[8\], got \[True",
        ),
        (
            lambda: curvature.gauss_newton_bartlett(
                logits,
                jnp.ones((3, 4)),
                KEY,
                loss=lambda f, y: optax.softmax_cross_entropy_with_integer_labels(f, y).mean(),
            ),
            ValueError,
            r"loss must give one number for each label, float32\[8\], got .*float32\[\]",
        ),
        (
            lambda: curvature.gauss_newton_bartlett(lambda p: p > 0, jnp.ones((3, 4)), KEY),
            ValueError,
            r"model must give an array of logits.*got .*bool",
        ),
        (lambda: asked(adaptx.adahessian, "x"), TypeError, "^adahessian: hessian, a function, .*, got 'x'"),
        (lambda: asked(adaptx.scale_by_sophia, {"w": "x"}, {}), TypeError, "^scale_by_sophia: hessian, a function,"),
        (lambda: curvature.spatial_average(jnp.ones((2, 2)), 0), ValueError, "block_size must be an int >= 1 or None"),
        (lambda: curvature.spatial_average(lambda: jnp.ones((2, 2))), TypeError, "spatial_average: the estimate at"),
    ],
)
def test_bad_input_is_one_line(call: Callable[[], Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_python_numbers_are_parameters() -> None:
    h = curvature.hutchinson(lambda p: p["w"] ** 2, {"w": 1.0}, KEY)
    np.testing.assert_allclose(h["w"], 2.0)
    assert curvature.spatial_average({"w": 1.0}, 2) == {"w": 1.0}


def test_other_names_are_hinted() -> None:
    for argument, hint in (("update_interval", "update_every"), ("rho", "gamma"), ("weight_decay_mask", "mask")):
        with pytest.raises(TypeError, match=f"no argument {argument}; it is {hint} here"):
            adaptx.sophia(0.1, **{argument: 1})


# The documents ----------------------------------------------------------------------------------------------------


def test_the_example_trains() -> None:
    text = inspect.cleandoc(curvature.__doc__ or "").split("\n\n", 2)[2]
    code = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    ") or not line)
    names: dict[str, Any] = {"loss": lambda p, batch: jnp.mean((batch @ p - 1) ** 2)}
    exec(compile(code, "adaptx.curvature", "exec"), names)
    params, first = jnp.zeros(3), 1.0
    state = names["tx"].init(params)
    for i in range(400):
        params, state = names["train_step"](params, state, jnp.eye(3), i)
    assert names["loss"](params, jnp.eye(3)) < first / 2
