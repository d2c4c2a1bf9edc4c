"""The benchmark of low precision: it runs, its trainings are the same training, and its verdicts are the targets'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import low_precision, precision
from benchmarks.dense import QUICK_NOTE
from benchmarks.low_precision import Result
from benchmarks.side_by_side import Times

WAYS = {way.name: way for way in precision.ways()}


@pytest.mark.suite
def test_a_quick_run_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "precision.md"
    assert precision.main(["--quick", "--repeats", "1", "--out", str(out)]) == 0
    text = out.read_text()
    assert all(f"| {name} " in text for name in (precision.BASE, *WAYS))
    assert all(f"| {way.name} " in text for way in low_precision.ways())
    assert QUICK_NOTE in text
    assert "## What is left of an update" in text
    assert "## Training: digits, 2 seeds" in text
    assert "(precision.png)" in text
    assert (tmp_path / "new" / "precision.png").stat().st_size > 10_000
    assert text in capsys.readouterr().out


@pytest.mark.slow
def test_the_bytes_are_learned_in_every_way() -> None:
    """Three steps of the small transformer: the same first loss, or nearly where the parameters are rounded."""
    problem = low_precision.bytes_problem(3, 2, 16)._replace(test=np.zeros((1, 2, 17), np.int32))
    (results,) = low_precision.trained(problem, 1, lambda: None)
    first = results[0].train[0][0]
    for result in results:
        np.testing.assert_allclose(result.train[0][0], first, rtol=1e-2 if result.way.dtype == jnp.bfloat16 else 1e-6)
        assert result.train[0][-1] < first


@pytest.mark.suite
def test_what_is_left_of_an_update() -> None:
    """Of a trained network's moments: what the issue of few bits allows, and no codec better than its bits."""
    errors = low_precision.update_errors(low_precision.NETWORKS[0])
    assert all(0 < errors[rules] <= most for rules, most in low_precision.UPDATE_MOST.items())
    assert errors["bfloat16"] < errors["8bit"] / 2
    assert errors["8bit"] < errors["4bit"] / 4
    table = precision.error_table({(64, 128, 10): errors, (64, 9, 10): {**errors, "8bit": 0.5}})
    assert "MISS" not in table
    assert "MISS" in precision.error_table({(64, 128, 10): {**errors, "8bit": 0.5}})


def test_text_is_cut_for_the_next_byte() -> None:
    train, held_out = low_precision.source_bytes(4_000_000)
    assert min(len(train), len(held_out)) >= 100_000
    assert b"import" in train.tobytes()
    assert held_out[:2000].tobytes() not in train.tobytes()


def test_the_transformer_does_not_look_ahead() -> None:
    model = low_precision.Transformer(nnx.Rngs(0), length=8)
    text = jnp.arange(8)[None]
    before, after = model(text), model(text.at[0, 5].set(99))
    np.testing.assert_allclose(before[0, :5], after[0, :5], atol=1e-6)
    assert not np.allclose(before[0, 5:], after[0, 5:])


@pytest.mark.parametrize(
    ("name", "ratio", "noise", "temporary", "state", "missed"),
    [
        ("8bit, precision.step", 3.4, 0.9, 0.4, 2.06, []),
        ("8bit, precision.step", 3.6, 0.9, 0.4, 2.06, ["time"]),
        ("8bit, precision.step", 3.6, 1.1, 0.4, 2.06, []),
        ("8bit, precision.step", 3.4, 1.0, 0.6, 2.2, ["temporary", "state"]),
        ("bfloat16, precision.step", 2.1, 1.0, 0.1, 4.0, ["time"]),
        ("4bit, precision.step", 5.9, 1.0, 0.1, 1.06, []),
        ("4bit, update", 99.0, 1.0, 16.0, 1.16, ["state"]),
        ("adamw", 99.0, 1.0, 99.0, 99.0, []),
    ],
)
def test_verdicts(name: str, ratio: float, noise: float, temporary: float, state: float, missed: list[str]) -> None:
    cost = precision.Cost(WAYS[name], Times(1.0, 1.0, ratio, noise, 0.0), temporary, state)
    assert cost.misses(1e-3) == missed
    assert ("MISS" in precision.cost_table([cost], precision.QUICK_TREE)) is bool(missed)


def test_losses_are_compared_seed_by_seed() -> None:
    exact, eight = (way for way in low_precision.ways() if way.name in ("float32", "state 8bit"))
    base = Result(exact, [1.0, 2.0], [np.ones(3)] * 2)
    result = Result(eight, [1.05, 2.0], [np.ones(3)] * 2)
    np.testing.assert_allclose(result.excess(base), [0.05, 0.0], atol=1e-12)
    assert precision.too_lossy(result, base)  # 2.5 % in the mean, and 2 % are allowed
    assert not precision.too_lossy(Result(eight, [1.03, 2.0]), base)
    assert not precision.too_lossy(Result(exact, [9.0, 9.0]), base)
    assert "MISS" in precision.loss_table([base, result])


@pytest.mark.skipif(jax.__version_info__ < (0, 8), reason="the XLA of jax 0.7 keeps the chunks of several leaves")
@pytest.mark.parametrize("name", ["bfloat16", "8bit", "4bit"])
def test_a_step_in_place_holds_little(name: str) -> None:
    """What the table says of memory, on a smaller tree."""
    found: dict[str, Any] = {}
    for form in ("precision.step", "update"):
        tree = precision.Tree(4, 1 << 19, 1)
        memory = precision.compiled(WAYS[f"{name}, {form}"], tree).memory_analysis()
        assert memory is not None
        found[form] = memory.temp_size_in_bytes / tree.parameters
    assert found["precision.step"] <= 0.5
    assert found["update"] > 1


def test_every_way_steps() -> None:
    """The rows of the table differ in what is stored, and go the same way."""
    tree = precision.Tree(1, 1 << 17, 1)
    host = jax.tree.map(lambda a: 1e-3 * a, tree.normal(0))  # small, so that a step of 1e-3 shows in bfloat16
    ends = {}
    for way in WAYS.values():
        params = jax.tree.map(lambda a, d=way.dtype: jnp.asarray(a).astype(d), host)
        new, _ = precision.compiled(way, tree)(params, way.tx.init(params), jax.tree.map(lambda a: 0 * a + 1, params))
        ends[way.name] = np.asarray(new["w0000"], np.float32)
    for way in WAYS.values():
        off = np.abs(ends[way.name] - ends["adamw"])
        assert np.all(off <= 1e-5 + (0 if way.dtype == jnp.float32 else 2.0**-7) * np.abs(ends["adamw"])), way.name
