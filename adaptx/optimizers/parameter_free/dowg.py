"""DoWG: distance over weighted gradients, a step size without a rate."""

from __future__ import annotations

from typing import Any

import optax

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.registry import Paper, optimizer
from adaptx.optimizers.parameter_free.dog import dog_rule


@optimizer(
    paper=Paper(
        "DoWG Unleashed: An Efficient Universal Parameter-Free Gradient Descent Method (Khaled, Mishchenko, Jin)",
        2023,
        "https://arxiv.org/abs/2305.16284",
    ),
    family="parameter_free",
    direction="DoWG is a rate, not a direction: its step size multiplies the plain gradient and the decay alike",
    typical_rate=1.0,
    reduces="tree",
    needs=("params",),
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=1.0),
        dict(learning_rate=0.5, d0=1e-3, eps=2e-3, weight_decay=0.1, mask=True),
    ),
)
def dowg(
    learning_rate: optax.ScalarOrSchedule = 1.0,
    *,
    d0: Any = 1e-2,
    eps: Any = 1e-4,
    weight_decay: Any = None,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """DoWG: SGD whose rate is the squared distance travelled over the root of squared gradient norms weighed by it.

    Start:
        x0 = x
        r = d0
        v = 0
    Step t = 1, 2, ...:
        r = maximum(r, norm(x - x0))
        v = v + r**2*norm(g)**2
        rate = learning_rate*r**2/(sqrt(v) + eps)
        x = x - rate*g - minimum(rate*weight_decay, 1)*x

    Norms run over all parameters. The learning rate is not the paper's: 1 is its method. The paper has no eps; it and
    the first distance are those of the authors' code, which writes both as one number, eps = d0**2 = 1e-4, as Optax's
    default does. Where |g| is below eps/r that eps rules and the steps shrink; with eps=0 the scale of the gradients
    does not matter. Weight decay is decoupled, times the whole rate, and never past zero; Optax adds it to the
    gradient. Entries beyond the clamp of huge gradients are cut one by one, as in `dog`.
    """
    return lift("dowg", dog_rule(d0, eps, 0.0, weighted=True), Descent(learning_rate, weight_decay, mask))
