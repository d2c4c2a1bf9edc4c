"""Presets as transformations: what they refuse, low precision, masks, clipping, words."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adaptx
from adaptx import presets
from adaptx.optimizers.adam.radam import radam
from adaptx.presets.words import FRAMEWORKS
from adaptx.registry import GLOSSARY
from tests.documents.presets import DIFFERENCES, presets_section
from tests.parity.test_golden import clipped

PRESETS = [(f, m, getattr(getattr(presets, f), m)) for f in FRAMEWORKS for m in getattr(presets, f).__all__]
each_preset = pytest.mark.parametrize(
    ("framework", "method", "factory"), PRESETS, ids=[f"{f}-{m}" for f, m, _ in PRESETS]
)


def made(factory: Any, **kwargs: Any) -> Any:
    """The preset, with a rate where it has no default."""
    first = next(iter(inspect.signature(factory).parameters.values()))
    return factory(**{first.name: 0.01, **kwargs} if first.default is first.empty else kwargs)


@each_preset
def test_the_docstring_tells_the_rule_and_its_source(framework: str, method: str, factory: Any) -> None:
    doc = factory.__doc__ or ""
    assert doc.splitlines()[0].startswith(
        {"torch": "torch.optim.", "keras": "keras.optimizers.", "optax": "optax."}[framework]
    )
    assert "adaptx." in doc or "library's own" in doc  # what differs from the optimizer here
    for part in ("\nStart:\n", "\nStep t = 1, 2, ...:\n", "\nArguments:\n", "\nErrors:\n"):
        assert part in doc
    assert doc.splitlines()[-1].startswith("Source: https://")
    assert len(doc.splitlines()[-1].split()) == 2


@each_preset
def test_a_value_out_of_range_is_one_line(framework: str, method: str, factory: Any) -> None:
    for argument, parameter in inspect.signature(factory).parameters.items():
        if argument in ("mask", "weight_decay_mask"):
            continue
        bad = (
            "yes" if isinstance(parameter.default, bool) else (0.9,) if isinstance(parameter.default, tuple) else "0.1"
        )
        with pytest.raises(ValueError, match=rf"^presets\.{framework}\.{method}: {argument} must be [^\n]*$"):
            made(factory, **{argument: bad})


BAD = [
    (presets.torch.adam, dict(lr=-1.0), "lr must be a number, 0-d array or schedule >= 0, got -1.0"),
    (presets.torch.adam, dict(betas=(0.9, 1.0)), r"betas must be two numbers in \[0, 1\), got \(0.9, 1.0\)"),
    (presets.torch.adam, dict(betas=0.9), r"betas must be two numbers in \[0, 1\), got 0.9"),
    (presets.torch.adam, dict(weight_decay=None), "weight_decay must be .*, got None"),
    (presets.torch.rmsprop, dict(momentum=1.0), r"momentum must be in \[0, 1\), got 1.0"),
    (presets.torch.adafactor, dict(d=0.5), "d must be >= 1, got 0.5"),
    (presets.torch.adafactor, dict(beta2_decay=0.8), "beta2_decay must be <= 0, got 0.8"),
    (presets.torch.adafactor, dict(eps=(1e-3, None)), "eps must be two numbers >= 0, of which the first may be None"),
    (presets.torch.adafactor, dict(eps=(-1.0, 0.1)), "eps must be two numbers >= 0"),
    (presets.keras.adamw, dict(weight_decay=None), "weight_decay must be .*, got None"),
    (presets.keras.adam, dict(clipnorm=0.0), "clipnorm must be > 0 or None, got 0.0"),
    (presets.keras.adam, dict(clipnorm=1.0, global_clipnorm=1.0), "exclude each other"),
    (presets.optax.adadelta, dict(learning_rate=None), "learning_rate must be .*, got None"),
    (presets.optax.rmsprop, dict(nesterov=True), "nesterov needs momentum"),
    (presets.optax.radam, dict(threshold=3.0), "threshold must be >= 4, got 3.0"),
    (presets.optax.adafactor, dict(weight_decay_mask=True), "weight_decay_mask needs weight_decay_rate"),
]


@pytest.mark.parametrize(("factory", "kwargs", "says"), BAD)
def test_what_is_refused(factory: Any, kwargs: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as refusal:
        made(factory, **kwargs)
    assert str(refusal.value).startswith("presets.")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("factory", "argument", "says"),
    [
        (presets.torch.adam, "foreach", "jax.jit"),
        (presets.torch.adam, "fused", "jax.jit"),
        (presets.torch.adagrad, "params", "optax.partition"),
        (presets.keras.adam, "use_ema", "optax.incremental_update"),
        (presets.keras.adam, "gradient_accumulation_steps", "optax.MultiSteps"),
        (presets.keras.adafactor, "relative_step", "changes nothing"),
        (presets.torch.adamw, "mask", "optax.partition"),
        (presets.keras.adamw, "exclude_from_weight_decay", "optax.partition"),
        (presets.optax.adam, "mu_dtype", "float32 or wider"),
        (presets.torch.adam, "learning_rate", "it is lr here; allowed are lr, betas"),
        (presets.torch.adam, "b1", "it is betas here"),
        (presets.keras.adam, "eps", "it is epsilon here"),
    ],
)
def test_what_is_no_part_of_a_rule_has_a_line(factory: Any, argument: str, says: str) -> None:
    with pytest.raises(TypeError, match=rf"^presets\.\w+\.\w+: no argument {argument}; .*{says}[^\n]*$"):
        made(factory, **{argument: True})


def test_numbers_may_be_traced_and_schedules_given() -> None:
    x = {"w": jnp.arange(3.0)}

    @jax.jit
    def first(lr: Any, b2: Any, wd: Any) -> Any:
        tx = presets.torch.adam(lr=lambda count: lr / (1 + count), betas=(0.9, b2), weight_decay=wd)
        return tx.update(x, tx.init(x), x)[0]

    tx = presets.torch.adam(lr=0.1, betas=(0.9, 0.99), weight_decay=0.2)
    np.testing.assert_allclose(first(0.1, 0.99, 0.2)["w"], tx.update(x, tx.init(x), x)[0]["w"], rtol=1e-4)


@pytest.mark.suite
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_is_this_librarys(dtype: str) -> None:
    """Zero gradients stay finite, states are float32 and do not change, also with decay and clipping."""
    params = {"w": jnp.ones((3, 2), dtype), "b": jnp.ones((), dtype), "none": None}
    grads = {"w": jnp.zeros((3, 2), dtype).at[0, 0].set(1e-3), "b": jnp.zeros((), dtype), "none": None}
    txs = [made(factory, **_decay(factory, 0.1)) for *_, factory in PRESETS]
    txs += [
        presets.keras.adam(clipnorm=0.1),
        presets.keras.adam(clipvalue=0.1),
        presets.keras.adam(global_clipnorm=0.1),
    ]

    def two(tx: Any) -> Any:
        u, state = tx.update(grads, tx.init(params), params)
        return u, state, tx.update(grads, state, params)

    for u, state, (v, after) in jax.jit(lambda: [two(tx) for tx in txs])():
        assert all(jnp.isfinite(a).all() for a in jax.tree.leaves((u, v)))
        assert {a.dtype for a in jax.tree.leaves((u, v))} == {jnp.dtype(dtype)}
        assert {str(a.dtype) for a in jax.tree.leaves(state)} <= {"float32", "int32"}
        assert jax.tree.map(lambda a: (a.shape, a.dtype), state) == jax.tree.map(lambda a: (a.shape, a.dtype), after)


def _decay(factory: Any, value: float) -> dict[str, Any]:
    names = {"weight_decay", "weight_decay_rate"} & inspect.signature(factory).parameters.keys()
    return dict.fromkeys(names, value)


def test_derivatives_at_zero_gradients_are_finite() -> None:
    """In the frameworks' own lines: eps-hat, the rate inside the buffer, eps inside the maximum, clipping."""
    x, g = jnp.ones(3), jnp.zeros(3)

    def total(g: Any, rate: Any, eps: Any) -> Any:
        txs = [
            presets.keras.adam(rate, epsilon=eps, amsgrad=True, clipnorm=0.1),
            presets.keras.rmsprop(rate, momentum=0.9, epsilon=eps, centered=True, global_clipnorm=0.1),
            presets.torch.adamax(rate, eps=eps, weight_decay=0.1),
            presets.torch.radam(rate, eps=eps),
            presets.optax.nadam(rate, eps=eps),
        ]
        return sum(jnp.sum(jnp.square(tx.update(g, tx.init(x), x)[0])) for tx in txs)

    slopes = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(g, 0.1, 1e-7)
    assert all(jnp.isfinite(slope).all() for slope in slopes)


def test_the_mask_of_an_l2_penalty() -> None:
    """A masked leaf goes as without decay; the other's gradient has the penalty in it."""
    x = {"a": jnp.full(2, 2.0), "b": jnp.full(2, 2.0)}
    g = jax.tree.map(jnp.ones_like, x)
    mask = {"a": True, "b": False}
    decayed = presets.optax.adadelta(0.1, weight_decay=0.5, weight_decay_mask=mask)
    plain = presets.optax.adadelta(0.1)
    u, _ = decayed.update(g, decayed.init(x), x)
    v, _ = plain.update({"a": 2 * g["a"], "b": g["b"]}, plain.init(x), x)
    assert jax.tree.map(lambda a, b: bool((a == b).all()), u, v) == {"a": True, "b": True}


def two_updates(tx: Any, grads: Any, x: Any) -> Any:
    state = tx.init(x)
    _, state = tx.update(grads, state, x)
    return tx.update(grads, state, x)[0]


arguments = lambda factory: inspect.signature(factory).parameters
MASKED = [(f, m, p, a) for f, m, p in PRESETS for a in ("mask", "weight_decay_mask") if a in arguments(p)]


@pytest.mark.parametrize(("framework", "method", "factory", "mask"), MASKED, ids=[f"{f}-{m}" for f, m, *_ in MASKED])
def test_every_mask_keeps_the_decay_from_a_leaf(framework: str, method: str, factory: Any, mask: str) -> None:
    (decay,) = [a for a in ("weight_decay", "weight_decay_rate") if a in arguments(factory)]
    x = {"a": jnp.full(2, 2.0), "b": jnp.full(2, 2.0)}
    g = {"a": jnp.array([0.3, -0.1]), "b": jnp.array([0.3, -0.1])}
    of = lambda **kwargs: two_updates(made(factory, **kwargs), g, x)
    found = of(**{decay: 0.5, mask: {"a": True, "b": False}})
    on, off = of(**{decay: 0.5}), of(**{decay: 0.0 if arguments(factory)[decay].default is not None else None})
    np.testing.assert_array_equal(found["a"], on["a"])
    np.testing.assert_array_equal(found["b"], off["b"])
    assert np.all(on["a"] != off["a"])


CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("method", presets.keras.__all__)
def test_every_clip_of_keras_is_that_of_the_gradients(method: str, clip: str) -> None:
    factory = getattr(presets.keras, method)
    x = {"a": jnp.full(2, 2.0), "b": jnp.full(3, -1.0)}
    g = {"a": np.array([3.0, -0.1], np.float32), "b": np.array([0.3, 0.2, -0.1], np.float32)}
    cut = clipped(g, **{**dict.fromkeys(CLIPS), clip: 0.25})
    found = two_updates(made(factory, **{clip: 0.25}), g, x)
    expected = two_updates(made(factory), jax.tree.map(jnp.asarray, cut), x)
    for name in x:
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-5)


def test_steps_that_optaxs_adafactor_does_not_count() -> None:
    """Its decay at step t is that of step t - offset; the library's own has the same argument."""
    words = dict(decay_rate=0.7, decay_offset=2, momentum=None)
    theirs = presets.optax.adafactor(0.1, factored=False, **words)
    ours = adaptx.adafactor(0.1, factored=None, relative_step=False, **words)
    x, nus = jnp.ones(3), []
    for tx in (theirs, ours, presets.optax.adafactor(0.1, factored=False, decay_rate=0.7)):
        state = tx.init(x)
        for size in (1.0, 2.0, 3.0, 4.0):
            _, state = tx.update(size * x, state, x)
        nus.append(np.asarray(state.nu))
    np.testing.assert_allclose(nus[0], nus[1], rtol=1e-6)
    assert np.all(np.abs(nus[0] / nus[2] - 1) > 0.01)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_floor_of_torchs_adafactor_is_float32s(dtype: str) -> None:
    """A root of 1e-9 counts as the spacing of float32 at 1, also for 16-bit parameters."""
    tx, x = presets.torch.adafactor(lr=0.01), jnp.ones(3, dtype)
    u, _ = tx.update(jnp.full(3, 1e-9, dtype), tx.init(x), x)
    np.testing.assert_allclose(np.asarray(u, float), -0.01 * 1e-9 / float(jnp.finfo(jnp.float32).eps), rtol=1e-2)


def test_a_decay_of_zero_asks_for_no_parameters() -> None:
    for tx in (presets.torch.adam(), presets.torch.adamw(weight_decay=0.0), presets.optax.adadelta(0.1)):
        tx.update({"w": jnp.ones(2)}, tx.init({"w": jnp.ones(2)}))
    tx = presets.torch.adam(weight_decay=0.1)
    with pytest.raises(ValueError, match=r"presets\.torch\.adam: update needs params"):
        tx.update({"w": jnp.ones(2)}, tx.init({"w": jnp.ones(2)}))


@pytest.mark.parametrize("clip", ["clipnorm", "clipvalue", "global_clipnorm"])
def test_clipping_hides_no_inf_and_keeps_trees(clip: str) -> None:
    tx = presets.keras.adam(**{clip: 0.5})
    g = {"a": jnp.array([3.0, jnp.inf]), "b": jnp.array([4.0]), "none": None}
    x = {"a": jnp.ones(2), "b": jnp.ones(1), "none": None}
    u, state = tx.update(g, tx.init(x), x)
    assert not jnp.isfinite(u["a"]).all()
    assert bool(jnp.isfinite(u["b"]).all()) == (clip != "global_clipnorm")
    assert u["none"] is None
    assert type(state).__name__ == "AdamState"
    tx.update({}, tx.init({}), {})
    with pytest.raises(TypeError, match=r"the gradient at \['a'\] is int32"):
        tx.update({**g, "a": jnp.arange(2)}, tx.init(x), x)
    with pytest.raises(TypeError, match=r"presets\.keras\.adam: the gradient at \['a'\] is str"):
        tx.update({**g, "a": "a"}, tx.init(x), x)


def test_values_of_complex_numbers_are_not_clipped() -> None:
    x = {"w": jnp.ones(2, jnp.complex64)}
    tx = presets.keras.adam(clipvalue=0.5)
    with pytest.raises(TypeError, match=r"presets\.keras\.adam: clipvalue takes real gradients only"):
        tx.update(x, tx.init(x), x)


def test_huge_gradients_are_clipped_in_their_direction() -> None:
    g = jnp.array([3e11, 4e11])
    for clip in ("clipnorm", "global_clipnorm"):
        tx = presets.keras.rmsprop(1.0, rho=0.0, epsilon=1.0, **{clip: 0.5})
        u, _ = tx.update(g, tx.init(g), g)
        np.testing.assert_allclose(u, -np.array([0.3, 0.4]) / np.sqrt(1 + np.array([0.09, 0.16])), rtol=1e-5)


falls = lambda count: 0.1 / (1 + count)
# What two frameworks share, and what an optimizer here is.
SAME = [
    (presets.torch.adam(0.1), presets.optax.adam(0.1)),
    (presets.torch.adam(0.1), adaptx.adam(0.1)),
    (presets.torch.adamw(0.1), adaptx.adamw(0.1)),
    (presets.torch.adamax(0.1), presets.optax.adamax(0.1)),
    (presets.torch.rmsprop(0.1, alpha=0.9), presets.optax.rmsprop(0.1, eps_in_sqrt=False)),
    (presets.keras.adagrad(0.1), presets.optax.adagrad(0.1)),
    (presets.keras.lion(0.1), presets.optax.lion(0.1, weight_decay=0.0)),
    (presets.optax.nadam(0.1), adaptx.nadam(0.1, momentum_decay=None)),
    (presets.optax.nadam(0.1), presets.optax.adam(0.1, nesterov=True)),
    (presets.keras.nadam(0.1, epsilon=1e-8), presets.torch.nadam(0.1, momentum_decay=1.0)),
]
# Where the catalogue says that they differ, with arguments alike.
DIFFERENT = [
    (presets.torch.adam(0.1, eps=1e-2), presets.keras.adam(0.1, epsilon=1e-2)),
    (presets.torch.adam(0.1, amsgrad=True), presets.optax.amsgrad(0.1)),
    (presets.torch.adagrad(0.1, eps=1e-2), presets.keras.adagrad(0.1, 0.0, epsilon=1e-2)),
    (presets.torch.adamax(0.1, (0.9, 0.5), 1e-2), presets.keras.adamax(0.1, 0.9, 0.5, 1e-2)),
    (presets.torch.nadam(0.1, momentum_decay=0.0), presets.optax.nadam(0.1)),
    (presets.torch.radam(0.1, eps=1e-2), presets.optax.radam(0.1, eps=1e-2)),
    (presets.torch.radam(0.1), radam(0.1)),
    (presets.torch.adam(0.1, weight_decay=0.1), presets.torch.adam(0.1, weight_decay=0.1, decoupled_weight_decay=True)),
    (presets.torch.rmsprop(falls, 0.9, momentum=0.9), presets.optax.rmsprop(falls, eps_in_sqrt=False, momentum=0.9)),
    (presets.torch.adafactor(0.5), presets.optax.adafactor(0.5, 1)),
    (presets.torch.adafactor(0.1, weight_decay=1.0), presets.keras.adafactor(0.1, weight_decay=1.0)),
]  # fmt: skip


def _distances(pairs: list[Any]) -> list[float]:
    """How far each pair is apart after 8 steps."""
    x = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)}
    gs = [jax.tree.map(lambda a, i=i: jnp.sin(7 * a + i) / (1 + i), x) for i in range(8)]

    def end(tx: Any) -> Any:
        params, state = x, tx.init(x)
        for g in gs:
            u, state = tx.update(g, state, params)
            params = optax.apply_updates(params, u)
        return params["w"]

    ends = [end(tx) for tx in itertools.chain(*pairs)]
    return [float(jnp.max(jnp.abs(a - b))) for a, b in zip(ends[::2], ends[1::2], strict=True)]


@pytest.mark.suite
def test_what_coincides_and_what_differs() -> None:
    assert max(_distances(SAME)) < 1e-5
    assert min(_distances(DIFFERENT)) > 1e-4


def test_every_word_is_used_and_every_argument_has_one() -> None:
    for name, framework in FRAMEWORKS.items():
        used = {a for f, _, factory in PRESETS if f == name for a in inspect.signature(factory).parameters}
        assert framework.words.keys() <= used
        assert not framework.instead.keys() & used
    assert all(word.meaning for framework in FRAMEWORKS.values() for word in framework.words.values())
    assert GLOSSARY["eps"].meaning != FRAMEWORKS["optax"].words["eps"].meaning  # theirs may be under the root


def test_the_catalogue_tells_every_method() -> None:
    assert DIFFERENCES.keys() == {method for _, method, _ in PRESETS}
    for line in presets_section().splitlines():
        assert not line.startswith("| `") or line.count("|") == 6
