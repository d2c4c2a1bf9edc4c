"""Laws F: what must not matter (names, order, sign, scale), and how far one entry's update looks."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.conformance.cases import Case, grads_like, params_like, with_a_trend
from tests.conformance.compare import wide
from tests.conformance.law import law
from tests.conformance.program import RECORDED, numbers, run, run_traced, transformation

UP_DOWN = (2.0**10, 2.0**-10)


def same_bits(a: Any, b: Any) -> bool:
    """Two trees of equal numbers, NaN included."""
    equal = jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y), equal_nan=True), a, b)
    return all(jax.tree.leaves(equal))


def _steps(
    case: Case, params: Any, grads: Any, arrange: Any = lambda tree: tree, steps: int = 2
) -> tuple[list[Any], Any]:
    """Eager steps on the tree that `arrange` makes: updates and state. Eager, so each leaf's program is one."""
    tx, params = transformation(case), arrange(params)
    state, updates = tx.init(params), []
    for i in range(steps):
        u, state = tx.update(arrange(jax.tree.map(lambda g, i=i: g[i], grads)), state, params)
        params = optax.apply_updates(params, u)
        updates.append(u)
    return updates, state


def _scales_by_position(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Something that is numbered by a leaf's place in the tree, as random keys split over the leaves are."""

    def update(updates: Any, state: Any, params: Any) -> Any:
        u, state = tx.update(updates, state, params)
        leaves, treedef = jax.tree.flatten(u)
        return treedef.unflatten([leaf * (1 + 1e-3 * i) for i, leaf in enumerate(leaves)]), state

    return optax.GradientTransformationExtraArgs(tx.init, update)


@law("F1", tier="O", plant=lambda case: case.broken(_scales_by_position))
def trees_do_not_matter(case: Case) -> None:
    """Another structure, leaf order and key names: the same updates and state, bit for bit."""
    params, grads = params_like(), grads_like(2)
    arrange = lambda tree: {"a": [{"x": tree["w"]}], "m": (tree["s"],), "z": tree["b"]}  # w first, b last
    updates, state = _steps(case, params, grads)
    others, other = _steps(case, params, grads, arrange)
    assert same_bits([arrange(u) for u in updates], others), f"{case.id}: the updates depend on the tree"
    arranged = [arrange(field) if isinstance(field, dict) else field for field in state]
    assert same_bits(arranged, list(other)), f"{case.id}: the state depends on the tree"


def _reach(case: Case) -> str:
    """How far a change in one entry's gradient is seen in a run, counted in bits of the same program."""
    params, grads = params_like(), with_a_trend(case, grads_like(RECORDED))
    changed = {**grads, "w": grads["w"].at[0, 1, 0].multiply(-3.0)}
    before, after = (jax.tree.map(wide, run(case, params, g).updates) for g in (grads, changed))
    differs = {k: (before[k] != after[k]).any(axis=0) for k in before}
    if differs["b"].any() or differs["s"].any():
        return "tree"
    entry = differs["w"][1, 0]
    return "tensor" if differs["w"].sum() > entry else "element" if entry else "nothing"


def _halves_the_last_row(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """A matrix taken in blocks of rows, the last of which is padded."""

    def update(updates: Any, state: Any, params: Any) -> Any:
        u, state = tx.update(updates, state, params)
        return jax.tree.map(lambda a: a.at[-1].multiply(0.5) if a.ndim == 2 else a, u), state

    return optax.GradientTransformationExtraArgs(tx.init, update)


@law("F2", tier="O", plant=lambda case: case.broken(_halves_the_last_row))
def coordinates_do_not_matter(case: Case) -> None:
    """Permuted coordinates (`reduces` = element) or rows: permuted updates; one entry is seen as far as declared."""
    reduces = case.flag("reduces")
    reach = _reach(case)
    assert reach == reduces, f"{case.id}: one entry's gradient is seen in the {reach}, but reduces is {reduces}"

    coordinates, rows = np.array([4, 2, 0, 5, 1, 3]), np.array([2, 0, 1])

    def permuted(tree: Any) -> Any:
        w = tree["w"]
        if reduces == "element":
            return {**tree, "w": w.reshape(*w.shape[:-2], 6)[..., coordinates].reshape(w.shape)}
        return {**tree, "w": w[..., rows, :]}

    params, grads = params_like(), grads_like(RECORDED)
    expected = permuted(jax.tree.map(wide, run(case, params, grads).updates))
    got = jax.tree.map(wide, run(case, permuted(params), permuted(grads)).updates)
    for leaf in got:
        # Sums run in another order, and the last lanes of a vector may be computed by other instructions; the singular
        # values of a whole tensor round a few times as often.
        error = np.abs(got[leaf] - expected[leaf]).max() / np.abs(expected[leaf]).max()
        assert error <= (1e-6 if reduces == "element" else 4e-6), (
            f"{case.id}: {leaf} is {error:.1e} off after a permutation"
        )


def drifts(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Yogi's first moment that does not start at 0: a push in one direction, whatever the sign of the gradient."""

    def init(params: Any) -> Any:
        state = tx.init(params)
        return state._replace(mu=jax.tree.map(lambda m: m + 1e-6, state.mu))

    return optax.GradientTransformationExtraArgs(init, tx.update)


@law("F3", tier="O", plant=lambda case: case.broken(drifts))
def signs_mirror(case: Case) -> None:
    """`odd`: (-g, -x) gives -u, bit for bit; where the flag is False it does not."""
    params, grads = params_like(), grads_like(RECORDED)
    mirrored = lambda tree: jax.tree.map(lambda a: -a, tree)
    updates, others = run(case, params, grads).updates, run(case, mirrored(params), mirrored(grads)).updates
    odd = same_bits(mirrored(updates), others)
    assert odd == case.flag("odd"), (
        f"{case.id}: (-g, -x) gives {'' if odd else 'not '}-u, but odd is {case.flag('odd')}"
    )


def _adds_eps(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """A private eps in the accumulator beside the one that can be set to 0, as AdaBelief's."""

    def update(updates: Any, state: Any, params: Any) -> Any:
        return tx.update(updates, state._replace(nu=jax.tree.map(lambda v: v + 1e-8, state.nu)), params)

    return optax.GradientTransformationExtraArgs(tx.init, update)


@law("F4", tier="O", plant=lambda case: case.broken(_adds_eps))
def scale_does_not_matter(case: Case) -> None:
    """`scale_free`: without eps, eps_root, initial_accumulator and decay, powers of two times g change no bit."""
    params, grads = params_like(), grads_like(RECORDED)
    nothing_added = dict(eps=0.0, eps_root=0.0, initial_accumulator=0.0, weight_decay=0.0)
    updates = run_traced(case, params, grads, **nothing_added).updates
    scaled = [
        run_traced(case, params, jax.tree.map(lambda g, c=c: c * g, grads), **nothing_added).updates for c in UP_DOWN
    ]
    # A rule that only its eps sets in motion (Adadelta) is not called scale-free for standing still.
    moves = any(np.any(u) for u in jax.tree.leaves(updates))
    scale_free = moves and all(same_bits(updates, u) for u in scaled)
    assert scale_free == case.flag("scale_free"), (
        f"{case.id}: the scale of the gradients {'does not matter' if scale_free else 'matters'}, "
        f"but scale_free is {case.flag('scale_free')}"
    )


def couples(case: Case) -> Case:
    """Weight decay as an L2 penalty in the gradient, which the second moment then divides away."""

    def factory(weight_decay: Any = None, mask: Any = None, **kwargs: Any) -> Any:
        tx = case.factory(**kwargs)
        decayed = lambda g, x: g + (0.0 if weight_decay is None else weight_decay) * x
        return optax.GradientTransformationExtraArgs(
            tx.init, lambda u, s, p: tx.update(jax.tree.map(decayed, u, p), s, p)
        )

    return Case(case.entry, case.index, factory, case.kwargs)


def _decays(case: Case) -> bool:
    return "weight_decay" in inspect.signature(case.entry.factory).parameters


def _in_ulps(error: np.ndarray, *sizes: np.ndarray) -> float:
    """The largest error, in float32 ULP of the larger of `sizes`."""
    larger = functools.reduce(np.maximum, map(np.abs, sizes))
    return float(np.max(np.abs(error) / np.spacing(larger.astype(np.float32))))


@law("F5", tier="O", plant=couples, applies=_decays)
def decay_is_decoupled(case: Case) -> None:
    """u(wd) = u(0) - lr wd x; a rule that sets the rate of a tensor or tree: a u(0) - k x with a, k > 0 of its own."""
    # Powers of two, so that -lr wd x is exact; small enough that no parameter changes its sign (which l1 cuts at 0).
    rate, decay = 2.0**-4, 0.5
    params, grads = params_like(), grads_like(RECORDED)
    grads = {**grads, "w": grads["w"].at[:, 0, 0].set(0.0)}
    at_rate = dict(learning_rate=rate, slope=1.0, held=True)  # a schedule: rate, rate / 2, rate / 3
    decayed, plain = (
        jax.tree.map(wide, run_traced(case, params, grads, 3, weight_decay=wd, **at_rate).updates)
        for wd in (decay, 0.0)
    )
    xs = jax.tree.map(wide, params)
    own_rate = case.entry.direction is None and case.flag("reduces") != "element"
    parts = [list(xs)] if case.flag("reduces") == "tree" else [[k] for k in xs]
    remembers = "momentum" in numbers(case)  # a buffer of whole steps: each u(0) so far has a factor of its own
    for t in range(3):
        flat = lambda tree, part: np.concatenate([np.ravel(tree[k]) for k in part])
        us, zeros = ({k: tree[k][t] for k in xs} for tree in (decayed, plain))
        for part in parts if own_rate else []:
            u, zero, x = (flat(tree, part) for tree in (us, zeros, xs))
            past = [flat({k: plain[k][i] for k in xs}, part) for i in range(t if remembers else 0)]
            if u.size > 2 + len(past):  # two factors fit any two numbers
                factors, *_ = np.linalg.lstsq(np.stack([zero, -x, *past], 1), u, rcond=None)
                a, k, *others = factors
                assert min(a, k) > 0, f"{case.id}: {part}: u(wd) = {a:g} u(0) - {k:g} x"
                again = [c * before for c, before in zip(others, past, strict=True)]
                error = _in_ulps(u - (a * zero - k * x + sum(again)), u, a * zero, *again)
                assert error <= 4, f"{case.id}: {part}: u(wd) is {error:.1f} ULP off a u(0) - k x"  # one more a factor
        if own_rate:
            continue
        u, zero, x = (flat(tree, list(xs)) for tree in (us, zeros, xs))
        # The schedule's first value in the first step; later perhaps less (lr_decay), but the same for the whole tree.
        factor = rate if t == 0 else -np.sum((u - zero) * x) / np.sum(x * x) / decay
        most = rate / (1 + t) * (1 + 1e-6)
        assert 0 < factor <= most, f"{case.id}: step {t + 1} decays at the rate {factor:g}, the schedule says {most:g}"
        # A proximal update is the difference of two parameters, and as coarse.
        sizes = (u, zero) if case.flag("zero_is_fixed") else (u, zero, x)
        error = _in_ulps(u - zero + factor * decay * x, *sizes)
        # After the first step the factor is itself taken from rounded updates, which may be far larger than the decay.
        allowed = 2 if t == 0 else 3
        assert error <= allowed, f"{case.id}: u(wd) - u(0) is {error:.1f} ULP off -{factor:g} wd x"
        if t == 0 and case.flag("zero_is_fixed") and case.kwargs.get("inner_decay") is None:
            assert zeros["w"][0, 0] == 0, f"{case.id}: a zero gradient moves"
            assert us["w"][0, 0] == -rate * decay * xs["w"][0, 0], f"{case.id}: where u = 0 the decay is not exact"


def _clips_by_global_norm(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """A norm over the tree that nobody declared."""

    def update(updates: Any, state: Any, params: Any) -> Any:
        size = optax.tree.norm(updates)
        return tx.update(jax.tree.map(lambda g: g / jnp.maximum(size, 1), updates), state, params)

    return optax.GradientTransformationExtraArgs(tx.init, update)


@law("F6", tier="O", plant=lambda case: case.broken(_clips_by_global_norm))
def leaves_are_alone(case: Case) -> None:
    """A leaf in a tree is updated as it is alone, bit for bit; where `reduces` is tree it is not."""
    # An estimate of a distance takes some steps before it moves.
    params, steps = params_like(), 8 if case.flag("reduces") == "tree" else 2
    grads = with_a_trend(case, grads_like(steps))
    together, _ = _steps(case, params, grads, steps=steps)
    alone = [
        same_bits([{k: u[k]} for u in together], _steps(case, params, grads, lambda tree, k=k: {k: tree[k]}, steps)[0])
        for k in params
    ]
    if case.flag("reduces") == "tree":
        assert not any(alone), f"{case.id}: a leaf does not feel the others, but reduces is tree"
    else:
        assert all(alone), f"{case.id}: leaves feel each other: {dict(zip(params, alone, strict=True))}"
