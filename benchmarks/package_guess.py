"""Hashed logistic regression: which top-level package does a file belong to, by the bag of its words?

A table of 2^20 hashed features, a row of weights for each, of which a file names a few hundred. With l1 most weights
come out exactly zero: by AdaGrad's proximal step, and by FTRL-Proximal, which was made for this (McMahan et al. 2013,
https://doi.org/10.1145/2487575.2488200).
"""

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from adaptx import sparse
from benchmarks.corpus import CorpusError, Source

FEATURES = 2**20
LEFT_OUT = {"test"}  # it has files about everything
AT_LEAST = 10  # files of a package, so that some are held out
HELD_OUT = 0.25
BATCH = 16
RATE, FIRST = 0.3, 1e-4
# FTRL's penalty is on the sum of all gradients, the proximal step's on each: the same number weighs less in FTRL.
PENALTIES = {"adagrad": (3e-5, 1e-4, 3e-4, 1e-3), "ftrl": (3e-3, 1e-2, 3e-2, 1e-1)}


class Split(NamedTuple):
    """Files as padded bags of hashed words."""

    ids: NDArray[np.int32]  # (files, most words); -1 is padding
    weights: NDArray[np.float32]  # log(1 + count), of length 1 for each file
    label: NDArray[np.int32]


class Data(NamedTuple):
    classes: list[str]
    train: Split
    test: Split

    @property
    def majority(self) -> float:
        """Accuracy of the answer that is right most often."""
        counts = np.bincount(self.test.label, minlength=len(self.classes))
        return float(counts[np.bincount(self.train.label).argmax()] / counts.sum())


def split(sources: Sequence[Source], rng: np.random.Generator) -> Data:
    """Files of every package that has enough of them, a quarter of each package's held out."""
    files = [s for s in sources if s.package and s.package not in LEFT_OUT and s.words]
    classes = sorted(name for name, count in Counter(s.package for s in files).items() if name and count >= AT_LEAST)
    if len(classes) < 2:
        raise CorpusError(f"fewer than two packages have {AT_LEAST} files each: nothing to tell apart")
    train, test = [], []
    for number, name in enumerate(classes):
        own = [s for s in files if s.package == name]
        order = rng.permutation(len(own))
        cut = round(HELD_OUT * len(own))
        test += [(own[i], number) for i in order[:cut]]
        train += [(own[i], number) for i in order[cut:]]
    return Data(classes, _bags(train), _bags(test))


def _bags(files: list[tuple[Source, int]]) -> Split:
    hashed = [Counter(zlib.crc32(word.encode()) % FEATURES for word in source.words) for source, _ in files]
    ids = np.full((len(files), max(map(len, hashed))), -1, np.int32)
    weights = np.zeros(ids.shape, np.float32)
    for row, counts in enumerate(hashed):
        ids[row, : len(counts)] = list(counts)
        weights[row, : len(counts)] = np.log1p(list(counts.values()))
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    return Split(ids, weights, np.array([label for _, label in files], np.int32))


@dataclass
class Run:
    """One optimizer on the task; lists have an entry for each epoch, the first one before training."""

    optimizer: str
    l1: float
    losses: list[float] = field(default_factory=list)  # on the files trained on, without the penalty
    accuracies: list[float] = field(default_factory=list)  # on those held out
    nonzero: list[int] = field(default_factory=list)  # weights

    @property
    def tx(self) -> optax.GradientTransformationExtraArgs:
        """With beta=0, and without penalty, FTRL takes AdaGrad's steps."""
        if self.optimizer == "ftrl":
            return sparse.ftrl(RATE, initial_accumulator=FIRST, beta=0.0, l1=self.l1)
        return sparse.adagrad(RATE, initial_accumulator=FIRST, l1=self.l1 or None)


def runs() -> list[Run]:
    """First without a penalty."""
    return [Run("adagrad", 0.0), *(Run(name, l1) for name, penalties in PENALTIES.items() for l1 in penalties)]


def loss(bias: jax.Array, rows: jax.Array, batch: Any) -> jax.Array:
    """Mean cross-entropy; rows of weights (files, words, classes)."""
    weights, label = batch
    logits = bias[None] + jnp.einsum("fw,fwc->fc", weights, rows)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, label))


def train(
    data: Data, rng: np.random.Generator, epochs: int, tick: Callable[[], None], found: list[Run] | None = None
) -> list[Run]:
    """All runs, an epoch each in turn, over the same batches; Ctrl-C keeps the epochs that all have done."""
    found = runs() if found is None else found
    steps = len(data.train.label) // BATCH
    if not steps:
        raise CorpusError(f"{len(data.train.label)} files to train on are fewer than a batch of {BATCH}")
    gradient = sparse.rows_value_and_grad(loss)

    def epoch_of(tx: optax.GradientTransformationExtraArgs) -> Any:
        def step(carry: Any, batch: Any) -> Any:
            params, state = carry
            ids, *rest = batch
            value, (bias, table) = gradient(params["bias"], params["table"], ids, rest)
            updates, state = tx.update({"bias": bias, "table": table}, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.jit(lambda params, state, epoch: jax.lax.scan(step, (params, state), epoch), donate_argnums=(0, 1))

    programs = [epoch_of(run.tx) for run in found]
    zeros = lambda: {"bias": jnp.zeros(len(data.classes)), "table": jnp.zeros((FEATURES, len(data.classes)))}
    carried = [(params := zeros(), run.tx.init(params)) for run in found]
    for run, (params, _) in zip(found, carried, strict=True):
        _record(run, params, data)
    try:
        for _ in range(epochs):
            order = rng.permutation(len(data.train.label))[: steps * BATCH].reshape(steps, BATCH)
            epoch = [jnp.asarray(part[order]) for part in data.train]
            for number, run in enumerate(found):
                carried[number], _ = programs[number](*carried[number], epoch)
                _record(run, carried[number][0], data)
            tick()
    except KeyboardInterrupt:
        whole = min(len(run.nonzero) for run in found)
        for run in found:
            del run.losses[whole:], run.accuracies[whole:], run.nonzero[whole:]
    return found


@jax.jit
def _judged(params: Any, split: Split) -> tuple[jax.Array, jax.Array]:
    """Loss and accuracy, a few files at a time."""

    def of_file(file: Any) -> Any:
        ids, weights, label = file
        rows = sparse.read(params["table"], None, ids)
        logits = params["bias"] + weights @ rows
        return optax.softmax_cross_entropy_with_integer_labels(logits, label), jnp.argmax(logits) == label

    losses, right = jax.lax.map(of_file, split)
    return jnp.mean(losses), jnp.mean(right)


def _record(run: Run, params: Any, data: Data) -> None:
    run.losses.append(float(_judged(params, data.train)[0]))
    run.accuracies.append(float(_judged(params, data.test)[1]))
    run.nonzero.append(int(jnp.count_nonzero(params["table"])))


def trained_weights(data: Data) -> int:
    """Weights of the features that the training files have: those that could have moved."""
    ids = data.train.ids
    return len(np.unique(ids[ids >= 0])) * len(data.classes)
