"""AdEMAMix, Adam with a second, slow first moment, and its simplified form with one."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from adaptx.core.descent import Descent, rate_at
from adaptx.core.lift import lift
from adaptx.core.moments import Clock, Decay, abs_sq, debias, divide, ema, safe_sqrt
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rule import Params, Rule, real_zeros, zeros
from adaptx.optimizers.adam.adam import AdamState


class AdEMAMixState(NamedTuple):
    """The state of AdEMAMix."""

    count: Array  # t
    mu: Params  # m1, the fast average
    nu: Params  # v, real
    slow: Params  # m2, the slow average


def rising(b: Decay, start: Decay, steps: Any, t: Array) -> Decay:
    """A decay rate whose half-life rises in a line from that of `start`; b from t = steps on, and never more."""
    if steps is None:
        return b
    part = jnp.minimum(t / steps, 1)
    log_start, log_b = (jnp.log1p(-jnp.asarray(rate.complement, t.dtype)) for rate in (start, b))
    log_now = jnp.minimum(1 / ((1 - part) / log_start + part / log_b), log_b)
    return Decay(jnp.exp(log_now), -jnp.expm1(log_now))


def ademamix_rule(
    b1: Any, b2: Any, b3: Any, alpha: Any, eps: Any, eps_root: Any, alpha_warmup: Any, b3_warmup: Any
) -> Rule:
    """AdEMAMix's equations on one array."""
    b1, b2, b3 = Decay.of(b1), Decay.of(b2), Decay.of(b3)

    def shared(s: AdEMAMixState, t: Clock) -> tuple[Array, Decay]:
        """The weight of the slow average, and its decay."""
        weight = jnp.asarray(rate_at(alpha, s.count - 1), t.t.dtype)
        if alpha_warmup is not None:
            weight = weight * jnp.minimum(t.t / alpha_warmup, 1)
        return weight, rising(b3, b1, b3_warmup, t.t)

    def step(g: Array, s: AdEMAMixState, x: Any, t: Clock) -> tuple[Array, AdEMAMixState]:
        weight, b3_now = t.shared
        m = ema(s.mu, g, b1)
        slow = ema(s.slow, g, b3_now)
        v = ema(s.nu, abs_sq(g), b2)
        u = divide(debias(m, b1, t) + weight * slow, safe_sqrt(debias(v, b2, t) + eps_root), eps)
        return u, s._replace(mu=m, nu=v, slow=slow)

    return Rule(
        AdEMAMixState, step, dict(mu=zeros, nu=real_zeros, slow=zeros), decays=(b1, b2), shared=shared
    )  # fmt: skip


@checked
def scale_by_ademamix(
    b1: Any = 0.9,
    b2: Any = 0.999,
    b3: Any = 0.9999,
    alpha: optax.ScalarOrSchedule = 5.0,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    alpha_warmup: Any = None,
    b3_warmup: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of `ademamix`: u in its equations, before the rate, the decay and the sign."""
    return lift(
        "scale_by_ademamix",
        ademamix_rule(b1, b2, b3, alpha, eps, eps_root, alpha_warmup, b3_warmup),
        state_dtype=state_dtype,
    )


@optimizer(
    paper=Paper(
        "The AdEMAMix Optimizer: Better, Faster, Older (Pagliardini, Ablin, Grangier)",
        2024,
        "https://arxiv.org/abs/2409.03137",
    ),
    family="adam",
    direction=scale_by_ademamix,
    typical_rate=1e-3,
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=1e-3),
        dict(
            learning_rate=0.02, b1=0.8, b2=0.95, b3=0.99, alpha=2.0, eps=1e-3, eps_root=1e-4, alpha_warmup=5.5,
            b3_warmup=7.5, weight_decay=0.1, mask=True,
        ),
    ),
)  # fmt: skip
def ademamix(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    b3: Any = 0.9999,
    alpha: optax.ScalarOrSchedule = 5.0,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    alpha_warmup: Any = None,
    b3_warmup: Any = None,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """AdEMAMix: Adam whose first moment is joined by a slow one, which remembers thousands of gradients.

    Start:
        m = slow = v = 0
    Step t = 1, 2, ...:
        a = alpha*minimum(t/alpha_warmup, 1) if alpha_warmup else alpha
        part = minimum(t/b3_warmup, 1) if b3_warmup else 1
        b = minimum(exp(1/((1 - part)/log(b1) + part/log(b3))), b3) if part < 1 else b3
        m = b1*m + (1 - b1)*g
        slow = b*slow + (1 - b)*g
        v = b2*v + (1 - b2)*g**2
        u = (m/(1 - b1**t) + a*slow) / (sqrt(v/(1 - b2**t) + eps_root) + eps)
        x = x - learning_rate*(u + weight_decay*x)

    The slow average has no bias correction: it fills by itself. With alpha=0 this is AdamW. The paper gives both
    warm-ups the length of the run; without them early steps with a large b3 may diverge. In the second the half-life
    log(1/2)/log(b) grows in a line. They count steps from 1, as the paper and the authors' torch code; their Optax code
    and Optax count from 0, so that a warm-up there is one step late. There alpha and b3 may be schedules, without the
    paper's; here alpha may be one too (a warm-up multiplies it). The default alpha is that of the authors' Optax code
    (torch: 2; the paper uses 4 to 10).
    """
    rule = ademamix_rule(b1, b2, b3, alpha, eps, eps_root, alpha_warmup, b3_warmup)
    return lift("ademamix", rule, Descent(learning_rate, weight_decay, mask), state_dtype)


def simplified_ademamix_rule(
    b1: Any, b2: Any, alpha: Any, eps: Any, eps_root: Any, b1_warmup: Any, b1_start: Any
) -> Rule:
    """Simplified AdEMAMix's equations on one array: the momentum is a sum, and the newest gradient weighs more."""
    b1, b2, b1_start = Decay.of(b1), Decay.of(b2), Decay.of(0.9 if b1_start is None else b1_start)

    def shared(s: AdamState, t: Clock) -> tuple[Array, Decay]:
        """The weight of the newest gradient, and the decay of the sum."""
        return jnp.asarray(rate_at(alpha, s.count - 1), t.t.dtype), rising(b1, b1_start, b1_warmup, t.t)

    def step(g: Array, s: AdamState, x: Any, t: Clock) -> tuple[Array, AdamState]:
        weight, b1_now = t.shared
        m = b1_now * s.mu + g
        v = ema(s.nu, abs_sq(g), b2)
        u = divide(m + weight * g, safe_sqrt(debias(v, b2, t) + eps_root), eps)
        return u, s._replace(mu=m, nu=v)

    return Rule(AdamState, step, dict(mu=zeros, nu=real_zeros, nu_max=None), decays=(b2,), shared=shared)


@checked
def scale_by_simplified_ademamix(
    b1: Any = 0.99,
    b2: Any = 0.95,
    alpha: optax.ScalarOrSchedule = 0.0,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    b1_warmup: Any = None,
    b1_start: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of `simplified_ademamix`: u in its equations, before the rate, the decay and the sign."""
    rule = simplified_ademamix_rule(b1, b2, alpha, eps, eps_root, b1_warmup, b1_start)
    return lift("scale_by_simplified_ademamix", rule, state_dtype=state_dtype)


@optimizer(
    paper=Paper(
        "Connections between Schedule-Free Optimizers, AdEMAMix, and Accelerated SGD Variants (Morwani et al.)",
        2025,
        "https://arxiv.org/abs/2502.02431",
    ),
    family="adam",
    direction=scale_by_simplified_ademamix,
    typical_rate=1e-4,
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=1e-4),
        dict(
            learning_rate=0.02, b1=0.95, b2=0.9, alpha=2.0, eps=1e-3, eps_root=1e-4, b1_warmup=7.5, b1_start=0.7,
            weight_decay=0.1, mask=True,
        ),
    ),
)  # fmt: skip
def simplified_ademamix(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.99,
    b2: Any = 0.95,
    alpha: optax.ScalarOrSchedule = 0.0,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    *,
    b1_warmup: Any = None,
    b1_start: Any = None,
    weight_decay: Any = None,
    mask: Any = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Simplified AdEMAMix: one momentum, a sum of gradients, in which the newest one weighs 1 + alpha.

    Start:
        m = v = 0
    Step t = 1, 2, ...:
        part = minimum(t/b1_warmup, 1) if b1_warmup else 1
        start = 0.9 if b1_start is None else b1_start
        b = minimum(exp(1/((1 - part)/log(start) + part/log(b1))), b1) if part < 1 else b1
        m = b*m + g
        v = b2*v + (1 - b2)*g**2
        u = (m + alpha*g) / (sqrt(v/(1 - b2**t) + eps_root) + eps)
        x = x - learning_rate*(u + weight_decay*x)

    m is a sum, as in the theory, not an average: in the long run u is 1/(1 - b1) times as large as Adam's, so the rate
    is that much smaller. Only v is corrected for its zero start, as in Optax and by default in the authors' code. With
    alpha=0 it is Adam at the rate learning_rate/(1 - b1), but for the correction of m. AdEMAMix with b1=0 is this, with
    its b3 as b1 and 1/(alpha (1 - b3)) as alpha, at alpha (1 - b3) times the rate. The authors warm b1 up over the
    whole run; Optax cannot, and its v is wrong for complex gradients.
    """
    rule = simplified_ademamix_rule(b1, b2, alpha, eps, eps_root, b1_warmup, b1_start)
    return lift("simplified_ademamix", rule, Descent(learning_rate, weight_decay, mask), state_dtype)
