"""Estimates of the Hessian's diagonal: what `adahessian` and `sophia` are given as `hessian`.

A training step gives the estimate as a function. The optimizer calls it in every `update_every`-th step, under
`lax.cond`; the other steps cost what they cost without it:

    import jax, jax.numpy as jnp, optax, adaptx

    tx = optax.chain(optax.clip_by_global_norm(1.0), adaptx.sophia(1e-3, update_every=10))

    @jax.jit
    def train_step(params, state, batch, step):
        of_params = lambda p: loss(p, batch)
        estimate = lambda: adaptx.curvature.hutchinson(of_params, params, jax.random.fold_in(jax.random.key(0), step))
        updates, state = tx.update(jax.grad(of_params)(params), state, params, hessian=estimate)
        return optax.apply_updates(params, updates), state

A function goes where a tree goes: through `optax.chain`, `inject_hyperparams`, `optax.masked`, `optax.partition`,
`optax.MultiSteps` and `nnx.Optimizer.update`. `MultiSteps` updates at every micro-step and drops all updates but the
last, so there a refresh costs an estimate a micro-step. Other optimizers ignore `hessian`, so one training step serves
all.
"""

from adaptx.curvature.estimators import gauss_newton_bartlett, hutchinson, spatial_average

__all__ = ["hutchinson", "gauss_newton_bartlett", "spatial_average"]
