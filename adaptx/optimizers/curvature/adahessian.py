"""AdaHessian: Adam whose second moment is of the Hessian's diagonal."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.moments import Clock, Decay, abs_sq, debias, divide, ema, safe_sqrt
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rule import Rule, real_zeros, zeros
from adaptx.optimizers.adam.adam import AdamState
from adaptx.optimizers.curvature.refresh import lift_on_demand, refreshed


def power(root: Array, k: Any) -> Array:
    """root^k for root >= 0, with the derivative 0 at 0, where it would be infinite."""
    zero = root == 0
    return jnp.where(zero, jnp.zeros_like(root) ** k, jnp.where(zero, 1, root) ** k)


def adahessian_rule(b1: Any, b2: Any, eps: Any, hessian_power: Any, update_every: int) -> Rule:
    """AdaHessian's equations on one array."""
    b1, b2 = Decay.of(b1), Decay.of(b2)

    def step(g: Array, s: AdamState, x: Any, t: Clock) -> tuple[Array, AdamState]:
        m = ema(s.mu, g, b1)
        v = refreshed(s.nu, ema(s.nu, abs_sq(t.hessian), b2), s.count, update_every)
        refreshes = ((s.count - 1) // update_every + 1).astype(t.t.dtype)
        root = safe_sqrt(v / b2.bias(refreshes))
        return divide(debias(m, b1, t), power(root, hessian_power), eps), s._replace(mu=m, nu=v)

    slots = dict(mu=zeros, nu=real_zeros, nu_max=None)
    return Rule(AdamState, step, slots, decays=(b1,), needs=("hessian",), trees=("hessian",))


@checked
def scale_by_adahessian(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-4,
    *,
    hessian_power: Any = 1.0,
    update_every: int = 1,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of `adahessian`: u in its equations, before the rate, the decay and the sign."""
    rule = adahessian_rule(b1, b2, eps, hessian_power, update_every)
    return lift_on_demand("scale_by_adahessian", rule, update_every, state_dtype=state_dtype)


@optimizer(
    paper=Paper(
        "ADAHESSIAN: An Adaptive Second Order Optimizer for Machine Learning (Yao et al.)",
        2021,
        "https://arxiv.org/abs/2006.00719",
    ),
    family="curvature",
    direction=scale_by_adahessian,
    typical_rate=0.15,
    needs=("hessian",),
    normalised=[True, False],
    scale_free=[True, False],
    cases=(
        dict(learning_rate=0.15),
        dict(
            learning_rate=0.02, b1=0.8, b2=0.95, eps=1e-3, hessian_power=0.5, update_every=3, weight_decay=0.1,
            mask=True,
        ),
    ),
)  # fmt: skip
def adahessian(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-4,
    *,
    hessian_power: Any = 1.0,
    update_every: int = 1,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """AdaHessian: Adam that divides by the root mean square of the Hessian's diagonal instead of the gradient's.

    Start:
        m = v = n = 0
    Step t = 1, 2, ...:
        m = b1*m + (1 - b1)*g
        v, n = (b2*v + (1 - b2)*h**2, n + 1) if (t - 1) % update_every == 0 else (v, n)
        u = m/(1 - b1**t) / (sqrt(v/(1 - b2**n))**hessian_power + eps)
        x = x - learning_rate*(u + weight_decay*x)

    h, an estimate of the Hessian's diagonal, is given to `update(grads, state, params, hessian=h)`: a tree of real
    arrays like the gradients, or a function without arguments that makes one and runs in every `update_every`-th step
    only. The paper's is Hutchinson's, averaged over blocks:
    `hessian=lambda: adaptx.curvature.spatial_average(adaptx.curvature.hutchinson(loss, params, key))`.

    The authors' code averages |h| where the paper averages h, whose noise then cancels: for theirs take the absolute
    value before the average. The paper has no eps; 1e-4 and the decoupled decay are of their code for images (for text
    eps is 1e-8). With `update_every` above 1 the paper's v waits, and its bias correction counts the refreshes.
    """
    rule = adahessian_rule(b1, b2, eps, hessian_power, update_every)
    return lift_on_demand("adahessian", rule, update_every, Descent(learning_rate, weight_decay, mask), state_dtype)
