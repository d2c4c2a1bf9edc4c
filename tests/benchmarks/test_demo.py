"""The demo: every option does something, bad input ends in one line, Ctrl-C keeps what was done, everything trains."""

from __future__ import annotations

import gzip
import itertools
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from matplotlib.axes import Axes

from adaptx.registry import OPTIMIZERS
from benchmarks import data, plots, training
from benchmarks.demo import main, table

ROOT = Path(__file__).parents[2]
PICTURES = ("learning_curves.png", "effective_rates.png")
# The cheapest run there is: one classifier, the baseline, three steps.
SHORT = ("--dataset", "digits", "--optimizer", "sgd", "--steps", "3")


def idx_bytes(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@pytest.fixture
def idx(tmp_path: Path) -> Path:
    """A directory of IDX files: 70 training and 20 test images of 5 x 4 pixels in 3 classes, one file gzipped."""
    directory = tmp_path / "tiny"
    directory.mkdir()
    rng = np.random.default_rng(0)
    for prefix, rows in (("train", 70), ("t10k", 20)):
        labels = (np.arange(rows) % 3).astype(np.uint8)
        images = rng.integers(0, 100, (rows, 5, 4)).astype(np.uint8) + 70 * labels[:, None, None]
        (directory / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (directory / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    plain = directory / "t10k-images-idx3-ubyte"
    plain.with_name(f"{plain.name}.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    return directory


@pytest.fixture
def show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[list[str]]]:
    """Runs the demo and gives the table's rows, without the times."""

    def run(*argv: str) -> list[list[str]]:
        assert main([*argv, "--out", str(tmp_path / "out")]) == 0
        return table_rows(capsys.readouterr().out)

    return run


def table_rows(printed: str) -> list[list[str]]:
    split = [re.split(r"  +", line.strip()) for line in printed.splitlines()]
    header = next(words for words in split if words[0] == "task")
    time = header.index("ms/step")
    return [
        [word for i, word in enumerate(words) if i != time]
        for words in split
        if len(words) == len(header) and words != header and not words[0].startswith("---")
    ]


def run_of(dataset: data.Dataset, optimizer: str, *, task: int = 0, steps: int = 2000, seed: int = 0) -> training.Run:
    shown_on = training.tasks_on(dataset, optimizer)[task]
    run = training.Run(shown_on, optimizer, training.default_rate(optimizer), steps, seed)
    assert sum(training.train(run)) == steps
    return run


# What it prints and writes.


@pytest.mark.suite
def test_three_tasks_one_table_two_pictures(
    show: Callable[..., list[list[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = show("--optimizer", "adam", "--optimizer", "sgd", "--optimizer", "adam", "--steps", "3")
    tasks = ("diabetes, linear regression", "diabetes, MLP regression", "digits, two-layer classifier")
    assert [row[:2] for row in rows] == [[task, name] for task in tasks for name in ("adam", "sgd")]
    assert [row[6] == "-" for row in rows] == [True] * 4 + [False] * 2, "accuracy is the classifier's"
    assert float(rows[4][-1]) == pytest.approx(8, abs=0.01), "adam keeps two float32 a parameter"
    assert float(rows[5][-1]) == pytest.approx(0, abs=0.01), "sgd keeps none"
    for name in PICTURES:
        picture = (tmp_path / "out" / name).read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 20_000


@pytest.mark.suite
def test_options_change_the_result(
    show: Callable[..., list[list[str]]], idx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for draw in ("learning_curves", "effective_rates"):
        monkeypatch.setattr(plots, draw, lambda runs, path: None)
    plain = show(*SHORT)
    assert show(*SHORT) == plain, "the same seed gives the same figures"
    for option in (["--learning-rate", "0.7"], ["--steps", "4"], ["--seed", "1"], ["--data", str(idx)]):
        assert show(*SHORT, *option) != plain, option
    assert show(*SHORT, "--learning-rate", "0.1") == plain, "the baseline's default"
    assert show(*SHORT, "--dataset", "diabetes")[1][0].startswith("diabetes"), "repeatable"
    assert show(*SHORT, "--data", str(idx))[0][0] == "tiny, two-layer classifier"


def test_the_table_says_that_it_is_no_ranking() -> None:
    runs = [training.Run(training.tasks_on(data.digits(0))[0], "sgd", 0.1, 1, 0, 0.0, [measurement(0, 2.0)])]
    assert re.search(r"^no ranking.*not tuned.*short$", table(runs), re.MULTILINE)


@pytest.mark.suite
def test_diverging_runs_are_shown(show: Callable[..., list[list[str]]]) -> None:
    assert show(*SHORT, "--learning-rate", "1e37")[0][4] == "nan"


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[Axes], str]]:
    """Draws made-up runs of the classifier, one for each row of losses; gives the panels and the title."""
    figures: list[tuple[list[Axes], str]] = []
    monkeypatch.setattr(plots, "_finish", lambda figure, title, path: figures.append((figure.axes, title)))

    def draw(picture: Callable[..., None], *losses: Sequence[float]) -> tuple[list[Axes], str]:
        task = training.tasks_on(data.digits(0))[0]
        runs = [
            training.Run(task, name, 0.1, len(row) - 1, 0, measured=[measurement(*at) for at in enumerate(row)])
            for name, row in zip(("sgd", "adam", "dog"), losses, strict=False)
        ]
        picture(runs, Path())
        return figures.pop()

    return draw


def measurement(step: int, loss: float) -> training.Measurement:
    rate = loss if step else np.nan  # as measured: there is none before the first step, nor after divergence
    return training.Measurement(step, loss, loss, 0.5, np.array([rate, rate]), 1e-3)


@pytest.mark.parametrize(
    ("picture", "losses", "marked"),
    [
        (plots.learning_curves, [2.0, np.nan, np.nan], [0]),
        (plots.learning_curves, [2.0, 1.0, np.nan, 3.0], [3]),
        (plots.learning_curves, [2.0, 1.0], None),
        (plots.effective_rates, [2.0, 1.0], [1]),
        (plots.effective_rates, [2.0, 1.0, 0.5], None),
    ],
)
def test_points_without_neighbours_are_seen(
    panels: Callable[..., tuple[list[Axes], str]],
    picture: Callable[..., None],
    losses: list[float],
    marked: list[int] | None,
) -> None:
    for axes in panels(picture, losses)[0]:
        (line,) = axes.get_lines()
        assert (line.get_marker() == "o", line.get_markevery()) == (marked is not None, marked)
        low, high = axes.get_xlim()
        assert low < 0 < len(losses) - 1 < high, "the whole run, also where it has no values"


def test_divergence_is_said_in_the_panel(panels: Callable[..., tuple[list[Axes], str]]) -> None:
    lost, away, back = [2.0, 9.0, np.nan, np.inf], [2.0, 9.0, 1.0, 7.0], [2.0, np.nan, 9.0, 1.0]
    for axes in panels(plots.learning_curves, lost, away, back)[0]:
        assert [text.get_text() for text in axes.texts] == ["diverged by step 2: sgd\nabove the panel by step 3: adam"]
    for axes in panels(plots.effective_rates, lost, away, back)[0]:
        assert [text.get_text() for text in axes.texts] == ["diverged by step 2: sgd"]


@pytest.mark.parametrize("steps", [1, 20])
def test_steps_are_whole_numbers(panels: Callable[..., tuple[list[Axes], str]], steps: int) -> None:
    for picture in (plots.learning_curves, plots.effective_rates):
        for axes in panels(picture, np.linspace(2, 1, steps + 1))[0]:
            assert all(tick == round(tick) for tick in axes.get_xticks())


@pytest.mark.parametrize(("steps", "says"), [(1, "at each step"), (40, "at each step"), (41, "at most 2 steps")])
def test_the_caption_says_what_a_point_is(panels: Callable[..., tuple[list[Axes], str]], steps: int, says: str) -> None:
    assert panels(plots.effective_rates, np.ones(steps + 1))[1].endswith(says)


def test_styles_differ() -> None:
    styles = [plots._style(name) for name in training.NAMES]
    assert len({(style["color"], style.get("linestyle")) for style in styles}) == len(styles)


# Bad input.


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--optimizer", "sdg"], "--optimizer.*'sdg'.*adagrad.*dog.*sgd"),
        (["--dataset", "mnist"], "--dataset.*'mnist'.*diabetes.*digits"),
        (["--steps", "0"], "--steps.*from 1 .*got 0"),
        (["--steps", "-3"], "--steps.*got -3"),
        (["--steps", "ten"], "--steps.*got ten"),
        (["--seed", "-1"], "--seed.*from 0 .*got -1"),
        (["--learning-rate", "0"], "--learning-rate.*positive.*got 0"),
        (["--learning-rate", "-0.1"], "--learning-rate.*positive.*got -0.1"),
        (["--learning-rate", "nan"], "--learning-rate.*positive.*got nan"),
        (["--learning-rate", "1e39"], "--learning-rate.*float32.*got 1e39"),
        (["--data", "{tmp}/none"], "--data.*none: no such directory"),
        (["--data", "{tmp}"], "--data.*neither train-images-idx3-ubyte nor .*gz"),
        (["--data", "{tmp}", "--dataset", "diabetes"], "--data.*--dataset digits"),
        (["--out", "{tmp}/file"], "--out: .*file is not a directory"),
        (["--out", "{tmp}/file/deeper"], "--out.*deeper cannot be written"),
        (["--speed"], "unrecognized.*--speed"),
    ],
)
def test_bad_input_is_one_line(
    argv: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        main([word.format(tmp=tmp_path) for word in argv])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert re.fullmatch(rf"python -m benchmarks\.demo: error: .*{says}.*\n", printed.err)
    assert not printed.out


def test_exit_code_of_the_command() -> None:
    command = [sys.executable, "-m", "benchmarks.demo", "--steps", "0"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1), ended.stderr


@pytest.mark.parametrize(
    ("package", "extra"), [("flax", "demo"), ("sklearn", "demo"), ("matplotlib", "plot"), ("tqdm", "plot")]
)
def test_missing_packages_name_their_extra(
    package: str, extra: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main([]) == 2
    assert capsys.readouterr().err == f"the demo needs {package}: pip install 'adaptx[{extra}]'\n"


# IDX files.


def test_idx_plain_and_gzipped(idx: Path) -> None:
    dataset = data.idx_directory(idx)
    assert (dataset.name, dataset.classes) == ("tiny", 3)
    assert dataset.train.x.shape == (70, 20)
    assert dataset.test.x.shape == (20, 20)
    assert dataset.train.x.dtype == dataset.test.x.dtype == np.float32
    raw = data.read_idx(idx / "t10k-images-idx3-ubyte.gz", 3)
    np.testing.assert_allclose(dataset.test.x, raw.reshape(20, 20) / 255, rtol=1e-6)
    assert dataset.test.y.tolist() == [row % 3 for row in range(20)]


def broken(name: str, change: Callable[[bytes], bytes], says: str) -> object:
    return pytest.param(name, change, says, id=says.split(".*")[-1])


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        broken("train-images-idx3-ubyte", lambda b: b[:-1], "70 x 5 x 4 bytes announced, 1399 found"),
        broken("train-images-idx3-ubyte", lambda b: b + b"\0", "1401 found"),
        broken("train-images-idx3-ubyte", lambda b: b[:9], "truncated: 9 bytes"),
        broken("train-images-idx3-ubyte", lambda b: b"", "train-images-idx3-ubyte: the file is empty"),
        broken("train-images-idx3-ubyte", lambda b: b"\0\0\x0d\x03" + b[4:], "starts 00000d03, not 00000803"),
        broken("train-labels-idx1-ubyte", lambda b: idx_bytes(np.zeros(69, np.uint8)), "70 images and 69 labels"),
        broken("train-labels-idx1-ubyte", lambda b: idx_bytes(np.zeros((70, 1), np.uint8)), "not an IDX .*1-d bytes"),
        broken("train-labels-idx1-ubyte", lambda b: b"", "train-labels-idx1-ubyte: the file is empty"),
        broken("t10k-images-idx3-ubyte.gz", lambda b: gzip.compress(b""), "ubyte.gz: the file is empty"),
        broken("t10k-images-idx3-ubyte.gz", lambda b: b[:-9], "cannot be read.*end-of-stream"),
        broken("t10k-images-idx3-ubyte.gz", lambda b: b[:20] + bytes(20) + b[40:], "cannot be read"),
        broken("t10k-images-idx3-ubyte.gz", gzip.decompress, "cannot be read.*[Nn]ot a gzipped file"),
        broken(
            "t10k-images-idx3-ubyte.gz",
            lambda b: gzip.compress(idx_bytes(np.zeros((20, 4, 4), np.uint8))),
            "training images have 20 pixels, test images 16",
        ),
    ],
)
def test_corrupt_idx_files(
    name: str, change: Callable[[bytes], bytes], says: str, idx: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = idx / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(SystemExit) as stop:
        main(["--data", str(idx)])
    assert stop.value.code == 2
    assert re.fullmatch(rf".*error: --data: .*{says}.*\n", capsys.readouterr().err)


def test_a_missing_idx_file(idx: Path) -> None:
    (idx / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(data.DataError, match=r"neither t10k-labels-idx1-ubyte nor t10k-labels-idx1-ubyte\.gz"):
        data.idx_directory(idx)


# Ctrl-C.


@pytest.mark.suite
def test_interrupt_keeps_what_was_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = training.train

    def train(run: training.Run) -> Iterator[int]:
        for steps in real(run):
            yield steps
            if run.optimizer == "adam" and run.done == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", train)
    code = main([*SHORT, "--optimizer", "adam", "--optimizer", "adamw", "--out", str(tmp_path)])
    printed = capsys.readouterr()
    assert code == 130
    assert [row[1] for row in table_rows(printed.out)] == ["sgd", "adam (to step 2)"]
    assert printed.err.endswith("interrupted: 1 of 3 runs complete; what was done is kept\n")
    assert all((tmp_path / name).stat().st_size > 20_000 for name in PICTURES)


def test_interrupt_before_anything_was_done(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    def interrupt(*_: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return None

    # A background job of a shell starts with SIGINT ignored, and then Python sets no handler of its own.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    monkeypatch.setattr(training, "make_step", interrupt)
    assert main([*SHORT, "--out", str(tmp_path)]) == 130
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.endswith("interrupted: 0 of 1 runs complete; what was done is kept\n")
    assert not list(tmp_path.iterdir())

    monkeypatch.setattr(data, "digits", interrupt)
    assert main([*SHORT, "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "interrupted while no training was under way\n"


# The training.


def test_what_an_optimizer_is_shown_on() -> None:
    digits = data.digits(0)
    usual, narrow, full = (training.tasks_on(digits, name)[0] for name in ("adam", "adagrad_full", "rprop"))
    assert usual[1:] == ("two-layer classifier", (64, 128, 10), training.BATCH)
    assert narrow[1:] == ("two-layer classifier, 8 wide", (64, 8, 10), training.BATCH)
    assert full[1:] == ("two-layer classifier, all rows", (64, 128, 10), len(digits.train.x))
    (batch,) = itertools.islice(training.endless_batches(digits.train, 0, full.batch), 1)
    assert len(batch.x) == len(digits.train.x)


def test_a_model_that_is_too_large_is_refused_before_the_training(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = lambda dataset, name: [training.Task(dataset, "", (64, 200, 10))]
    monkeypatch.setattr(training, "tasks_on", tasks)
    with pytest.raises(SystemExit):
        main(["--dataset", "digits", "--optimizer", "adagrad_full"])
    assert re.fullmatch(
        r".*error: --optimizer adagrad_full: .*12800 elements.*max_size=1024.*\n", capsys.readouterr().err
    )


@pytest.mark.suite
def test_the_step_donates_without_copies() -> None:
    """Params and state come out in the buffers they came in with; beside them lie the gradients and the updates."""
    task = training.Task(data.digits(0), "", (64, 256, 256, 10))
    graph, params = nnx.split(training.make_model(task.sizes, seed=0), nnx.Param)
    optimizer = training.make_optimizer("adam", 1e-3, steps=10)
    state = optimizer.init(params)
    step = training.make_step(graph, optimizer)
    batch = next(training.endless_batches(task.dataset.train, seed=0))
    memory = step.lower(params, state, batch, 0).compile().memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes == training.tree_bytes((params, state))
    # Swapped, `(state, params) -> (params, state)` copies a layer of 64 x 256.
    assert memory.temp_size_in_bytes < 2 * training.tree_bytes(params) + 64 * 256 * 4 / 2
    new_params, new_state, _ = step(params, state, batch, 0)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((params, state)))
    assert jax.tree.structure((new_params, new_state)) == jax.tree.structure((params, state))


def test_effective_rate_of_sgd_is_its_schedule() -> None:
    """One rate for all layers, and at most the schedule's: clipping only lowers it."""
    run = run_of(data.digits(0), "sgd", steps=400)
    first, last = run.measured[1].layer_rates, run.measured[-1].layer_rates
    np.testing.assert_allclose(first, first[0], rtol=1e-5)
    assert np.all(first <= 0.1 / 100 * (1 + 1e-5)), "the warmup starts at a hundredth"
    assert np.all((last > 0.1 / 100) & (last < 0.1 / 50)), "the cosine ends there"
    assert max(m.layer_rates[0] for m in run.measured[1:]) == pytest.approx(0.1, rel=0.02), "the peak"
    assert all(np.isfinite(m.seconds) for m in run.measured[2:])


def test_batches_cover_the_rows_without_repeats() -> None:
    rows = data.Split(np.arange(300.0)[:, None], np.arange(300))
    batches = training.endless_batches(rows, seed=3)
    epochs = [np.concatenate([next(batches).y for _ in range(300 // training.BATCH)]) for _ in range(2)]
    assert all(len(set(epoch)) == len(epoch) for epoch in epochs)
    assert list(epochs[0]) != list(epochs[1])


def test_diabetes_is_standardised_by_its_training_rows() -> None:
    dataset = data.diabetes(0)
    assert (len(dataset.train.x), len(dataset.test.x)) == (354, 88)
    for values in dataset.train:
        np.testing.assert_allclose(values.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(values.std(0), 1, atol=1e-5)
    assert abs(dataset.test.y.mean()) > 1e-3, "the test rows keep their own mean"


@pytest.mark.suite
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_halves_its_loss(name: str) -> None:
    # A step of a matrix for each tensor takes long, and 300 are enough.
    run = run_of(data.digits(0), name, steps=300 if training.is_limited(name) else 2000)
    assert run.measured[-1].train_loss < run.measured[0].train_loss / 2


@pytest.mark.suite
def test_adam_reads_digits() -> None:
    accuracies = [run_of(data.digits(seed), "adam", seed=seed).measured[-1].accuracy for seed in range(3)]
    assert np.mean(accuracies) >= 0.96, accuracies
