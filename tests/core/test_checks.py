"""Every message of the checks, word for word; `bare` has no state, so that only the parameters can tell."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptx
from adaptx.core.checks import shown
from adaptx.core.descent import Descent
from adaptx.core.lift import lift
from adaptx.core.rule import Rule, zeros


class Bare(NamedTuple):
    count: Any


class Full(NamedTuple):
    count: Any
    mu: Any


class Keyed(NamedTuple):
    count: Any
    key: Any


class Pair(NamedTuple):
    w: Any = None
    wb: Any = None


STEP = lambda g, s, x, t: (g, s)
BARE = lift("bare", Rule(State=Bare, step=STEP, slots={}))
FULL = lift("full", Rule(State=Full, step=STEP, slots={"mu": zeros}))
KEYED = lift("keyed", Rule(State=Keyed, step=STEP, slots={}, scalars={"key": jax.random.key(0)}))
PAIRED = lift("paired", Rule(State=Full, step=STEP, slots={"mu": lambda x: (zeros(x), zeros(x))}))
X = {"b": jnp.ones(2), "w": jnp.ones((3, 2))}


def _update(tx: Any, grads: Any, params: Any = None, like: Any = X) -> Any:
    return tx.update(grads, tx.init(like), params)


def _masked(mask: Any) -> Any:
    tx = lift("sgd", Rule(State=Bare, step=STEP, slots={}), Descent(1.0, 1.0, mask))
    return tx.update(X, tx.init(X), X)


NO_MASK = "sgd: mask must be a tree of bools, known when the step is compiled and a prefix of the parameters', not "

# case -> the call, the kind of error, the whole message
MESSAGES: dict[str, tuple[Any, type[Exception], str]] = {
    "an integer parameter": (
        lambda: BARE.init({**X, "ids": jnp.arange(2)}),
        TypeError,
        "bare: the parameter at ['ids'] is int32; it must be floating or complex, "
        "of 16 bits or more (leave other leaves out with optax.masked or None)",
    ),
    "an integer gradient, behind a None": (
        lambda: _update(BARE, {"a": None, "w": jnp.arange(6).reshape(3, 2)}),
        TypeError,
        "bare: the gradient at ['w'] is int32; it must be floating or complex, "
        "of 16 bits or more (leave other leaves out with optax.masked or None)",
    ),
    "a shape, against the parameters": (
        lambda: _update(BARE, {**X, "w": jnp.ones((2, 3))}, X),
        ValueError,
        "bare: the gradient at ['w'] must be like float32[3, 2], got float32[2, 3]",
    ),
    "a shape, against the state": (
        lambda: _update(FULL, {**X, "w": jnp.ones((1, 2))}),
        ValueError,
        "full: the `mu` of the gradient at ['w'] must be like float32[1, 2], got float32[3, 2]",
    ),
    "a complex gradient of a real parameter": (
        lambda: _update(BARE, {**X, "w": X["w"] + 1j}, X),
        TypeError,
        "bare: the gradient at ['w'] must be like float32[3, 2], got complex64[3, 2]",
    ),
    "a gradient where the parameter is None": (
        lambda: _update(BARE, X, {**X, "b": None}),
        ValueError,
        "bare: the parameter at ['b'] must be like float32[2], got None",
    ),
    "a gradient too many": (
        lambda: _update(BARE, {**X, "extra": X["b"]}, X),
        ValueError,
        "bare: gradients and parameters differ as trees: ['extra'] only in the gradients",
    ),
    "a gradient too few, against the state": (
        lambda: _update(FULL, {"b": X["b"]}),
        ValueError,
        "full: gradients and state fields `mu` differ as trees: ['w'] only in the state fields `mu`",
    ),
    "four leaves on each side": (
        lambda: _update(BARE, dict.fromkeys("abcd", X["b"]), dict.fromkeys("wxyz", X["b"])),
        ValueError,
        "bare: gradients and parameters differ as trees: ['a'], ['b'], ['c'] only in the gradients; "
        "['w'], ['x'], ['y'] only in the parameters",
    ),
    "a list for a tuple": (
        lambda: _update(BARE, [X["b"]], (X["b"],)),
        ValueError,
        "bare: gradients and parameters differ as trees: the containers differ",
    ),
    "a string for an array": (
        lambda: BARE.init({**X, "name": "adam"}),
        TypeError,
        "bare: the parameter at ['name'] is str; it must be floating or complex, "
        "of 16 bits or more (leave other leaves out with optax.masked or None)",
    ),
    "another's state": (
        lambda: FULL.update(X, BARE.init(X)),
        TypeError,
        "full: the state must be the Full that init gives, got Bare",
    ),
    "a state that would be lost": (
        lambda: lift("less", Rule(State=Full, step=STEP, slots={"mu": None})).update(X, FULL.init(X)),
        ValueError,
        "less: the state has mu, which these arguments do not keep",
    ),
    "a number of the tree that would be lost": (
        lambda: adaptx.prodigy().update(X, adaptx.prodigy(growth_rate=2.0).init(X), X),
        ValueError,
        "prodigy: the state has largest, which these arguments do not keep",
    ),
    "a slot that is not there": (
        lambda: adaptx.adam(0.1, amsgrad=True).update(X, adaptx.adam(0.1).init(X)),
        ValueError,
        "adam: the state has no nu_max, which these arguments need",
    ),
    "a mask with a leaf too many": (
        lambda: _masked({"b": True, "w": True, "extra": True}),
        ValueError,
        "sgd: mask and parameters differ as trees: ['extra'] only in the mask",
    ),
    "a mask with a leaf too few": (
        lambda: _masked({"b": True}),
        ValueError,
        "sgd: mask and parameters differ as trees: ['w'] only in the parameters",
    ),
    "a mask function without return": (
        lambda: _masked(lambda params: None),
        ValueError,
        NO_MASK + "None at ['b'], None at ['w']",
    ),
    "a mask with a None": (
        lambda: _masked({"b": True, "w": None}),
        ValueError,
        NO_MASK + "None at ['w']",
    ),
    "a mask of arrays": (
        lambda: _masked(X),
        ValueError,
        NO_MASK + "float32[2] at ['b'], float32[3, 2] at ['w']",
    ),
    "a traced mask": (
        lambda: jax.jit(lambda on: _masked({"b": on, "w": True}))(True),
        ValueError,
        NO_MASK + "bool[] at ['b']",
    ),
    "a mask that begins like another leaf": (
        lambda: lift("sgd", Rule(State=Bare, step=STEP, slots={}), Descent(1.0, 1.0, Pair(w=True))).update(
            Pair(jnp.ones(1), jnp.ones(1)), BARE.init({}), Pair(jnp.ones(1), jnp.ones(1))
        ),
        ValueError,
        NO_MASK + "None at .wb",
    ),
    "a count that is no number": (
        lambda: FULL.update(X, FULL.init(X)._replace(count=jnp.array([0, 9]))),
        ValueError,
        "full: the state's `count` must be like int32[], got int32[2]",
    ),
    "a count that is a float": (
        lambda: FULL.update(X, FULL.init(X)._replace(count=jnp.float32(3))),
        TypeError,
        "full: the state's `count` must be like int32[], got Array(3., dtype=float32)",
    ),
    "a count that is missing": (
        lambda: FULL.update(X, FULL.init(X)._replace(count=None)),
        ValueError,
        "full: the state's `count` must be like int32[], got None",
    ),
    "a scalar that is an array": (
        lambda: adaptx.nadam(0.1).update(X, adaptx.nadam(0.1).init(X)._replace(mu_bias=jnp.ones(2))),
        ValueError,
        "nadam: the state's `mu_bias` must be like float32[], got float32[2]",
    ),
    "the state of the other kind": (
        lambda: adaptx.adagrad_norm(0.1, per="tree").update(X, adaptx.adagrad_norm(0.1).init(X)),
        ValueError,
        "adagrad_norm: the state's `nu` must be like float32[], got "
        "{'b': Array(0., dtype=float32), 'w': Array(0., dtype=float32)}",
    ),
    "a scalar restored as a Python number": (
        lambda: adaptx.nadam(0.1).update(X, adaptx.nadam(0.1).init(X)._replace(mu_bias=1.0)),
        TypeError,
        "nadam: the state's `mu_bias` must be like float32[], got 1.0",
    ),
    "a scalar of another kind": (
        lambda: adaptx.nadam(0.1).update(X, adaptx.nadam(0.1).init(X)._replace(mu_bias=jnp.int32(1))),
        TypeError,
        "nadam: the state's `mu_bias` must be like float32[], got Array(1, dtype=int32)",
    ),
    "a key restored as its data": (
        lambda: KEYED.update(X, KEYED.init(X)._replace(key=np.zeros(2, np.uint32))),
        ValueError,
        "keyed: the state's `key` must be like key<fry>[], got uint32[2]",
    ),
    "an array of a dtype that does not fit, inside a tuple": (
        lambda: PAIRED.update(X, PAIRED.init(X)._replace(mu={k: (x, x.astype(int)) for k, x in X.items()})),
        TypeError,
        "paired: the `mu` of the gradient at ['b'] must be like ('float32[2]', 'float32[2]'), "
        "got ('float32[2]', 'int32[2]')",
    ),
    "a number for a parameter that is a vector": (
        lambda: BARE.update(jnp.float32(7), BARE.init(jnp.ones(3)), jnp.float32(7)[None]),
        ValueError,
        "bare: the gradient at the root must be like float32[1], got Array(7., dtype=float32)",
    ),
    "a vector for a parameter that is a number": (
        lambda: BARE.update(jnp.ones(3), BARE.init(jnp.ones(3)), jnp.float32(7)),
        ValueError,
        "bare: the gradient at the root must be like float32[], got float32[3]",
    ),
    "a traced mask, given to a factory": (
        lambda: jax.jit(lambda on: adaptx.adamw(0.1, mask={"b": on, "w": True}).init(X).count)(True),
        ValueError,
        "adamw: mask must be a prefix tree of bools, known when the step is compiled, or a function giving one or "
        "None, got {'b': 'bool[]', 'w': True}",
    ),
    "complex gradients and a real state": (
        lambda: FULL.update({**X, "w": X["w"] + 1j}, FULL.init(X)),
        TypeError,
        "full: the `mu` of the gradient at ['w'] must be like complex64[3, 2], got float32[3, 2]",
    ),
    "a state of integers": (
        lambda: FULL.update(X, FULL.init(X)._replace(mu={**X, "b": jnp.arange(2)})),
        TypeError,
        "full: the `mu` of the gradient at ['b'] must be like float32[2], got int32[2]",
    ),
    "an integer parameter at the update": (
        lambda: BARE.update(X, BARE.init(X), {**X, "b": jnp.arange(2)}),
        TypeError,
        "bare: the parameter at ['b'] must be like float32[2], got int32[2]",
    ),
    "an array of words": (
        lambda: _update(BARE, {**X, "w": np.array(["a"])}),
        TypeError,
        "bare: the gradient at ['w'] is <U1; it must be floating or complex, "
        "of 16 bits or more (leave other leaves out with optax.masked or None)",
    ),
    "eight bits": (
        lambda: BARE.init({"w": jnp.ones(2, jnp.float8_e4m3fn)}),
        TypeError,
        "bare: the parameter at ['w'] is float8_e4m3fn; it must be floating or complex, "
        "of 16 bits or more (leave other leaves out with optax.masked or None)",
    ),
    "a leaf for the whole tree": (
        lambda: _update(BARE, jnp.ones(2), jnp.ones(3)),
        ValueError,
        "bare: the gradient at the root must be like float32[3], got float32[2]",
    ),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_message(case: str) -> None:
    call, kind, message = MESSAGES[case]
    with pytest.raises(kind) as refusal:
        call()
    assert type(refusal.value) is kind
    assert str(refusal.value) == message
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None  # one error, not two


def test_what_is_left_alone_is_not_checked() -> None:
    """Under a None gradient the parameter may be anything, of any dtype or a subtree."""
    grads = {"b": None, "w": X["w"]}
    for other in (jnp.arange(5), None, {"deeper": X["b"]}, X["b"] + 1j):
        updates, _ = BARE.update(grads, BARE.init(X), {**X, "b": other})
        assert updates["b"] is None


def test_a_mask_may_be_deeper_where_the_gradient_is_none() -> None:
    """It is a tree of the parameters, of which a None gradient leaves a whole part alone."""
    tx = adaptx.adamw(0.1, mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params))
    params = {"a": {"x": jnp.ones(2), "y": jnp.ones((2, 2))}, "b": jnp.ones((2, 2))}
    updates, _ = tx.update({"a": None, "b": jnp.ones((2, 2))}, tx.init(params), params)
    assert updates["a"] is None
    alone, _ = tx.update({"b": jnp.ones((2, 2))}, tx.init({"b": params["b"]}), {"b": params["b"]})
    np.testing.assert_array_equal(updates["b"], alone["b"])


def test_a_long_value_is_shown_briefly() -> None:
    assert len(shown([[0.1] * 500])) == 100
    assert shown({"w": jnp.ones((3, 3))}) == "{'w': 'float32[3, 3]'}"


def test_a_mask_of_the_parameters_may_say_nothing_of_what_is_none() -> None:
    """A mask made from parameters has None where they have None."""
    tx = adaptx.adamw(0.1, mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params))
    params = {"c": None, "w": jnp.ones((2, 2))}
    updates, _ = tx.update({"c": None, "w": jnp.ones((2, 2))}, tx.init(params), params)
    assert updates["c"] is None


@pytest.mark.parametrize("mask", [{"a": True, "w": True}, {"a": {}, "w": True}, True])
def test_a_mask_beside_an_empty_container(mask: Any) -> None:
    params = {"a": {}, "w": jnp.ones((2, 2))}
    tx = adaptx.adamw(0.1, mask=mask)
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["w"].shape == (2, 2)


@pytest.mark.parametrize("params", [([None], jnp.ones(2)), {"a": {"b": None, "c": [None, ()]}, "w": jnp.ones(2)}])
@pytest.mark.parametrize("masked", [True, False])
def test_containers_of_nothing_but_none_keep_the_order_of_the_leaves(params: Any, masked: bool) -> None:
    """The last leaf is the only one, whatever empty places stand before it."""
    tx = adaptx.adamw(0.1, weight_decay=0.5, mask=jax.tree.map(lambda x: masked, params))
    (u,) = jax.tree.leaves(tx.update(params, tx.init(params), params)[0])
    np.testing.assert_allclose(u, -0.1 * (1 + 0.5 * masked), rtol=1e-6)
