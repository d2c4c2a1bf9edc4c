"""Compressed state: around any optimizer, on every kind of leaf, and what it costs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import adaptx
from adaptx import precision
from adaptx.hyperparams import inject_hyperparams, set_hyperparams
from adaptx.precision import Store, Stored, codecs, compress_state

NAMED = ("bfloat16", "bfloat16_stochastic", "8bit", "4bit")
named = pytest.mark.parametrize("rules", NAMED)
OPTIMIZERS: dict[str, Any] = {
    "adamw": adaptx.adamw(0.01),
    "nadam": adaptx.nadam(0.01),
    "lamb": adaptx.lamb(0.01),
    "optax.adam": optax.adam(0.01),
    "optax.sgd": optax.sgd(0.01, momentum=0.9),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), adaptx.adam(0.01)),
    "schedule_free": adaptx.schedule_free(adaptx.adamw(0.01, b1=0.0), 0.01),
    "injected": inject_hyperparams(adaptx.adam)(0.01),
}
# The update of eight steps beside the exact one; the gradients are normal.
OFF = {"bfloat16": 0.01, "bfloat16_stochastic": 0.02, "8bit": 0.05, "4bit": 0.4}


def params_like(seed: int = 0, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Beside a large matrix: one of odd size, a short vector, a number, and an embedding."""
    rng = np.random.default_rng(seed)
    shapes = {"w": (96, 128), "odd": (4097,), "b": (10,), "s": (), "embedding": (100, 64)}
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def run(tx: Any, steps: int = 8, params: Any = None) -> tuple[Any, Any]:
    """The last update, and the state."""
    params = params_like() if params is None else params
    state, update = tx.init(params), jax.jit(tx.update)
    updates = None
    for i in range(steps):
        updates, state = update(params_like(i + 1), state, params)
    return updates, state


def stored(state: Any) -> list[Stored]:
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Stored))
    return [leaf for leaf in leaves if isinstance(leaf, Stored)]


@functools.cache
def exact(name: str) -> Any:
    return run(OPTIMIZERS[name])[0]


@named
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_around_every_optimizer(name: str, rules: str) -> None:
    """Updates are the optimizer's to the codec's bound; where nothing is compressed, to the bit."""
    updates, state = run(compress_state(OPTIMIZERS[name], rules))
    assert stored(state)
    for leaf, expected in exact(name).items():
        off = np.linalg.norm(updates[leaf] - expected) / np.linalg.norm(expected)
        # A norm over the tree (clipping) or a tensor (LAMB) is the same: it is the gradients' or the update's own.
        assert off <= (OFF[rules] if leaf in ("w", "odd") else 1e-6), leaf
    assert np.any(updates["w"] != exact(name)["w"]), "it was compressed"


def test_what_is_compressed() -> None:
    """First and second moments of 4,096 numbers and more, without embeddings."""
    report = precision.memory(compress_state(adaptx.adam(0.1)), params_like())
    form = {(leaf.field, leaf.path): leaf.form for leaf in report.leaves}
    for path in ("['w']", "['odd']"):
        assert form["mu", path] == "signed8"
        assert form["nu", path] == "positive8"
    for path in ("['b']", "['s']", "['embedding']"):
        assert form["mu", path] == form["nu", path] == "float32"
    assert form["count", ""] == "int32"


@pytest.mark.parametrize(("rules", "most"), [("8bit", 2.1), ("4bit", 1.15), ("bfloat16", 4.0)])
def test_bytes_of_a_parameter(rules: str, most: float) -> None:
    """On 8 million parameters."""
    params = {f"w{i}": jax.ShapeDtypeStruct((1024, 1024), jnp.float32) for i in range(8)}
    report = precision.memory(compress_state(adaptx.adamw(0.1), rules), params)
    assert report.per_parameter <= most + 1e-6  # the count
    state = compress_state(adaptx.adamw(0.1), rules).init({"w": jnp.ones((64, 128))})
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) - 4 <= most * 64 * 128


def test_rules_by_field_path_and_size() -> None:
    mine = codecs.Codec("sevenths", lambda x: jnp.round(7 * x).astype(jnp.int8), lambda c: c.astype(jnp.float32) / 7)
    rules = [
        Store("nu", codecs.bfloat16, path="odd"),
        Store("mu", mine, path=r"^\['(b|s)'\]$", min_size=1),
        Store("mu", codecs.signed4, path="b", min_size=1),  # the first that fits counts
    ]
    tx = compress_state(adaptx.adam(0.1), rules, block=16)
    forms = {(leaf.field, leaf.path): leaf.form for leaf in precision.memory(tx, params_like()).leaves}
    found = {key: form for key, form in forms.items() if form not in ("float32", "int32")}
    assert found == {
        ("nu", "['odd']"): "bfloat16",
        ("mu", "['b']"): "sevenths",
        ("mu", "['s']"): "sevenths",
        ("mu", "['embedding']"): "signed4",
    }
    _, state = run(tx, 1)
    np.testing.assert_allclose(
        np.asarray(state.inner.mu["b"].parts)[0, :10] / 7, 0.1 * params_like(1)["b"], atol=1 / 13
    )
    assert run(compress_state(adaptx.adam(0.1), []), 1)[1].inner.mu["w"].dtype == jnp.float32


@named
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_state_is_a_fixed_point(rules: str, dtype: str) -> None:
    """Structure, shapes and dtypes: scan takes it, compiled steps donate it, and one trace serves."""
    tx, params = compress_state(adaptx.adamw(0.01), rules), params_like(dtype=jnp.dtype(dtype))
    grads, traces = jax.tree.map(lambda x: jnp.stack([x, -x]), params), []

    def body(carry: Any, g: Any) -> Any:
        traces.append(None)
        params, state = carry
        updates, state = tx.update(g, state, params)
        return (optax.apply_updates(params, updates), state), None

    scanned, state = jax.lax.scan(body, (params, tx.init(params)), grads)[0]
    traces.clear()
    step, looped = jax.jit(body, donate_argnums=0), (jax.tree.map(jnp.array, params), tx.init(params))
    for i in range(2):
        before = looped
        looped, _ = step(looped, jax.tree.map(lambda a, i=i: a[i], grads))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert len(traces) == 1
    assert jax.tree.structure(state) == jax.tree.structure(looped[1]) == jax.tree.structure(tx.init(params))
    for a, b in zip(jax.tree.leaves(scanned), jax.tree.leaves(looped[0]), strict=True):
        np.testing.assert_allclose(
            np.asarray(a, float), np.asarray(b, float), rtol=1e-2 if dtype == "bfloat16" else 1e-5
        )


MESHES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


@pytest.mark.parametrize("kind", MESHES)
@pytest.mark.parametrize("spec", [("a", "b"), ("b",), (None, "a"), (("a", "b"),)])
def test_blocks_lie_within_shards(kind: str, spec: Any) -> None:
    """Nothing moves between devices, the state is split as its parameter is, and the values are those of one device."""
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(MESHES[kind],) * 2)
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    tx = compress_state(adaptx.adam(0.01))
    x = {"w": jax.device_put(params_like()["w"], sharding)}
    g = {"w": jax.device_put(params_like(1)["w"], sharding)}
    state = tx.init(x)
    update = jax.jit(tx.update).lower(g, state, x).compile()
    text = update.as_text()
    assert not [op for op in ("all-gather", "all-to-all", "collective-permute", "all-reduce") if op in text]
    updates, after = update(g, state, x)
    parts = [part for leaf in stored(after) for part in jax.tree.leaves(leaf.parts)]
    axes = [name for names in spec if names for name in ([names] if isinstance(names, str) else names)]
    over = int(np.prod([mesh.shape[name] for name in axes]))
    for part in [*parts, *(part for leaf in stored(state) for part in jax.tree.leaves(leaf.parts))]:
        assert part.sharding.shard_shape(part.shape)[0] == part.shape[0] // over
    assert updates["w"].sharding.is_equivalent_to(sharding, 2)
    abstract = tx.init({"w": jax.ShapeDtypeStruct(x["w"].shape, jnp.float32, sharding=sharding)})
    for a, b in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert a.ndim == 0 or a.sharding.is_equivalent_to(b.sharding, a.ndim)
    plain, _ = adaptx.adam(0.01).update(g, adaptx.adam(0.01).init(x), x)
    # The first update comes from the exact moments; the second would be the codec's.
    np.testing.assert_allclose(np.asarray(updates["w"]), np.asarray(plain["w"]), rtol=1e-6)


@pytest.mark.skipif(not hasattr(nnx, "as_pure"), reason="before flax 0.12 nnx.Optimizer wants arrays for leaves")
@named
def test_in_nnx(rules: str) -> None:
    """nnx.Optimizer makes a State of a compressed leaf: the steps are those of the functions all the same."""
    tx, model = compress_state(adaptx.adamw(0.01), rules), nnx.Linear(64, 128, rngs=nnx.Rngs(0))
    graph, params = nnx.split(nnx.Linear(64, 128, rngs=nnx.Rngs(0)), nnx.Param)
    loss = lambda model: jnp.mean(model(jnp.linspace(-1, 1, 4 * 64).reshape(4, 64)) ** 2)
    optimizer, state = nnx.Optimizer(model, tx, wrt=nnx.Param), tx.init(params)
    step = nnx.jit(lambda model, optimizer: optimizer.update(model, nnx.grad(loss)(model)))
    for _ in range(3):
        step(model, optimizer)
        updates, state = tx.update(jax.grad(lambda p: loss(nnx.merge(graph, p)))(params), state, params)
        params = optax.apply_updates(params, updates)
    assert stored(state)
    for a, b in zip(jax.tree.leaves(nnx.state(model, nnx.Param)), jax.tree.leaves(params), strict=True):
        # Two programs may round a number to the codes on either side of it; the noise knows other paths here.
        near = {"rtol": 1e-2, "atol": 1e-3} if "stochastic" in rules else {"rtol": 1e-4, "atol": 1e-6}
        assert np.mean(~np.isclose(a, b, **near)) <= 2e-3
    kept = [a for a in jax.tree.leaves(nnx.state(optimizer)) if a.size >= 64 * 64 // 2]
    assert all(a.dtype != jnp.float32 for a in kept), "what nnx keeps is compressed"


def test_nnx_has_blocks_of_whole_arrays() -> None:
    """What nnx.Optimizer hands back does not say how it was sharded."""
    mesh = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Auto,))
    x = jax.device_put(params_like()["w"], NamedSharding(mesh, PartitionSpec("a")))
    assert stored(compress_state(TX).init({"w": x}))[0].sharding is not None
    assert stored(compress_state(TX).init(nnx.State({"w": x})))[0].sharding is None


def test_noise_is_each_leafs_and_each_shards_own() -> None:
    """Equal numbers in two leaves, two fields and eight shards are rounded each by itself, and anew in each step."""
    mesh = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("a"))
    x = jnp.tile(jnp.linspace(1, 2, 4096), 8).reshape(8, 4096)
    tree = {"one": x, "two": x, "split": jax.device_put(x, split)}
    tx = compress_state(adaptx.adam(0.01, b1=0.999), "bfloat16_stochastic")
    _, state = jax.jit(tx.update)(tree, tx.init(tree), tree)
    drawn = {(f, k): np.asarray(getattr(state.inner, f)[k].parts).reshape(8, -1) for f in ("mu", "nu") for k in tree}
    assert np.any(drawn["mu", "one"] != drawn["mu", "two"])
    assert np.any(drawn["nu", "one"] != drawn["nu", "two"])
    for rows in drawn.values():
        for i in range(8):
            assert not any(np.array_equal(rows[i], rows[j]) for j in range(i))
    up = [a != np.asarray(codecs.bfloat16.encode(x * 0.001)).reshape(8, -1) for (f, _), a in drawn.items() if f == "mu"]
    assert not np.array_equal(up[0], up[1])
    assert state.steps == 1


def test_what_is_restored_is_what_was_written() -> None:
    """Codes of another codec, or of other blocks, are numbers too."""
    params = params_like()
    written = serialization.to_bytes(compress_state(TX, "8bit").init(params))
    for other in (compress_state(TX, "4bit"), compress_state(TX, "8bit", block=64)):
        with pytest.raises(ValueError, match="restore it into a state of the same rules"):
            serialization.from_bytes(other.init(params), written)


@pytest.mark.parametrize("where", ["flax", "orbax"])
def test_checkpoints(where: str, tmp_path: Path) -> None:
    tx, params = compress_state(adaptx.adam(0.01)), params_like()
    _, state = run(tx, 2)
    if where == "flax":
        restored = serialization.from_bytes(tx.init(params), serialization.to_bytes(state))
    else:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "state", state)
            checkpointer.wait_until_finished()
            restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(tx.init, params))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert jax.tree.all(jax.tree.map(np.array_equal, restored, state))
    again, _ = tx.update(params_like(9), restored, params)
    on, _ = tx.update(params_like(9), state, params)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, on))


@pytest.mark.parametrize(
    ("rules", "stays"), [("bfloat16", True), ("bfloat16_stochastic", False), ("8bit", False), ("4bit", False)]
)
@pytest.mark.parametrize("form", ["update", "step"])
def test_a_slow_average_moves(rules: str, stays: bool, form: str) -> None:
    """500 zero gradients after one of 1: the second moment shrinks to 0.999^500 of what it was, in the mean; with
    bfloat16 rounded to nearest it stays for ever. In 8 and 4 bits the largest of a block is exact, and these are equal.
    """
    tx, params, g = compress_state(adaptx.adam(0.0), rules), {"w": jnp.ones((256, 512))}, {"w": jnp.ones((256, 512))}
    nothing = jax.tree.map(jnp.zeros_like, g)

    def once(state: Any) -> Any:
        return (precision.step(tx, nothing, params, state) if form == "step" else tx.update(nothing, state, params))[1]

    _, state = tx.update(g, tx.init(params), params)
    state = jax.jit(lambda state: jax.lax.fori_loop(0, 500, lambda _, s: once(s), state))(state)
    nu = state.inner.nu["w"]
    found = np.asarray(nu.codec.decode(nu.parts), float) / 0.001
    assert abs(np.mean(found) / (1.0 if stays else 0.999**500) - 1) < 5e-3


def test_abstract_parameters() -> None:
    params = params_like()
    tx = compress_state(adaptx.adam(0.1), "4bit")
    abstract, concrete = tx.init(jax.eval_shape(lambda: params)), tx.init(params)
    assert jax.tree.structure(abstract) == jax.tree.structure(concrete)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), abstract) == jax.tree.map(lambda a: (a.shape, a.dtype), concrete)


def test_live_hyperparameters_inside() -> None:
    tx = compress_state(inject_hyperparams(adaptx.adam)(0.1))
    params = params_like()
    state = set_hyperparams(tx.init(params), learning_rate=0.2)
    double, _ = tx.update(params_like(1), state, params)
    once, _ = tx.update(params_like(1), tx.init(params), params)
    np.testing.assert_allclose(double["w"], 2 * once["w"], rtol=1e-6)


@named
def test_a_nan_poisons_its_block_at_most(rules: str) -> None:
    tx, params, g = compress_state(adaptx.adam(0.01), rules), params_like(), params_like(1)
    _, state = tx.update({**g, "w": g["w"].at[3, 5].set(jnp.nan)}, tx.init(params), params)
    updates, _ = tx.update(g, state, params)
    lost = np.argwhere(~np.isfinite(updates["w"]))
    assert 1 <= len(lost) <= 128
    assert set(lost[:, 0]) == {3}, "a row is a block"
    for name in ("odd", "b", "s", "embedding"):
        assert np.all(np.isfinite(updates[name]))


def test_zero_gradients_never_move_anything() -> None:
    tx = compress_state(adaptx.adam(0.01), "4bit")
    params = params_like()
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    assert not any(np.any(u) for u in jax.tree.leaves(updates))


TX = adaptx.adam(0.1)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: compress_state(adaptx.adam), "compress_state: tx must be an optax.GradientTransformation"),
        (
            lambda: compress_state(TX, "int8"),
            "compress_state: rules must be 'bfloat16', 'bfloat16_stochastic', ",
        ),
        (
            lambda: compress_state(TX, [codecs.signed8]),
            "compress_state: rules must be 'bfloat16', ",
        ),
        (lambda: compress_state(TX, [Store("mu", "8bit")]), "compress_state: rules must be"),
        (lambda: compress_state(TX, [Store("mu", codecs.signed8, path="(")]), "compress_state: rules must be"),
        (lambda: compress_state(TX, [Store("mu", codecs.signed8, min_size=None)]), "compress_state: rules must be"),
        (lambda: compress_state(TX, [Store(("mu", "nu"), codecs.signed8)]), "compress_state: rules must be"),
        (
            lambda: compress_state(TX, [Store("m", codecs.signed8)]).init(params_like()),
            "compress_state: no field m in the state; there are count, mu, nu",
        ),
        (lambda: compress_state(TX, block=127), "compress_state: block must be an even int >= 2, got 127"),
        (lambda: compress_state(TX, bits=8), "compress_state: no argument bits; allowed are tx, rules, block"),
        (
            lambda: compress_state(TX).update(params_like(), TX.init(params_like())),
            "compress_state: the state must be the CompressedState that init gives, got AdamState",
        ),
    ],
)
def test_bad_arguments(call: Callable[[], Any], line: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
