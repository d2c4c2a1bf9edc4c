"""Glossary: the words of the library. What every argument means and may be, the same in all factories."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


class Argument(NamedTuple):
    """The meaning of an argument, the same in every factory, and what it may be."""

    meaning: str
    allowed: str
    test: Callable[[Any], bool]  # whether a value is allowed
    decay: bool = False  # a decay rate, which may be a Decay
    schedulable: bool = False
    static: bool = False  # an int that shapes the program: no tracer, no array
    choices: tuple[str, ...] = ()
    none: str = ""  # what None means, where it is allowed
    needs: str = ""  # the argument without which this one would change nothing
    limit: bool = False  # refuses what is beyond it, and changes nothing else
    storage: bool = False  # how the state is stored: no part of the equations


def is_number(value: Any) -> bool:
    """One real number, traced or not; a bool is none, nor is an int beyond 64 bits."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**63
    if not isinstance(value, float | np.ndarray | np.generic | jax.Array) or np.ndim(value):
        return False
    return any(jnp.issubdtype(getattr(value, "dtype", float), kind) for kind in (jnp.integer, jnp.floating))


def is_flag(value: Any) -> bool:
    """One bool, of Python, NumPy or JAX, whose value is known."""
    array = getattr(value, "dtype", None) == np.bool_ and not value.ndim
    return isinstance(value, bool) or (array and not isinstance(value, Tracer))


def is_storage(value: Any) -> bool:
    """A dtype that state may be stored in, or its name."""
    if not isinstance(value, str | type | np.dtype):
        return False
    try:
        return jnp.dtype(value) in map(jnp.dtype, ("bfloat16", "float32", "float64"))
    except TypeError:
        return False


def is_count(value: Any, least: int = 0) -> bool:
    """An int that shapes the program: no bool, no tracer, no array."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= least


def _number(within: Callable[[float], bool]) -> Callable[[Any], bool]:
    """One finite number within a range; of a tracer the value is not known."""
    known = lambda v: math.isfinite(v) and within(float(v))
    return lambda v: is_number(v) and (isinstance(v, Tracer) or known(v))


def _choice(meaning: str, *choices: str, none: str = "", needs: str = "") -> Argument:
    test = lambda v: isinstance(v, str) and v in choices
    return Argument(meaning, " or ".join(map(repr, choices)), test, choices=choices, none=none, needs=needs)


_at_least_0, _above_0, _at_least_1 = _number(lambda v: v >= 0), _number(lambda v: v > 0), _number(lambda v: v >= 1)
_fraction = _number(lambda v: 0 <= v < 1)
_size = functools.partial(Argument, allowed=">= 0", test=_at_least_0)
_positive = functools.partial(Argument, allowed="> 0", test=_above_0)
_decay = functools.partial(Argument, allowed="in [0, 1)", test=_fraction, decay=True)
_part = functools.partial(Argument, allowed="in [0, 1]", test=_number(lambda v: 0 <= v <= 1))
_rate = functools.partial(
    Argument,
    allowed="a number, 0-d array or schedule >= 0",
    test=lambda v: callable(v) or _at_least_0(v),
    schedulable=True,
)
_switch = functools.partial(Argument, allowed="True or False", test=lambda v: isinstance(v, bool | np.bool_))
_mask = functools.partial(
    Argument,
    allowed="a prefix tree of bools, known when the step is compiled, or a function giving one",
    test=lambda v: callable(v) or all(map(is_flag, jax.tree.leaves(v))),
)
_duration = functools.partial(Argument, allowed=">= 1", test=_at_least_1)
_count = functools.partial(Argument, allowed="an int >= 0", test=is_count, static=True)
_positive_count = functools.partial(Argument, allowed="an int >= 1", test=lambda v: is_count(v, 1), static=True)
_transformation = functools.partial(
    Argument,
    allowed="an optax.GradientTransformation (what has init and update)",
    test=lambda v: not isinstance(v, type) and all(callable(getattr(v, f, None)) for f in ("init", "update")),
)
_index = functools.partial(
    Argument, allowed="an int", test=lambda v: isinstance(v, int | np.integer) and not isinstance(v, bool), static=True
)

GLOSSARY: dict[str, Argument] = {
    "learning_rate": _rate("the step size"),
    "b1": _decay("decay of the first moment, or the share of an average in its place"),
    "b2": _decay("decay of the second moment"),
    "b3": _decay("decay of the third average, beside those of b1 and b2"),
    "eps": _size(
        "added to the root, or what else is the denominator (outside); in adopt and sophia the least it may be"
    ),
    "eps_root": _size("added under the root (inside)"),
    "momentum": _decay("decay of the momentum: of a buffer, as the equations have it, or of the iterates", none="off"),
    "nesterov": _switch("look one momentum step ahead; needs momentum", needs="momentum"),
    "weight_decay": _rate(
        "decay, decoupled and times the learning rate (`lars`, the parameter-free and a `kind`: as the equations say)",
        none="off",
    ),
    "mask": _mask("where the decay applies; needs weight_decay", none="everywhere", needs="weight_decay"),
    "state_dtype": Argument(
        "what averages and sums that are like a parameter are stored in, all or by field; steps are float32 or wider",
        "bfloat16, float32 or float64, or a dict of fields with these",
        lambda v: all(map(is_storage, v.values())) and bool(v) if isinstance(v, dict) else is_storage(v),
        static=True,
        none="float32, or as wide as the parameter",
        storage=True,
    ),
    "initial_accumulator": _size("the second moment's first value"),
    "lr_decay": _size("the rate at step t is divided by 1 + (t - 1) lr_decay", none="off"),
    "l1": _size("l1 penalty, by the proximal step: small weights become exactly zero", none="off"),
    "l2": _size("l2 penalty, inside the rule", none="off"),
    "beta": _size("added to the root of the sum: the larger, the smaller the first steps"),
    "max_norm": _positive("a row that a step leaves longer is cut to this norm", none="off"),
    "eta": _size("weight of the squared gradients in the numerator"),
    "eta_minus": Argument("what a step size is multiplied by where the gradient turns", "in [0, 1)", _fraction),
    "eta_plus": Argument("what a step size is multiplied by where the gradient keeps its sign", ">= 1", _at_least_1),
    "min_step_size": _size("the smallest step size"),
    "max_step_size": _positive("the largest step size"),
    "max_size": _count("the most elements that a tensor may have: with n, it keeps n x n numbers", limit=True),
    "centered": _switch("subtract the squared mean from the second moment (a variance, clamped at 0)"),
    "bias_correction": _switch("divide each moment by 1 - b^t of its decay b, for its zero start"),
    "amsgrad": _switch("divide by the largest second moment so far"),
    "partial": Argument(
        "p: the second moment to this power is the denominator", "in (0, 1/2]", _number(lambda v: 0 < v <= 0.5)
    ),
    "nu1": _part("the part of the first moment beside the newest gradient"),
    "nu2": _part("the part of the second moment beside the newest squared gradient"),
    "rho_threshold": Argument(
        "the number of gradients in the second moment above which it is used", ">= 4", _number(lambda v: v >= 4)
    ),
    "degenerated_to_sgd": _switch("before that, step along the first moment instead of not at all"),
    "momentum_decay": _size("psi in the momentum schedule b1 (1 - 0.96^(t psi) / 2)", none="constant b1"),
    "final_learning_rate": _rate("the SGD rate that both bounds tend to"),
    "gamma": _positive("how fast the bounds close; in sophia, what the average of the Hessian is multiplied by"),
    "alpha": _rate("the weight of what stands beside the first moment: old gradients, or the newest one"),
    "alpha_warmup": _duration("steps in which alpha rises from 0, in a line", none="no warm-up"),
    "b1_warmup": _duration(
        "steps in which the half-life of b1 rises from that of b1_start, in a line", none="no warm-up"
    ),
    "b1_start": _decay("where the warm-up of b1 starts; needs b1_warmup", none="0.9", needs="b1_warmup"),
    "b3_warmup": _duration("steps in which the half-life of b3 rises from that of b1, in a line", none="no warm-up"),
    "amplitude": _positive("what the arc tangent is multiplied by"),
    "stretch": _positive("what the root is multiplied by inside the arc tangent"),
    "clipping_threshold": _positive(
        "the largest root mean square, over a tensor, of the gradient over its root; a larger one divides the step",
        none="no clipping",
    ),
    "clip_power": _size("entries are cut at (t - 1)^clip_power", none="no clipping"),
    "inner_decay": _size("decay inside the momentum: this much of x joins the direction", none="off"),
    "amsbound": _switch("divide by the largest second moment so far"),
    "per": _choice("one accumulator for each", "tensor", "tree"),
    "bias": _choice("whose steps the bias corrections count", "global", "row"),
    "decay_at": _choice(
        "when a row decays: in the steps that use it, or, exactly, when it is read (by `sparse.read`)",
        "touch",
        "read",
        needs="weight_decay",
    ),
    "seed": _count("rounds the rows of bfloat16 tables up or down at random, with the right mean", none="to nearest"),
    "min_dim_size_to_factor": _count("the moment is whole where one of the two axes is shorter", needs="factored"),
    "factored": _choice(
        "the two axes whose means stand for the second moment", "last", "largest", none="the second moment is whole"
    ),
    "decay_rate": _size("c in the second moment's decay 1 - t^-c"),
    "decay_offset": _size("steps that this decay does not count"),
    "min_scale": _positive(
        "the step is relative to the parameters' root mean square, or to this if larger", none="not"
    ),
    "relative_step": _switch("cap the rate by 1 / sqrt(t)"),
    "hessian_power": _part("the root is raised to it: 1 is Newton's step, 0 the gradient's"),
    "update_every": _positive_count("the Hessian is used in steps 1, 1 + update_every, 1 + 2 update_every, ... only"),
    "trust_coefficient": _positive("the part of its norm that a tensor moves by, times the learning rate"),
    "eps_instability": _size("added to the squared distance from the momentum, under the root"),
    "block_axis": _index("the axis along which blocks of one second moment lie", none="a tensor is one block"),
    "blocks": _positive_count(
        "parts of the axis, each ceil(length/blocks) long while it lasts", none="one for each index", needs="block_axis"
    ),
    "threshold": _size("the largest |g| that is dropped"),
    "initial_distance": _positive("the first distance, relative to 1 + the norm of the first parameters"),
    "tx": _transformation("the optimizer, or chain of transformations, that is wrapped"),
    "magnitude": _transformation("the optimizer whose update gives the length"),
    "direction": _transformation("the optimizer whose update gives the direction"),
    "weight_power": _size("power of the largest learning rate so far in a step's weight in the average"),
    "step_power": _size("power of the step t in its weight in the average"),
    "keep_average": _switch(
        "keep the average in the state, a float32 copy, instead of deriving it",
        none="where b1 is 0 or a parameter has 16 bits",
    ),
    "min_mean": Argument(
        "the least share of kept entries that the others make up for", "in (0, 1]", _number(lambda v: 0 < v <= 1)
    ),
    "kind": _choice("how the decay enters", "decoupled", "l2", "independent", "stable", "cautious"),
    "correction": _size("gamma: how much of the gradients' change is added, times b1 / (1 - b1)"),
    "clip_norm": _positive("the largest norm of a tensor's corrected gradient", none="off"),
    "exact": _switch("the gradients before are given, as `previous_grads`: this batch's at the parameters before"),
    "max_rms": _positive("the largest root mean square of a tensor's update, before the rate"),
    "d0": _positive("the first estimate of the distance to a solution"),
    "d_decay": _decay("decay of the sums that this estimate is made of", none="the root of b2"),
    "d_coef": _positive("factor of every new estimate of the distance"),
    "growth_rate": Argument(
        "the most that the estimate of the distance is multiplied by in a step", ">= 1", _at_least_1, none="no limit"
    ),
    "safeguard_warmup": _switch("leave the learning rate out of the estimate's denominator, so that it may warm up"),
    "caution": _positive("a bet's denominator is at least so many times the largest gradient"),
}

# Other libraries' names for what is called otherwise here (a hint is given where the factory has one of ours).
RENAMED: dict[str, tuple[str, ...]] = {
    # Optax
    "rmsprop.decay": ("b2",),
    "scale_by_rmsprop.decay": ("b2",),
    "rho": ("b2",),
    "weight_decay_mask": ("mask",),
    "mu_dtype": ("state_dtype",),
    "accumulator_dtype": ("state_dtype",),
    "dtype_momentum": ("state_dtype",),
    "init_step": ("initial_distance",),
    "sophia.rho": ("gamma",),
    "scale_by_sophia.rho": ("gamma",),
    "update_interval": ("update_every",),
    "estim_lr0": ("d0",),
    "estim_lr_coef": ("d_coef",),
    "prodigy.beta3": ("d_decay",),
    "init_estim_sq_dist": ("d0",),
    "cocob.alpha": ("caution",),
    "scale_by_cocob.alpha": ("caution",),
    "initial_accumulator_value": ("initial_accumulator",),  # Keras's too
    "initial_scale": ("initial_accumulator",),
    "eps_in_sqrt": ("eps_root", "eps"),
    "radam.threshold": ("rho_threshold",),
    "scale_by_radam.threshold": ("rho_threshold",),
    "use_clipping": ("clip_power",),
    "clip_value_fn": ("clip_power",),
    "etas": ("eta_minus", "eta_plus"),  # torch's Rprop
    "step_sizes": ("min_step_size", "max_step_size"),
    "initial_gradient_squared_accumulator_value": ("initial_accumulator",),  # TensorFlow's AdagradDA
    "l1_regularization_strength": ("l1",),
    "l2_regularization_strength": ("l2",),
    "adafactor.eps": ("eps_root", "min_scale"),
    "came.eps": ("eps_root", "eps_instability"),
    "scale_by_came.eps": ("eps_root", "eps_instability"),
    "multiply_by_parameter_scale": ("min_scale",),
    "weight_decay_rate": ("weight_decay",),
    "signum.beta": ("momentum",),
    "scale_by_signum.beta": ("momentum",),
    "trust_ratio_mask": ("mask",),
    # torch and Keras
    "lr": ("learning_rate",),
    "betas": ("b1", "b2", "b3"),
    "beta_1": ("b1",),
    "beta_2": ("b2",),
    "epsilon": ("eps",),
    "rmsprop.alpha": ("b2",),
    "scale_by_rmsprop.alpha": ("b2",),
    "adam.alpha": ("learning_rate",),  # the paper's; in ademamix it is an argument
    "wd": ("weight_decay",),
    "final_lr": ("final_learning_rate",),
    "beta2_decay": ("decay_rate",),
    "beta_2_decay": ("decay_rate",),
    "clip_threshold": ("clipping_threshold",),
    "epsilon_1": ("eps_root",),
    "epsilon_2": ("min_scale",),
    "beta1": ("b1",),
    "beta2": ("b2",),
    "clip_lambda": ("clip_power",),
    "clip_thresh": ("clipping_threshold",),
    "adam_atan2.a": ("amplitude",),
    "adam_atan2.b": ("stretch",),
    "beta3_warmup": ("b3_warmup",),
    "beta1_warmup": ("b1_warmup",),
    "min_beta1": ("b1_start",),
    "reps_rel": ("initial_distance",),
    "update_each": ("update_every",),
    # wrappers elsewhere
    "base_optimizer": ("tx",),
    "optimizer": ("tx",),
    "inner": ("tx",),
    "weight_lr_power": ("weight_power",),
    "schedule_free.r": ("step_power",),
    "schedule_free.momentum": ("b1",),
    "mars.gamma": ("correction",),
    "is_approx": ("exact",),
    "update_clipping.clipping_threshold": ("max_rms",),
    "update_clipping.threshold": ("max_rms",),
    "scale_by_momentum.decay": ("momentum",),
    "schedule_free.beta": ("b1",),
    "beta3": ("b3",),
    "nus": ("nu1", "nu2"),
    "degenerate_to_sgd": ("degenerated_to_sgd",),
    "dadapt_sgd.momentum": ("b1",),
    "scale_by_sm3.b1": ("momentum",),
    "sm3.b1": ("momentum",),
    "scale_by_novograd.weight_decay": ("inner_decay",),
    "use_bias_correction": ("bias_correction",),
}

# Other libraries' arguments that are none here: what there is in their place.
INSTEAD: dict[str, str] = {
    "adam.nesterov": "nadam with momentum_decay=None is Adam with it; ",
    "adamw.nesterov": "nadam with momentum_decay=None and weight_decay is AdamW with it; ",
    "scale_by_adam.nesterov": "scale_by_nadam with momentum_decay=None is this with it; ",
    "sophia.hessian_diagonal_fn": "give what it makes to update, as hessian; ",
    "scale_by_sophia.hessian_diagonal_fn": "give what it makes to update, as hessian; ",
}

# What every docstring says, unless it says more.
ERRORS = (
    "Errors:",
    "    TypeError: an unknown argument; in init and update, a dtype that does not fit (integers; complex for real).",
    "    ValueError: an argument out of range; in update, trees or shapes that do not fit, or something missing.",
)
