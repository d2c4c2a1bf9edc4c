"""Laws H1 to H3: hyperparameters in the state are those that were given, and can be changed."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaptx.core.moments import Decay
from adaptx.hyperparams import get_hyperparams, inject_hyperparams, set_hyperparams
from tests.conformance.cases import Case, grads_like, params_like
from tests.conformance.compare import assert_close, wide
from tests.conformance.law import law
from tests.conformance.laws.f_symmetries import same_bits
from tests.conformance.program import RECORDED, run

STEPS = 100


def _both(case: Case) -> tuple[Case, Case]:
    """The case closed over and injected, with b2 = 0.9999 where there is one: it is what float32 rounds worst."""
    memory = {"b2": 0.9999} if "b2" in inspect.signature(case.factory).parameters else {}
    closed = dataclasses.replace(case, kwargs={**case.kwargs, **memory})
    return closed, dataclasses.replace(closed, factory=inject_hyperparams(closed.factory))


def _with_factory(case: Case, change: Any) -> Case:
    """The case with arguments changed on their way, by a function of their names and values."""

    @functools.wraps(case.factory)
    def factory(*args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(case.factory).bind(*args, **kwargs).arguments
        return case.factory(**{a: change(a, v) for a, v in bound.items()})

    return dataclasses.replace(case, factory=factory)


def _without_complements(case: Case) -> Case:
    """Decay rates as Optax injects them: b alone."""
    return _with_factory(case, lambda a, v: v.value if isinstance(v, Decay) else v)


@law("H1", tier="C", plant=_without_complements)
def injected_is_closed_over(case: Case) -> None:
    """After 100 steps injected and closed-over numbers give the same state and parameters, to 1e-6 of each leaf."""
    closed, injected = _both(case)
    params, grads = params_like(), grads_like(RECORDED)
    expected, got = run(closed, params, grads, STEPS), run(injected, params, grads, STEPS)
    assert_close(f"{case.id}: parameters", got.params, expected.params, 1e-6)
    assert_close(f"{case.id}: state", got.state.inner, expected.state, 1e-6)


@law("H2", tier="C", plant=_without_complements)
def injected_is_closed_over_in_bfloat16(case: Case) -> None:
    """With bfloat16 parameters float32 slots agree to 1e-6 and updates to a unit in the last place of bfloat16."""
    closed, injected = _both(case)
    params, grads = params_like(jnp.bfloat16), grads_like(RECORDED, jnp.bfloat16)
    expected, got = run(closed, params, grads), run(injected, params, grads)
    assert_close(f"{case.id}: state", got.state.inner, expected.state, 1e-6)
    for a, b in zip(*map(jax.tree.leaves, (got.updates, expected.updates)), strict=True):
        unit = np.abs(wide(b)) * float(jnp.finfo(jnp.bfloat16).eps)
        assert np.all(np.abs(wide(a) - wide(b)) <= unit), f"{case.id}: updates differ by more than a unit"


def _is_deaf(case: Case) -> Case:
    """Numbers are those of the first call for ever."""

    return _with_factory(case, lambda a, v: case.kwargs.get(a, v))


@law("H3", tier="C", plant=_is_deaf)
def what_is_set_counts(case: Case) -> None:
    """A rate that is set is the rate from then on, nothing is compiled for it, and a schedule is asked for step 0."""
    injected = dataclasses.replace(case, factory=inject_hyperparams(case.factory))
    params, grads = params_like(), grads_like(RECORDED)
    first = run(injected, params, grads, 3)
    rate = case.kwargs["learning_rate"]
    again = set_hyperparams(first.state, learning_rate=rate / 4)
    kinds = [jax.tree.map(lambda a: (a.shape, a.dtype, a.weak_type), state) for state in (first.state, again)]
    assert kinds[0] == kinds[1], f"{case.id}: a set value has another type, so that the step is compiled again"
    assert float(get_hyperparams(again)["learning_rate"]) == np.float32(rate / 4), f"{case.id}: the value is not kept"
    slow = run(injected, first.params, grads, 3, state=again).updates
    fast = run(injected, first.params, grads, 3, state=first.state).updates
    assert not same_bits(slow, fast), f"{case.id}: a learning rate that is set changes nothing"

    asked = dataclasses.replace(
        injected, kwargs={**case.kwargs, "learning_rate": lambda t: jnp.where(t == 0, rate, rate / 2)}
    )
    one = run(asked, params, grads, 1)
    assert_close(f"{case.id}: the first step", one.params, run(injected, params, grads, 1).params, 1e-6)
    assert float(get_hyperparams(one.state)["learning_rate"]) == np.float32(rate), f"{case.id}: not step 0"
