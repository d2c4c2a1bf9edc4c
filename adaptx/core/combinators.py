"""Combinators: rules made from rules, for what would else be pasted into each of them."""

import dataclasses
import functools
from collections import namedtuple
from typing import Any

from jax import Array

from adaptx.core.moments import Clock, Decay, heavy_ball, norm, safe_div
from adaptx.core.rule import Rule, zeros


def with_momentum(rule: Rule, momentum: Any, nesterov: bool = False) -> Rule:
    """The rule's directions u through a heavy ball b <- momentum b + u, kept as `trace`, which its State must have.

    The direction is then b, or with nesterov u + momentum b: where the ball will be. Momentum None leaves the rule.
    """
    if momentum is None:
        return dataclasses.replace(rule, slots={**rule.slots, "trace": None})
    momentum = Decay.of(momentum)

    def step(g: Array, s: Any, x: Any, t: Clock) -> tuple[Array, Any]:
        u, s = rule.step(g, s, x, t)
        u, trace = heavy_ball(s.trace, u, momentum, nesterov)
        return u, s._replace(trace=trace)

    return dataclasses.replace(rule, step=step, slots={**rule.slots, "trace": zeros})


def grafted(m: Array, d: Array) -> Array:
    """d |m| / |d|: the direction of d at the length of m; 0 where d is 0."""
    return d * safe_div(norm(m), norm(d))


def graft(magnitude: Rule, direction: Rule) -> Rule:
    """The direction of one rule at the length, in each tensor, of the other's: u = d |m| / |d|.

    Neither may own the rate or keep numbers of the whole tree. The State has the fields of both, with their part in
    front: magnitude_nu, direction_mu, ...
    """
    parts = {"magnitude": magnitude, "direction": direction}
    for part, rule in parts.items():
        if "learning_rate" in rule.needs or rule.scalars or rule.part or rule.shared:
            raise TypeError(f"graft: the {part} must be a rule that leaves the rate out and keeps to its tensor")

    def step(g: Array, s: Any, x: Any, t: Clock) -> tuple[Array, Any]:
        us, new = [], {}
        for part, rule in parts.items():
            fields = {f.removeprefix(f"{part}_"): a for f, a in s._asdict().items() if f.startswith(f"{part}_")}
            u, own = rule.step(g, rule.State(**{**fields, "count": s.count}), x, t)
            us.append(u)
            new |= {f"{part}_{f}": a for f, a in own._asdict().items() if f != "count"}
        return grafted(*us), s._replace(**new)

    return Rule(
        _graft_state(magnitude.State, direction.State),
        step,
        {f"{part}_{field}": slot for part, rule in parts.items() for field, slot in rule.slots.items()},
        decays=(*magnitude.decays, *direction.decays),
        needs=tuple(dict.fromkeys((*magnitude.needs, *direction.needs))),
        trees=tuple(dict.fromkeys((*magnitude.trees, *direction.trees))),
    )


@functools.cache
def _graft_state(magnitude: Any, direction: Any) -> Any:
    """One type for each pair, so that a state fits every transformation made of the same two."""
    named = (("magnitude", magnitude), ("direction", direction))
    fields = [f"{part}_{f}" for part, state in named for f in state._fields if f != "count"]
    return namedtuple("GraftState", ["count", *fields], defaults=[None] * len(fields))
