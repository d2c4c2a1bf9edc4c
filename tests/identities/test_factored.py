"""Factored and shared second moments: what they keep, where they are whole ones, and the frameworks they can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptx
from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Decay
from adaptx.optimizers.factored.adafactor import adafactor_rule, factor_axes, factored_ema, factored_root
from adaptx.optimizers.factored.adam_mini import block_mean
from tests.conftest import x64
from tests.equations.references import replay
from tests.identities.test_limits import assert_same, updates_of

SHAPES = {"matrix": (5, 4), "number": (), "row": (1, 6), "stack": (4, 2, 3), "vector": (7,)}


def draws(steps: int, shapes: Any = SHAPES, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Trees of normal numbers of several scales."""
    rng = np.random.default_rng(seed)
    return [{k: rng.normal(size=s) * 10.0 ** rng.integers(-3, 2) for k, s in shapes.items()} for _ in range(steps)]


def iterates(tx: Any, x: Any, grads: list[Any]) -> list[Any]:
    """The parameters after each step, in float64."""
    with x64():
        x, state, update, seen = jax.tree.map(jnp.asarray, x), tx.init(x), jax.jit(tx.update), []
        for g in grads:
            u, state = update(jax.tree.map(jnp.asarray, g), state, x)
            x = optax.apply_updates(x, u)
            seen.append(jax.tree.map(np.asarray, x))
    return seen


def assert_equal(ours: list[Any], theirs: list[Any]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-12 * np.max(np.abs(y))), a, b)


@pytest.mark.parametrize("factored", ["last", "largest"])
@pytest.mark.parametrize("shape", [(5, 4), (4, 5), (3, 2, 6), (2, 3, 1, 4)])
def test_the_estimate_keeps_the_means_of_rows_and_columns(shape: tuple[int, ...], factored: str) -> None:
    with x64():
        squares = jnp.asarray(np.random.default_rng(1).uniform(0, 1, (3, *shape)))
        axes = factor_axes(shape, factored, 1)
        assert axes is not None
        assert axes == (
            (len(shape) - 2, len(shape) - 1) if factored == "last" else tuple(sorted(np.argsort(shape)[-2:]))
        )
        v = tuple(jnp.zeros_like(jnp.sum(squares[0], axis=over, keepdims=True)) for over in reversed(axes))
        whole = jnp.zeros(shape)
        for square in squares:
            v, whole = factored_ema(v, square, Decay.of(0.7), axes), factored_ema(whole, square, Decay.of(0.7), None)
        estimate = factored_root(v, axes) ** 2
        for axis in axes:
            np.testing.assert_allclose(jnp.sum(estimate, axis), jnp.sum(whole, axis), rtol=1e-13)


@pytest.mark.parametrize("steps", [1, 4])
def test_one_rank_one_gradient_makes_factored_and_whole_equal(steps: int) -> None:
    rng = np.random.default_rng(2)
    rows, columns, sizes = rng.normal(size=(5, 1)), rng.normal(size=(1, 4)), rng.normal(size=steps)
    with x64():
        params = {"w": jnp.asarray(rng.normal(size=(5, 4)))}
        grads = [{"w": jnp.asarray(size * rows * columns)} for size in sizes]
        same = dict(eps_root=0.0, clipping_threshold=None, momentum=0.8)
        sides = [updates_of(adaptx.adafactor(0.1, factored=f, **same), grads, params, False) for f in ("last", None)]
    assert_same(*sides)


def rule(
    decay_rate: Any = 0.8, eps_root: Any = 1e-30, min_scale: Any = 1e-3, clipping_threshold: Any = 1.0, **others: Any
) -> Any:
    """Adafactor's rule with torch's and Keras's axes."""
    return adafactor_rule(
        0, decay_rate, 0, eps_root, min_scale, clipping_threshold, True, "last", None, **others
    )  # fmt: skip


@pytest.mark.parametrize(("lr", "decay", "eps1", "eps2"), [(1e-3, 0.0, 1e-30, 1e-3), (0.5, 0.1, 1e-2, 0.3)])
def test_keras(lr: float, decay: float, eps1: float, eps2: float) -> None:
    """Against Keras 3's update in NumPy: its decay comes before the size of the parameters is taken."""
    x, *grads = draws(9)
    rms, theirs = lambda a: np.sqrt(np.mean(a**2)), []
    r, c, v = (dict.fromkeys(x, 0.0) for _ in range(3))
    now = dict(x)
    for t, g in enumerate(grads, 1):
        for k in x:
            now[k] = now[k] - lr * decay * now[k]
            alpha, square, b = min(lr, t**-0.5) * max(eps2, rms(now[k])), g[k] ** 2 + eps1, 1 - t**-0.8
            v[k] = b * v[k] + (1 - b) * square
            if x[k].ndim > 1:
                r[k], c[k] = b * r[k] + (1 - b) * square.mean(-1), b * c[k] + (1 - b) * square.mean(-2)
                v[k] = (r[k] / r[k].mean(-1, keepdims=True))[..., None] * c[k][..., None, :]
            u = g[k] / np.sqrt(v[k])
            now[k] = now[k] - alpha * u / max(1, rms(u) / 0.9)
        theirs.append(dict(now))
    own = rule(eps_root=eps1, min_scale=eps2, clipping_threshold=0.9, decay="before")
    assert_equal(iterates(lift("adafactor", own, Descent(lr, decay or None)), x, grads), theirs)


def test_a_late_start_and_the_last_count_are_finite() -> None:
    """Optax's second moment is NaN for ever from an offset on, and at the last count."""
    params = {"w": jnp.ones((3, 4))}
    for offset, count in ((5, 0), (0, 2**31 - 1), (2**31, 2**31 - 2)):
        tx = adaptx.adafactor(0.01, decay_offset=offset)
        state = tx.init(params)._replace(count=jnp.int32(count))
        for _ in range(2):
            u, state = tx.update(params, state, params)
            assert np.all(np.isfinite(u["w"]))
            assert np.all(np.isfinite(state.nu["w"][0]))


def test_came_without_momentum_is_adafactor_by_a_number() -> None:
    """With b1 = 0 nothing strays: the instability is eps_instability, up to the zero start of its average."""
    grads = [{"w": jnp.asarray(g["matrix"], jnp.float32)} for g in draws(3)]
    came = adaptx.scale_by_came(0.0, 0.9, 0.8, eps_instability=0.25)
    state = came.init(grads[0])
    nu = state.nu["w"]
    for t, g in enumerate(grads, 1):
        u, state = came.update(g, state)
        nu = factored_ema(nu, g["w"] ** 2 + 1e-30, Decay.of(0.9), (0, 1))
        plain = g["w"] / factored_root(nu, (0, 1))
        clipped = plain / np.maximum(1, np.sqrt(np.mean(plain**2)))
        np.testing.assert_allclose(u["w"] * np.sqrt(0.25 * (1 - 0.8**t)), clipped, rtol=1e-5)


LIKE_ADAM: dict[str, tuple[Callable[[], Any], Callable[[], Any], Any]] = {
    "adam_mini with blocks of one element is adam": (
        lambda: adaptx.adam_mini(0.1, 0.8, 0.95, 1e-3, 1e-4, block_axis=0),
        lambda: adaptx.adam(0.1, 0.8, 0.95, 1e-3, 1e-4),
        (4,),
    ),
    "and with decay adamw": (
        lambda: adaptx.adam_mini(0.1, block_axis=-1, weight_decay=0.05),
        lambda: adaptx.adamw(0.1, weight_decay=0.05),
        (4,),
    ),
    "as many blocks as rows are the rows": (
        lambda: adaptx.adam_mini(0.1, block_axis=0, blocks=4),
        lambda: adaptx.adam_mini(0.1, block_axis=0),
        (4, 3),
    ),
    "one block is the tensor": (
        lambda: adaptx.adam_mini(0.1, block_axis=1, blocks=1),
        lambda: adaptx.adam_mini(0.1),
        (4, 3),
    ),
    "a tensor without the axis is one block": (
        lambda: adaptx.adam_mini(0.1, block_axis=2),
        lambda: adaptx.adam_mini(0.1),
        (4, 3),
    ),
}


@pytest.mark.parametrize(("left", "right", "shape"), LIKE_ADAM.values(), ids=LIKE_ADAM)
def test_adam_mini_limits(left: Any, right: Any, shape: Any) -> None:
    with x64():
        params, *grads = jax.tree.map(jnp.asarray, draws(5, {"w": shape}))
        assert_same(*(updates_of(tx(), grads, params, False) for tx in (left, right)))


def test_blocks_are_equal_parts_and_the_last_may_be_shorter() -> None:
    a = np.arange(10.0).reshape(5, 2)
    for blocks, parts in ((2, [[0, 1, 2], [3, 4]]), (5, [[0], [1], [2], [3], [4]]), (3, [[0, 1], [2, 3], [4]])):
        expected = np.concatenate([np.full((len(rows), 1), a[rows].mean()) for rows in parts])
        np.testing.assert_allclose(block_mean(jnp.asarray(a), 0, blocks), expected, rtol=1e-6)
        np.testing.assert_allclose(block_mean(jnp.asarray(a.T), -1, blocks), expected.T, rtol=1e-6)


@pytest.mark.parametrize(("block_axis", "blocks"), [(0, 2), (-1, 3), (1, 1)])
def test_blocks_equal_the_paper(block_axis: int, blocks: int) -> None:
    """Law A1 for blocks of several indices, which the laws' small trees do not have."""
    x, *grads = [{"w": tree["w"]} for tree in draws(5, {"w": (5, 4)})]
    numbers = dict(learning_rate=0.1, b2=0.9, eps=1e-3, block_axis=block_axis, blocks=blocks, weight_decay=0.1)
    steps, seen = replay("adam_mini", x, grads, numbers), [x]
    for update, _ in steps:
        seen.append({"w": seen[-1]["w"] + update["w"]})
    assert_equal(iterates(adaptx.adam_mini(**numbers), x, grads), seen[1:])


def test_adam_mini_by_label() -> None:
    """Tokens, heads, neurons and whole tensors: one adam_mini for each kind of leaf, each leaf as it is alone."""
    kinds = {
        "tokens": adaptx.adam_mini(0.1, block_axis=0),
        "heads": adaptx.adam_mini(0.1, block_axis=1),
        "neurons": adaptx.adam_mini(0.1, block_axis=-1),
        "tensor": adaptx.adam_mini(0.1),
    }
    labels = {"embed": "tokens", "query": "heads", "kernel": "neurons", "bias": "tensor"}
    shapes = {"embed": (6, 4), "query": (4, 2, 2), "kernel": (4, 8), "bias": (8,)}
    params, *grads = jax.tree.map(jnp.asarray, draws(3, shapes))
    together = updates_of(optax.partition(kinds, labels), grads, params, True)
    for name, kind in labels.items():
        alone = updates_of(kinds[kind], [{name: g[name]} for g in grads], {name: params[name]}, True)
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_array_equal(a[name], b[name])
    second = {k: kinds[kind].init({k: params[k]}).nu[k].shape for k, kind in labels.items()}
    assert second == {"embed": (6, 1), "query": (1, 2, 1), "kernel": (1, 8), "bias": ()}
