"""One training run: a Flax model, an optimizer in an Optax chain, a jitted step that donates, and what is measured.

`make_step` is the part to copy into a program of your own.
"""

import inspect
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from adaptx import curvature
from adaptx.registry import GLOSSARY, OPTIMIZERS
from benchmarks.data import Dataset, Split

BASELINE = "sgd"
NAMES = (*OPTIMIZERS, BASELINE)
BATCH = 64
FULL_BATCH = ("rprop",)  # it takes the signs that small batches change for turns
STRETCHES = 40  # a run is measured this often


class Task(NamedTuple):
    dataset: Dataset
    model: str
    sizes: tuple[int, ...]  # of the layers, inputs first
    batch: int = BATCH  # rows

    @property
    def name(self) -> str:
        return f"{self.dataset.name}, {self.model}"


def tasks_on(dataset: Dataset, optimizer: str = BASELINE) -> list[Task]:
    """What an optimizer is shown on: small layers where it keeps a matrix for each, all rows at once where it must."""
    features = dataset.train.x.shape[1]
    hidden, layers = (8, ", 8 wide") if is_limited(optimizer) else (None, "")
    batch, rows = (len(dataset.train.x), ", all rows") if optimizer in FULL_BATCH else (BATCH, "")
    if dataset.classes is not None:
        name = f"two-layer classifier{layers}{rows}"
        return [Task(dataset, name, (features, hidden or 128, dataset.classes), batch)]
    hidden = hidden or 32
    return [
        Task(dataset, f"linear regression{rows}", (features, 1), batch),
        Task(dataset, f"MLP regression{layers}{rows}", (features, hidden, hidden, 1), batch),
    ]


def is_limited(optimizer: str) -> bool:
    """Whether it refuses tensors beyond some size."""
    arguments = () if optimizer == BASELINE else inspect.signature(OPTIMIZERS[optimizer].factory).parameters
    return any(GLOSSARY[argument].limit for argument in arguments)


def default_rate(name: str) -> float:
    return 0.1 if name == BASELINE else OPTIMIZERS[name].typical_rate


class Measurement(NamedTuple):
    """The model after `step` steps, and what happened since the measurement before."""

    step: int
    train_loss: float
    test_loss: float
    accuracy: float  # on the test rows; NaN for a regression
    layer_rates: NDArray[np.floating]  # effective, one for each layer; NaN at step 0
    seconds: float  # per step; NaN where there was none, or it compiled


@dataclass
class Run:
    """A run's settings, and its measurements so far: a run cut short keeps them."""

    task: Task
    optimizer: str
    rate: float
    steps: int
    seed: int
    state_bytes: float = 0.0  # per parameter
    measured: list[Measurement] = field(default_factory=list)

    @property
    def done(self) -> int:
        return self.measured[-1].step if self.measured else 0


def make_model(sizes: tuple[int, ...], seed: int) -> nnx.Module:
    rngs = nnx.Rngs(seed)
    first, *rest = [nnx.Linear(a, b, rngs=rngs) for a, b in pairwise(sizes)]
    return nnx.Sequential(first, *(module for layer in rest for module in (nnx.relu, layer)))


def make_optimizer(name: str, rate: float, steps: int) -> optax.GradientTransformationExtraArgs:
    """Clipping, then the optimizer under a schedule: a tenth of the steps up to `rate`, then a cosine down.

    Where the method finds its own step size (dog) the schedule multiplies it.
    """
    return optax.chain(optax.clip_by_global_norm(1.0), factory_of(name)(schedule_of(rate, steps)))


def schedule_of(rate: float, steps: int) -> optax.Schedule:
    return optax.warmup_cosine_decay_schedule(rate / 100, rate, steps // 10, steps, end_value=rate / 100)


def factory_of(name: str) -> Any:
    return optax.sgd if name == BASELINE else OPTIMIZERS[name].factory


def updates_of(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformationExtraArgs,
    params: Any,
    state: Any,
    batch: Split,
    key: Array,
) -> tuple[Any, optax.OptState, Any, Array]:
    """Updates, state, gradients and the loss. The Hessian is given as a function, which most optimizers never call."""
    of_params = lambda p: loss(nnx.merge(graph, p)(batch.x), batch.y)
    value, gradients = jax.value_and_grad(of_params)(params)
    hessian = lambda: curvature.hutchinson(of_params, params, key)
    updates, state = optimizer.update(gradients, state, params, value=value, hessian=hessian)
    return updates, state, gradients, value


def make_step(graph: nnx.GraphDef, optimizer: optax.GradientTransformationExtraArgs) -> jax.stages.Wrapped:
    """`step(params, state, batch, number) -> (params, state, squares)`; params and state are donated.

    Same order in and out: XLA pairs donated buffers with results by shape, in order, and swapping the two would cost
    two full copies. `squares` holds, a row for each layer, the sums of squares of the update and of the gradient. The
    step's number makes what is drawn at random differ from step to step.
    """

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: optax.OptState, batch: Split, number: Any) -> tuple[Any, optax.OptState, Array]:
        key = jax.random.fold_in(jax.random.key(0), number)
        updates, state, gradients, _ = updates_of(graph, optimizer, params, state, batch, key)
        squares = jnp.stack([layer_squares(updates), layer_squares(gradients)], axis=1)
        return optax.apply_updates(params, updates), state, squares

    return step


@partial(jax.jit, static_argnums=0)
def evaluate(graph: nnx.GraphDef, params: nnx.State, rows: Split) -> tuple[Array, Array]:
    """Loss, and the part of the rows classified rightly (NaN for a regression)."""
    outputs = nnx.merge(graph, params)(rows.x)
    right = jnp.mean(outputs.argmax(1) == rows.y) if jnp.issubdtype(rows.y.dtype, jnp.integer) else jnp.nan
    return loss(outputs, rows.y), jnp.asarray(right)


def loss(outputs: Array, y: Array | NDArray) -> Array:
    """Mean cross-entropy where the targets are classes, else mean squared error."""
    if jnp.issubdtype(y.dtype, jnp.integer):
        return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()
    return optax.squared_error(outputs[:, 0], y).mean()


def layer_squares(tree: Any) -> Array:
    """The sum of squares over each layer's arrays, layers in the order of the tree."""
    sums: dict[Any, Array] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        sums[path[:2]] = sums.get(path[:2], 0.0) + jnp.sum(leaf * leaf)
    return jnp.stack(list(sums.values()))


def refusal(run: Run) -> str:
    """What the optimizer has against the model, or nothing."""
    params = nnx.split(make_model(run.task.sizes, run.seed), nnx.Param)[1]
    try:
        jax.eval_shape(make_optimizer(run.optimizer, run.rate, run.steps).init, params)
    except ValueError as error:
        return str(error)
    return ""


def train(run: Run) -> Iterator[int]:
    """Trains; after each stretch adds a measurement to the run and yields the number of steps in that stretch."""
    graph, params = nnx.split(make_model(run.task.sizes, run.seed), nnx.Param)
    optimizer = make_optimizer(run.optimizer, run.rate, run.steps)
    state = optimizer.init(params)
    run.state_bytes = tree_bytes(state) / sum(leaf.size for leaf in jax.tree.leaves(params))
    step = make_step(graph, optimizer)
    batches = endless_batches(run.task.dataset.train, run.seed, run.task.batch)

    def measure(at: int, layer_rates: NDArray[np.floating], seconds: float) -> None:
        train_loss, _ = evaluate(graph, params, run.task.dataset.train)
        test_loss, accuracy = evaluate(graph, params, run.task.dataset.test)
        run.measured.append(Measurement(at, float(train_loss), float(test_loss), float(accuracy), layer_rates, seconds))

    measure(0, np.full(len(run.task.sizes) - 1, np.nan), np.nan)
    # The first stretch is the one step that compiles, so that no later one does.
    for start, stop in pairwise(sorted({0, 1, *np.linspace(0, run.steps, STRETCHES + 1, dtype=int).tolist()})):
        squares = []
        began = time.perf_counter()
        for number in range(start, stop):
            params, state, layers = step(params, state, next(batches), number)
            squares.append(layers)
        jax.block_until_ready(params)
        seconds = (time.perf_counter() - began) / (stop - start)
        update, gradient = np.sum(jax.device_get(squares), axis=0, dtype=float).T
        measure(stop, np.sqrt(update / np.where(gradient > 0, gradient, np.nan)), seconds if start else np.nan)
        yield stop - start


def tree_bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def endless_batches(rows: Split, seed: int, batch: int = BATCH) -> Iterator[Split]:
    """Shuffled anew each epoch; rows that do not fill a batch wait for the next epoch."""
    rng = np.random.default_rng(seed)
    size = min(batch, len(rows.x))
    while True:
        order = rng.permutation(len(rows.x))
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            yield Split(rows.x[chosen], rows.y[chosen])
