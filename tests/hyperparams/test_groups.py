"""Groups: which leaf is in which, in every kind of tree, and what each group then does."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import adaptx
from adaptx.hyperparams import (
    get_hyperparams,
    group_by_path,
    group_table,
    inject_hyperparams,
    inject_per_group,
    no_decay_on,
    reset_group,
    set_hyperparams,
)
from adaptx.hyperparams.paths import Matcher, leaves_by_path
from tests.hyperparams.trees import PATHS, TREES, Nnx, linen

GROUPS = group_by_path({"embed": "embed/**", "kernels": "**/kernel"}, rest="others")
OWN = {"embed": dict(learning_rate=0.5), "others": dict(weight_decay=None)}


def _tx() -> optax.GradientTransformationExtraArgs:
    return inject_per_group(adaptx.adamw, GROUPS, OWN)(0.1, weight_decay=0.2)


def _by_path(tree: Any) -> dict[str, Any]:
    return {path: leaf for path, leaf in leaves_by_path(tree)[0] if leaf is not None}


@pytest.mark.parametrize("kind", TREES)
def test_paths_and_groups_are_the_same_in_every_tree(kind: str) -> None:
    params = TREES[kind]()
    assert _by_path(params).keys() == PATHS
    groups = GROUPS(params)
    is_none = lambda x: x is None
    assert jax.tree.structure(groups) == jax.tree.structure(params, is_leaf=is_none)
    got = {path: group for path, group in _by_path(groups).items() if path in PATHS}
    assert got["embed/embedding"] == "embed"
    assert {path for path, group in got.items() if group == "kernels"} == {"hidden/kernel", "head/kernel"}
    assert sum(group == "others" for group in got.values()) == 4


@pytest.mark.parametrize("kind", ["linen", "FrozenDict", "nnx", "module"])
def test_each_group_takes_its_own_steps(kind: str) -> None:
    """What a group's leaves do is what they do alone under the group's optimizer, also after a change of one rate."""
    tx, params = _tx(), TREES[kind]()
    state, old = tx.init(params), params
    alone = {"embed": (0.5, 0.2), "kernels": (0.1, 0.2), "others": (0.1, None)}
    for name, rates in (("", {}), ("kernels", {"kernels/learning_rate": 0.01})):
        state = set_hyperparams(state, rates)
        alone |= {name: (0.01, 0.2)} if name else {}
        grads = jax.tree.map(jnp.cos, params)
        updates, state = jax.jit(tx.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
    group_of, first, last = dict(leaves_by_path(GROUPS(old))[0]), _by_path(old), _by_path(params)
    for path, x in first.items():
        rate, decay = {"embed": (0.5, 0.2), "kernels": (0.1, 0.2), "others": (0.1, None)}[group_of[path]]
        single = adaptx.adamw(rate, weight_decay=decay)
        u, s = single.update(jnp.cos(x), single.init(x), x)
        x = x + u
        rate, decay = alone[group_of[path]]
        u, _ = adaptx.adamw(rate, weight_decay=decay).update(jnp.cos(x), s, x)
        np.testing.assert_allclose(last[path], x + u, rtol=1e-5, err_msg=path)


def test_optimizers_of_groups_through_partition() -> None:
    """`optax.partition` takes the groups as they are, for callable modules and for row-sparse gradients too."""
    for kind in ("linen", "module", "nnx"):
        params = TREES[kind]()
        tx = optax.partition(
            {"embed": optax.sgd(1.0), "kernels": adaptx.adagrad(0.1), "others": optax.set_to_zero()}, GROUPS
        )
        updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
        got = _by_path(updates)
        np.testing.assert_array_equal(got["embed/embedding"], -1)
        np.testing.assert_allclose(got["head/kernel"], -0.1, rtol=1e-6)
        np.testing.assert_array_equal(got["norm/scale"], 0)
    params = linen()
    grads = jax.tree.map(jnp.ones_like, params)
    grads["embed"]["embedding"] = adaptx.sparse.RowSparse([1], jnp.ones((1, 3)), 5)
    tx = optax.partition(
        {"embed": adaptx.sparse.adagrad(0.1), "kernels": optax.sgd(1.0), "others": optax.sgd(1.0)}, GROUPS
    )
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    moved = optax.apply_updates(params, updates)["embed"]["embedding"] - params["embed"]["embedding"]
    np.testing.assert_allclose(moved, -0.1 * np.eye(5)[1][:, None] * np.ones(3), rtol=1e-5, atol=1e-7)


def test_a_gradient_of_none_is_in_no_group() -> None:
    params = linen()
    tx = _tx()
    grads = {**jax.tree.map(jnp.ones_like, params), "embed": {"embedding": None}}
    updates, _ = tx.update(grads, tx.init(params), params)
    assert updates["embed"]["embedding"] is None
    frozen = optax.masked(_tx(), {"embed": False, "hidden": True, "norm": True, "head": True})
    updates, _ = frozen.update(jax.tree.map(jnp.ones_like, params), frozen.init(params), params)
    np.testing.assert_array_equal(updates["embed"]["embedding"], 1)  # masked; a group may be empty there


@pytest.mark.skipif(
    tuple(map(int, flax.__version__.split(".")[:2])) < (0, 12),
    reason="before 0.12 nnx.Optimizer fails on any masked state, that of optax.partition with optax.adam too",
)
def test_nnx_optimizer() -> None:
    """Rates are read and set, and a group reset, in the state that nnx.Optimizer keeps; nothing is traced again."""
    model = Nnx()
    optimizer, traced = nnx.Optimizer(model, _tx(), wrt=nnx.Param), []

    @nnx.jit
    def step(model: Any, optimizer: Any) -> None:
        traced.append(1)
        optimizer.update(model, nnx.grad(lambda model: jnp.sum(model(jnp.arange(5)) ** 2))(model))

    step(model, optimizer)
    optimizer.opt_state = set_hyperparams(optimizer.opt_state, {"embed/learning_rate": 0.0, "embed/b1": 0.5})
    before = np.asarray(model.embed.embedding[...])
    step(model, optimizer)
    np.testing.assert_array_equal(model.embed.embedding[...], before)
    assert float(get_hyperparams(optimizer.opt_state)["embed/b1"]) == 0.5
    params = nnx.state(model, nnx.Param)
    optimizer.opt_state = reset_group(_tx(), optimizer.opt_state, params, "kernels")
    step(model, optimizer)
    assert len(traced) == 1
    counts = [int(leaf) for leaf in jax.tree.leaves(optimizer.opt_state) if leaf.dtype == jnp.int32]
    assert sorted(counts) == [1, 3, 3]


def test_stacked_layers_go_by_name() -> None:
    """A vmapped layer's biases are matrices; their paths say what they are all the same."""
    stacked = {"layers": jax.vmap(lambda key: linen())(jnp.arange(4))}
    got = _by_path(GROUPS({**stacked, "embed": {"embedding": jnp.ones((5, 3))}}))
    assert got["layers/hidden/kernel"] == "kernels"
    assert got["layers/hidden/bias"] == "others"
    decayed = _by_path(no_decay_on("biases", "norms")(stacked))
    assert not decayed["layers/hidden/bias"]
    assert decayed["layers/hidden/kernel"]


@pytest.mark.parametrize(
    ("pattern", "fits", "fits_not"),
    [
        ("a/b", ["a/b"], ["a/b/c", "x/a/b", "a/bb", ""]),
        ("**/b", ["b", "a/b", "a/a/b"], ["ab", "b/a"]),
        ("a/**", ["a/b", "a/b/c"], ["a", "b/a/c", "aa/b"]),
        ("a/**/c", ["a/c", "a/b/c", "a/b/b/c"], ["ac", "a/cc"]),
        ("*/b", ["a/b"], ["b", "a/a/b"]),
        ("layer_?/w*", ["layer_1/w", "layer_1/weight"], ["layer_10/w", "layer_1/a/w"]),
        ("a.b/[0]", ["a.b/[0]"], ["aXb/[0]", "a.b/0"]),
        ("**", ["", "a", "a/b"], []),
        (re.compile("b$"), ["b", "a/b", "ab"], ["b/a"]),
        (["a", "b"], ["a", "b"], ["c"]),
    ],
    ids=repr,
)
def test_patterns(pattern: Any, fits: list[str], fits_not: list[str]) -> None:
    matcher = Matcher.of("here", pattern)
    assert [path for path in fits if not matcher.fits(path)] == []
    assert [path for path in fits_not if matcher.fits(path)] == []


@pytest.mark.parametrize(
    ("rules", "rest", "line"),
    [
        (
            {"a": "**/kernel", "b": "head/*", "c": "**/bias"},
            "d",
            "head/bias in b and c, head/kernel in a and b; the rules are a: ",
        ),
        (
            {"a": "**/kernel"},
            None,
            "embed/embedding in none, head/bias in none, hidden/bias in none and 2 more; the rules are a: ",
        ),
        (
            {"a": "**/kernal", "b": "head/*"},
            "c",
            "no leaf is in a; leaves are embed/embedding, head/bias, head/kernel, ...; the rules",
        ),
        ({}, None, "rules must be a dict of groups and patterns, got {}"),
        ({"a": ""}, None, "a pattern must be a path like '**/kernel' or a compiled regular expression, got ''"),
        ({"a": [3]}, None, "or a compiled regular expression, got 3"),
        ({"a": []}, None, "a pattern must be"),
        ({"a": "x"}, "a", "groups must be distinct names, got 'a', 'a'"),
        ({1: "x"}, None, "groups must be distinct names, got 1"),
    ],
    ids=range(9),
)
def test_what_does_not_fit_is_refused_in_one_line(rules: Any, rest: Any, line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)) as refusal:
        group_by_path(rules, rest)(linen())
    assert str(refusal.value).startswith("group_by_path: ")
    assert "\n" not in str(refusal.value)


def test_paths_of_variables_and_of_fields_called_value() -> None:
    """A variable's path is where it stands, also in a module taken as a tree; a field of the name stays a name."""
    named = lambda tree: [path for path, _ in leaves_by_path(tree)[0]]
    assert named([nnx.Param(jnp.ones(2))]) == ["0"]
    assert sorted(named(nnx.state(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.Param))) == ["bias", "kernel"]
    attention = dataclasses.make_dataclass("Attention", ["query", "key", "value"])
    jax.tree_util.register_dataclass(attention, ["query", "key", "value"], [])
    assert named({"att": attention(1.0, 2.0, 3.0)}) == ["att/query", "att/key", "att/value"]


def test_static_arguments_are_those_of_every_group() -> None:
    tx = inject_per_group(adaptx.adamw, GROUPS, {}, static="eps")(0.1)
    assert not [name for name in get_hyperparams(tx.init(linen())) if name.endswith("/eps")]
    assert [name for name in get_hyperparams(tx.init(linen())) if name.endswith("/eps_root")]


def test_inject_per_group_refuses() -> None:
    with pytest.raises(TypeError, match="inject_per_group: groups must come from group_by_path, got "):
        inject_per_group(adaptx.adamw, {"a": 1}, {})
    for own in (None, ["embed"], {"embed": 0.1}):
        with pytest.raises(TypeError, match="inject_per_group: per_group must be a dict of groups and arguments, got"):
            inject_per_group(adaptx.adamw, GROUPS, own)
    with pytest.raises(ValueError, match="inject_per_group: no group heads; there are embed, kernels, others"):
        inject_per_group(adaptx.adamw, GROUPS, {"heads": {}})
    with pytest.raises(TypeError, match="adamw: no argument lr; it is learning_rate here"):
        inject_per_group(adaptx.adamw, GROUPS, {"embed": dict(lr=0.1)})(0.1)
    with pytest.raises(TypeError, match="multiple values for argument 'learning_rate'"):
        inject_per_group(adaptx.adamw, GROUPS, {})(0.1, learning_rate=0.1)
    with pytest.raises(ValueError, match=r"adamw: b1 must be in \[0, 1\), got 2"):
        inject_per_group(adaptx.adamw, GROUPS, {"embed": dict(b1=2.0)})(0.1)


def test_names_of_groups_and_of_nested_ones() -> None:
    """A name that is there once stays short; in a chain of two partitions only the path tells them apart."""
    params, tx = linen(), _tx()
    state = tx.init(params)
    assert {name for name in get_hyperparams(state) if "learning_rate" in name} == {
        f"{group}/learning_rate" for group in GROUPS.names
    }
    single = optax.partition(
        {g: inject_hyperparams(adaptx.adam)(0.1) if g == "embed" else optax.sgd(0.1) for g in GROUPS.names}, GROUPS
    )
    assert "learning_rate" in get_hyperparams(single.init(params))
    assert float(get_hyperparams(set_hyperparams(single.init(params), {"embed/b1": 0.5}))["b1"]) == 0.5
    twice = optax.chain(_tx(), _tx()).init(params)
    name = "[1].inner_states['embed'].inner_state['learning_rate']"
    assert name in get_hyperparams(twice)
    changed = get_hyperparams(set_hyperparams(twice, {name: 0.25}))
    assert [float(v) for k, v in changed.items() if k.endswith("'embed'].inner_state['learning_rate']")] == [0.5, 0.25]
    with pytest.raises(
        ValueError, match=re.escape("embed/b1 may be any of [0].inner_states['embed'].inner_state['b1'], [1].")
    ):
        set_hyperparams(twice, {"embed/b1": 0.5})
    with pytest.raises(
        ValueError, match="learning_rate may be any of embed/learning_rate, kernels/learning_rate, others/"
    ):
        set_hyperparams(state, learning_rate=0.1)


def test_a_group_is_reset_alone() -> None:
    """Its moments and counts are those of init, its hyperparameters stay, and all else is untouched, bit for bit."""
    params = linen()
    tx = optax.chain(optax.trace(0.9), _tx())
    state = tx.init(params)
    for _ in range(3):
        _, state = tx.update(jax.tree.map(jnp.cos, params), state, params)
    state = set_hyperparams(state, {"kernels/learning_rate": 0.03})
    reset = jax.jit(lambda state, params: reset_group(tx, state, params, "kernels"))(state, params)
    assert jax.tree.structure(reset) == jax.tree.structure(state)
    fresh = tx.init(params)[1].inner_states["kernels"].inner_state.inner
    kernels = reset[1].inner_states["kernels"].inner_state
    jax.tree.map(np.testing.assert_array_equal, kernels.inner, fresh)
    assert float(kernels.hyperparams["learning_rate"]) == np.float32(0.03)
    jax.tree.map(np.testing.assert_array_equal, reset[0], state[0])
    for group in ("embed", "others"):
        jax.tree.map(np.testing.assert_array_equal, reset[1].inner_states[group], state[1].inner_states[group])
    with pytest.raises(ValueError, match="reset_group: no group 'x'; there are embed, kernels, others"):
        reset_group(tx, state, params, "x", "embed")
    with pytest.raises(ValueError, match="reset_group: give the groups to reset; there are embed"):
        reset_group(tx, state, params)
    with pytest.raises(ValueError, match="no group 'x'; there are none"):
        reset_group(optax.adam(0.1), optax.adam(0.1).init(params), params, "x")
    for other, x in ((optax.adam(0.1), params), (tx, jax.tree.map(lambda x: x[:1], params))):
        with pytest.raises(ValueError, match="reset_group: the state is not that of this transformation and these"):
            reset_group(other, state, x, "embed")


def test_the_table() -> None:
    params, tx = linen(), _tx()
    state = set_hyperparams(tx.init(params), {"kernels/learning_rate": 0.025})
    lines = group_table(params, GROUPS, state, no_decay_on("embeddings")).splitlines()
    assert [line.split() for line in lines] == [
        ["path", "shape", "group", "learning", "rate", "weight", "decay"],
        ["embed/embedding", "(5,", "3)", "embed", "0.5", "-"],
        ["head/bias", "(2,)", "others", "0.1", "-"],
        ["head/kernel", "(3,", "2)", "kernels", "0.025", "0.2"],
        ["hidden/bias", "(3,)", "others", "0.1", "-"],
        ["hidden/kernel", "(3,", "3)", "kernels", "0.025", "0.2"],
        ["norm/bias", "(3,)", "others", "0.1", "-"],
        ["norm/scale", "(3,)", "others", "0.1", "-"],
    ]
    assert len({line.index(cell) for line, cell in zip(lines[2:4], ("others", "kernels"), strict=True)}) == 1
    plain = group_table(TREES["abstract"](), GROUPS).splitlines()
    assert plain[1].split()[-2:] == ["-", "-"]
    sweep = set_hyperparams(jax.vmap(lambda _: tx.init(params))(jnp.arange(2)), {"embed/learning_rate": jnp.ones(2)})
    assert group_table(params, GROUPS, sweep).splitlines()[1].split()[-2:] == ["float32[2]", "float32[2]"]
    assert "float32[]" in group_table(params, GROUPS, jax.eval_shape(tx.init, params))
    whole = inject_hyperparams(adaptx.adamw)(0.3)
    assert group_table(params, GROUPS, whole.init(params)).splitlines()[1].split()[-2:] == ["0.3", "0.01"]
