"""One batch in parts: micro-batches and devices give what the whole batch gives."""

from __future__ import annotations

import functools
import inspect
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from adaptx import sparse
from tests.conftest import x64
from tests.sparse.tables import ROWS, WIDTH, table

IDS = np.random.default_rng(0).integers(-2, ROWS, 24).astype(np.int32)
Y = np.random.default_rng(1).normal(size=24).astype(np.float32)


def loss(params: Any, ids: Any, y: Any) -> Any:
    """A mean, so that the whole's is the mean of the parts'."""
    return jnp.mean((jnp.take(params["emb"], ids, axis=0) @ params["w"] - y) ** 2)


def parameters() -> dict[str, Any]:
    """One table and one vector."""
    return {"emb": table(), "w": jnp.arange(1.0, WIDTH + 1)}


def assert_is_the_whole(grads: Any) -> None:
    """Against `jax.grad` of the whole batch."""
    whole = jax.grad(loss)(parameters(), IDS, Y)
    np.testing.assert_allclose(grads["emb"].todense(), whole["emb"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grads["w"], whole["w"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_micro_batches(parts: int) -> None:
    grad = sparse.value_and_grad(loss, "emb")
    batches = (IDS.reshape(parts, -1), Y.reshape(parts, -1))
    value, grads = jax.jit(lambda b: sparse.mean_over_batches(lambda batch: grad(parameters(), *batch), b))(batches)
    np.testing.assert_allclose(value, loss(parameters(), IDS, Y), rtol=1e-6)
    assert grads["emb"].values.shape == (24, WIDTH)
    assert_is_the_whole(grads)


def test_micro_batches_of_rows_that_are_looked_up_first() -> None:
    grad = sparse.rows_value_and_grad(lambda w, rows, y: jnp.mean((rows @ w - y) ** 2))
    ids = np.abs(IDS)  # outside ids read zeros here, and there the last rows
    x = parameters()
    mean = sparse.mean_over_batches(lambda b: grad(x["w"], x["emb"], *b), (ids.reshape(3, 8), Y.reshape(3, 8)))
    whole = jax.grad(loss)(x, ids, Y)
    np.testing.assert_allclose(mean[1][1].todense(), whole["emb"], rtol=1e-5, atol=1e-6)


def test_means_keep_dtypes_and_none_and_add_up_in_float32() -> None:
    """1000 times 1 with bfloat16 sums would be 256."""
    f = lambda x: {"half": x.astype(jnp.bfloat16), "none": None, "z": x + 1j, "number": x * 2}
    mean = sparse.mean_over_batches(f, jnp.ones(1000))
    assert (mean["half"].dtype, float(mean["half"]), mean["none"]) == (jnp.bfloat16, 1, None)
    assert complex(mean["z"]) == 1 + 1j
    with x64():
        assert sparse.mean_over_batches(lambda x: x, np.full(3, 1 / 3)).dtype == jnp.float64
    assert float(sparse.mean_over_batches(lambda x: 1.5, jnp.ones(3))) == 1.5


def test_a_micro_batch_costs_the_memory_of_one() -> None:
    """No array of all micro-batches' activations, and none of the table's size."""
    rows, width, parts, size = 100_000, 8, 16, 64
    x = {"emb": jax.ShapeDtypeStruct((rows, width), jnp.float32), "w": jax.ShapeDtypeStruct((width,), jnp.float32)}
    tx = sparse.adagrad(0.1)

    def step(params: Any, state: Any, ids: Any, y: Any) -> Any:
        grad = sparse.value_and_grad(loss, "emb")
        _, grads = sparse.mean_over_batches(lambda batch: grad(params, *batch), (ids, y))
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    ids, y = (jax.ShapeDtypeStruct((parts, size), d) for d in (jnp.int32, jnp.float32))
    step = jax.jit(step, donate_argnums=(0, 1))
    state = jax.eval_shape(tx.init, x)
    assert len(sparse.check_in_place(step, x, state, ids, y)) == 2
    temporary = step.lower(x, state, ids, y).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 8 * parts * size * width * 4


@pytest.mark.parametrize(
    ("f", "batches", "kind", "message"),
    [
        (lambda x: x, (np.ones(2), np.ones(3)), ValueError, r"arrays of one first axis, at least 1, got shapes"),
        (lambda x: x, np.ones((0, 2)), ValueError, r"at least 1, got shapes \[\(0, 2\)\]"),
        (lambda x: x, 3.0, ValueError, r"at least 1, got shapes \[\(\)\]"),
        (lambda x: x, (), ValueError, r"at least 1, got shapes \[\]"),
        (lambda x: {"n": jnp.int32(x)}, np.ones(2), TypeError, r"f gives int32 at \['n'\], which has no mean"),
        (
            lambda x: {"emb": sparse.RowSparse([0], x[None, None], 3), "n": jnp.int32(x), "none": None},
            np.ones(2, np.float32),
            TypeError,
            r"f gives int32 at \['n'\], which has no mean",
        ),
    ],
)
def test_bad_batches(f: Any, batches: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=f"^mean_over_batches: .*{message}"):
        sparse.mean_over_batches(f, batches)


# Before jax 0.8 no all-gather is known to give the same on all devices.
REPLICATES = "to" in inspect.signature(jax.lax.all_gather).parameters


def _over_devices(step: Any, check_vma: bool, axes: tuple[str, ...] = ("d",)) -> Any:
    shape = (8,) if len(axes) == 1 else (2, 4)
    mesh = jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes))
    specs = (PartitionSpec(), PartitionSpec(axes), PartitionSpec(axes))
    return jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=check_vma)


LOSSES = {
    "split ids": lambda p, i, y: jnp.mean((jnp.take(p["emb"], i, axis=0) @ p["w"] - y) ** 2),
    "a row that all look up": lambda p, i, y: jnp.mean(((p["emb"][i] + p["emb"][0][None]) @ p["w"] - y) ** 2),
    "only such rows": lambda p, i, y: jnp.mean(jnp.sum(p["emb"][:2], 0) @ p["w"] - y) ** 2 + jnp.mean(y * i),
    "a penalty on rows": lambda p, i, y: jnp.mean((p["emb"][i] @ p["w"] - y) ** 2) + jnp.sum(p["emb"][:4] ** 2),
}


@pytest.mark.parametrize("check_vma", [False, True] if REPLICATES else [False])
@pytest.mark.parametrize("axes", [("d",), ("a", "b")])
# A square of means is no mean of squares: not in micro-batches.
@pytest.mark.parametrize(
    ("name", "parts"), [(name, parts) for name in LOSSES for parts in (0, 3) if not parts or name != "only such rows"]
)
def test_devices(check_vma: bool, axes: tuple[str, ...], parts: int, name: str) -> None:
    """8 devices with 3 ids each, some in micro-batches of one, are the whole batch, whoever adds up gradients."""
    local = LOSSES[name]
    loss = (lambda *args: jax.lax.pmean(local(*args), axes)) if check_vma else local
    grad = sparse.value_and_grad(loss, "emb")

    def step(params: Any, ids: Any, y: Any) -> Any:
        if parts:
            cut = (ids.reshape(parts, -1), y.reshape(parts, -1))
            value, grads = sparse.mean_over_batches(lambda batch: grad(params, *batch), cut)
        else:
            value, grads = grad(params, ids, y)
        if check_vma:
            return value, grads
        value, grads = sparse.mean_over_devices((value, {**grads, "none": None}), axes if len(axes) > 1 else axes[0])
        assert grads.pop("none") is None
        return value, grads

    value, grads = jax.jit(_over_devices(step, check_vma, axes))(parameters(), IDS, Y)
    if name == "only such rows":
        whole = jax.value_and_grad(
            lambda p: jnp.mean(
                jnp.stack([local(p, i, y) for i, y in zip(IDS.reshape(8, 3), Y.reshape(8, 3), strict=True)])
            )
        )(parameters())
    else:
        whole = jax.value_and_grad(local)(parameters(), IDS, Y)
    np.testing.assert_allclose(value, whole[0], rtol=1e-5)
    np.testing.assert_allclose(grads["emb"].todense(), whole[1]["emb"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grads["w"], whole[1]["w"], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not REPLICATES, reason="jax 0.7 has no all-gather whose result counts as the same on all devices")
def test_rows_that_are_looked_up_first_are_those_of_all_devices_too() -> None:
    """Split ids, and one that all devices look up."""

    def step(params: Any, ids: Any, y: Any) -> Any:
        def loss(w: Any, rows: Any, y: Any) -> Any:
            return jax.lax.pmean(jnp.mean(((rows["own"] + rows["all"]) @ w - y) ** 2), "d")

        grad = sparse.rows_value_and_grad(loss)
        _, (w, emb) = grad(params["w"], params["emb"], {"own": ids, "all": jnp.array([0])}, y)
        return {"w": w, "emb": emb}

    got = jax.jit(_over_devices(step, True))(parameters(), np.abs(IDS), Y)
    whole = jax.grad(LOSSES["a row that all look up"])(parameters(), np.abs(IDS), Y)
    np.testing.assert_allclose(got["emb"].todense(), whole["emb"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got["w"], whole["w"], rtol=1e-5, atol=1e-6)


def test_what_jax_has_added_up_has_no_mean() -> None:
    """By the name of the first such leaf, with the remedy; what differs between devices is averaged there too."""

    def step(params: Any, ids: Any, y: Any) -> Any:
        return sparse.mean_over_devices(jax.grad(loss)(params, ids, y), "d")

    with pytest.raises(ValueError, match=r"added up the gradient at \['emb'\] already; .* jax.lax.pmean\(loss, 'd'\)"):
        jax.jit(_over_devices(step, True))(parameters(), IDS, Y)
    own = lambda params, ids, y: sparse.mean_over_devices({"y": jnp.sum(y)}, ["d"])
    mean = jax.jit(_over_devices(own, True))(parameters(), IDS, Y)
    np.testing.assert_allclose(mean["y"], np.sum(Y) / 8, rtol=1e-5)


@pytest.mark.parametrize("check_vma", [False, True] if REPLICATES else [False])
def test_devices_exchange_rows_and_never_a_table(check_vma: bool) -> None:
    """A donated data-parallel step: the same numbers as one device's, and no collective of the table's size."""
    rows = 4096
    x = {"emb": jnp.asarray(np.random.default_rng(0).normal(size=(rows, WIDTH)), jnp.float32), "w": jnp.ones(WIDTH)}
    tx = sparse.adagrad(0.1, initial_accumulator=0.1)

    def step(params: Any, ids: Any, y: Any, mean: Any = lambda v: v, exchange: Any = lambda g: g) -> Any:
        _, grads = sparse.value_and_grad(lambda *args: mean(loss(*args)), "emb")(params, ids, y)
        updates, _ = tx.update(exchange(grads), tx.init(params), params)
        return optax.apply_updates(params, updates)

    one = jax.jit(step)(x, IDS, Y)
    way = (
        {"mean": lambda v: jax.lax.pmean(v, "d")}
        if check_vma
        else {"exchange": lambda g: sparse.mean_over_devices(g, "d")}
    )
    of_device = functools.partial(step, **way)
    program = jax.jit(_over_devices(of_device, check_vma)).lower(x, IDS, Y).compile()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), program(x, IDS, Y), one)
    collectives = re.findall(r"= (\S+) (all-gather|all-reduce|reduce-scatter|all-to-all)\(", program.as_text())
    assert collectives
    assert not [shape for shape, _ in collectives if f"[{rows}" in shape]
