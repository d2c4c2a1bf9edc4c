"""The benchmark of injected hyperparameters: it runs, and what needs no timer holds on small trees."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import pytest

import adaptx
from benchmarks import dense, injection
from benchmarks.dense import QUICK_TREES, Tree
from benchmarks.side_by_side import Times
from benchmarks.training import is_limited

SMALL = Tree(leaves=3, size=1 << 14, first_calls=1)


@pytest.mark.parametrize("name", [name for name in adaptx.registry.OPTIMIZERS if not is_limited(name)])
def test_an_injected_step_moves_and_holds_what_the_closed_over_one_does(name: str) -> None:
    """Scalars apart: in float32 a number that is traced is read from memory, and nothing of a leaf's size is."""
    injected, closed, _, *_ = injection.builders(name).values()
    ours = dense.structure_of(injected(), dense.compile_step(injected(), SMALL), SMALL)
    plain = dense.structure_of(closed(), dense.compile_step(closed(), SMALL), SMALL)
    assert dense.structural_misses(ours, plain, SMALL) == [], f"injected {ours}, closed over {plain}"


def test_changes_trace_nothing_and_a_defect_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = QUICK_TREES["64"]
    assert injection.traced_by_changes("adam", tree) == 0
    # A rate that is set in another dtype is another program.
    half = lambda state, learning_rate: state._replace(
        hyperparams={**state.hyperparams, "learning_rate": jnp.bfloat16(learning_rate)}
    )
    monkeypatch.setattr(injection, "set_hyperparams", half)
    assert injection.traced_by_changes("adam", tree) > 0


def test_a_quick_run_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "injection.md"
    arguments = ["--quick", "--repeats", "1", "--optimizer", "adagrad", "--tree", "64", "--out", str(out)]
    assert injection.main(arguments) == 0
    text = out.read_text()
    assert "| adagrad   | 8 x 4k |" in text
    assert dense.QUICK_NOTE in text
    assert text in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        injection.main(["--optimizer", "adamm"])
    assert stop.value.code == 2
    assert "invalid choice: 'adamm'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ratio", "noise", "traced", "missed"),
    [(1.04, 0.9, 0, False), (1.06, 0.9, 0, True), (1.06, 1.03, 0, False), (1.0, 1.0, 1, True)],
)
def test_verdicts(ratio: float, noise: float, traced: int, missed: bool) -> None:
    times = Times(1.0, 1.0, ratio, noise, 0.0)
    row = injection.Row("adam", SMALL, times, None, (40.0, 40.0), (0, 0), traced)
    assert row.missed() is missed
    assert (injection.cells(row)[-1] == "MISS") is missed
