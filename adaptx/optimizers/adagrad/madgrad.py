"""MADGRAD: dual averaging with momentum and a cube root."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.descent import Descent, and_decay
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, Decay, abs_sq, divide, reciprocal
from adaptx.core.registry import Paper, optimizer
from adaptx.core.rule import Params, Rule, copied, real_zeros, zeros


class MADGRADState(NamedTuple):
    """The state of MADGRAD."""

    count: Array  # k + 1
    grad_sum: Params  # s, the weighted sum of gradients
    nu: Params  # v, the weighted sum of squared gradients, real
    initial_params: Params  # x0, a copy


@jax.custom_jvp
def safe_cbrt(x: Array) -> Array:
    """The cube root, whose derivative at 0 is 0, not infinite."""
    return jnp.cbrt(x)


@safe_cbrt.defjvp
def _safe_cbrt_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    root = jnp.cbrt(primals[0])
    return root, reciprocal(3 * root * root) * tangents[0]


def madgrad_rule(momentum: Any, eps: Any) -> Rule:
    """MADGRAD's equations on one array; the weights of the sums are the rate's, so the rule owns it."""
    momentum = None if momentum is None else Decay.of(momentum)

    def step(g: Array, s: MADGRADState, x: Array, t: Clock) -> tuple[Array, MADGRADState]:
        weight = t.learning_rate * jnp.sqrt(t.t)
        grad_sum, v = s.grad_sum + weight * g, s.nu + weight * abs_sq(g)
        u = (s.initial_params - x) - divide(grad_sum, safe_cbrt(v), eps)  # to z, where dual averaging stands
        if momentum is not None:
            u = (1 - momentum) * u
        return and_decay(u, x, t), s._replace(grad_sum=grad_sum, nu=v)

    slots = dict(grad_sum=zeros, nu=real_zeros, initial_params=copied)
    return Rule(MADGRADState, step, slots, needs=("learning_rate", "params"))


@optimizer(
    paper=Paper(
        "Adaptivity without Compromise: A Momentumized, Adaptive, Dual Averaged Gradient Method for Stochastic "
        "Optimization (Defazio, Jelassi)",
        2021,
        "https://arxiv.org/abs/2101.11075",
    ),
    family="adagrad",
    direction="each step goes from the first parameters by a sum that holds the rates of all steps",
    typical_rate=1e-2,
    needs=("params",),
    zero_is_fixed=[True, True, False],  # what the decay takes, averaging with the sum's point gives back in part
    cases=(
        dict(learning_rate=1e-2),
        dict(learning_rate=1e-2, momentum=None),
        dict(learning_rate=0.1, momentum=0.8, eps=1e-2, weight_decay=0.1, mask=True),
    ),
)
def madgrad(
    learning_rate: optax.ScalarOrSchedule,
    momentum: Any = 0.9,
    *,
    eps: Any = 1e-6,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """MADGRAD: dual averaging from the first parameters, over the cube root of the summed squares, then averaged.

    Start:
        s = v = 0
        x0 = x
    Step t = 1, 2, ...:
        k = learning_rate*t**0.5
        s = s + k*g
        v = v + k*g**2
        z = x0 - s/(v**(1/3) + eps)
        x = momentum*x + (1 - momentum)*z - learning_rate*weight_decay*x

    Momentum averages x here, with the paper's c = 1 - momentum. Steps go like the cube root of the gradients: the rate
    has a scale of its own, and what is huge is not normalised. The paper's rate is `learning_rate`; the authors' code
    and Optax add eps to it too. Their decay is an l2 penalty in the gradient; here it is decoupled, as in the authors'
    experimental option: most of what it takes off is what z, which knows no decay, gives back, so it is weaker than
    elsewhere (chain optax.add_decayed_weights in front for theirs). What others do to the parameters between steps is
    forgotten in the same way. The first parameters are a copy, so that parameters and state can be donated together.
    """
    return lift("madgrad", madgrad_rule(momentum, eps), Descent(learning_rate, weight_decay, mask), state_dtype)
