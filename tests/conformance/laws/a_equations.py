"""Laws A: the library equals the papers."""

from __future__ import annotations

import dataclasses
import inspect
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adaptx.registry import GLOSSARY
from tests.conformance.cases import Case, grads_like, params_like, with_a_trend
from tests.conformance.law import law, leaves_named
from tests.conformance.program import RECORDED, run
from tests.conftest import x64
from tests.equations.first_steps import FIRST_STEPS
from tests.equations.references import REFERENCES, replay

# Gradients whose averages do not vanish in a whole leaf: LAMB divides by the size of what is left, which is rounding.
SEED = 2
STEPS = 8  # in which an argument must show


def _forgets_every_second_average(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """A second moment that one branch forgets to store: the first step is right, the second average is not."""

    def update(g: optax.Updates, s: optax.OptState, p: optax.Params = None) -> tuple[optax.Updates, optax.OptState]:
        u, new = tx.update(g, s, p)
        stored = lambda old, v: jnp.where(s.count % 2 == 1, old, v)
        return u, new._replace(nu=jax.tree.map(stored, s.nu, new.nu))

    return optax.GradientTransformationExtraArgs(tx.init, update)


@law("A1", tier="C", plant=lambda case: case.broken(_forgets_every_second_average))
def equals_its_paper(case: Case) -> None:
    """Twelve steps equal a NumPy float64 loop from the paper: updates and the state that the paper names."""
    assert case.entry.name in REFERENCES, f"{case.id}: tests/equations/references has no loop for it"
    # float64: rounding only, over at most 12 averages. float32: the reference sees the library's own iterates, so
    # nothing accumulates but the averages: each of 12 steps rounds them once or twice, in random directions.
    bounds = {"float64": 1e-12, "float32": 8 * float(np.finfo(np.float32).eps)}
    if case.index == 0:
        bounds["complex128"] = 1e-12
    for dtype, bound in bounds.items():
        with x64(dtype != "float32"):
            params, grads = params_like(dtype), with_a_trend(case, grads_like(RECORDED, dtype, SEED))
            result = run(case, params, grads)
        at = lambda tree, i: jax.tree.map(lambda a: np.asarray(a)[i], tree)
        iterates = [at(result.iterates, i) for i in range(RECORDED)] if dtype == "float32" else None
        steps = replay(case.entry.name, params, [at(grads, i) for i in range(RECORDED)], case.kwargs, iterates)
        stack = lambda trees: jax.tree.map(lambda *leaves: np.stack(leaves), *trees)

        _close(f"{case.id} {dtype}: update", result.updates, stack([update for update, _ in steps]), bound)
        for name in steps[0][1]:
            slot = getattr(result.state, name)  # None where the case does not use it
            if slot is not None:
                history = stack([slots[name] for _, slots in steps])
                _close(f"{case.id} {dtype}: state `{name}`", slot, history, bound, last=True)


def _close(what: str, ours: object, theirs: object, bound: float, last: bool = False) -> None:
    """Per leaf, the largest difference against the largest value that the leaf had in the run."""
    expected = jax.tree.leaves(theirs)
    for (path, a), b in zip(leaves_named(ours), expected, strict=True):
        error = np.max(np.abs(np.asarray(a) - (b[-1] if last else b)))
        scale = np.max(np.abs(b))
        assert error <= bound * scale, f"{what}{path} is off by {error / scale:.3g} of its size, allowed {bound:.3g}"


def _arguments(case: Case, **changes: Any) -> dict[str, Any]:
    """Every argument with its value: defaults, the case's, and the changes."""
    defaults = {name: p.default for name, p in inspect.signature(case.entry.factory).parameters.items()}
    return {**defaults, **case.kwargs, **changes}


def _decay_rates(case: Case) -> list[str]:
    """Those that may be set: not what needs another argument that is off."""
    given = _arguments(case)
    off = lambda k: GLOSSARY[k].needs and given[GLOSSARY[k].needs] is None
    return [k for k, v in given.items() if GLOSSARY[k].decay and isinstance(v, float) and not off(k)]


def _plain_bias_correction(case: Case) -> Case:
    """1 - b2 as a difference of float32 numbers, which has lost all its digits at b2 = 1 - 1e-6."""

    def factory(**kwargs: Any) -> Any:
        tx, b2 = case.factory(**kwargs), kwargs.get("b2", 0.999)
        wrong = float(np.sqrt((np.float32(1) - np.float32(b2)) / (1 - b2)))
        return optax.chain(tx, optax.scale(wrong))

    return dataclasses.replace(case, factory=factory)


@law("A3", tier="C", plant=_plain_bias_correction)
def first_step_in_closed_form(case: Case) -> None:
    """The first update is the paper's closed form, within 4 ULP in float32, at any decay rate."""
    changes = [{}, *({name: b} for name in _decay_rates(case) for b in (1 - 1e-6, 0.9999999))]
    size = 6
    rng = np.random.default_rng(0)
    sign = rng.choice([-1.0, 1.0], size)  # x and g agree in sign, so that the decay does not cancel the step
    g, x = (np.asarray(sign * rng.uniform(0.5, 1.5, size), np.float32) for _ in range(2))
    tree = lambda a: {"a": a[:2], "b": a[2:]} if case.flag("reduces") == "tree" else {"a": a}

    @jax.jit
    def first(g: Any, x: Any) -> list[Any]:
        updates = [tx.update(tree(g), tx.init(tree(x)), tree(x))[0] for tx in (case.tx(**change) for change in changes)]
        return [jnp.concatenate(jax.tree.leaves(u)) for u in updates]

    form = FIRST_STEPS.get(case.entry.name)
    for change, u in zip(changes, first(g, x), strict=True):
        if form is not None:
            expected = form(g.astype(float), x.astype(float), SimpleNamespace(**_arguments(case, **change)))
        else:  # no closed form was written: the reference's own first step
            updates = replay(case.entry.name, tree(x), [tree(g)], {**case.kwargs, **change})[0][0]
            expected = np.concatenate(jax.tree.leaves(updates))
        ulps = np.max(np.abs(np.asarray(u, float) - expected) / np.spacing(np.abs(expected).astype(np.float32)))
        assert ulps <= 4, f"{case.id} {change or ''}: the first update is off by {ulps:.3g} ULP"


def _updates(case: Case, changes: list[dict[str, Any]]) -> list[Any]:
    """The float64 updates of eight steps under each change of the arguments, from one compilation; None if rejected."""
    txs: list[Any] = []
    for change in changes:
        try:
            txs.append(case.tx(**change))
        except (ValueError, TypeError):
            txs.append(None)

    @jax.jit
    def all_of_them(params: Any, grads: Any) -> list[Any]:
        return [None if tx is None else _scan(tx, params, grads) for tx in txs]

    with x64():
        draw = lambda *shape: rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape)
        rng = np.random.default_rng(3)
        # From the second step on small, so that second moments fall, which amsgrad is for; then larger ones, the first
        # of which turns the sign of a short average, while the last is what clipping is for. Eight steps: RAdam uses
        # its second moment from the fifth or sixth on. Of several sizes, so that bounds hold for some entries only.
        later = [1] * 6 if case.flag("reduces") == "tree" else [0.01, 0.01, 0.01, 0.2, 0.01, 0.01]  # as on a long way
        sizes = np.array([1, *later, 3])[:, None] * np.array([0.3, 1, 30])
        # A vector, and an array whose last two axes are not its largest.
        shapes, spread = {"a": (3,), "b": (3, 2, 3)}, {"a": 1, "b": 0.2}
        params = {k: jnp.asarray(draw(*shape) * spread[k]) for k, shape in shapes.items()}
        scaled = lambda *shape: draw(STEPS, *shape) * sizes.reshape(STEPS, 3, *[1] * (len(shape) - 1))
        grads = with_a_trend(case, {k: jnp.asarray(scaled(*shape)) for k, shape in shapes.items()})
        grads["a"] = grads["a"].at[:, 1].set(abs(grads["a"][:, 1]))  # and one keeps its sign
        return jax.tree.map(np.asarray, all_of_them(params, grads))


def _scan(tx: Any, params: Any, grads: Any) -> Any:
    def body(carry: Any, g: Any) -> Any:
        params, state = carry
        # Where a Hessian is needed, flat to steep: beside a flat one every step is clipped, whatever the arguments.
        hessian = jax.tree.map(lambda g: jnp.broadcast_to(np.array([3.0, 300.0, 3000.0]), g.shape) * abs(g), g)
        updates, state = tx.update(g, state, params, hessian=hessian)
        return (optax.apply_updates(params, updates), state), updates

    return jax.lax.scan(body, (params, tx.init(params)), grads)[1]


def _moved(name: str, value: Any) -> Any:
    """Another value that the argument may have, by the glossary alone."""
    argument = GLOSSARY[name]
    if name == "mask":
        return False
    if argument.choices:
        return next(choice for choice in argument.choices if choice != value)
    if isinstance(value, bool):
        return not value
    # An int shapes the program; a longer interval than the steps of the check would show nothing.
    near = (value + 1, 1) if isinstance(value, int) and value < STEPS else (1,)
    numbers = near if isinstance(value, int) else (0.5, 0.25, 4.0, 2.0, 0, 1, 2)
    if argument.none == "no limit":  # one that binds
        numbers = (1.0, *numbers)
    return next(v for v in numbers if v != value and argument.test(v))


def _size(tree: Any) -> float:
    return max(float(np.max(np.abs(a))) for a in jax.tree.leaves(tree))


def _difference(a: Any, b: Any) -> float:
    return _size(jax.tree.map(lambda x, y: x - y, a, b))


def _zero_counts_as_missing(case: Case) -> Case:
    """`weight_decay or default`: a decay of 0.0 becomes the default."""

    def factory(**kwargs: Any) -> Any:
        if kwargs.get("weight_decay") is not None:
            kwargs["weight_decay"] = kwargs["weight_decay"] or 1e-2
        return case.factory(**kwargs)

    return dataclasses.replace(case, factory=factory)


@law("A4", tier="O", plant=_zero_counts_as_missing)
def zero_is_off(case: Case) -> None:
    """What None switches off, 0 switches off too. The limits between optimizers are in tests/identities."""
    names = [name for name in _arguments(case) if GLOSSARY[name].none == "off"]
    results = _updates(case, [{name: value} for name in names for value in (0.0, None)])
    for name, zero, none in zip(names, results[::2], results[1::2], strict=True):
        assert zero is not None, f"{case.id}: {name}=0.0 is rejected"
        if none is not None:  # None is rejected where another argument needs this one
            # 8 eps: 0 times a number is exact, but the two forms may add in another order.
            bound = 8 * np.finfo(float).eps * _size(none)
            assert _difference(zero, none) <= bound, f"{case.id}: {name}=0.0 is not {name}=None"


def _ignores_eps_root(case: Case) -> Case:
    factory = lambda **kwargs: case.factory(**{k: v for k, v in kwargs.items() if k != "eps_root"})
    return dataclasses.replace(case, factory=factory)


def _refuses_beyond(case: Case, name: str) -> None:
    """A limit of 2 refuses a vector of 3, at init, in one line that names it; a vector of 2 passes."""
    tx = case.tx(**{name: 2})
    tx.init({"a": jnp.zeros(2)})
    try:
        tx.init({"a": jnp.zeros(3)})
    except ValueError as error:
        said = str(error)
    else:
        said = ""
    assert name in said, f"{case.id}: {name}=2 does not refuse a vector of 3"
    assert "\n" not in said, f"{case.id}: more than one line: {said}"


@law("A5", tier="O", plant=_ignores_eps_root)
def every_argument_is_alive(case: Case) -> None:
    """Moving any one argument changes the updates, or is rejected because what it needs is off."""
    arguments = _arguments(case)
    for name in (name for name in arguments if GLOSSARY[name].limit):
        _refuses_beyond(case, name)
    moving = [name for name in arguments if not (GLOSSARY[name].limit or GLOSSARY[name].storage)]  # law C6 has storage
    moves = [{name: _moved(name, arguments[name])} for name in moving]
    base, *results = _updates(case, [{}, *moves])
    fullest = case.index == len(case.entry.cases) - 1
    for move, updates in zip(moves, results, strict=True):
        if updates is None:
            assert not fullest, f"{case.id}: {move} is rejected where nothing is off"
        else:
            # Moved to 1/2 or by as much again: a change of rounding size is none.
            changed = _difference(updates, base) > 1e-9 * _size(base)
            assert changed, f"{case.id}: {move} changes nothing and is not rejected"
