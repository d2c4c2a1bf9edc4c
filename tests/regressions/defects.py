"""Defects of other libraries, small enough to plant: each takes a sound case and returns a faulty one."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tests.conformance.cases import Case

Update = Callable[..., tuple[Any, Any]]


class Naive(NamedTuple):
    """Two slots in the gradient's dtype."""

    count: Any
    mu: Any
    nu: Any


def naive(step: Callable[..., tuple[Any, Any, Any]]) -> Callable[[Case], Case]:
    """A method written on its own, all in the gradient's dtype: step(g, m, v) -> (u, m, v)."""

    def init(params: Any) -> Naive:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return Naive(jnp.zeros([], jnp.int32), zeros, zeros)

    def update(updates: Any, state: Naive, params: Any = None) -> tuple[Any, Naive]:
        del params
        leaves, treedef = jax.tree.flatten(updates)
        slots = zip(leaves, treedef.flatten_up_to(state.mu), treedef.flatten_up_to(state.nu), strict=True)
        cast = lambda a, g: a.astype(g.dtype)
        results = [[cast(a, g) for a in step(g, m, v)] for g, m, v in slots]
        u, mu, nu = (treedef.unflatten(column) for column in zip(*results, strict=True))
        return u, Naive(state.count + 1, mu, nu)

    tx = optax.GradientTransformationExtraArgs(init, update)
    return lambda case: dataclasses.replace(case, factory=lambda **_: tx)


def around(
    change: Callable[..., tuple[Any, Any]], *, first: Callable[..., Any] | None = None
) -> Callable[[Case], Case]:
    """A wrapper of `update`: change(tx, grads, state, params) -> (updates, state); and perhaps of `init`."""

    def wrap(tx: Any) -> Any:
        init = tx.init if first is None else functools.partial(first, tx)
        return optax.GradientTransformationExtraArgs(init, lambda g, s, p=None: change(tx, g, s, p))

    return lambda case: case.broken(wrap)


def arguments(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Case], Case]:
    """A factory that does something to its arguments."""

    def plant(case: Case) -> Case:
        factory = functools.wraps(case.factory)(lambda **kwargs: case.factory(**change(kwargs)))
        return dataclasses.replace(case, factory=factory)

    return plant


def outgoing(change: Callable[[Any], Any]) -> Callable[[Case], Case]:
    """Something that happens to every update on its way out."""

    def update(tx: Any, g: Any, s: Any, p: Any) -> tuple[Any, Any]:
        u, s = tx.update(g, s, p)
        return jax.tree.map(change, u), s

    return around(update)


def incoming(change: Callable[[Any], Any]) -> Callable[[Case], Case]:
    """Something that happens to the tree of gradients on its way in."""
    return around(lambda tx, g, s, p: tx.update(change(g), s, p))


# In the gradient's dtype


def _over_root(power: float, eps: float) -> Callable[[Case], Case]:
    """g / (sqrt(v) + eps) with v a sum (power 1) or an average."""

    def step(g: Any, m: Any, v: Any) -> tuple[Any, Any, Any]:
        v = v * power + (1 - power or 1) * g * g
        return -0.01 * g / (jnp.sqrt(v).astype(g.dtype) + jnp.asarray(eps, g.dtype)), m, v

    return naive(step)


rmsprop_in_float16 = _over_root(0.9, 1e-8)
adagrad_in_float16 = _over_root(1.0, 1e-10)


@naive
def adamax_in_float16(g: Any, m: Any, v: Any) -> tuple[Any, Any, Any]:
    m, v = 0.9 * m + 0.1 * g, jnp.maximum(0.999 * v, jnp.abs(g) + jnp.asarray(1e-8, g.dtype))
    return -0.002 * m / v.astype(g.dtype), m, v


@naive
def adan_in_float16(g: Any, m: Any, v: Any) -> tuple[Any, Any, Any]:
    """m is the gradient before."""
    ahead = g + jnp.asarray(0.92, g.dtype) * (g - m)
    v = 0.99 * v + 0.01 * ahead * ahead
    return -0.001 * ahead / (jnp.sqrt(v).astype(g.dtype) + jnp.asarray(1e-8, g.dtype)), g, v


@naive
def novograd_in_float16(g: Any, m: Any, v: Any) -> tuple[Any, Any, Any]:
    """The gradient over its norm in the tensor."""
    v = 0.98 * v + 0.02 * jnp.sum(g * g)
    m = 0.95 * m + g / (jnp.sqrt(v).astype(g.dtype) + jnp.asarray(1e-8, g.dtype))
    return -0.01 * m, m, v


@naive
def variance_below_zero(g: Any, m: Any, v: Any) -> tuple[Any, Any, Any]:
    """Centered RMSprop that trusts v - m^2 to be positive."""
    g = jnp.clip(g, -1e4, 1e4)
    m, v = 0.9 * m + 0.1 * g, 0.9 * v + 0.1 * g * g
    return -0.01 * g / (jnp.sqrt(v - m * m) + 1e-8), m, v


@naive
def complex_square(g: Any, m: Any, v: Any) -> tuple[Any, Any, Any]:
    """g * g where |g|^2 is meant."""
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    return -0.001 * m / (jnp.sqrt(v) + 1e-8), m, v


@incoming
def clip_by_global_norm(grads: Any) -> Any:
    """The norm in the gradients' dtype: Inf, and all that is divided by it is 0."""
    square = sum(jnp.sum(g * g) for g in jax.tree.leaves(grads))
    return jax.tree.map(lambda g: (g * jnp.minimum(1, 1 / jnp.sqrt(square))).astype(g.dtype), grads)


@around
def divides_by_the_gradients(tx: Any, g: Any, s: Any, p: Any) -> tuple[Any, Any]:
    """An estimate of the distance over the norm of all gradients, which may be 0."""
    u, s = tx.update(g, s, p)
    size = sum(jnp.sum(jnp.abs(a).astype(jnp.float32)) for a in jax.tree.leaves(g))
    return jax.tree.map(lambda a: a * (size / size).astype(a.dtype), u), s


@incoming
def clips_what_has_no_order(grads: Any) -> Any:
    """A cut at two bounds, which complex numbers have not."""
    return jax.tree.map(lambda g: jnp.clip(g, -1e30, 1e30).astype(g.dtype), grads)


# One step late, one step early


def _with_previous(tx: Any, params: Any) -> Any:
    return tx.init(params), jax.tree.map(jnp.zeros_like, params)


def _previous(tx: Any, g: Any, s: Any, p: Any) -> tuple[Any, Any]:
    u, inner = tx.update(g, s[0], p)
    return s[1], (inner, u)


previous_update = around(_previous, first=_with_previous)


def _later(kwargs: dict[str, Any]) -> dict[str, Any]:
    rate = kwargs["learning_rate"]
    return {**kwargs, "learning_rate": (lambda count: rate(count + 1)) if callable(rate) else rate}


schedule_starts_at_one = arguments(_later)


@around
def count_wraps(tx: Any, g: Any, s: Any, p: Any) -> tuple[Any, Any]:
    """count + 1 in int32, under a root."""
    u, after = tx.update(g, s, p)
    return jax.tree.map(lambda a: a / jnp.sqrt((s.count + 1).astype(a.dtype)), u), after


@around
def product_not_kept(tx: Any, g: Any, s: Any, p: Any) -> tuple[Any, Any]:
    """NAdam's product of momenta starts again at each step."""
    return tx.update(g, s._replace(mu_bias=jnp.zeros_like(s.mu_bias)), p)


# Trees and dtypes


def _looks_into_every_leaf(tx: Any, look: Callable[[Any], Any], params: Any) -> Any:
    jax.tree.map(look, params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    return tx.init(params)


def _on_init(look: Callable[[Any], Any]) -> Callable[[Case], Case]:
    return lambda case: case.broken(
        lambda tx: optax.GradientTransformationExtraArgs(functools.partial(_looks_into_every_leaf, tx, look), tx.update)
    )


masked_node_is_an_array = _on_init(lambda x: x + 0)
leaf_has_a_dtype = _on_init(lambda x: None if isinstance(x, optax.MaskedNode) else jnp.zeros(x.shape, x.dtype))
has_an_axis = _on_init(lambda x: None if isinstance(x, optax.MaskedNode) else x.shape[0])
maximum_of_nothing = _on_init(lambda x: None if isinstance(x, optax.MaskedNode) else jnp.max(jnp.ravel(x)))


def _calls_every_mask(kwargs: dict[str, Any]) -> dict[str, Any]:
    mask = kwargs.get("mask")
    return {**kwargs, "mask": (lambda params: mask(params)) if callable(mask) else mask}


calls_every_mask = arguments(_calls_every_mask)

float32_rate = outgoing(lambda u: u.astype(jnp.float32) if u.dtype in (jnp.float16, jnp.bfloat16) else u)
default_float = outgoing(lambda u: u * jnp.ones([], float) if u.dtype == jnp.float32 else u)


def _default_int(tx: Any, params: Any) -> Any:
    return tx.init(params)._replace(count=jnp.zeros([], int))


def _counts_in_it(tx: Any, g: Any, s: Any, p: Any) -> Any:
    u, after = tx.update(g, s._replace(count=s.count.astype(jnp.int32)), p)
    return u, after._replace(count=after.count.astype(s.count.dtype))


counts_in_the_default_int = around(_counts_in_it, first=_default_int)


def _low_precision_passes(kwargs: dict[str, Any]) -> dict[str, Any]:
    low = lambda v: isinstance(v, jax.Array) and v.dtype == jnp.bfloat16
    return {name: v.astype(jnp.float32) if low(v) else v for name, v in kwargs.items()}


def bfloat16_decay_rates(case: Case) -> Case:
    """Rates are taken as they come, 1 included."""
    return arguments(_low_precision_passes)(dataclasses.replace(case, factory=inspect.unwrap(case.factory)))


def takes_no_other_arguments(case: Case) -> Case:
    return case.broken(lambda tx: optax.GradientTransformation(tx.init, lambda g, s, p=None: tx.update(g, s, p)))


# Equations


def amsgrad_after_correction(case: Case) -> Case:
    """The maximum of the bias-corrected second moments; torch and Keras, and so we, take the raw one."""

    def update(g: Any, s: Any, p: Any, *, lr: float) -> tuple[Any, Any]:
        del p
        t = (s.count + 1).astype(float)
        mu = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, s.mu, g)
        nu = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, s.nu, g)
        largest = jax.tree.map(lambda w, v: jnp.maximum(w, v / (1 - 0.999**t)), s.nu_max, nu)
        u = jax.tree.map(lambda m, w: -lr * m / (1 - 0.9**t) / (jnp.sqrt(w) + 1e-8), mu, largest)
        return u, s._replace(count=s.count + 1, mu=mu, nu=nu, nu_max=largest)

    def factory(**kwargs: Any) -> Any:
        step = functools.partial(update, lr=kwargs["learning_rate"])
        return optax.GradientTransformationExtraArgs(case.factory(**kwargs).init, lambda g, s, p=None: step(g, s, p))

    return dataclasses.replace(case, factory=factory)


def eps_hat(case: Case) -> Case:
    """eps added to the root of the uncorrected second moment: eps / sqrt(1 - b2^t) of it arrives."""

    def factory(**kwargs: Any) -> Any:
        def update(g: Any, s: Any, p: Any = None) -> tuple[Any, Any]:
            eps = kwargs["eps"] / jnp.sqrt(1 - kwargs["b2"] ** (s.count + 1).astype(float))
            return case.factory(**{**kwargs, "eps": eps}).update(g, s, p)

        return optax.GradientTransformationExtraArgs(case.factory(**kwargs).init, update)

    return dataclasses.replace(case, factory=factory)


swapped_arguments = arguments(lambda kwargs: {**kwargs, "eps_root": kwargs["eps"], "eps": kwargs["eps_root"]})
decays_by_default = arguments(lambda kwargs: {"weight_decay": 1e-2, **kwargs})
ascends = outgoing(lambda u: -u)


def divides_by_the_rate(case: Case) -> Case:
    """The update over the rate and times the rate again: NaN at a rate of 0."""

    def factory(**kwargs: Any) -> Any:
        tx = case.factory(**kwargs)

        def update(g: Any, s: Any, p: Any = None) -> tuple[Any, Any]:
            u, after = tx.update(g, s, p)
            rate = kwargs["learning_rate"]
            rate = rate(s.count) if callable(rate) else rate
            return jax.tree.map(lambda a: a / rate * rate, u), after

        return optax.GradientTransformationExtraArgs(tx.init, update)

    return dataclasses.replace(case, factory=factory)


def _from_zero(tx: Any, params: Any) -> Any:
    state = tx.init(params)
    return state._replace(initial_params=jax.tree.map(jnp.zeros_like, state.initial_params))


starts_at_zero = around(lambda tx, g, s, p: tx.update(g, s, p), first=_from_zero)
never_clips = arguments(lambda kwargs: {**kwargs, "clipping_threshold": None})
has_no_rate = arguments(lambda kwargs: {**kwargs, "learning_rate": 1.0})


@around
def sign_of_the_new_momentum(tx: Any, g: Any, s: Any, p: Any) -> tuple[Any, Any]:
    """Lion: the sign is taken after the momentum has moved."""
    u, after = tx.update(g, s, p)
    return jax.tree.map(lambda a, m: -jnp.abs(a) * jnp.sign(m), u, after.mu), after


@around
def divides_by_the_new_moment(tx: Any, g: Any, s: Any, p: Any) -> tuple[Any, Any]:
    """ADOPT: the gradient is divided by a second moment that it is already part of."""
    nu = jax.tree.map(lambda v, g: 0.9999 * v + 0.0001 * g * g, s.nu, g)
    return tx.update(g, s._replace(nu=nu), p)


@around
def one_correction_missing(tx: Any, g: Any, s: Any, p: Any) -> tuple[Any, Any]:
    """The second moment without its bias correction."""
    u, after = tx.update(g, s, p)
    return jax.tree.map(lambda a: a / jnp.sqrt(1 - 0.999 ** after.count.astype(a.real.dtype)), u), after


@around
def power_of_a_negative(tx: Any, g: Any, s: Any, p: Any) -> tuple[Any, Any]:
    """Adafactor's decay from a step count that the offset makes negative: NaN, which the averages keep."""
    u, after = tx.update(g, s, p)
    decay = (after.count.astype(float) - 2.5) ** -0.7
    return u, after._replace(mu=jax.tree.map(lambda m: m + 0 * decay.astype(m.real.dtype), after.mu))
