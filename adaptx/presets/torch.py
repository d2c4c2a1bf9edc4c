"""torch.optim's numerics: its arguments, defaults and rules. Parameter groups are `optax.partition`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.rule import Rule
from adaptx.optimizers.adagrad.adadelta import adadelta_rule
from adaptx.optimizers.adagrad.adagrad import adagrad_rule, slowed
from adaptx.optimizers.adagrad.rmsprop import rmsprop_rule
from adaptx.optimizers.adam.adam import adam_rule
from adaptx.optimizers.adam.adamax import adamax_rule
from adaptx.optimizers.adam.nadam import nadam_rule
from adaptx.optimizers.adam.radam import radam_rule
from adaptx.optimizers.factored.adafactor import adafactor_rule
from adaptx.presets.conventions import descended, off_at_zero
from adaptx.presets.words import TORCH, TORCH_ADAFACTOR, preset

__all__ = ["adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw", "nadam", "radam", "rmsprop"]

_DOCS = "https://docs.pytorch.org/docs/stable/generated/torch.optim."


def _ready(
    name: str, rule: Rule, lr: Any, weight_decay: Any, maximize: bool, decoupled: bool = False
) -> optax.GradientTransformationExtraArgs:
    return descended(f"presets.torch.{name}", rule, lr, weight_decay, decoupled=decoupled, maximize=maximize)


@preset(TORCH, _DOCS + "Adagrad.html")
def adagrad(
    lr: optax.ScalarOrSchedule = 1e-2,
    lr_decay: Any = 0,
    weight_decay: Any = 0,
    initial_accumulator_value: Any = 0,
    eps: Any = 1e-10,
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """torch.optim.Adagrad.

    Start:
        s = initial_accumulator_value
    Step t = 1, 2, ...:
        g = (-g if maximize else g) + weight_decay*x
        s = s + g**2
        x = x - lr/(1 + (t - 1)*lr_decay) * g/(sqrt(s) + eps)

    `adaptx.adagrad` has the same defaults, but the rate is required and the decay decoupled.
    """
    rule = adagrad_rule(initial_accumulator_value, eps, 0.0)
    return _ready("adagrad", rule, slowed(lr, off_at_zero(lr_decay)), weight_decay, maximize)


@preset(TORCH, _DOCS + "RMSprop.html")
def rmsprop(
    lr: optax.ScalarOrSchedule = 1e-2,
    alpha: Any = 0.99,
    eps: Any = 1e-8,
    weight_decay: Any = 0,
    momentum: Any = 0,
    centered: bool = False,
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """torch.optim.RMSprop.

    Start:
        v = m = b = 0
    Step t = 1, 2, ...:
        g = (-g if maximize else g) + weight_decay*x
        v = alpha*v + (1 - alpha)*g**2
        m = alpha*m + (1 - alpha)*g
        b = momentum*b + g/(sqrt(v - m**2 if centered else v) + eps)
        x = x - lr*b

    `adaptx.rmsprop` has the lecture's 0.9 for alpha, and decoupled decay. Rounding cannot make v - m**2 negative here.
    """
    rule = rmsprop_rule(alpha, eps, 0.0, 0.0, centered, off_at_zero(momentum))
    return _ready("rmsprop", rule, lr, weight_decay, maximize)


@preset(TORCH, _DOCS + "Adadelta.html")
def adadelta(
    lr: optax.ScalarOrSchedule = 1.0,
    rho: Any = 0.9,
    eps: Any = 1e-6,
    weight_decay: Any = 0,
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """torch.optim.Adadelta.

    Start:
        v = d = 0
    Step t = 1, 2, ...:
        g = (-g if maximize else g) + weight_decay*x
        v = rho*v + (1 - rho)*g**2
        u = sqrt(d + eps)/sqrt(v + eps) * g
        d = rho*d + (1 - rho)*u**2
        x = x - lr*u

    `adaptx.adadelta` has the paper's 0.95 for rho, calls this eps eps_root, and its decay is decoupled.
    """
    return _ready("adadelta", adadelta_rule(rho, 0.0, eps), lr, weight_decay, maximize)


@preset(TORCH, _DOCS + "Adam.html")
def adam(
    lr: optax.ScalarOrSchedule = 1e-3,
    betas: tuple[Any, Any] = (0.9, 0.999),
    eps: Any = 1e-8,
    weight_decay: Any = 0,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """torch.optim.Adam.

    Start:
        b1, b2 = betas
        m = v = w = 0
    Step t = 1, 2, ...:
        g = -g if maximize else g
        g = g if decoupled_weight_decay else g + weight_decay*x
        x = x*(1 - lr*weight_decay) if decoupled_weight_decay else x
        m = b1*m + (1 - b1)*g
        v = b2*v + (1 - b2)*g**2
        w = maximum(w, v) if amsgrad else v
        x = x - lr * m/(1 - b1**t) / (sqrt(w/(1 - b2**t)) + eps)

    Without decay `adaptx.adam` is the same; there the decay is decoupled.
    """
    rule = adam_rule(*betas, eps, 0.0, amsgrad)
    return _ready("adam", rule, lr, weight_decay, maximize, decoupled_weight_decay)


@preset(TORCH, _DOCS + "AdamW.html")
def adamw(
    lr: optax.ScalarOrSchedule = 1e-3,
    betas: tuple[Any, Any] = (0.9, 0.999),
    eps: Any = 1e-8,
    weight_decay: Any = 1e-2,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """torch.optim.AdamW.

    Start:
        b1, b2 = betas
        m = v = w = 0
    Step t = 1, 2, ...:
        g = -g if maximize else g
        m = b1*m + (1 - b1)*g
        v = b2*v + (1 - b2)*g**2
        w = maximum(w, v) if amsgrad else v
        u = m/(1 - b1**t) / (sqrt(w/(1 - b2**t)) + eps)
        x = x*(1 - lr*weight_decay) - lr*u

    `adaptx.adamw` is the same, with a required rate.
    """
    return _ready("adamw", adam_rule(*betas, eps, 0.0, amsgrad), lr, weight_decay, maximize, True)


@preset(TORCH, _DOCS + "Adamax.html")
def adamax(
    lr: optax.ScalarOrSchedule = 2e-3,
    betas: tuple[Any, Any] = (0.9, 0.999),
    eps: Any = 1e-8,
    weight_decay: Any = 0,
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """torch.optim.Adamax.

    Start:
        b1, b2 = betas
        m = v = 0
    Step t = 1, 2, ...:
        g = (-g if maximize else g) + weight_decay*x
        m = b1*m + (1 - b1)*g
        v = maximum(b2*v, abs(g) + eps)
        x = x - lr * m/(1 - b1**t) / v

    `adaptx.adamax` has no eps unless one is given, which is then added to v; its decay is decoupled.
    """
    return _ready("adamax", adamax_rule(*betas, eps, eps_inside=True), lr, weight_decay, maximize)


@preset(TORCH, _DOCS + "NAdam.html")
def nadam(
    lr: optax.ScalarOrSchedule = 2e-3,
    betas: tuple[Any, Any] = (0.9, 0.999),
    eps: Any = 1e-8,
    weight_decay: Any = 0,
    momentum_decay: Any = 4e-3,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """torch.optim.NAdam.

    Start:
        b1, b2 = betas
        m = v = 0
        p = 1
    Step t = 1, 2, ...:
        g = -g if maximize else g
        g = g if decoupled_weight_decay else g + weight_decay*x
        x = x*(1 - lr*weight_decay) if decoupled_weight_decay else x
        now = b1*(1 - 0.5*0.96**(t*momentum_decay))
        next = b1*(1 - 0.5*0.96**((t + 1)*momentum_decay))
        p = p*now
        m = b1*m + (1 - b1)*g
        v = b2*v + (1 - b2)*g**2
        n = (1 - now)*g/(1 - p) + next*m/(1 - p*next)
        x = x - lr * n/(sqrt(v/(1 - b2**t)) + eps)

    Without decay `adaptx.nadam` is the same. torch keeps p in its default dtype: in float32, float64 parameters are off
    by as much.
    """
    rule = nadam_rule(*betas, eps, 0.0, momentum_decay)
    return _ready("nadam", rule, lr, weight_decay, maximize, decoupled_weight_decay)


@preset(TORCH, _DOCS + "RAdam.html")
def radam(
    lr: optax.ScalarOrSchedule = 1e-3,
    betas: tuple[Any, Any] = (0.9, 0.999),
    eps: Any = 1e-8,
    weight_decay: Any = 0,
    decoupled_weight_decay: bool = False,
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """torch.optim.RAdam.

    Start:
        b1, b2 = betas
        m = v = 0
        end = 2/(1 - b2) - 1
    Step t = 1, 2, ...:
        g = -g if maximize else g
        g = g if decoupled_weight_decay else g + weight_decay*x
        x = x*(1 - lr*weight_decay) if decoupled_weight_decay else x
        m = b1*m + (1 - b1)*g
        v = b2*v + (1 - b2)*g**2
        rho = end - 2*t*b2**t/(1 - b2**t)
        r = sqrt((rho - 4)*(rho - 2)*end/((end - 4)*(end - 2)*rho)) if rho > 5 else 0
        u = r*sqrt(1 - b2**t)/(sqrt(v) + eps) if rho > 5 else 1
        x = x - lr * m/(1 - b1**t) * u

    `adaptx.radam` has the paper's threshold of 4 for rho and adds eps after v is corrected for its zero start; its
    decay is decoupled.
    """
    rule = radam_rule(*betas, eps, 0.0, 5.0, True, eps_hat=True)
    return _ready("radam", rule, lr, weight_decay, maximize, decoupled_weight_decay)


@preset(TORCH, _DOCS + "Adafactor.html", **TORCH_ADAFACTOR)
def adafactor(
    lr: optax.ScalarOrSchedule = 1e-2,
    beta2_decay: Any = -0.8,
    eps: tuple[Any, Any] = (None, 1e-3),
    d: Any = 1.0,
    weight_decay: Any = 0.0,
    *,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """torch.optim.Adafactor.

    Start:
        eps1, eps2 = eps
        v = r = c = 0
    Step t = 1, 2, ...:
        g = -g if maximize else g
        rate = minimum(lr, 1/sqrt(t)) * maximum(eps2, sqrt(mean(x**2)))
        x = x*(1 - lr*weight_decay)
        b = 1 - t**beta2_decay
        if g.ndim > 1:
            r = b*r + (1 - b)*mean(g**2, axis=-1, keepdims=True)
            c = b*c + (1 - b)*mean(g**2, axis=-2, keepdims=True)
            v = r*c/maximum(mean(r, axis=-2, keepdims=True), eps1)
        else:
            v = b*v + (1 - b)*g**2
        u = g/maximum(sqrt(v), eps1)
        x = x - rate * u/maximum(1, sqrt(mean(u**2))/d)

    eps1 = None is the spacing of numbers at 1 in the dtype of the arithmetic: of float32 also for 16-bit parameters.
    `adaptx.adafactor` has the paper's eps1, 1e-30, added to the squares.
    """
    eps1, eps2 = eps

    def rule(floor: Any) -> Rule:
        return adafactor_rule(1, -beta2_decay, 0, 0.0, eps2, d, True, "last", None, floor=floor)

    def step(g: Array, s: Any, x: Array, t: Any) -> tuple[Array, Any]:
        return rule(float(jnp.finfo(g.dtype).eps)).step(g, s, x, t)

    made = rule(eps1) if eps1 is not None else dataclasses.replace(rule(1.0), step=step)
    return _ready("adafactor", made, lr, weight_decay, maximize, True)
