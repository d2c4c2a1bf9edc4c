"""Law L7: the documented formula is the code."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from typing import Any

import jax
import numpy as np

from adaptx.registry import GLOSSARY
from tests.conformance.cases import SHAPES, STACKED, Case, grads_like, params_like, with_a_trend
from tests.conformance.law import law, leaves_named
from tests.conformance.program import RECORDED, run
from tests.conftest import x64
from tests.equations.references.loop import hessian_of

START, STEP = "Start:", "Step t = 1, 2, ...:"


def power(G: np.ndarray, p: float) -> np.ndarray:
    """A power of a positive semi-definite matrix, within its range."""
    values, vectors = np.linalg.eigh(G)
    seen = values > 1e-14 * values[-1]
    return (vectors[:, seen] * values[seen] ** p) @ vectors[:, seen].conj().T


# What an equation may use beside the arguments and its own names.
WORDS = dict(
    sqrt=np.sqrt,
    maximum=np.maximum,
    minimum=np.minimum,
    abs=np.abs,
    sign=np.sign,
    sum=np.sum,
    clip=np.clip,
    where=np.where,
    mean=np.mean,
    exp=np.exp,
    log=np.log,
    arctan2=np.arctan2,
    outer=np.outer,
    power=power,
    norm=lambda a: np.sqrt(np.sum(np.abs(a) ** 2)),
    block_mean=lambda a, block_axis, blocks: _block_mean(a, block_axis, blocks),
)


def _block_mean(a: Any, axis: int | None, blocks: int | None) -> Any:
    """The mean over each of the equal parts of an axis (or each index), in every place of that part."""
    if axis is None or not a.ndim:
        return np.mean(a)
    length = a.shape[axis]
    width = 1 if blocks is None else -(-length // blocks)
    part = np.arange(length) // width
    same = (part == part[:, None]) / np.sum(part == part[:, None], axis=1)
    means = same @ np.moveaxis(a, axis, 0).reshape(length, -1).mean(axis=1)
    return means.reshape([-1 if i == axis % a.ndim else 1 for i in range(a.ndim)])


def equations(doc: str, heading: str) -> str:
    """The indented lines under a heading of a docstring."""
    found = re.search(rf"^{re.escape(heading)}\n((?:    .*\n)+)", doc, re.MULTILINE)
    assert found, f"no block `{heading}`"
    return inspect.cleandoc(found[1])


def _wrong_sign(case: Case) -> Case:
    """A docstring that ascends, over sound code."""

    @functools.wraps(case.factory)
    def factory(**kwargs: Any) -> Any:
        return case.factory(**kwargs)

    factory.__doc__ = (case.factory.__doc__ or "").replace("x = x - ", "x = x + ")
    return dataclasses.replace(case, factory=factory)


@law("L7", tier="C", plant=_wrong_sign)
def documented_formula_is_the_code(case: Case) -> None:
    """The docstring's equations, run as they stand in float64, give the library's steps; it lists every argument."""
    doc, parameters = case.factory.__doc__ or "", inspect.signature(case.entry.factory).parameters
    start, step = equations(doc, START), equations(doc, STEP)
    for name in parameters:
        assert re.search(rf"^    {name}: .", doc, re.MULTILINE), f"{case.id}: {name} is not listed in the docstring"
        in_formula = re.search(rf"\b{name}\b", start + "\n" + step)
        word = GLOSSARY[name]  # these are no part of the equations on one array
        where_or_what = word.choices or word.limit or word.storage or name == "mask"
        assert in_formula or where_or_what, f"{case.id}: {name} is in no equation"
    direction = case.entry.direction
    if direction is not None:
        assert (direction.__doc__ or "").strip(), f"{case.id}: the direction has no docstring"
        for name in inspect.signature(direction).parameters:
            assert re.search(rf"^    {name}: .", direction.__doc__ or "", re.MULTILINE), f"{case.id}: direction, {name}"

    values = {**{name: p.default for name, p in parameters.items()}, **case.kwargs}
    off = {name: 0.0 for name, value in values.items() if value is None and GLOSSARY[name].none == "off"}
    with x64():
        shapes = STACKED if case.flag("reduces") == "tensor" else SHAPES
        params = params_like("float64", shapes=shapes)
        grads = with_a_trend(case, grads_like(RECORDED, "float64", shapes=shapes))
        result = run(case, params, grads)
    join = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    at = lambda tree, i: jax.tree.map(lambda a: np.asarray(a)[i], tree)
    iterates = [*(at(result.iterates, i) for i in range(RECORDED)), jax.tree.map(np.asarray, result.params)]
    gs = [at(grads, i) for i in range(RECORDED)]
    if case.flag("reduces") == "tree":  # the equations then speak of all parameters as one vector
        iterates, gs = [join(x) for x in iterates], [join(g) for g in gs]

    for i, (path, _) in enumerate(leaves_named(iterates[0])):
        leaf = lambda tree, i=i: jax.tree.leaves(tree)[i]
        names = {**WORDS, **values, **off, "x": leaf(iterates[0])}
        try:
            exec(start, names)
            for t in range(1, RECORDED + 1):
                names |= {"t": t, "g": leaf(gs[t - 1]), "h": hessian_of(leaf(gs[t - 1]))}
                exec(step, names)
                error = np.max(np.abs(names["x"] - leaf(iterates[t])))
                # 1e-12 of the way travelled, as in A1, and the rounding of t additions to the parameter itself.
                way = np.max(np.abs(leaf(iterates[t]) - leaf(iterates[0])))
                rounding = t * np.finfo(float).eps * np.max(np.abs(leaf(iterates[t])))
                assert error <= 1e-12 * way + rounding, f"{case.id}{path}: at t = {t} the docs are off by {error:.3g}"
        except (NameError, SyntaxError, TypeError) as wrong:
            raise AssertionError(f"{case.id}: the docstring's equations do not run: {wrong}") from None
