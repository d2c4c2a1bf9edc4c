"""Skip-gram word vectors with negative sampling: two tables of which a step uses a few thousand rows.

Mikolov, Sutskever, Chen, Corrado, Dean 2013, https://arxiv.org/abs/1310.4546. Three optimizers take the same steps from
the same first values, in turn, in one process: dense `optax.adagrad`, `sparse.adagrad` (the same rule, so the same loss
curve), and `sparse.rowwise_adagrad` (one accumulator for each word).
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from numpy.typing import NDArray

from adaptx import sparse
from benchmarks.corpus import CorpusError, Source, vocabulary
from benchmarks.side_by_side import interleaved

AT_LEAST = 2  # a word is kept that is seen so often
WINDOW = 5
FREQUENT = 1e-4  # words of a larger share are dropped at random, down to the root of what is too much
NEGATIVES = 5
RATE, FIRST = 0.1, 0.1
ASKED = ("socket", "thread", "json", "encode", "float", "tuple", "year", "HTTPServer", "assertEqual", "widget")


class SkipGram(nnx.Module):
    """How well words go with contexts: the product of their vectors."""

    def __init__(self, words: int, width: int, rngs: nnx.Rngs) -> None:
        self.word = nnx.Embed(words, width, rngs=rngs, embedding_init=nnx.initializers.uniform(1 / width))
        self.context = nnx.Embed(words, width, rngs=rngs, embedding_init=nnx.initializers.zeros)

    def __call__(self, words: jax.Array, contexts: jax.Array) -> jax.Array:
        """words (batch,), contexts (batch, k) to scores (batch, k)."""
        return jnp.einsum("bd,bkd->bk", self.word(words), self.context(contexts))


class Corpus(NamedTuple):
    vocabulary: dict[str, int]
    stream: NDArray[np.int32]  # the words of all files, frequent ones thinned out
    file: NDArray[np.int32]  # which file each is in: no pair crosses from one to the next
    noise: NDArray[np.float64]  # cumulative shares of the words as negatives


def encoded(sources: Sequence[Source], rng: np.random.Generator) -> Corpus:
    """The corpus as numbers."""
    words = vocabulary(sources, AT_LEAST)
    numbers = [[words[w] for w in source.words if w in words] for source in sources]
    stream = np.concatenate([np.asarray(n, np.int32) for n in numbers])
    if len(stream) < 1000:
        raise CorpusError(f"only {len(stream)} words are seen twice: too few for word vectors")
    file = np.repeat(np.arange(len(numbers), dtype=np.int32), [len(n) for n in numbers])
    share = np.bincount(stream, minlength=len(words)) / len(stream)
    kept = rng.random(len(stream)) < np.sqrt(FREQUENT / share)[stream]
    noise = np.cumsum(share**0.75)
    return Corpus(words, stream[kept], file[kept], noise / noise[-1])


def batches(corpus: Corpus, rng: np.random.Generator, steps: int, size: int) -> tuple[NDArray, NDArray]:
    """Words (steps, size) and for each one context and the negatives (steps, size, 1 + NEGATIVES)."""
    pairs: list[NDArray] = []
    while sum(map(len, pairs)) < steps * size:
        at = rng.integers(len(corpus.stream), size=2 * steps * size)
        near = at + rng.integers(1, WINDOW + 1, at.shape) * rng.choice([-1, 1], at.shape)
        inside = (near >= 0) & (near < len(corpus.stream))
        at, near = at[inside], near[inside]
        same = corpus.file[at] == corpus.file[near]
        pairs.append(np.stack([corpus.stream[at[same]], corpus.stream[near[same]]], axis=-1))
    word, context = np.concatenate(pairs)[: steps * size].reshape(steps, size, 2).transpose(2, 0, 1)
    drawn = np.searchsorted(corpus.noise, rng.random((steps, size, NEGATIVES)))
    return word, np.concatenate([context[..., None], drawn.astype(np.int32)], axis=-1)


@dataclass
class Run:
    """One optimizer on the task."""

    name: str
    tx: optax.GradientTransformationExtraArgs
    value_and_grad: Callable[..., Any]
    params: Any = None
    state: Any = None
    block: Any = None
    losses: list[float] = field(default_factory=list)  # the mean of a block's steps, for each pair
    seconds: list[float] = field(default_factory=list)  # a step, in each block

    def begin(self, graph: Any, params: Any, example: Any) -> None:
        """Compiles a block of steps."""

        def loss(params: Any, words: jax.Array, contexts: jax.Array) -> jax.Array:
            scores = nnx.merge(graph, params)(words, contexts)
            return jnp.sum(jax.nn.softplus(-scores[:, 0])) + jnp.sum(jax.nn.softplus(scores[:, 1:]))

        def step(carry: Any, batch: Any) -> Any:
            params, state = carry
            value, grads = self.value_and_grad(loss)(params, *batch)
            updates, state = self.tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        block = jax.jit(lambda params, state, batch: jax.lax.scan(step, (params, state), batch), donate_argnums=(0, 1))
        self.params, self.state = jax.tree.map(jnp.copy, params), self.tx.init(params)
        self.block = block.lower(self.params, self.state, example).compile()

    def advance(self, batch: Any) -> None:
        """A block of steps."""
        start = time.perf_counter()
        (self.params, self.state), values = self.block(self.params, self.state, batch)
        values = np.asarray(values)
        steps, size = batch[0].shape
        self.seconds.append((time.perf_counter() - start) / steps)
        self.losses.append(float(np.mean(values)) / size)

    def vectors(self) -> NDArray:
        """Each word's, of length 1."""
        table = np.asarray(self.params["word"]["embedding"][...])
        return table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)


def runs() -> list[Run]:
    """Dense first."""
    rows = lambda loss: sparse.value_and_grad(loss, "embedding")
    return [
        Run("optax.adagrad, dense", optax.adagrad(RATE, FIRST), jax.value_and_grad),
        Run("sparse.adagrad", sparse.adagrad(RATE, initial_accumulator=FIRST, eps=0.0, eps_root=1e-7), rows),
        Run("sparse.rowwise_adagrad", sparse.rowwise_adagrad(RATE, initial_accumulator=FIRST), rows),
    ]


def train(
    corpus: Corpus, rng: np.random.Generator, steps: int, size: int, width: int, block: int, tick: Callable[[], None]
) -> list[Run]:
    """All runs, a block of steps each in turn; Ctrl-C keeps what was done."""
    found = runs()
    model = SkipGram(len(corpus.vocabulary), width, nnx.Rngs(int(rng.integers(2**31))))
    graph, params = nnx.split(model, nnx.Param)
    example = batches(corpus, rng, block, size)
    named = {run.name: run for run in found}
    for run in found:
        run.begin(graph, params, example)
    try:
        for order in interleaved([run.name for run in found], -(-steps // block)):
            batch = batches(corpus, rng, block, size)
            for name in order:
                named[name].advance(batch)
            tick()
    except KeyboardInterrupt:
        whole = min(len(run.losses) for run in found)
        for run in found:
            del run.losses[whole:], run.seconds[whole:]
    return found


def speed_up(run: Run, dense: Run) -> float:
    """How many times as fast as the dense run: the median over blocks."""
    return statistics.median(d / s for d, s in zip(dense.seconds, run.seconds, strict=True))


def neighbours(run: Run, corpus: Corpus, count: int = 5) -> dict[str, list[str]]:
    """For each word that is asked for the words whose vectors point most nearly its way."""
    vectors, names = run.vectors(), list(corpus.vocabulary)
    asked = [word for word in ASKED if word in corpus.vocabulary]
    asked += [word for word in names if word not in asked][
        : len(ASKED) - len(asked)
    ]  # of other sources, the most frequent
    found = {}
    for word in asked:
        cosines = vectors @ vectors[corpus.vocabulary[word]]
        found[word] = [names[i] for i in np.argsort(-cosines) if names[i] != word][:count]
    return found
