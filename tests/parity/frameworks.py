"""The frameworks themselves: one trajectory in float64. Needs the environment of `make parity`."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("KERAS_BACKEND", "jax")  # read at import

import contextlib
import functools
import inspect
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import keras
import numpy as np
import optax
import torch
from keras.src.backend.common import dtypes
from optax._src import factorized

from tests.parity.ours import scanned
from tests.parity.problem import SHAPES, STEPS, Problem, Setting, flat, rate_name, schedule
from tests.parity.settings import METHODS

jax.config.update("jax_enable_x64", True)
keras.config.set_floatx("float64")
torch.set_default_dtype(torch.float64)  # torch's NAdam keeps its product in it
VERSIONS = {"torch": torch.__version__.partition("+")[0], "keras": keras.__version__, "optax": optax.__version__}


def made_by(framework: str, method: str) -> Any:
    """The framework's class or function."""
    name = METHODS[framework][method][0]
    return getattr({"torch": torch.optim, "keras": keras.optimizers, "optax": optax}[framework], name)


def default_rate(framework: str, method: str) -> float:
    return inspect.signature(made_by(framework, method)).parameters[rate_name(framework)].default


def trajectory(framework: str, method: str, setting: Setting, problem: Problem) -> np.ndarray:
    """The parameters after each step, flat."""
    run = {"torch": _torch, "keras": _keras, "optax": _optax}[framework]
    rate = setting.kwargs.get(rate_name(framework), default_rate(framework, method))
    return run(made_by(framework, method), dict(setting.kwargs), rate, setting.slowing, problem)


def _torch(factory: Any, kwargs: dict[str, Any], rate: Any, slowing: float | None, problem: Problem) -> np.ndarray:
    params = {k: torch.tensor(x, dtype=torch.float64, requires_grad=True) for k, x in problem.params.items()}
    optimizer = factory([params[k] for k in SHAPES], **kwargs)
    factor = schedule(1.0, slowing or 0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    path = []
    for t in range(STEPS):
        for k in SHAPES:
            params[k].grad = torch.tensor(problem.grads[k][t], dtype=torch.float64)
        optimizer.step()
        if slowing is not None:
            scheduler.step()
        path.append(flat({k: params[k].detach().numpy().copy() for k in SHAPES}))
    return np.stack(path)


class _Slowed(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, rate: float, slowing: float) -> None:
        self.rate, self.slowing = rate, slowing

    def __call__(self, step: Any) -> Any:
        return schedule(self.rate, self.slowing)(keras.ops.cast(step, "float64"))


def _keras(factory: Any, kwargs: dict[str, Any], rate: Any, slowing: float | None, problem: Problem) -> np.ndarray:
    if slowing is not None:
        kwargs["learning_rate"] = _Slowed(rate, slowing)
    optimizer = factory(**kwargs)
    variables = {k: keras.Variable(x, dtype="float64") for k, x in problem.params.items()}
    path = []
    for t in range(STEPS):
        grads = [keras.ops.convert_to_tensor(problem.grads[k][t], dtype="float64") for k in SHAPES]
        optimizer.apply(grads, [variables[k] for k in SHAPES])
        path.append(flat({k: np.asarray(keras.ops.convert_to_numpy(variables[k])) for k in SHAPES}))
    return np.stack(path)


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Both Adafactors hide what is below 1e-7, since Keras takes means in float32, whatever it is given, and Optax its
    decay 1 - t^-c: here both are in float64."""
    exact = lambda count, c: 1 - (count + 1.0) ** -c
    rule = functools.partial(factorized.scale_by_factored_rms, decay_rate_fn=exact)
    widest = mock.patch.dict(dtypes.BIT64_TO_BIT32_DTYPE, float64="float64")
    with mock.patch.object(factorized, "scale_by_factored_rms", rule), widest:
        yield


def _optax(factory: Any, kwargs: dict[str, Any], rate: Any, slowing: float | None, problem: Problem) -> np.ndarray:
    if slowing is not None:
        kwargs["learning_rate"] = schedule(rate, slowing)
    if "dtype_momentum" in inspect.signature(factory).parameters:
        kwargs["dtype_momentum"] = "float64"  # which is float32 whatever the parameters are
    return flat(jax.jit(lambda p: scanned(factory(**kwargs), *p))(tuple(problem)))
