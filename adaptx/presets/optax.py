"""Optax's numerics: its arguments, defaults and rules, on this library's states and in its precision."""

from __future__ import annotations

from typing import Any

import optax

from adaptx.core.rule import Rule
from adaptx.optimizers.adagrad.adadelta import adadelta_rule
from adaptx.optimizers.adagrad.adagrad import adagrad_rule
from adaptx.optimizers.adagrad.rmsprop import rmsprop_rule
from adaptx.optimizers.adam.adam import adam_rule
from adaptx.optimizers.adam.adamax import adamax_rule
from adaptx.optimizers.adam.radam import radam_rule
from adaptx.optimizers.factored.adafactor import adafactor_rule
from adaptx.optimizers.sign.lion import lion_rule
from adaptx.presets.conventions import descended, rate_inside
from adaptx.presets.words import OPTAX, OPTAX_ADAFACTOR, lion_words, preset

__all__ = [
    "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamaxw", "adamw", "amsgrad", "lion", "nadam", "nadamw",
    "radam", "rmsprop",
]  # fmt: skip

_DOCS = "https://optax.readthedocs.io/en/latest/api/optimizers.html#optax."
_DECOUPLED = OPTAX.words["weight_decay"]._replace(meaning="decoupled decay, times the learning rate", none="")

_LOOKS_AHEAD = OPTAX.words["nesterov"]._replace(meaning="look one momentum step ahead", needs="")


def _ready(
    name: str, rule: Rule, learning_rate: Any, weight_decay: Any = None, mask: Any = None, decoupled: bool = True
) -> optax.GradientTransformationExtraArgs:
    return descended(f"presets.optax.{name}", rule, learning_rate, weight_decay, mask, decoupled=decoupled)


@preset(OPTAX, _DOCS + "adagrad")
def adagrad(
    learning_rate: optax.ScalarOrSchedule, initial_accumulator_value: Any = 0.1, eps: Any = 1e-7
) -> optax.GradientTransformationExtraArgs:
    """optax.adagrad.

    Start:
        s = initial_accumulator_value
    Step t = 1, 2, ...:
        s = s + g**2
        x = x - learning_rate * g/sqrt(s + eps)

    `adaptx.adagrad` starts s at 0 and calls this eps eps_root.
    """
    return _ready("adagrad", adagrad_rule(initial_accumulator_value, 0.0, eps), learning_rate)


@preset(OPTAX, _DOCS + "rmsprop")
def rmsprop(
    learning_rate: optax.ScalarOrSchedule,
    decay: Any = 0.9,
    eps: Any = 1e-8,
    initial_scale: Any = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Any = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """optax.rmsprop.

    Start:
        v = initial_scale
        m = b = 0
    Step t = 1, 2, ...:
        v = decay*v + (1 - decay)*g**2
        m = decay*m + (1 - decay)*g
        c = 1 - decay**t if bias_correction else 1
        d = v/c - (m/c)**2 if centered else v/c
        u = learning_rate * g/(sqrt(d + eps) if eps_in_sqrt else sqrt(d) + eps)
        b = momentum*b + u
        x = x - (u + momentum*b if nesterov else b)

    `adaptx.rmsprop` multiplies by the rate after the momentum, which differs once the rate changes; its eps is outside
    of the root, its eps_root inside. Rounding cannot make d negative here. Optax ignores nesterov without momentum.
    """
    outside, inside = (0.0, eps) if eps_in_sqrt else (eps, 0.0)
    rule = rmsprop_rule(decay, outside, inside, initial_scale, centered, bias_correction=bias_correction)
    rule = rate_inside(rule, momentum, nesterov)
    return _ready("rmsprop", rule, learning_rate)


@preset(
    OPTAX, _DOCS + "adadelta", weight_decay=_DECOUPLED._replace(meaning="added to the gradient, times the parameter")
)
def adadelta(
    learning_rate: optax.ScalarOrSchedule,
    rho: Any = 0.9,
    eps: Any = 1e-6,
    weight_decay: Any = 0.0,
    weight_decay_mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """optax.adadelta.

    Start:
        v = d = 0
    Step t = 1, 2, ...:
        g = g + weight_decay*x
        v = rho*v + (1 - rho)*g**2
        u = sqrt(d + eps)/sqrt(v + eps) * g
        d = rho*d + (1 - rho)*u**2
        x = x - learning_rate*u

    The rate is required: with Optax's default, None, the update has the wrong sign. `adaptx.adadelta` has the paper's
    0.95 for rho, calls this eps eps_root, and its decay is decoupled.
    """
    rule = adadelta_rule(rho, 0.0, eps)
    return _ready("adadelta", rule, learning_rate, weight_decay, weight_decay_mask, decoupled=False)


@preset(OPTAX, _DOCS + "adam", nesterov=_LOOKS_AHEAD)
def adam(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """optax.adam.

    Start:
        m = v = 0
    Step t = 1, 2, ...:
        m = b1*m + (1 - b1)*g
        v = b2*v + (1 - b2)*g**2
        n = b1*m/(1 - b1**(t + 1)) + (1 - b1)*g/(1 - b1**t) if nesterov else m/(1 - b1**t)
        x = x - learning_rate * n/(sqrt(v/(1 - b2**t) + eps_root) + eps)

    `adaptx.adam` is the same; with nesterov it is `adaptx.nadam` with momentum_decay=None.
    """
    return _ready("adam", adam_rule(b1, b2, eps, eps_root, nesterov=nesterov), learning_rate)


@preset(
    OPTAX,
    _DOCS + "adamw",
    weight_decay=_DECOUPLED,
    nesterov=_LOOKS_AHEAD,
)
def adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    weight_decay: Any = 1e-4,
    mask: Any = None,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """optax.adamw.

    Start:
        m = v = 0
    Step t = 1, 2, ...:
        m = b1*m + (1 - b1)*g
        v = b2*v + (1 - b2)*g**2
        n = b1*m/(1 - b1**(t + 1)) + (1 - b1)*g/(1 - b1**t) if nesterov else m/(1 - b1**t)
        u = n/(sqrt(v/(1 - b2**t) + eps_root) + eps)
        x = x - learning_rate*(u + weight_decay*x)

    `adaptx.adamw` is the same with torch's decay, 1e-2. Optax has mu_dtype before weight_decay: name that.
    """
    return _ready("adamw", adam_rule(b1, b2, eps, eps_root, nesterov=nesterov), learning_rate, weight_decay, mask)


@preset(OPTAX, _DOCS + "amsgrad")
def amsgrad(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """optax.amsgrad.

    Start:
        m = v = w = 0
    Step t = 1, 2, ...:
        m = b1*m + (1 - b1)*g
        v = b2*v + (1 - b2)*g**2
        w = maximum(w, v/(1 - b2**t) if bias_correction_nu else v)
        n = m/(1 - b1**t) if bias_correction_mu else m
        x = x - learning_rate * n/(sqrt(w + eps_root) + eps)

    The maximum is of the corrected v, and so keeps what the first gradients made of it for good; in torch, Keras and
    `adaptx.adam(amsgrad=True)` it is of the plain v, corrected afterwards.
    """
    debias_nu = "before" if bias_correction_nu else None
    rule = adam_rule(b1, b2, eps, eps_root, True, debias_mu=bool(bias_correction_mu), debias_nu=debias_nu)
    return _ready("amsgrad", rule, learning_rate)


@preset(OPTAX, _DOCS + "adamax")
def adamax(
    learning_rate: optax.ScalarOrSchedule, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """optax.adamax.

    Start:
        m = v = 0
    Step t = 1, 2, ...:
        m = b1*m + (1 - b1)*g
        v = maximum(b2*v, abs(g) + eps)
        x = x - learning_rate * m/(1 - b1**t) / v

    `adaptx.adamax` has no eps unless one is given, which is then added to v.
    """
    return _ready("adamax", adamax_rule(b1, b2, eps, eps_inside=True), learning_rate)


@preset(OPTAX, _DOCS + "adamaxw", weight_decay=_DECOUPLED)
def adamaxw(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    weight_decay: Any = 1e-4,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """optax.adamaxw.

    Start:
        m = v = 0
    Step t = 1, 2, ...:
        m = b1*m + (1 - b1)*g
        v = maximum(b2*v, abs(g) + eps)
        x = x - learning_rate*(m/(1 - b1**t) / v + weight_decay*x)

    Optax's Adamax with decay on by default. `adaptx.adamax` with weight_decay adds its eps, if any, to v.
    """
    return _ready("adamaxw", adamax_rule(b1, b2, eps, eps_inside=True), learning_rate, weight_decay, mask)


@preset(OPTAX, _DOCS + "nadam")
def nadam(
    learning_rate: optax.ScalarOrSchedule, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8, eps_root: Any = 0.0
) -> optax.GradientTransformationExtraArgs:
    """optax.nadam.

    Start:
        m = v = 0
    Step t = 1, 2, ...:
        m = b1*m + (1 - b1)*g
        v = b2*v + (1 - b2)*g**2
        n = b1*m/(1 - b1**(t + 1)) + (1 - b1)*g/(1 - b1**t)
        x = x - learning_rate * n/(sqrt(v/(1 - b2**t) + eps_root) + eps)

    `adaptx.nadam` with momentum_decay=None: Optax has no momentum schedule.
    """
    return _ready("nadam", adam_rule(b1, b2, eps, eps_root, nesterov=True), learning_rate)


@preset(OPTAX, _DOCS + "nadamw", weight_decay=_DECOUPLED)
def nadamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    weight_decay: Any = 1e-4,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """optax.nadamw.

    Start:
        m = v = 0
    Step t = 1, 2, ...:
        m = b1*m + (1 - b1)*g
        v = b2*v + (1 - b2)*g**2
        n = b1*m/(1 - b1**(t + 1)) + (1 - b1)*g/(1 - b1**t)
        u = n/(sqrt(v/(1 - b2**t) + eps_root) + eps)
        x = x - learning_rate*(u + weight_decay*x)

    `adaptx.nadam` with momentum_decay=None and weight_decay=1e-4.
    """
    return _ready("nadamw", adam_rule(b1, b2, eps, eps_root, nesterov=True), learning_rate, weight_decay, mask)


@preset(OPTAX, _DOCS + "radam", nesterov=_LOOKS_AHEAD)
def radam(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    threshold: Any = 5.0,
    *,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """optax.radam.

    Start:
        m = v = 0
        end = 2/(1 - b2) - 1
    Step t = 1, 2, ...:
        m = b1*m + (1 - b1)*g
        v = b2*v + (1 - b2)*g**2
        n = b1*m/(1 - b1**(t + 1)) + (1 - b1)*g/(1 - b1**t) if nesterov else m/(1 - b1**t)
        rho = end - 2*t*b2**t/(1 - b2**t)
        r = sqrt((rho - 4)*(rho - 2)*end/((end - 4)*(end - 2)*rho)) if rho >= threshold else 0
        u = r/(sqrt(v/(1 - b2**t) + eps_root) + eps) if rho >= threshold else 1
        x = x - learning_rate * n * u

    `adaptx.radam` has the paper's threshold of 4. Where rho is the threshold exactly, the step is not yet rectified.
    """
    rule = radam_rule(b1, b2, eps, eps_root, threshold, True, nesterov=nesterov)
    return _ready("radam", rule, learning_rate)


@preset(OPTAX, _DOCS + "adafactor", **OPTAX_ADAFACTOR)
def adafactor(
    learning_rate: optax.ScalarOrSchedule | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: Any = 0.8,
    decay_offset: Any = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: Any = 1.0,
    momentum: Any = None,
    *,
    weight_decay_rate: Any = None,
    eps: Any = 1e-30,
    factored: bool = True,
    weight_decay_mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """optax.adafactor.

    Start:
        v = r = c = m = 0
    Step t = 1, 2, ...:
        b = 1 - maximum(t - decay_offset, 1)**-decay_rate
        if factored and g.ndim > 1 and min(g.shape) >= min_dim_size_to_factor:
            r = b*r + (1 - b)*mean(g**2 + eps, axis=-1, keepdims=True)
            c = b*c + (1 - b)*mean(g**2 + eps, axis=-2, keepdims=True)
            v = r*c/mean(r, axis=-2, keepdims=True)
        else:
            v = b*v + (1 - b)*(g**2 + eps)
        u = g/sqrt(v)
        if clipping_threshold is not None:
            u = u/maximum(1, sqrt(mean(u**2))/clipping_threshold)
        rate = 1 if learning_rate is None else learning_rate
        if multiply_by_parameter_scale:
            rate = rate*maximum(1e-3, sqrt(mean(x**2)))
        m = momentum*m + (1 - momentum)*rate*u
        x = x - m - weight_decay_rate*x

    These axes are those of a matrix; of more axes, the two longest are factored. The rate is not capped by 1/sqrt(t),
    and the decay is not times the rate. Optax computes b in float32 and gives NaN up to decay_offset. The
    library's own `adafactor` factors the last two axes, whatever their length, and caps the rate.
    """
    min_scale = 1e-3 if multiply_by_parameter_scale else None
    rule = adafactor_rule(
        min_dim_size_to_factor, decay_rate, decay_offset, eps, min_scale, clipping_threshold, False,
        "largest" if factored else None, momentum, decay="bare",
    )  # fmt: skip
    rate = 1.0 if learning_rate is None else learning_rate
    return _ready("adafactor", rule, rate, weight_decay_rate, weight_decay_mask)


@preset(OPTAX, _DOCS + "lion", **lion_words("b1", "b2"))
def lion(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.99,
    *,
    weight_decay: Any = 1e-3,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """optax.lion.

    Start:
        m = 0
    Step t = 1, 2, ...:
        u = sign(b1*m + (1 - b1)*g)
        m = b2*m + (1 - b2)*g
        x = x - learning_rate*(u + weight_decay*x)

    `adaptx.lion` is the same, without decay by default. Optax has mu_dtype before weight_decay: name that.
    """
    return _ready("lion", lion_rule(b1, b2), learning_rate, weight_decay, mask)
