"""DoG: distance over gradients, a step size without a rate."""

from __future__ import annotations

from collections.abc import Callable
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
from adaptx.optimizers.parameter_free.estimate import decayed


class DoGState(NamedTuple):
    """The state of DoG and DoWG."""

    count: Array  # t
    initial_params: Params  # x0, a copy
    distance: Array  # r, the largest distance from x0 so far
    grad_sq: Array  # s, the sum of squared gradient norms; in DoWG v, in units of r^2


def relative(distance: Any) -> Callable[[list[Array]], Array]:
    """A first distance, relative to 1 + the norm of the first parameters."""

    def first_distance(params: list[Array]) -> Array:
        width = wider(jnp.float32, *(real(accumulator_dtype(x)) for x in params))
        squares = [jnp.sum(abs_sq(jnp.asarray(x, accumulator_dtype(x)))) for x in params]
        return distance * (1 + safe_sqrt(tree_sum([jnp.zeros([]), *squares], width)))

    return first_distance


def dog_rule(first_distance: Any, eps: Any, eps_root: Any, weighted: bool = False) -> Rule:
    """DoG's equations; both sums run over the whole tree. `weighted` is DoWG: each square counts times the squared
    distance of its step, and the sum is kept in units of the newest one, which keeps it from overflowing."""

    def part(g: Array, s: DoGState, x: Array, t: Clock) -> tuple[Any, DoGState]:
        # An Inf shows in its own parameter, and through the distance everywhere a step later; sum_sq costs 20 % here.
        return (jnp.sum(abs_sq(x - s.initial_params)), jnp.sum(abs_sq(g))), s

    def advance(s: DoGState, totals: tuple[Array, Array], t: Clock) -> DoGState:
        moved, squares = totals
        r = jnp.maximum(s.distance, safe_sqrt(moved))
        before = s.grad_sq * (s.distance / r) ** 2 if weighted else s.grad_sq
        return s._replace(distance=r, grad_sq=before + squares)

    def step(g: Array, s: DoGState, x: Array, t: Clock) -> tuple[Array, DoGState]:
        r, root = s.distance, safe_sqrt(s.grad_sq + eps_root)
        rate = t.learning_rate * (divide(r * r, r * root, eps) if weighted else divide(r, root, eps))
        return decayed(-rate * g, rate, x, t), s

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
    rule = dog_rule(relative(initial_distance), eps, eps_root)
    return lift("dog", rule, Descent(learning_rate, weight_decay, mask))
