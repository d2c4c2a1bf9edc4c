"""The demo's sweep: its trials are the demo's runs, it prints a table and writes the picture, bad input is one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from benchmarks import data, training
from benchmarks.demo import main
from benchmarks.demo_sweep import RANGES, sweep

SHORT = ("--steps", "3", "--trials", "3")


@pytest.mark.parametrize("name", ["adam", "adagrad", "sgd"])
def test_a_trial_is_a_run_of_the_demo(name: str) -> None:
    (task,) = training.tasks_on(data.digits(0))
    results = sweep(task, name, ["learning_rate"], None, 3, 20, 0)
    middle = results.outcomes[1]  # of a range around the usual rate
    run = training.Run(task, name, middle.hyperparams["learning_rate"], 20, 0)
    list(training.train(run))
    assert middle.hyperparams["learning_rate"] == pytest.approx(training.default_rate(name))
    assert middle.score == pytest.approx(run.measured[-1].test_loss, rel=1e-5)
    assert run.measured[-1].test_loss < run.measured[0].test_loss


def test_the_table_and_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--sweep", "learning_rate", *SHORT, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("digits, two-layer classifier, adam, 3 steps; score: loss on the test rows\ntrial  learning")
    assert len(out.splitlines()) == 8  # a title, the header, three trials, how, the file, and nothing
    path = tmp_path / "sweep_learning_rate_digits_two-layer_classifier_adam.png"
    assert f"wrote {path}" in out
    with Image.open(path) as picture:
        assert picture.width > 800


@pytest.mark.parametrize("name", [name for name in RANGES if name not in ("learning_rate", "momentum")])
def test_other_hyperparameters(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--sweep", name, "--optimizer", "adamw", "--steps", "2", "--trials", "6", "--out", str(tmp_path)]
    assert main(argv) == 0
    scores = {line.split()[2] for line in capsys.readouterr().out.splitlines()[2:7]}
    assert len(scores) > 1, "it changes nothing"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--sweep", "lr"], "--sweep: invalid choice: 'lr' (choose from learning_rate, b1, "),
        (["--sweep", "b1", "--sweep", "b2", "--sweep", "eps"], "--sweep: one hyperparameter or two"),
        (["--sweep", "learning_rate", "--learning-rate", "0.1"], "--learning-rate: it is swept"),
        (
            ["--sweep", "momentum"],
            "--sweep with adam: sweep: momentum is no argument of make_state",
        ),
        (
            ["--sweep", "b1", "--trials", "2"],
            "--sweep with adam: sweep: the grid has at least 6 points, and",
        ),
        (["--sweep", "learning_rate", "--trials", "0"], "argument --trials: must be a whole number from 1"),
        (["--trials", "4"], "--trials: it needs --sweep"),
    ],
)
def test_bad_input_is_one_line(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*argv, "--out", str(tmp_path)])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
