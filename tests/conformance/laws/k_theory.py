"""Laws K: what the theorems promise. A theorem is about one method, so these laws know names."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.conformance.cases import Case
from tests.conformance.law import law
from tests.conftest import x64

ROUNDS, PLAYERS, SIZE = 1000, 4, 8


def _forgets_the_sum(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """A sum of squares that decays: the step size then never shrinks."""

    def update(g: optax.Updates, s: optax.OptState, p: optax.Params = None) -> tuple[optax.Updates, optax.OptState]:
        return tx.update(g, s._replace(nu=jax.tree.map(lambda v: 0.5 * v, s.nu)), p)

    return optax.GradientTransformationExtraArgs(tx.init, update)


@law(
    "K2",
    tier="C",
    plant=lambda case: case.broken(_forgets_the_sum),
    planted_on="adagrad",
    applies=lambda case: case.entry.name in ("adagrad", "adagrad_norm") and case.index == 0,
)
def regret_is_below_its_bound(case: Case) -> None:
    """On random and adversarial online linear problems in a box, AdaGrad's regret stays below its theorem's bound.

    Duchi, Hazan, Singer 2011, theorem 5, per coordinate i: R <= sum_i (D_i^2 / (2 eta) + eta) |g_1:T,i|, where D_i is
    the largest distance from the best point. AdaGrad-Norm's is the same with one coordinate, the whole vector.
    """
    together = case.flag("reduces") != "element"
    eta = 0.7
    tx = case.tx(learning_rate=eta)
    rng = np.random.default_rng(0)
    # Sparse, of sizes from 1/30 to 30; half of the players face an adversary that knows where they stand.
    sizes = 10 ** rng.uniform(-1.5, 1.5, (PLAYERS, SIZE)) * (rng.random((ROUNDS, PLAYERS, SIZE)) < 0.3)
    signs = rng.choice([-1.0, 1.0], sizes.shape)
    knows = np.arange(PLAYERS) % 2 == 1

    def play(size: Any, sign: Any, knows: Any) -> Any:
        def round(carry: Any, row: Any) -> Any:
            x, state = carry
            size, sign = row
            g = size * jnp.where(knows & (x != 0), jnp.sign(x), sign)
            updates, state = tx.update(g, state, x)
            return (jnp.clip(x + updates, -1, 1), state), (x, g)

        start = jnp.zeros(SIZE)
        return jax.lax.scan(round, (start, tx.init(start)), (size, sign))[1]

    xs, gs = jax.jit(jax.vmap(play, in_axes=(1, 1, 0)))(jnp.asarray(sizes), jnp.asarray(signs), jnp.asarray(knows))
    for player, (x, g) in enumerate(zip(np.asarray(xs, float), np.asarray(gs, float), strict=True)):
        best = -np.sign(g.sum(0))
        regret = np.sum(g * x) - np.sum(g * best)
        moves, lengths = (x - best) ** 2, g**2
        if together:
            moves, lengths = moves.sum(1, keepdims=True), lengths.sum(1, keepdims=True)
        bound = np.sum((moves.max(0) / (2 * eta) + eta) * np.sqrt(lengths.sum(0)))
        assert regret <= bound, f"{case.id}: player {player} has regret {regret:.4g}, its bound is {bound:.4g}"


# Reddi, Kale, Kumar 2018, section 3: on f_t(x) = 3 x every third step and -x otherwise, x in [-1, 1], the best point
# is -1. An average that forgets the one large gradient within the period goes to +1 instead.
C = 3
FORGETFUL = dict(b2=1 / (1 + C**2))
ENDS = {
    "adam": [(dict(b1=0.0, **FORGETFUL), 1), (dict(b1=0.0, **FORGETFUL, amsgrad=True), -1)],
    "rmsprop": [(FORGETFUL, 1)],
    # RAdam never uses an average as short as this one; Yogi's second moment falls by small gradients only as slowly.
    "radam": [(dict(b1=0.0, **FORGETFUL), -1)],
    "yogi": [(dict(b1=0.0, **FORGETFUL), -1)],
    "adopt": [(dict(b1=0.0, **FORGETFUL), -1)],
    "adagrad": [({}, -1)],
    "adagrad_norm": [({}, -1)],
}


def _without_the_maximum(case: Case) -> Case:
    """AMSGrad whose maximum was forgotten."""
    return dataclasses.replace(case, factory=lambda **kwargs: case.factory(**{**kwargs, "amsgrad": False}))


@law(
    "K3",
    tier="C",
    plant=_without_the_maximum,
    applies=lambda case: case.entry.name in ENDS and case.index == 0,
)
def ends_where_the_theorem_says(case: Case) -> None:
    """On Reddi's counterexample Adam ends at +1, the worst point; AMSGrad, ADOPT and AdaGrad at -1, the best."""
    for change, end in ENDS[case.entry.name]:
        # The theorem's rate, alpha / sqrt(t); AdaGrad's own accumulator gives it that decay.
        rate = 0.5 if case.entry.name.startswith("adagrad") else lambda count: 0.5 / jnp.sqrt(count + 1.0)
        x = float(_last(case.tx(**{"learning_rate": rate, **change})))
        assert abs(x - end) < 0.1, f"{case.id} {change}: ends at {x:.3f}, not at {end}"


def _last(tx: optax.GradientTransformationExtraArgs) -> Any:
    """The mean point over the last of 1000 periods."""

    def period(carry: Any, _: Any) -> Any:
        total = jnp.zeros([])
        for g in (C, -1, -1):
            x, state = carry
            updates, state = tx.update(jnp.asarray(g, x.dtype), state, x)
            carry = jnp.clip(x + updates, -1, 1), state
            total = total + carry[0] / 3
        return carry, total

    start = jnp.zeros([])
    return jax.jit(lambda: jax.lax.scan(period, (start, tx.init(start)), length=1000)[1][-1])()


def _sm3_lemmas(gs: np.ndarray, states: list[Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Anil et al. 2019, claim 2 and proposition 3: the sums of squares <= SM3-II's bound <= SM3-I's bound."""
    sums = np.cumsum(gs**2, 0)
    smallest = lambda rows, columns: np.minimum(rows[:, :, None], columns[:, None, :])
    second = smallest(*(np.stack([s.cover["w"][axis] for s in states]) for axis in (0, 1)))
    first = smallest(*(np.cumsum(np.max(gs**2, axis), 0) for axis in (2, 1)))
    return {"the sums of squares and SM3-II": (sums, second), "SM3-II and SM3-I": (second, first)}


# Optimizer -> from the gradients of a matrix and the states after them: what is compared, the smaller and the larger.
LEMMAS = {"sm3": _sm3_lemmas}


def _forgets_a_tenth(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """A cover that decays, as an average does: it bounds nothing."""
    return optax.GradientTransformationExtraArgs(
        tx.init, lambda g, s, p: tx.update(g, s._replace(cover=jax.tree.map(lambda v: 0.9 * v, s.cover)), p)
    )


@law(
    "K4",
    tier="C",
    plant=lambda case: case.broken(_forgets_a_tenth),
    planted_on="sm3",
    applies=lambda case: case.entry.name in LEMMAS and case.index == 0,
)
def bounds_are_bounds(case: Case) -> None:
    """What a factored method keeps for rows and columns bounds every entry as its lemma says, at each of 200 steps."""
    rng = np.random.default_rng(0)
    # Rows and columns of their own sizes, as in embeddings, and most entries zero.
    sizes = 10 ** rng.uniform(-2, 2, (5, 1)) * 10 ** rng.uniform(-2, 2, (1, 4))
    with x64():
        gs = sizes * rng.normal(size=(200, 5, 4)) * (rng.random((200, 5, 4)) < 0.3)
        tx, x = case.tx(), {"w": jnp.zeros((5, 4))}

        def step(state: Any, g: Any) -> Any:
            state = tx.update({"w": g}, state, x)[1]
            return state, state

        states = jax.jit(lambda s, gs: jax.lax.scan(step, s, gs)[1])(tx.init(x), jnp.asarray(gs))
        states = jax.tree.map(np.asarray, states)
    each = [jax.tree.map(lambda a, t=t: a[t], states) for t in range(len(gs))]
    for what, (smaller, larger) in LEMMAS[case.entry.name](gs, each).items():
        excess = np.max(smaller - larger * (1 + 1e-12))  # both are sums in some order
        assert excess <= 0, f"{case.id}: {what}: the first is larger by up to {excess:.3g}"
