"""The ready optimizers against NumPy float64 loops over the rows that are used; what is exact and what is lazy."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy import sqrt

from adaptx import sparse
from adaptx.registry import OPTIMIZERS
from tests.conformance.cases import CASES
from tests.conftest import x64
from tests.sparse.semantics import dense_rules, semantics
from tests.sparse.tables import ROWS, WIDTH, dense_gradient, draws, run_sparse, table

STEPS = 12
Loop = Callable[..., Any]


# Each loop is one row's: step(x, g, s, t, k) -> x, where s is the row's own dict and t counts the table's steps.


def adagrad(x: Any, g: Any, s: Any, t: int, k: Any) -> Any:
    """Duchi, Hazan, Singer 2011."""
    s["nu"] = s.get("nu", k.get("initial_accumulator", 0)) + g**2
    h = sqrt(s["nu"] + k.get("eps_root", 0)) + k.get("eps", 1e-10)
    rate = k["learning_rate"] / (1 + (t - 1) * k.get("lr_decay", 0))
    z = x - rate * (g / h + k.get("weight_decay", 0) * x)
    return np.sign(z) * np.maximum(abs(z) - rate * k.get("l1", 0) / h, 0)


def rowwise_adagrad(x: Any, g: Any, s: Any, t: int, k: Any) -> Any:
    """FBGEMM: the mean of g^2; weight decay modes L2 and DECOUPLE; max_norm after the step."""
    wd, l2 = k.get("weight_decay", 0), k.get("l2", 0)
    s["nu"] = s.get("nu", k.get("initial_accumulator", 0)) + np.mean((g + l2 * x) ** 2)
    multiplier = k["learning_rate"] / (sqrt(s["nu"] + k.get("eps_root", 0)) + k.get("eps", 1e-8))
    new = (1 - multiplier * l2 - k["learning_rate"] * wd) * x - multiplier * g
    return new * min(1, k.get("max_norm", np.inf) / np.linalg.norm(new))


def adam(x: Any, g: Any, s: Any, t: int, k: Any, mean: bool = False, ratio: bool = False) -> Any:
    """Kingma, Ba 2015; FBGEMM's partial row-wise form has the mean of g^2, its LAMB a ratio for each row."""
    b1, b2 = k.get("b1", 0.9), k.get("b2", 0.999)
    s["steps"] = s.get("steps", 0) + 1
    s["mu"] = b1 * s.get("mu", 0) + (1 - b1) * g
    s["nu"] = b2 * s.get("nu", 0) + (1 - b2) * (np.mean(g**2) if mean else g**2)
    n = s["steps"] if k.get("bias") == "row" else t
    root = sqrt(s["nu"] / (1 - b2**n) + k.get("eps_root", 0)) + k.get("eps", 1e-8)
    u = s["mu"] / (1 - b1**n) / root + k.get("weight_decay", 0) * x
    return x - k["learning_rate"] * (np.linalg.norm(x) / np.linalg.norm(u) if ratio else 1) * u


def partial_rowwise_adam(x: Any, g: Any, s: Any, t: int, k: Any) -> Any:
    """FBGEMM."""
    return adam(x, g, s, t, k, mean=True)


def lamb_rows(x: Any, g: Any, s: Any, t: int, k: Any) -> Any:
    """FBGEMM's LAMB."""
    return adam(x, g, s, t, {"eps": 1e-6, "weight_decay": 1e-2, **k}, ratio=True)


def ftrl(x: Any, g: Any, s: Any, t: int, k: Any) -> Any:
    """McMahan et al. 2013, algorithm 1, from the z whose weight is x."""
    alpha, beta, l1, l2 = k["learning_rate"], k.get("beta", 1), k.get("l1", 0), k.get("l2", 0)
    n = s.get("n", k.get("initial_accumulator", 0))
    z = s.get("z", -x * ((beta + sqrt(n)) / alpha + l2) - l1 * np.sign(x))
    s["z"] = z + g - (sqrt(n + g**2) - sqrt(n)) / alpha * x
    s["n"] = n + g**2
    w = (np.sign(s["z"]) * l1 - s["z"]) / ((beta + sqrt(s["n"])) / alpha + l2)
    return np.where(abs(s["z"]) <= l1, 0, w)


CASES_BY_NAME: dict[str, list[dict[str, Any]]] = {
    "adagrad": [
        dict(learning_rate=0.1),
        dict(
            learning_rate=0.2, initial_accumulator=0.1, eps=1e-3, eps_root=1e-2, lr_decay=0.3, l1=1.5,
            weight_decay=0.1, mask=True,
        ),
    ],
    "rowwise_adagrad": [
        dict(learning_rate=0.1),
        dict(learning_rate=0.2, weight_decay=0.3, eps=1e-3),
        dict(learning_rate=0.3, max_norm=1.2),
        dict(
            learning_rate=0.2, initial_accumulator=0.1, eps=1e-3, eps_root=1e-2, l2=0.2, max_norm=1.5,
            weight_decay=0.1, mask=True,
        ),
    ],
    "adam": [
        dict(learning_rate=0.1),
        dict(learning_rate=0.1, bias="row"),
        dict(learning_rate=0.2, b1=0.8, b2=0.9, eps=1e-3, eps_root=1e-2, weight_decay=0.1, mask=True),
        dict(learning_rate=0.2, b1=0.8, b2=0.9, eps=1e-3, eps_root=1e-2, bias="row", weight_decay=0.1),
    ],
    "partial_rowwise_adam": [
        dict(learning_rate=0.1),
        dict(learning_rate=0.2, b1=0.8, b2=0.9, eps=1e-3, eps_root=1e-2, weight_decay=0.1, mask=True),
    ],
    "ftrl": [dict(learning_rate=0.5), dict(learning_rate=1.0, beta=0.3, l1=2.0, l2=0.2, initial_accumulator=0.1)],
    "lamb_rows": [
        dict(learning_rate=0.1),
        dict(learning_rate=0.2, b1=0.8, b2=0.9, eps=1e-3, eps_root=1e-2, weight_decay=0.1, mask=True),
    ],
}  # fmt: skip
ALL = [(name, k) for name, cases in CASES_BY_NAME.items() for k in cases]
# Arguments with tests of their own: test_decay, test_rounding.
ELSEWHERE = {"decay_at", "seed"}


def ids_of(values: Any) -> str:
    return values if isinstance(values, str) else ",".join(values)


@pytest.mark.parametrize(("name", "k"), ALL, ids=ids_of)
def test_equals_the_loop_over_used_rows(name: str, k: dict[str, Any]) -> None:
    loop = globals()[name]
    with x64():
        ids, values = draws(STEPS, jnp.float64)
        x, state = run_sparse(getattr(sparse, name)(**k), table(jnp.float64), ids, values)
    with x64():
        rows = [np.array(row, float) for row in table(jnp.float64)]
    own: list[dict[str, Any]] = [{} for _ in rows]
    for t, (i, v) in enumerate(zip(ids, values, strict=True), start=1):
        g = dense_gradient(i, v)
        for row in set(i.tolist()) & set(range(ROWS)):
            rows[row] = loop(rows[row], g[row], own[row], t, k)
    np.testing.assert_allclose(x, np.stack(rows), rtol=1e-12, atol=1e-14)
    assert int(optax.tree_utils.tree_get(state, "count")) == STEPS
    if k.get("l1"):
        assert np.any(np.asarray(x) == 0)
        np.testing.assert_array_equal(np.asarray(x) == 0, np.stack(rows) == 0)


@pytest.mark.parametrize("name", CASES_BY_NAME)
def test_cases_move_every_argument(name: str) -> None:
    for argument, p in inspect.signature(getattr(sparse, name)).parameters.items():
        moved = [k for k in CASES_BY_NAME[name] if argument in k and k[argument] != p.default]
        assert moved or argument in ELSEWHERE, f"no case of {name} moves {argument}"


@pytest.mark.parametrize("name", CASES_BY_NAME)
def test_any_dtype_and_gradient(name: str) -> None:
    """bfloat16 and float16 tables, gradients that are zero or huge: finite; state float32 and steady."""
    for dtype in (jnp.bfloat16, jnp.float16):
        x = table(dtype)
        tx = getattr(sparse, name)(0.1)
        state = tx.init(x)
        for size in (0.0, 1.0, float(jnp.finfo(dtype).max)):
            g = sparse.RowSparse([1, 1, 2, -1], jnp.full((4, WIDTH), size / 2, dtype), ROWS)
            updates, after = tx.update(g, state, x)
            assert updates.dtype == jnp.float32  # rounded once, when it is added
            assert np.isfinite(updates.values).all()
            for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
                assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)
                assert a.dtype in (jnp.float32, jnp.int32)
                assert np.isfinite(a).all()
            moved = x + updates
            assert moved.dtype == dtype
            x, state = moved, after


def test_lamb_rows_where_a_norm_is_zero() -> None:
    """A row of zeros moves by its direction; a zero direction moves nothing."""
    x = jnp.zeros((2, WIDTH)).at[1].set(1.0)
    tx = sparse.lamb_rows(0.1, weight_decay=None)
    g = sparse.RowSparse([0, 1], jnp.stack([jnp.ones(WIDTH), jnp.zeros(WIDTH)]), 2)
    after = x + tx.update(g, tx.init(x), x)[0]
    np.testing.assert_allclose(after[0], -0.1, rtol=1e-5)
    np.testing.assert_array_equal(after[1], x[1])


def test_one_number_a_row() -> None:
    """State of shape (rows,), also for rows that are matrices or numbers."""
    for shape in ((ROWS,), (ROWS, 2), (ROWS, 2, 3)):
        x = jnp.ones(shape)
        state = sparse.rowwise_adagrad(0.1).init(x)
        assert state.nu.shape == (ROWS,)
        assert sparse.adam(0.1, bias="row").init(x).steps.dtype == jnp.int32
        g = sparse.RowSparse([3], jnp.full((1, *shape[1:]), 2.0), ROWS)
        _, state = sparse.rowwise_adagrad(0.1).update(g, state, x)
        np.testing.assert_array_equal(state.nu, 4.0 * (np.arange(ROWS) == 3))


# Exact or lazy --------------------------------------------------------------------------------------------------

SLOW = optax.exponential_decay(0.1, 10, 0.5)
DENSE = dense_rules()
EXPECTED = {
    ("adagrad", ()): "exact",
    ("adagrad", (("weight_decay", 0.1),)): "lazy",
    ("adagrad", (("l1", 0.1),)): "lazy",
    ("rowwise_adagrad", ()): "exact",
    ("rowwise_adagrad", (("l2", 0.1),)): "lazy",
    ("rowwise_adagrad", (("weight_decay", 0.1),)): "lazy",
    ("rowwise_adagrad", (("max_norm", 100.0),)): "exact",
    ("adam", ()): "lazy",
    ("partial_rowwise_adam", ()): "lazy",
    ("ftrl", ()): "exact",
    ("ftrl", (("l1", 0.1), ("l2", 0.1))): "exact",
    ("lamb_rows", ()): "lazy",
}


@pytest.mark.parametrize(("name", "k"), EXPECTED)
def test_semantics(name: str, k: Any) -> None:
    """The docstring says exactly where the dense rule leaves a row without gradient alone."""
    found = semantics(DENSE[name](**dict(k)))
    assert found == EXPECTED[name, k]
    first = (getattr(sparse, name).__doc__ or "").splitlines()[0] + (getattr(sparse, name).__doc__ or "").splitlines()[
        1
    ]
    if not k:
        assert bool(re.search(r"\bexact", first, re.IGNORECASE)) == (found == "exact")
        assert bool(re.search(r"\blazy", first, re.IGNORECASE)) == (found == "lazy")


def test_semantics_of_others() -> None:
    assert semantics(optax.sgd(SLOW)) == "exact"
    assert semantics(optax.sgd(SLOW, momentum=0.9)) == "lazy"
    assert {
        e: semantics(OPTIMIZERS[e].factory(**OPTIMIZERS[e].cases[0])) for e in ("rmsprop", "adamax", "adadelta")
    } == {
        "rmsprop": "lazy",
        "adamax": "lazy",
        "adadelta": "lazy",
    }
    assert {c.entry.name for c in CASES if c.flag("reduces") == "element" and semantics(c.tx()) == "exact"} == {
        "adagrad",
        "cocob",
        "ftrl",
        "kate",
        "signum",  # without momentum
    }


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: sparse.adam(-1.0), "adam: learning_rate must be a number, 0-d array or schedule >= 0"),
        (lambda: sparse.adam(0.1, bias="rows"), "adam: bias must be 'global' or 'row', got 'rows'"),
        (lambda: sparse.adagrad(0.1, seed=-1), "adagrad: seed must be an int >= 0 or None, got -1"),
        (lambda: sparse.adagrad(0.1, seed=1.5), "adagrad: seed must be an int >= 0 or None, got 1.5"),
        (lambda: sparse.adagrad(0.1, seed=True), "adagrad: seed must be an int >= 0 or None, got True"),
        (lambda: sparse.rowwise_adagrad(0.1, max_norm=0.0), "rowwise_adagrad: max_norm must be > 0 or None, got 0.0"),
        (lambda: sparse.ftrl(0.1, beta=-1.0), "ftrl: beta must be >= 0, got -1.0"),
        (lambda: sparse.lamb_rows(0.1, b2=1.0), r"lamb_rows: b2 must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_arguments(call: Any, line: str) -> None:
    with pytest.raises(ValueError, match=line) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CASES_BY_NAME)
def test_the_docstring_names_arguments_errors_and_source(name: str) -> None:
    doc = getattr(sparse, name).__doc__ or ""
    for argument in inspect.signature(getattr(sparse, name)).parameters:
        assert re.search(rf"^    {argument}: .", doc, re.MULTILINE)
    assert "\n\nErrors:\n    TypeError: " in doc
    assert re.search(r"\nSource: .+, \d{4}, https://\S+$", doc)


def test_unknown_arguments() -> None:
    with pytest.raises(TypeError, match="adam: no argument betas; it is b1 and b2 here"):
        sparse.adam(0.1, betas=(0.9, 0.99))
