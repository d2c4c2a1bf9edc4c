"""What holds for every wrapper, around optimizers of this library and of Optax."""

from __future__ import annotations

import functools
import re
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import adaptx
from adaptx import precision
from adaptx.core.rounding import wider
from adaptx.hyperparams import get_hyperparams, inject_hyperparams, set_hyperparams
from tests.conformance.cases import grads_like, params_like
from tests.conformance.compare import assert_close, assert_finite
from tests.conftest import x64

RATE = 0.05
# One object of each, so that what it compiles for a leaf serves all tests.
INNER: dict[str, Any] = {
    "adam": adaptx.adam(RATE, b2=0.95),
    "nadam": adaptx.nadam(RATE),
    "optax.sgd": optax.sgd(RATE, momentum=0.9),
    "optax.adamw": optax.adamw(RATE),
}
_decay = adaptx.with_weight_decay
WRAPPERS: dict[str, Any] = {
    "schedule_free": lambda tx: adaptx.schedule_free(tx, RATE),
    "schedule_free kept": lambda tx: adaptx.schedule_free(tx, RATE, keep_average=True),
    "cautious": adaptx.cautious,
    "decoupled": lambda tx: _decay(tx, 0.1, RATE),
    "l2": lambda tx: _decay(tx, 0.1, kind="l2"),
    "independent": lambda tx: _decay(tx, lambda count: 0.01 / (1 + jnp.asarray(count, float)), kind="independent"),
    "stable": lambda tx: _decay(tx, 0.1, RATE, kind="stable", b2=0.95),
    "cautious decay": lambda tx: _decay(tx, 0.1, RATE, kind="cautious"),
    "mars": adaptx.mars,
    "mars exact": lambda tx: adaptx.mars(tx, exact=True),
    "update_clipping": lambda tx: optax.chain(tx, adaptx.update_clipping(0.5, RATE)),
    "graft": lambda tx: adaptx.graft(optax.sgd(RATE), tx),
    "stochastic_rounding": lambda tx: optax.chain(tx, precision.stochastic_rounding(1)),
    "kahan": lambda tx: optax.chain(tx, precision.kahan()),
    "master_weights": precision.master_weights,
    "everything": lambda tx: adaptx.schedule_free(adaptx.mars(_decay(adaptx.cautious(tx), 0.1, RATE)), RATE),
}
EMITS_FLOAT32 = {"stochastic_rounding", "kahan", "master_weights"}  # for 16-bit parameters
DECAYS = {"decoupled", "l2", "independent", "stable", "cautious decay", "everything"}
wrappers = pytest.mark.parametrize("name", WRAPPERS)


@functools.cache
def made(name: str, inner: str = "adam") -> Any:
    """The wrapped optimizer; an exact MARS is told the same gradient again, which corrects nothing."""
    tx = WRAPPERS[name](INNER[inner])
    if name != "mars exact":
        return tx
    update = lambda g, s, p=None, **extra: tx.update(g, s, p, **{"previous_grads": g, **extra})
    return optax.GradientTransformationExtraArgs(tx.init, update)


def at(stacked: Any, i: int) -> Any:
    return jax.tree.map(lambda a: a[i], stacked)


def dtypes(tree: Any) -> Any:
    return jax.tree.map(lambda a: (a.shape, a.dtype, a.weak_type), tree)


def scan(tx: Any, params: Any, grads: Any) -> Any:
    def body(carry: Any, g: Any) -> Any:
        params, state = carry
        updates, state = tx.update(g, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(body, (params, tx.init(params)), grads)[0]


@wrappers
def test_a_scan_is_a_loop(name: str) -> None:
    """One trace serves every step, and compiled steps are eager ones."""
    tx, params, grads, traces = made(name), params_like(), grads_like(3), []

    @jax.jit
    def update(g: Any, state: Any, params: Any) -> Any:
        traces.append(None)
        return tx.update(g, state, params)

    scanned, (x, state) = scan(tx, params, grads), (params, tx.init(params))
    for i in range(3):
        updates, state = update(at(grads, i), state, x)
        x = optax.apply_updates(x, updates)
        assert not any(leaf.weak_type for leaf in jax.tree.leaves((updates, state)))
    assert len(traces) == 1
    assert_close(name, scanned, (x, state), 1e-5)


@pytest.mark.suite
@pytest.mark.parametrize("inner", [i for i in INNER if i != "adam"])
@wrappers
def test_around_every_optimizer(name: str, inner: str) -> None:
    """A scan takes the state, and every parameter moves."""
    if name == "stable" and inner == "optax.sgd":
        with pytest.raises(ValueError, match="kind 'stable' needs `nu`"):
            made(name, inner).init(params_like())
        return
    tx, params, grads = made(name, inner), params_like(), grads_like(2)
    jax.eval_shape(functools.partial(scan, tx), params, grads)
    updates, state = tx.update(at(grads, 0), tx.init(params), params)
    updates, _ = tx.update(at(grads, 1), state, optax.apply_updates(params, updates))
    assert_finite(f"{name} of {inner}", updates)
    assert all(np.any(u) for u in jax.tree.leaves(updates))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64"])
@wrappers
def test_dtypes_are_a_fixed_point(name: str, dtype: str) -> None:
    """Also with gradients of another width; the state is float32 or wider, and updates go where they are added."""
    with x64(dtype == "float64"), jax.numpy_dtype_promotion("standard" if dtype == "complex64" else "strict"):
        for of_grads in {dtype} if dtype == "complex64" else {dtype, "bfloat16", "float32"}:
            params = params_like(jnp.dtype(dtype))
            tx, g = made(name), params_like(jnp.dtype(of_grads), seed=1)
            state = tx.init(params)
            updates, after = jax.eval_shape(tx.update, g, state, params)
            if name not in ("graft", "update_clipping"):  # Optax's sgd is in it
                like = wider(jnp.dtype(dtype), jnp.dtype(of_grads))
                if name in EMITS_FLOAT32 and dtype in ("float16", "bfloat16"):
                    like = jnp.dtype("float32")
                assert {a.dtype for a in jax.tree.leaves(updates)} == {like}, of_grads
            assert dtypes(after) == dtypes(state)
            stored = [a.dtype for a in jax.tree.leaves(state) if jnp.issubdtype(a.dtype, jnp.inexact)]
            if name not in ("graft", "kahan"):  # kahan's rests are of the parameters' dtype
                assert all(jnp.finfo(d).bits >= 32 for d in stored)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@wrappers
def test_zero_gradients_leave_the_parameters_or_decay_them(name: str, dtype: str) -> None:
    tx, params = made(name), params_like(jnp.dtype(dtype))
    zero, x = jax.tree.map(jnp.zeros_like, params), params
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(zero, state, x)
        assert_finite(name, (updates, state))
        # Stable decay divides by a second moment of 0, and says nothing then. L2 makes gradients that are not 0.
        assert [bool(np.any(u != 0)) for u in jax.tree.leaves(updates)] == [name in DECAYS - {"stable"}] * 3
        x = optax.apply_updates(x, updates)
    if name == "schedule_free":
        assert all(map(np.array_equal, *map(jax.tree.leaves, (x, params))))


@pytest.mark.parametrize("size", [1e-30, 1e-19, 1e17, 1e30])
@wrappers
def test_extreme_gradients_give_finite_updates(name: str, size: float) -> None:
    inner = INNER["adam"]
    tx = made(name) if name != "graft" else adaptx.graft(inner, optax.sgd(RATE))
    params = params_like()
    g = jax.tree.map(lambda a: size * a, params)
    updates, state = tx.update(g, tx.init(params), params)
    assert_finite(f"{name} at {size}", (updates, state))
    if name == "graft":
        for grafted, length in ((tx, inner), (adaptx.graft(optax.sgd(RATE), inner), optax.sgd(RATE))):
            updates, _ = grafted.update(g, grafted.init(params), params)
            expected, _ = length.update(g, length.init(params), params)
            for u, e in zip(jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True):
                norm = lambda a: np.linalg.norm(np.asarray(a, float))
                np.testing.assert_allclose(norm(u), norm(e), rtol=1e-5)
    elif size > 1:
        plain, _ = tx.update(params, tx.init(params), params)
        for u, e in zip(jax.tree.leaves(updates), jax.tree.leaves(plain), strict=True):
            ratio = np.linalg.norm(u) / np.linalg.norm(e)
            assert 0.5 < ratio < 2, f"{name}: {ratio} times the step of usual gradients"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@wrappers
def test_nan_and_inf_show_and_stay_in_their_tensor(name: str, bad: float) -> None:
    tx, params, g = made(name), params_like(), params_like(seed=1)
    g["b"] = g["b"].at[0].set(bad)
    updates, _ = tx.update(g, tx.init(params), params)
    if name == "stable" and np.isnan(bad):  # its mean is over the tree
        assert np.isnan(updates["w"]).all()
    else:
        assert_finite(name, (updates["w"], updates["s"]))
    assert not np.isfinite(updates["b"][0])


@wrappers
def test_donation(name: str) -> None:
    """Parameters and state, that of a compiled init too, are donated together, twice."""
    tx, params, g = made(name), params_like(), params_like(seed=1)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, g: Any) -> Any:
        updates, state = tx.update(g, state, params)
        return optax.apply_updates(params, updates), state

    for init in (tx.init, jax.jit(tx.init)):
        carry = (jax.tree.map(jnp.array, params), init(params))
        for _ in range(2):
            before, carry = carry, step(*carry, g)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


@wrappers
def test_trees(name: str) -> None:
    """A None gradient leaves parameter and state alone; empty leaves, masked ones and numbers are no trouble."""
    params = {"a": jnp.ones(2), "b": jnp.float32(0.5), "c": jnp.zeros((3, 0)), "d": (), "e": [np.ones(2, np.float32)]}
    tx, g = made(name, "adam"), {**params, "a": None}
    state = tx.init(params)
    for _ in range(2):
        updates, after = tx.update(g, state, params)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert jax.tree.structure(updates) == jax.tree.structure(g)
        state = after
    assert updates["a"] is None
    if name.startswith("schedule_free"):
        np.testing.assert_array_equal(state.z["a"], params["a"])
    masked = optax.masked(tx, {"a": False, "b": True, "c": True, "d": (), "e": [True]})
    g = {**params, "a": 3.0 * params["a"]}
    updates, _ = masked.update(g, masked.init(params), params)
    np.testing.assert_array_equal(updates["a"], g["a"])
    empty, _ = tx.update({}, tx.init({}), {})
    assert empty == {}


@wrappers
def test_extra_arguments_reach_what_is_wrapped(name: str) -> None:
    seen = []

    def update(g: Any, state: Any, params: Any = None, *, value: Any, **extra: Any) -> Any:
        seen.append(value)
        return jax.tree.map(jnp.negative, g), state

    params = params_like()
    init = lambda params: adaptx.AdamState(jnp.int32(0), params, jax.tree.map(jnp.ones_like, params))
    tx = WRAPPERS[name](optax.GradientTransformationExtraArgs(init, update))
    extra = {"previous_grads": params} if name == "mars exact" else {}
    tx.update(params, tx.init(params), params, value=3.0, **extra)
    assert seen == [3.0]


@pytest.mark.suite
@wrappers
def test_abstract_parameters(name: str) -> None:
    """init takes shapes with shardings, keeps them, and its state is that of arrays."""
    params = params_like()
    mesh = jax.make_mesh((3,), ("x",), devices=jax.devices()[:3])
    placed = {**params, "w": jax.device_put(params["w"], NamedSharding(mesh, PartitionSpec("x")))}
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), placed)
    inner = INNER["adam"]
    tx = WRAPPERS[name](inner) if name != "graft" else adaptx.graft(inner, inner)
    concrete, state = tx.init(placed), tx.init(abstract)
    assert jax.tree.structure(state) == jax.tree.structure(concrete)
    for a, b in zip(jax.tree.leaves(concrete), jax.tree.leaves(state), strict=True):
        assert isinstance(b, jax.ShapeDtypeStruct)
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if a.shape == (3, 2):
            assert all(s.is_equivalent_to(placed["w"].sharding, 2) for s in (a.sharding, b.sharding))


@pytest.mark.suite
@wrappers
def test_state_is_found_by_name(name: str) -> None:
    """One `count`, that of the wrapped optimizer; map_params knows what follows the parameters."""
    tx, params = made(name), params_like()
    state = tx.init(params)
    if name != "graft":
        assert int(optax.tree.get(state, "count")) == 0
    marked = optax.tree.map_params(tx, lambda _: "like", state, transform_non_params=lambda _: "not")
    for leaf, mark in zip(jax.tree.leaves(state), jax.tree.leaves(marked), strict=True):
        assert leaf.ndim == 0 or mark == "like"


@wrappers
def test_trees_that_do_not_fit_are_refused(name: str) -> None:
    tx, params = made(name), params_like()
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"gradient at \['w'\] must be like float32\[3, 2\]"):
        tx.update({**params, "w": jnp.ones((3, 1))}, state, params)
    with pytest.raises(ValueError, match="differ as trees"):
        tx.update({"b": params["b"]}, state, params)
    with pytest.raises(TypeError, match=r"gradient at \['s'\] is int32"):
        tx.update({**params, "s": jnp.int32(1)}, state, params)


@pytest.mark.parametrize("name", ["schedule_free", "mars", "decoupled", "graft"])
def test_a_strange_state_is_refused(name: str) -> None:
    tx, params = made(name), params_like()
    with pytest.raises(TypeError, match=r"the state must be the \w+State that init gives, got EmptyState"):
        tx.update(params, optax.EmptyState(), params)


@pytest.mark.parametrize("name", ["schedule_free", "decoupled", "l2"])
def test_params_are_asked_for(name: str) -> None:
    tx = made(name)
    with pytest.raises(ValueError, match=r"(schedule_free|with_weight_decay): update needs params"):
        tx.update(params_like(), tx.init(params_like()))


TX = adaptx.adam(0.1)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: adaptx.cautious(adaptx.adam), "cautious: tx must be an optax.GradientTransformation"),
        (lambda: adaptx.cautious(None), "cautious: tx must be an optax.GradientTransformation"),
        (lambda: adaptx.graft(TX, optax.GradientTransformation), "graft: direction must be an optax.Gradient"),
        (lambda: adaptx.cautious(TX, 0.0), r"cautious: min_mean must be in \(0, 1\], got 0.0"),
        (lambda: adaptx.schedule_free(TX, -1.0), "schedule_free: learning_rate must be"),
        (lambda: adaptx.schedule_free(TX, 0.1, 1.0), r"schedule_free: b1 must be in \[0, 1\), got 1.0"),
        (lambda: adaptx.schedule_free(TX, 0.1, weight_power=-1.0), "schedule_free: weight_power must be >= 0"),
        (lambda: adaptx.schedule_free(TX, 0.1, 0.0, keep_average=False), "schedule_free: b1 = 0 needs keep_average"),
        (lambda: adaptx.schedule_free(TX, 0.1, weight_lr_power=1.0), "it is weight_power here"),
        (lambda: adaptx.schedule_free(TX, 0.1, r=1.0), "it is step_power here"),
        (lambda: _decay(TX, -0.1, 0.1), "with_weight_decay: weight_decay must be"),
        (lambda: _decay(TX, 0.1, 0.1, kind="L2"), "with_weight_decay: kind must be 'decoupled' or 'l2' or"),
        (lambda: _decay(TX, 0.1), "with_weight_decay: kind 'decoupled' needs learning_rate"),
        (lambda: _decay(TX, 0.1, 0.1, kind="l2"), "with_weight_decay: kind 'l2' does not use learning_rate"),
        (lambda: _decay(TX, 0.1, 0.1, kind="stable"), "with_weight_decay: kind 'stable' needs b2"),
        (lambda: _decay(TX, 0.1, 0.1, b2=0.9), "with_weight_decay: kind 'decoupled' does not use b2"),
        (
            lambda: _decay(optax.sgd(0.1), 0.1, 0.1, kind="stable", b2=0.9).init(jnp.ones(1)),
            "with_weight_decay: kind 'stable' needs `nu`, a mean of squares, in the state",
        ),
        (
            lambda: _decay(adaptx.sophia(0.1), 0.1, 0.1, kind="stable", b2=0.9).init(jnp.ones(1)),
            "with_weight_decay: kind 'stable' needs `nu`, a mean of squares, in the state",
        ),
        (lambda: adaptx.mars(TX, gamma=0.1), "it is correction here"),
        (lambda: adaptx.mars(TX, clip_norm=0.0), "mars: clip_norm must be > 0 or None, got 0.0"),
        (lambda: adaptx.mars(TX, exact=1), "mars: exact must be True or False, got 1"),
        (
            lambda: adaptx.mars(TX, exact=True).update(jnp.ones(1), adaptx.mars(TX, exact=True).init(jnp.ones(1))),
            "mars: update needs previous_grads",
        ),
        (
            lambda: adaptx.mars(TX).update(jnp.ones(1), adaptx.mars(TX).init(jnp.ones(1)), previous_grads=jnp.ones(1)),
            "mars: update got previous_grads, which only exact=True uses",
        ),
        (lambda: adaptx.update_clipping(0.0), "update_clipping: max_rms must be > 0, got 0.0"),
        (lambda: adaptx.schedule_free_eval_params((), 1.0), "no ScheduleFreeState in the state"),
    ],
)
def test_a_bad_value_is_one_line(call: Any, line: str) -> None:
    with pytest.raises((ValueError, TypeError), match=line) as refusal:
        call()
    assert "\n" not in str(refusal.value)


INJECTED: dict[str, Any] = {
    "schedule_free": (adaptx.schedule_free, dict(learning_rate=optax.linear_schedule(0.0, 0.1, 2), b1=0.8)),
    "cautious": (adaptx.cautious, dict(min_mean=0.5)),
    "l2": (adaptx.with_weight_decay, dict(weight_decay=0.1, kind="l2", mask={"b": True, "s": False, "w": True})),
    "stable": (adaptx.with_weight_decay, dict(weight_decay=0.1, learning_rate=0.1, kind="stable", b2=0.95)),
    "mars": (adaptx.mars, dict(b1=0.9, correction=0.1, clip_norm=2.0)),
}


@pytest.mark.parametrize("name", INJECTED)
def test_injected_around(name: str) -> None:
    """Numbers in the state give the closed-over steps; the optimizer inside may be injected as well."""
    factory, kwargs = INJECTED[name]
    closed = factory(INNER["adam"], **kwargs)
    inside = inject_hyperparams(adaptx.adam)(RATE, b2=0.95)
    injected = inject_hyperparams(factory)(inside, **kwargs)
    params, grads, got = params_like(), grads_like(3), []
    for tx in (closed, injected):
        x, state, update = params, tx.init(params), jax.jit(tx.update)
        for i in range(3):
            updates, state = update(at(grads, i), state, x)
            x = optax.apply_updates(x, updates)
        got.append(x)
    assert_close(f"{name}: injected", got[1], got[0], 1e-6)
    assert {k for k in kwargs if k not in ("kind", "mask")} <= {k.split("/")[-1] for k in _names(state)}


def _names(state: Any) -> set[str]:
    return {re.sub(r".*\['(\w+)'\]$", r"\1", name) for name in get_hyperparams(state)}


def test_one_rate_for_both() -> None:
    """A factory of one number sets the rate of the wrapper and of what it wraps."""
    factory = lambda learning_rate: adaptx.schedule_free(adaptx.adamw(learning_rate, b1=0.0), learning_rate)
    tx, params = inject_hyperparams(factory)(0.1), params_like()
    state = set_hyperparams(tx.init(params), learning_rate=0.0)
    updates, state = tx.update(params, state, params)
    assert not any(np.any(u) for u in jax.tree.leaves(updates))
    updates, _ = tx.update(params, set_hyperparams(state, learning_rate=0.2), params)
    expected = factory(0.2)
    _, first = factory(0.0).update(params, expected.init(params), params)
    expected, _ = expected.update(params, first, params)
    assert_close("the rate of both", updates, expected, 1e-6)


@pytest.mark.suite
@wrappers
def test_vmap(name: str) -> None:
    tx = made(name)
    many = [params_like(seed=seed) for seed in (0, 7)]
    params = jax.tree.map(lambda *a: jnp.stack(a), *many)
    updates, _ = jax.vmap(tx.update)(params, jax.vmap(tx.init)(params), params)
    for k, x in enumerate(many):
        alone, _ = tx.update(x, tx.init(x), x)
        assert_close(f"{name}: batched", at(updates, k), alone, 1e-5)


@pytest.mark.parametrize("call", ["schedule_free", "cautious", "with_weight_decay", "mars", "update_clipping", "graft"])
def test_the_example_in_the_docstring_runs(call: str) -> None:
    text = getattr(adaptx, call).__doc__.partition("\nArguments:")[0]
    found = [
        line for line in text.splitlines() if line.startswith("    ") and re.match(r" +\w[\w, ]* = \w+\.\w+\(", line)
    ]
    code = textwrap.dedent("\n".join(found))
    assert f"adaptx.{call}(" in code
    params = params_like()
    names = {"adaptx": adaptx, "optax": optax, "params": params, "grads": params}
    exec(compile(code.replace("lambda params: ...", "lambda params: True"), call, "exec"), names)
    tx: Any = names["tx"]
    updates, _ = tx.update(params, tx.init(params), params)
    assert_finite(call, updates)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_graft_emits_what_its_parts_emit(dtype: str) -> None:
    """Of 16 bits, so that `lax.cond` may choose between it and nothing, as apply_if_finite does."""
    tx, x = adaptx.graft(adaptx.adam(0.1), adaptx.lion(1.0)), jnp.full((3, 2), 0.5, dtype)
    assert tx.update(x, tx.init(x), x)[0].dtype == dtype
    guarded = optax.apply_if_finite(tx, 2)
    assert guarded.update(x, guarded.init(x), x)[0].dtype == dtype


@pytest.mark.parametrize("wrap", [adaptx.cautious, lambda tx: adaptx.graft(tx, tx), lambda tx: _decay(tx, 0.1, 0.1)])
def test_trees_are_checked_around_optax_too(wrap: Any) -> None:
    tx, x = wrap(optax.sgd(0.1)), jnp.ones((3, 2))
    with pytest.raises(ValueError, match=r"the gradient at the root must be like float32\[3, 2\]"):
        tx.update(jnp.ones((1, 2)), tx.init(x), x)
    for wrong in ("x", jnp.ones((3, 2), int)):
        with pytest.raises(TypeError, match=r"^\w+: the gradient at the root is .*; it must be floating or complex"):
            tx.update(wrong, tx.init(x), x)
    with pytest.raises(TypeError, match=r"^\w+: the parameter at the root is int32; it must be floating or complex"):
        tx.init(jnp.ones((3, 2), int))
