"""LARS: momentum SGD whose rate is set for each tensor by the sizes of the tensor and its gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, Decay, heavy_ball, norm
from adaptx.core.registry import Paper, optimizer
from adaptx.core.rule import Params, Rule, zeros
from adaptx.optimizers.trust_ratio.lamb import ratio


class LARSState(NamedTuple):
    """The state of LARS."""

    count: Array  # t
    trace: Params = None  # v, like the parameters; with momentum only


def lars_rule(trust_coefficient: Any, eps: Any, momentum: Any, nesterov: bool, masks: bool) -> Rule:
    """LARS's equations on one array; the rate enters the buffer, so the rule owns it. With `masks` a tensor that does
    not decay has no ratio either."""
    b = None if momentum is None else Decay.of(momentum)

    def step(g: Array, s: LARSState, x: Array, t: Clock) -> tuple[Array, LARSState]:
        u, length = g, norm(g)
        if t.weight_decay is not None:
            u, length = g + t.weight_decay * x, length + t.weight_decay * norm(x)
        rate = t.learning_rate
        if not masks or t.weight_decay is not None:
            rate = rate * ratio(trust_coefficient * norm(x), length + eps)
        u = rate * u
        if b is None:
            return -u, s
        u, v = heavy_ball(s.trace, u, b, nesterov)
        return -u, s._replace(trace=v)

    slots = dict(trace=None if b is None else zeros)
    return Rule(LARSState, step, slots, needs=("learning_rate", "params"))


@optimizer(
    paper=Paper(
        "Large Batch Training of Convolutional Networks (You, Gitman, Ginsburg)",
        2017,
        "https://arxiv.org/abs/1708.03888",
    ),
    family="trust_ratio",
    direction="the rate of each step enters the momentum buffer, so it sits inside the rule",
    typical_rate=10.0,
    reduces="tensor",
    needs=("params",),
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=5.0),
        dict(learning_rate=5.0, momentum=None, weight_decay=0.1),
        dict(
            learning_rate=2.0, weight_decay=0.1, mask=True, trust_coefficient=0.02, eps=0.1, momentum=0.8,
            nesterov=True,
        ),
    ),
)  # fmt: skip
def lars(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: Any = None,
    mask: Any = None,
    trust_coefficient: Any = 1e-3,
    eps: Any = 0.0,
    *,
    momentum: Any = 0.9,
    nesterov: bool = False,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """LARS: momentum SGD in which each tensor's step is a small part of the tensor's own norm.

    Start:
        v = 0
    Step t = 1, 2, ...:
        length = norm(g) + weight_decay*norm(x) + eps
        r = trust_coefficient*norm(x)/length if norm(x) > 0 and length > 0 else 1
        u = learning_rate*r*(g + weight_decay*x)
        v = momentum*v + u
        x = x - (u + momentum*v if nesterov else v)

    The decay is the paper's: inside the ratio and the buffer, not decoupled; the paper leaves its size to the user. A
    tensor where `mask` is False has neither decay nor ratio and takes plain momentum steps, as biases and normalisation
    layers usually do (with weight_decay=0.0 the mask is about the ratio alone). Where a norm is 0 the ratio is 1, as in
    Optax. Optax divides by the norm of g + weight_decay x, the paper by the sum of both norms, and has a mask for the
    ratio apart from the decay's. torch and Keras have no LARS.
    """
    rule = lars_rule(trust_coefficient, eps, momentum, nesterov, masks=weight_decay is not None)
    return lift("lars", rule, Descent(learning_rate, weight_decay, mask), state_dtype)
