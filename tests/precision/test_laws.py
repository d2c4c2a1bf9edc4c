"""The laws that compressed state must keep, for every optimizer: C1, E1, E2, E3 and G1 as they stand, C4 and H1 to what
a codec keeps of a number."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tests.conformance.laws  # noqa: F401  (registers the laws)
from adaptx.hyperparams import inject_hyperparams
from adaptx.precision import Store, codecs, compress_state
from adaptx.precision.compress import NAMED, Stored
from tests.conformance.cases import CASES, Case, grads_like, one_of_a_family, params_like
from tests.conformance.compare import wide
from tests.conformance.law import LAWS
from tests.conformance.program import RECORDED, run

EXACTLY = ("C1", "E1", "E2", "E3", "G1")
# What is left of a number of a block whose entries are a third of the largest or more, in part of it: half a code of
# the 127 of a root for first moments, and of the 255 of a fourth root for second ones, of which a root is taken.
KEPT = 0.03
_DECAY = "its momentum holds the decay, and what is kept of that is no longer one and the same part of each parameter"
_DIFFERENCE = "a centred second moment is what is left of a difference, in which what the codec keeps is too little"
_FEEDS = "it averages its own steps, so an error of one is part of the next"
_STOPS = "its momentum comes nearer by a tenth at a time, and stops where that rounds to nothing: ten half codes away"
_STEPS = "its second moment moves by steps of one size, which do not pull back what is rounded off"
LEDGER: dict[tuple[str, str], str] = {
    ("E1", "lars-2"): _DECAY,
    ("E1", "novograd-2"): _DECAY,
    ("C4", "rmsprop-1"): _DIFFERENCE,
    ("C4", "rmsprop-3"): _DIFFERENCE,
    ("C4", "adadelta-0"): _FEEDS,
    ("C4", "adadelta-1"): _FEEDS,
    ("C4", "sm3-0"): _STOPS,
    ("C4", "yogi-1"): _STEPS,
}


def compressed(case: Case, stores: Any = NAMED["8bit"]) -> Case:
    """The case with its moments in 8 bits, however small a leaf is, in blocks of 4."""
    kept = case.tx().init(params_like())._asdict()
    stores = [store._replace(min_size=1) for store in stores if jax.tree.leaves(kept.get(store.field))]

    @functools.wraps(case.factory)
    def factory(*args: Any, **kwargs: Any) -> Any:
        return compress_state(case.factory(*args, **kwargs), stores, block=4)

    return dataclasses.replace(case, factory=factory)


def is_compressed(case: Case) -> bool:
    leaves = jax.tree.leaves(case.tx().init(params_like()), is_leaf=lambda x: isinstance(x, Stored))
    return any(isinstance(leaf, Stored) for leaf in leaves)


# Where no field of a case is one that "8bit" knows, its state is as it was, and so are its laws.
COMPRESSED = [case for case in map(compressed, CASES) if is_compressed(case)]
# In `make test` the fullest case of one optimizer of each family.
ONE_OF_A_FAMILY = one_of_a_family(COMPRESSED)


def low_precision_tracks_float32(case: Case) -> None:
    """After 3,000 equal gradients the update is that of float32 state, to what the codec keeps; in 16 bits too."""
    constant = lambda tree: jax.tree.map(lambda a: jnp.stack([a[0]] * RECORDED), tree)
    params, grads = params_like(), constant(grads_like(1))
    plain = next(other for other in CASES if other.id == case.id)
    expected = run(plain, params, grads, 3000, held=True)
    for dtype in ("float32", "bfloat16"):
        cast = functools.partial(jax.tree.map, lambda a, dtype=dtype: a.astype(dtype))
        got = run(case, cast(params), cast(grads), 3000, held=True)
        pairs = zip(jax.tree.leaves(got.updates), jax.tree.leaves(expected.updates), strict=True)
        for a, b in pairs:
            a, b = wide(a), wide(b)
            off = np.max(np.abs(a - b)) / np.max(np.abs(b))
            assert off <= KEPT + float(jnp.finfo(dtype).eps), f"{case.id} {dtype}: off by {off:.3f}"


def injected_is_closed_over(case: Case) -> None:
    """After 100 steps injected numbers and closed-over ones give the same parameters, but for codes at a boundary."""
    injected = dataclasses.replace(case, factory=inject_hyperparams(case.factory))
    params, grads = params_like(), grads_like(RECORDED)
    expected, got = run(case, params, grads, 100), run(injected, params, grads, 100)
    for a, b, x in zip(*map(jax.tree.leaves, (got.params, expected.params, params)), strict=True):
        off, way = np.max(np.abs(wide(a) - wide(b))), np.max(np.abs(wide(b) - wide(x)))
        assert off <= 0.01 * way + 1e-6 * np.max(np.abs(wide(x))), f"{case.id}: off by {off / way:.2e} of the way"


OWN = {"C4": low_precision_tracks_float32, "H1": injected_is_closed_over}


def check(id: str, case: Case) -> None:
    (OWN[id] if id in OWN else LAWS[id].check)(case)


@pytest.mark.suite
@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=c.id, marks=() if c in ONE_OF_A_FAMILY else pytest.mark.slow) for c in COMPRESSED],
)
def test_laws(case: Case) -> None:
    """In one test, because they share their compiled programs."""
    for id in (*EXACTLY, *OWN):
        if (id, case.id) in LEDGER:
            with pytest.raises(AssertionError):
                check(id, case)
        else:
            check(id, case)


def test_the_ledger_is_of_cases() -> None:
    assert {id for _, id in LEDGER} <= {case.id for case in COMPRESSED}


def _coarse(x: jax.Array) -> Any:
    """Seven codes for a second moment, of which 0 is one."""
    scale = jnp.max(x, -1, keepdims=True)
    return jnp.round(7 * x / scale).astype(jnp.uint8), scale


DEFECTS = {
    "E1": codecs.Codec("divides by 0", lambda x: x / jnp.max(jnp.abs(x), -1, keepdims=True), lambda x: x),
    "E2": codecs.Codec("overflows", lambda x: x.astype(jnp.float16), lambda x: x.astype(jnp.float32)),
    "E3": codecs.Codec("overflows", lambda x: x.astype(jnp.float16), lambda x: x.astype(jnp.float32)),
    "C4": codecs.Codec("coarse", _coarse, lambda parts: parts[0].astype(jnp.float32) * parts[1] / 7),
}


@pytest.mark.parametrize("id", DEFECTS)
def test_law_catches(id: str) -> None:
    adam = next(case for case in CASES if case.id == "adam-0")
    with pytest.raises(AssertionError):
        check(id, compressed(adam, [Store("nu", DEFECTS[id])]))
