"""The references: complete, short, independent, and right where the answer is known in closed form."""

from __future__ import annotations

import ast
import inspect
import re
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import optax
import pytest

from adaptx.registry import GLOSSARY, OPTIMIZERS
from tests.conformance.cases import CASES, Case, grads_like, params_like
from tests.conftest import x64
from tests.equations import first_steps
from tests.equations.first_steps import FIRST_STEPS
from tests.equations.references import FAMILIES, OVER_TREE, REFERENCES, replay


def test_every_optimizer_has_a_reference() -> None:
    assert set(REFERENCES) == set(OPTIMIZERS)
    assert set(FIRST_STEPS) <= set(REFERENCES)
    assert set(OVER_TREE) <= set(REFERENCES)


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_is_short_enough_to_check_by_eye(name: str) -> None:
    function = ast.parse(inspect.getsource(REFERENCES[name])).body[0]
    assert isinstance(function, ast.FunctionDef)
    body = function.body[1:]  # without the docstring
    assert body[-1].end_lineno - body[0].lineno < 20  # pyright: ignore  (ast leaves end_lineno optional)
    assert ast.get_docstring(function), "the docstring names the paper"


@pytest.mark.parametrize("module", [*FAMILIES, first_steps], ids=lambda module: module.__name__)
def test_references_do_not_know_the_library(module: Any) -> None:
    assert not {"adaptx", "optax", "jnp"} & {*re.findall(r"\w+", inspect.getsource(module))}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_cases_move_every_argument(name: str) -> None:
    entry = OPTIMIZERS[name]
    for argument, parameter in inspect.signature(entry.factory).parameters.items():
        default = parameter.default
        moved = [case[argument] for case in entry.cases if argument in case and case[argument] != default]
        free = default is parameter.empty or GLOSSARY[argument].storage  # how it is stored is law C6
        assert moved or free, f"no case of {name} moves {argument} off {default}"


@pytest.mark.parametrize("case", [c for c in CASES if c.entry.name in FIRST_STEPS], ids=lambda case: case.id)
def test_first_step_is_the_closed_form(case: Case) -> None:
    rng = np.random.default_rng(5)
    g, x = rng.normal(size=4), rng.normal(size=4)
    defaults = {name: p.default for name, p in inspect.signature(case.entry.factory).parameters.items()}
    expected = FIRST_STEPS[case.entry.name](g, x, SimpleNamespace(**{**defaults, **case.kwargs}))
    ours = replay(case.entry.name, {"x": x}, [{"x": g}], case.kwargs)[0][0]["x"]
    np.testing.assert_allclose(ours, expected, rtol=1e-13, atol=0)


MASKED = [c for c in CASES if c.kwargs.get("mask") is not None]


@pytest.mark.suite
@pytest.mark.parametrize("mask", [{"b": False, "s": True, "w": True}, lambda x: jax.tree.map(lambda a: a.ndim > 1, x)])
@pytest.mark.parametrize("case", MASKED, ids=lambda case: case.id)
def test_masked_decay(case: Case, mask: Any) -> None:
    """A mask by leaf, as a tree and as a function: the reference decays those leaves only."""
    with x64():
        params, grads = params_like("float64"), grads_like(2, "float64")
        tx = case.tx(mask=mask)
        x, state = params, tx.init(params)
        ours = []
        for t in range(2):
            u, state = tx.update(jax.tree.map(lambda g, t=t: g[t], grads), state, x)
            x = optax.apply_updates(x, u)
            ours.append(u)
    at = lambda t: jax.tree.map(lambda g: np.asarray(g)[t], grads)
    theirs = replay(case.entry.name, params, [at(0), at(1)], {**case.kwargs, "mask": mask})
    for u, (expected, _) in zip(ours, theirs, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-16), u, expected)
