"""Laws L: the same bits again, trees that nobody thought of, and a registry that is complete."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from hypothesis import given, settings
from hypothesis import strategies as st

import adaptx
from adaptx.registry import OPTIMIZERS
from tests.conformance.cases import Case, grads_like, params_like
from tests.conformance.compare import holds
from tests.conformance.law import law
from tests.conformance.laws.f_symmetries import same_bits
from tests.conformance.program import RECORDED, run, transformation


def _draws_anew(case: Case) -> Case:
    """Noise from a seed of the process, not of the state: another one in each transformation."""
    seeds = itertools.count()

    def factory(**kwargs: Any) -> Any:
        tx, key = case.factory(**kwargs), jax.random.key(next(seeds))

        def update(updates: Any, state: Any, params: Any = None) -> Any:
            u, state = tx.update(updates, state, params)
            return jax.tree.map(lambda a: a * (1 + 1e-6 * jax.random.normal(key, a.shape)), u), state

        return optax.GradientTransformationExtraArgs(tx.init, update)

    return dataclasses.replace(case, factory=factory)


@law("L1", tier="O", plant=_draws_anew)
def reruns_are_identical(case: Case) -> None:
    """Two transformations, compiled each for itself, give the same updates and state, bit for bit."""
    params, grads = params_like(), grads_like(RECORDED)
    first = run(case, params, grads)
    again = run(dataclasses.replace(case), params, grads)  # another object, so another program
    assert same_bits(first, again), f"{case.id}: a rerun differs"


SHAPES = [(), (1,), (2,), (3, 2), (0,), (2, 0, 3), (1, 2, 1, 3)]
LEAVES = st.none() | st.builds(
    jax.ShapeDtypeStruct,
    st.sampled_from(SHAPES),
    st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16, jnp.complex64]),
)
KEYS = st.sampled_from(["w", "b", "", "a b", "0", "层"])
TREES = st.recursive(
    LEAVES,
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.dictionaries(KEYS, inside, max_size=3)
        | st.tuples(inside, inside)
        | st.dictionaries(st.integers(0, 9), inside, max_size=2)
    ),
    max_leaves=8,
).filter(lambda tree: tree is not None)  # as the whole tree, None is how Optax says that there are no parameters


def _state_follows_leaves(case: Case) -> None:
    tx = transformation(case)

    @settings(max_examples=15, deadline=None, derandomize=True, database=None)
    @given(TREES)
    def check(tree: Any) -> None:
        kind = lambda t: jax.tree.map(lambda a: (a.shape, str(a.dtype), a.weak_type), t)
        state = jax.eval_shape(lambda: tx.init(tree))
        for _ in range(2):
            updates, after = jax.eval_shape(tx.update, tree, state, tree)
            assert kind(updates) == kind(tree), f"{case.id}: {tree} gives updates {kind(updates)}"
            assert kind(after) == kind(state), f"{case.id}: {tree} changes the state to {kind(after)}"
            state = after

    check()


def _squeezes(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Axes of length 1 that get lost in a reduction."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        u, state = tx.update(updates, state, params)
        return jax.tree.map(jnp.squeeze, u), state

    return optax.GradientTransformationExtraArgs(tx.init, update)


@law("L4", tier="O", plant=lambda case: case.broken(_squeezes))
def drawn_trees_are_fixed_points(case: Case) -> None:
    """Random trees, of any structure, shapes and dtypes: updates like the gradients, state like before."""
    with holds(case.id):
        _state_follows_leaves(case)


def _public_factories() -> dict[str, Any]:
    """Public functions that live among the optimizers."""
    found = {name: getattr(adaptx, name) for name in adaptx.__all__}
    return {
        name: f
        for name, f in found.items()
        if not isinstance(f, type) and getattr(f, "__module__", "").startswith("adaptx.optimizers.")
    }


@law(
    "L8", tier="O", plant=lambda case: dataclasses.replace(case, entry=dataclasses.replace(case.entry, direction=None))
)
def public_means_registered(case: Case) -> None:
    """Every public optimizer and direction has a registry row, and every row's factory and direction is public."""
    entry, public = case.entry, _public_factories()
    assert public.get(entry.name) is entry.factory, f"{case.id}: adaptx.{entry.name} is not the registered factory"
    if entry.direction is None:
        assert f"scale_by_{entry.name}" not in public, f"{case.id}: scale_by_{entry.name} is public, but no row has it"
        assert entry.direction_reason, f"{case.id}: no direction, and no reason why"
    else:
        name = f"scale_by_{entry.name}"
        assert public.get(name) is entry.direction, f"{case.id}: adaptx.{name} is not the registered direction"
    registered = {name for e in OPTIMIZERS.values() for name in (e.name, f"scale_by_{e.name}")}
    assert public.keys() <= registered, f"public, but not registered: {sorted(public.keys() - registered)}"
