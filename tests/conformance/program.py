"""One compiled program for each case and dtype serves every law that runs many steps."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tests.conformance.cases import Case

RECORDED = 12


class Run(NamedTuple):
    """The end of a run; `updates` and `iterates` hold its last RECORDED steps, oldest first when steps = RECORDED."""

    params: Any
    state: Any
    updates: Any
    iterates: Any  # the parameters before each recorded step


@functools.cache
def _program(case: Case, dtypes: tuple[str, ...], x64: bool) -> Any:
    del dtypes, x64  # part of the key: the structure that the program is compiled for
    tx = case.tx()

    def run(params: Any, state: Any, grads: Any, steps: Any, held: Any) -> Run:
        def body(i: Any, carry: Run) -> Run:
            slot = i % RECORDED
            g = jax.tree.map(lambda a: a[slot], grads)
            updates, state = tx.update(g, carry.state, carry.params)
            moved = optax.apply_updates(carry.params, updates)
            return Run(
                jax.tree.map(lambda old, new: jnp.where(held, old, new), carry.params, moved),
                state,
                jax.tree.map(lambda all, u: all.at[slot].set(u), carry.updates, updates),
                jax.tree.map(lambda all, x: all.at[slot].set(x), carry.iterates, carry.params),
            )

        first = jax.eval_shape(lambda g, s, p: tx.update(g, s, p)[0], jax.tree.map(lambda a: a[0], grads), state, params)
        blank = lambda like: jax.tree.map(lambda a: jnp.zeros((RECORDED, *a.shape), a.dtype), like)
        return jax.lax.fori_loop(0, steps, body, Run(params, state, blank(first), blank(params)))

    return tx, jax.jit(run)


def run(case: Case, params: Any, grads: Any, steps: int = RECORDED, *, state: Any = None, held: bool = False) -> Run:
    """`steps` updates from `state` (a fresh one by default); grads holds RECORDED gradients, used in turn.

    `held` keeps the parameters where they are.
    """
    dtypes = tuple(str(leaf.dtype) + str(leaf.shape) for leaf in jax.tree.leaves((params, grads)))
    tx, program = _program(case, dtypes, bool(jax.config.read("jax_enable_x64")))
    return program(params, tx.init(params) if state is None else state, grads, jnp.int32(steps), jnp.bool_(held))
