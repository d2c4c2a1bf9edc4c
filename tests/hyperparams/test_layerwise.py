"""Layer-wise decay and the masks that go by names."""

from __future__ import annotations

import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptx
from adaptx.hyperparams import (
    Stacked,
    get_hyperparams,
    inject_hyperparams,
    layerwise_decay,
    no_decay_on,
    set_hyperparams,
)
from adaptx.hyperparams.paths import leaves_by_path
from tests.hyperparams.trees import TREES, linen

ORDER = ["embed/*", "hidden/*", ["norm/*", "head/*"]]
FACTORS = {"embed": 0.25, "hidden": 0.5, "norm": 1.0, "head": 1.0}


@pytest.mark.parametrize("kind", ["linen", "FrozenDict", "nnx", "module"])
def test_each_layer_steps_less_than_the_one_above(kind: str) -> None:
    """Rate and decoupled decay alike: the update is the optimizer's own, times the factor."""
    params = TREES[kind]()
    grads = jax.tree.map(jnp.cos, params)
    adamw = adaptx.adamw(0.1, weight_decay=0.3)
    tx = optax.chain(adamw, layerwise_decay(0.5, ORDER))
    whole, _ = adamw.update(grads, adamw.init(params), params)
    got, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    assert jax.tree.structure(got) == jax.tree.structure(whole)
    for (path, u), (_, v) in zip(leaves_by_path(whole)[0], leaves_by_path(got)[0], strict=True):
        if u is not None:
            np.testing.assert_allclose(v, FACTORS[path.split("/")[0]] * u, rtol=1e-6, err_msg=path)


def test_stacked_layers_are_layers() -> None:
    """Layers along an axis take the factors that they take one by one; dtypes stay, None stays, rows are scaled."""
    rng = np.random.default_rng(0)
    u = rng.normal(size=(3, 2, 2))
    tree = {
        "embed": adaptx.sparse.RowSparse([2], jnp.ones((1, 2)), 5),
        "blocks": {"w": jnp.asarray(u, jnp.bfloat16), "b": jnp.ones(3)},
        "head": None,
    }
    tx = layerwise_decay(0.5, ["embed", Stacked("blocks/**", 3), "head"])
    got, _ = jax.jit(tx.update)(tree, tx.init(tree))
    assert got["head"] is None
    assert got["blocks"]["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(got["blocks"]["b"], [0.125, 0.25, 0.5])
    factors = np.array([0.125, 0.25, 0.5])[:, None, None]
    np.testing.assert_array_equal(got["blocks"]["w"], np.asarray(tree["blocks"]["w"]) * factors.astype(jnp.bfloat16))
    np.testing.assert_array_equal(got["embed"].todense(), 0.0625 * np.eye(5)[2][:, None] * np.ones(2))
    third = layerwise_decay(1 / 3, ["embed", Stacked("blocks/**", 3), "head"]).update(tree, ())[0]["blocks"]["w"]
    exact = np.asarray(tree["blocks"]["w"], float) * 3.0 ** -np.arange(3, 0, -1)[:, None, None]
    np.testing.assert_allclose(np.asarray(third, float), exact, rtol=2**-8 * 1.01)  # rounded once, to bfloat16
    apart = {"embed": jnp.ones(2), "blocks": [{"w": jnp.asarray(w)} for w in u], "head": jnp.ones(2)}
    tx = layerwise_decay(0.5, ["embed", "blocks/0/*", "blocks/1/*", "blocks/2/*", "head"])
    single, _ = tx.update(apart, tx.init(apart))
    np.testing.assert_allclose(np.stack([b["w"] for b in single["blocks"]]), factors * u, rtol=1e-6)


def test_the_factor_can_be_changed_and_traced() -> None:
    params = linen()
    tx = inject_hyperparams(layerwise_decay)(0.5, ORDER)
    state = set_hyperparams(tx.init(params), rate=0.1)
    updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state)
    np.testing.assert_allclose(updates["embed"]["embedding"], 0.01, rtol=1e-6)
    assert get_hyperparams(state).keys() == {"rate"}
    slope = jax.grad(lambda rate: layerwise_decay(rate, ["a", "b"]).update({"a": 1.0 * rate, "b": rate}, ())[0]["a"])(
        0.5
    )
    np.testing.assert_allclose(slope, 1.0, rtol=1e-6)  # d r^2 / dr


@pytest.mark.parametrize(
    ("rate", "order", "line"),
    [
        (0.0, ORDER, "rate must be a number > 0, got 0.0"),
        (float("nan"), ORDER, "rate must be a number > 0, got nan"),
        ("x", ORDER, "rate must be a number > 0, got 'x'"),
        (True, ORDER, "rate must be a number > 0, got True"),
        (0.5, [], "order must be a list of layers, from input to output, got []"),
        (0.5, "embed", "order must be a list of layers, from input to output, got 'embed'"),
        (0.5, [*ORDER, "more"], "no leaf is in layer 4; "),
        (0.5, ORDER[1:], "embed/embedding in none; the rules are layer 1: hidden/*; layer 2: norm/*, head/*"),
        (0.5, [*ORDER, "**/bias"], "head/bias in layer 3 and layer 4"),
        (
            0.5,
            [Stacked("embed/*", 4), *ORDER[1:]],
            "embed/embedding must have 4 stacked layers along its first axis, got ",
        ),
        (0.5, [Stacked("embed/*", 0), *ORDER[1:]], "Stacked needs a number of layers >= 1, got 0"),
        (0.5, [3, *ORDER[1:]], "a pattern must be a path like"),
        (0.5, {"embed/*"}, "order must be a list of layers, from input to output, got {'embed/*'}"),
        (0.5, [re.compile(b"x"), *ORDER[1:]], "a pattern must be a path like"),
    ],
    ids=range(14),
)
def test_what_does_not_fit_is_refused_in_one_line(rate: Any, order: Any, line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)) as refusal:
        layerwise_decay(rate, order).update(linen(), optax.EmptyState())
    assert str(refusal.value).startswith("layerwise_decay: ")
    assert "\n" not in str(refusal.value)


NAMES = {
    "biases": ["bias", "Dense_0/bias", "mlp/b", "attention/bias_q", "attention/in_proj_bias"],
    "norms": [
        "LayerNorm_0/scale",
        "norm1/weight",
        "blocks/ln_1/w",
        "ln_f/scale",
        "encoder/BatchNorm_3/bias",
        "bn2/scale",
        "final_rms_norm/scale",
        "ln/scale",
    ],
    "embeddings": [
        "Embed_0/embedding",
        "token_embed/weight",
        "wte/embedding",
        "pos_embedding",
        "wpe",
        "pos_embed",
        "tok_emb/weight",
        "emb",
    ],
}
OTHERS = [
    "Dense_0/kernel",
    "patch_embed/weight",
    "patch_embed/kernel",
    "embed_proj/kernel",
    "normal/kernel",
    "debias/kernel",
    "unbiased",
    "member/weight",
    "lnn/kernel",
    "mlp/w",
]


@pytest.mark.parametrize("kind", NAMES)
def test_names_that_masks_know(kind: str) -> None:
    params = dict.fromkeys([*itertools.chain(*NAMES.values()), *OTHERS], jnp.ones(1))
    off = {path for path, on in no_decay_on(kind)(params).items() if not on}
    also = {"encoder/BatchNorm_3/bias"} if kind == "biases" else set()
    assert off == {*NAMES[kind]} | also


def test_the_decay_stays_off_what_is_masked() -> None:
    """With no gradients only the decay moves: not norms, not biases, nor what a further pattern names."""
    for kind in ("linen", "FrozenDict", "nnx", "module"):
        params = TREES[kind]()
        tx = adaptx.adamw(1.0, weight_decay=0.5, mask=no_decay_on("norms", "biases", "head/*", re.compile("^hid")))
        updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
        moved = {path for path, u in leaves_by_path(updates)[0] if u is not None and np.any(np.asarray(u))}
        assert moved == {"embed/embedding"}


@pytest.mark.parametrize("what", [(), ("bias",), ("norms", "layer norms"), (3,), (["norms"],)])
def test_a_mask_of_unknown_words_is_refused(what: tuple[Any, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"no_decay_on: it must be biases, norms, embeddings or a pattern like '\*\*/scale', got"
    ):
        no_decay_on(*what)
