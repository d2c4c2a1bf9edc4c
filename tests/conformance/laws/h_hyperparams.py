"""Laws H1 to H3: hyperparameters in the state are those that were given, and can be changed. H6: their derivatives."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adaptx.core.moments import Decay
from adaptx.hyperparams import get_hyperparams, inject_hyperparams, set_hyperparams
from tests.conformance.cases import Case, grads_like, params_like
from tests.conformance.compare import assert_close, wide
from tests.conformance.law import law
from tests.conformance.laws.f_symmetries import same_bits
from tests.conformance.program import RECORDED, numbers, run
from tests.conftest import x64

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


@law("H1", tier="D", plant=_without_complements)
def injected_is_closed_over(case: Case) -> None:
    """After 100 steps injected and closed-over numbers give the same parameters, to 1e-6 of each leaf, and state."""
    closed, injected = _both(case)
    params, grads = params_like(), grads_like(RECORDED)
    bound = 1e-6
    if case.flag("reduces") == "tree":
        # The way from the first parameters is read through the rounding of the newest. An estimate of a distance that
        # no solution ends is multiplied by a rounded factor in each step: one float32 eps each, not averaged out.
        params, bound = jax.tree.map(lambda x: 2.0**-20 * x, params), STEPS * float(jnp.finfo(jnp.float32).eps)
    expected, got = run(closed, params, grads, STEPS), run(injected, params, grads, STEPS)
    assert_close(f"{case.id}: parameters", got.params, expected.params, bound)
    # An average that hardly moves from where it starts (NovoGrad's) is rounded in each step, half a unit at most, and
    # always to the same side; two programs may round it to two sides. Complements that are lost show as 1e-4.
    half_units = STEPS * float(np.finfo(np.float32).eps) / 2
    _close_by_field(case, got.state.inner, expected.state, max(bound, half_units))


def _close_by_field(case: Case, got: Any, expected: Any, rel: float = 1e-6) -> None:
    """Each field to its largest entry: in a leaf of one number an average may be what is left of a difference."""
    for name, a, b in zip(expected._fields, got, expected, strict=True):
        join = lambda tree: np.concatenate([np.ravel(wide(leaf)) for leaf in [*jax.tree.leaves(tree), np.zeros(0)]])
        assert_close(f"{case.id}: state `{name}`", join(a), join(b), rel)


@law("H2", tier="O", plant=_without_complements)
def injected_is_closed_over_in_bfloat16(case: Case) -> None:
    """With bfloat16 parameters float32 slots agree to 1e-6 and updates to a unit in the last place of bfloat16."""
    closed, injected = _both(case)
    params, grads = params_like(jnp.bfloat16), grads_like(RECORDED, jnp.bfloat16)
    expected, got = run(closed, params, grads), run(injected, params, grads)
    _close_by_field(case, got.state.inner, expected.state)
    for a, b in zip(*map(jax.tree.leaves, (got.updates, expected.updates)), strict=True):
        unit = np.abs(wide(b)) * float(jnp.finfo(jnp.bfloat16).eps)
        assert np.all(np.abs(wide(a) - wide(b)) <= unit), f"{case.id}: updates differ by more than a unit"


def _is_deaf(case: Case) -> Case:
    """Numbers are those of the first call for ever."""

    return _with_factory(case, lambda a, v: case.kwargs.get(a, v))


@law("H3", tier="D", plant=_is_deaf)
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


UNROLLED = 20
# Five points, so that small numbers may take a step that rounding does not show in: truncation is its fourth power.
# Longer steps meet kinks, where AMSGrad's maximum changes over.
POINTS, WEIGHTS = np.array([-2, -1, 1, 2]), np.array([1, -8, 8, -1]) / 12


def _validation_loss(case: Case, values: Any) -> Any:
    """The loss after 20 steps on quadratics whose centres move, as a function of the numbers in the state."""
    tx, params = inject_hyperparams(case.factory)(**{**case.kwargs, **values}), params_like("float64")
    centres, last = grads_like(UNROLLED, "float64"), params_like("float64", seed=5)
    curvature = jax.tree.map(lambda x: 0.5 + jnp.abs(x), params)

    def body(carry: Any, centre: Any) -> Any:
        params, state = carry
        grads = jax.tree.map(lambda h, x, c: h * (x - 2 * c), curvature, params, centre)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(body, (params, tx.init(params)), centres)
    return sum(jnp.sum((x - y) ** 2) for x, y in zip(*map(jax.tree.leaves, (params, last)), strict=True))


def _cuts_complements(case: Case) -> Case:
    """1 - b is taken for a constant."""
    cut = lambda b: Decay(b.value, jax.lax.stop_gradient(b.complement))
    return _with_factory(case, lambda a, v: cut(v) if isinstance(v, Decay) else v)


# One of a family: twenty steps take long to compile, and B9 sees the derivatives of each optimizer's step.
@law("H6", tier="F", plant=_cuts_complements, applies=lambda case: case.flag("reduces") == "element")
def hypergradients_are_right(case: Case) -> None:
    """The derivative of a validation loss through 20 steps by each number is that of finite differences, and not 0."""
    with x64():
        own = numbers(case)
        least = {a: max(1e-3, own[a]) for a in ("eps", "eps_root") if a in own}  # what is smaller has no influence
        at = {**own, **least, **({"b2": 0.9} if "b2" in own else {})}
        names, point = list(at), np.asarray(list(at.values()), float)
        steps = 1e-5 * np.maximum(np.abs(point), 0.1)
        loss = lambda values: _validation_loss(case, dict(zip(names, values, strict=True)))
        both = jax.jit(lambda x, rows: (jax.grad(loss)(x), jax.vmap(loss)(rows)))
        rows = point + POINTS[:, None, None] * np.diag(steps)
        derivatives, around = both(point, rows.reshape(-1, len(names)))
    differences = WEIGHTS @ np.asarray(around).reshape(4, len(names)) / steps
    # What the rounding of losses comes to in a difference: it counts for numbers of small influence.
    rounding = 4 * np.finfo(float).eps * np.abs(around).max() / steps
    for a, got, expected, noise in zip(names, np.asarray(derivatives), differences, rounding, strict=True):
        assert abs(expected) > noise, f"{case.id}: {a} has no influence: a line of the ledger"
        off = abs(got - expected)
        bound = 1e-5 * abs(expected) + noise
        assert off <= bound, f"{case.id}: d loss / d {a} is {got}, by differences {expected}: off by {off:.2g}"
