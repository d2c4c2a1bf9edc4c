"""The lift, through toy rules: what crosses leaves, what reaches a leaf, what the descent adds."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptx
from adaptx.core.descent import Descent
from adaptx.core.lift import initialised, lift
from adaptx.core.moments import Decay, debias, ema, sum_sq
from adaptx.core.rule import Rule, copied, filled, per_tensor, real_zeros, zeros

LEAVES = {"a": jnp.ones(3), "b": jnp.full(3, 2.0), "c": jnp.full((2, 2), 3.0)}


class Plain(NamedTuple):
    count: Any


def plain(step: Callable[..., Any] = lambda g, s, x, t: (g, s), **declared: Any) -> Rule:
    return Rule(State=Plain, step=step, slots={}, **declared)


# Random keys


class Noisy(NamedTuple):
    count: Any
    key: Any


def noise(traces: list[Any] | None = None) -> Rule:
    """Ignores the gradient; each leaf's step is a normal draw, each step has a new key."""

    def step(g: Any, s: Noisy, x: Any, t: Any) -> Any:
        if traces is not None:
            traces.append(g.shape)
        return jax.random.normal(s.key, g.shape), s

    advance = lambda s, totals, t: s._replace(key=jax.random.split(s.key)[0])
    return Rule(State=Noisy, step=step, slots={}, scalars={"key": jax.random.key(7)}, advance=advance)


def test_a_leaf_gets_the_key_folded_with_the_crc_of_its_path() -> None:
    tx = lift("noise", noise())
    u, state = tx.update(LEAVES, tx.init(LEAVES))
    advanced = jax.random.split(jax.random.key(7))[0]
    assert jnp.all(jax.random.key_data(state.key) == jax.random.key_data(advanced))  # stored whole, not folded
    for name, g in LEAVES.items():
        key = jax.random.fold_in(advanced, zlib.crc32(f"['{name}']".encode()))
        np.testing.assert_array_equal(u[name], jax.random.normal(key, g.shape))
    assert not jnp.any(u["a"] == u["b"])
    assert not jnp.any(tx.update(LEAVES, state)[0]["a"] == u["a"])


def test_a_leaf_draws_the_same_whatever_its_neighbours() -> None:
    tx = lift("noise", noise())
    alone = {"b": LEAVES["b"]}
    together = tx.update(LEAVES, tx.init(LEAVES))[0]["b"]
    np.testing.assert_array_equal(tx.update(alone, tx.init(alone))[0]["b"], together)


def test_equal_leaves_share_one_trace() -> None:
    traces: list[Any] = []
    tx = lift("noise", noise(traces))
    many = {f"layer{i}": {"w": jnp.ones((2, 3)), "b": jnp.ones(3)} for i in range(10)}
    state = tx.init(many)
    for _ in range(2):
        state = jax.jit(tx.update)(many, state)[1]
    assert sorted(traces) == [(2, 3), (3,)]


# Sums over the tree


class Shared(NamedTuple):
    count: Any
    seen: Any
    total: Any


def normalise() -> Rule:
    """g over the norm of the tree's running sum; `part` sees the old total and may advance a slot."""

    def part(g: Any, s: Shared, x: Any, t: Any) -> Any:
        return sum_sq(g), s._replace(seen=s.seen + s.total)

    def advance(s: Shared, total: Any, t: Any) -> Shared:
        return s._replace(total=s.total + total)

    def step(g: Any, s: Shared, x: Any, t: Any) -> Any:
        return g / jnp.sqrt(s.total), s._replace(seen=s.seen + 1000)

    return Rule(
        State=Shared, step=step, slots={"seen": per_tensor(0.0)}, scalars={"total": 0.0}, part=part, advance=advance
    )


def test_part_sees_the_old_scalars_and_step_the_new() -> None:
    tx = lift("normalise", normalise())
    squares = 3 * 1 + 3 * 4 + 4 * 9
    u, state = tx.update(LEAVES, tx.init(LEAVES))
    np.testing.assert_allclose(u["b"], 2 / np.sqrt(squares) * np.ones(3), rtol=1e-6)
    assert float(state.seen["a"]) == 1000  # the old total was 0; part's slots reached step
    u, state = tx.update(LEAVES, state)
    np.testing.assert_allclose(u["b"], 2 / np.sqrt(2 * squares) * np.ones(3), rtol=1e-6)
    assert float(state.seen["a"]) == 2000 + squares
    assert float(state.total) == 2 * squares


def test_a_sum_leaves_out_none_and_lives_on_an_empty_tree() -> None:
    tx = lift("normalise", normalise())
    u, state = tx.update({**LEAVES, "c": None}, tx.init(LEAVES))
    assert u["c"] is None
    assert float(state.total) == 15
    assert float(state.seen["c"]) == 0
    empty, state = tx.update({}, tx.init({}))
    assert empty == {}
    assert int(state.count) == 1
    assert float(state.total) == 0


def test_leaf_order_cannot_change_a_bit() -> None:
    rng = np.random.default_rng(0)
    gs = [jnp.asarray(rng.normal(size=3) * 10.0**i, jnp.float32) for i in range(-4, 5)]
    tx = lift("normalise", normalise())
    total = lambda order: np.asarray(tx.update([gs[i] for i in order], tx.init([gs[i] for i in order]))[1].total)
    expected = total(range(9))
    for _ in range(5):
        assert total(rng.permutation(9)) == expected


@pytest.mark.parametrize("bad", [jnp.inf, -jnp.inf, jnp.nan])
@pytest.mark.parametrize("rule", [plain, normalise])
def test_what_is_not_finite_shows(rule: Callable[[], Rule], bad: float) -> None:
    """In its leaf, and in every leaf if the rule sums over the tree: never as a silent step of 0."""
    tx = lift("rule", rule())
    u, _ = tx.update({**LEAVES, "a": jnp.array([1.0, bad, 1.0])}, tx.init(LEAVES))
    assert not np.isfinite(u["a"][1])
    assert bool(jnp.all(jnp.isfinite(u["b"]))) == (rule is plain)


def test_a_huge_gradient_is_summed_finitely() -> None:
    tx = lift("normalise", normalise())
    grads = {**LEAVES, "a": jnp.full(3, 3e38)}
    u, state = tx.update(grads, tx.init(LEAVES))
    assert jnp.isfinite(state.total)
    assert jnp.all(jnp.isfinite(u["a"]))
    assert jnp.all(u["a"] > 0)


# Slots


class Slotted(NamedTuple):
    count: Any
    factors: Any
    start: Any
    number: Any
    off: Any = None


def factored() -> Rule:
    """Row and column sums for a matrix, nothing for a vector."""

    def slot(x: Any) -> Any:
        return (jnp.zeros(x.shape[0]), jnp.zeros(x.shape[1])) if x.ndim == 2 else None

    def step(g: Any, s: Slotted, x: Any, t: Any) -> Any:
        if s.factors is None:
            return g, s
        row, column = s.factors
        return g, s._replace(factors=(row + g.sum(1), column + g.sum(0)))

    slots = {"factors": slot, "start": copied, "number": filled(0.5), "off": None}
    return Rule(State=Slotted, step=step, slots=slots)


def test_slots_may_be_tuples_of_unequal_shapes_and_none() -> None:
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    tx = lift("factored", factored())
    state = tx.init(params)
    update = jax.jit(tx.update)
    for _ in range(2):
        _, state = update(params, state)
    assert state.factors["b"] is None
    np.testing.assert_array_equal(state.factors["w"][0], 6 * np.ones(2))
    np.testing.assert_array_equal(state.factors["w"][1], 4 * np.ones(3))
    assert state.off is None
    assert float(state.number["w"][0, 0]) == 0.5
    abstract = tx.init(jax.eval_shape(lambda: params))
    assert jax.tree.map(jnp.shape, abstract) == jax.tree.map(jnp.shape, state)


def test_a_copied_slot_has_a_buffer_of_its_own() -> None:
    params = {"w": jnp.ones((2, 2))}
    start = lift("factored", factored()).init(params).start["w"]
    assert start.unsafe_buffer_pointer() != params["w"].unsafe_buffer_pointer()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
def test_first_values_are_float32_or_wider(dtype: str) -> None:
    x = jnp.ones(2, dtype)
    assert zeros(x).dtype == ("complex64" if dtype == "complex64" else "float32")
    assert copied(x).dtype == zeros(x).dtype
    for first in (real_zeros, filled(0.1), per_tensor(0.1)):
        assert first(x).dtype == jnp.float32


# The clock


class Averaged(NamedTuple):
    count: Any
    mu: Any


@pytest.mark.parametrize("listed", [True, False])
def test_bias_correction_whether_listed_or_not(listed: bool) -> None:
    b = Decay.of(0.9)

    def step(g: Any, s: Averaged, x: Any, t: Any) -> Any:
        m = ema(s.mu, g, b)
        return debias(m, b, t), s._replace(mu=m)

    rule = Rule(State=Averaged, step=step, slots={"mu": zeros}, decays=(b,) if listed else ())
    tx = lift("averaged", rule)
    state = tx.init(LEAVES)
    for _ in range(3):
        u, state = tx.update(LEAVES, state)
        np.testing.assert_allclose(u["c"], LEAVES["c"], rtol=1e-6)


def test_the_count_saturates() -> None:
    tx = lift("plain", plain(lambda g, s, x, t: (g * t.t, s)))
    last = Plain(jnp.int32(2**31 - 1))
    u, state = tx.update(LEAVES, last)
    assert int(state.count) == 2**31 - 1
    assert float(u["a"][0]) == 2.0**31


def test_needs_arrive_on_the_clock() -> None:
    tx = lift("polyak", plain(lambda g, s, x, t: (g * t.value, s), needs=("value",)))
    u, _ = tx.update(LEAVES, tx.init(LEAVES), value=jnp.float32(5), unknown="ignored")
    assert float(u["a"][0]) == 5
    with pytest.raises(ValueError, match="polyak: update needs value"):
        tx.update(LEAVES, tx.init(LEAVES))


def test_a_missing_parameter_is_named() -> None:
    tx = lift("pull", plain(lambda g, s, x, t: (x, s), needs=("params",)))
    assert float(tx.update(LEAVES, tx.init(LEAVES), LEAVES)[0]["b"][0]) == 2
    with pytest.raises(ValueError, match="pull: update needs params"):
        tx.update(LEAVES, tx.init(LEAVES))


# The descent


def test_a_rule_that_owns_the_rate_emits_the_signed_update() -> None:
    def step(g: Any, s: Plain, x: Any, t: Any) -> Any:
        decay = 0.0 if t.weight_decay is None else t.weight_decay
        return t.learning_rate + 10 * decay + 0 * g, s

    rule = plain(step, needs=("learning_rate",))
    mask = {"a": True, "b": False, "c": True}
    tx = lift("owner", rule, Descent(0.5, 0.25, mask))
    u, _ = tx.update(LEAVES, tx.init(LEAVES), LEAVES)
    assert {name: float(v.ravel()[0]) for name, v in u.items()} == {"a": 3.0, "b": 0.5, "c": 3.0}


def test_the_descent_decays_scales_and_turns_the_sign() -> None:
    tx = lift("sgd", plain(), Descent(0.5, 0.25, scale=lambda u, x: u * 2 + x))
    u, _ = tx.update({"a": jnp.float32(3)}, tx.init({"a": jnp.float32(1)}), {"a": jnp.float32(4)})
    assert float(u["a"]) == -0.5 * (2 * (3 + 0.25 * 4) + 4)


def test_schedules_are_asked_for_step_0_first() -> None:
    asked: dict[str, list[int]] = {"rate": [], "decay": []}

    def schedule(name: str) -> Callable[[Any], Any]:
        def at(count: Any) -> Any:
            asked[name].append(int(count))
            return 1.0 + count

        return at

    tx = lift("sgd", plain(), Descent(schedule("rate"), schedule("decay")))
    state = tx.init(LEAVES)
    for step in range(2):
        u, state = tx.update(LEAVES, state, LEAVES)
        assert float(u["a"][0]) == -(1 + step) * (1 + (1 + step))
    assert asked == {"rate": [0, 1], "decay": [0, 1]}  # once for the tree, not once for each leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    """A pytree that is callable, as neural network modules are."""

    w: Any
    b: Any

    def __call__(self, x: Any) -> Any:
        raise AssertionError("a module is not a function of the parameters")


def decayed(mask: Any, params: Any) -> Any:
    """Which leaves a mask decays: a rate of -1 on zero gradients leaves weight_decay x."""
    tx = lift("sgd", plain(), Descent(-1.0, 1.0, mask))
    u, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    return jax.tree.map(lambda u: bool(jnp.all(u != 0)), u)


NESTED = {"x": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}, "y": [jnp.ones(3), jnp.ones(1)]}


@pytest.mark.parametrize(
    ("mask", "x_w", "x_b", "y"),
    [
        (None, True, True, [True, True]),
        (True, True, True, [True, True]),
        (False, False, False, [False, False]),
        ({"x": False, "y": True}, False, False, [True, True]),
        ({"x": {"w": True, "b": False}, "y": [False, True]}, True, False, [False, True]),
        ({"x": {"w": np.bool_(True), "b": np.bool_(False)}, "y": False}, True, False, [False, False]),
        (lambda params: jax.tree.map(lambda x: x.ndim > 1, params), True, False, [False, False]),
        (lambda params: {"x": True, "y": False}, True, True, [False, False]),
    ],
)
def test_masks(mask: Any, x_w: bool, x_b: bool, y: list[bool]) -> None:
    assert decayed(mask, NESTED) == {"x": {"w": x_w, "b": x_b}, "y": y}


def test_a_callable_module_is_a_mask_not_a_function() -> None:
    params = Module(jnp.ones(2), jnp.ones(1))
    assert decayed(Module(w=True, b=False), params) == Module(w=True, b=False)
    assert decayed(lambda p: Module(w=False, b=True), params) == Module(w=False, b=True)


@pytest.mark.parametrize("absent", "abc")
def test_a_mask_may_have_a_place_for_a_none_gradient(absent: str) -> None:
    mask = {"a": True, "b": False, "c": True}
    tx, params = lift("sgd", plain(), Descent(1.0, 1.0, mask)), dict.fromkeys(mask, jnp.ones(1))
    u, _ = tx.update({**dict.fromkeys(mask, jnp.zeros(1)), absent: None}, tx.init(params), params)
    assert {k: None if x is None else float(x[0]) for k, x in u.items()} == {"a": -1, "b": 0, "c": -1, absent: None}


@pytest.mark.parametrize("mask", [{"x": True}, {"x": True, "y": True, "z": True}, [True, False]])
def test_a_mask_of_another_shape_is_refused(mask: Any) -> None:
    with pytest.raises(ValueError, match="sgd: mask and parameters differ as trees"):
        decayed(mask, NESTED)


def test_numbers_and_numpy_arrays_are_leaves() -> None:
    tx = lift("sgd", plain(), Descent(0.5))
    params = {"w": np.ones(2, np.float32), "s": 1.0}
    u, _ = tx.update({"w": np.full(2, 3, np.float32), "s": 4.0}, tx.init(params), params)
    np.testing.assert_array_equal(u["w"], [-1.5, -1.5])
    assert float(u["s"]) == -2


def test_who_wants_to_know_is_told_which_rules_are_initialised() -> None:
    tx, seen = lift("told", plain()), []
    token = initialised.set(seen.append)
    try:
        tx.init(LEAVES)
    finally:
        initialised.reset(token)
    tx.init(LEAVES)
    assert seen == ["told"]


def test_what_a_rule_makes_weak_is_stored_strong() -> None:
    """A weakly typed slot or scalar would be another type in the next step, which would be traced again."""

    class Weak(NamedTuple):
        count: Any
        on: Any
        last: Any

    rule = Rule(
        State=Weak,
        step=lambda g, s, x, t: (g, s._replace(on=jnp.where(jnp.sum(g) > 0, 1.0, 0.0))),
        slots={"on": per_tensor(0)},
        scalars={"last": 0.0},
        advance=lambda s, totals, t: s._replace(last=jnp.where(t.t > 1, 1.0, 0.0)),
    )
    tx, x = lift("weak", rule), {"w": jnp.ones(2)}
    _, state = tx.update(x, tx.init(x), x)
    assert [leaf.weak_type for leaf in jax.tree.leaves(state)] == [False] * 3


@pytest.mark.parametrize("other", [np.ones(3, np.float32), 0.5, jnp.ones(3)], ids=["numpy", "number", "jax"])
def test_an_abstract_init_of_a_mixed_tree(other: Any) -> None:
    state = adaptx.adam(0.1).init({"a": jax.ShapeDtypeStruct((2,), jnp.float32), "b": other})
    assert state.mu["b"].shape == np.shape(other)
    traced = jax.eval_shape(
        lambda x: adaptx.adam(0.1).init({"a": jax.ShapeDtypeStruct((2,), jnp.float32), "b": x}).nu, other
    )
    assert traced["b"].shape == np.shape(other)
