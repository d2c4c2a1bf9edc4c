"""Exact or lazy: what a row that is not used would have done in the dense step. Decided by trying."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adaptx
from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.sparse import row_rules


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


def dense_rules() -> dict[str, Callable[..., Any]]:
    """For each ready optimizer of tables the dense rule that it has inside, with a changing rate."""
    slow = optax.exponential_decay(0.1, 10, 0.5)

    def rowwise(l2: Any = None, max_norm: Any = None, weight_decay: Any = None) -> Any:
        rule = row_rules.rowwise_adagrad_rule(0.0, 1e-8, 0.0, l2, max_norm)
        return lift("rowwise_adagrad", rule, Descent(slow, weight_decay))

    def partial(weight_decay: Any = None) -> Any:
        return lift("partial", row_rules.partial_rowwise_adam_rule(0.9, 0.999, 1e-8, 0.0), Descent(slow, weight_decay))

    return {
        "adagrad": lambda **k: adaptx.adagrad(slow, **k),
        "rowwise_adagrad": rowwise,
        "adam": lambda **k: adaptx.adam(slow, **k),
        "partial_rowwise_adam": partial,
        "ftrl": lambda weight_decay=None, **k: adaptx.ftrl(slow, **k),
        "lamb_rows": lambda **k: adaptx.lamb(slow, **k),
    }
