"""Law B9: derivatives through the update, for those who learn learning rates or differentiate through training."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.conformance.cases import Case
from tests.conformance.compare import assert_finite, holds, wide
from tests.conformance.law import law
from tests.conformance.program import numbers
from tests.conftest import x64

# Central differences with a step of 1e-5 of the number's size: truncation is the square of that, rounding 1e-10.
DIFFERENCE = 1e-5
DIRECTIONS = 12  # more than a case has numbers; the same for all, see below


def _points(case: Case, kinds: dict[str, Any], width: Any) -> dict[str, Any]:
    """Where derivatives are taken: numbers smooth or the case's own; gradients of size 1, or 0 in both steps or one."""
    rng = np.random.default_rng(4)
    draw = lambda *shape: rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape)
    params = {k: draw(2).astype(dtype) for k, dtype in kinds.items()}
    grads = {k: draw(2, 2) for k in kinds}
    own = numbers(case)
    if "d0" in own:
        # The lift adds g - g to a moment, and in reverse mode its two halves cancel: beside them a moment in units of
        # d0 = 1e-6 keeps 9 digits. Nor do parameters keep the digits of so small a step.
        own["d0"] = 0.1
    smooth = {**own, **{name: value for name, value in (("eps", 1e-3), ("b2", 0.9)) if name in own}}
    return {
        f"{steps}, {label}": {
            "numbers": {name: np.asarray(value, width) for name, value in values.items()},
            "params": params,
            "grads": {k: (np.reshape(keep, (2, 1)) * grads[k]).astype(dtype) for k, dtype in kinds.items()},
        }
        for label, values in (("smooth", smooth), ("the case's numbers", own))
        for steps, keep in (("g, g", (1, 1)), ("0, 0", (0, 0)), ("g, 0", (1, 0)), ("0, g", (0, 1)))
    }


def _directions(z: Any) -> dict[str, Any]:
    """One direction for each number, one for the parameters and one for the gradients, filled up with zeros."""
    rng, blank = np.random.default_rng(5), jax.tree.map(np.zeros_like, z)
    steps = {name: np.asarray(DIFFERENCE * (abs(value) or 1.0), value.dtype) for name, value in z["numbers"].items()}
    rows = {name: {**blank, "numbers": {**blank["numbers"], name: step}} for name, step in steps.items()}
    for part in ("params", "grads"):
        draw = lambda a: (DIFFERENCE * rng.uniform(0.5, 1.5, a.shape)).astype(a.dtype)
        rows[part] = {**blank, part: jax.tree.map(draw, z[part])}
    assert len(rows) <= DIRECTIONS, "more numbers than DIRECTIONS"
    return {**rows, **{f"nothing {i}": blank for i in range(DIRECTIONS - len(rows))}}


def _trained(case: Case, z: Any) -> list[Any]:
    """Both updates and the last state of a training of two steps, in which the parameters move."""
    tx, params, updates = case.tx(**z["numbers"]), z["params"], []
    state = tx.init(params)
    for i in range(2):
        u, state = tx.update({k: g[i] for k, g in z["grads"].items()}, state, params)
        params = jax.tree.map(lambda x, u: x + u.astype(x.dtype), params, u)
        updates.append(u)
    return [a for a in jax.tree.leaves((updates, state)) if jnp.issubdtype(a.dtype, jnp.inexact)]


def _stacked(trees: Any) -> Any:
    return jax.tree.map(lambda *a: jnp.asarray(np.stack(a)), *trees)


def _inner(tree: Any, other: Any) -> Any:
    """The inner products of two trees along a leading axis."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return sum((wide(a) * wide(b)).reshape(len(a), -1).sum(axis=1) for a, b in pairs)


def _clipped_by_norm(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Clipping by the norm in front: its root has no derivative at 0, and the maximum that picks 1 gives 0 * Inf."""

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        norm = jnp.sqrt(sum(jnp.sum(g.astype(float) ** 2) for g in jax.tree.leaves(grads)))
        factor = 1 / jnp.maximum(1, norm)
        return tx.update(jax.tree.map(lambda g: g * factor.astype(g.dtype), grads), state, params)

    return optax.GradientTransformationExtraArgs(tx.init, update)


@law("B9", tier="O", plant=lambda case: case.broken(_clipped_by_norm))
def derivatives_are_right(case: Case) -> None:
    """Derivatives by every number, parameters and gradients are finite, also at 0; in float64 they are right."""
    for kinds, double in (({"x": np.float64}, True), ({"x": np.float32, "y": jnp.bfloat16}, False)):
        what = f"{case.id}: {'float64' if double else 'float32 and bfloat16'}"
        # Op by op, as one batch of one size: then all cases share the compiled operations.
        with x64(double), jax.disable_jit(), holds(what):
            width = np.float64 if double else np.float32
            points = _points(case, kinds, width)
            directions = [_directions(z) for z in points.values()]
            names = list(directions[0])
            z = _stacked(z for z in points.values() for _ in names)
            d = _stacked(d for ds in directions for d in ds.values())

            # Each result weighs the same at the first point, so that none drowns in another's rounding.
            rng = np.random.default_rng(6)
            results = [wide(a)[0] for a in jax.vmap(lambda z: _trained(case, z))(z)]
            sizes = [max(np.max(np.abs(a)), 1e-9) for a in results]
            weights = [
                (rng.uniform(0.5, 1.5, a.shape) / size).astype(width) for a, size in zip(results, sizes, strict=True)
            ]

            def total(z: Any, weights: Any = weights, width: Any = width) -> Any:
                return sum(jnp.sum(w * a.astype(width)) for w, a in zip(weights, _trained(case, z), strict=True))

            reverse = jax.vmap(jax.grad(total))(z)
            forward = wide(jax.vmap(lambda z, d: jax.jvp(total, (z,), (d,))[1])(z, d))
            for k, label in enumerate(points):
                each = slice(k * len(names), (k + 1) * len(names))
                assert_finite(
                    f"{what}, reverse mode, gradients {label}, ", jax.tree.map(lambda a, each=each: a[each], reverse)
                )
                assert_finite(
                    f"{what}, forward mode, gradients {label}, ", dict(zip(names, forward[each], strict=True))
                )
            if not double:
                continue
            backward = _inner(reverse, d)
            for k, label in enumerate(f"{point}, along {name}" for point in points for name in names):
                message = f"{what}, gradients {label}: reverse mode {backward[k]:.9e}, forward mode {forward[k]:.9e}"
                assert abs(backward[k] - forward[k]) <= 1e-9 * abs(forward[k]) + 1e-19, message
            ahead, behind = (wide(jax.vmap(total)(jax.tree.map(step, z, d))) for step in (jnp.add, jnp.subtract))
            for k, name in enumerate(names):  # the first point: smooth, away from kinks
                message = f"{what}: by {name} {forward[k]:.9e}, by differences {(ahead - behind)[k] / 2:.9e}"
                assert abs((ahead - behind)[k] / 2 - forward[k]) <= 1e-5 * abs(forward[k]) + 1e-14, message
