"""Laws D: whatever a pytree may be, and where its arrays live."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.conformance.cases import Case, params_like
from tests.conformance.compare import holds
from tests.conformance.law import law, leaves_named
from tests.conformance.program import transformation


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    """A model that is itself a pytree and callable, as in Equinox."""

    weight: Any
    bias: Any
    name: str = dataclasses.field(default="affine", metadata=dict(static=True))

    def __call__(self, x: Any) -> Any:
        return self.weight @ x + self.bias


def odd_tree(seed: int) -> dict[str, Any]:
    """Every kind of leaf and container that models bring along."""
    draw = lambda i: params_like(seed=seed + i)
    return {
        "none": None,
        "number": draw(0)["s"],
        "empty": jnp.zeros((0,)),
        "no_columns": jnp.zeros((3, 0)),
        "no_leaves": [{}, (), []],
        "masked": optax.MaskedNode(),
        "numpy": np.asarray(draw(1)["b"]),
        "numpy_number": np.float32(draw(2)["s"]),
        "python_number": float(draw(7)["s"]),
        "tuple": (draw(3)["b"], {"inner": [draw(4)["s"]]}),
        "module": Module(draw(5)["w"], draw(5)["b"]),
        "frozen": draw(6)["b"],
    }


def _structure(tree: Any) -> Any:
    return jax.tree.structure(tree, is_leaf=lambda x: x is None)


def _frozen(state: Any) -> list[Any]:
    """What the state keeps for the leaf `frozen`, whose gradient is None."""
    return [np.asarray(leaf) for path, leaf in leaves_named(state) if path.endswith("['frozen']")]


def _odd_leaves(case: Case) -> None:
    tx, params, grads = transformation(case), odd_tree(0), {**odd_tree(50), "frozen": None}
    first = state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(grads, state, params)
        assert _structure(updates) == _structure(grads), f"{case.id}: the updates are another tree than the gradients"
        assert _structure(state) == _structure(first), f"{case.id}: the state's tree changed"
        for path, leaf in leaves_named((updates, state)):
            assert np.all(np.isfinite(leaf)), f"{case.id}: not finite at {path}"
        for before, after in zip(_frozen(first), _frozen(state), strict=True):
            assert np.array_equal(before, after), f"{case.id}: a None gradient changed its leaf's state"
        # optax.apply_updates takes None only where the parameter is None too.
        params = jax.tree.map(lambda x, u: x if u is None else x + u, params, updates, is_leaf=lambda x: x is None)
    for path, u in leaves_named(updates):  # in the second step: ADOPT's first only fills its state
        assert np.all(np.asarray(u) != 0), f"{case.id}: nothing moves at {path}"


def _large_trees(case: Case) -> None:
    deep: Any = {"w": jax.ShapeDtypeStruct((2,), jnp.float32)}
    for level in range(200):
        deep = {"in": deep} if level % 2 else [deep]
    trees = {"200 levels": deep}
    if case.index == 0:
        trees["2,000 leaves"] = {f"w{i}": jax.ShapeDtypeStruct((2,), jnp.float32) for i in range(2000)}
    for name, tree in trees.items():
        tx = transformation(case)
        state = tx.init(tree)
        updates, after = jax.eval_shape(tx.update, tree, state, tree)
        assert _structure(updates) == _structure(tree), f"{case.id}: {name}: the updates are another tree"
        assert _structure(after) == _structure(state), f"{case.id}: {name}: the state's tree changed"


def _modules(case: Case) -> None:
    """A module as the whole tree, and one of bools as the mask: callable, but not a function of the parameters."""
    draw = params_like()
    params, grads = Module(draw["w"], draw["b"]), Module(*(params_like(seed=9)[k] for k in ("w", "b")))
    update = lambda tx: tx.update(grads, tx.init(params), params)[0]
    assert isinstance(update(transformation(case)), Module), f"{case.id}: the update is not a module"
    if "mask" in case.kwargs:
        as_module = update(case.tx(weight_decay=0.5, mask=Module(True, False)))
        as_function = update(case.tx(weight_decay=0.5, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)))
        same = jax.tree.map(np.array_equal, as_module, as_function)
        assert all(jax.tree.leaves(same)), f"{case.id}: a module as a mask is not the same as a function"


def _reads_a_length(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """SM3's accumulators by axis once read shape[0] of every leaf: an IndexError for a number."""

    def init(params: optax.Params) -> optax.OptState:
        jax.tree.map(lambda x: jnp.zeros(x.shape[0]), params)
        return tx.init(params)

    return optax.GradientTransformationExtraArgs(init, tx.update)


@law("D1", tier="O", plant=lambda case: case.broken(_reads_a_length), crash="IndexError")
def any_tree_runs(case: Case) -> None:
    """Any pytree runs and comes back with the same structure: odd leaves, empty ones, deep, wide, callable modules."""
    for check in (_odd_leaves, _large_trees, _modules):
        with holds(f"{case.id}: {check.__name__[1:]}"):
            check(case)


def _makes_new_zeros(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """zeros(x.shape) in place of zeros_like(x): the state is on one device, whatever the parameters are."""

    def init(params: optax.Params) -> optax.OptState:
        new = lambda a: jnp.zeros(a.shape, a.dtype) if isinstance(a, jax.Array) else a
        return jax.tree.map(new, tx.init(params))

    return optax.GradientTransformationExtraArgs(init, tx.update)


@law("D2", tier="O", plant=lambda case: case.broken(_makes_new_zeros))
def init_is_abstract_and_keeps_sharding(case: Case) -> None:
    """`init` takes ShapeDtypeStructs and eval_shape; state of a parameter's shape has its sharding, abstract too."""
    mesh = Mesh(np.array(jax.devices()[:8]), ("x",))
    specs = {"b": PartitionSpec(), "s": PartitionSpec(), "w": PartitionSpec("x", None)}
    params = {**params_like(), "w": jnp.ones((8, 2))}
    params = {k: jax.device_put(x, NamedSharding(mesh, specs[k])) for k, x in params.items()}
    described = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for k, x in params.items()}
    tx = transformation(case)

    state, abstract, evaluated = tx.init(params), tx.init(described), jax.eval_shape(tx.init, params)
    kind = lambda tree: jax.tree.map(lambda a: (a.shape, str(a.dtype)), tree)
    assert kind(abstract) == kind(state), f"{case.id}: init of ShapeDtypeStructs differs"
    assert kind(evaluated) == kind(state), f"{case.id}: init under eval_shape differs"
    for path, leaf in leaves_named(abstract):
        assert isinstance(leaf, jax.ShapeDtypeStruct), f"{case.id}: abstract init allocates {path}"
    for what, tree in (("state", state), ("abstract state", abstract)):
        for path, leaf in leaves_named(tree):
            for k, x in params.items():
                # Not numbers: they have nothing to shard, and a slot of one number for each tensor looks the same.
                if path.endswith(f"['{k}']") and leaf.shape == x.shape and x.ndim:
                    there = leaf.sharding
                    same = there is not None and there.is_equivalent_to(x.sharding, x.ndim)
                    assert same, f"{case.id}: {what} {path} has sharding {there}, its parameter {x.sharding}"
