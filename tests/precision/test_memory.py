"""The report of an optimizer's memory is that of the arrays, and makes none."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

import adaptx
from adaptx import precision

PARAMS = {"w": jnp.ones((300, 10)), "b": jnp.ones(7, jnp.bfloat16)}
STATES = {
    "adam": adaptx.adam(0.1),
    "adafactor": adaptx.adafactor(0.1, min_dim_size_to_factor=8),
    "prodigy": adaptx.prodigy(),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), adaptx.adamw(0.1), precision.stochastic_rounding(0)),
    "optax": optax.adam(0.1, mu_dtype="bfloat16"),
    "injected": adaptx.hyperparams.inject_hyperparams(adaptx.adam)(0.1),
    "compressed": precision.compress_state(
        adaptx.adam(0.1), [precision.Store("nu", precision.codecs.positive8, min_size=100)]
    ),
    "none": optax.identity(),
}


@pytest.mark.parametrize("name", STATES)
def test_it_is_what_the_arrays_take(name: str) -> None:
    tx = STATES[name]
    report = precision.memory(tx, PARAMS)
    state = tx.init(PARAMS)
    assert report.total == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert report.parameters == 3007
    assert report.parameter_bytes == 4 * 3000 + 2 * 7
    assert report.per_parameter == report.total / 3007
    assert report == precision.memory(tx, jax.eval_shape(lambda: PARAMS)), "shapes are enough"


def test_by_field() -> None:
    report = precision.memory(STATES["chain"], PARAMS)
    assert report.fields == {"mu": 4 * 3007, "nu": 4 * 3007, "count": 4, "steps": 4}
    assert precision.memory(STATES["injected"], PARAMS).fields["mu"] == 4 * 3007


def test_by_leaf() -> None:
    report = precision.memory(STATES["compressed"], PARAMS)
    lines = [line.split() for line in report.by_leaf().splitlines()]
    assert ["nu", "['w']", "[300,", "10]", "positive8", "3,168", "B"] in lines
    assert ["nu", "['b']", "[7]", "float32", "28", "B"] in lines
    assert ["count", "[]", "int32", "4", "B"] in lines
    assert len(lines) == 5


def test_parameters_with_attributes_are_no_fields() -> None:
    class Model(NamedTuple):
        mu: jax.Array
        kernel: jax.Array

    report = precision.memory(adaptx.adam(0.1), Model(jnp.ones(2), jnp.ones(3)))
    assert report.fields == {"mu": 20, "nu": 20, "count": 4}
    assert [leaf.path for leaf in report.leaves] == ["", ".mu", ".kernel", ".mu", ".kernel"]


def test_nothing_is_allocated() -> None:
    """10^12 parameters."""
    report = precision.memory(adaptx.adam(0.1), jax.ShapeDtypeStruct((10**6, 10**6), jnp.float32))
    assert report.total == 8 * 10**12 + 4


def test_the_table() -> None:
    lines = str(precision.memory(STATES["adam"], PARAMS)).splitlines()
    assert [line.split()[0] for line in lines] == ["mu", "nu", "count", "state", "parameters"]
    assert lines[0].split() == ["mu", "12,028", "B", "4.0000", "B/param"]
    assert len({len(line) for line in lines}) == 1
    assert str(precision.memory(optax.identity(), {})).splitlines()[-1].split()[:2] == ["parameters", "0"]
