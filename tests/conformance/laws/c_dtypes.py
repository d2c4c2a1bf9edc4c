"""Laws C: dtypes and precision."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.conformance.cases import Case, grads_like, params_like
from tests.conformance.compare import assert_close, has_places, holds, wide
from tests.conformance.law import law, leaves_named
from tests.conformance.program import RECORDED, jitted, run, transformation
from tests.conftest import x64
from tests.regressions.defects import complex_square


def _kind(tree: Any) -> Any:
    return jax.tree.map(lambda a: (a.shape, str(a.dtype), a.weak_type), tree)


def _wider(*dtypes: Any) -> str:
    """The dtype that holds them all; float32 for bfloat16 with float16."""
    return str(jnp.result_type(*map(jnp.dtype, dtypes)))


def _coarse(tree: Any) -> Any:
    """Numbers that every dtype here holds exactly: multiples of 1/64 below 2."""
    return jax.tree.map(lambda a: jnp.round(a * 64) / 64, tree)


def _cast(tree: Any, dtypes: Any) -> Any:
    return jax.tree.map(lambda a, dtype: a.astype(dtype), tree, dtypes)


# C1


def _state_in_parameter_dtype(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """A first moment that takes the parameters' dtype until the first update widens it: Optax's old habit."""
    cast = lambda a, x: a.astype(x.dtype)
    return optax.GradientTransformationExtraArgs(
        lambda params: (state := tx.init(params))._replace(mu=jax.tree.map(cast, state.mu, params)),
        lambda u, s, p=None: tx.update(u, s._replace(mu=jax.tree.map(lambda m: m.astype(jnp.float32), s.mu)), p),
    )


@law("C1", tier="C", plant=lambda case: case.broken(_state_in_parameter_dtype))
def state_is_a_fixed_point(case: Case) -> None:
    """State structure, shapes, dtypes and weak types never change, x64 or not; the update has the declared dtype."""
    for dtype in ("float16", "bfloat16", "float32", "complex64", "float64", "complex128"):
        kinds = []
        for on in (True,) if dtype in ("float64", "complex128") else (False, True):
            what = f"{case.id} {dtype}, x64 {'on' if on else 'off'}"
            with x64(on), holds(what):
                params, g = params_like(dtype), jax.tree.map(lambda a: a[0], grads_like(1, dtype))
                tx = case.tx()
                state = jax.eval_shape(tx.init, params)
                results = [jax.eval_shape(tx.update, g, state, params)]
                if not case.flag("needs"):
                    results.append(jax.eval_shape(tx.update, g, state))
            for updates, after in results:
                assert _kind(after) == _kind(state), f"{what}: the state changed"
                for u in jax.tree.leaves(updates):
                    assert str(u.dtype) == case.emitted(dtype), f"{what}: the update is {u.dtype}"
                    assert not u.weak_type, f"{what}: the update is weakly typed"
            kinds.append(_kind(state))
        assert kinds[0] == kinds[-1], f"{case.id} {dtype}: x64 changed the state"


# C2, C3


def _in_dtypes(case: Case, of_params: Any, of_grads: Any) -> None:
    """Leaves in these dtypes: the state is float32's, and each update is float32's, rounded once to its dtype."""
    tx, coarse = transformation(case), _coarse((params_like(), grads_like(RECORDED)))
    state = run(case, *coarse, held=True).state
    params, g = coarse[0], jax.tree.map(lambda a: a[3], coarse[1])
    expected, after = jitted(case)[0](g, state, params)
    mixed_params, mixed_g = _cast(params, of_params), _cast(g, of_grads)
    with holds(f"{case.id}: gradients {of_grads} of parameters {of_params}"):
        first = jax.eval_shape(tx.init, mixed_params)
        got, state = jax.jit(tx.update)(mixed_g, state, mixed_params)
    assert _kind(first) == _kind(state), f"{case.id}: gradients {of_grads} of parameters {of_params} change the state"
    assert_close(f"{case.id}: the state with gradients {of_grads}", state, after, 1e-6)
    for k in params:
        dtype = case.emitted(_wider(of_params[k], of_grads[k]))
        what = f"{case.id}: gradient {of_grads[k]}, parameter {of_params[k]}"
        assert str(got[k].dtype) == dtype, f"{what}: the update is {got[k].dtype}, not {dtype}"
        exact, resolution = wide(expected[k]), jnp.finfo(dtype)
        # Half a unit in the last place, and float32's own rounding in two programs; the smallest number below that.
        bound = (float(resolution.eps) / 2 + 1e-6) * np.abs(exact) + float(resolution.smallest_subnormal)
        assert np.all(np.abs(wide(got[k]) - exact) <= bound), f"{what}: {got[k]}, not {expected[k]} rounded once"


def _in_the_widest_dtype(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """All leaves raveled into one vector for speed, which has one dtype."""

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        updates, state = tx.update(grads, state, params)
        dtype = jnp.result_type(*jax.tree.leaves(updates))
        return jax.tree.map(lambda u: u.astype(dtype), updates), state

    return optax.GradientTransformationExtraArgs(tx.init, update)


@law("C2", tier="O", plant=lambda case: case.broken(_in_the_widest_dtype))
def dtypes_mix_in_a_tree(case: Case) -> None:
    """bfloat16, float16 and float32 leaves in one tree: each leaf keeps its dtype and float32's numbers."""
    mixed = {"b": "float16", "s": "float32", "w": "bfloat16"}
    _in_dtypes(case, mixed, mixed)


def _through_the_gradient(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Parameters cast to the gradients' dtype at the door: the decay of float32 masters is bfloat16's."""

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        return tx.update(grads, state, jax.tree.map(lambda x, g: x.astype(g.dtype), params, grads))

    return optax.GradientTransformationExtraArgs(tx.init, update)


@law("C3", tier="O", plant=lambda case: case.broken(_through_the_gradient))
def gradients_of_another_dtype(case: Case) -> None:
    """Parameters wider than their gradients, and the reverse: the wider dtype comes out, the state is stable."""
    of_params = {"b": "float32", "s": "bfloat16", "w": "bfloat16"}
    of_grads = {"b": "bfloat16", "s": "float32", "w": "float16"}
    _in_dtypes(case, of_params, of_grads)
    with x64():  # the state is float64 where a parameter is
        params, g = params_like("float64"), jax.tree.map(lambda a: a[0], grads_like(1))
        state = transformation(case).init(params)
        updates, after = jax.eval_shape(transformation(case).update, g, state, params)
        assert _kind(after) == _kind(state), f"{case.id}: float32 gradients of float64 parameters change the state"
        for u in jax.tree.leaves(updates):
            assert str(u.dtype) == "float64", f"{case.id}: float64 parameters get {u.dtype}"
    if not case.flag("needs"):
        state = jax.eval_shape(transformation(case).init, _cast(params_like(), of_params))
        updates, after = jax.eval_shape(transformation(case).update, _cast(params_like(), of_grads), state)
        assert _kind(after) == _kind(state), f"{case.id}: gradients {of_grads} without parameters change the state"
        for k, u in updates.items():
            expected = case.emitted(of_grads[k])
            assert str(u.dtype) == expected, f"{case.id}: without parameters a {of_grads[k]} gradient gives {u.dtype}"


# C4


def _state_in_low_precision(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Accumulators like the parameters: in bfloat16 the second moment stops where its steps round to nothing."""
    init = lambda x: jax.tree.map(lambda a: a.astype(x["w"].dtype) if a.ndim else a, tx.init(x))
    return optax.GradientTransformationExtraArgs(init, tx.update)


@law("C4", tier="D", plant=lambda case: case.broken(_state_in_low_precision))
def low_precision_tracks_float32(case: Case) -> None:
    """After 3,000 equal gradients with the parameters held, float16's and bfloat16's state and update are float32's."""
    constant = lambda tree: jax.tree.map(lambda a: jnp.stack([a[0]] * RECORDED), tree)
    params, grads = _coarse((params_like(), constant(grads_like(1))))
    expected = run(case, params, grads, 3000, held=True)
    for dtype in ("float16", "bfloat16"):
        got = run(case, *jax.tree.map(lambda a, dtype=dtype: a.astype(dtype), (params, grads)), 3000, held=True)
        tiny = float(jnp.finfo(dtype).smallest_subnormal)  # no float16 is nearer to a smaller update
        for part in ("state", "updates"):
            pairs = zip(leaves_named(getattr(got, part)), jax.tree.leaves(getattr(expected, part)), strict=True)
            for (path, a), b in pairs:
                a, b = wide(a), wide(b)
                if part == "updates":  # a step beyond the range is rounded to its end
                    b = np.clip(b, -float(jnp.finfo(dtype).max), float(jnp.finfo(dtype).max))
                worst = np.max(np.abs(a - b) - 0.01 * np.abs(b) - (tiny if part == "updates" else 0), initial=0)
                assert worst <= 0, f"{case.id} {dtype}, {part}{path}: {a.ravel()}, in float32 {b.ravel()}"


# C5


TURN = np.exp(1j)


def _turned_back(updates: Any, state: Any) -> Any:
    """What follows the gradient turns with it; what is kept of a tensor in another shape, products g g^H, does not."""
    back = lambda u, a: a / TURN if jnp.iscomplexobj(a) and a.shape == u.shape else a
    each = lambda tree: jax.tree.map(lambda u, kept: jax.tree.map(lambda a: back(u, a), kept), updates, tree)
    follows = lambda tree: has_places(jax.tree.structure(updates), tree)
    return each(updates), type(state)(*(each(field) if follows(field) else field for field in state))


@law("C5", tier="O", plant=complex_square)
def complex_parameters(case: Case) -> None:
    """Complex parameters: the second moment re^2 + im^2 is shared by both parts; conjugates and phases pass through."""
    tx = transformation(case)

    def steps(params: Any, grads: Any) -> list[Any]:
        state, results = tx.init(params), []
        for i in range(3):
            updates, state = tx.update(jax.tree.map(lambda a: a[i], grads), state, params)  # noqa: B023  (called before the loop goes on)
            params = jax.tree.map(jnp.add, params, updates)
            results.append((updates, state))
        return results

    # complex64 has nothing of its own here, and DoG's distance is lost in its rounding. Op by op nothing is compiled.
    with x64(), jax.disable_jit(), holds(f"{case.id}: complex parameters"):
        given = params_like("complex128"), grads_like(3, "complex128")
        base, moduli = steps(*given), steps(*jax.tree.map(jnp.abs, given))
        conjugated = jax.tree.map(jnp.conj, steps(*jax.tree.map(jnp.conj, given)))
        turned = steps(*jax.tree.map(lambda a: a * TURN, given))
        turned = [_turned_back(*both) for both in turned]
    assert_close(f"{case.id}: conjugated", conjugated, base, 1e-6)
    assert_close(f"{case.id}: turned by 1 radian", turned, base, 1e-6)
    for (path, a), b in zip(leaves_named(base[0][1]), jax.tree.leaves(moduli[0][1]), strict=True):
        if path.startswith((".mu[", ".nu[")):
            what = f"{case.id}: {path} of complex parameters is {a.dtype}"
            assert jnp.iscomplexobj(a) == path.startswith(".mu"), what
        if not jnp.iscomplexobj(a):
            assert_close(f"{case.id}: {path} of g and of |g|", a, b, 1e-6)


# C6


def _narrow_from_the_start(case: Case) -> Case:
    """A factory that takes `state_dtype` for the dtype to compute in as well."""

    def factory(**kwargs: Any) -> Any:
        tx, dtype = case.factory(**kwargs), kwargs.get("state_dtype")
        if dtype is None or isinstance(dtype, dict):
            return tx
        real = lambda a: a if jnp.iscomplexobj(a) else a.astype(dtype).astype(a.dtype)
        narrow = lambda tree: jax.tree.map(real, tree)
        return optax.GradientTransformationExtraArgs(tx.init, lambda u, s, p=None: tx.update(narrow(u), s, p))

    return dataclasses.replace(case, factory=factory)


WITHOUT = ("adagrad_full", "adagrad_norm", "dog", "dowg")  # they keep nothing that is like a parameter


def _like_parameters(case: Case, state: Any, params: Any) -> list[str]:
    """The fields that are moments or sums like the parameters; a factored moment may come to have their shapes."""
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    alike = [f for f in state._fields if shapes(getattr(state, f)) == shapes(params)]
    return [f for f in alike if f != "initial_params" and (f != "nu" or case.entry.family != "factored")]


@law("C6", tier="O", plant=_narrow_from_the_start)
def state_is_stored_as_asked(case: Case) -> None:
    """What is stored in `state_dtype` is all arrays of a parameter's shape, or a field's; the step is float32's."""
    takes = "state_dtype" in inspect.signature(case.entry.factory).parameters
    assert takes != (case.entry.name in WITHOUT), f"{case.id}: state_dtype is {'' if takes else 'not '}an argument"
    if not takes:
        return
    params, gs = params_like(), [jax.tree.map(lambda a, i=i: a[i], grads_like(3)) for i in range(3)]
    plain = transformation(case)
    full = plain.init(params)
    fields = _like_parameters(case, full, params)
    if not fields:
        with pytest.raises(ValueError, match="state_dtype: no array to store"):
            case.tx(state_dtype="bfloat16")
        return
    with pytest.raises(ValueError, match=f"state_dtype: no nothing to store; there are {', '.join(fields)}"):
        case.tx(state_dtype={"nothing": "bfloat16"})
    for dtype in ("float32", "complex64"):
        x, g = params_like(dtype), jax.tree.map(lambda a: a[0], grads_like(1, dtype))
        for asked in ("bfloat16", {fields[-1]: "bfloat16"}):
            tx, narrow = case.tx(state_dtype=asked), fields if isinstance(asked, str) else fields[-1:]
            plain_kinds = jax.tree.map(lambda a: a.dtype, jax.eval_shape(plain.init, x))
            first = jax.eval_shape(tx.init, x)
            for state in (first, jax.eval_shape(tx.update, g, first, x)[1]):
                for f in state._fields:
                    for a, wide_a in zip(
                        *map(jax.tree.leaves, (getattr(state, f), getattr(plain_kinds, f))), strict=True
                    ):
                        kept = f not in narrow or jnp.issubdtype(wide_a, jnp.complexfloating)
                        expected = wide_a if kept else jnp.bfloat16
                        assert a.dtype == expected, f"{case.id} {dtype}: {f} with state_dtype={asked} is {a.dtype}"
    tx = case.tx(state_dtype="bfloat16")
    state, update = tx.init(params), jax.jit(tx.update)
    for g in gs:
        decoded = jax.tree.map(lambda a, like: a.astype(like.dtype), state, full)
        exact, after = jitted(case)[0](g, decoded, params)
        updates, state = update(g, state, params)
        # Two programs: CAME's step has a difference in it, and with that twice their rounding.
        assert_close(f"{case.id}: the update with state_dtype", updates, exact, 2e-6)
        for (path, a), b in zip(leaves_named(state), jax.tree.leaves(after), strict=True):
            bound = float(jnp.finfo(jnp.bfloat16).eps) if a.dtype == jnp.bfloat16 else 1e-6
            assert_close(f"{case.id}: {path} with state_dtype", a, b, bound)
