"""One small network as the trees that people have: linen's dict, a FrozenDict, an nnx State, a callable module."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict


class Linen(nn.Module):
    @nn.compact
    def __call__(self, ids: Any) -> Any:
        x = nn.Embed(5, 3, name="embed")(ids)
        x = nn.LayerNorm(name="norm")(nn.Dense(3, name="hidden")(x))
        return nn.Dense(2, name="head")(x)


class Nnx(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(5, 3, rngs=rngs)
        self.hidden = nnx.Linear(3, 3, rngs=rngs)
        self.norm = nnx.LayerNorm(3, rngs=rngs)
        self.head = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, ids: Any) -> Any:
        return self.head(self.norm(self.hidden(self.embed(ids))))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    """A module that is a tree and can be called, as Equinox's are."""

    kernel: Any = None
    bias: Any = None
    scale: Any = None
    embedding: Any = None

    def __call__(self, x: Any) -> Any:
        return x @ self.kernel + self.bias


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    embed: Layer
    hidden: Layer
    norm: Layer
    head: Layer

    def __call__(self, ids: Any) -> Any:
        return self.head(self.hidden(self.embed.embedding[ids]) * self.norm.scale + self.norm.bias)


def linen() -> Any:
    return Linen().init(jax.random.key(0), jnp.arange(2))["params"]


def module() -> Any:
    return Module(**{name: Layer(**dict(leaves)) for name, leaves in linen().items()})


TREES: dict[str, Any] = {
    "linen": linen,
    "FrozenDict": lambda: FrozenDict(linen()),
    "nnx": lambda: nnx.state(Nnx(), nnx.Param),
    "module": module,
    "abstract": lambda: jax.eval_shape(linen),
}
PATHS = {
    "embed/embedding",
    "hidden/bias",
    "hidden/kernel",
    "norm/bias",
    "norm/scale",
    "head/bias",
    "head/kernel",
}
