"""The benchmark of row-sparse steps: it runs, its steps are those of the table, its verdicts follow the targets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import sparse
from benchmarks.side_by_side import Times

ROOT = Path(__file__).parents[2]
SMALL = sparse.Table(1000, 8, 64, "zipf")


@pytest.mark.suite
def test_a_quick_run_reports(tmp_path: Path) -> None:
    out = tmp_path / "new" / "sparse.md"
    arguments = [
        "--quick",
        "--repeats",
        "1",
        "--ids",
        "256",
        "--ids",
        "4096",
        "--optimizer",
        "adagrad",
        "--out",
        str(out),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.sparse", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    text = out.read_text()
    assert text in done.stdout
    assert sparse.QUICK_NOTE in text
    for word in ("Machine", "Versions", "A/A", "256 uniform", "4096 zipf", "slowest to fastest", "1k x 64"):
        assert word in text


def test_ours_and_dense_take_the_same_step() -> None:
    """AdaGrad on the same batch, with ids as they are and made unique: the same table."""
    ours, theirs = sparse.RIVALS["adagrad"].ours(), sparse.RIVALS["adagrad"].optax
    assert theirs is not None
    ids, y = SMALL.batches()[0]
    assert len(np.unique(ids)) < len(ids)
    tables = []
    for step, tx, given in (
        (sparse.sparse_step(ours), ours, ids),
        (sparse.sparse_step(ours), ours, sparse.sparse.unique_ids(ids, SMALL.rows)),
        (sparse.dense_step(theirs()), theirs(), ids),
    ):
        x = jnp.full((SMALL.rows, SMALL.width), 0.01)
        tables.append(step(x, tx.init(x), given, y)[0])
    np.testing.assert_allclose(tables[0], tables[1], rtol=1e-6)
    # optax adds its eps, 1e-7, inside the root.
    np.testing.assert_allclose(tables[0], tables[2], rtol=1e-5)
    assert sparse.temporary_bytes("adagrad", SMALL) < 8 * SMALL.ids * SMALL.width * 4


def test_batches_have_the_ids_that_are_named() -> None:
    uniform, zipf = (sparse.Table(100_000, 8, 20_000, kind).batches()[0][0] for kind in ("uniform", "zipf"))
    assert len(np.unique(uniform)) > 1.5 * len(np.unique(zipf))
    assert zipf.min() >= 0
    assert zipf.max() < 100_000


def times(ratio: float) -> Times:
    return Times(ratio, 1.0, ratio, 1.0, 0.0)


@pytest.mark.parametrize(
    ("ids", "kind", "optax", "torch", "noise", "misses"),
    [
        (4096, "uniform", 25.0, 1.0, 1.0, []),
        (4096, "uniform", 24.9, 1.0, 1.0, ["speed"]),
        (4096, "zipf", 24.9, 0.95, 1.0, ["torch"]),
        (4096, "zipf", 24.9, 0.95, 1.1, []),
        (256, "uniform", 1.0, 0.1, 1.0, []),
    ],
)
def test_the_verdict_follows_the_targets(
    ids: int, kind: str, optax: float, torch: float, noise: float, misses: list[str]
) -> None:
    table = sparse.Table(1000, 8, ids, kind)
    row = sparse.Row("adagrad", table, 1.0, noise, {"optax": times(optax), "torch": times(torch)}, 0, 5)
    assert row.misses() == misses
    assert sparse.Row("ftrl", table, 1.0, noise, {}, 0, 5).misses() == []


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--optimizer", "sgd"], "adagrad"),
        (["--ids", "100"], "4096"),
        (["--repeats", "0"], "at least 1"),
        (["--out", "/dev/null/sparse.md"], "/dev/null"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        sparse.main(arguments)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("python -m benchmarks.sparse: error: ")
    assert word in lines[0]


def test_every_ready_optimizer_is_measured() -> None:
    ready = {name for name in sparse.sparse.__all__ if hasattr(getattr(sparse.sparse, name), "__wrapped__")}
    assert {name for name in ready if "learning_rate" in (getattr(sparse.sparse, name).__doc__ or "")} == set(
        sparse.RIVALS
    )
