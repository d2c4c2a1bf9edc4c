"""What a step costs, by the compiled program: rows are written in place, and nothing of the table's size is made."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import adaptx
from adaptx import sparse
from tests.sparse.tables import EXPLICIT, draws

V, D, N = 50_000, 16, 32  # a table of 3.2 MB and rows of 2 kB
TABLE = 4 * V * D
WALKS = ("copy", "broadcast", "add", "multiply", "select", "subtract", "divide", "convert")

READY: dict[str, Callable[[], Any]] = {
    "adagrad": lambda: sparse.adagrad(0.1),
    "adagrad, all": lambda: sparse.adagrad(0.1, l1=0.1, weight_decay=0.1, decay_at="read"),
    "rowwise_adagrad": lambda: sparse.rowwise_adagrad(0.1, max_norm=1.0, l2=0.1),
    "adam": lambda: sparse.adam(0.1),
    "adam by row": lambda: sparse.adam(0.1, bias="row", weight_decay=0.1, decay_at="read"),
    "partial_rowwise_adam": lambda: sparse.partial_rowwise_adam(0.1),
    "ftrl": lambda: sparse.ftrl(0.1, l1=0.1),
    "lamb_rows": lambda: sparse.lamb_rows(0.1),
    "a chain": lambda: sparse.lazy_rows(optax.chain(optax.clip_by_global_norm(1.0), adaptx.adamw(0.1))),
}


def gradient(ids: Any, y: Any, table: Any, state: Any = None) -> Any:
    """Forward and backward of a loss that takes rows."""
    loss = lambda dense, rows, y: jnp.sum((rows.sum(-1) - y) ** 2)
    return sparse.rows_value_and_grad(loss)((), table, ids, y, state)[1][1]


def plain(tx: Any) -> tuple[Any, Any, Any]:
    """A training step, what it carries, and a batch."""

    def step(params: Any, state: Any, ids: Any, y: Any) -> Any:
        g = {"emb": gradient(ids, y, params["emb"], state)}
        updates, state = tx.update(g, state, params)
        return optax.apply_updates(params, updates), state

    params = {"emb": jnp.ones((V, D))}
    return step, (params, tx.init(params)), (jnp.zeros(N, jnp.int32), jnp.ones(N))


def in_scan(tx: Any) -> tuple[Any, Any, Any]:
    step, carry, batch = plain(tx)
    body = lambda carry, batch: (step(*carry, *batch), None)
    return (
        lambda p, s, ids, y: jax.lax.scan(body, (p, s), (ids, y))[0],
        carry,
        jax.tree.map(lambda a: jnp.stack([a] * 3), batch),
    )


def under_cond(tx: Any) -> tuple[Any, Any, Any]:
    step, carry, batch = plain(tx)
    guarded = lambda p, s, ids, y: jax.lax.cond(y[0] > 0, lambda: step(p, s, ids, y), lambda: (p, s))
    return guarded, carry, batch


def in_train_state(tx: Any) -> tuple[Any, Any, Any]:
    state = TrainState.create(apply_fn=lambda: None, params={"emb": jnp.ones((V, D))}, tx=tx)

    def step(state: Any, ids: Any, y: Any) -> Any:
        return (state.apply_gradients(grads={"emb": gradient(ids, y, state.params["emb"], state.opt_state)}),)

    return step, (state,), (jnp.zeros(N, jnp.int32), jnp.ones(N))


class Model(nnx.Module):
    """A table."""

    def __init__(self) -> None:
        self.emb = nnx.Param(jnp.ones((V, D)))


def in_nnx(tx: Any) -> tuple[Any, Any, Any]:
    graph, carried = nnx.split((Model(), nnx.Optimizer(Model(), tx, wrt=nnx.Param)))

    def step(carried: Any, ids: Any, y: Any) -> Any:
        model, optimizer = nnx.merge(graph, carried)
        state = (nnx.as_pure if hasattr(nnx, "as_pure") else nnx.pure)(optimizer.opt_state)
        g = gradient(ids, y, model.emb[...], state)
        optimizer.update(model, nnx.State({"emb": nnx.Param(g)}))
        return (nnx.state((model, optimizer)),)

    return step, (carried,), (jnp.zeros(N, jnp.int32), jnp.ones(N))


PLACES = {"alone": plain, "scan": in_scan, "cond": under_cond, "TrainState": in_train_state, "nnx.Optimizer": in_nnx}


def compiled(place: Any, tx: Any, donated: bool = True) -> tuple[Any, Any]:
    step, carry, batch = place(tx)
    jitted = jax.jit(step, donate_argnums=tuple(range(len(carry))) if donated else ())
    return jitted.lower(*carry, *batch).compile(), carry


def walks(text: str, shape: str) -> list[str]:
    """Operations that write an array of that shape, outside of fusions or as a fusion's result."""
    found, inside = [], ""
    for line in text.splitlines():
        if line.endswith("{"):
            inside = line
        made = re.match(r"\s*(ROOT )?%?[\w.-]+ = (\S+?)(\{\S*\})? ([\w-]+)\(", line)
        fused = "fused" in inside or "wrapped" in inside
        if made and made[2] == shape and made[4] in WALKS and (made[1] or not fused):
            found.append(line.strip())
    return found


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("adagrad", "adam") else [pytest.mark.suite]) for n in READY]
)
def test_rows_are_written_in_place(name: str, place: str) -> None:
    """Temporaries below eight times the rows; every donated byte of table and state aliased; no walk over the table."""
    program, carry = compiled(PLACES[place], READY[name]())
    memory = program.memory_analysis()
    assert memory.temp_size_in_bytes < 8 * N * D * 4
    carried = sum(a.nbytes for a in jax.tree.leaves(carry) if np.ndim(a))
    assert memory.alias_size_in_bytes >= carried
    for shape in (f"f32[{V},{D}]", f"f32[{V}]", f"f32[{V},2]", f"s32[{V}]"):
        assert walks(program.as_text(), shape) == []


def test_what_the_test_above_would_see() -> None:
    """Without donation, and from a dense gradient."""
    program, _ = compiled(plain, sparse.adam(0.1), donated=False)
    assert len(walks(program.as_text(), f"f32[{V},{D}]")) == 3
    assert program.memory_analysis().alias_size_in_bytes == 0
    tx = optax.adagrad(0.1)

    def dense(x: Any, state: Any, ids: Any) -> Any:
        updates, state = tx.update(jax.grad(lambda x: jnp.sum(x[ids] ** 2))(x), state, x)
        return optax.apply_updates(x, updates), state

    x = jnp.ones((V, D))
    program = jax.jit(dense, donate_argnums=(0, 1)).lower(x, tx.init(x), jnp.zeros(N, jnp.int32)).compile()
    assert walks(program.as_text(), f"f32[{V},{D}]")
    assert program.memory_analysis().temp_size_in_bytes >= TABLE


# check_in_place -------------------------------------------------------------------------------------------------


def checked(place: Any = plain, donate: Any = (0, 1), tx: Any = None, step: Any = None) -> list[str]:
    own, carry, batch = place(tx or sparse.adam(0.1))
    return sparse.check_in_place(jax.jit(step or own, donate_argnums=donate), *carry, *batch)


@pytest.mark.parametrize("place", [plain, in_scan, under_cond])
def test_a_good_step_names_what_it_writes(place: Any) -> None:
    names = [n.partition("[")[0] if place is not plain else n for n in checked(place)]
    if place is plain:
        assert names == ["params['emb']", "state.mu['emb']", "state.nu['emb']"]
    assert len(names) == 3
    assert len(checked(plain, tx=sparse.rowwise_adagrad(0.1))) == 2


def test_good_steps_of_flax() -> None:
    assert len(checked(in_train_state, donate=0)) == 3
    assert len(checked(in_nnx, donate=0)) == 3


def test_without_donation() -> None:
    line = r"copied whole: params\['emb'\], state\.mu\['emb'\], state\.nu\['emb'\]; donate it"
    with pytest.raises(ValueError, match=line) as caught:
        checked(donate=())
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"copied whole: state\.mu\['emb'\], state\.nu\['emb'\]; donate it"):
        checked(donate=0)


def test_in_another_order() -> None:
    step, (params, state), batch = plain(sparse.adam(0.1))
    turned = jax.jit(lambda state, params, *batch: step(params, state, *batch), donate_argnums=(0, 1))
    with pytest.raises(ValueError, match=r"copied whole: .*; return what is donated in the order in which it comes in"):
        sparse.check_in_place(turned, state, params, *batch)


def test_an_old_table_that_is_used_after_the_update() -> None:
    step = plain(sparse.adam(0.1))[0]

    def late(params: Any, state: Any, ids: Any, y: Any) -> Any:
        new, state = step(params, state, ids, y)
        return new, state, jnp.sum(jnp.abs(new["emb"] - params["emb"]))

    with pytest.raises(ValueError, match=r"copied whole: params\['emb'\]; .*use the old table nowhere after"):
        checked(step=late)


def test_a_dense_gradient() -> None:
    tx = optax.adagrad(0.1)

    def dense(params: Any, state: Any, ids: Any, y: Any) -> Any:
        g = jax.grad(lambda p: jnp.sum((p["emb"][ids].sum(-1) - y) ** 2))(params)
        updates, state = tx.update(g, state, params)
        return optax.apply_updates(params, updates), state

    with pytest.raises(ValueError, match=r"walked whole by .*add.*: params\['emb'\] or state.*dense"):
        checked(tx=tx, step=dense)


def test_a_bfloat16_table_on_cpu() -> None:
    """Older XLA for CPU widens the scatter, and with it the table, to float32: named, with the remedy. Not float16."""
    for dtype in (jnp.bfloat16, jnp.float16):
        step, _, batch = plain(sparse.rowwise_adagrad(0.1))
        params = {"emb": jnp.ones((V, D), dtype)}
        args = (params, sparse.rowwise_adagrad(0.1).init(params), *batch)
        jitted = jax.jit(step, donate_argnums=(0, 1))
        widened = jitted.lower(*args).compile().memory_analysis().temp_size_in_bytes >= TABLE
        assert not (widened and dtype == jnp.float16)
        if widened:
            with pytest.raises(ValueError, match=r"params\['emb'\]; XLA widens bfloat16 tables whole on CPU"):
                sparse.check_in_place(jitted, *args)
        else:
            assert len(sparse.check_in_place(jitted, *args)) == 2


def test_bad_steps() -> None:
    with pytest.raises(TypeError, match=r"check_in_place: step must be jitted: jax\.jit"):
        sparse.check_in_place(lambda x: x, 1.0)
    with pytest.raises(ValueError, match="writes no rows of any of its arguments"):
        sparse.check_in_place(jax.jit(lambda x: 2 * x), jnp.ones((3, 2)))


def test_large_tables_may_be_abstract() -> None:
    step, carry, batch = plain(sparse.adagrad(0.1))
    abstract = jax.eval_shape(lambda: carry)
    names = sparse.check_in_place(jax.jit(step, donate_argnums=(0, 1)), *abstract, *batch)
    assert len(names) == 2


# Meshes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [4, 8])
@pytest.mark.parametrize(
    "name", [pytest.param("adagrad"), *[pytest.param(n, marks=pytest.mark.suite) for n in READY if n != "adagrad"]]
)
def test_a_table_by_rows_on_several_devices(name: str, devices: int) -> None:
    """Its rows stay where they lie: no all-gather, nothing of a shard's size made; the numbers are one device's."""
    mesh = jax.make_mesh((devices,), ("d",), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, PartitionSpec("d")), NamedSharding(mesh, PartitionSpec())
    tx = READY[name]()
    step, (params, _), _ = plain(tx)
    params = jax.device_put(params, rows)
    state = tx.init(params)
    for a in jax.tree.leaves(state):
        if a.shape[:1] == (V,):
            assert a.sharding.is_equivalent_to(rows, a.ndim), f"{a.shape} lies as {a.sharding}"
    place = lambda a: jax.device_put(a, rows if a.shape[:1] == (V,) else whole)
    state = jax.tree.map(place, state)
    ids, y = (jax.device_put(a, whole) for a in (jnp.arange(N) * 1500 % V, jnp.ones(N)))
    out = jax.tree.map(lambda a: a.sharding, (params, state))
    program = jax.jit(step, donate_argnums=(0, 1), out_shardings=out).lower(params, state, ids, y).compile()
    text = program.as_text()
    local = f"[{V // devices}"
    assert not re.findall(rf"\[{V}[,\]]", text)  # the whole table lies on no device
    assert not [shape for shape in (f"f32{local},{D}]", f"f32{local}]") for _ in walks(text, shape)]
    assert program.memory_analysis().temp_size_in_bytes < TABLE / devices
    got = program(params, state, ids, y)
    one, (params, state), _ = plain(tx)
    expected = jax.jit(one)(params, state, np.asarray(ids), np.asarray(y))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit] if EXPLICIT else [AxisType.Auto])
@pytest.mark.parametrize("spec", [PartitionSpec("d"), PartitionSpec(None, "d")])
def test_a_sharded_table_in_small(kind: AxisType, spec: PartitionSpec) -> None:
    """Several steps with every kind of id, the table on 8 devices by rows or by columns: the numbers of one device."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(kind,))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(16, 8)), jnp.float32)
    ids, _ = draws(3)
    y = jnp.asarray(rng.normal(size=ids.shape), jnp.float32)
    tx = sparse.adam(0.1, weight_decay=0.1, decay_at="read")

    def run(x: Any) -> Any:
        state = tx.init(x)
        for i, at in zip(ids, y, strict=True):
            updates, state = tx.update(gradient(i, at, x, state), state, x)
            x = optax.apply_updates(x, updates)
        return x, state

    expected = jax.jit(run)(x)
    with jax.set_mesh(mesh) if hasattr(jax, "set_mesh") else jax.sharding.use_mesh(mesh):  # before jax 0.8
        got = jax.jit(run)(jax.device_put(x, NamedSharding(mesh, spec)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)
    assert got[0].sharding.is_equivalent_to(NamedSharding(mesh, spec), 2)
