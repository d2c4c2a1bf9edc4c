"""keras.optimizers' numerics: its arguments, defaults and rules.

Every preset takes one of clipnorm, clipvalue and global_clipnorm, which act before all else. A LearningRateSchedule
is a function of the count from 0.
"""

from __future__ import annotations

from typing import Any

import optax

from adaptx.core.rule import Rule
from adaptx.optimizers.adagrad.adadelta import adadelta_rule
from adaptx.optimizers.adagrad.adagrad import adagrad_rule
from adaptx.optimizers.adagrad.rmsprop import rmsprop_rule
from adaptx.optimizers.adam.adam import adam_rule
from adaptx.optimizers.adam.adamax import adamax_rule
from adaptx.optimizers.adam.nadam import nadam_rule
from adaptx.optimizers.factored.adafactor import adafactor_rule
from adaptx.optimizers.sign.lion import lion_rule
from adaptx.presets.conventions import clipped, descended, off_at_zero, rate_inside
from adaptx.presets.words import KERAS, lion_words, preset

__all__ = ["adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw", "lion", "nadam", "rmsprop"]

_DOCS = "https://keras.io/api/optimizers/"


def _ready(
    name: str, rule: Rule, learning_rate: Any, weight_decay: Any, *clips: Any
) -> optax.GradientTransformationExtraArgs:
    """The rule with Keras's decay, x - learning_rate weight_decay x before the step, and its clipping."""
    name = f"presets.keras.{name}"
    if sum(clip is not None for clip in clips) > 1:
        raise ValueError(f"{name}: clipnorm, clipvalue and global_clipnorm exclude each other")
    return clipped(name, descended(name, rule, learning_rate, weight_decay), *clips)


@preset(KERAS, _DOCS + "adagrad/")
def adagrad(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    initial_accumulator_value: Any = 0.1,
    epsilon: Any = 1e-7,
    weight_decay: Any = None,
    clipnorm: Any = None,
    clipvalue: Any = None,
    global_clipnorm: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """keras.optimizers.Adagrad.

    Start:
        s = initial_accumulator_value
    Step t = 1, 2, ...:
        x = x*(1 - learning_rate*weight_decay)
        s = s + g**2
        x = x - learning_rate * g/sqrt(s + epsilon)

    `adaptx.adagrad` starts s at 0 and calls this epsilon eps_root.
    """
    rule = adagrad_rule(initial_accumulator_value, 0.0, epsilon)
    return _ready("adagrad", rule, learning_rate, weight_decay, clipnorm, clipvalue, global_clipnorm)


@preset(KERAS, _DOCS + "rmsprop/")
def rmsprop(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    rho: Any = 0.9,
    momentum: Any = 0.0,
    epsilon: Any = 1e-7,
    centered: bool = False,
    weight_decay: Any = None,
    clipnorm: Any = None,
    clipvalue: Any = None,
    global_clipnorm: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """keras.optimizers.RMSprop.

    Start:
        v = m = b = 0
    Step t = 1, 2, ...:
        x = x*(1 - learning_rate*weight_decay)
        v = rho*v + (1 - rho)*g**2
        m = rho*m + (1 - rho)*g
        b = momentum*b + learning_rate * g/sqrt((v - m**2 if centered else v) + epsilon)
        x = x - b

    `adaptx.rmsprop` multiplies by the rate after the momentum, which differs once the rate changes, and calls this
    epsilon eps_root.
    """
    rule = rate_inside(rmsprop_rule(rho, 0.0, epsilon, 0.0, centered), off_at_zero(momentum))
    return _ready("rmsprop", rule, learning_rate, weight_decay, clipnorm, clipvalue, global_clipnorm)


@preset(KERAS, _DOCS + "adadelta/")
def adadelta(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    rho: Any = 0.95,
    epsilon: Any = 1e-7,
    weight_decay: Any = None,
    clipnorm: Any = None,
    clipvalue: Any = None,
    global_clipnorm: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """keras.optimizers.Adadelta.

    Start:
        v = d = 0
    Step t = 1, 2, ...:
        x = x*(1 - learning_rate*weight_decay)
        v = rho*v + (1 - rho)*g**2
        u = sqrt(d + epsilon)/sqrt(v + epsilon) * g
        d = rho*d + (1 - rho)*u**2
        x = x - learning_rate*u

    `adaptx.adadelta` has the paper's rate of 1 and calls this epsilon eps_root.
    """
    rule = adadelta_rule(rho, 0.0, epsilon)
    return _ready("adadelta", rule, learning_rate, weight_decay, clipnorm, clipvalue, global_clipnorm)


@preset(KERAS, _DOCS + "adam/")
def adam(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    beta_1: Any = 0.9,
    beta_2: Any = 0.999,
    epsilon: Any = 1e-7,
    amsgrad: bool = False,
    weight_decay: Any = None,
    clipnorm: Any = None,
    clipvalue: Any = None,
    global_clipnorm: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """keras.optimizers.Adam.

    Start:
        m = v = w = 0
    Step t = 1, 2, ...:
        x = x*(1 - learning_rate*weight_decay)
        m = beta_1*m + (1 - beta_1)*g
        v = beta_2*v + (1 - beta_2)*g**2
        w = maximum(w, v) if amsgrad else v
        x = x - learning_rate * sqrt(1 - beta_2**t)/(1 - beta_1**t) * m/(sqrt(w) + epsilon)

    epsilon is the paper's epsilon-hat: added before v is corrected for its zero start, so that early steps are shorter
    where gradients are small. `adaptx.adam` adds it after.
    """
    rule = adam_rule(beta_1, beta_2, epsilon, 0.0, amsgrad, debias_nu="outside")
    return _ready("adam", rule, learning_rate, weight_decay, clipnorm, clipvalue, global_clipnorm)


@preset(KERAS, _DOCS + "adamw/", weight_decay=KERAS.words["weight_decay"]._replace(none=""))
def adamw(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    weight_decay: Any = 4e-3,
    beta_1: Any = 0.9,
    beta_2: Any = 0.999,
    epsilon: Any = 1e-7,
    amsgrad: bool = False,
    clipnorm: Any = None,
    clipvalue: Any = None,
    global_clipnorm: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """keras.optimizers.AdamW.

    Start:
        m = v = w = 0
    Step t = 1, 2, ...:
        x = x*(1 - learning_rate*weight_decay)
        m = beta_1*m + (1 - beta_1)*g
        v = beta_2*v + (1 - beta_2)*g**2
        w = maximum(w, v) if amsgrad else v
        x = x - learning_rate * sqrt(1 - beta_2**t)/(1 - beta_1**t) * m/(sqrt(w) + epsilon)

    Keras's Adam with decay on by default. `adaptx.adamw` adds eps after v is corrected for its zero start.
    """
    rule = adam_rule(beta_1, beta_2, epsilon, 0.0, amsgrad, debias_nu="outside")
    return _ready("adamw", rule, learning_rate, weight_decay, clipnorm, clipvalue, global_clipnorm)


@preset(KERAS, _DOCS + "adamax/")
def adamax(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    beta_1: Any = 0.9,
    beta_2: Any = 0.999,
    epsilon: Any = 1e-7,
    weight_decay: Any = None,
    clipnorm: Any = None,
    clipvalue: Any = None,
    global_clipnorm: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """keras.optimizers.Adamax.

    Start:
        m = v = 0
    Step t = 1, 2, ...:
        x = x*(1 - learning_rate*weight_decay)
        m = beta_1*m + (1 - beta_1)*g
        v = maximum(beta_2*v, abs(g))
        x = x - learning_rate * m/(1 - beta_1**t) / (v + epsilon)

    `adaptx.adamax` is the same with the paper's rate, 2e-3, and no epsilon.
    """
    rule = adamax_rule(beta_1, beta_2, epsilon)
    return _ready("adamax", rule, learning_rate, weight_decay, clipnorm, clipvalue, global_clipnorm)


@preset(KERAS, _DOCS + "Nadam/")
def nadam(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    beta_1: Any = 0.9,
    beta_2: Any = 0.999,
    epsilon: Any = 1e-7,
    weight_decay: Any = None,
    clipnorm: Any = None,
    clipvalue: Any = None,
    global_clipnorm: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """keras.optimizers.Nadam.

    Start:
        m = v = 0
        p = 1
    Step t = 1, 2, ...:
        x = x*(1 - learning_rate*weight_decay)
        now = beta_1*(1 - 0.5*0.96**t)
        next = beta_1*(1 - 0.5*0.96**(t + 1))
        p = p*now
        m = beta_1*m + (1 - beta_1)*g
        v = beta_2*v + (1 - beta_2)*g**2
        n = (1 - now)*g/(1 - p) + next*m/(1 - p*next)
        x = x - learning_rate * n/(sqrt(v/(1 - beta_2**t)) + epsilon)

    `adaptx.nadam` with momentum_decay=1, which there is 4e-3. Unlike in Keras's Adam, epsilon is added after v is
    corrected for its zero start.
    """
    rule = nadam_rule(beta_1, beta_2, epsilon, 0.0, 1.0)
    return _ready("nadam", rule, learning_rate, weight_decay, clipnorm, clipvalue, global_clipnorm)


@preset(KERAS, _DOCS + "adafactor/")
def adafactor(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    beta_2_decay: Any = -0.8,
    epsilon_1: Any = 1e-30,
    epsilon_2: Any = 1e-3,
    clip_threshold: Any = 1.0,
    *,
    weight_decay: Any = None,
    clipnorm: Any = None,
    clipvalue: Any = None,
    global_clipnorm: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """keras.optimizers.Adafactor.

    Start:
        v = r = c = 0
    Step t = 1, 2, ...:
        x = x*(1 - learning_rate*weight_decay)
        rate = minimum(learning_rate, 1/sqrt(t)) * maximum(epsilon_2, sqrt(mean(x**2)))
        b = 1 - t**beta_2_decay
        if g.ndim > 1:
            r = b*r + (1 - b)*mean(g**2 + epsilon_1, axis=-1, keepdims=True)
            c = b*c + (1 - b)*mean(g**2 + epsilon_1, axis=-2, keepdims=True)
            v = r*c/mean(r, axis=-2, keepdims=True)
        else:
            v = b*v + (1 - b)*(g**2 + epsilon_1)
        u = g/sqrt(v)
        x = x - rate * u/maximum(1, sqrt(mean(u**2))/clip_threshold)

    The rate is always capped: Keras's relative_step changes nothing. Keras takes the means in float32 and keeps a whole
    v beside r and c. `adaptx.adafactor` has the paper's rate, 1e-2, and takes the parameters' size before the decay.
    """
    sizes = (epsilon_1, epsilon_2, clip_threshold)
    rule = adafactor_rule(1, -beta_2_decay, 0, *sizes, True, "last", None, decay="before")
    return _ready("adafactor", rule, learning_rate, weight_decay, clipnorm, clipvalue, global_clipnorm)


@preset(KERAS, _DOCS + "lion/", **lion_words("beta_1", "beta_2"))
def lion(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    beta_1: Any = 0.9,
    beta_2: Any = 0.99,
    weight_decay: Any = None,
    clipnorm: Any = None,
    clipvalue: Any = None,
    global_clipnorm: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """keras.optimizers.Lion.

    Start:
        m = 0
    Step t = 1, 2, ...:
        x = x*(1 - learning_rate*weight_decay)
        x = x - learning_rate*sign(beta_1*m + (1 - beta_1)*g)
        m = beta_2*m + (1 - beta_2)*g

    `adaptx.lion` is the same, with a required rate. Keras refuses beta_1=0, the sign of the gradient alone.
    """
    rule = lion_rule(beta_1, beta_2)
    return _ready("lion", rule, learning_rate, weight_decay, clipnorm, clipvalue, global_clipnorm)
