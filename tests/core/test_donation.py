"""Donation: the order of a training step's arguments decides whether it copies.

jit pairs donated buffers with outputs by shape, in order. Parameters and moments have the same shapes, so where they go
in as (state, params) and come out as (params, state), an output takes a place that another one still has to read.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from adaptx.registry import OPTIMIZERS, Entry
from benchmarks.needs import supplied

SIZE = 1 << 16
LEAF = 4 * SIZE  # bytes
# A method that reduces over a tensor has to keep its direction until the sum is known.
ELEMENTWISE = [entry for entry in OPTIMIZERS.values() if entry.reduces[0] == "element"]
# Whose update is made of a slot that the step replaces: XLA keeps the old one, as in Optax's.
READ_OLD_STATE = {"lion", "adopt", "cocob"}


def compiled(entry: Entry, *, state_first: bool = False, donated: bool = True) -> tuple[Any, int]:
    """The memory of one compiled step of the default case on two leaves, and the bytes of parameters and state."""
    tx = supplied(entry)(**entry.cases[0])

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def step_state_first(state: Any, params: Any, grads: Any) -> Any:
        return step(params, state, grads)

    params = {"a": jnp.ones(SIZE), "b": jnp.ones(SIZE)}
    carry = (tx.init(params), params) if state_first else (params, tx.init(params))
    jitted = jax.jit(step_state_first if state_first else step, donate_argnums=(0, 1) if donated else ())
    memory = jitted.lower(*carry, params).compile().memory_analysis()
    return memory, sum(leaf.nbytes for leaf in jax.tree.leaves(carry))


@pytest.mark.parametrize("entry", ELEMENTWISE, ids=lambda entry: entry.name)
def test_the_order_of_the_outputs_copies_nothing(entry):
    """step(params, state, grads) -> (params, state): every donated byte holds an output, and nothing is set aside.

    What two outputs need and neither holds, as Adadelta's direction, is a temporary without donation too; there one
    leaf's can serve the next, here each has its own.
    """
    memory, size = compiled(entry)
    needed, _ = compiled(entry, donated=False)
    assert memory.alias_size_in_bytes == size
    copies = entry.name in READ_OLD_STATE
    assert (memory.temp_size_in_bytes > 2 * needed.temp_size_in_bytes + LEAF / 8) == copies
    assert memory.temp_size_in_bytes <= 2 * needed.temp_size_in_bytes + LEAF / 8 + copies * 2 * LEAF


def test_another_order_copies():
    """What the test above would see: step(state, params, grads) -> (params, state) sets aside three arrays."""
    memory, size = compiled(OPTIMIZERS["adam"], state_first=True)
    assert memory.alias_size_in_bytes == size  # which looks just as good
    assert memory.temp_size_in_bytes >= 2 * LEAF
