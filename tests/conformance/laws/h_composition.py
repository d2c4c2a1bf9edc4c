"""Laws H: inside Optax's combinators and Flax's training loops."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from flax import linen, nnx
from flax.training.train_state import TrainState

from adaptx.registry import GLOSSARY
from tests.conformance.cases import Case, grads_like, params_like
from tests.conformance.compare import assert_finite, has_places, holds, wide
from tests.conformance.law import law
from tests.conformance.laws.d_trees import Module
from tests.conformance.laws.f_symmetries import same_bits
from tests.conformance.laws.g_errors import fails
from tests.conformance.program import RECORDED, run, transformation


def _gradients(steps: int) -> list[Any]:
    stacked = grads_like(steps)
    return [jax.tree.map(lambda g, i=i: g[i], stacked) for i in range(steps)]


def _updates(tx: Any, arrange: Any = lambda tree: tree, **extra: Any) -> list[Any]:
    """The updates of two eager steps from params_like()."""
    params = arrange(params_like())
    state, updates = tx.init(params), []
    for g in map(arrange, _gradients(2)):
        u, state = tx.update(g, state, params, **extra)
        params = optax.apply_updates(params, u)
        updates.append(u)
    return updates


def _without_b(tree: Any) -> Any:
    return {k: v for k, v in tree.items() if k != "b"}


def _combines(case: Case, tx: Any) -> None:
    """chain, named_chain, masked, partition, freeze and arguments for others: the same bits."""
    alone = _updates(tx)
    for name, combined in (
        ("chain", optax.chain(optax.identity(), tx)),
        ("named_chain", optax.named_chain(("first", optax.identity()), ("second", tx))),
        ("masked by True", optax.masked(tx, True)),
        ("partition of one group", optax.partition({"all": tx}, lambda params: jax.tree.map(lambda _: "all", params))),
        ("frozen nowhere", optax.chain(tx, optax.freeze(False))),
    ):
        assert same_bits(_updates(combined), alone), f"{case.id}: {name} changes the updates"
    assert same_bits(_updates(tx, value=jnp.float32(1.0), of_no_use="x"), alone), f"{case.id}: extra arguments matter"

    rest = _updates(tx, _without_b)
    mask = {"b": False, "s": True, "w": True}
    groups = optax.partition({"rest": tx, "still": optax.set_to_zero()}, {"b": "still", "s": "rest", "w": "rest"})
    for name, combined, b in (("masked", optax.masked(tx, mask), _gradients(2)), ("partition", groups, None)):
        updates = _updates(combined)
        assert same_bits([_without_b(u) for u in updates], rest), f"{case.id}: {name}: the rest is not what it is alone"
        expected = [jnp.zeros(2) if b is None else g["b"] for g in b or (0, 1)]
        assert same_bits([u["b"] for u in updates], expected), f"{case.id}: {name} touches the leaf left out"


def _accumulates(case: Case, tx: Any) -> None:
    """MultiSteps: nothing at a micro-step; three of them are one step on the mean gradient."""
    del tx
    params, grads = params_like(), grads_like(RECORDED)
    accumulating = case.broken(lambda tx: optax.MultiSteps(tx, 3).gradient_transformation())
    updates = run(accumulating, params, grads, 6).updates
    mean = lambda g: jnp.concatenate([g[:6].reshape(2, 3, *g.shape[1:]).mean(1), g[2:]])
    expected = run(case, params, jax.tree.map(mean, grads), 2).updates
    for u, e in zip(*(jax.tree.leaves(jax.tree.map(wide, tree)) for tree in (updates, expected)), strict=True):
        assert not u[[0, 1, 3, 4]].any(), f"{case.id}: MultiSteps moves at a micro-step"
        # The mean is accumulated in another order, and a signed sum of three can cancel to a tenth.
        error = np.abs(u[[2, 5]] - e[:2]).max() / np.abs(e[:2]).max()
        assert error <= 1e-5, f"{case.id}: MultiSteps is {error:.1e} off the mean gradient's step"


def _looks_ahead(case: Case, tx: Any) -> None:
    """lookahead: the fast steps are the optimizer's own; the second ends half way from the start."""
    wrapped = optax.lookahead(tx, sync_period=2, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(params_like())
    state = wrapped.init(params)
    for g in _gradients(2):
        updates, state = wrapped.update(g, state, params)
        params = optax.apply_updates(params, updates)
    end = functools.reduce(optax.apply_updates, _updates(tx), params_like())
    half = jax.tree.map(lambda a, b: 0.5 * (a + b), params_like(), end)
    for what, tree in (("fast", params.fast), ("slow", params.slow)):
        error = max(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), tree, half)))
        assert error <= 1e-6, f"{case.id}: lookahead's {what} parameters are {error:.1e} off"  # of parameters up to 3


def _is_found(case: Case, tx: Any) -> None:
    """optax.tree.map_params sees the arrays that follow parameters, optax.tree.get the one count."""
    params = params_like()
    state = tx.init(params)
    marked = optax.tree.map_params(tx, lambda _: "like a parameter", state, transform_non_params=lambda _: "not")
    structure = jax.tree.structure(params)
    for field, marks in zip(state._fields, marked, strict=True):
        follows = has_places(structure, getattr(state, field))  # one array in each place, or several (SM3's cover)
        expected = {"like a parameter"} if follows else {"not"}
        found = set(jax.tree.leaves(marks))
        assert found <= expected, f"{case.id}: map_params takes `{field}` for {found}"
    scheduled = case.tx(learning_rate=optax.constant_schedule(0.1)).init(params)
    assert int(optax.tree.get(scheduled, "count")) == 0, f"{case.id}: no count"


def _is_injected(case: Case, tx: Any) -> None:
    """optax.inject_hyperparams with float32 values runs; with bfloat16's, decay rates say what to do instead."""
    params, grads = params_like(), _gradients(1)[0]
    static = [name for name in inspect.signature(case.factory).parameters if GLOSSARY[name].static]
    injection = functools.partial(optax.inject_hyperparams, case.factory, static)
    injected = injection(hyperparam_dtype=jnp.float32)(**case.kwargs)
    update, after = jax.jit(injected.update), injected.init(params)
    for _ in range(2):  # ADOPT's first step only fills its state
        updates, after = update(grads, after, params)
        assert_finite(f"{case.id}: injected", (updates, after))
    assert all(np.all(np.asarray(u) != 0) for u in jax.tree.leaves(updates)), f"{case.id}: injected, nothing moves"

    arguments = inspect.signature(case.factory).bind(**case.kwargs)
    arguments.apply_defaults()
    numeric = {name for name, value in arguments.arguments.items() if value is not None}
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    if any(GLOSSARY[name].decay for name in numeric):
        init = injection()(**case.kwargs).init
        fails(f"{case.id}: decay rates in bfloat16", lambda: init(low), ValueError, "hyperparam_dtype")


def _keeps_state_outside(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Steps counted in the transformation itself: right alone, wrong as soon as it is used twice."""
    steps = []

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        steps.append(None)
        u, state = tx.update(updates, state, params, **extra)
        return jax.tree.map(lambda a: a / len(steps), u), state

    return optax.GradientTransformationExtraArgs(tx.init, update)


@law("H4", tier="O", plant=lambda case: case.broken(_keeps_state_outside))
def combines_with_optax(case: Case) -> None:
    """Inside Optax's combinators every optimizer does what it does alone."""
    tx = transformation(case)
    for check in (_combines, _is_found, _looks_ahead, _accumulates, _is_injected):
        with holds(f"{case.id}: {check.__name__[1:]}"):
            check(case, tx)


@functools.cache
def _dense() -> tuple[Any, Any]:
    """A linen and an nnx layer whose leaves have shapes that other laws have compiled for."""
    model = linen.Dense(2)
    return model, model.init(jax.random.key(0), jnp.ones((1, 3)))["params"]


def _layer(seed: int) -> dict[str, Any]:
    tree = params_like(seed=seed)
    return {"kernel": tree["w"], "bias": tree["b"]}


def _trains_flax(case: Case, tx: Any) -> None:
    """linen's TrainState and nnx.Optimizer take the steps that `update` and `apply_updates` take."""
    model, params = _dense()
    grads = _layer(5)
    state, expected = tx.init(params), params
    for _ in range(2):  # the second meets the state as Flax hands it back
        updates, state = tx.update(grads, state, expected)
        expected = optax.apply_updates(expected, updates)

    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    state = state.apply_gradients(grads=grads).apply_gradients(grads=grads)
    assert same_bits(state.params, expected), f"{case.id}: TrainState takes another step"

    layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    nnx.update(layer, nnx.State({k: nnx.Param(v) for k, v in params.items()}))
    optimizer = nnx.Optimizer(layer, tx, wrt=nnx.Param)
    for _ in range(2):
        optimizer.update(layer, nnx.State({k: nnx.Param(g) for k, g in grads.items()}))
    got = {"kernel": layer.kernel[...], "bias": layer.bias[...]}
    assert same_bits(got, expected), f"{case.id}: nnx.Optimizer takes another step"


def _runs_wrapped(case: Case, tx: Any) -> None:
    """Wrappers of optax.contrib, and a model that is itself a tree."""
    draw = params_like()
    params, grads = Module(draw["w"], draw["b"]), Module(*_layer(5).values())
    rate = case.kwargs["learning_rate"]
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.1))
    for name, wrapped, extra in (
        ("alone", tx, {}),
        (
            "reduce_on_plateau",
            optax.chain(tx, optax.contrib.reduce_on_plateau(patience=1)),
            dict(value=jnp.float32(1.0)),
        ),
        ("schedule_free", optax.contrib.schedule_free(tx, learning_rate=rate), {}),
        ("sam", optax.contrib.sam(tx, adversary, sync_period=2), {}),
    ):
        x, state = params, wrapped.init(params)
        for _ in range(4):  # two of its own steps, also inside sam
            updates, state = wrapped.update(grads, state, x, **extra)
            x = optax.apply_updates(x, updates)
        assert isinstance(x, Module), f"{case.id}: {name}: the parameters are another tree"
        assert_finite(f"{case.id}: {name}", (x, state))
        assert not same_bits(x, params), f"{case.id}: {name}: nothing moves"


def _takes_trees_for_dicts(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Half the step for whatever is no dict: linen's parameters are dicts, other models are not."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        u, state = tx.update(updates, state, params, **extra)
        return u if type(updates) is dict else jax.tree.map(lambda a: a / 2, u), state

    return optax.GradientTransformationExtraArgs(tx.init, update)


@law("H5", tier="O", plant=lambda case: case.broken(_takes_trees_for_dicts))
def trains_flax_models(case: Case) -> None:
    """Flax's TrainState and nnx.Optimizer, models that are trees, and optax.contrib's wrappers take its steps."""
    tx = transformation(case)
    for check in (_trains_flax, _runs_wrapped):
        with holds(f"{case.id}: {check.__name__[1:]}"):
            check(case, tx)
