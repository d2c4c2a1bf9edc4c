"""Rounding: the join of dtypes, the clamp on the way in, the one cast on the way out."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from adaptx.core.rounding import bounded, noise, raised, real, rounded, salted, stochastic, wider
from tests.conftest import x64

few = settings(deadline=None, max_examples=50)
FLOATS = ("float16", "bfloat16", "float32", "float64")
COMPLEX = ("complex64", "complex128")


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize(("a", "b"), [*itertools.product(FLOATS + COMPLEX, repeat=2)])
def test_wider_holds_both(a: str, b: str) -> None:
    """Also under strict promotion, whether 64 bits are on or not, and in either order."""
    joined = wider(jnp.dtype(a), jnp.dtype(b))
    assert joined == wider(jnp.dtype(b), jnp.dtype(a))
    for one in (a, b):
        ours, theirs = jnp.finfo(joined), jnp.finfo(one)
        assert ours.max >= theirs.max
        assert ours.eps <= theirs.eps
        assert ours.tiny <= theirs.tiny
    assert jnp.issubdtype(joined, jnp.complexfloating) == (a in COMPLEX or b in COMPLEX)
    # No wider than it must be: one of the two, except where neither holds the other.
    assert joined in (a, b) or {a, b} == {"float16", "bfloat16"} or {"complex64", "float64"} == {a, b}


@pytest.mark.parametrize("dtype", FLOATS + COMPLEX)
def test_real(dtype: str) -> None:
    assert real(dtype) == {"complex64": "float32", "complex128": "float64"}.get(dtype, dtype)


def test_raised_leaves_counts_and_keys_alone() -> None:
    assert raised(jnp.ones(2, jnp.bfloat16), jnp.float32).dtype == jnp.float32
    assert raised(jnp.ones(2, jnp.float32), jnp.complex64).dtype == jnp.float32
    assert raised(jnp.ones(2, jnp.complex64), jnp.complex64).dtype == jnp.complex64
    for other in (jnp.ones(2, jnp.int32), jax.random.key(0)):
        assert raised(other, jnp.float32) is other


LIMITS = {"float32": 1e12, "float64": 1e150}


@pytest.mark.parametrize("dtype", LIMITS)
def test_bounded_clamps_the_size(dtype: str) -> None:
    limit = LIMITS[dtype]
    with x64(dtype == "float64"):
        largest = float(jnp.finfo(dtype).max)
        g = jnp.asarray([0.0, -0.0, 1.0, -limit, 2 * limit, -largest, jnp.nan], dtype)
        clamped = np.asarray(bounded(g), float)
    np.testing.assert_array_equal(clamped[:3], [0, 0, 1])
    np.testing.assert_allclose(clamped[3:6], [-limit, limit, -limit], rtol=1e-7)
    assert np.isnan(clamped[6])
    assert np.isfinite(np.sum(np.square(clamped[:6], dtype=dtype), dtype=dtype) * 1e6)


@few
@given(st.floats(-(2.0**39), 2.0**39, width=32, allow_subnormal=False))  # XLA flushes those on a CPU
def test_bounded_changes_no_ordinary_number(g: float) -> None:
    assert float(bounded(jnp.float32(g))) == g
    assert float(jax.grad(bounded)(jnp.float32(g))) == 1


@few
@given(st.floats(13, 30), st.floats(-np.pi, np.pi))
def test_bounded_keeps_the_phase(magnitude: float, phase: float) -> None:
    g = 10**magnitude * np.exp(1j * phase)
    clamped = complex(bounded(jnp.complex64(g)))
    assert abs(clamped) == pytest.approx(1e12, rel=1e-6)
    assert abs(clamped / abs(clamped) - g / abs(g)) < 1e-6


def test_bounded_passes_small_complex_numbers_and_nan() -> None:
    assert complex(bounded(jnp.complex64(3 - 4j))) == 3 - 4j
    assert np.isnan(complex(bounded(jnp.complex64(complex(np.nan, 1)))))


@few
@given(st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False))
def test_rounded_rounds_once_and_saturates(u: float) -> None:
    """To the nearest, as NumPy does; what the narrow dtype cannot hold becomes its largest number."""
    for dtype in (jnp.float16, jnp.bfloat16):
        with np.errstate(over="ignore"):
            nearest = float(np.float32(u).astype(dtype))
        largest = float(jnp.finfo(dtype).max)
        assert float(rounded(jnp.float32(u), dtype)) == (nearest if np.isfinite(nearest) else np.copysign(largest, u))


@pytest.mark.parametrize("dtype", FLOATS)
def test_rounded_hides_nothing(dtype: str) -> None:
    with x64():
        u = jnp.asarray([jnp.inf, -jnp.inf, jnp.nan])
        np.testing.assert_array_equal(np.asarray(rounded(u, dtype), float), [np.inf, -np.inf, np.nan])
        assert rounded(u, dtype).dtype == dtype


def test_rounded_takes_complex_numbers() -> None:
    with x64():
        assert rounded(jnp.asarray([1e300 + 1j]), jnp.complex128)[0] == 1e300 + 1j
        assert rounded(jnp.asarray([2 + 1j]), jnp.complex64).dtype == jnp.complex64


DRAWS = 100_000  # a share of so many has a standard deviation of at most 0.0016


def drawn(x: jax.Array, dtype: str, seed: int) -> np.ndarray:
    """x rounded in so many steps."""
    rounds = lambda count: stochastic(x, dtype, noise(x.shape, salted(seed, count, "['w']")))
    many = jax.jit(jax.vmap(rounds))(jnp.arange(DRAWS))
    assert many.dtype == dtype
    return np.asarray(many, float)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("at", [1.0, 2.0**-20])  # float16 is evenly spaced below 2^-14
def test_up_or_down_with_the_right_mean(dtype: str, at: float) -> None:
    """k eighths of the way to the next number: only its two neighbours, the upper one in k of 8 cases."""
    step = float(jnp.finfo(dtype).smallest_subnormal) if (dtype, at) == ("float16", 2.0**-20) else None
    step = step or at * float(jnp.finfo(dtype).eps)
    found = drawn(jnp.float32(at) + jnp.float32(step) * jnp.arange(9) / 8, dtype, 0)
    assert set(np.unique(found)) == {at, at + step}
    upper = (found > at).mean(0)
    np.testing.assert_allclose(upper, np.arange(9) / 8, atol=0.008)
    assert upper[0] == 0, "numbers of the dtype stay"
    assert upper[8] == 1, "numbers of the dtype stay"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_signs_ends_and_what_is_not_finite(dtype: str) -> None:
    eps, top, tiny = (float(getattr(jnp.finfo(dtype), f)) for f in ("eps", "max", "tiny"))
    x = jnp.array([-1 - eps / 4, 0.0, -0.0, tiny / 1000, top * 1.001, -top * 1.001, jnp.inf, -jnp.inf, jnp.nan])
    found = drawn(x, dtype, 1)
    assert set(np.unique(found[:, 0])) == {-1 - eps, -1.0}
    assert not found[:, 1:3].any()
    assert (found[:, 3] >= 0).all()
    assert found[:, 3].max() < tiny / 100
    np.testing.assert_array_equal(found[:, 4:6], np.broadcast_to([top, -top], (DRAWS, 2)))
    np.testing.assert_array_equal(found[:, 6:8], np.broadcast_to([np.inf, -np.inf], (DRAWS, 2)))
    assert np.isnan(found[:, 8]).all()


def test_noise_is_uniform_and_its_own_for_each_seed_step_leaf_and_position() -> None:
    salts = [salted(seed, jnp.int32(count), path) for seed in (0, 1) for count in (0, 1, 30_000_000) for path in "ab"]
    bits = np.stack([np.asarray(noise((300, 7), salt)) for salt in salts]).reshape(len(salts), -1)
    assert bits.dtype == np.uint32
    unit = bits / 2.0**32
    assert abs(unit.mean() - 0.5) < 5 / np.sqrt(12 * unit.size)
    each = [((bits >> k) & 1).mean() for k in range(32)]
    np.testing.assert_allclose(each, 0.5, atol=2.5 / np.sqrt(bits.size), err_msg="each bit is fair")
    together = np.corrcoef(np.concatenate([unit, np.roll(unit, 1, 1)]))
    assert np.abs(together - np.eye(2 * len(salts))).max() < 5 / np.sqrt(unit.shape[1])
    flat = np.asarray(noise((2100,), salts[0]))
    np.testing.assert_array_equal(bits[0], flat, err_msg="the position counts, not the shape")


def test_noise_is_the_same_however_the_array_is_sharded() -> None:
    mesh = jax.make_mesh((2, 4), ("a", "b"))
    whole = np.asarray(noise((16, 32), jnp.uint32(7)))
    for spec in [("a", "b"), ("b", None), (None, ("a", "b"))]:
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        split = jax.jit(lambda: noise((16, 32), jnp.uint32(7)), out_shardings=sharding)()
        np.testing.assert_array_equal(np.asarray(split), whole)
