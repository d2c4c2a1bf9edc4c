"""One compiled program for each case and dtype serves every law that runs many steps."""

from __future__ import annotations

import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tests.conformance.cases import Case, grads_like, params_like

RECORDED = 12


class Run(NamedTuple):
    """The end of a run; `updates` and `iterates` hold its last RECORDED steps, oldest first when steps = RECORDED."""

    params: Any
    state: Any
    updates: Any
    iterates: Any  # the parameters before each recorded step


def _loop(tx: Any, params: Any, state: Any, grads: Any, steps: Any, held: Any) -> Run:
    def body(i: Any, carry: Run) -> Run:
        slot = i % RECORDED
        g = jax.tree.map(lambda a: a[slot], grads)
        updates, state = tx.update(g, carry.state, carry.params)
        moved = optax.apply_updates(carry.params, updates)
        return Run(
            jax.tree.map(lambda old, new: jnp.where(held, old, new), carry.params, moved),
            state,
            jax.tree.map(lambda all, u: all.at[slot].set(u), carry.updates, updates),
            jax.tree.map(lambda all, x: all.at[slot].set(x), carry.iterates, carry.params),
        )

    first = jax.eval_shape(lambda g, s, p: tx.update(g, s, p)[0], jax.tree.map(lambda a: a[0], grads), state, params)
    blank = lambda like: jax.tree.map(lambda a: jnp.zeros((RECORDED, *a.shape), a.dtype), like)
    return jax.lax.fori_loop(0, steps, body, Run(params, state, blank(first), blank(params)))


@functools.cache
def _program(case: Case, dtypes: tuple[str, ...], x64: bool) -> Any:
    del dtypes, x64  # part of the key: the structure that the program is compiled for
    tx = case.tx()
    return tx, jax.jit(functools.partial(_loop, tx))


@functools.cache
def _traced_program(case: Case, names: tuple[str, ...]) -> Any:
    def run(numbers: dict[str, Any], slope: Any, count: Any, params: Any, grads: Any, steps: Any, held: Any) -> Run:
        rate = numbers["learning_rate"]
        tx = case.tx(**{**numbers, "learning_rate": lambda t: rate / (1 + slope * t)})
        return _loop(tx, params, tx.init(params)._replace(count=count), grads, steps, held)

    return jax.jit(run)


@functools.cache
def transformation(case: Case) -> Any:
    """One object for the laws that call `update` eagerly, so that its leaves are compiled once."""
    return case.tx()


def run(case: Case, params: Any, grads: Any, steps: int = RECORDED, *, state: Any = None, held: bool = False) -> Run:
    """`steps` updates from `state` (a fresh one by default); grads holds RECORDED gradients, used in turn.

    `held` keeps the parameters where they are.
    """
    dtypes = tuple(str(leaf.dtype) + str(leaf.shape) for leaf in jax.tree.leaves((params, grads)))
    tx, program = _program(case, dtypes, bool(jax.config.read("jax_enable_x64")))
    return program(params, tx.init(params) if state is None else state, grads, jnp.int32(steps), jnp.bool_(held))


TRACED = ("learning_rate", "weight_decay", "eps", "eps_root", "initial_accumulator")


def run_traced(
    case: Case,
    params: Any,
    grads: Any,
    steps: int = RECORDED,
    *,
    slope: float = 0.0,
    count: int = 0,
    held: bool = False,
    **numbers: Any,
) -> Run:
    """`run` with the arguments of TRACED as traced numbers: one compilation for all their values.

    What is not given is as in the case, or 0. The rate is a schedule, learning_rate / (1 + slope * count).
    """
    signature = inspect.signature(case.entry.factory).parameters
    names = tuple(name for name in TRACED if name in signature)
    default = {name: case.kwargs.get(name, signature[name].default) for name in names}
    values = {name: jnp.float32(numbers.get(name, default[name]) or 0.0) for name in names}
    program = _traced_program(case, names)
    return program(values, jnp.float32(slope), jnp.int32(count), params, grads, jnp.int32(steps), jnp.bool_(held))


def numbers(case: Case) -> dict[str, float]:
    """Every argument that is a number in this case, given or by default; an int would shape the program."""
    default = {name: p.default for name, p in inspect.signature(case.entry.factory).parameters.items()}
    return {name: value for name, value in {**default, **case.kwargs}.items() if isinstance(value, float)}


@functools.cache
def jitted(case: Case) -> tuple[Any, list[None]]:
    """The compiled `update(grads, state, params)`, and a list that grows by one each time it is traced."""
    tx, traces = transformation(case), []

    def update(grads: Any, state: Any, params: Any) -> Any:
        traces.append(None)
        return tx.update(grads, state, params)

    return jax.jit(update), traces


@functools.cache
def looped(case: Case) -> list[tuple[Any, Any, Any]]:
    """A Python loop over the compiled update, from a fresh state: updates, state and parameters after each step."""
    params, grads = params_like(), grads_like(RECORDED)
    state, trajectory = transformation(case).init(params), []
    for i in range(RECORDED):
        updates, state = jitted(case)[0](jax.tree.map(lambda a, i=i: a[i], grads), state, params)
        params = optax.apply_updates(params, updates)
        trajectory.append((updates, state, params))
    return trajectory
