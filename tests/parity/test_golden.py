"""Presets and their documented equations against what the frameworks gave, without the frameworks."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
from typing import Any

import numpy as np
import pytest

from adaptx import presets
from adaptx.presets.words import FRAMEWORKS
from tests.conformance.laws.l_documentation import START, STEP, WORDS, equations
from tests.conftest import x64
from tests.parity import ours
from tests.parity.problem import (
    GOLDEN,
    KEPT,
    SHAPES,
    STEPS,
    Setting,
    deviation,
    drawn,
    flat,
    rate_name,
    schedule,
    stored,
)
from tests.parity.settings import METHODS, settings

PROBLEM = stored()
START_AT = flat(PROBLEM.params)
PAIRS = [(framework, method) for framework, methods in METHODS.items() for method in methods]
each_preset = pytest.mark.parametrize(("framework", "method"), PAIRS, ids=[f"{f}-{m}" for f, m in PAIRS])


@dataclasses.dataclass
class Golden:
    """One file: the settings and the framework's parameters at the steps that are kept."""

    settings: list[Setting]
    params: np.ndarray
    version: str


@functools.cache
def golden(framework: str, method: str) -> Golden:
    with np.load(GOLDEN / f"{framework}-{method}.npz") as file:
        about = json.loads(str(file["about"]))
        return Golden([Setting(**s) for s in about["settings"]], file["params"], about["version"])


def worst(framework: str, method: str, paths: list[np.ndarray]) -> str:
    """The settings in which trajectories are off, with their deviations; "" if in none."""
    found, at = golden(framework, method), [t - 1 for t in KEPT]
    off = [deviation(p[at], theirs, KEPT, START_AT) for p, theirs in zip(paths, found.params, strict=True)]
    return "; ".join(f"{d:.1e} {s}" for d, s in zip(off, found.settings, strict=True) if not d <= 1e-12)


@pytest.mark.suite
@each_preset
def test_the_preset_gives_the_frameworks_trajectory(framework: str, method: str) -> None:
    with x64():
        paths = ours.trajectories(framework, method, golden(framework, method).settings, PROBLEM)
    assert worst(framework, method, paths) == ""


@each_preset
def test_the_documented_equations_give_the_frameworks_trajectory(framework: str, method: str) -> None:
    """The docstring's blocks, run as they stand by NumPy, one array at a time."""
    found = golden(framework, method)
    paths = [_documented(framework, method, setting) for setting in found.settings]
    assert worst(framework, method, paths) == ""


def _documented(framework: str, method: str, setting: Setting) -> np.ndarray:
    factory, rate = ours.preset(framework, method), rate_name(framework)
    doc, parameters = factory.__doc__ or "", inspect.signature(factory).parameters
    clips = {k: setting.kwargs.get(k) for k in ("clipnorm", "clipvalue", "global_clipnorm")}
    values = {**{name: p.default for name, p in parameters.items()}, **setting.kwargs}
    unset = {k for k, v in values.items() if v is None and k != rate and k != "clipping_threshold"}
    values |= dict.fromkeys(unset, 0.0)
    if method == "adafactor" and framework == "torch" and values["eps"][0] is None:
        values["eps"] = (np.finfo(float).eps, values["eps"][1])
    start, step = equations(doc, START), equations(doc, STEP)
    names = {k: {**WORDS, "min": min, **values, "x": PROBLEM.params[k].copy()} for k in SHAPES}
    for k in SHAPES:
        exec(start, names[k])
    path = []
    for t in range(1, STEPS + 1):
        grads = clipped({k: PROBLEM.grads[k][t - 1] for k in SHAPES}, **clips)
        now = {} if setting.slowing is None else {rate: schedule(values[rate], setting.slowing)(t - 1)}
        for k in SHAPES:
            names[k] |= {"t": t, "g": grads[k], **now}
            exec(step, names[k])
        path.append(flat({k: names[k]["x"] for k in SHAPES}))
    return np.stack(path)


def clipped(grads: dict[str, Any], clipnorm: Any, clipvalue: Any, global_clipnorm: Any) -> dict[str, Any]:
    """What Keras's clipping arguments say."""
    if clipvalue is not None:
        return {k: np.clip(g, -clipvalue, clipvalue) for k, g in grads.items()}
    if clipnorm is not None:
        return {k: g * clipnorm / max(np.sqrt(np.sum(g * g)), clipnorm) for k, g in grads.items()}
    if global_clipnorm is not None:
        size = np.sqrt(sum(np.sum(g * g) for g in grads.values()))
        return {k: g * global_clipnorm / max(size, global_clipnorm) for k, g in grads.items()}
    return grads


@each_preset
def test_the_documented_equations_use_every_argument(framework: str, method: str) -> None:
    factory = ours.preset(framework, method)
    blocks = "\n".join(equations(factory.__doc__ or "", heading) for heading in (START, STEP))
    elsewhere = {"mask", "weight_decay_mask", "clipnorm", "clipvalue", "global_clipnorm"}
    named = set(compile(blocks, method, "exec").co_names)
    assert [a for a in inspect.signature(factory).parameters if a not in named | elsewhere] == []


@each_preset
def test_the_golden_settings_are_the_ones_compared(framework: str, method: str) -> None:
    found = golden(framework, method)
    assert json.dumps([s._asdict() for s in found.settings]) == json.dumps(
        [s._asdict() for s in settings(framework, method)]
    )
    assert found.params.shape == (len(found.settings), len(KEPT), START_AT.size)


@each_preset
def test_every_argument_is_moved_by_some_setting(framework: str, method: str) -> None:
    parameters = inspect.signature(ours.preset(framework, method)).parameters
    moved = {a for s in golden(framework, method).settings for a, v in s.kwargs.items() if v != parameters[a].default}
    # Masks are trees; Optax gives NaN up to decay_offset; clipping is one code for all of Keras.
    elsewhere = {"mask", "weight_decay_mask", "decay_offset", "clipnorm", "clipvalue", "global_clipnorm"}
    assert [a for a in parameters if a not in moved | elsewhere] == []


def test_every_preset_has_a_golden_file_and_every_file_a_preset() -> None:
    public = {(f, m) for f in FRAMEWORKS for m in getattr(presets, f).__all__}
    assert public == set(PAIRS)
    assert {f"{f}-{m}" for f, m in PAIRS} | {"problem"} == {path.stem for path in GOLDEN.iterdir()}


def test_golden_files_are_small_and_of_one_release() -> None:
    assert sum(path.stat().st_size for path in GOLDEN.iterdir()) < 400_000
    assert {f: {golden(f, m).version for m in METHODS[f]} for f in METHODS} == {
        "torch": {"2.13.0"},
        "keras": {"3.15.1"},
        "optax": {"0.2.8"},
    }


def test_the_problem_is_of_mixed_scale() -> None:
    sizes = np.abs(PROBLEM.grads["w"])
    assert sizes.max() / sizes.min() > 1e6
    assert (PROBLEM.grads["b"][:3, 1] == 0).all()
    assert np.abs(PROBLEM.grads["b"][:, 2]).max() < np.finfo(float).eps  # torch's Adafactor has that as its floor
    assert {k: x.shape for k, x in PROBLEM.params.items()} == SHAPES
    assert {k: g.shape for k, g in drawn().grads.items()} == {k: (STEPS, *shape) for k, shape in SHAPES.items()}


@pytest.mark.parametrize("wrong", [1 + 1e-10, 1 - 1e-10, np.nan])
def test_a_small_error_is_seen(wrong: float) -> None:
    theirs = golden("torch", "adam").params[0]
    off = START_AT + (theirs - START_AT) * wrong
    assert not deviation(off, theirs, KEPT, START_AT) <= 1e-12
