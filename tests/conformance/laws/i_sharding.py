"""Law I1: a mesh of devices. (I2, shard_map, and I3, several processes, are not single-program laws.)"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tests.conformance.cases import Case
from tests.conformance.compare import assert_close, holds
from tests.conformance.law import law, leaves_named
from tests.conformance.program import transformation

# Both axes, none, an empty leaf, and one that 4 devices share as 2, 2, 1 and 0 rows (inside jit only, JAX allows it).
SHAPES = {"both": (8, 4), "empty": (0, 4), "number": (), "uneven": (5,)}
SPECS = {"both": ("x", "y"), "empty": ("x",), "number": (), "uneven": ()}
STEPS = 2


@functools.cache
def _mesh(kind: AxisType) -> Mesh:
    return jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))


def _entered(mesh: Mesh) -> contextlib.AbstractContextManager[Any]:
    return jax.set_mesh(mesh) if hasattr(jax, "set_mesh") else jax.sharding.use_mesh(mesh)  # before jax 0.8


@functools.cache
def _numbers() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Parameters, and gradients stacked over the steps."""
    rng = np.random.default_rng(3)
    draw = lambda *shape: (rng.choice([-1, 1], shape) * rng.uniform(0.5, 1.5, shape)).astype(np.float32)
    return {k: draw(*s) for k, s in SHAPES.items()}, {k: draw(STEPS, *s) for k, s in SHAPES.items()}


def _training(tx: optax.GradientTransformationExtraArgs, uneven: NamedSharding | None) -> Any:
    """A training by scan, from init on."""

    def train(params: Any, grads: Any) -> Any:
        if uneven is not None:
            params = {**params, "uneven": jax.lax.with_sharding_constraint(params["uneven"], uneven)}

        def step(carry: Any, g: Any) -> Any:
            params, state, _ = carry
            updates, state = tx.update(g, state, params)
            return (optax.apply_updates(params, updates), state, updates), None

        first = (params, tx.init(params), jax.tree.map(jnp.zeros_like, params))
        return jax.lax.scan(step, first, grads)[0]

    return train


def _assert_like_params(what: str, tree: Any, params: dict[str, jax.Array]) -> None:
    """Every array in a parameter's place and of its shape has its sharding; an array without elements has none."""
    for path, leaf in leaves_named(tree):
        for name, x in params.items():
            if path.endswith(f"['{name}']") and leaf.shape == x.shape and x.size and name != "uneven":
                same = leaf.sharding.is_equivalent_to(x.sharding, x.ndim)
                assert same, f"{what}: {path} lies as {leaf.sharding}, its parameter as {x.sharding}"


def _forgets_the_sharding(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """State made by zeros(x.shape), which lies whole on one device."""
    init = lambda params: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), tx.init(params))
    return optax.GradientTransformationExtraArgs(init, tx.update)


@law("I1", tier="O", plant=lambda case: case.broken(_forgets_the_sharding))
def sharded_is_one_device(case: Case) -> None:
    """On 8 devices, Auto or Explicit, the numbers are one device's, and state and update lie as their parameters do."""
    tx, (params, grads) = transformation(case), _numbers()
    with jax.disable_jit():
        expected = _training(tx, None)(params, grads)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh, what = _mesh(kind), f"{case.id}, {kind.name} mesh"
        place = lambda a, *axes, mesh=mesh: jax.device_put(a, NamedSharding(mesh, PartitionSpec(*axes)))
        # Jax 0.7 computes nothing with an empty array that lies on explicit axes.
        specs = SPECS if kind is AxisType.Auto else {**SPECS, "empty": ()}
        with _entered(mesh), holds(what):
            x = {k: place(a, *specs[k]) for k, a in params.items()}
            _assert_like_params(f"{what}, init", tx.init(x), x)
            uneven = None  # where axes are explicit, shards are even
            if kind is AxisType.Auto:  # where axes are explicit, the loop below refuses a state of another sharding
                _assert_like_params(f"{what}, compiled init", jax.jit(tx.init)(x), x)
                uneven = NamedSharding(mesh, PartitionSpec("x"))
            got = jax.jit(_training(tx, uneven))(x, {k: place(a, None, *specs[k]) for k, a in grads.items()})
            _assert_like_params(f"{what}, trained", got, x)
        # Sums over a tensor are taken in another order on several devices.
        assert_close(what, got, expected, 1e-5)
