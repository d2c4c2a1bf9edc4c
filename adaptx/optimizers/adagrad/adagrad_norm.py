"""AdaGrad-Norm: one accumulator for a tensor, or for the whole tree."""

from __future__ import annotations

from typing import Any, NamedTuple

import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, divide, safe_sqrt, sum_sq
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rule import Params, Rule, per_tensor


class AdaGradNormState(NamedTuple):
    """The state of AdaGrad-Norm."""

    count: Array  # t
    nu: Params  # s, the sum of squared gradient norms: a number for each tensor, or one for the tree


def adagrad_norm_rule(initial_accumulator: Any, eps: Any, eps_root: Any, per: str) -> Rule:
    """AdaGrad-Norm's equations; the two forms differ in where the sum lives."""

    def part_of_tensor(g: Array, s: AdaGradNormState, x: Any, t: Clock) -> tuple[Any, AdaGradNormState]:
        return (), s._replace(nu=s.nu + sum_sq(g))

    def part_of_tree(g: Array, s: AdaGradNormState, x: Any, t: Clock) -> tuple[Any, AdaGradNormState]:
        return sum_sq(g), s

    def advance(s: AdaGradNormState, total: Array, t: Clock) -> AdaGradNormState:
        return s._replace(nu=s.nu + total)

    def step(g: Array, s: AdaGradNormState, x: Any, t: Clock) -> tuple[Array, AdaGradNormState]:
        return divide(g, safe_sqrt(s.nu + eps_root), eps), s

    if per == "tree":
        return Rule(AdaGradNormState, step, {}, dict(nu=initial_accumulator), part_of_tree, advance)
    return Rule(AdaGradNormState, step, dict(nu=per_tensor(initial_accumulator)), part=part_of_tensor)


@checked
def scale_by_adagrad_norm(
    initial_accumulator: Any = 0.0, eps: Any = 0.0, *, eps_root: Any = 0.0, per: str = "tensor"
) -> optax.GradientTransformationExtraArgs:
    """The direction of `adagrad_norm`: u in its equations, before the rate, the decay and the sign."""
    return lift("scale_by_adagrad_norm", adagrad_norm_rule(initial_accumulator, eps, eps_root, per))


@optimizer(
    paper=Paper(
        "AdaGrad Stepsizes: Sharp Convergence over Nonconvex Landscapes (Ward, Wu, Bottou)",
        2019,
        "https://arxiv.org/abs/1806.01811",
    ),
    family="adagrad",
    direction=scale_by_adagrad_norm,
    typical_rate=1.0,
    reduces=["tensor", "tree", "tensor", "tree"],
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=0.1),
        dict(learning_rate=0.1, per="tree"),
        dict(learning_rate=0.1, initial_accumulator=0.2, eps=1e-3, eps_root=1e-2, weight_decay=0.05, mask=True),
        dict(
            learning_rate=0.1,
            initial_accumulator=0.2,
            eps=1e-3,
            eps_root=1e-2,
            per="tree",
            weight_decay=0.05,
            mask=True,
        ),
    ),
)
def adagrad_norm(
    learning_rate: optax.ScalarOrSchedule,
    initial_accumulator: Any = 0.0,
    eps: Any = 0.0,
    *,
    eps_root: Any = 0.0,
    per: str = "tensor",
    weight_decay: Any = None,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """AdaGrad-Norm: one step size, the inverse root of the sum of squared gradient norms.

    Start:
        s = initial_accumulator
    Step t = 1, 2, ...:
        s = s + sum(abs(g)**2)
        u = g/(sqrt(s + eps_root) + eps)
        x = x - learning_rate*(u + weight_decay*x)

    The sum runs over one tensor (per="tensor", the default) or over all (per="tree", the paper's single vector). The
    paper's b_0^2 is `initial_accumulator`; it asks for b_0 > 0, and 0 is the limit: the first step has length
    learning_rate, and zero gradients move nothing. Entries beyond the clamp of huge gradients (1e12 in float32) are cut
    one by one, which turns the direction.
    """
    rule = adagrad_norm_rule(initial_accumulator, eps, eps_root, per)
    return lift("adagrad_norm", rule, Descent(learning_rate, weight_decay, mask))
