"""scale_by_momentum: a heavy ball, plain or Nesterov's, over whatever comes before it in a chain."""

from __future__ import annotations

from typing import Any, NamedTuple

import optax
from jax import Array

from adaptx.core.combinators import with_momentum
from adaptx.core.lift import lift
from adaptx.core.registry import checked
from adaptx.core.rule import Params, Rule


class MomentumState(NamedTuple):
    """The state of scale_by_momentum."""

    count: Array  # t
    trace: Params = None  # b, the buffer


@checked
def scale_by_momentum(momentum: Any = 0.9, nesterov: bool = False) -> optax.GradientTransformationExtraArgs:
    """Heavy-ball or Nesterov momentum over the directions u that reach it, to be chained before the rate.

    Start: b = 0. Step: b = momentum*b + u, and out comes b, or with nesterov u + momentum*b. The buffer is float32 or
    wider whatever comes in. With the rate behind it a change of the rate acts at once, as in torch; Keras and Optax's
    rmsprop have the rate inside the buffer, for which chain it after the rate.

        optax.chain(adaptx.scale_by_adagrad(), adaptx.scale_by_momentum(0.9, nesterov=True), optax.scale(-0.1))

    `adagrad` and `rmsprop` have it as arguments of their own. Nesterov's form is that of Sutskever et al., 2013,
    https://proceedings.mlr.press/v28/sutskever13.html.
    """
    rule = Rule(MomentumState, lambda g, s, x, t: (g, s), {})
    return lift("scale_by_momentum", with_momentum(rule, momentum, nesterov))
