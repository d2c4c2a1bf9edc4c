"""Conventions: where frameworks differ from the rules here outside of a rule's own equations, as combinators."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core import checks
from adaptx.core.combinators import with_momentum
from adaptx.core.descent import Descent, and_decay
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, safe_sqrt, sum_sq, tree_sum
from adaptx.core.rounding import bounded, real, wider
from adaptx.core.rule import Rule


def off_at_zero(value: Any) -> Any:
    """None for a Python 0, by which torch and Keras switch decay and momentum off; a tracer is always on."""
    return None if isinstance(value, int | float) and value == 0 else value


def negated(rule: Rule) -> Rule:
    """The rule on -g: torch's `maximize`. For rules that sum nothing over the tree."""
    return dataclasses.replace(rule, step=lambda g, s, x, t: rule.step(-g, s, x, t))


def l2(rule: Rule) -> Rule:
    """The rule on g + weight_decay x: decay as a penalty, which the moments see.

    For rules that sum nothing over the tree. The rate and the decay, where the mask leaves it, come from the Descent.
    """

    def step(g: Array, s: Any, x: Any, t: Clock) -> tuple[Array, Any]:
        if t.weight_decay is not None:
            g = g + t.weight_decay * x
        u, s = rule.step(g, s, x, Clock(**{**vars(t), "weight_decay": None}))
        return (u if "learning_rate" in rule.needs else -t.learning_rate * u), s

    return dataclasses.replace(rule, step=step, needs=tuple({**dict.fromkeys(rule.needs), "learning_rate": None}))


def rate_inside(rule: Rule, momentum: Any, nesterov: bool = False) -> Rule:
    """The rule with momentum over whole steps, rate included: old ones keep the rate they were made with."""
    if momentum is None:
        return rule

    def rated(g: Array, s: Any, x: Any, t: Clock) -> tuple[Array, Any]:
        u, s = rule.step(g, s, x, t)
        return t.learning_rate * u, s

    heavy = with_momentum(dataclasses.replace(rule, step=rated), momentum, nesterov)

    def step(g: Array, s: Any, x: Any, t: Clock) -> tuple[Array, Any]:
        u, s = heavy.step(g, s, x, t)
        return and_decay(-u, x, t), s

    return dataclasses.replace(heavy, step=step, needs=(*rule.needs, "learning_rate"))


def descended(
    name: str,
    rule: Rule,
    learning_rate: Any,
    weight_decay: Any,
    mask: Any = None,
    *,
    decoupled: bool = True,
    maximize: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """The ready optimizer; its decay is decoupled, or the penalty of `l2`, which `maximize` does not turn."""
    weight_decay = off_at_zero(weight_decay)
    if weight_decay is not None and not decoupled:
        rule = l2(rule)
    rule = negated(rule) if maximize else rule
    return lift(name, rule, Descent(learning_rate, weight_decay, None if weight_decay is None else mask))


def clipped(
    name: str, tx: optax.GradientTransformationExtraArgs, clipnorm: Any, clipvalue: Any, global_clipnorm: Any
) -> optax.GradientTransformationExtraArgs:
    """Keras's clipping, of the gradients before all else: each tensor's norm, each value, or the norm of the tree."""
    if clipnorm is None and clipvalue is None and global_clipnorm is None:
        return tx

    def clip(grads: list[Array]) -> list[Array]:
        if clipvalue is not None:
            return [_within(g, clipvalue) for g in grads]
        if clipnorm is not None:
            return [_cut(g, sum_sq(g), clipnorm) for g in grads]
        total = tree_sum([sum_sq(g) for g in grads], wider(*(real(g.dtype) for g in grads))) if grads else None
        return [_cut(g, total, global_clipnorm) for g in grads]

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        checks.check_inexact(name, "gradient", updates)
        if clipvalue is not None and any(map(jnp.iscomplexobj, jax.tree.leaves(updates))):
            raise TypeError(f"{name}: clipvalue takes real gradients only; clipnorm takes complex ones")
        leaves, treedef = jax.tree.flatten(updates, is_leaf=checks.is_none)
        live = [i for i, g in enumerate(leaves) if g is not None]
        working = clip([jnp.asarray(leaves[i], wider(jnp.float32, jnp.result_type(leaves[i]))) for i in live])
        for i, g in zip(live, working, strict=True):
            leaves[i] = g.astype(jnp.result_type(leaves[i]))
        return tx.update(treedef.unflatten(leaves), state, params, **extra)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _within(g: Array, largest: Any) -> Array:
    """Each value between -largest and largest; an Inf shows as NaN."""
    largest = jnp.asarray(largest, g.dtype)
    return jnp.clip(g, -largest, largest) + (g - g)


def _cut(g: Array, squares: Any, largest: Any) -> Array:
    """g, shortened by what makes `largest` of the root of a sum of squares."""
    largest = jnp.asarray(largest, squares.dtype)
    return bounded(g) * (largest / jnp.maximum(safe_sqrt(squares), largest)).astype(real(g.dtype))
