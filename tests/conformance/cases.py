"""Cases: what a law is applied to, each a registry entry with one of its keyword dicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adaptx.core.rounding import wider
from adaptx.registry import OPTIMIZERS, Entry
from benchmarks.needs import supplied
from tests.equations.references.loop import hessian_of


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One optimizer with one complete keyword dict. A planted defect is a Case whose factory is broken."""

    entry: Entry
    index: int
    factory: Callable[..., optax.GradientTransformationExtraArgs]
    kwargs: Mapping[str, Any]

    @property
    def id(self) -> str:
        return f"{self.entry.name}-{self.index}"

    def tx(self, **changes: Any) -> optax.GradientTransformationExtraArgs:
        """The transformation, with some arguments changed."""
        return self.factory(**{**self.kwargs, **changes})

    def flag(self, name: str) -> Any:
        """A registry flag of this case: reduces, needs, normalised, odd, scale_free, zero_is_fixed, emits."""
        return getattr(self.entry, name)[self.index]

    def emitted(self, dtype: str) -> str:
        """The dtype of an update whose gradient and parameter are at most this wide."""
        return self.flag("emits") or dtype if jnp.finfo(dtype).bits == 16 else dtype

    def broken(self, wrap: Callable[[optax.GradientTransformationExtraArgs], Any]) -> Case:
        """The same case with a defect: `wrap` gets the sound transformation and returns a faulty one."""
        return dataclasses.replace(self, factory=lambda **kwargs: wrap(self.factory(**kwargs)))


# What stands for the other things that an update may need, from the gradients and the parameters.
STAND_INS: dict[str, Callable[[Any, Any], Any]] = {
    "hessian": lambda grads, params: jax.tree.map(_finite_hessian, grads),
    "value": lambda grads, params: jnp.float32(1.0),
}


def _finite_hessian(g: Any) -> Any:
    """In float32 or wider, so that a rounded gradient has a Hessian that is not rounded again."""
    dtype = jnp.result_type(g)
    if not jnp.issubdtype(dtype, jnp.inexact):
        return g  # no gradient, which the update says
    dtype = wider(jnp.float32, jnp.finfo(dtype).dtype)
    return jnp.minimum(hessian_of(jnp.asarray(g)).astype(dtype), jnp.finfo(dtype).max)


CASES = [
    Case(entry, i, supplied(entry, STAND_INS), kwargs)
    for entry in OPTIMIZERS.values()
    for i, kwargs in enumerate(entry.cases)
]


def fullest(cases: list[Case]) -> list[Case]:
    """Of each optimizer the case with all arguments."""
    return [case for case in cases if case.index == len(case.entry.cases) - 1]


def one_of_a_family(cases: list[Case]) -> list[Case]:
    """Of each family the first optimizer's fullest case."""
    return list({case.entry.family: case for case in reversed(fullest(cases))}.values())


DEFAULT = [case for case in CASES if case.index == 0]
FULLEST = fullest(CASES)
PER_OPTIMIZER = [case for case in CASES if case in DEFAULT or case in FULLEST]
ONE_OF_A_FAMILY = one_of_a_family(CASES)


SHAPES: dict[str, tuple[int, ...]] = {"b": (2,), "s": (), "w": (3, 2)}
STACKED = {**SHAPES, "k": (2, 4, 3)}  # for what reads a tensor's axes


def params_like(dtype: Any = jnp.float32, seed: int = 0, shapes: Mapping[str, Any] = SHAPES) -> dict[str, Any]:
    """A small tree with a matrix, a vector and a number; entries of size about 1, none near zero."""
    rng = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...]) -> jax.Array:
        x = rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape)
        if np.issubdtype(dtype, np.complexfloating):
            x = x + 1j * rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape)
        return jnp.asarray(x, dtype)

    return {name: draw(shape) for name, shape in shapes.items()}


def grads_like(
    steps: int, dtype: Any = jnp.float32, seed: int = 1, shapes: Mapping[str, Any] = SHAPES
) -> dict[str, Any]:
    """`steps` gradients of that tree, stacked on a leading axis."""
    each = [params_like(dtype, seed + 1000 * (i + 1), shapes) for i in range(steps)]
    return jax.tree.map(lambda *gs: jnp.stack(gs), *each)


def with_a_trend(case: Case, grads: Any) -> Any:
    """Where a case sums over the tree: gradients that keep the signs of the first for 8 steps, as on the way to a far
    solution. From random signs no estimate of a distance grows, and what it grows to would go unseen."""
    if case.flag("reduces") != "tree":
        return grads
    keep = lambda g: g.at[:8].set(g[:1] * jnp.abs(g[:8]) / jnp.abs(g[:1]))
    return jax.tree.map(keep, grads)
