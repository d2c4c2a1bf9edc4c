"""Schedules: every argument that may be one is asked for step 0 first, then for each step in turn."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptx.registry import GLOSSARY
from tests.conformance.cases import PER_OPTIMIZER, grads_like, params_like

VALUES = (0.03, 0.01, 0.02)
SCHEDULED = [
    pytest.param(case, name, id=f"{case.id}-{name}")
    for case in PER_OPTIMIZER
    if case.index
    for name in case.kwargs
    if GLOSSARY[name].schedulable
]


@pytest.mark.parametrize(("case", "name"), SCHEDULED)
def test_a_schedule_is_its_numbers_in_turn(case: Any, name: str) -> None:
    grads = grads_like(len(VALUES))
    table = jnp.asarray(VALUES, jnp.float32)
    asked: list[Any] = []

    def schedule(count: Any) -> Any:
        asked.append(count)
        return table[count]

    @jax.jit
    def both(params: Any, grads: Any) -> Any:
        scheduled, results = case.tx(**{name: schedule}), []
        state = scheduled.init(params)
        for i, value in enumerate(table):
            g = jax.tree.map(lambda a, i=i: a[i], grads)
            by_number = case.tx(**{name: value}).update(g, state, params)[0]
            updates, state = scheduled.update(g, state, params)
            results.append((updates, by_number))
        return results

    for updates, by_number in both(params_like(), grads):
        for a, b in zip(jax.tree.leaves(updates), jax.tree.leaves(by_number), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
    assert asked
