"""Row gradients of models as they are: what `jax.grad` gives, or a clear refusal."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, PartitionSpec

from adaptx import sparse
from tests.conftest import x64
from tests.sparse.tables import EXPLICIT, ROWS, WIDTH, table

IDS = np.array([[3, 3, 0, 9], [-1, 10, 3, 2]], np.int32)  # twice, and from the end
BEYOND = np.array([3, 11, -12, 40, 10, -1], np.int32)  # outside the table, above and below


def dense(tree: Any) -> Any:
    """Each RowSparse as the array that it stands for."""
    is_rows = lambda g: isinstance(g, sparse.RowSparse)
    return jax.tree.map(lambda g: g.todense() if is_rows(g) else g, tree, is_leaf=is_rows)


def square(rows: Any) -> Any:
    """A number whose derivative tells the places apart."""
    weights = jnp.arange(1, rows.size + 1, dtype=rows.dtype).reshape(rows.shape)
    return jnp.sum(weights * rows**2)


@jax.custom_vjp
def _doubled(x: Any) -> Any:
    return 2 * x


_doubled.defvjp(lambda x: (2 * x, None), lambda _, g: (3 * g,))  # another derivative, so that it is seen to be used


@jax.jit
def _jitted(t: Any, ids: Any) -> Any:
    return jnp.take(t, ids, axis=0)


LOOKUPS: dict[str, Any] = {
    "an index": lambda t: square(t[IDS]),
    "one axis": lambda t: square(t[IDS[0]]),
    "a traced index": lambda t: square(t[jnp.cumsum(jnp.asarray(IDS[0]) * 0 + 1)]),
    "take": lambda t: square(jnp.take(t, IDS, axis=0)),
    "take, clipped": lambda t: square(jnp.take(t, BEYOND, axis=0, mode="clip")),
    "take, wrapped": lambda t: square(jnp.take(t, BEYOND, axis=0, mode="wrap")),
    "take, filled": lambda t: square(jnp.nan_to_num(jnp.take(t, BEYOND, axis=0, mode="fill"))),
    "get, filled": lambda t: square(t.at[BEYOND].get(mode="fill", fill_value=2)),
    "get, clipped": lambda t: square(t.at[BEYOND].get(mode="clip")),
    "an index beyond": lambda t: square(t[BEYOND]),
    "small integers": lambda t: square(t[IDS.astype(np.int8)]),
    "unsigned": lambda t: square(t.at[np.array([3, 250], np.uint8)].get(mode="clip")),
    "one traced row": lambda t: square(t[jnp.asarray(IDS)[0, 1]]),
    "one row": lambda t: square(t[4]),
    "the last row": lambda t: square(t[-1]),
    "a range": lambda t: square(t[2:9:3]),
    "the first rows": lambda t: square(t[:4]),
    "a traced range": lambda t: square(jax.lax.dynamic_slice_in_dim(t, jnp.asarray(IDS)[0, 3], 4)),
    "none": lambda t: square(t[IDS[:0]]) + square(t[2:2]),
    "two lookups": lambda t: square(t[IDS]) + jnp.sum(t[IDS[0]] * jnp.take(t, IDS[1], axis=0)),
    "a product of rows": lambda t: jnp.sum(t[IDS[0]] @ t[IDS[1]].T),
    "vmap of one row": lambda t: square(jax.vmap(lambda i: t[i])(jnp.asarray(IDS))),
    "vmap of take": lambda t: square(
        jax.vmap(lambda i: jnp.take(t, i, axis=0), in_axes=1, out_axes=1)(jnp.asarray(IDS))
    ),
    "vmap of a range": lambda t: square(jax.vmap(lambda i: jax.lax.dynamic_slice_in_dim(t, i, 1))(jnp.asarray(IDS[0]))),
    "jit": lambda t: square(_jitted(t, IDS)) + square(_jitted(t, IDS + 1)),
    "jit in jit": lambda t: jax.jit(lambda t: square(_jitted(t, IDS)) + jnp.sum(_jitted(t, IDS[:1])))(t),
    "jit that gives the table": lambda t: square(jax.jit(lambda t: t)(t)[IDS]),
    "remat": lambda t: jax.checkpoint(lambda t: square(jnp.sin(t[IDS])))(t),
    "remat that gives the table": lambda t: square(jax.checkpoint(lambda t: (jnp.sin(1.0), t))(t)[1][IDS]),
    "remat with a policy, in jit": lambda t: jax.jit(
        jax.checkpoint(lambda t, i: square(jnp.sin(_jitted(t, i))), policy=jax.checkpoint_policies.dots_saveable)
    )(t, IDS),
    "a cast": lambda t: square(t.astype(jnp.float32)[IDS]).astype(t.dtype),
    "no gradient": lambda t: square(t[IDS]) * jnp.sum(jax.lax.stop_gradient(t)),
    "an integer": lambda t: square(t[IDS]) * jnp.sum(t > 0),
    "by what another says": lambda t: square(t[jnp.argsort(jnp.sum(t[IDS[0]], axis=tuple(range(1, t.ndim))))]),
    "a custom derivative of rows": lambda t: square(_doubled(t[IDS])),
    "scan over rows": lambda t: jax.lax.scan(
        lambda c, r: (c + jnp.sum(jnp.sin(r)), None), jnp.zeros((), t.dtype), t[IDS]
    )[0],
    "cond on rows": lambda t: jax.lax.cond(jnp.sum(t[IDS]) > 0, square, jnp.sum, t[IDS]),
    "not at all": lambda t: jnp.ones((), t.dtype),
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_lookups(name: str) -> None:
    """Tables of one, two and three axes: densified, the gradient is JAX's, to the last bits of float64."""
    with x64():
        tables = {
            f"t{ndim}": jnp.asarray(np.random.default_rng(ndim).normal(size=(ROWS, 4, 5)[:ndim])) for ndim in (1, 2, 3)
        }
        if name == "a product of rows":
            tables = {"t2": tables["t2"]}
        loss = lambda params: sum(jnp.sin(params["w"]) * LOOKUPS[name](t) for k, t in params.items() if k != "w")
        params = {**tables, "w": jnp.float64(0.7)}
        chosen = {k: k != "w" for k in params}
        both = jax.jit(lambda p: (sparse.value_and_grad(loss, chosen)(p), jax.value_and_grad(loss)(p)))
        (value, grads), expected = both(params)
        assert all(isinstance(grads[k], sparse.RowSparse) and grads[k].dtype == tables[k].dtype for k in tables)
        rtol = 1e-6 if name == "a cast" else 1e-12  # rows of float32 are added up in float32, in another order
        got = (value, dense(grads))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol), got, expected)


def _tied(t: Any) -> Any:
    return jnp.sum(t[IDS[0]] @ t.T)


REFUSED: dict[str, Any] = {
    "transpose": _tied,
    "reduce_sum": lambda t: jnp.sum(t),
    "mul": lambda t: jnp.sum((2 * t)[IDS]),
    "scan": lambda t: jnp.sum(jax.lax.scan(lambda c, i: (c, t[i]), 0.0, IDS)[1]),
    "while": lambda t: jax.lax.fori_loop(0, jnp.asarray(IDS)[0, 0], lambda i, c: c + jnp.sum(t[i]), 0.0),
    "cond": lambda t: jax.lax.cond(IDS[0, 0] > 0, lambda t: jnp.sum(t[0]), lambda t: jnp.sum(t[1]), t),
    "custom_vjp_call": lambda t: jnp.sum(_doubled(t)[IDS]),
    "custom_jvp_call": lambda t: jnp.sum(jax.nn.relu(t)[IDS]),
    "gather": lambda t: jnp.sum(t[IDS[0], 1]),
    "slice": lambda t: jnp.sum(t[:, 0]),
    "dynamic_slice": lambda t: jnp.sum(jax.lax.dynamic_slice_in_dim(t, jnp.asarray(IDS)[0, 0], 1, axis=1)),
    "concatenate": lambda t: jnp.sum(jnp.concatenate([t, t])[IDS]),
    "jitted functions": lambda t: jnp.sum(jnp.take(t, IDS[0], axis=1, mode="clip")),
    "dot_general": lambda t: jnp.sum(jax.nn.one_hot(IDS, ROWS) @ t),
    "scatter-add": lambda t: jnp.sum(t.at[0].add(1)[IDS]),
}


@pytest.mark.parametrize("primitive", REFUSED)
@pytest.mark.parametrize("inside", ["", "jit", "remat"])
def test_other_uses_are_refused(primitive: str, inside: str) -> None:
    """By the name of the table, the primitive, and the line, also beside a lookup and inside jit and remat."""
    use = {"": lambda f: f, "jit": jax.jit, "remat": jax.checkpoint}[inside](REFUSED[primitive])
    loss = lambda params: jnp.sum(params["emb"][IDS]) + use(params["emb"])
    with pytest.raises(sparse.TableUse) as refusal:
        sparse.value_and_grad(loss, "emb")({"emb": table()})
    text, name = str(refusal.value), {"jitted functions": "gather"}.get(primitive, primitive)
    assert text.startswith(f"value_and_grad: the table at ['emb'] is used by `{name}` at {__file__}:")
    assert "\n" not in text
    assert isinstance(refusal.value, ValueError)


def test_the_line_is_that_of_the_use() -> None:
    with pytest.raises(
        sparse.TableUse, match=rf"test_value_and_grad.py:{_tied.__code__.co_firstlineno + 1} \(in _tied\)"
    ):
        sparse.value_and_grad(_tied, True)(table())


def test_this_is_what_jax_calls_things() -> None:
    """If this fails, JAX has changed: see to it that lookups.py knows the new names before anything else."""
    take = jax.make_jaxpr(lambda t, i: jnp.take(t, i, axis=0))(table(), IDS)
    (call,) = take.eqns
    assert call.primitive.name in {"pjit", "jit"}
    gather = call.params["jaxpr"].jaxpr.eqns[-1]
    assert gather.primitive.name == "gather"
    assert {"dimension_numbers", "slice_sizes", "mode"} <= gather.params.keys()
    assert gather.params["slice_sizes"] == (1, WIDTH)
    numbers = gather.params["dimension_numbers"]
    assert (numbers.offset_dims, numbers.start_index_map, numbers.operand_batching_dims) == ((2,), (0,), ())
    assert gather.invars[1].aval.shape == (*IDS.shape, 1)
    (remat,) = jax.make_jaxpr(jax.checkpoint(lambda t: t[IDS]))(table()).eqns
    assert remat.primitive.name in {"checkpoint", "remat", "remat2"}
    assert {"jaxpr", "policy", "prevent_cse"} <= remat.params.keys()
    (cast,) = jax.make_jaxpr(lambda t: t.astype(jnp.bfloat16))(table()).eqns
    assert cast.primitive.name == "convert_element_type"
    row = jax.make_jaxpr(lambda t, i: jax.lax.dynamic_slice_in_dim(t, i, 2))(table(), 3).eqns[-1]
    assert row.primitive.name == "dynamic_slice"
    assert row.params["slice_sizes"] == (2, WIDTH)
    piece = jax.make_jaxpr(lambda t: jax.lax.slice_in_dim(t, 2, 9, 3))(table()).eqns[-1]
    assert piece.primitive.name == "slice"
    assert (piece.params["start_indices"][0], piece.params["limit_indices"][0], piece.params["strides"][0]) == (2, 9, 3)
    assert jax.make_jaxpr(jax.lax.stop_gradient)(table()).eqns[0].primitive.name == "stop_gradient"


class Linen(linen.Module):
    """Two tables, one of them of bfloat16 rows, a block that is recomputed, and a layer."""

    remat: bool = False

    @linen.compact
    def __call__(self, ids: Any) -> Any:
        """(batch, length) to (batch,)."""
        embed = linen.remat(linen.Embed) if self.remat else linen.Embed
        rows = embed(ROWS, WIDTH, name="words")(ids)
        other = embed(5, WIDTH, dtype=jnp.bfloat16, name="kinds")(ids % 5)
        return linen.Dense(1)(jnp.tanh(rows + other.astype(jnp.float32)))[..., 0].sum(-1)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("jit", [False, True])
def test_linen(remat: bool, jit: bool) -> None:
    model = Linen(remat)
    params = model.init(jax.random.key(0), IDS)
    loss = lambda params, ids, *, scale: (scale * jnp.mean(model.apply(params, ids) ** 2), {"scale": scale})
    wrap = jax.jit if jit else lambda f: f
    (value, aux), grads = wrap(sparse.value_and_grad(loss, "embedding", has_aux=True))(params, IDS, scale=2.0)
    (expected, _), reference = jax.value_and_grad(loss, has_aux=True)(params, IDS, scale=2.0)
    assert float(aux["scale"]) == 2
    assert isinstance(grads["params"]["words"]["embedding"], sparse.RowSparse)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-3), dense(grads), reference
    )  # bfloat16
    exact = lambda tree: {k: v for k, v in tree["params"].items() if k != "kinds"}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), exact(dense(grads)), exact(reference)
    )


def test_the_sum_of_bfloat16_rows_is_taken_in_float32() -> None:
    """A thousand lookups of one row: jax.grad adds them up in bfloat16 and loses most of them."""
    loss = lambda params: jnp.sum(params["emb"].astype(jnp.bfloat16)[jnp.zeros(1000, int)], dtype=jnp.float32)
    _, grads = sparse.value_and_grad(loss, "emb")({"emb": table()})
    assert float(grads["emb"].todense()[0, 0]) == 1000
    assert float(jax.grad(loss)({"emb": table()})["emb"][0, 0]) < 1000


class Nnx(nnx.Module):
    """An embedding and a layer."""

    def __init__(self) -> None:
        self.embed = nnx.Embed(ROWS, WIDTH, rngs=nnx.Rngs(0))
        self.last = nnx.Linear(WIDTH, 1, rngs=nnx.Rngs(1))

    def __call__(self, ids: Any) -> Any:
        """(batch, length) to (batch,)."""
        return self.last(jnp.tanh(self.embed(ids)))[..., 0].sum(-1)


def _trained(tx: Any, grad: Any, steps: int = 5) -> Any:
    """Parameters of the nnx model after some steps."""
    graph, params = nnx.split(Nnx(), nnx.Param)
    loss = lambda params, ids: jnp.mean((nnx.merge(graph, params)(ids) - 1) ** 2)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, ids: Any) -> Any:
        _, grads = grad(loss)(params, ids)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for k in range(steps):
        params, state = step(params, state, (IDS + k) % (ROWS - 2))
    return nnx.to_pure_dict(params)


def test_nnx_trains_as_with_the_dense_gradient() -> None:
    tx = optax.adagrad(0.1)
    rows = _trained(sparse.lazy_rows(tx), lambda loss: sparse.value_and_grad(loss, "embedding"))
    whole = _trained(tx, jax.value_and_grad)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), rows, whole)


def test_a_module_that_is_a_pytree() -> None:
    """Leaves that are no numbers, such as functions, and integers are left alone."""

    @jax.tree_util.register_pytree_node_class
    class Module:
        def __init__(self, *leaves: Any) -> None:
            self.leaves = leaves

        def __call__(self, ids: Any) -> Any:
            emb, weight, activation, shift = self.leaves
            return jnp.sum(jax.vmap(lambda i: activation(emb[i + shift] @ weight))(ids))

        def tree_flatten(self) -> Any:
            return self.leaves, None

        @classmethod
        def tree_unflatten(cls, _: Any, leaves: Any) -> Any:
            return cls(*leaves)

    model = Module(table(), jnp.ones(WIDTH), jnp.tanh, jnp.int32(1))
    which = Module(True, False, False, False)
    value, grads = jax.jit(lambda ids: sparse.value_and_grad(lambda m, i: m(i), which)(model, ids))(jnp.asarray(IDS[0]))
    emb, weight, activation, shift = grads.leaves
    assert (activation, shift) == (None, None)
    f = lambda emb, weight: Module(emb, weight, jnp.tanh, 1)(jnp.asarray(IDS[0]))
    expected, reference = jax.value_and_grad(f, (0, 1))(*model.leaves[:2])
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(emb.todense(), reference[0], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(weight, reference[1], rtol=1e-6)


def test_train_state() -> None:
    model = Linen()
    params = model.init(jax.random.key(0), IDS)
    kind = lambda path, _: "rows" if "embedding" in str(path) else "dense"
    labels = jax.tree_util.tree_map_with_path(kind, params)
    tx = optax.multi_transform({"rows": sparse.adagrad(0.1), "dense": optax.adam(1e-2)}, labels)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    def step(state: Any, ids: Any) -> Any:
        loss = lambda params: jnp.mean((state.apply_fn(params, ids) - 1) ** 2)
        value, grads = sparse.value_and_grad(loss, "embedding")(state.params)
        return state.apply_gradients(grads=grads), value

    step = jax.jit(step, donate_argnums=0)
    values = []
    for _ in range(30):
        state, value = step(state, IDS)
        values.append(float(value))
    assert values[-1] < 0.1 * values[0]


def test_nnx_optimizer() -> None:
    model = Nnx()
    tx = sparse.lazy_rows(optax.adam(0.05))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: Any, ids: Any) -> Any:
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        loss = lambda params: jnp.mean((nnx.merge(graph, params, rest)(ids) - 1) ** 2)
        value, grads = sparse.value_and_grad(loss, "embedding")(params)
        optimizer.update(model, grads)
        return value

    first = float(step(model, optimizer, IDS))
    for _ in range(30):
        last = float(step(model, optimizer, IDS))
    assert last < 0.1 * first


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_nothing_of_the_tables_size_is_made(kind: str, dtype: Any) -> None:
    """Also where the layer casts the whole table before it looks rows up."""
    rows, width, n = 50_000, 16, 8
    if kind == "linen":
        model = linen.Embed(rows, width, dtype=dtype)
        params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(n, int))
        apply = model.apply
    else:
        graph, params = nnx.split(nnx.eval_shape(lambda: nnx.Embed(rows, width, dtype=dtype, rngs=nnx.Rngs(0))))
        apply = lambda params, ids: nnx.merge(graph, params)(ids)
    tx = sparse.adagrad(0.1)

    def step(params: Any, state: Any, ids: Any) -> Any:
        loss = lambda params: jnp.mean(apply(params, ids).astype(jnp.float32) ** 2)
        value, grads = sparse.value_and_grad(loss, "embedding")(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    step = jax.jit(step, donate_argnums=(0, 1))
    ids = jax.ShapeDtypeStruct((n,), jnp.int32)
    state = jax.eval_shape(tx.init, params)
    assert len(sparse.check_in_place(step, params, state, ids)) == 2
    assert step.lower(params, state, ids).compile().memory_analysis().temp_size_in_bytes < 8 * n * width * 4 + 4096


def test_decay_at_read() -> None:
    """Rows are seen after the decay that they owe, and so are their gradients."""
    tx = sparse.adagrad(0.1, weight_decay=0.5, decay_at="read")
    params = {"emb": table(), "w": jnp.ones(WIDTH)}
    of = {"emb": sparse.RowSparse([1], jnp.ones((1, WIDTH)), ROWS), "w": jnp.zeros(WIDTH)}
    updates, state = tx.update(of, tx.init(params), params)
    params = optax.apply_updates(params, updates)
    loss = lambda params: jnp.sum(jnp.sin(params["emb"][IDS] @ params["w"]))
    got = sparse.value_and_grad(loss, "emb")(params, optimizer_state=state)
    paid, _ = sparse.flush(params, state)
    value, grads = jax.value_and_grad(loss)(paid)
    assert float(got[0]) != pytest.approx(float(loss(params)), rel=1e-3)
    np.testing.assert_allclose(got[0], value, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), dense(got[1]), grads)


def test_inside_jit_vmap_scan_and_grad_of_the_rest() -> None:
    """As `jax.value_and_grad`: a sweep by vmap, steps in a scan."""
    loss = lambda params, ids, scale: scale * jnp.sum(jnp.sin(params["emb"][ids] @ params["w"]))
    params = {"emb": table(), "w": jnp.ones(WIDTH)}
    scales = jnp.array([1.0, 2.0])
    f = sparse.value_and_grad(loss, "emb")
    values, grads = jax.vmap(lambda s: f(params, jnp.asarray(IDS), s))(scales)
    np.testing.assert_allclose(values[1], 2 * values[0], rtol=1e-6)
    one = jax.tree.map(lambda a: a[1], grads["emb"])
    np.testing.assert_allclose(one.todense(), jax.grad(loss)(params, IDS, 2.0)["emb"], rtol=1e-5, atol=1e-6)
    (_, stacked) = jax.lax.scan(lambda c, s: (c, f(params, jnp.asarray(IDS), s)[1]), 0, scales)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        dense(one),
        dense(jax.tree.map(lambda a: a[1], stacked["emb"])),
    )


@pytest.mark.parametrize(
    ("tables", "params", "message"),
    [
        ("embeding", {"emb": 1.0, "w": 2.0}, r"no parameter has 'embeding' in its path; there are \['emb'\], \['w'\]"),
        ("emb", {"emb": 1.0}, r"the table at \['emb'\] must be floating or complex, of shape \(rows, ...\), got 1.0"),
        ("emb", {"emb": jnp.ones((0, 2))}, r"the table at \['emb'\] must be .*, got float32\[0, 2\]"),
        ("emb", {"emb": jnp.ones(3, jnp.float8_e4m3fn)}, r"the table at \['emb'\] must be .*, got float8_e4m3fn\[3\]"),
        (["emb", "x"], {"emb": np.ones(3)}, r"no parameter has 'x' in its path; there are \['emb'\]"),
        ("emb", {"emb": np.arange(3)}, r"the table at \['emb'\] must be .*, got int64\[3\]"),
        ({"emb": True, "x": True}, {"emb": np.ones(3)}, r"tables and parameters differ as trees: .*only in the tables"),
        ({"emb": 3}, {"emb": np.ones(3)}, r"tables must be a tree of bools, known when .*, not 3 at \['emb'\]"),
    ],
)
def test_bad_input(tables: Any, params: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^value_and_grad: {message}$"):
        sparse.value_and_grad(lambda p: jnp.sum(p["emb"]), tables)(params)


def test_bad_losses() -> None:
    params = {"emb": table()}
    with pytest.raises(TypeError, match="scalar-output"):
        sparse.value_and_grad(lambda p: p["emb"][IDS], "emb")(params)
    for given in (1.0, (1.0, 2.0, 3.0), jnp.ones(2)):
        with pytest.raises(TypeError, match=r"^value_and_grad: with has_aux the loss must give a value and more"):
            sparse.value_and_grad(lambda p, given=given: jax.tree.map(jnp.asarray, given), "emb", has_aux=True)(params)
    with pytest.raises(TypeError, match="the loss has an argument optimizer_state"):
        sparse.value_and_grad(lambda p, optimizer_state: 0.0, "emb")


def test_several_names_and_numbers_that_are_no_arrays() -> None:
    params = {"a": table(), "b": table(seed=1), "s": np.float32(2), "f": 3.0, "n": 4}
    loss = lambda p: jnp.sum(p["a"][IDS] * p["b"][IDS]) * p["s"] * p["f"] * p["n"]
    _, grads = sparse.value_and_grad(loss, ("a", "b"))(params)
    expected = jax.grad(lambda p: loss({**p, "n": 4}))({k: v for k, v in params.items() if k != "n"})
    assert grads.pop("n") is None
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), dense(grads), expected)


@pytest.mark.parametrize("mode", ["fill", "clip", "promise_in_bounds"])
def test_places_that_are_outside_along_another_axis(mode: str) -> None:
    """A row is looked up by two indices, of which the other must be 0: JAX drops or clamps what is not."""
    ids, others = np.array([3, 3, 0, 9, 12]), np.array([0, 1, 0, 5, 0])
    look = lambda t: t.at[ids, others].get(mode=mode, **({"fill_value": 2} if mode == "fill" else {}))
    loss = lambda params: square(look(params["emb"]))
    params = {"emb": table()[:, :1]}
    (value, grads), (expected, reference) = sparse.value_and_grad(loss, "emb")(params), jax.value_and_grad(loss)(params)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(grads["emb"].todense(), reference["emb"], rtol=1e-6)


@pytest.mark.parametrize("stored", [jnp.float16, jnp.bfloat16])
def test_a_fill_value_keeps_the_dtype_that_it_was_given_in(stored: Any) -> None:
    """The table is cast after the lookup here, and before it in the loss."""
    loss = lambda params: jnp.sum(
        jnp.sin(params["emb"].astype(jnp.float32).at[np.array([3, 30])].get(mode="fill", fill_value=1e5 + 0.1))
    )
    params = {"emb": table(stored)}
    np.testing.assert_allclose(sparse.value_and_grad(loss, "emb")(params)[0], loss(params), rtol=1e-6)


def test_casts_on_the_way_round_as_they_do_in_the_loss() -> None:
    loss = lambda params: jnp.sum(jnp.sin(100 * params["emb"].astype(jnp.bfloat16).astype(jnp.float32)[IDS]))
    params = {"emb": table()}
    np.testing.assert_allclose(sparse.value_and_grad(loss, "emb")(params)[0], loss(params), rtol=1e-6)


def test_complex_numbers() -> None:
    """A complex table, and a real one that is cast: its gradient is real."""
    loss = lambda params: jnp.sum(jnp.abs(jnp.take(params["emb"].astype(jnp.complex64), IDS, axis=0) * (1 + 2j)) ** 2)
    for params in ({"emb": table()}, {"emb": table() + 1j * table(seed=1)}):
        _, grads = sparse.value_and_grad(loss, "emb")(params)
        np.testing.assert_allclose(grads["emb"].todense(), jax.grad(loss)(params)["emb"], rtol=1e-5)


@pytest.mark.parametrize("prevent", [True, False, ({"emb": True},)])
def test_remat_recomputes_as_it_was_told(prevent: Any) -> None:
    """Its policy is kept: no sine is computed again with one that saves everything, with the other it is."""
    if not isinstance(prevent, bool) and jax.__version_info__ < (0, 10):
        pytest.skip("jax 0.7 takes one bool for all inputs, no tuple")
    sines = []
    for policy in (jax.checkpoint_policies.everything_saveable, jax.checkpoint_policies.nothing_saveable):
        f = jax.checkpoint(lambda p: square(jnp.exp(jnp.sin(p["emb"][IDS]))), policy=policy, prevent_cse=prevent)
        text = str(jax.make_jaxpr(sparse.value_and_grad(f, "emb"))({"emb": table()}))
        sines.append(text.count("= sin "))
    assert sines == [1, 2]


def test_what_owes_decay_is_not_used_whole() -> None:
    """The decay is paid where rows are looked up, so nowhere else."""
    tx = sparse.adagrad(0.1, weight_decay=0.5, decay_at="read")
    params = {"emb": table()}
    state = tx.init(params)
    filled = lambda p: jnp.sum(p["emb"].at[np.array([30, -20])].get(mode="fill", fill_value=2.0))
    _, state = tx.update({"emb": sparse.RowSparse([1], jnp.ones((1, WIDTH)), ROWS)}, state, params)
    assert float(sparse.value_and_grad(filled, "emb")(params, optimizer_state=state)[0]) == 4 * WIDTH
    for whole in (
        lambda t: jnp.sum(jax.lax.stop_gradient(t)),
        lambda t: jnp.sum(t > 0) + 0.0,
        lambda t: jax.jit(lambda t: jnp.sum(t > 0))(t) + 0.0,
    ):
        loss = lambda p, whole=whole: jnp.sum(p["emb"][IDS]) * whole(p["emb"])
        sparse.value_and_grad(loss, "emb")(params)
        with pytest.raises(sparse.TableUse, match=r"the table at \['emb'\] is used whole by `.*rows owe decay"):
            sparse.value_and_grad(loss, "emb")(params, optimizer_state=state)
    gives = lambda p: (jnp.sum(p["emb"][IDS]), p)
    assert sparse.value_and_grad(gives, "emb", has_aux=True)(params)[0][1]["emb"].shape == (ROWS, WIDTH)
    with pytest.raises(sparse.TableUse, match=r"the loss gives the table at .* as it lies, but its rows owe decay"):
        sparse.value_and_grad(gives, "emb", has_aux=True)(params, optimizer_state=state)


@pytest.mark.skipif(not EXPLICIT, reason="jax 0.7 has no explicit axes for indexed updates")
@pytest.mark.parametrize("of_ids", [PartitionSpec(None), PartitionSpec("d")])
@pytest.mark.parametrize(
    "of_table",
    [PartitionSpec(None, None), PartitionSpec("m", None), PartitionSpec(None, "m"), PartitionSpec("d", None)],
)
def test_explicit_axes(of_table: PartitionSpec, of_ids: PartitionSpec) -> None:
    """Tables and ids split over a mesh of explicit axes, which `jax.make_mesh` makes: the numbers of one device."""
    rng = np.random.default_rng(0)
    x = {"emb": rng.normal(size=(16, 4)).astype(np.float32), "w": np.ones(4, np.float32)}
    ids, y = rng.integers(0, 16, 24).astype(np.int32), rng.normal(size=24).astype(np.float32)
    tx = sparse.adam(0.1)

    def step(params: Any, state: Any, ids: Any, y: Any, *, first: bool, out: Any = None) -> Any:
        if first:
            grad = sparse.rows_value_and_grad(lambda w, rows, y: jnp.mean((rows @ w - y) ** 2))
            value, (w, emb) = grad(params["w"], params["emb"], ids, y)
            grads = {"w": w, "emb": emb}
        else:
            loss = lambda p: jnp.mean((p["emb"].at[ids].get(out_sharding=out) @ p["w"] - y) ** 2)
            value, grads = sparse.value_and_grad(loss, "emb")(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    expected = jax.jit(functools.partial(step, first=True))(x, tx.init(x), ids, y)
    mesh = jax.make_mesh((4, 2), ("d", "m"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        params = {"emb": jax.device_put(x["emb"], of_table), "w": jnp.asarray(x["w"])}
        batch = jax.device_put((ids, y), of_ids)
        out = PartitionSpec(*of_ids, *[axis for axis in of_table[1:] if axis not in of_ids])
        for first in (True, False):
            got = jax.jit(functools.partial(step, first=first, out=out))(params, tx.init(params), *batch)
            assert jax.typeof(got[0]["emb"]).sharding.spec == of_table
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)
