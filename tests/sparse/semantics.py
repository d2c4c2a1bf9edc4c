"""Exact or lazy: what a row that is not used would have done in the dense step. Decided by trying."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def semantics(dense: Any) -> str:
    """ "exact" if a gradient of zero changes neither a parameter nor the state that follows it, else "lazy".

    A row that is not in a gradient has, in the dense step, a gradient of zero. Tried after three ordinary steps, in
    which rates change, so that there is something to forget.
    """
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(0.5, 1.5, (4, 3)), jnp.float32)
    state = dense.init(x)
    for _ in range(3):
        u, state = dense.update(jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), state, x)
        x = optax.apply_updates(x, u)
    u, after = dense.update(jnp.zeros_like(x), state, x)
    rows = lambda s: [a for a in jax.tree.leaves(s) if a.shape[:1] == x.shape[:1]]
    same = all(np.array_equal(a, b) for a, b in zip(rows(state), rows(after), strict=True))
    return "exact" if same and not np.any(u) else "lazy"
