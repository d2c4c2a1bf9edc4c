"""Laws C: dtypes and precision."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from tests.conformance.cases import Case, grads_like, params_like
from tests.conformance.law import law
from tests.conformance.program import run
from tests.conftest import x64


def _kind(tree: object) -> object:
    return jax.tree.map(lambda a: (a.shape, str(a.dtype), a.weak_type), tree)


def _state_in_gradient_dtype(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Optax's old habit: accumulators take the parameters' dtype until the first update widens them."""

    def init(params: optax.Params) -> optax.OptState:
        cast = lambda a, x: a.astype(x.dtype)
        state = tx.init(params)
        return state._replace(mu=jax.tree.map(cast, state.mu, params))

    return optax.GradientTransformationExtraArgs(
        init, lambda u, s, p=None, **k: tx.update(u, s._replace(mu=jax.tree.map(lambda m: m.astype(jnp.float32), s.mu)), p)
    )


@law("C1", tier="C", plant=lambda case: case.broken(_state_in_gradient_dtype))
def state_is_a_fixed_point(case: Case) -> None:
    """State structure, shapes, dtypes and weak types never change; the update has the declared dtype."""
    for dtype in ("float16", "bfloat16", "float32", "complex64", "float64", "complex128"):
        with x64(dtype in ("float64", "complex128")):
            params, grads = params_like(dtype), grads_like(1, dtype)
            one = jax.tree.map(lambda g: g[0], grads)
            state = case.tx().init(params)
            updates, after = jax.eval_shape(case.tx().update, one, state, params)
            assert _kind(after) == _kind(jax.eval_shape(lambda s: s, state)), f"{case.id} {dtype}: the state changed"
            expected = case.flag("emits") or dtype
            for u in jax.tree.leaves(updates):
                assert str(u.dtype) == expected, f"{case.id} {dtype}: the update is {u.dtype}"
