"""Codecs: what a round trip costs, what stays exactly, and what never becomes zero."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptx.core.rounding import noise
from adaptx.precision import codecs
from adaptx.precision.codecs import Codec

WIDTH = 128
SIGNED = {c.name: c for c in (codecs.bfloat16, codecs.float16, codecs.signed8, codecs.signed4)}
POSITIVE = {c.name: c for c in (codecs.bfloat16, codecs.positive8, codecs.positive4)}
SCALED = {c.name: c for c in (codecs.signed8, codecs.positive8, codecs.signed4, codecs.positive4)}
# Bytes of 128 numbers: codes, and a scale of four bytes.
BYTES = {"bfloat16": 256, "float16": 256, "signed8": 132, "positive8": 132, "signed4": 68, "positive4": 68}


def round_trip(codec: Codec, x: Any) -> np.ndarray:
    return np.asarray(codec.decode(codec.encode(jnp.asarray(x, jnp.float32))))


def drawn(kind: str, signed: bool) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = {
        "normal": lambda: rng.normal(size=(200, WIDTH)),
        "heavy-tailed": lambda: rng.standard_t(2, size=(200, WIDTH)),
        "constant": lambda: np.full((3, WIDTH), 0.3),
        "huge": lambda: 1e30 * rng.normal(size=(200, WIDTH)),
        "tiny": lambda: 1e-30 * rng.normal(size=(200, WIDTH)),
    }[kind]()
    return np.asarray(x if signed else x**2 if kind in ("normal", "heavy-tailed") else np.abs(x), np.float32)


# Relative to the block's largest: the mean error of what is drawn, and the largest of any, half a step at the top.
BOUNDS = {
    "bfloat16": (6e-4, 2.0**-8),
    "float16": (8e-5, 2.0**-11),
    "signed8": (2.2e-3, 1 / 127),
    "positive8": (1.5e-3, 2 / 255),
    "signed4": (5e-2, 3 / 14),
    "positive4": (3e-2, 2 / 15),
}


KINDS = ("normal", "heavy-tailed", "constant", "huge", "tiny")
DRAWN = [(c, kind, signed) for signed, of in ((True, SIGNED), (False, POSITIVE)) for c in of.values() for kind in KINDS]


@pytest.mark.parametrize(
    # float16 has no numbers of 1e30 and 1e-30.
    ("codec", "kind", "signed"),
    [row for row in DRAWN if row[0] is not codecs.float16 or row[1] not in ("huge", "tiny")],
)
def test_errors_of_a_round_trip(codec: Codec, kind: str, signed: bool) -> None:
    x = drawn(kind, signed)
    error = np.abs(round_trip(codec, x).astype(float) - x) / np.abs(x).max(1, keepdims=True)
    mean, largest = BOUNDS[codec.name]
    assert error.mean() <= (largest if kind == "constant" else mean)
    assert error.max() <= largest * (1 + 1e-5)


@pytest.mark.parametrize("codec", SCALED.values(), ids=SCALED)
def test_the_code_is_the_nearest(codec: Codec) -> None:
    """Of all that the codec can say: nearest where it rounds, in companded numbers."""
    rng = np.random.default_rng(1)
    x = np.asarray(rng.uniform(0, 1, (50, WIDTH)), np.float32)
    x[:, 0] = 1
    signed = codec.name.startswith("signed")
    most = {"signed8": 127, "positive8": 255, "signed4": 7, "positive4": 15}[codec.name]
    compand = {
        "signed8": np.sqrt,
        "positive8": lambda y: y**0.25,
        "signed4": lambda y: 1.5 * y / (y + 0.5),
        "positive4": lambda y: y**0.25,
    }[codec.name]
    codes = np.arange(0 if signed else 1, most + 1) / most
    nearest = np.abs(compand(x.astype(float))[..., None] - codes).argmin(-1)
    found = compand(round_trip(codec, x).astype(float)) * most
    chosen = nearest if signed else nearest + 1
    # To float32, in which a number half way between two codes may go to either.
    assert np.abs(found - chosen).max() < 1.001
    assert np.mean(np.abs(found - chosen) < 1e-3) > 0.999


@pytest.mark.parametrize("codec", [*SIGNED.values(), *POSITIVE.values()], ids=[*SIGNED, *POSITIVE])
def test_zeros_stay_and_blocks_are_their_own(codec: Codec) -> None:
    x = np.abs(drawn("normal", True)[:4])
    x[1] = 0
    x[2, ::3] = 0
    got = round_trip(codec, x)
    assert not got[1].any()
    assert not got[2, ::3].any()
    for i in range(4):
        np.testing.assert_array_equal(got[i], round_trip(codec, x[i : i + 1])[0])


@pytest.mark.parametrize("codec", [codecs.positive8, codecs.positive4])
@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-20, 5e-29, 2e-29, 1e-32, 5e-34, 1e-36])
def test_a_second_moment_never_becomes_zero(codec: Codec, scale: float) -> None:
    """However much smaller than its block's largest it is; where that is tiny too, it becomes the least number."""
    x = np.full((1, WIDTH), scale, np.float32)
    x[0, 1:] = np.maximum(scale * 10.0 ** -np.linspace(1, 30, WIDTH - 1), 1.2e-38)
    least = np.finfo(np.float32).tiny  # less than that may count as 0 in the next operation
    assert np.all(round_trip(codec, x) >= least)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False), min_size=4, max_size=4))
def test_signs_and_the_largest_stay(values: list[float]) -> None:
    x = np.asarray([values], np.float32)
    for codec in (codecs.signed8, codecs.signed4):
        got = round_trip(codec, x)
        assert np.all((np.sign(got) == np.sign(x)) | (got == 0))
        at = np.abs(x).argmax()
        # Below 1e-37 what is decoded is the least number.
        np.testing.assert_allclose(got[0, at], x[0, at], rtol=1e-6, atol=2e-38)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("codec", [*SIGNED.values(), *POSITIVE.values()], ids=[*SIGNED, *POSITIVE])
def test_what_is_not_finite_shows_in_its_block_alone(codec: Codec, bad: float) -> None:
    for blocks in (3, 200):  # XLA on CPU reduces large arrays otherwise than small ones
        x = np.abs(drawn("normal", True)[:blocks])
        x[1, 5] = bad
        got = round_trip(codec, x)
        assert not np.isfinite(got[1, 5])
        assert np.isfinite(np.delete(got, 1, 0)).all()


@pytest.mark.parametrize("codec", [*SIGNED.values(), *POSITIVE.values()], ids=[*SIGNED, *POSITIVE])
def test_bytes(codec: Codec) -> None:
    stored = codec.encode(jnp.ones((10, WIDTH)))
    assert sum(part.nbytes for part in jax.tree.leaves(stored)) == 10 * BYTES[codec.name]
    assert all(part.shape[0] == 10 for part in jax.tree.leaves(stored))


def test_the_noisy_codec_rounds_to_a_neighbour_and_keeps_the_mean() -> None:
    codec, plain = codecs.bfloat16_stochastic, codecs.bfloat16
    assert codec.noisy
    assert not plain.noisy
    x = jnp.full((1000, 128), 1 + 0.3 * 2.0**-7)
    found = codec.decode(codec.encode(x, noise(x.shape, jnp.uint32(1))))
    assert set(np.unique(found)) == {1.0, 1 + 2.0**-7}
    # 128,000 draws, to five standard deviations.
    assert abs(np.mean(found == 1) - 0.7) < 5 * np.sqrt(0.21 / found.size)
    exact = plain.decode(plain.encode(x))
    np.testing.assert_array_equal(codec.decode(codec.encode(exact, noise(x.shape, jnp.uint32(2)))), exact)
