"""What an optimizer needs beside gradients and parameters, made up where only the optimizer itself is looked at."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adaptx.registry import Entry

# What stands for each need, from the gradients and the parameters.
STAND_INS: Mapping[str, Callable[[Any, Any], Any]] = {
    "hessian": lambda grads, params: jax.tree.map(jnp.abs, grads),
    "value": lambda grads, params: jnp.float32(1.0),
}


def supplied(
    entry: Entry,
    stand_ins: Mapping[str, Callable[[Any, Any], Any]] = STAND_INS,
    factory: Callable[..., optax.GradientTransformationExtraArgs] | None = None,
) -> Callable[..., optax.GradientTransformationExtraArgs]:
    """The factory (or the direction's), whose update makes what it needs beside parameters where it is not given."""
    make = factory or entry.factory
    missing = sorted({need for needs in entry.needs for need in needs} - {"params"})
    if not missing:
        return make

    @functools.wraps(make)
    def made(*args: Any, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
        tx = make(*args, **kwargs)

        def update(updates: Any, state: Any, params: Any = None, **given: Any) -> tuple[Any, Any]:
            stands = {need: stand_ins[need](updates, params) for need in missing if need not in given}
            return tx.update(updates, state, params, **stands, **given)

        return optax.GradientTransformationExtraArgs(tx.init, update)

    return made
