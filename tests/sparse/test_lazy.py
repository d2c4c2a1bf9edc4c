"""lazy_rows: the dense step where a rule allows it, the lazy one elsewhere; what is not used stays bit for bit."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState

import adaptx
from adaptx import sparse
from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.registry import OPTIMIZERS
from adaptx.sparse.row_rules import rowwise_adagrad_rule
from tests.conformance.cases import CASES, Case
from tests.conftest import x64
from tests.sparse.tables import (
    ROWS,
    USED,
    WIDTH,
    dense_gradient,
    dense_gradients,
    draws,
    kept,
    run_dense,
    run_sparse,
    table,
)

STEPS = 40
SLOW = optax.exponential_decay(0.1, 10, 0.9)

# Rules that a zero gradient leaves alone; test_semantics shows that it does.
EXACT = {
    "sgd": optax.sgd(SLOW),
    "adagrad": adaptx.adagrad(SLOW, 0.1),
    "adagrad from 0": adaptx.adagrad(SLOW),
    "clipped adagrad": optax.chain(optax.clip_by_global_norm(0.5), adaptx.adagrad(SLOW, 0.1)),
    "rowwise_adagrad": lift("rows", rowwise_adagrad_rule(0.1, 1e-8, 0.0, None, None), Descent(SLOW)),
    "ftrl": adaptx.ftrl(SLOW, 0.1, l1=0.01, l2=0.01),
    "optax.adagrad": optax.adagrad(SLOW),
}
# The same by another path: rounding, which an accumulator that starts at 0 amplifies in its first step.
CLOSE = {"float64": 1e-12, "float32": 1e-6}


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("name", EXACT)
def test_equals_the_dense_step(name: str, dtype: str) -> None:
    """40 steps with duplicates and ids to drop: the table and every array of the state."""
    tx, bound = EXACT[name], CLOSE[dtype]
    if (name, dtype) == ("adagrad from 0", "float32"):
        bound = 1e-5  # its first steps divide by the root of one square: rounding of a sum of two is all there is
    with x64(dtype == "float64"):
        ids, values = draws(STEPS, dtype)
        x, state = run_sparse(sparse.lazy_rows(tx), table(dtype), ids, values)
        y, expected = run_dense(tx, table(dtype), dense_gradients(ids, values, dtype))
    for a, b in zip(jax.tree.leaves((x, state)), jax.tree.leaves((y, expected)), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(a, b, rtol=0, atol=bound * max(np.abs(b).max(), 1))


def _ready(name: str, **kwargs: Any) -> Any:
    return getattr(sparse, name)(0.1, **kwargs)


READY = {
    "adagrad": {},
    "rowwise_adagrad": {},
    "adam": {},
    "adam by row": dict(bias="row"),
    "partial_rowwise_adam": {},
    "ftrl": {},
    "lamb_rows": {},
}
LAZY = {
    **{name: functools.partial(_ready, name.split()[0], **kwargs) for name, kwargs in READY.items()},
    **{
        f"lazy {case.id}": functools.partial(lambda case: sparse.lazy_rows(case.tx()), case)
        for case in CASES
        if case.index == 0 and case.flag("reduces") == "element"
    },
    "optax momentum": lambda: sparse.lazy_rows(optax.sgd(0.1, momentum=0.9)),
    "optax lion": lambda: sparse.lazy_rows(optax.lion(0.1)),
    "optax chain": lambda: sparse.lazy_rows(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))),
    "optax injected": lambda: sparse.lazy_rows(optax.inject_hyperparams(optax.adam)(0.1)),
    "optax schedule_free": lambda: sparse.lazy_rows(optax.contrib.schedule_free(optax.sgd(0.1), 0.1)),
    "optax apply_if_finite": lambda: sparse.lazy_rows(optax.apply_if_finite(optax.adagrad(0.1), 3)),
    "masked": lambda: sparse.lazy_rows(optax.masked(optax.adam(0.1), {"emb": True})),
}


@pytest.mark.parametrize("name", LAZY)
def test_rows_that_are_not_used_stay_bit_for_bit(name: str) -> None:
    """Parameters and every part of the state that has rows; NaN in dropped rows reaches nothing."""
    ids, values = draws(5)
    values = values.at[~kept(ids)].set(jnp.nan)
    tx = LAZY[name]()
    before = tx.init({"emb": table()})
    x, state = run_sparse(tx, table(), ids, values)
    unused = np.setdiff1d(np.arange(ROWS), ids)
    assert 10 in unused
    np.testing.assert_array_equal(x[unused], table()[unused])
    moved = np.asarray(x != table()).any(1)
    assert moved[np.intersect1d(np.arange(ROWS), ids)].all()
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(before), strict=True):
        assert a.dtype == b.dtype
        assert np.isfinite(a).all()
        if a.ndim:
            np.testing.assert_array_equal(a[unused], b[unused])


@pytest.mark.parametrize("name", LAZY)
def test_nothing_to_do(name: str) -> None:
    """No ids, or padding only: a bit-exact no-op on everything that has rows; also for a table of one row."""
    tx = LAZY[name]()
    state = tx.init({"emb": table()})
    for ids, values in ((np.zeros(0, int), jnp.zeros((0, WIDTH))), (np.full(4, -1), jnp.full((4, WIDTH), jnp.nan))):
        g = {"emb": sparse.RowSparse(ids, values, ROWS)}
        updates, after = tx.update(g, state, {"emb": table()})
        np.testing.assert_array_equal(optax.apply_updates({"emb": table()}, updates)["emb"], table())
        for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
            np.testing.assert_array_equal(a, b) if a.ndim else None
    one = {"emb": table()[:1]}
    state, g = tx.init(one), {"emb": sparse.RowSparse([0, 0, 1], jnp.ones((3, WIDTH)), 1)}
    for _ in range(2):  # ADOPT's first step only fills its state
        updates, state = tx.update(g, state, one)
        assert np.isfinite(updates["emb"].values).all()
    assert np.all(optax.apply_updates(one, updates)["emb"] != one["emb"])


ONE_BY_ONE = {
    "adam by row": (lambda: sparse.adam(0.1, bias="row"), lambda: adaptx.adam(0.1)),
    "momentum": (lambda: sparse.lazy_rows(optax.sgd(0.1, momentum=0.9)), lambda: optax.sgd(0.1, momentum=0.9)),
    "rmsprop": (lambda: sparse.lazy_rows(adaptx.rmsprop(0.1)), lambda: adaptx.rmsprop(0.1)),
    "decayed adagrad": (
        lambda: sparse.adagrad(0.1, weight_decay=0.1),
        lambda: adaptx.adagrad(0.1, weight_decay=0.1),
    ),
}


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_a_row_sees_its_own_steps_only(name: str) -> None:
    """Lazy is the dense rule on the steps that use the row, as if there were no others; Adam with the row's clock."""
    lazy, dense = (make() for make in ONE_BY_ONE[name])
    with x64():
        ids, values = draws(STEPS, jnp.float64)
        x, _ = run_sparse(lazy, table(jnp.float64), ids, values)
        update = jax.jit(dense.update)
        for row in range(ROWS):
            alone = table(jnp.float64)[row : row + 1]
            state = dense.init(alone)
            for i, v in zip(ids, values, strict=True):
                if row in i:
                    u, state = update(jnp.asarray(dense_gradient(i, v)[row : row + 1]), state, alone)
                    alone = optax.apply_updates(alone, u)
            np.testing.assert_allclose(x[row], alone[0], rtol=1e-12)


def test_adam_counts_the_tables_steps_by_default() -> None:
    """A row that comes first at step t: the moments of one step, the corrections of t."""
    with x64():
        x = table(jnp.float64)
        tx, state = sparse.adam(0.1), None
        state = tx.init(x)
        for t in range(1, 6):
            g = sparse.RowSparse([t, t], jnp.full((2, WIDTH), 0.5, jnp.float64), ROWS)
            updates, state = tx.update(g, state, x)
            m_hat, v_hat = 0.1 / (1 - 0.9**t), 0.001 / (1 - 0.999**t)
            expected = -0.1 * m_hat / (np.sqrt(v_hat) + 1e-8)
            np.testing.assert_allclose(updates.todense()[t], expected, rtol=1e-12)


def test_equal_ids_are_one_gradient() -> None:
    """[1, 1, 1] with g = 1 adds 9 to the accumulator, and one step to the row's clock."""
    g = sparse.RowSparse([1, 1, 1], jnp.ones((3, WIDTH)), ROWS)
    tx = sparse.adagrad(0.1)
    _, state = tx.update(g, tx.init(table()), table())
    np.testing.assert_array_equal(state.nu[1], 9)
    tx = sparse.adam(0.1, bias="row")
    _, state = tx.update(g, tx.init(table()), table())
    assert (state.steps[1], state.steps[2]) == (1, 0)


def test_order_and_reruns() -> None:
    """Another order of the ids changes rounding only; the same order, nothing."""
    ids, values = draws(5)
    order = np.random.default_rng(0).permutation(USED)
    tx = sparse.adam(0.1)
    first, again = (run_sparse(tx, table(), ids, values) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    other = run_sparse(tx, table(), ids[:, order], values[:, order])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), first, other)


def test_a_present_row_with_a_zero_gradient_is_used() -> None:
    tx = sparse.adam(0.1, bias="row")
    zero = sparse.RowSparse([2], jnp.zeros((1, WIDTH)), ROWS)
    _, state = tx.update(zero, tx.init(table()), table())
    assert state.steps[2] == 1


# Trees of tables and ordinary leaves ----------------------------------------------------------------------------


def mixed() -> tuple[Any, Any, Any]:
    """Parameters, their gradients with rows, and the same dense."""
    ids, values = draws(1)
    params = {"emb": table(), "net": {"b": jnp.ones(2), "w": table(seed=4)}}
    net = {"b": jnp.array([0.3, -2.0]), "w": table(seed=5)}
    rows = sparse.RowSparse(ids[0], values[0], ROWS)
    return (
        params,
        {"emb": rows, "net": net},
        {"emb": jnp.asarray(dense_gradient(ids[0], values[0]), jnp.float32), "net": net},
    )


def test_a_mixed_tree_has_the_dense_norm() -> None:
    params, grads, dense = mixed()
    tx = optax.chain(optax.clip_by_global_norm(0.1), adaptx.adagrad(0.1, 0.1))
    lazy = sparse.lazy_rows(tx)
    updates, state = lazy.update(grads, lazy.init(params), params)
    expected, of_dense = tx.update(dense, tx.init(params), params)
    after, other = optax.apply_updates(params, updates), optax.apply_updates(params, expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), (after, state), (other, of_dense))


def test_dense_leaves_pass() -> None:
    """on_dense="pass": gradients as they came, their state untouched, and no part of the norm."""
    params, grads, _ = mixed()
    chain = optax.chain(optax.clip_by_global_norm(0.1), adaptx.adam(0.1))
    tx = sparse.lazy_rows(chain, on_dense="pass")
    state = tx.init(params)
    updates, after = tx.update(grads, state, params)
    jax.tree.map(np.testing.assert_array_equal, updates["net"], grads["net"])
    jax.tree.map(np.testing.assert_array_equal, after[1].mu["net"], state[1].mu["net"])
    assert after[1].count == 1
    alone = sparse.lazy_rows(chain)
    expected, _ = alone.update({"emb": grads["emb"]}, alone.init({"emb": table()}), {"emb": table()})
    np.testing.assert_array_equal(updates["emb"].todense(), expected["emb"].todense())


def test_leaves_without_gradient() -> None:
    """None beside rows: left alone."""
    params, grads, _ = mixed()
    tx = sparse.lazy_rows(adaptx.adam(0.1))
    updates, after = tx.update({**grads, "net": {"b": None, "w": None}}, tx.init(params), params)
    assert updates["net"] == {"b": None, "w": None}
    assert not np.asarray(after.mu["net"]["w"]).any()


def test_dense_gradients_alone_are_the_inner_step() -> None:
    params, _, dense = mixed()
    tx = adaptx.adam(0.1)
    expected = tx.update(dense, tx.init(params), params)
    got = sparse.lazy_rows(tx).update(dense, tx.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_the_state_is_the_inner_one() -> None:
    """A run can go on with or without lazy_rows."""
    params, _, _ = mixed()
    inner = optax.chain(optax.clip(1.0), adaptx.adamw(0.1))
    jax.tree.map(np.testing.assert_array_equal, sparse.lazy_rows(inner).init(params), inner.init(params))
    abstract = jax.eval_shape(lambda: params)
    jax.tree.map(
        lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)),
        sparse.lazy_rows(adaptx.adam(0.1)).init(abstract),
        adaptx.adam(0.1).init(params),
    )


def test_optax_combinators_take_rows_as_they_are() -> None:
    """multi_transform, masked, named_chain and chain around lazy_rows: the steps of each part alone."""
    params, grads, _ = mixed()
    lazy, net = sparse.adagrad(0.1), optax.adamw(0.1)
    labels = {"emb": "table", "net": {"b": "net", "w": "net"}}
    tx = optax.multi_transform({"table": lazy, "net": net}, labels)
    updates, _ = tx.update(grads, tx.init(params), params)
    after = optax.apply_updates(params, updates)
    alone, _ = lazy.update(grads["emb"], lazy.init(params["emb"]), params["emb"])
    np.testing.assert_array_equal(after["emb"], params["emb"] + alone)
    dense, _ = net.update(grads["net"], net.init(params["net"]), params["net"])
    jax.tree.map(np.testing.assert_array_equal, after["net"], optax.apply_updates(params["net"], dense))

    mask = {"emb": True, "net": False}
    for tx in (optax.masked(lazy, mask), optax.named_chain(("rows", optax.masked(lazy, mask)))):
        updates, _ = tx.update(grads, tx.init(params), params)
        np.testing.assert_array_equal(params["emb"] + updates["emb"], after["emb"])
        jax.tree.map(np.testing.assert_array_equal, updates["net"], grads["net"])


def test_flax_takes_rows_as_they_are() -> None:
    """linen's TrainState and nnx.Optimizer."""
    params, grads, _ = mixed()
    tx = sparse.lazy_rows(adaptx.adagrad(0.1))
    updates, _ = tx.update(grads, tx.init(params), params)
    expected = optax.apply_updates(params, updates)
    state = TrainState.create(apply_fn=linen.Dense(1).apply, params=params, tx=tx).apply_gradients(grads=grads)
    jax.tree.map(np.testing.assert_array_equal, state.params, expected)

    model = nnx.Linear(WIDTH, ROWS, use_bias=False, rngs=nnx.Rngs(0))
    model.kernel = nnx.Param(table())
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, nnx.State({"kernel": nnx.Param(grads["emb"])}))
    np.testing.assert_array_equal(model.kernel[...], expected["emb"])


def test_transformations_of_jax() -> None:
    """scan is a loop, cond carries it, vmap over tables is each of them, one trace serves all steps."""
    ids, values = draws(3)
    tx, x = sparse.adam(0.1), table()
    traces = []

    @jax.jit
    def step(x: Any, state: Any, i: Any, v: Any) -> Any:
        traces.append(None)
        updates, state = tx.update(sparse.RowSparse(i, v, ROWS), state, x)
        return optax.apply_updates(x, updates), state

    looped, state = x, tx.init(x)
    for i, v in zip(ids, values, strict=True):
        looped, state = step(looped, state, i, v)
    assert len(traces) == 1
    scanned, after = run_sparse(tx, x, ids, values, name=None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), (scanned, after), (looped, state))

    kept_as_is = jax.jit(
        lambda on: jax.lax.cond(on, lambda: step(x, tx.init(x), ids[0], values[0]), lambda: (x, tx.init(x)))
    )
    np.testing.assert_array_equal(kept_as_is(False)[0], x)
    two = jnp.stack([x, 2 * x])
    batched = jax.vmap(lambda x: step(x, tx.init(x), ids[0], values[0])[0])(two)
    np.testing.assert_allclose(batched[1], step(2 * x, tx.init(x), ids[0], values[0])[0], rtol=1e-6)


# What is refused ------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Any, str]] = {
    "optax.adafactor": (lambda: optax.adafactor(0.1), "a row for each row of a parameter"),
    "optax.sm3": (lambda: optax.sm3(0.1), "a row for each row of a parameter"),
    "optax.novograd": (lambda: optax.novograd(0.1), "a row for each row of a parameter"),
    "optax.contrib.muon": (lambda: optax.contrib.muon(0.1), "muon turns a whole matrix"),
    "MultiSteps": (
        lambda: optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(),
        "MultiSteps keeps a row's gradient",
    ),
    "MultiSteps in a chain": (
        lambda: optax.chain(optax.clip(1.0), optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()),
        "MultiSteps keeps a row's gradient",
    ),
    "apply_every": (lambda: optax.chain(optax.apply_every(2), optax.sgd(0.1)), "apply_every keeps a row's gradient"),
    "sam": (lambda: optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1)), "sam leaves the rows of its adversarial step"),
    "lbfgs": (lambda: optax.scale_by_lbfgs(), "a row for each row of a parameter"),
    "a Gram matrix": (
        lambda: optax.GradientTransformation(
            lambda p: jax.tree.map(lambda x: jnp.zeros((x.shape[0], x.shape[0])), p), lambda u, s, p=None: (u, s)
        ),
        "a row for each row of a parameter",
    ),
    "state of another structure": (
        lambda: optax.GradientTransformation(
            lambda p: jax.tree.map(lambda x: (jnp.zeros(x.shape), jnp.zeros(x.shape)), p), lambda u, s, p=None: (u, s)
        ),
        "a row for each row of a parameter",
    ),
}
WIDE = [case for case in CASES if case.flag("reduces") != "element"]


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("shape", [(ROWS, WIDTH), (300, 300)])
def test_what_does_not_work_by_rows_is_refused_at_init(name: str, shape: tuple[int, int]) -> None:
    make, line = REFUSED[name]
    with pytest.raises(ValueError, match=f"lazy_rows: .*{line}") as caught:
        sparse.lazy_rows(make()).init({"emb": jnp.zeros(shape)})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", WIDE, ids=lambda case: case.id)
def test_rules_that_look_further_are_refused_by_name(case: Case) -> None:
    reach = case.flag("reduces")
    names = [(case.tx(), case.entry.name)]
    if case.entry.direction is not None:
        names.append((case.entry.direction(), case.entry.direction.__name__))
    for tx, name in names:
        for wrapped in (tx, optax.chain(optax.clip(1.0), tx), optax.apply_if_finite(tx, 3)):
            with pytest.raises(ValueError, match=rf"lazy_rows: {name} looks at the whole (tensor|tree)") as caught:
                sparse.lazy_rows(wrapped).init({"emb": table()})
            assert "\n" not in str(caught.value)
        tx.init({"emb": table()})  # outside it is as welcome as before
    assert reach in ("tensor", "tree")


def test_every_rule_on_one_element_is_welcome() -> None:
    for case in CASES:
        # A rule that some arguments make look wider is refused by its name, with any arguments.
        if set(case.entry.reduces) == {"element"}:
            sparse.lazy_rows(case.tx()).init({"emb": table()})
    assert {case.entry.name for case in WIDE} < set(OPTIMIZERS)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="on_dense must be 'inner' or 'pass', got 'skip'"):
        sparse.lazy_rows(optax.sgd(0.1), on_dense="skip")
    with pytest.raises(TypeError, match="inner must be an optax transformation, got function"):
        sparse.lazy_rows(optax.sgd)
    with pytest.raises(ValueError, match="MultiSteps keeps"):
        sparse.lazy_rows(optax.MultiSteps(optax.sgd(0.1), 2))
    tx = sparse.lazy_rows(adaptx.adam(0.1))
    with pytest.raises(TypeError, match=r"lazy_rows: the parameter at .* is int32"):
        tx.init({"emb": jnp.zeros((2, 2), jnp.int32)})
    params = {"emb": table()}
    for g, line in (
        ({"emb": sparse.RowSparse([0], jnp.ones((1, 2)), ROWS)}, r"at \['emb'\] is of a table of shape \(11, 2\)"),
        ({"emb": sparse.RowSparse([0], jnp.ones((1, WIDTH)), ROWS + 1)}, r"of shape \(12, 3\), its parameter has"),
        ({"other": sparse.RowSparse([0], jnp.ones((1, WIDTH)), ROWS)}, "differ as trees"),
    ):
        with pytest.raises(ValueError, match=line) as caught:
            tx.update(g, tx.init(params), params)
        assert "\n" not in str(caught.value)
    grown = {"emb": jnp.concatenate([table(), table()])}
    g = {"emb": sparse.RowSparse([12], jnp.ones((1, WIDTH)), 2 * ROWS)}
    for params_given in (grown, None):
        with pytest.raises(ValueError, match=r"gradient at \['emb'\] has 22 rows, the state 11"):
            sparse.lazy_rows(optax.adagrad(0.1)).update(g, optax.adagrad(0.1).init(params), params_given)


def test_numpy_tables() -> None:
    """Of the host, as a dense optimizer takes them."""
    tx, x = sparse.adam(0.1), np.asarray(table())
    g = sparse.RowSparse([1, 3], jnp.ones((2, WIDTH)), ROWS)
    updates, _ = tx.update(g, tx.init(x), x)
    expected, _ = tx.update(g, tx.init(table()), table())
    np.testing.assert_array_equal(updates.values, expected.values)
    _, (_, of_rows) = sparse.rows_value_and_grad(lambda d, r, b: jnp.sum(r**2))((), x, np.array([1, 2]))
    np.testing.assert_array_equal(of_rows.values, 2 * x[1:3])
