"""The two real tasks with tables: what they measure is what they say, and bad input is told in one line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import corpus, embeddings, package_guess, word_vectors

ROOT = Path(__file__).parents[2]
PACKAGES = ("asyncio", "email", "importlib", "multiprocessing")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four packages of the standard library, one module of none, and what must be passed over."""
    directory = tmp_path_factory.mktemp("library")
    for name in PACKAGES:
        shutil.copytree(
            corpus.standard_library() / name, directory / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    (directory / "site-packages").mkdir()
    (directory / "site-packages" / "foreign.py").write_text("foreign foreign")
    (directory / "module.py").write_bytes("naïve = x1 + _y  # 3 été ".encode("latin-1"))
    (directory / "test").mkdir()
    for i in range(12):
        (directory / "test" / f"test_{i}.py").write_text("import json\njson.dumps(1)\n")
    return directory


def test_the_corpus(library: Path) -> None:
    sources = corpus.read(library)
    assert {s.package for s in sources} == {*PACKAGES, "test", None}
    (module,) = (s for s in sources if s.package is None)
    assert {"x1", "_y", "na", "ve"} <= {*module.words}
    assert "3" not in module.words
    words = corpus.vocabulary(sources, 2)
    assert "foreign" not in words
    assert words["self"] == min(words["self"], words["asyncio"])
    assert [*words.values()] == list(range(len(words)))


def test_pairs_are_near_and_of_one_file() -> None:
    """Files of their own letters: no pair mixes them."""
    sources = [corpus.Source(None, [f"{letter}{i % 40}" for i in range(600)]) for letter in "abc"]
    rng = np.random.default_rng(0)
    encoded = word_vectors.encoded(sources, rng)
    names = list(encoded.vocabulary)
    word, contexts = word_vectors.batches(encoded, rng, 3, 50)
    assert word.shape == (3, 50)
    assert contexts.shape == (3, 50, 1 + word_vectors.NEGATIVES)
    pairs = [(names[w], names[c]) for w, c in zip(word.flat, contexts[..., 0].flat, strict=True)]
    assert all(w[0] == c[0] for w, c in pairs)
    assert len({names[n][0] for n in contexts[..., 1:].flat}) == 3  # negatives come from everywhere


def test_sparse_adagrad_is_the_dense_one_and_row_wise_learns(library: Path) -> None:
    rng = np.random.default_rng(0)
    encoded = word_vectors.encoded(corpus.read(library), rng)
    ticks: list[int] = []
    runs = word_vectors.train(encoded, rng, 90, 128, 8, 30, lambda: ticks.append(1))
    dense, same, rowwise = runs
    assert len(ticks) == 3
    np.testing.assert_allclose(dense.losses, same.losses, rtol=1e-5)
    assert all(run.losses[-1] < 0.95 * run.losses[0] for run in runs)
    assert word_vectors.speed_up(dense, dense) == 1
    near = word_vectors.neighbours(rowwise, encoded)
    assert len(near) == len(word_vectors.ASKED)
    assert all(len(found) == 5 and word not in found for word, found in near.items())


def test_packages(library: Path) -> None:
    """Held-out files are of every package; `test` is no package; FTRL without penalty takes AdaGrad's steps."""
    data = package_guess.split(corpus.read(library), np.random.default_rng(0))
    assert data.classes == sorted(PACKAGES)
    assert {*data.test.label} == {*data.train.label} == {*range(4)}
    assert 0.2 < data.majority < 0.5
    np.testing.assert_allclose(np.linalg.norm(data.train.weights, axis=1), 1, rtol=1e-5)
    free = [package_guess.Run("adagrad", 0.0), package_guess.Run("ftrl", 0.0)]
    cut = [package_guess.Run("adagrad", 1e-3), package_guess.Run("ftrl", 1e-2)]
    runs = package_guess.train(data, np.random.default_rng(1), 3, lambda: None, [*free, *cut])
    np.testing.assert_allclose(runs[0].losses, runs[1].losses, rtol=1e-4)
    moved = package_guess.trained_weights(data)
    assert runs[0].nonzero[0] == 0
    assert all(0.9 * moved < run.nonzero[-1] <= moved for run in runs[:2])
    assert all(0 < run.nonzero[-1] < 0.5 * moved for run in runs[2:])
    assert all(run.accuracies[-1] > data.majority + 0.2 for run in runs)


@pytest.mark.filterwarnings("ignore:'parseAll")  # an old matplotlib with a new pyparsing
def test_a_quick_run_reports(library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "report.md"
    assert embeddings.main(["--quick", "--sources", str(library), "--out", str(out)]) == 0
    text, shown = out.read_text(), capsys.readouterr().out
    assert text in shown
    assert embeddings.QUICK_NOTE in text
    assert "fewer than 50,000" in text
    for word in ("Machine", "sparse.rowwise_adagrad", "sparse.ftrl", "the majority class", *PACKAGES):
        assert word in text
    for picture in ("word_vectors.png", "package_guess.png"):
        assert f"({picture})" in text
        assert (out.parent / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sources", "nowhere"], "--sources: nowhere: no such directory"),
        (["--sources", "{empty}"], "--sources: {empty}: no Python sources with words in them"),
        (["--sources", "{few}", "--task", "words"], "--sources: only 2 words are seen twice: too few for word vectors"),
        (["--sources", "{few}", "--task", "packages"], "--sources: fewer than two packages have 10 files each"),
        (["--steps", "0"], "argument --steps: must be a whole number of at least 1, got '0'"),
        (["--seed", "-1"], "argument --seed: must be at least 0, got -1"),
        (["--task", "letters"], "argument --task: invalid choice: 'letters'"),
        (["--out", "{few}/module.py/report.md"], "--out {few}/module.py/report.md: "),
    ],
)
def test_bad_input(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "module.py").write_text("one one")
    fill = lambda text: text.format(empty=tmp_path / "empty", few=tmp_path / "few")
    with pytest.raises(SystemExit) as end:
        embeddings.main(["--out", str(tmp_path / "report.md"), *map(fill, arguments)])
    assert end.value.code == 2
    assert not (tmp_path / "report.md").exists()
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"python -m benchmarks.embeddings: error: {fill(message)}")


@pytest.mark.suite
def test_the_command_and_an_interrupt(library: Path, tmp_path: Path) -> None:
    """Ctrl-C keeps what was done, and says by its exit code that it is not all."""
    program = (
        "import sys; from benchmarks import embeddings, word_vectors\n"
        "advance, count = word_vectors.Run.advance, []\n"
        "def interrupted(self, batch):\n"
        "    count.append(1)\n"
        "    if len(count) > 7: raise KeyboardInterrupt\n"
        "    advance(self, batch)\n"
        "word_vectors.Run.advance = interrupted\n"
        "sys.exit(embeddings.main(sys.argv[1:]))"
    )
    arguments = [
        "--steps",
        "500",
        "--batch",
        "32",
        "--width",
        "4",
        "--sources",
        str(library),
        "--out",
        str(tmp_path / "r.md"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 130, done.stderr
    text = (tmp_path / "r.md").read_text()
    assert "; 100 steps" in text
    assert "## Packages" not in text
