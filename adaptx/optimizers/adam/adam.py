"""Adam, its AMSGrad variant, and AdamW."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import optax
from jax import Array
from jax import numpy as jnp

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, Decay, abs_sq, debias, divide, ema, safe_sqrt
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rule import Params, Rule, Slot, real_zeros, zeros


class AdamState(NamedTuple):
    """The state of Adam and its kin."""

    count: Array  # t
    mu: Params  # m, like the parameters
    nu: Params  # v, real
    nu_max: Params = None  # the largest v so far; amsgrad only


def adam_rule(
    b1: Any,
    b2: Any,
    eps: Any,
    eps_root: Any,
    amsgrad: bool = False,
    *,
    debias_mu: bool = True,
    debias_nu: str | None = "after",
    nesterov: bool = False,
    nu: Slot = real_zeros,
    second: Callable[[Array, Array, AdamState], Array] | None = None,
    direction: Callable[[Array, Array, Array, Clock], Array] | None = None,
    shared: Callable[[AdamState, Clock], Any] | None = None,
) -> Rule:
    """Adam's equations on one array, with the lines in which its kin and the frameworks differ.

    debias_mu: whether m is corrected for its zero start.
    debias_nu: where v is: "after" AMSGrad's maximum, "before" it (Optax), "outside" of root and eps (Keras; the paper's
        eps-hat), or nowhere: None (AMSGrad's paper).
    nesterov: the corrected m looks one step ahead, as Optax has it.
    nu: how v starts.
    second(g, m, s) -> v: the new second moment, where it is not the average of |g|^2.
    direction(g, m, v, t) -> u: what is made of the corrected moments, where it is not m / (sqrt(v + eps_root) + eps).
    shared: what `direction` has as t.shared, the same on every leaf.
    """
    b1, b2 = Decay.of(b1), Decay.of(b2)

    def step(g: Array, s: AdamState, x: Any, t: Clock) -> tuple[Array, AdamState]:
        m = ema(s.mu, g, b1)
        v = ema(s.nu, abs_sq(g), b2) if second is None else second(g, m, s)
        m_hat = debias(m, b1, t) if debias_mu else m
        if nesterov:
            m_hat = b1 * m / b1.bias(t.t + 1) + (1 - b1) * g / t.bias(b1)
        v_hat = debias(v, b2, t) if debias_nu == "before" else v
        v_max = jnp.maximum(s.nu_max, v_hat) if amsgrad else None
        v_hat = v_hat if v_max is None else v_max
        if debias_nu == "after":
            v_hat = debias(v_hat, b2, t)
        elif debias_nu == "outside":
            m_hat = m_hat * jnp.sqrt(t.bias(b2))
        if direction is None:
            u = divide(m_hat, safe_sqrt(v_hat + eps_root), eps)
        else:
            u = direction(g, m_hat, v_hat, t)
        return u, s._replace(mu=m, nu=v, nu_max=v_max)

    slots = dict(mu=zeros, nu=nu, nu_max=nu if amsgrad else None)
    decays = (*[b1] * debias_mu, *[b2] * (debias_nu is not None))
    return Rule(AdamState, step, slots, decays=decays, shared=shared)


@checked
def scale_by_adam(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    amsgrad: bool = False,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of `adam`: u in its equations, before the rate, the decay and the sign."""
    return lift("scale_by_adam", adam_rule(b1, b2, eps, eps_root, amsgrad), state_dtype=state_dtype)


@optimizer(
    paper=Paper("Adam: A Method for Stochastic Optimization (Kingma, Ba)", 2015, "https://arxiv.org/abs/1412.6980"),
    family="adam",
    direction=scale_by_adam,
    typical_rate=1e-3,
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=1e-3),
        dict(learning_rate=0.01, amsgrad=True),
        dict(learning_rate=0.02, b1=0.8, b2=0.95, eps=1e-3, eps_root=1e-4, amsgrad=True, weight_decay=0.1, mask=True),
    ),
)
def adam(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    amsgrad: bool = False,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Adam: a first moment divided by the root of a second, both corrected for their zero start.

    Start:
        m = v = w = 0
    Step t = 1, 2, ...:
        m = b1*m + (1 - b1)*g
        v = b2*v + (1 - b2)*g**2
        w = maximum(w, v) if amsgrad else v
        u = m/(1 - b1**t) / (sqrt(w/(1 - b2**t) + eps_root) + eps)
        x = x - learning_rate*(u + weight_decay*x)

    `amsgrad` (Reddi, Kale, Kumar 2018, https://openreview.net/forum?id=ryQu7f-RZ) takes the maximum of the raw v, as
    torch and Keras do, and keeps the bias correction, which that paper leaves out; Optax takes the maximum after it.
    """
    return lift(
        "adam", adam_rule(b1, b2, eps, eps_root, amsgrad), Descent(learning_rate, weight_decay, mask), state_dtype
    )


@optimizer(
    paper=Paper("Decoupled Weight Decay Regularization (Loshchilov, Hutter)", 2019, "https://arxiv.org/abs/1711.05101"),
    family="adam",
    direction="it is scale_by_adam: the decay is part of the descent",
    typical_rate=1e-3,
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=1e-3),
        dict(learning_rate=0.02, b1=0.8, b2=0.95, eps=1e-3, eps_root=1e-4, amsgrad=True, weight_decay=0.1, mask=True),
    ),
)
def adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    weight_decay: Any = 1e-2,
    mask: Any = None,
    amsgrad: bool = False,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """AdamW: Adam with decoupled weight decay, on by default.

    Start:
        m = v = w = 0
    Step t = 1, 2, ...:
        m = b1*m + (1 - b1)*g
        v = b2*v + (1 - b2)*g**2
        w = maximum(w, v) if amsgrad else v
        u = m/(1 - b1**t) / (sqrt(w/(1 - b2**t) + eps_root) + eps)
        x = x - learning_rate*(u + weight_decay*x)

    The paper's decay is eta_t lambda x, independent of the step size alpha; here, as in torch, Keras and Optax, it is
    multiplied by the learning rate. The default is torch's 1e-2 (Optax: 1e-4, Keras: 4e-3).
    """
    return lift(
        "adamw", adam_rule(b1, b2, eps, eps_root, amsgrad), Descent(learning_rate, weight_decay, mask), state_dtype
    )
