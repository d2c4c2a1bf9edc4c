"""The step in place: what update and apply_updates give, in almost no memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import adaptx
from adaptx import precision
from adaptx.hyperparams import inject_hyperparams
from adaptx.precision import Store, codecs, compress_state
from benchmarks.needs import STAND_INS
from tests.conformance.cases import CASES, PER_OPTIMIZER, Case
from tests.conftest import x64

NAMED = ("bfloat16", "bfloat16_stochastic", "8bit", "4bit")
named = pytest.mark.parametrize("rules", NAMED)
old_xla = pytest.mark.skipif(
    jax.__version_info__ < (0, 8), reason="the XLA of jax 0.7 keeps the chunks of several leaves: 1.1 bytes a parameter"
)
# Beside one of eight chunks and a rest that ends within a block: one of two, one too small for a loop, a number.
SHAPES = {"w": (1100, 250), "two": (80_000,), "small": (48, 100), "s": ()}


def tree(seed: int, dtype: Any = jnp.float32, shapes: Any = None) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in (shapes or SHAPES).items()}


def both(tx: Any, dtype: Any = jnp.float32, steps: int = 3, shapes: Any = None, needs: Any = ()) -> Any:
    """(params, state) after `step` and after `update` and `apply_updates`."""

    def ended(once: Any) -> Any:
        params = tree(0, dtype, shapes)
        state, step = tx.init(params), jax.jit(once, donate_argnums=(1, 2))
        for i in range(steps):
            grads = tree(i + 1, dtype, shapes)
            extra = {need: STAND_INS[need](grads, params) for need in needs if need != "params"}
            params, state = step(grads, params, state, **extra)
        return params, state

    def apart(grads: Any, params: Any, state: Any, **extra: Any) -> Any:
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return ended(functools.partial(precision.step, tx)), ended(apart)


def codes(a: Any, packed: bool) -> np.ndarray:
    """Codes as numbers that lie one apart where two codes do, those of 16 bits as the bfloat16 that they are."""
    a = np.asarray(a)
    if a.dtype == np.uint16:
        return (a.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return np.stack([a & 15, a >> 4]).astype(int) if packed and a.dtype == np.uint8 else a.astype(int)


def assert_same(walked: Any, apart: Any, packed: bool = False, share: float = 2e-3) -> None:
    """To rounding. Where that makes a code another one, for two numbers of a thousand (or `share`) at most, to two
    codes (they come from three steps), and to a tenth of a step of 0.01, or what else 16 bits can tell apart."""
    assert jax.tree.structure(walked) == jax.tree.structure(apart)
    for a, b in zip(jax.tree.leaves(walked), jax.tree.leaves(apart), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if jnp.issubdtype(a.dtype, jnp.integer):
            of_16_bits = a.dtype == jnp.uint16
            a, b = codes(a, packed), codes(b, packed)
            off = np.abs(a - b)
            # What cancels leaves the rounding of its terms, of float32 or (`far`) of an earlier code.
            near, far = (1e-7, 2**-6 * np.max(np.abs(b), initial=0.0)) if of_16_bits else (0, 2)
        else:
            unit = max(2e-6, float(jnp.finfo(a.dtype).eps) * (a.dtype.itemsize == 2))
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            off, near, far = np.abs(a - b), unit * (1e-3 + np.abs(b)), (1e-3 + unit) * (1 + np.abs(b))
        assert np.mean(off > near) <= share, f"{np.mean(off > near):.4f} of the numbers differ"
        assert np.all(off <= far), f"one is off by {off.max()}"


def loops(tx: Any, shapes: Any = None) -> int:
    """How many loops a step has."""
    params = tree(0, shapes=shapes)
    text = str(jax.make_jaxpr(functools.partial(precision.step, tx))(params, params, tx.init(params)))
    return text.count(" while[")


# Cases of which every number is for itself.
BY_ELEMENT = [case for case in CASES if set(case.entry.reduces) == {"element"}]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.id, marks=() if case in PER_OPTIMIZER and case.index else pytest.mark.slow)
        for case in BY_ELEMENT
    ],
)
def test_it_is_update_and_apply_updates(case: Case) -> None:
    """Of every optimizer that it walks, with everything stored in 16 bits that can be."""
    tx = case.entry.factory(**case.kwargs)
    state = tx.init({"w": jnp.ones((3,))})
    kept = [field for field in state._fields if jax.tree.leaves(getattr(state, field))]
    everything = [Store(field, codecs.bfloat16, min_size=1) for field in kept]
    compressed, shapes = compress_state(tx, everything), {"w": (1100, 70), "s": ()}
    walked, apart = both(compressed, shapes=shapes, needs=case.flag("needs"))
    assert_same(walked, apart)


@named
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_codecs_and_parameters(rules: str, dtype: str) -> None:
    tx = compress_state(adaptx.adamw(1e-2, weight_decay=0.1), rules)
    walked, apart = both(tx, jnp.dtype(dtype))
    # Gradients of 11 bits and moments of 8 often add up to a tie of two codes, which the last bit of a sum decides.
    assert_same(walked, apart, packed=rules == "4bit", share=1e-2 if dtype == "float16" else 2e-3)


def test_float64_is_kept_as_wide() -> None:
    with x64():
        tx = compress_state(adaptx.adamw(1e-2), [Store("nu", codecs.positive8)])
        walked, apart = both(tx, jnp.float64, shapes={"w": (1100, 70)})
        assert walked[1].inner.mu["w"].dtype == walked[1].inner.nu["w"].dtype == jnp.float64
        assert_same(walked, apart)


def test_which_leaves_are_walked() -> None:
    """Large ones of which something is compressed: a loop for its chunks, and one for the rest."""
    adam = adaptx.adam(0.1)
    assert loops(compress_state(adam)) == 4
    assert loops(compress_state(adam, [Store("nu", codecs.bfloat16, path="two")])) == 2
    assert loops(compress_state(adam, [])) == 0
    assert loops(compress_state(adaptx.lamb(0.1))) == 0, "it looks at whole tensors"
    assert loops(compress_state(adaptx.stable_adamw(0.1, clipping_threshold=None))) == 0, "in some cases it does"
    assert loops(compress_state(optax.adam(0.1))) == 0
    assert loops(compress_state(optax.chain(optax.clip_by_global_norm(1.0), adam))) == 0
    assert loops(compress_state(adam, block=1 << 17), {"w": (1 << 18,)}) == 1, "a chunk is a block at least"


@pytest.mark.parametrize(
    "tx",
    [adaptx.lamb(0.01), optax.adam(0.01), inject_hyperparams(adaptx.adam)(0.01)],
    ids=["lamb", "optax", "injected"],
)
def test_around_others(tx: Any) -> None:
    """What is not walked is updated all the same."""
    assert_same(*both(compress_state(tx), shapes={"w": (80, 1000)}))


def test_masks_schedules_and_traced_rates() -> None:
    """A mask sees the parameters as they are, not chunks of them; a schedule counts steps, not chunks."""
    matrices = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
    rate = optax.linear_schedule(0.1, 0.0, 5)
    tx = compress_state(adaptx.adamw(rate, weight_decay=0.5, mask=matrices))
    walked, apart = both(tx)
    assert_same(walked, apart)
    free = compress_state(adaptx.adamw(rate, weight_decay=0.5, mask=False))
    assert_same(both(free)[0][0]["two"], walked[0]["two"])
    assert not np.allclose(both(free)[0][0]["w"], walked[0]["w"])

    @jax.jit
    def stepped(rate: Any) -> Any:
        tx, params = compress_state(adaptx.adam(rate)), tree(0)
        return precision.step(tx, tree(1), params, tx.init(params))[0]

    moved = {lr: stepped(jnp.float32(lr))["w"] - tree(0)["w"] for lr in (0.1, 0.2)}
    np.testing.assert_allclose(moved[0.2], 2 * moved[0.1], rtol=1e-3)


def test_no_gradient() -> None:
    """A None leaves its parameter and its state alone; others are not moved by it."""
    tx, params = compress_state(adaptx.adam(0.1)), tree(0)
    state = tx.init(params)
    new, after = precision.step(tx, {**tree(1), "two": None}, params, state)
    whole, _ = precision.step(tx, tree(1), params, state)
    np.testing.assert_array_equal(new["two"], params["two"])
    assert jax.tree.all(jax.tree.map(jnp.array_equal, after.inner.mu["two"], state.inner.mu["two"]))
    for name in ("w", "small", "s"):
        np.testing.assert_array_equal(new[name], whole[name])
    assert after.inner.count == 1
    for other in (compress_state(adaptx.adam(0.1), []), compress_state(adaptx.lamb(0.1))):  # nothing is walked
        new, _ = precision.step(other, {**tree(1), "two": None}, params, other.init(params))
        np.testing.assert_array_equal(new["two"], params["two"])
        assert not np.array_equal(new["w"], params["w"])


def temporary(tx: Any, shape: tuple[int, ...], dtype: Any = jnp.float32, of_grads: Any = jnp.float32) -> float:
    """Bytes a parameter that the compiled, donating step sets aside; what it gives back takes no others."""
    params = {f"w{i}": jax.ShapeDtypeStruct(shape, dtype) for i in range(4)}
    grads = jax.tree.map(lambda a: a.update(dtype=of_grads), params)
    step = jax.jit(functools.partial(precision.step, tx), donate_argnums=(1, 2))
    memory = step.lower(grads, params, jax.eval_shape(tx.init, params)).compile().memory_analysis()
    assert memory is not None
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes <= 1024
    return memory.temp_size_in_bytes / (4 * np.prod(shape))


@old_xla
def test_what_16_bits_take() -> None:
    """Two bytes a parameter for what is bfloat16 and not in a codec: XLA on CPU copies it."""
    tx = compress_state(adaptx.adamw(1e-2))
    assert temporary(tx, (1024, 1024), jnp.bfloat16, jnp.bfloat16) <= 4.5
    assert temporary(tx, (1024, 1024), jnp.float32, jnp.bfloat16) <= 2.5
    assert temporary(tx, (1024, 1024), jnp.float16, jnp.float16) <= 0.5


@old_xla
@named
def test_what_it_takes(rules: str) -> None:
    """Temporary memory of at most half a byte a parameter, whole chunks or not, and everything donated."""
    for shape in ((1024, 1024), (1000, 1049)):
        tx = compress_state(adaptx.adamw(1e-2), rules)
        assert temporary(tx, shape) <= 0.5


@pytest.mark.parametrize("rules", ["8bit", "bfloat16_stochastic"])
@pytest.mark.parametrize("spec", [("a", "b"), (None, "a")])
def test_shards_are_walked_where_they_are(spec: Any, rules: str) -> None:
    mesh = jax.make_mesh((2, 4), ("a", "b"))
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    # Of one leaf the shards are too small to be walked.
    tx, shapes = compress_state(adaptx.adam(0.01), rules), {"w": (1040, 1024), "small": (128, 896)}
    put = lambda seed: jax.tree.map(lambda x: jax.device_put(x, sharding), tree(seed, shapes=shapes))
    params, step = put(0), jax.jit(functools.partial(precision.step, tx))
    state, apart = tx.init(params), put(0)
    text = step.lower(put(1), params, state).compile().as_text()
    assert " while(" in text
    small = {"small": put(1)["small"]}
    assert " while(" not in step.lower(small, small, tx.init(small)).compile().as_text()
    assert not [op for op in ("all-gather", "all-to-all", "collective-permute", "all-reduce") if op in text]
    other = state
    for i in range(2):
        params, state = step(put(i + 1), params, state)
        updates, other = jax.jit(tx.update)(put(i + 1), other, apart)
        apart = optax.apply_updates(apart, updates)
    assert params["w"].sharding.is_equivalent_to(sharding, 2)
    assert_same((params, state), (apart, other))


def test_scanned() -> None:
    tx, params = compress_state(adaptx.adamw(1e-2), "4bit"), tree(0)
    body = lambda carry, g: (precision.step(tx, g, *carry), None)
    grads = jax.tree.map(lambda *gs: jnp.stack(gs), tree(1), tree(2), tree(3))
    scanned, _ = jax.lax.scan(body, (params, tx.init(params)), grads)
    assert_same(scanned, both(tx)[1], packed=True)


@named
def test_a_nan_poisons_its_block_at_most(rules: str) -> None:
    tx, params = compress_state(adaptx.adam(0.01), rules), tree(0)
    bad = {**tree(1), "two": tree(1)["two"].at[70_000].set(jnp.nan)}
    params, state = precision.step(tx, bad, params, tx.init(params))
    params, _ = precision.step(tx, tree(2), params, state)
    lost = np.flatnonzero(~np.isfinite(params["two"]))
    assert 1 <= len(lost) <= 128
    assert set(lost // 128) == {70_000 // 128}
    assert all(np.all(np.isfinite(params[name])) for name in ("w", "small", "s"))


TX = compress_state(adaptx.adam(0.1))
STATE = TX.init(tree(0))
WRONG = {**tree(1), "w": jnp.ones((250, 1100))}  # as many numbers


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: precision.step(adaptx.adam(0.1), tree(1), tree(0), STATE), "precision.step: tx must be what compress"),
        (
            lambda: precision.step(TX, tree(1), tree(0), STATE.inner),
            "precision.step: the state must be the CompressedState that init gives, got AdamState",
        ),
        (lambda: precision.step(TX, tree(1), None, STATE), "precision.step: adam: update needs params"),
        (lambda: precision.step(TX, WRONG, tree(0), STATE), "precision.step: adam: the gradient at ['w'] must be like"),
        (
            lambda: precision.step(TX, WRONG, {**tree(0), "w": WRONG["w"]}, STATE),
            "precision.step: adam: the `mu` of the gradient at ['w'] must be like",
        ),
        (lambda: precision.step(TX, {}, tree(0), STATE), "precision.step: adam: gradients and parameters differ"),
        (
            lambda: precision.step(compress_state(adaptx.lion(0.1)), tree(1), tree(0), STATE),
            "precision.step: lion: the state must be the LionState that init gives, got AdamState",
        ),
        (
            lambda: precision.step(compress_state(adaptx.sophia(0.1)), tree(1), tree(0), STATE),
            "sophia: the state must be the SophiaState that init gives, got AdamState",
        ),
    ],
)
def test_bad_arguments(call: Callable[[], Any], line: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
