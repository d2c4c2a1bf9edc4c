"""The dense benchmark's structural guard, which needs no timer: no optimizer moves or holds more than optax's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
import pytest

from adaptx.registry import OPTIMIZERS
from benchmarks import dense
from benchmarks.dense import PAIRS, TREES, Tree

SMALL = Tree(leaves=3, size=1 << 14, first_calls=1)
ROOT = Path(__file__).parents[2]


OLD_XLA = pytest.mark.xfail(
    jax.__version_info__ < (0, 8),
    reason="the XLA of jax 0.7 writes the clamped sum down; without the clamp the sum could become Inf",
    strict=True,
)


@pytest.mark.parametrize("name", [pytest.param(name, marks=OLD_XLA) if name == "prodigy" else name for name in PAIRS])
def test_no_more_bytes_temporaries_or_state_than_optax(name: str):
    ours, theirs = dense.structure(name, SMALL)
    assert dense.structural_misses(ours, theirs, SMALL) == [], f"ours {ours}, optax {theirs}"


def test_whatever_optax_has_too_is_measured():
    both = {name for name in OPTIMIZERS if hasattr(optax, name) or hasattr(optax.contrib, name)}
    assert both <= {pair.entry for pair in PAIRS.values()}


def test_the_slack_is_less_than_a_leaf():
    assert all(tree.slack < 4 * tree.size for tree in [*TREES.values(), SMALL])


# Planted defects: each is Adagrad with one thing too much -------------------------------------------------------


def an_extra_temporary(adagrad: optax.GradientTransformation) -> optax.GradientTransformation:
    """A clamp that XLA writes out, because a select with two large operands is not copied into both its consumers."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        clamped = jax.tree.map(lambda g: jnp.where(jnp.isinf(g), g, jnp.clip(g, -1e12, 1e12)), updates)
        scaled, state = adagrad.update(clamped, state, params)
        return scaled, state

    return optax.GradientTransformation(adagrad.init, update)


def an_extra_pass(adagrad: optax.GradientTransformation) -> optax.GradientTransformation:
    """A moving average that nothing needs."""
    return optax.chain(optax.ema(0.9), adagrad)


def a_copy(adagrad: optax.GradientTransformation) -> optax.GradientTransformation:
    """State that comes back in another dtype cannot reuse the donated buffer."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        scaled, state = adagrad.update(updates, state, params)
        return scaled, jax.tree.map(lambda s: jax.lax.bitcast_convert_type(s, jnp.int32), state)

    return optax.GradientTransformation(adagrad.init, update)


# Lost donation is one of the defects, and jax 0.7 warns of it.
@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
@pytest.mark.parametrize(
    ("defect", "misses"),
    [(an_extra_temporary, {"bytes", "temp"}), (an_extra_pass, {"bytes", "state"}), (a_copy, {"temp"})],
)
def test_a_planted_defect_is_caught(defect: Any, misses: set[str]):
    def structure(optimizer: optax.GradientTransformation) -> dense.Structure:
        return dense.structure_of(optimizer, dense.compile_step(optimizer, SMALL), SMALL)

    found = dense.structural_misses(structure(defect(optax.adagrad(0.1))), structure(optax.adagrad(0.1)), SMALL)
    assert misses <= set(found)


# The command ----------------------------------------------------------------------------------------------------


@pytest.mark.suite
def test_a_quick_run_reports(tmp_path: Path):
    out = tmp_path / "new" / "dense.md"
    arguments = ["--quick", "--repeats", "1", "--optimizer", "adam", "--tree", "one", "--tree", "64", "--out", str(out)]
    # In a process of its own: the first call is measured with JAX's caches cleared.
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.dense", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    text = out.read_text()
    assert text in done.stdout
    assert done.stdout.startswith(dense.QUICK_NOTE)
    assert dense.QUICK_NOTE in text
    for word in (
        "Date",
        "Command",
        "Machine",
        "Versions",
        "Medians of",
        "cores",
        "| adam ",
        "1 x 64k",
        "8 x 4k",
        "A/A",
    ):
        assert word in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) >= 4
    assert len({len(line) for line in table}) == 1, "the columns are not aligned"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--optimizer", "sgdd"], "adagrad"),
        (["--tree", "65"], "1000"),
        (["--repeats", "0"], "at least 1"),
        (["--repeats", "many"], "at least 1"),
        (["--out", "/dev/null/dense.md"], "/dev/null"),
        (["--speed"], "--speed"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        dense.main(arguments)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("python -m benchmarks.dense: error: ")
    assert word in lines[0]


def times(ratio: float, noise: float = 1.0) -> dense.Times:
    return dense.Times(ratio, 1.0, ratio, noise, 0.0)


@pytest.mark.parametrize(
    ("tree", "step", "first", "misses"),
    [
        (TREES["64"], times(1.04), times(1.09), []),
        (TREES["64"], times(1.06), times(1.09), ["step"]),
        (TREES["64"], times(1.06, noise=1.02), times(1.12, noise=0.9), ["first"]),
        (TREES["one"], times(1.0), times(1.29), []),
        (TREES["one"], times(1.0), times(1.31), ["first"]),
    ],
)
def test_the_verdict_follows_the_targets(tree: Tree, step: dense.Times, first: dense.Times, misses: list[str]):
    same = dense.Structure(1, 0, 0, 0)
    assert dense.Row("adam", tree, step, first, same, same, {}, (5, 9, 5)).misses() == misses


@pytest.mark.parametrize(("second", "missed"), [(1.04, 0), (1.06, 1)])
def test_a_row_over_the_target_is_measured_again_and_that_counts(
    second: float, missed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    same, asked = dense.Structure(1, 0, 0, 0), []

    def measure(name: str, tree: Tree, repeats: int, tick: Any) -> dense.Row:
        asked.append((name, tree.first_calls, repeats))
        ratio = {"adam": 1.03, "dog": 1.07}[name] if len(asked) < 3 else second
        return dense.Row(name, tree, times(ratio), times(1.0), same, same, {}, (repeats, 9, tree.first_calls))

    monkeypatch.setattr(dense, "measure", measure)
    arguments = ["--optimizer", "adam", "--optimizer", "dog", "--tree", "64", "--out", str(tmp_path / "dense.md")]
    assert dense.main(arguments) == 0
    assert asked == [("adam", 7, 5), ("dog", 7, 5), ("dog", 7 * dense.MORE, 10)]
    lines = (tmp_path / "dense.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| ")][1:] == ["adam", "dog", "dog, again"]
    assert "1.07" in lines[[line.startswith("| dog ") for line in lines].index(True)]
    assert f"{missed} of 2 rows miss a target" in capsys.readouterr().out
