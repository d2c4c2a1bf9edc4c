"""Words: what each framework's arguments mean and may be, and what to use for those that are no part of a rule."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, ParamSpec, TypeVar

from jax.core import Tracer

from adaptx.core.moments import Decay
from adaptx.core.registry import checked
from adaptx.glossary import GLOSSARY, Argument, is_number

P = ParamSpec("P")
T = TypeVar("T")


class Framework(NamedTuple):
    """Whose numerics, and how it calls things."""

    name: str  # as in `presets.<name>`
    words: Mapping[str, Argument]
    instead: Mapping[str, str]  # arguments that are no part of a rule -> what to use in their place


def _decays(values: Any) -> bool:
    """Two decay rates."""
    known = lambda b: GLOSSARY["b1"].test(b.value if isinstance(b, Decay) else b)
    return isinstance(values, tuple | list) and len(values) == 2 and all(map(known, values))


def _word(name: str, meaning: str = "", **changes: Any) -> Argument:
    """A word of the library, with the framework's meaning."""
    return GLOSSARY[name]._replace(**({"meaning": meaning} if meaning else {}), **changes)


def _above(least: float, *, none: bool = False) -> Callable[[Any], bool]:
    """A number that is at least that."""
    return lambda v: (none and v is None) or (GLOSSARY["eps"].test(v) and (isinstance(v, Tracer) or float(v) >= least))


def _negative(value: Any) -> bool:
    """A number <= 0."""
    return is_number(value) and (isinstance(value, Tracer) or GLOSSARY["eps"].test(-value))


_EPS = _word("eps", "keeps the denominator from 0; where it is added, the equations say")
_RHO = _word("b2", "decay of the mean of squares")
_ONCE = "leave it out: jax.jit compiles the whole step"
_GROUPS = "parameters that decay and those that do not are groups: optax.partition gives each its own optimizer"
_SUM = _word("initial_accumulator", "the first value of the sum or mean of squares")
_MOMENTUM = _word("momentum", "decay of the momentum buffer", none="")

_EXPONENT = Argument("c in the second moment's decay 1 - t^c", "<= 0", _negative)

TORCH = Framework(
    "torch",
    dict(
        lr=_word("learning_rate", "the step size; of a scheduler, the function of the count from 0"),
        betas=Argument("decays of the first and second moment", "two numbers in [0, 1)", _decays),
        alpha=_RHO,
        rho=_RHO,
        eps=_EPS,
        weight_decay=_word(
            "weight_decay", "added to the gradient, times the parameter, unless it is decoupled", none=""
        ),
        decoupled_weight_decay=_word("amsgrad", "the decay of AdamW: times the rate, outside of the moments"),
        maximize=_word("amsgrad", "ascend: the rule on -g"),
        lr_decay=_word("lr_decay", none=""),
        initial_accumulator_value=_SUM,
        momentum=_MOMENTUM._replace(meaning="decay of the momentum buffer, before the rate"),
        momentum_decay=_word("momentum_decay", none=""),
        centered=GLOSSARY["centered"],
        amsgrad=GLOSSARY["amsgrad"],
    ),
    dict(
        params="leave it out: init(params) takes the parameters, optax.partition makes groups of them",
        foreach=_ONCE,
        fused=_ONCE,
        capturable=_ONCE,
        differentiable="leave it out: every update can be differentiated",
        mask=_GROUPS,
    ),
)

# Whose eps is a pair.
TORCH_ADAFACTOR = dict(
    beta2_decay=_EXPONENT,
    eps=Argument(
        "the least root of the second moment (None: the dtype's spacing at 1), and the least size of the parameters",
        "two numbers >= 0, of which the first may be None",
        lambda v: isinstance(v, tuple | list) and len(v) == 2 and _above(0, none=True)(v[0]) and _above(0)(v[1]),
    ),
    d=Argument("the largest root mean square of a tensor's direction", ">= 1", _above(1)),
    weight_decay=_word("weight_decay", none=""),
)

KERAS = Framework(
    "keras",
    dict(
        learning_rate=GLOSSARY["learning_rate"],
        beta_1=GLOSSARY["b1"],
        beta_2=GLOSSARY["b2"],
        rho=_RHO,
        epsilon=_EPS,
        initial_accumulator_value=_SUM,
        momentum=_MOMENTUM._replace(meaning="decay of the momentum buffer, which has the rate inside"),
        centered=GLOSSARY["centered"],
        amsgrad=GLOSSARY["amsgrad"],
        weight_decay=GLOSSARY["weight_decay"],
        clipnorm=_word("max_norm", "the largest norm of a tensor's gradient"),
        clipvalue=_word("max_norm", "the largest absolute value in a gradient"),
        global_clipnorm=_word("max_norm", "the largest norm of all gradients together"),
        beta_2_decay=_EXPONENT,
        epsilon_1=_word("eps", "added to the squares"),
        epsilon_2=_word("eps", "the least size of the parameters"),
        clip_threshold=_word("clipping_threshold", none=""),
    ),
    dict(
        use_ema="average the parameters beside the step: optax.incremental_update(params, average, 1 - ema_momentum)",
        ema_momentum="it goes to optax.incremental_update(params, average, 1 - ema_momentum)",
        ema_overwrite_frequency="overwrite the parameters with your average at those steps",
        loss_scale_factor="multiply the loss by it and divide the gradients by it",
        gradient_accumulation_steps="wrap the optimizer: optax.MultiSteps(tx, gradient_accumulation_steps)",
        relative_step="leave it out: in Keras it changes nothing, the rate is capped by 1/sqrt(t) either way",
        name="leave it out: a transformation has no name",
        jit_compile=_ONCE,
        mask=_GROUPS,
        exclude_from_weight_decay=_GROUPS,
    ),
)

_STORED = "leave it out: what is stored is float32 or wider, and as the library's own factory says by state_dtype"
OPTAX = Framework(
    "optax",
    dict(
        learning_rate=GLOSSARY["learning_rate"],
        b1=GLOSSARY["b1"],
        b2=GLOSSARY["b2"],
        decay=_RHO,
        rho=_RHO,
        eps=_EPS,
        eps_root=GLOSSARY["eps_root"],
        eps_in_sqrt=_word("amsgrad", "add eps under the root, not to it"),
        initial_scale=_SUM,
        initial_accumulator_value=_SUM,
        centered=GLOSSARY["centered"],
        momentum=_word("momentum", "decay of the momentum buffer, which has the rate inside"),
        nesterov=GLOSSARY["nesterov"],
        bias_correction=GLOSSARY["bias_correction"],
        bias_correction_mu=_word("bias_correction", "divide the first moment by 1 - b1^t, for its zero start"),
        bias_correction_nu=_word("bias_correction", "divide the second moment by 1 - b2^t, for its zero start"),
        weight_decay=_word("weight_decay", "decay, as the equations say"),
        mask=GLOSSARY["mask"],
        weight_decay_mask=GLOSSARY["mask"],
        threshold=_word("rho_threshold"),
    ),
    dict(
        mu_dtype=_STORED,
        dtype_momentum=_STORED,
    ),
)


OPTAX_ADAFACTOR = dict(
    learning_rate=_word("learning_rate", none="1"),
    min_dim_size_to_factor=_word("min_dim_size_to_factor", needs=""),
    decay_rate=GLOSSARY["decay_rate"],
    decay_offset=GLOSSARY["decay_offset"],
    multiply_by_parameter_scale=_word("amsgrad", "the step is relative to the parameters' size, at least 1e-3"),
    clipping_threshold=GLOSSARY["clipping_threshold"],
    momentum=_word("momentum", "decay of an average over the steps, rate included"),
    weight_decay_rate=_word("weight_decay", "decoupled decay, not times the rate"),
    eps=_word("eps", "added to the squares"),
    factored=_word("amsgrad", "guess the second moment of a matrix from the means of its rows and columns"),
    weight_decay_mask=_word("mask", needs="weight_decay_rate"),
)


FRAMEWORKS = {framework.name: framework for framework in (TORCH, KERAS, OPTAX)}


def lion_words(b1: str, b2: str) -> dict[str, Argument]:
    """What Lion's decays mean, by their names."""
    return {b1: _word("b1", "the part of the momentum in the sign"), b2: _word("b2", "decay of the momentum")}


def preset(framework: Framework, url: str, **own: Argument) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A factory with the framework's arguments, checked like the library's own; errors call it `presets.torch.adam`.

    own: words that mean something else in this factory.
    """

    def decorate(factory: Callable[P, T]) -> Callable[P, T]:
        name = f"presets.{framework.name}.{factory.__name__}"
        public, arguments = (
            checked(factory, (), {**framework.words, **own}, name),
            inspect.signature(factory).parameters,
        )

        @functools.wraps(public)
        def named(*args: P.args, **kwargs: P.kwargs) -> T:
            for argument in kwargs:
                if argument in framework.instead and argument not in arguments:
                    raise TypeError(f"{name}: no argument {argument}; {framework.instead[argument]}")
            return public(*args, **kwargs)

        named.__doc__ = f"{public.__doc__}\n\nSource: {url}"
        return named

    return decorate
