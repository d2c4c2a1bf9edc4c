"""Interruptions: a sweep whose process was killed goes on from its file, and the file says what it cannot take."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

import adaptx
from adaptx import tune
from tests.tune.problem import BATCHES, Training

ROOT = Path(__file__).parents[2]
SPACE = {"learning_rate": np.geomspace(1e-3, 1, 9)}
# Says when it reads a batch with some number, and waits there for its end. Batches are read anew for each trial.
CHILD = """
import signal, sys, time
import adaptx.tune.batches, adaptx.tune.plan
from tests.tune.test_journal import BATCHES, swept

adaptx.tune.batches.KEPT_BYTES, adaptx.tune.plan.CPU_WIDTH = 0, 1
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it

class Slow(list):
    read = 0
    def __iter__(self):
        for batch in super().__iter__():
            Slow.read += 1
            if Slow.read == int(sys.argv[2]):
                print("there", flush=True)
                time.sleep(60)
            yield batch

print(swept(sys.argv[1], method=sys.argv[3], batches=Slow(BATCHES)))
"""


def swept(path: Any, training: Training | None = None, **changed: Any) -> tune.Results:
    training = training or Training(adaptx.adam)
    given = dict(space=SPACE, method="grid", batches=BATCHES, devices=jax.devices()[:1], progress=False) | changed
    if given["method"] == "halving":
        given["method"] = tune.Halving(draw="grid")
    return tune.sweep(training.make_state, training.train_step, path=path, **given)


def stopped(path: Path, method: str, trainings: int, by: signal.Signals) -> subprocess.CompletedProcess[str]:
    """A sweep in a process of its own, which gets a signal when so many trainings (of a trial, in a rung) are done."""
    read = 1 + 6 * (1 + trainings) + 3  # one for its shape, six to compile for; and in the midst of the next
    command = [sys.executable, "-W", "default", "-c", CHILD, str(path), str(read), method]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(by)
    out, err = process.communicate(timeout=60)
    assert first == "there\n", err
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The trials that `run.trained` is given from now on."""
    seen: list[int] = []
    from adaptx.tune import run

    trained = run.trained

    def counting(*given: Any) -> Any:
        seen.extend(runner.number for runner in given[-1])
        return trained(*given)

    monkeypatch.setattr(run, "trained", counting)
    return seen


@pytest.mark.parametrize(("method", "trainings", "kept"), [("grid", 4, 4), ("halving", 9, 8)])
def test_a_killed_sweep_goes_on(
    method: str, trainings: int, kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adaptx.tune.plan.CPU_WIDTH", 1)
    path = tmp_path / "new" / "sweep.jsonl"
    done = stopped(path, method, trainings, signal.SIGKILL)
    assert done.returncode == -signal.SIGKILL
    finished = {int(number) for number in re.findall(r'"trial": (\d+)', path.read_text())}
    assert len(finished) == kept  # of halving those that ended with the first rung
    seen = counted(monkeypatch)
    results = swept(path, method=method)
    assert finished.isdisjoint(seen)
    assert results.complete
    whole = swept(None, method=method)
    assert results.table() == whole.table()
    for a, b in zip(results.outcomes, whole.outcomes, strict=True):
        np.testing.assert_array_equal(a.losses, b.losses)
    seen.clear()
    again = swept(path, method=method)
    assert seen == []
    assert again.table() == whole.table()
    assert "all trials were in" in again.how


def test_ctrl_c_in_a_process(tmp_path: Path) -> None:
    done = stopped(tmp_path / "sweep.jsonl", "grid", 2, signal.SIGINT)
    assert done.returncode == 0
    assert re.search(r"UserWarning: sweep: interrupted; \d of 9 trials are finished", done.stderr)
    assert re.search(r"interrupted: \d of 9 trials are finished", done.stdout)


def test_a_line_cut_short_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    whole = swept(path).table()
    text = path.read_text()
    path.write_text(text[:-30])
    assert swept(path).table() == whole
    assert sorted(path.read_text().splitlines()) == sorted(text.splitlines())


def test_a_diverged_trial_is_kept_as_such(tmp_path: Path) -> None:
    space = {"learning_rate": [0.1, 1e18]}
    first = swept(tmp_path / "a", Training(optax.sgd), space=space)
    again = swept(tmp_path / "a", Training(optax.sgd), space=space)
    assert again.table() == first.table()
    assert again.outcomes[1].diverged == 3


@pytest.mark.parametrize("damage", ["", "text", "[1]", '{"trial": 0}', '{"trial": 99, "losses": [1.0]}', "changed"])
def test_a_damaged_line_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    swept(path, seed=np.int32(3), steps=np.int64(6))
    lines = path.read_text().split("\n")
    lines[2] = damage if damage != "changed" else re.sub('"learning_rate": [0-9.e-]+', '"learning_rate": 7.0', lines[2])
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"^sweep: line 3 of .* is no trial of this sweep; remove the line, or give"):
        swept(path)
    assert path.read_text() == "\n".join(lines)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (dict(steps=4), "is of another sweep: its steps is 6, not 4; give another path, or remove it"),
        (dict(space={"learning_rate": [0.1]}), "is of another sweep: its space is "),
        (dict(method="halving"), "is of another sweep: its method is 'grid', not Halving("),
        (dict(training=Training(adaptx.adagrad)), "is of another sweep: its train_step is "),
        (dict(evaluate=lambda state: state[0]["b"]), "is of another sweep: its evaluate is None, not "),
    ],
)
def test_a_file_of_another_sweep(changed: dict[str, Any], text: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    swept(path)
    before = path.read_text()
    with pytest.raises(ValueError, match=f"^sweep: {re.escape(str(path))} {re.escape(text)}") as error:
        swept(path, **changed)
    assert "\n" not in str(error.value)
    assert path.read_text() == before


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    for notes in (b"some notes\n", b"\n\nsome notes", b"\xff\xfe\x00"):
        path.write_bytes(notes)
        with pytest.raises(ValueError, match=r"notes.txt is no file of a sweep; give another path, or remove it$"):
            swept(path)
        assert path.read_bytes() == notes
    path.write_bytes(b"")
    swept(path, space={"learning_rate": [0.1]})
    with pytest.raises(ValueError, match=r"^sweep: path .* cannot be written to: Is a directory$"):
        swept(tmp_path)
