"""Codecs: how state is stored in 16, 8 or 4 bits a number. They know blocks of numbers, and nothing of trees."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from adaptx.core.rounding import stochastic

# What a code that stands for something is at least: smaller products are flushed to 0, and a second moment of 0 under a
# first one that is not gives a step of m / eps.
LEAST = float(jnp.finfo(jnp.float32).tiny)


@dataclasses.dataclass(frozen=True)
class Codec:
    """Two functions on float32 arrays whose last axis is a block, whatever axes come before it.

    encode(x) gives an array, or a tree of them, with the same axes before the last; decode undoes it. A block must not
    depend on another, so that blocks may lie on different devices. If `noisy`, it is encode(x, bits), with 32 random
    bits for each number, others in each step.
    """

    name: str
    encode: Callable[..., Any] = dataclasses.field(repr=False)
    decode: Callable[[Any], Array] = dataclasses.field(repr=False)
    noisy: bool = False


def _sixteen(name: str, dtype: Any) -> Codec:
    # Stored as integers: where XLA on CPU writes a part of a bfloat16 array, it widens it whole.
    bits = lambda x: jax.lax.bitcast_convert_type(x.astype(dtype), jnp.uint16)
    return Codec(name, bits, lambda b: jax.lax.bitcast_convert_type(b, dtype).astype(jnp.float32))


bfloat16: Codec = _sixteen("bfloat16", jnp.bfloat16)
float16: Codec = _sixteen("float16", jnp.float16)
# Averages that move by less than a half of the last place move in the mean.
bfloat16_stochastic: Codec = Codec(
    "bfloat16_stochastic", lambda x, bits: bfloat16.encode(stochastic(x, jnp.bfloat16, bits)), bfloat16.decode, True
)


def _scaled(
    name: str, most: int, dtype: Any, signed: bool, compand: Callable[[Array], Array], expand: Callable[[Array], Array]
) -> Codec:
    """compand(|x| / scale) rounded to codes 0 to `most`, with a float32 scale a block, its largest |x|.

    If not signed, it is a second moment: code 0 is for an exact 0 only. A first moment may become 0: were it raised to
    code 1, a small one over the root of a small second moment would be a large step. With a NaN or Inf the scale is
    Inf, and the whole block Inf or NaN. Below 8 bits two codes share a byte.
    """

    def encode(x: Array) -> tuple[Array, Array]:
        size = jnp.abs(x)
        # Of a large array the CPU's maximum does not see NaN (jax 0.10, 0.12), so it is shown an Inf.
        scale = jnp.max(jnp.where(size == size, size, jnp.inf), axis=-1, keepdims=True)
        share = size / jnp.where(scale == 0, 1, scale)
        code = jnp.round(most * compand(share))
        code = (jnp.where(x < 0, -code, code) if signed else jnp.where(size == 0, 0, jnp.maximum(code, 1))).astype(
            jnp.int8 if signed else jnp.uint8
        )
        return (_packed(code, signed) if most < 16 else code), scale

    def decode(stored: tuple[Array, Array]) -> Array:
        code, scale = stored
        code = _unpacked(code, signed) if most < 16 else code
        size = jnp.abs(code.astype(jnp.float32))
        value = jnp.where(size == 0, 0 * scale, jnp.maximum(expand(size / most) * scale, LEAST))
        return jnp.where(code < 0, -value, value) if signed else value

    return Codec(name, encode, decode)


def _packed(code: Array, signed: bool) -> Array:
    """The first half of each block in the lower four bits, the second in the upper: no strides. Signed: 8 for 0."""
    halves = (code + 8 if signed else code).astype(jnp.uint8).reshape(*code.shape[:-1], 2, -1)
    # As a sum: of two slices that are joined by `|` XLA on CPU would compute the codes in one thread.
    return jnp.sum(halves << _shifts(halves.shape), axis=-2, dtype=jnp.uint8)


def _unpacked(packed: Array, signed: bool) -> Array:
    shape = (*packed.shape[:-1], 2, packed.shape[-1])
    halves = (jnp.broadcast_to(packed[..., None, :], shape) >> _shifts(shape)) & 15
    code = halves.reshape(*packed.shape[:-1], -1).astype(jnp.int8)
    return code - 8 if signed else code


def _shifts(shape: tuple[int, ...]) -> Array:
    """By how many bits the two halves of each block are shifted."""
    return 4 * jax.lax.broadcasted_iota(jnp.uint8, shape, len(shape) - 2)


# First moments are spread over fewer powers of two than second ones, and signed.
signed8: Codec = _scaled("signed8", 127, jnp.int8, True, jnp.sqrt, jnp.square)
positive8: Codec = _scaled("positive8", 255, jnp.uint8, False, lambda y: jnp.sqrt(jnp.sqrt(y)), lambda z: (z * z) ** 2)
signed4: Codec = _scaled("signed4", 7, jnp.int8, True, lambda y: 1.5 * y / (y + 0.5), lambda z: 0.5 * z / (1.5 - z))
positive4: Codec = _scaled("positive4", 15, jnp.uint8, False, lambda y: jnp.sqrt(jnp.sqrt(y)), lambda z: (z * z) ** 2)
