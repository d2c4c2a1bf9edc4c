"""NovoGrad: momentum over gradients, each tensor's divided by the running norm of its gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, Decay, abs_sq, divide, ema, safe_sqrt
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rounding import largest_sum
from adaptx.core.rule import Params, Rule, per_tensor, zeros


class NovoGradState(NamedTuple):
    """The state of NovoGrad."""

    count: Array  # t
    mu: Params  # m, the momentum
    nu: Params  # v, one number for each tensor


def novograd_rule(b1: Any, b2: Any, eps: Any, eps_root: Any, inner_decay: Any) -> Rule:
    """NovoGrad's equations on one array."""
    b1, b2 = Decay.of(b1), Decay.of(b2)

    def part(g: Array, s: NovoGradState, x: Any, t: Clock) -> tuple[Any, NovoGradState]:
        """The norm; of a gradient that is not clamped, since a clamp would be written out. m shows an Inf."""
        length_sq = jnp.minimum(jnp.sum(abs_sq(g)), largest_sum(g.dtype, g.size))
        return (), s._replace(nu=jnp.where(t.t == 1, length_sq, ema(s.nu, length_sq, b2)))

    def step(g: Array, s: NovoGradState, x: Any, t: Clock) -> tuple[Array, NovoGradState]:
        u = divide(g, safe_sqrt(s.nu + eps_root), eps)
        if inner_decay is not None:
            u = u + inner_decay * x
        m = b1 * s.mu + u
        return m, s._replace(mu=m)

    needs = () if inner_decay is None else ("params",)
    return Rule(NovoGradState, step, dict(mu=zeros, nu=per_tensor(0.0)), part=part, needs=needs)


@checked
def scale_by_novograd(
    b1: Any = 0.95,
    b2: Any = 0.98,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    inner_decay: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of `novograd`: m in its equations, before the rate, the decoupled decay and the sign."""
    return lift("scale_by_novograd", novograd_rule(b1, b2, eps, eps_root, inner_decay), state_dtype=state_dtype)


@optimizer(
    paper=Paper(
        "Training Deep Networks with Stochastic Gradient Normalized by Layerwise Adaptive Second Moments "
        "(Ginsburg et al.)",
        2019,
        "https://arxiv.org/abs/1905.11286",
    ),
    family="adam",
    direction=scale_by_novograd,
    typical_rate=1e-2,
    reduces="tensor",
    needs=[(), (), ("params",)],
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=1e-2),
        dict(learning_rate=0.02, b1=0.8, b2=0.7, eps=1e-3, eps_root=1e-4, weight_decay=0.1),
        dict(
            learning_rate=0.02, b1=0.8, b2=0.7, eps=1e-3, eps_root=1e-4, inner_decay=0.05, weight_decay=0.1, mask=True
        ),
    ),
)  # fmt: skip
def novograd(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.95,
    b2: Any = 0.98,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    inner_decay: Any = None,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """NovoGrad: momentum over gradients that are divided by a running norm, one number for each tensor.

    Start:
        m = v = 0
    Step t = 1, 2, ...:
        v = b2*v + (1 - b2)*norm(g)**2 if t > 1 else norm(g)**2
        m = b1*m + g/(sqrt(v + eps_root) + eps) + inner_decay*x
        x = x - learning_rate*(m + weight_decay*x)

    m is a sum, not an average: the steps are up to 1/(1 - b1) times as long as normalised ones. Two decays: the
    paper's, and Optax's `weight_decay`, is `inner_decay`, a part of x within the momentum, which in the long run takes
    inner_decay/(1 - b1) of x; `weight_decay` is the decoupled one of all optimizers here, outside the momentum, with
    a mask and schedules (which Optax's refuses). Defaults are the paper's; the authors' code adds its eps under the
    root and starts v anew whenever it is 0. Optax has b1=0.9, b2=0.25 and eps=1e-6.
    """
    rule = novograd_rule(b1, b2, eps, eps_root, inner_decay)
    return lift("novograd", rule, Descent(learning_rate, weight_decay, mask), state_dtype)
