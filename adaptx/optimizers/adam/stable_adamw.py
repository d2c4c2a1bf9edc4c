"""StableAdamW: AdamW with Adafactor's update clipping."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.clipping import rms_excess
from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, debias, safe_div, safe_sqrt
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rule import Rule
from adaptx.optimizers.adam.adam import AdamState, adam_rule


def stable_adamw_rule(b1: Any, b2: Any, eps: Any, clipping_threshold: Any) -> Rule:
    """Adam's rule, whose direction is divided where a tensor's gradients outgrow their second moment."""
    adam = adam_rule(b1, b2, eps, 0.0)
    if clipping_threshold is None:
        return adam

    def step(g: Array, s: AdamState, x: Any, t: Clock) -> tuple[Array, AdamState]:
        u, s = adam.step(g, s, x, t)
        root = safe_sqrt(debias(s.nu, adam.decays[1], t))
        return u / rms_excess(safe_div(g, jnp.maximum(root, eps)), clipping_threshold), s

    return dataclasses.replace(adam, step=step)


@checked
def scale_by_stable_adamw(
    b1: Any = 0.9, b2: Any = 0.99, eps: Any = 1e-6, *, clipping_threshold: Any = 1.0, state_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
    """The direction of `stable_adamw`: u in its equations, before the rate, the decay and the sign."""
    return lift("scale_by_stable_adamw", stable_adamw_rule(b1, b2, eps, clipping_threshold), state_dtype=state_dtype)


@optimizer(
    paper=Paper(
        "Stable and Low-Precision Training for Large-Scale Vision-Language Models (Wortsman et al.)",
        2023,
        "https://arxiv.org/abs/2304.13013",
    ),
    family="adam",
    direction=scale_by_stable_adamw,
    typical_rate=2e-3,
    reduces=["tensor", "element", "tensor"],
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=2e-3),
        dict(learning_rate=2e-3, clipping_threshold=None),
        dict(learning_rate=0.02, b1=0.8, b2=0.7, eps=0.8, clipping_threshold=0.9, weight_decay=0.1, mask=True),
    ),
)
def stable_adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.99,
    eps: Any = 1e-6,
    *,
    clipping_threshold: Any = 1.0,
    weight_decay: Any = 0.2,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """StableAdamW: AdamW that shortens a tensor's step when its gradients outgrow their second moment.

    Start:
        m = v = 0
    Step t = 1, 2, ...:
        m = b1*m + (1 - b1)*g
        v = b2*v + (1 - b2)*g**2
        root = sqrt(v/(1 - b2**t))
        rms = sqrt(mean((g/maximum(root, eps))**2))
        u = m/(1 - b1**t) / (root + eps)
        u = u if clipping_threshold is None else u/maximum(1, rms/clipping_threshold)
        x = x - learning_rate*(u + weight_decay*x)

    The paper's decay rates b (1 - b^(t-1))/(1 - b^t) make the averages that Adam corrects: its v is our v/(1 - b2^t).
    Its algorithm divides the rate by the excess, and with it the decay; the authors' code divides only the step, which
    is the decoupled decay of all optimizers here. The paper's threshold is 1. The defaults are the authors' code's.
    """
    rule = stable_adamw_rule(b1, b2, eps, clipping_threshold)
    return lift("stable_adamw", rule, Descent(learning_rate, weight_decay, mask), state_dtype)
