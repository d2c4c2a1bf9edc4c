"""Moments: bias correction, decays with their complements, roots and quotients at zero, sums over a tree."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import adaptx
from adaptx.core.moments import (
    Clock,
    Decay,
    abs_sq,
    debias,
    divide,
    ema,
    heavy_ball,
    norm,
    safe_div,
    safe_sqrt,
    sum_sq,
    tree_sum,
)
from tests.conftest import x64

few = settings(deadline=None, max_examples=50)
EXTENDED = np.longdouble

# Law E6. Counts that float32 holds, to 1e6 and to 3e7; beyond 2^24 those are the even ones.
COUNTS = np.unique(np.concatenate([np.arange(1, 100), np.geomspace(100, 3e7, 300).astype(np.int64) // 2 * 2]))
RATES = (0.0, 0.5, 0.9, 0.95, 0.99, 0.999, 0.9999, 0.99999, 1 - 1e-6, 1 - 1e-7)


def ulps(ours: Any, truth: Any, dtype: Any = np.float32) -> float:
    spacing = np.spacing(np.abs(truth).astype(dtype)).astype(EXTENDED)
    return float(np.max(np.abs(np.asarray(ours).astype(EXTENDED) - truth) / spacing))


def exact_bias(b: float) -> Any:
    b_exact = EXTENDED(b)
    return -np.expm1(COUNTS * np.log1p(b_exact - 1)) if b else np.ones(len(COUNTS), EXTENDED)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", ["closed over", "traced"])
def test_bias_correction_is_exact_to_8_ulp(form: str, dtype: str) -> None:
    """1 - b^t, for every b and t: as a Python float, and with both halves of the Decay traced in that dtype."""
    with x64(dtype == "float64"):
        t = jnp.asarray(COUNTS, jnp.int32).astype(dtype)
        halves = [(jnp.asarray(b, dtype), jnp.asarray(1 - b, dtype)) for b in RATES]
        if form == "closed over":
            results = jax.jit(lambda t: [Decay.of(b).bias(t) for b in RATES])(t)
        else:
            results = jax.jit(lambda t, halves: [Decay(*half).bias(t) for half in halves])(t, halves)
    for b, bias in zip(RATES, results, strict=True):
        assert bias.dtype == dtype
        truth = exact_bias(b)
        # The product t log b is rounded once before expm1, and a traced complement once more; both cost at most their
        # own relative error. XLA's float32 expm1 and log1p make up the rest.
        assert ulps(bias, truth, dtype) <= 8, f"b = {b}"


def test_bias_correction_is_finite_at_the_largest_count() -> None:
    t = jnp.asarray(2**31 - 1, jnp.int32).astype(jnp.float32)
    assert float(Decay.of(0.9999999).bias(t)) == 1.0
    assert float(Decay.of(0.0).bias(t)) == 1.0


@pytest.mark.parametrize("t", [1, 2, 5])
@pytest.mark.parametrize("b", [0.0, 0.5, 0.999])
def test_bias_correction_has_the_right_tangent(b: float, t: int) -> None:
    """d(1 - b^t)/db = -t b^(t-1), also at b = 0, in both modes."""
    with x64():
        bias = lambda b: Decay.of(b).bias(jnp.asarray(t, float))
        for derivative in (jax.grad(bias), jax.jacfwd(bias)):
            np.testing.assert_allclose(derivative(jnp.asarray(b)), -t * b ** (t - 1), rtol=1e-12)


def test_decay_of_a_float_has_both_halves_in_double_precision() -> None:
    assert Decay.of(0.999) == Decay(0.999, 1 - 0.999)
    assert Decay.of(0) == Decay(0.0, 1.0)


def test_decay_passes_a_decay_and_splits_an_array() -> None:
    b = Decay.of(0.9)
    assert Decay.of(b) is b
    split = Decay.of(jnp.float32(0.75))
    assert (float(split.value), float(split.complement)) == (0.75, 0.25)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_decay_refuses_16_bits(dtype: str) -> None:
    with pytest.raises(ValueError, match="inject_hyperparams"):
        Decay.of(jnp.asarray(0.999, dtype))


def test_one_minus_a_decay_is_its_complement() -> None:
    b = Decay.of(0.9999)
    assert 1 - b == Decay(b.complement, b.value)
    assert 1 - (1 - b) == b
    with pytest.raises(TypeError):
        2 - b


def test_decay_crosses_jit_as_two_leaves() -> None:
    b = Decay(jnp.float32(0.9), jnp.float32(0.1))
    assert len(jax.tree.leaves(b)) == 2
    swapped = jax.jit(lambda b: 1 - b)(b)
    assert isinstance(swapped, Decay)
    assert float(swapped.value) == float(b.complement)


@pytest.mark.parametrize(("dtype", "promotion"), [("float32", "strict"), ("complex64", "standard")])
def test_a_decay_times_an_array_keeps_its_dtype(dtype: str, promotion: str) -> None:
    m = jnp.ones(2, dtype)
    for b in (Decay.of(0.5), Decay.of(jnp.float32(0.5))):
        with jax.numpy_dtype_promotion(promotion):
            product = b * m
        assert product.dtype == m.dtype
        assert jnp.all(product == 0.5 * m)


def test_ema_and_debias() -> None:
    b, m = Decay.of(0.9), jnp.zeros(2)
    g = jnp.array([3.0, -5.0])
    assert jnp.all(ema(m, g, Decay.of(0.0)) == g)
    for t in range(1, 6):
        m = ema(m, g, b)
        np.testing.assert_allclose(m, (1 - 0.9**t) * g, rtol=1e-6)
        np.testing.assert_allclose(debias(m, b, Clock(t=jnp.float32(t))), g, rtol=1e-6)


def test_a_bias_that_the_rule_lists_is_taken_not_computed() -> None:
    b = Decay.of(0.9)
    assert Clock(t=jnp.float32(3), biases={id(b): "listed"}).bias(b) == "listed"
    other = Decay.of(0.9)  # equal but not the same: two arguments may have one value
    assert float(Clock(t=jnp.float32(1), biases={id(b): "listed"}).bias(other)) == pytest.approx(0.1)


@pytest.mark.parametrize("nesterov", [False, True])
def test_heavy_ball(nesterov: bool) -> None:
    us = np.array([1.0, -2.0, 0.5])
    buffer, expected = jnp.zeros([]), 0.0
    for u in us:
        expected = 0.5 * expected + u
        direction, buffer = heavy_ball(buffer, jnp.float32(u), Decay.of(0.5), nesterov)
        assert float(buffer) == expected
        assert float(direction) == (u + 0.5 * expected if nesterov else expected)


def test_abs_sq_is_real_and_shared_by_both_parts() -> None:
    assert float(abs_sq(jnp.float32(-3))) == 9
    square = abs_sq(jnp.complex64(3 - 4j))
    assert square.dtype == jnp.float32
    assert float(square) == 25


@pytest.mark.parametrize("differentiate", [jax.grad, jax.jacfwd], ids=["reverse", "forward"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
class TestAtZero:
    """Values and derivatives where the plain expressions give Inf or NaN."""

    def test_safe_sqrt(self, dtype: str, differentiate: Any) -> None:
        x = jnp.zeros([], dtype)
        assert float(safe_sqrt(x)) == 0
        assert float(differentiate(safe_sqrt)(x)) == 0
        assert float(differentiate(safe_sqrt)(jnp.asarray(4.0, dtype))) == 0.25

    def test_safe_div(self, dtype: str, differentiate: Any) -> None:
        zero, two = jnp.zeros([], dtype), jnp.asarray(2.0, dtype)
        assert float(safe_div(zero, zero)) == 0
        assert float(safe_div(two, zero)) == 0
        slopes = lambda n, d: [float(slope) for slope in differentiate(safe_div, argnums=(0, 1))(n, d)]
        assert slopes(zero, zero) == [0, 0]
        assert slopes(two, zero) == [0, 0]
        assert slopes(two, two) == [0.5, -0.5]

    def test_a_normalised_direction(self, dtype: str, differentiate: Any) -> None:
        """g / sqrt(g^2) at g = 0: 0, with a finite derivative, through every form of eps."""
        zero = jnp.zeros([], dtype)
        for eps in (0.0, 1e-8, jnp.zeros([], dtype)):
            u = lambda g, eps=eps: divide(g, safe_sqrt(abs_sq(g)), eps)
            assert float(u(zero)) == 0
            assert np.isfinite(float(differentiate(u)(zero)))


def test_safe_div_is_division_elsewhere_and_hides_nothing() -> None:
    n, d = jnp.array([1.0, -3.0, jnp.nan, 1.0, jnp.inf]), jnp.array([3.0, 7.0, 1.0, jnp.nan, 2.0])
    np.testing.assert_array_equal(safe_div(n, d), n / d)
    np.testing.assert_allclose(safe_div(jnp.complex64(1 + 2j), jnp.float32(2)), 0.5 + 1j)
    assert complex(safe_div(jnp.complex64(1 + 2j), jnp.float32(0))) == 0


@pytest.mark.parametrize("eps", [0.0, 1e-8, 1e-3])
def test_divide_is_the_same_whether_eps_is_a_number_or_an_array(eps: float) -> None:
    n, root = jnp.array([0.0, 1.0, -2.0]), jnp.array([0.0, 3.0, 0.5])
    expected = np.array([0.0, 1 / (3 + eps), -2 / (0.5 + eps)])
    for form in (eps, jnp.float32(eps)):
        np.testing.assert_allclose(divide(n, root, form), expected, rtol=1e-6)


def test_norm() -> None:
    assert float(norm(jnp.zeros((3, 0)))) == 0
    assert float(norm(jnp.array([[3.0, 0.0], [0.0, 4.0]]))) == 5
    assert float(norm(jnp.array([3 + 4j]))) == 5
    assert jnp.all(jax.grad(norm)(jnp.zeros(2)) == 0)


@few
@given(st.lists(st.floats(-(2.0**90), 2.0**90, width=32), min_size=1, max_size=8), st.randoms())
def test_tree_sum_does_not_depend_on_the_order(parts: list[float], random: Any) -> None:
    shuffled = random.sample(parts, len(parts))
    total = lambda parts: np.asarray(tree_sum([jnp.float32(p) for p in parts], jnp.float32))
    np.testing.assert_array_equal(total(parts), total(shuffled))


def test_tree_sum_has_derivatives_and_batches() -> None:
    total = lambda x: tree_sum(list(x), jnp.float32, np.float32([9, 9, 4])) ** 2
    x = jnp.array([3.0, -1.0, 5.0])  # the last is cut
    np.testing.assert_allclose(jax.grad(total)(x), [12, 12, 0])
    np.testing.assert_allclose(jax.jvp(total, (x,), (jnp.ones(3),))[1], 24)
    np.testing.assert_allclose(jax.hessian(total)(x), [[2, 2, 0], [2, 2, 0], [0, 0, 0]])
    np.testing.assert_allclose(jax.vmap(total)(jnp.stack([x, x + 1])), [36, 64])


def test_tree_sum_of_nan() -> None:
    total = tree_sum([jnp.float32(1), jnp.float32(jnp.nan)], jnp.float32)
    assert np.isnan(float(total))


def test_tree_sum_widens() -> None:
    with x64():
        assert tree_sum([jnp.float32(1), jnp.float64(2)], jnp.float64).dtype == jnp.float64


def test_a_sum_of_squares_clamps_each_entry_and_shows_an_inf() -> None:
    huge = jnp.zeros(1000).at[0].set(1e20)
    assert float(sum_sq(huge)) == pytest.approx(1e24)
    for bad in (jnp.inf, -jnp.inf, jnp.nan):
        assert jnp.isnan(sum_sq(huge.at[1].set(bad)))


@pytest.mark.parametrize("per", ["tensor", "tree"])
@pytest.mark.parametrize("size", [1e12, 1e13, 1e20, 3e38])
def test_one_huge_entry_among_zeros_takes_the_usual_step(per: str, size: float) -> None:
    tx, g = adaptx.adagrad_norm(1.0, per=per), jnp.zeros(1000).at[0].set(size)
    np.testing.assert_allclose(tx.update(g, tx.init(g))[0][0], -1, rtol=1e-6)
