"""DoG: distance over gradients, a step size without a rate."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, abs_sq, divide, safe_sqrt, tree_sum
from adaptx.core.registry import Paper, optimizer
from adaptx.core.rounding import real, wider
from adaptx.core.rule import Params, Rule, accumulator_dtype, copied


class DoGState(NamedTuple):
    """The state of DoG."""

    count: Array  # t
    initial_params: Params  # x0, a copy
    distance: Array  # r, the largest distance from x0 so far
    grad_sq: Array  # s, the sum of squared gradient norms


def dog_rule(initial_distance: Any, eps: Any, eps_root: Any) -> Rule:
    """DoG's equations; both sums run over the whole tree."""

    def first_distance(params: list[Array]) -> Array:
        width = wider(jnp.float32, *(real(accumulator_dtype(x)) for x in params))
        squares = [jnp.sum(abs_sq(jnp.asarray(x, accumulator_dtype(x)))) for x in params]
        return initial_distance * (1 + safe_sqrt(tree_sum([jnp.zeros([]), *squares], width)))

    def part(g: Array, s: DoGState, x: Array, t: Clock) -> tuple[Any, DoGState]:
        # An Inf shows in its own parameter, and through the distance everywhere a step later; sum_sq costs 20 % here.
        return (jnp.sum(abs_sq(x - s.initial_params)), jnp.sum(abs_sq(g))), s

    def advance(s: DoGState, totals: tuple[Array, Array], t: Clock) -> DoGState:
        moved, squares = totals
        return s._replace(distance=jnp.maximum(s.distance, safe_sqrt(moved)), grad_sq=s.grad_sq + squares)

    def step(g: Array, s: DoGState, x: Array, t: Clock) -> tuple[Array, DoGState]:
        rate = t.learning_rate * divide(s.distance, safe_sqrt(s.grad_sq + eps_root), eps)
        if t.weight_decay is None:
            return -rate * g, s
        return -rate * g - jnp.minimum(rate * t.weight_decay, 1) * x, s

    slots, scalars = dict(initial_params=copied), dict(distance=first_distance, grad_sq=0.0)
    return Rule(DoGState, step, slots, scalars, part, advance, needs=("learning_rate", "params"))


@optimizer(
    paper=Paper(
        "DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size Schedule (Ivgi, Hinder, Carmon)",
        2023,
        "https://arxiv.org/abs/2302.12022",
    ),
    family="parameter_free",
    direction="DoG is a rate, not a direction: its step size multiplies the plain gradient and the decay alike",
    typical_rate=1.0,
    reduces="tree",
    needs=("params",),
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=1.0),
        dict(learning_rate=0.5, initial_distance=1e-3, eps=2e-3, eps_root=1e-4, weight_decay=0.1, mask=True),
    ),
)
def dog(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    *,
    initial_distance: Any = 1e-6,
    eps: Any = 0.0,
    eps_root: Any = 1e-8,
    weight_decay: Any = None,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """DoG: SGD whose rate is the distance travelled over the root of the sum of squared gradient norms.

    Start:
        x0 = x
        r = initial_distance*(1 + norm(x0))
        s = 0
    Step t = 1, 2, ...:
        r = maximum(r, norm(x - x0))
        s = s + norm(g)**2
        rate = learning_rate*r/(sqrt(s + eps_root) + eps)
        x = x - rate*g - minimum(rate*weight_decay, 1)*x

    Norms run over all parameters. The learning rate is the paper's c, best left at 1; average the iterates for the
    paper's results. Weight decay is decoupled, times the whole rate, and never past zero, since the rate is huge while
    gradients are tiny. The authors' code and Optax add it to the gradient, so that it also enters s. Networks with
    batch normalisation start better from initial_distance=1e-4. Entries beyond the clamp of huge gradients (1e12 in
    float32) are cut one by one, which turns the direction; their sum is cut as a whole, which makes the steps smaller.
    """
    return lift("dog", dog_rule(initial_distance, eps, eps_root), Descent(learning_rate, weight_decay, mask))
