"""The benchmark of sweeps: it runs, its ways train the same, and its verdicts are those of the targets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import sweep
from benchmarks.dense import QUICK_NOTE


@pytest.fixture(scope="module")
def finals() -> dict[str, list[float]]:
    """Final losses of each way for three rates."""
    task = sweep.Task.of(3, 5, hidden=8, batch=16)._replace(rates=[1e-3, 1e-2, 1e-1])
    found = {way: run(task) for way, run in sweep.WAYS.items()}
    return {way: f if isinstance(f, list) else [o.loss for o in f.outcomes] for way, f in found.items()}


@pytest.mark.parametrize("way", sweep.WAYS)
def test_every_way_is_the_same_training(way: str, finals: dict[str, list[float]]) -> None:
    """To 1e-4: Optax's bias correction is a float32 power, off by 1e-5 in the first steps; ours is exact."""
    np.testing.assert_allclose(finals[way], finals[sweep.LOOP], rtol=1e-4)


def test_a_quick_run_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "sweep.md"
    assert sweep.main(["--quick", "--repeats", "1", "--out", str(out)]) == 0
    text = out.read_text()
    assert all(f"| {way} " in text for way in sweep.WAYS)
    assert QUICK_NOTE in text
    assert "| width 1" in text
    assert text in capsys.readouterr().out


@pytest.mark.parametrize(
    ("way", "faster", "beside", "apart", "missed"),
    [
        (sweep.OURS, 12.0, 1.05, 1e-5, False),
        (sweep.OURS, 11.9, 1.0, 0.0, True),
        (sweep.OURS, 13.0, 1.06, 0.0, True),
        (sweep.OURS_OPTAX, 13.0, 1.0, 2e-5, True),
        (sweep.LOOP, 1.0, 12.0, 0.0, False),
    ],
)
def test_verdicts(way: str, faster: float, beside: float, apart: float, missed: bool) -> None:
    assert sweep.Row(way, 1.0, faster, beside, apart).missed() is missed
