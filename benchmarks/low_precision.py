"""Two trainings in low precision: digits by an MLP, and the bytes of the standard library's sources by a small
transformer. Each way to store parameters and state takes the same batches from the same first values."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from numpy.typing import NDArray

import adaptx
from adaptx import precision
from adaptx.precision.codecs import Codec
from adaptx.precision.compress import NAMED, array_of, rows_of
from benchmarks.corpus import CorpusError, sources_in, standard_library
from benchmarks.data import digits
from benchmarks.training import make_model, schedule_of

SEEDS = 5


class Way(NamedTuple):
    """How parameters and state are stored."""

    name: str
    dtype: Any  # of the parameters
    wrap: Callable[[Any], Any]
    most: float | None  # how much larger the final test loss may be, as a share of float32's


def ways() -> list[Way]:
    """What is compared: float32 first, then state in fewer bits, then parameters."""
    compressed = lambda rules: functools.partial(precision.compress_state, rules=rules)
    rounding = lambda tx: optax.chain(tx, precision.stochastic_rounding(0))
    return [
        Way("float32", jnp.float32, lambda tx: tx, None),
        Way("state bfloat16", jnp.float32, compressed("bfloat16"), 0.02),
        Way("state 8bit", jnp.float32, compressed("8bit"), 0.02),
        Way("state 4bit", jnp.float32, compressed("4bit"), 0.06),
        Way("parameters bfloat16", jnp.bfloat16, lambda tx: tx, None),
        Way("the same, stochastic_rounding", jnp.bfloat16, rounding, 0.02),
        Way("the same, kahan", jnp.bfloat16, lambda tx: optax.chain(tx, precision.kahan()), 0.02),
        Way("the same, master_weights", jnp.bfloat16, precision.master_weights, 0.02),
    ]


class Problem(NamedTuple):
    """A model and batches; the same for a seed whatever the way."""

    name: str
    rate: float
    steps: int
    model: Callable[[int], nnx.Module]
    loss: Callable[[Any, Any], jax.Array]  # of a model on a batch
    batches: Callable[[int], Any]  # by seed: a tree with leading axes (steps, batch)
    test: Any  # a tree with leading axes (batches, batch)


def digits_problem(steps: int = 800) -> Problem:
    """1,437 rows, an MLP of 51 thousand weights."""
    data = digits(0)

    def batches(seed: int) -> Any:
        rows = np.random.default_rng(seed).integers(0, len(data.train.x), (steps, 64))
        return data.train.x[rows], data.train.y[rows]

    def loss(model: Any, batch: Any) -> jax.Array:
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(model(batch[0]), batch[1]))

    test = (data.test.x[None], data.test.y[None])
    return Problem("digits", 1e-3, steps, lambda seed: make_model((64, 256, 128, 10), seed), loss, batches, test)


class Transformer(nnx.Module):
    """One layer that looks at the bytes before."""

    def __init__(self, rngs: nnx.Rngs, width: int = 96, heads: int = 4, length: int = 128) -> None:
        self.embed = nnx.Embed(256, width, rngs=rngs)
        self.place = nnx.Embed(length, width, rngs=rngs)
        self.before, self.between, self.last = (nnx.LayerNorm(width, rngs=rngs) for _ in range(3))
        self.attention = nnx.MultiHeadAttention(heads, width, rngs=rngs, decode=False)
        self.wide, self.narrow = nnx.Linear(width, 4 * width, rngs=rngs), nnx.Linear(4 * width, width, rngs=rngs)
        self.head = nnx.Linear(width, 256, rngs=rngs)

    def __call__(self, text: jax.Array) -> jax.Array:
        """Bytes (batch, length) to scores of the next ones (batch, length, 256)."""
        x = self.embed(text) + self.place(jnp.broadcast_to(jnp.arange(text.shape[-1]), text.shape))
        x = x + self.attention(self.before(x), mask=nnx.make_causal_mask(text))
        x = x + self.narrow(nnx.gelu(self.wide(self.between(x))))
        return self.head(self.last(x))


def source_bytes(most: int = 8_000_000) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The sources of the standard library as bytes, some files to train on and others to test."""
    root = standard_library()
    paths = sources_in(root)
    order = np.random.default_rng(0).permutation(len(paths))
    texts: list[bytes] = []
    for i in order:
        texts.append(paths[i].read_bytes())
        if sum(map(len, texts)) > most:
            break
    parts = texts[len(texts) // 10 :], texts[: len(texts) // 10]
    train, test = (np.frombuffer(b"".join(part), np.uint8) for part in parts)
    if min(len(train), len(test)) < 100_000:
        raise CorpusError(f"{root}: too few Python sources to train on")
    return train, test


def bytes_problem(steps: int = 300, batch: int = 16, length: int = 128) -> Problem:
    """A transformer of 199 thousand weights."""
    train, held_out = source_bytes()

    def cut(text: NDArray[np.uint8], rng: np.random.Generator, count: int) -> NDArray[np.int32]:
        at = rng.integers(0, len(text) - length - 1, (count, batch))
        return text[at[..., None] + np.arange(length + 1)].astype(np.int32)

    def loss(model: Any, text: Any) -> jax.Array:
        scores = model(text[:, :-1])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, text[:, 1:]))

    model = lambda seed: Transformer(nnx.Rngs(seed), length=length)
    batches = lambda seed: cut(train, np.random.default_rng(seed), steps)
    return Problem("library bytes", 3e-3, steps, model, loss, batches, cut(held_out, np.random.default_rng(0), 40))


# The L2 error that Adam's next update may have when its moments were stored; and the networks that is looked at on.
UPDATE_MOST = {"bfloat16": 0.003, "8bit": 0.015, "4bit": 0.22}
NETWORKS = ((64, 128, 10), (64, 256, 10), (64, 256, 256, 10))


def update_errors(sizes: tuple[int, ...], steps: int = 800) -> dict[str, float]:
    """By rules: how far the update from the stored moments of a trained network is off, as a share of it. Over the
    arrays that are stored in few bits."""
    problem = digits_problem(steps)
    graph, params = nnx.split(make_model(sizes, 0))
    train = jax.jit(functools.partial(_trained, problem, graph, adaptx.adam(problem.rate)))
    state: Any = train(params, problem.batches(0))[2]
    pairs = [p for p in zip(*map(jax.tree.leaves, (state.mu, state.nu)), strict=True) if p[0].size >= 4096]
    # Bias corrections are the same on both sides.
    update = lambda m, v: np.ravel(m / (jnp.sqrt(v) + 1e-8))
    exact, found = np.concatenate([update(*pair) for pair in pairs]), {}
    for rules in UPDATE_MOST:
        codecs = {store.field: store.codec for store in NAMED[rules]}
        stored = lambda a, field, codecs=codecs: _stored_and_read(codecs[field], a)
        read = np.concatenate([update(stored(m, "mu"), stored(v, "nu")) for m, v in pairs])
        found[rules] = float(np.linalg.norm(read - exact) / np.linalg.norm(exact))
    return found


def _stored_and_read(codec: Codec, a: jax.Array, block: int = 128) -> jax.Array:
    return array_of(rows_of(a, codec, block), codec, a.shape, a.dtype)


@dataclass
class Result:
    """What a way came to on a problem, for each seed."""

    way: Way
    test: list[float] = field(default_factory=list)  # the final test losses
    train: list[NDArray[np.floating]] = field(default_factory=list)  # the losses of the batches, a step each

    def excess(self, exact: Result) -> NDArray[np.float64]:
        """How much larger the test loss is than float32's from the same seed, as a share of it."""
        return np.array(self.test) / np.array(exact.test[: len(self.test)]) - 1


def trained(problem: Problem, seeds: int, tick: Callable[[], None]) -> Iterator[list[Result]]:
    """The results after each seed; the ways in turn."""
    results = [Result(way) for way in ways()]
    graph, _ = nnx.split(problem.model(0))
    run = {way.name: jax.jit(functools.partial(_run, problem, graph, way)) for way in ways()}
    for seed in range(seeds):
        params, batches = nnx.state(problem.model(seed)), problem.batches(seed)
        for result in results:
            losses, test = run[result.way.name](params, batches, problem.test)
            result.test.append(float(test))
            result.train.append(np.asarray(losses))
            tick()
        yield results


def _run(problem: Problem, graph: Any, way: Way, params: Any, batches: Any, test: Any) -> Any:
    """The losses of all steps, and the final test loss."""
    tx = way.wrap(adaptx.adamw(schedule_of(problem.rate, problem.steps), weight_decay=0.01))
    params = jax.tree.map(lambda x: x.astype(way.dtype), params)
    losses, params, _ = _trained(problem, graph, tx, params, batches)
    return losses, jnp.mean(jax.lax.map(lambda batch: _loss(problem, graph, params, batch), test))


def _trained(problem: Problem, graph: Any, tx: Any, params: Any, batches: Any) -> Any:
    """The losses of all steps, parameters and state."""

    def step(carry: Any, batch: Any) -> Any:
        params, state = carry
        value, grads = jax.value_and_grad(functools.partial(_loss, problem, graph))(params, batch)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    (params, state), losses = jax.lax.scan(step, (params, tx.init(params)), batches)
    return losses, params, state


def _loss(problem: Problem, graph: Any, params: Any, batch: Any) -> jax.Array:
    """In float32, whatever the parameters are stored in; their gradients are rounded to that again."""
    full = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    return problem.loss(nnx.merge(graph, full), batch)
