"""with_weight_decay: each kind of weight decay, for any optimizer."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.tree_util import GetAttrKey, tree_flatten_with_path

from adaptx.core import checks
from adaptx.core.descent import rate_at
from adaptx.core.moments import Decay, next_count, safe_div, safe_sqrt, tree_sum
from adaptx.core.registry import checked
from adaptx.core.rounding import real, wider
from adaptx.optimizers.curvature.sophia import SophiaState
from adaptx.wrappers.cautious import agreement
from adaptx.wrappers.leaves import cast, joined, no_steps, on_leaves, working


class WeightDecayState(NamedTuple):
    """The state of with_weight_decay."""

    steps: Array  # taken before: what the schedules are asked for
    inner: Any


@checked
def with_weight_decay(
    tx: Any,
    weight_decay: Any,
    learning_rate: Any = None,
    *,
    kind: str = "decoupled",
    mask: Any = None,
    b2: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Weight decay of a chosen kind for any optimizer, whose own is to be off.

    Step t = 1, 2, ..., u(g) the update of `tx`, x the parameter before it:
        decoupled:   x = x + u(g) - learning_rate*weight_decay*x
        l2:          x = x + u(g + weight_decay*x)
        independent: x = x + u(g) - weight_decay*x
        stable:      x = x + u(g) - learning_rate*weight_decay/sqrt(mean(nu)/(1 - b2**t))*x
        cautious:    x = x + u(g) - learning_rate*weight_decay*(u(g)*x <= 0)*x

    Both numbers may be schedules. Give the learning rate that `tx` has, to the kinds that multiply by it.

        tx = adaptx.with_weight_decay(optax.sgd(0.1, momentum=0.9), 1e-4, kind="l2", mask=lambda params: ...)

    "decoupled" (Loshchilov, Hutter 2019, https://arxiv.org/abs/1711.05101, times the rate): `weight_decay` of this
    library's optimizers, of torch's AdamW, of Optax's adamw, of every Keras optimizer, DECOUPLED in Meta's Shampoo.
    "l2" is the gradient of a penalty weight_decay/2 |x|^2: `weight_decay` of torch's SGD, Adam, Adagrad, RMSprop, ...,
    `optax.add_decayed_weights` at the head of a chain, L2 in Meta's Shampoo. An adaptive method divides it by the root
    of the second moment, so weights with large gradients decay less. The sum has the gradient's dtype.
    "independent" is the paper's own form, whose schedule multiplier is a schedule here; Optax's adafactor has it. With
    the schedule weight_decay*rate/peak rate it is INDEPENDENT in Meta's Shampoo, and "decoupled" with that schedule
    (Defazio 2025, https://arxiv.org/abs/2506.02285) is their CORRECTED.
    "stable" (Xie, Sato, Sugiyama 2020, https://arxiv.org/abs/2011.11152) is AdamS with `adaptx.adam(rate)` inside. The
    mean is over all entries of the tree of `nu` in the wrapped state, after the step; b2 is the wrapped optimizer's,
    and 0.0 says that its nu is not an average from zero. It must move in every step: AdaHessian's does with
    update_every=1; Sophia's, of the Hessian itself, may be negative and does not count. The authors' default takes
    AMSGrad's maximum instead. Nothing decays while nu is 0; there is no eps, so it decays fast where all gradients are
    small.
    "cautious" (Chen et al. 2025, https://arxiv.org/abs/2510.12402) decays where the update pulls to zero as well, or
    not at all.

    Errors:
        TypeError: an unknown argument; in init and update, a dtype that does not fit.
        ValueError: an argument out of range, missing or of no use for the kind; for "stable", a state without `nu`; in
            update, trees or shapes that do not fit, or no params.
    """
    by_rate = kind in ("decoupled", "stable", "cautious")
    for argument, value, used in (("learning_rate", learning_rate, by_rate), ("b2", b2, kind == "stable")):
        if (value is not None) != used:
            verb = "needs" if used else "does not use"
            raise ValueError(f"with_weight_decay: kind {kind!r} {verb} {argument}")
    tx, averaging = optax.with_extra_args_support(tx), None if b2 is None else Decay.of(b2)

    def init(params: Any) -> WeightDecayState:
        checks.check_inexact("with_weight_decay", "parameter", params)
        inner = tx.init(params)
        if kind == "stable" and jax.tree.leaves(params) and not _second_moments(inner):
            raise ValueError(
                "with_weight_decay: kind 'stable' needs `nu`, a mean of squares, in the state of the wrapped optimizer"
            )
        return WeightDecayState(no_steps(params), inner)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, WeightDecayState]:
        checks.check_kind("with_weight_decay", WeightDecayState, state)
        checks.check_inexact("with_weight_decay", "gradient", updates)
        after = next_count(state.steps)
        if weight_decay is None:
            us, inner = tx.update(updates, state.inner, params, **extra)
            return us, WeightDecayState(after, inner)
        checks.require("with_weight_decay", ["params"], {"params": params})
        flags = checks.expanded_mask("with_weight_decay", mask, params, updates)
        where = jax.tree.unflatten(jax.tree.structure(updates, is_leaf=checks.is_none), flags)
        decay = rate_at(weight_decay, state.steps)

        def decayed(us: Any, size: tuple[Any, ...]) -> Any:
            leaf = lambda g, x, u, on: u if g is None or not on else _decayed(u, x, size, kind)
            trees = {"update of the wrapped optimizer": us, "mask": where}
            return on_leaves("with_weight_decay", leaf, updates, trees, params)

        if kind == "l2":
            us, inner = tx.update(decayed(updates, (decay,)), state.inner, params, **extra)
            return us, WeightDecayState(after, inner)
        us, inner = tx.update(updates, state.inner, params, **extra)
        rates = (rate_at(learning_rate, state.steps),) if by_rate else ()
        if averaging is not None:
            rates += (_inverse_root_mean(_second_moments(inner), averaging, after),)
        return decayed(us, (decay, *rates)), WeightDecayState(after, inner)

    return optax.GradientTransformationExtraArgs(init, update)


@functools.partial(jax.jit, static_argnames="kind")
def _decayed(u: Array, x: Array, size: tuple[Any, ...], kind: str) -> Array:
    """The decay of one leaf, added to the gradient or taken from the update."""
    dtype = working(u, x)
    step = functools.reduce(lambda a, b: a * b, [cast(s, dtype) for s in size]) * x.astype(dtype)
    if kind == "cautious":
        step = step * (agreement(u, x) <= 0).astype(real(dtype))
    wide = u.astype(dtype)
    return joined(wide + step, u, None) if kind == "l2" else joined(wide - step, u, x)


def _second_moments(state: Any) -> list[Any]:
    """Every array of a field `nu` that averages squares."""
    leaves, _ = tree_flatten_with_path(state, is_leaf=lambda part: isinstance(part, SophiaState))
    return [leaf for path, leaf in leaves if GetAttrKey("nu") in path]


def _inverse_root_mean(nus: list[Any], b2: Decay, t: Array) -> Array:
    """1 / sqrt(mean(nu) / (1 - b2^t)) over all entries; 0 while they are."""
    if not nus:
        return jnp.zeros(())
    width = wider(jnp.float32, *(nu.dtype for nu in nus))
    mean = tree_sum([jnp.sum(nu.astype(width)) for nu in nus], width) / max(sum(nu.size for nu in nus), 1)
    root = safe_sqrt(mean / b2.bias(t.astype(width)))
    return safe_div(jnp.ones_like(root), root)
