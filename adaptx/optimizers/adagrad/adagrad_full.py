"""AdaGrad with the full matrix of each tensor."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import PartitionSpec

from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.moments import Clock
from adaptx.core.registry import Paper, checked, optimizer
from adaptx.core.rule import Params, Rule, accumulator_dtype


class AdaGradFullState(NamedTuple):
    """The state of full-matrix AdaGrad."""

    count: Array  # t
    root: Params  # S, for each tensor of n elements the n x n root of the sum of g g^H


@jax.custom_jvp
def _step(root: Array, g: Array, eps: Array) -> tuple[Array, Array]:
    """u = (S' + eps)^-1 g within the range of S' = (S^2 + g g^H)^1/2; and S'."""
    return _values(eps, *_spectrum(root, g))


@_step.defjvp
def _step_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    # In the eigenvectors of S' the derivatives are quotients of sums of its eigenvalues; of differences, as in the
    # derivatives of the eigenvectors, which do not exist where two are equal, none is left.
    root, g, eps = primals
    size, s, v, w = _spectrum(root, g)
    d_root, d_g, d_eps = tangents[0] / size, tangents[1] / size, tangents[2] / size
    inverse, seen = _inverse(s, eps / size), s > 0
    one_sided = (root / size) @ d_root + jnp.outer(g / size, d_g.conj())
    d_gram = v.conj().T @ (one_sided + one_sided.conj().T) @ v
    sums = s[:, None] + s[None]
    d_new = jnp.where(sums > 0, 1 / jnp.where(sums > 0, sums, 1), 0) * d_gram
    both = -inverse[:, None] * inverse[None]
    into = jnp.where(seen, inverse / jnp.where(seen, s, 1), 0)  # where the range turns
    slope = jnp.where(seen[:, None] & seen[None], both, into[:, None] + into[None])
    d_u = v @ ((slope * d_new) @ w + inverse * (v.conj().T @ d_g) - d_eps * inverse**2 * w)
    return _values(eps, size, s, v, w), (d_u, v @ d_new @ v.conj().T * size)


def _spectrum(root: Array, g: Array) -> tuple[Array, Array, Array, Array]:
    """A size of the entries; over it eigenvalues of S', 0 where they are below the cut; eigenvectors; g in these.

    The rows of S above g^H have the Gram matrix S'^2. Their singular values keep twice the digits that its eigenvalues
    would, which are their squares, and none of them overflows.
    """
    rows = jnp.concatenate([root, g[None].conj()])
    size = jnp.max(jnp.abs(rows))
    size = jnp.where(size > 0, size, 1)
    u, s, vh = jnp.linalg.svd(rows / size.astype(rows.dtype), full_matrices=False)
    cut = 10 * g.size**0.5 * float(jnp.finfo(s.dtype).eps) * s[0]  # what rounding makes of 0 is a tenth of that
    s = jnp.where(s > cut, s, 0)
    return size, s, vh.conj().T, s * u[-1].conj()


def _values(eps: Array, size: Array, s: Array, v: Array, w: Array) -> tuple[Array, Array]:
    """u and S' from what `_spectrum` gives."""
    return v @ (_inverse(s, eps / size) * w), (v * s[None]) @ v.conj().T * size


def _inverse(s: Array, eps: Array) -> Array:
    """1 / (s + eps) of what was seen, and 0 of the rest; before anything was seen 1 / eps of all, the limit."""
    seen = (s > 0) | ((s[0] == 0) & (eps > 0))
    return jnp.where(seen, 1 / jnp.where(seen, s + eps, 1), 0)


def adagrad_full_rule(eps: Any, max_size: int) -> Rule:
    """Full-matrix AdaGrad's equations on one array."""

    def no_root(x: Array) -> Array:
        size = jnp.size(x)
        if size > max_size:
            raise ValueError(
                f"adagrad_full: a tensor of shape {jnp.shape(x)} has {size} elements, and max_size={max_size} is "
                "the most that may have a full matrix (optax.partition gives larger ones to adagrad)"
            )
        return jnp.zeros((size, size), accumulator_dtype(x))

    def step(g: Array, s: AdaGradFullState, x: Any, t: Clock) -> tuple[Array, AdaGradFullState]:
        if not g.size:
            return g, s
        # A decomposition takes whole matrices: on explicit axes that has to be said.
        spec = jax.typeof(g).sharding.spec
        on = lambda a, spec=spec: jax.sharding.reshard(a, spec) if any(jax.typeof(g).sharding.spec) else a
        u, root = _step(s.root, on(g, PartitionSpec()).reshape(-1), jnp.asarray(eps, jnp.finfo(g.dtype).dtype))
        return on(u.reshape(g.shape)), s._replace(root=root)

    return Rule(AdaGradFullState, step, dict(root=no_root))


@checked
def scale_by_adagrad_full(eps: Any = 1e-10, *, max_size: int = 1024) -> optax.GradientTransformationExtraArgs:
    """The direction of `adagrad_full`: u in its equations, before the rate, the decay and the sign."""
    return lift("scale_by_adagrad_full", adagrad_full_rule(eps, max_size))


@optimizer(
    paper=Paper(
        "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization (Duchi, Hazan, Singer)",
        2011,
        "https://jmlr.org/papers/v12/duchi11a.html",
    ),
    family="adagrad",
    direction=scale_by_adagrad_full,
    typical_rate=0.1,
    reduces="tensor",
    normalised=True,
    scale_free=True,
    cases=(
        dict(learning_rate=0.1),
        dict(learning_rate=0.1, eps=0.1, max_size=2000, weight_decay=0.1, mask=True),
    ),
)
def adagrad_full(
    learning_rate: optax.ScalarOrSchedule,
    eps: Any = 1e-10,
    *,
    max_size: int = 1024,
    weight_decay: Any = None,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Full-matrix AdaGrad: the gradient times the inverse root of the sum of all outer products, in each tensor.

    Start:
        G = 0
    Step t = 1, 2, ...:
        G = G + outer(g, g)
        S = power(G, 1/2)
        u = (power(S + eps*power(G, 0), -1) @ g.ravel()).reshape(g.shape)
        x = x - learning_rate*(u + weight_decay*x)

    power(G, p) is taken within the range of G: power(G, 0) projects on it, power(G, -1) is the pseudo-inverse (the
    paper's choice for delta = 0; its delta is `eps`). The gradient lies in that range, so nothing moves outside of it,
    and with eps it is what the whole matrix would give. The state is S, not G, and the next S comes from a singular
    value decomposition of S and g: directions in which gradients are 10 sqrt(n) machine epsilons of the largest's (in
    float32 1e-5 for 64 elements, 4e-5 for 1,024) are still told apart, where G's eigenvalues end at the root of that;
    below, they count as unseen.
    With n elements a tensor takes n^2 numbers and a step n^3 operations; `max_size` is the largest n, and a larger
    tensor is refused at init. No other library has it; Shampoo's factors are an approximation.
    """
    return lift("adagrad_full", adagrad_full_rule(eps, max_size), Descent(learning_rate, weight_decay, mask))
