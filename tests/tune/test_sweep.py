"""Sweeps: every trial is the plain training, from one trace; bad input is one line, and nothing is lost."""

from __future__ import annotations

import csv
import json
import re
import threading
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import adaptx
from adaptx import tune
from adaptx.hyperparams import get_hyperparams, inject_hyperparams, set_hyperparams
from adaptx.tune import plan as planning
from adaptx.tune import run
from adaptx.tune.batches import Batches
from adaptx.tune.programs import Programs, checked_step, traced
from adaptx.tune.rungs import rungs_of
from adaptx.tune.values import each_trials_values
from tests.tune.problem import BATCHES, Training, fresh

ONE = jax.devices()[:1]
RATES = [0.01, 0.1, 0.5]
SPACE = {"learning_rate": RATES, "b2": [0.9, 0.9999]}


def swept(training: Training, space: Any = SPACE, *args: Any, **kwargs: Any) -> tune.Results:
    given = dict(batches=BATCHES, devices=ONE, progress=False) | kwargs
    return tune.sweep(training.make_state, training.train_step, space, *args, **given)


@pytest.fixture
def at_width(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets how many trials run side by side on each device, and in how many threads."""

    def set_to(width: int, cores: int = 1) -> None:
        monkeypatch.setattr(planning, "even", lambda trials, devices, most: width)
        monkeypatch.setattr("adaptx.tune.sweeps.available_cores", lambda: cores)

    return set_to


@pytest.mark.parametrize(
    ("width", "devices", "cores", "how"),
    [
        (1, 1, 1, "one after the other on cpu:0: "),
        (2, 1, 1, "2 side by side (vmap) on cpu:0: "),
        (4, 1, 1, "4 side by side (vmap) on cpu:0: "),  # the second group is not full
        (1, 1, 3, "one after the other on cpu:0 in each of 3 threads: "),
        (1, 4, 3, "one after the other on each of 4 cpu devices: "),
        (2, 2, 1, "2 side by side (vmap) on each of 2 cpu devices: "),
    ],
)
def test_every_trial_is_a_fresh_run_from_one_trace(
    width: int, devices: int, cores: int, how: str, at_width: Any
) -> None:
    at_width(width, cores)
    training = Training()
    results = swept(training, devices=jax.devices()[:devices])
    assert results.how.startswith(how)
    assert training.traced == 1
    assert results.complete
    for outcome in results.outcomes:
        np.testing.assert_allclose(outcome.losses, fresh(adaptx.adam(**outcome.hyperparams)), rtol=1e-5)
        assert outcome.loss == outcome.losses[-1] == outcome.score  # the mean of a tenth of 6 steps: of the last one
    assert results.best.score == min(o.score for o in results.outcomes)


def test_a_decay_is_as_exact_as_closed_over() -> None:
    """b2 = 0.9999 alone in float32 makes 1 - b2 wrong by 1e-4, and the first steps by as much."""
    results = swept(Training(), {"b2": [0.9, 0.9999]})
    np.testing.assert_allclose(results.outcomes[1].losses, fresh(adaptx.adam(1e-3, b2=0.9999)), rtol=3e-7)


@pytest.mark.parametrize("width", [1, 3])
def test_what_diverges_is_frozen_and_does_not_spread(width: int, at_width: Any) -> None:
    at_width(width)
    results = swept(Training(optax.sgd), {"learning_rate": [0.01, 1e18, 0.1]})
    calm, wild, other = results.outcomes
    assert wild.diverged == wild.steps == 3  # loss 1, 1e36, and then beyond float32
    assert np.isnan(wild.score)
    assert np.isfinite(wild.losses[:-1]).all()
    assert not np.isfinite(wild.loss)
    for outcome in (calm, other):
        np.testing.assert_allclose(outcome.losses, fresh(optax.sgd(**outcome.hyperparams)), rtol=1e-5)
    assert results.ranked[-1] is wild
    assert results.table().splitlines()[-1].endswith("diverged at step 3")


def test_the_state_of_a_diverged_trial_is_frozen_beside_others() -> None:
    """As it was before the step whose loss was not finite: after two steps, whatever the others do then."""
    training = Training(optax.sgd)
    template, values = each_trials_values(training.make_state, [{"learning_rate": 1e18}, {"learning_rate": 0.1}])
    data = Batches("sweep", BATCHES, None)
    step = traced(partial(checked_step, "sweep", training.train_step), template, *data.example)
    programs = Programs(training.make_state, step, None, template, ONE, 2, data.size)
    data.onto = programs.shared
    (segment,) = data.segments()
    programs.compile(values[0], segment)
    two, six = (programs.advance(programs.start(values), segment, 0, last)[0] for last in (2, 6))
    assert six.taken.tolist() == [3, 6]
    assert six.alive.tolist() == [False, True]
    wild = [jax.tree.map(lambda x: np.asarray(x[0]), group.states) for group in (two, six)]
    jax.tree.map(np.testing.assert_array_equal, *wild)
    assert not np.array_equal(two.states[0]["w"][1], six.states[0]["w"][1])


def test_make_state_is_given_what_it_asks_for() -> None:
    training = Training(optax.sgd)

    def make_state(scale: Any) -> Any:
        params, state = training.make_state()
        return jax.tree.map(lambda x: x + scale, params), state

    results = tune.sweep(
        make_state,
        training.train_step,
        {"scale": [0.0, 1.0], "learning_rate": [0.1, 0.2]},
        batches=BATCHES,
        progress=False,
    )
    assert len({o.losses[0] for o in results.outcomes}) == 2  # two first points
    assert results.outcomes[0].losses[0] == results.outcomes[1].losses[0]
    assert len({o.loss for o in results.outcomes}) == 4


def test_make_state_may_take_any_name() -> None:
    training = Training()
    make_state = lambda **scales: jax.tree.map(lambda x: x + scales["first"] * 0.5, training.make_state())
    step = lambda state, batch: (state, jnp.sum(state[0]["w"]))
    results = tune.sweep(make_state, step, {"first": [0, 1.5]}, batches=BATCHES, progress=False)
    assert [o.loss for o in results.outcomes] == [0.0, 2.25]
    make_state = lambda first: (jnp.ones(3, jnp.bfloat16) * first).astype(jnp.bfloat16)
    step = lambda state, batch: (state, jnp.sum(state))
    results = tune.sweep(make_state, step, {"first": [0.5, 1.5]}, batches=BATCHES, progress=False)
    assert [o.loss for o in results.outcomes] == [1.5, 4.5]


def test_a_score_and_full_batches() -> None:
    training = Training()
    step = lambda state: training.train_step(state, BATCHES[0])
    distance = lambda state: jnp.abs(state[0]["b"] - 0.05)
    results = tune.sweep(
        training.make_state, step, {"learning_rate": RATES}, evaluate=distance, steps=7, devices=ONE, progress=False
    )
    assert [o.steps for o in results.outcomes] == [7] * 3
    assert results.outcomes[2].score != results.outcomes[2].loss
    assert results.best.score == min(o.score for o in results.outcomes)
    with pytest.raises(ValueError, match=r"^sweep: evaluate must return one real number, got"):
        swept(training, evaluate=lambda state: state[0])


def test_a_score_that_is_not_finite_is_no_divergence() -> None:
    """The trial is ranked last, and its losses are what they are; one of three here."""
    score = lambda state: jnp.where(state[0]["b"] > 0.05, jnp.nan, state[0]["b"])
    results = swept(Training(optax.sgd), {"learning_rate": [1e-6, 1e-5, 0.1]}, evaluate=score)
    assert [o.finite for o in results.outcomes] == [True, True, False]
    assert [o.diverged for o in results.outcomes] == [None] * 3
    assert results.table().splitlines()[-1].endswith("no finite score")
    with pytest.raises(ValueError, match=r"^sweep: there is no best trial: no score is finite; look at evaluate$"):
        _ = swept(Training(), {"learning_rate": [0.1]}, evaluate=lambda state: jnp.log(-jnp.ones(()))).best
    with pytest.raises(ValueError, match=r"^sweep: there is no best trial: all diverged; try smaller rates$"):
        _ = swept(Training(optax.sgd), {"learning_rate": [1e18, 1e19]}).best


def test_batches_come_in_segments_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 steps over 6 batches in segments of 5; from a generator; and without the stacked ones kept."""
    whole = fresh(adaptx.adam(0.1), [BATCHES[i % 6] for i in range(16)])
    monkeypatch.setattr("adaptx.tune.batches.SEGMENT_STEPS", 5)
    for kept in (1 << 20, 0):
        monkeypatch.setattr("adaptx.tune.batches.KEPT_BYTES", kept)
        for given in (BATCHES, iter(BATCHES)):
            training = Training()
            results = swept(training, {"learning_rate": [0.2, 0.1]}, batches=given, steps=16)
            np.testing.assert_allclose(results.outcomes[1].losses, whole, rtol=1e-5)
            assert training.traced == 1


@pytest.mark.parametrize("kept", [1 << 20, 0])
def test_batches_that_are_shuffled_each_time(kept: int, monkeypatch: pytest.MonkeyPatch, at_width: Any) -> None:
    """They are read once where they are kept; else trials would see others, and that is an error."""
    at_width(1)
    monkeypatch.setattr("adaptx.tune.batches.KEPT_BYTES", kept)

    class Shuffled(list):
        times = 0

        def __iter__(self) -> Any:
            Shuffled.times += 1
            return iter(list(super().__iter__())[Shuffled.times :])

    given = dict(batches=Shuffled(BATCHES), steps=5)
    if kept:
        results = swept(Training(), {"learning_rate": [0.1, 0.2]}, **given)
        assert results.outcomes[0].losses[0] == results.outcomes[1].losses[0]
        np.testing.assert_allclose(results.outcomes[0].losses, fresh(adaptx.adam(0.1), BATCHES[1:]), rtol=1e-5)
    else:
        with pytest.raises(ValueError, match=r"^sweep: the batches begin with another one when they are gone through"):
            swept(Training(), {"learning_rate": [0.1, 0.2]}, **given)


def test_halving_over_devices_holds_few_states(at_width: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the six that may go on, beside a group of four; and the table is that of one device."""
    at_width(2)
    held, trained = [], run.trained

    def watching(*given: Any) -> Any:
        result = trained(*given)
        held.append(sum(x.size == 10_000 for x in jax.live_arrays()))
        return result

    monkeypatch.setattr(run, "trained", watching)
    training = Training()

    def make_state() -> Any:
        params, _ = training.make_state()
        params["wide"] = jnp.zeros(10_000)
        return params, training.tx.init(params)

    given = dict(space={"learning_rate": np.geomspace(1e-3, 1, 18)}, method=tune.Halving(draw="grid"), batches=BATCHES)
    several = tune.sweep(make_state, training.train_step, **given, devices=jax.devices()[:2], progress=False)
    at_width(1)
    assert max(held[:5]) <= 3 * (2 + 6 + 4)  # a parameter and two moments; the template is on one device and on all
    one = tune.sweep(make_state, training.train_step, **given, devices=ONE, progress=False)
    for a, b in zip(several.outcomes, one.outcomes, strict=True):
        np.testing.assert_allclose(a.losses, b.losses, rtol=1e-5)


def test_memory_bounds_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "CPU_FLOPS", 1e9)  # as many side by side as fit
    monkeypatch.setattr("adaptx.tune.sweeps.available_cores", lambda: 1)

    def side(results: tune.Results) -> int:
        found = re.match(r"(\d+) side by side", results.how)
        return int(found.group(1)) if found else 1

    training = Training()
    assert side(swept(training)) == 6
    state = sum(x.nbytes for x in jax.tree.leaves(training.make_state()))
    assert side(swept(Training(), memory=2 * planning.FIRST_GUESS * state + 8)) <= 2
    monkeypatch.setattr(planning, "FIRST_GUESS", 0)  # a guess that is far too low: the compiled program tells
    training = Training()
    results = swept(training, memory=8 * state)
    assert results.complete
    assert side(results) < 6
    assert "MiB of memory; compiled anew, 6 would have taken" in results.how
    assert training.traced == 1


def test_the_plan_is_of_backend_size_memory_and_cores() -> None:
    class Gpu:
        platform, id = "gpu", 0

    two = planning.planned(100, [Gpu(), Gpu()], flops=1e12, state_bytes=1 << 20, memory=60 << 20, cores=8)
    assert (two.width, two.workers) == (17, 1)  # 20 fit on each; 3 groups of 34 leave 2 places empty
    assert planning.planned(100, [Gpu()], 1e12, 1, 1 << 40, 8).width == 100
    cpu = jax.devices()[:1]
    shape = lambda *given: planning.planned(*given)[1:3]
    assert shape(100, cpu, 1e9, 1, 1 << 40, 2) == (1, 2)
    assert shape(100, cpu, 1e9, 1 << 20, 3 << 20, 2) == (1, 1)  # memory for one
    assert shape(100, cpu, 10.0, 1, 1 << 40, 1) == (15, 1)  # 16 at most; 7 groups
    assert shape(100, cpu, 10.0, 1, 1 << 40, 4) == (13, 4)
    assert shape(3, jax.devices(), 10.0, 1, 1 << 40, 4) == (1, 1)
    wide = planning.Plan(cpu, 10, 2, "")
    assert planning.narrower(wide, 100, used=50, memory=100) is None
    assert planning.narrower(wide, 100, used=100, memory=100)[1:3] == (5, 2)
    assert planning.narrower(wide, 100, used=1000, memory=100)[1:3] == (1, 1)
    assert planning.narrower(planning.Plan(cpu, 1, 1, ""), 100, 1000, 100) is None


def test_successive_halving() -> None:
    """27 trials for 2 steps, the best 9 of them for 3, 3 for 9, one for 27; a trial is that of the grid."""
    batches = [BATCHES[i % 6] for i in range(27)]
    space = {"learning_rate": np.geomspace(1e-3, 1, 27)}
    training = Training()
    halved = swept(training, space, method=tune.Halving(draw="grid"), batches=batches)
    assert training.traced == 1
    whole = swept(Training(), space, batches=batches)
    steps = [o.steps for o in halved.outcomes]
    assert sorted(steps) == [2] * 18 + [3] * 6 + [9] * 2 + [27]
    alive, score = list(range(27)), lambda i, n: np.mean(whole.outcomes[i].losses[:n][-max(1, -(-n // 10)) :])
    for until, count in ((2, 9), (3, 3), (9, 1)):
        alive = sorted(sorted(alive, key=lambda i: (score(i, until), i))[:count])
        assert [i for i, n in enumerate(steps) if n > until] == alive
    for a, b in zip(halved.outcomes, whole.outcomes, strict=True):
        np.testing.assert_array_equal(a.losses, b.losses[: a.steps])
    assert halved.best.steps == 27
    assert halved.table().count("stopped early") == 26


@pytest.mark.parametrize("width", [1, 2])
def test_a_trial_that_diverges_in_a_later_rung(width: int, at_width: Any) -> None:
    """The largest rate has the best score here, goes on alone after two steps, and overflows in the fifth."""
    at_width(width)
    space, score = {"learning_rate": [0.1, 0.2, 1e5]}, lambda state: -get_hyperparams(state[1])["learning_rate"]
    training = Training(optax.sgd)
    halved = swept(training, space, method=tune.Halving(draw="grid"), evaluate=score)
    whole = swept(Training(optax.sgd), space)
    assert training.traced == 1
    assert [o.steps for o in halved.outcomes] == [2, 2, whole.outcomes[2].diverged]
    assert halved.outcomes[2].diverged == whole.outcomes[2].diverged == 5
    np.testing.assert_allclose(halved.outcomes[2].losses, whole.outcomes[2].losses, rtol=1e-5)


@pytest.mark.parametrize(
    ("halving", "trials", "steps", "rungs"),
    [
        (tune.Halving(), 27, 270, [(27, 10), (9, 30), (3, 90), (1, 270)]),
        (tune.Halving(2), 5, 100, [(5, 25), (2, 50), (1, 100)]),
        (tune.Halving(first=5), 10, 100, [(10, 5), (3, 15), (1, 100)]),
        (tune.Halving(), 27, 3, [(27, 2), (1, 3)]),  # fewer steps than rungs
        (tune.Halving(), 27, 1, [(27, 1)]),
        (tune.Halving(), 2, 10, [(2, 10)]),
        (None, 27, 270, [(27, 270)]),
    ],
)
def test_rungs(halving: tune.Halving | None, trials: int, steps: int, rungs: list[tuple[int, int]]) -> None:
    assert rungs_of(halving, trials, steps) == rungs


def test_the_same_seed_gives_the_same_table() -> None:
    space = {"learning_rate": tune.log_uniform(1e-3, 1), "b1": tune.uniform(0, 0.99)}
    tables = [swept(Training(), space, 5, "random", seed=seed).table() for seed in (1, 1, 2)]
    assert tables[0] == tables[1] != tables[2]


def test_files(tmp_path: Path) -> None:
    results = swept(Training(optax.sgd), {"learning_rate": [0.1, 1e18]})
    results.to_csv(tmp_path / "sweep.csv")
    results.to_json(tmp_path / "sweep.json")
    rows = list(csv.DictReader((tmp_path / "sweep.csv").read_text().splitlines()))
    assert [float(row["learning_rate"]) for row in rows] == [0.1, 1e18]
    assert float(rows[0]["loss"]) == results.outcomes[0].loss
    assert [row["diverged"] for row in rows] == ["", "3"]
    records = json.loads((tmp_path / "sweep.json").read_text())
    assert records[0]["losses"] == results.outcomes[0].losses.tolist()
    assert records[1]["losses"][-1] is None
    assert records[1]["diverged"] == 3


@pytest.mark.parametrize("cores", [1, 2])
def test_ctrl_c_keeps_what_is_finished(cores: int, at_width: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After two trials; tests/tune/test_journal.py sends the signal to a process."""
    at_width(1, cores)
    finished = run.finished

    def interrupted(*given: Any) -> Any:
        for i, outcomes in enumerate(finished(*given)):
            if i == 2:
                raise KeyboardInterrupt
            yield outcomes

    monkeypatch.setattr("adaptx.tune.sweeps.finished", interrupted)
    with pytest.warns(UserWarning, match=r"^sweep: interrupted; 2 of 6 trials are finished$"):
        results = swept(Training())
    assert len(results.outcomes) == 2
    assert not results.complete
    assert "interrupted: 2 of 6 trials are finished" in str(results)
    monkeypatch.setattr("adaptx.tune.sweeps.finished", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # nothing to keep
        swept(Training())


def test_an_error_in_one_thread_is_the_sweeps() -> None:
    def f(i: int) -> int:
        if i == 3:
            raise ValueError("three")
        return i

    with pytest.raises(ValueError, match=r"^three$"):
        list(run.at_the_same_time(f, range(50), 2, threading.Event()))
    assert sorted(run.at_the_same_time(f, [0, 1, 2], 2, threading.Event())) == [0, 1, 2]


def test_groups_and_paths_are_names_too() -> None:
    from adaptx import hyperparams as hp

    tx = hp.inject_per_group(adaptx.adam, hp.group_by_path({"weights": "w"}, rest="others"), {})(1e-2)
    training = Training()
    training.tx = tx
    results = swept(training, {"weights/learning_rate": [0.1, 0.2], "others/learning_rate": [0.1]})
    np.testing.assert_allclose(results.outcomes[0].losses, fresh(adaptx.adam(0.1)), rtol=1e-5)
    with pytest.raises(
        ValueError, match=r"^sweep: learning_rate may be any of others/learning_rate, weights/learning_rate"
    ):
        swept(training, {"learning_rate": [0.1]})


BAD = [
    (dict(space={}), "sweep: the space is empty"),
    (
        dict(space={"lr": [0.1]}),
        "sweep: lr is no argument of make_state and no hyperparameter of its state (there: b1, b2, ",
    ),
    (
        dict(space={"nesterov": [1.0]}),
        "sweep: nesterov shapes the program (True or False); make a sweep for each of its values",
    ),
    (dict(space={"seed": [1]}), "sweep: seed shapes the program (an int >= 0); make a sweep for each of its values"),
    (dict(space={"mask": [1.0]}), "sweep: mask shapes the program"),
    (dict(space={"weight_decay": [0.1]}), "sweep: weight_decay is no argument of make_state and no hyperparameter"),
    (dict(space={"b1": [0.5, 1.5]}), "sweep: b1 must be in [0, 1), got 1.5"),
    (
        dict(space={"learning_rate": [-1.0]}),
        "sweep: learning_rate must be a number, 0-d array or schedule >= 0, got -1.0",
    ),
    (dict(trials=0), "sweep: trials must be an int >= 1, got 0"),
    (dict(trials=-3), "sweep: trials must be an int >= 1, got -3"),
    (dict(trials=2.5), "sweep: trials must be an int >= 1, got 2.5"),
    (dict(steps=0), "sweep: steps must be an int >= 1, got 0"),
    (dict(seed=None), "sweep: seed must be an int >= 0, got None"),
    (dict(memory=0), "sweep: memory must be an int >= 1, got 0"),
    (dict(devices=[]), "sweep: devices must be some of jax.devices(), each once, got []"),
    (dict(method="bayes"), "sweep: method must be 'grid', 'random', 'halving' or a Halving, got 'bayes'"),
    (dict(method=tune.Halving(1)), "sweep: a Halving needs eta, an int >= 2, first, an int >= 1 or None, and draw"),
    (dict(batches=None), "sweep: without batches it needs steps, the number of them"),
    (dict(batches=[]), "sweep: there are no batches"),
    (dict(batches=3), "sweep: batches must be a list or another iterable of batches, got 3"),
    (dict(batches=["a"]), "sweep: a batch must hold arrays, got 'a' at the root"),
    (dict(batches=[*BATCHES, BATCHES[0][:1]]), "sweep: batch 6 is "),
    (dict(train_step=lambda s, b: s), "sweep: train_step must return (state, loss), the loss one real number; got "),
    (
        dict(train_step=lambda s, b: (s, None)),
        "sweep: train_step must return (state, loss), the loss one real number; got ",
    ),
    (
        dict(train_step=lambda s, b: (s, b[1])),
        "sweep: train_step must return (state, loss), the loss one real number; got ",
    ),
    (dict(train_step=lambda s, b: (s[0], 0.0)), "sweep: train_step must return a state like the one it gets, "),
    (
        dict(train_step=lambda s, b: (({**s[0], "b": s[0]["b"].astype(jnp.float16)}, s[1]), 0.0)),
        "sweep: train_step makes float16[] of the state's float32[] at [0]['b']",
    ),
    (dict(batches=iter(BATCHES)), "sweep: batches that can be gone through only once need steps, the number of them"),
    (dict(devices=ONE * 2), "sweep: devices must be some of jax.devices(), each once, got ["),
    (dict(space={"loss": [1.0]}), "sweep: loss is a column of the results; give make_state's argument another name"),
    (
        dict(
            make_state=lambda learning_rate: TrainState.create(apply_fn=None, params={}, tx=optax.sgd(learning_rate)),
            train_step=lambda state, batch: (state, jnp.sum(batch[1])),
        ),
        "sweep: make_state must give the same tree for every trial, with what is made from an argument as an array",
    ),
    (dict(train_step=None), "sweep: train_step must be a function, got None"),
    (dict(make_state=lambda key: 0), "sweep: make_state needs key, which the space has not"),
    (
        dict(make_state=lambda: ({"a": "text"},)),
        "sweep: make_state must return a tree of arrays, got 'text' at [0]['a']",
    ),
]


@pytest.mark.parametrize(("changed", "text"), BAD, ids=[text[7:40] for _, text in BAD])
def test_bad_input_is_one_line(changed: dict[str, Any], text: str) -> None:
    training = Training()
    given = dict(make_state=training.make_state, train_step=training.train_step, space={"learning_rate": RATES})
    given |= dict(batches=BATCHES, devices=ONE, progress=False) | changed
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape(text)}") as error:
        tune.sweep(**given)
    assert "\n" not in str(error.value)


def test_a_scheduled_rate_names_the_way_out() -> None:
    schedule = optax.cosine_decay_schedule(0.1, 10)
    text = "^sweep: learning_rate is scheduled; to sweep its peak, inject a constant and chain optax.scale_by_schedule"
    with pytest.raises(ValueError, match=text):
        swept(Training(adaptx.adam, schedule), {"learning_rate": RATES})


def test_nan_from_the_first_step_is_one_line(tmp_path: Path) -> None:
    bad = [(x * np.nan, y) for x, y in BATCHES]
    with pytest.raises(
        ValueError, match=r"^sweep: the loss is not finite from the first step of every trial: .*\)$"
    ) as error:
        swept(Training(), batches=bad, path=tmp_path / "sweep.jsonl")
    assert "\n" not in str(error.value)
    assert str(tmp_path / "sweep.jsonl") in str(error.value)
    with pytest.raises(ValueError, match=r"the model and the first parameters$"):
        swept(Training(), batches=bad)


def test_a_state_with_a_key_and_python_numbers() -> None:
    """Weak types and typed keys: one trace for all segments all the same."""
    traced = []

    def train_step(state: Any, batch: Any) -> Any:
        traced.append(None)
        key, now = jax.random.split(state["key"])
        value = (state["x"] - jax.random.uniform(now)) ** 2
        return {
            "x": state["x"] - state["rate"] * 2 * value,
            "key": key,
            "step": state["step"] + 1,
            "rate": state["rate"],
        }, value

    make_state = lambda rate: {"x": 1.0, "key": jax.random.key(0), "step": 0, "rate": rate}
    results = tune.sweep(make_state, train_step, {"rate": [0.1, 0.2]}, batches=[0, 0, 0, 0], progress=False)
    assert len(traced) == 1
    assert results.outcomes[0].losses[0] == results.outcomes[1].losses[0]
    assert results.outcomes[0].loss != results.outcomes[1].loss


def test_linen_and_nnx() -> None:
    from flax import linen, nnx

    dense = linen.Dense(1)
    squares = lambda out, y: jnp.mean((out[:, 0] - y) ** 2)
    tx = inject_hyperparams(adaptx.adam)(1e-3)

    def linen_state() -> Any:
        return TrainState.create(apply_fn=dense.apply, params=dense.init(jax.random.key(0), BATCHES[0][0]), tx=tx)

    def linen_step(state: Any, batch: Any) -> Any:
        value, grads = jax.value_and_grad(lambda p: squares(state.apply_fn(p, batch[0]), batch[1]))(state.params)
        return state.apply_gradients(grads=grads), value

    def objects() -> Any:
        model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
        return model, nnx.Optimizer(model, tx, wrt=nnx.Param)

    def nnx_step(state: Any, batch: Any) -> Any:
        model, optimizer = state
        value, grads = nnx.value_and_grad(lambda m: squares(m(batch[0]), batch[1]))(model)
        optimizer.update(model, grads)
        return (model, optimizer), value

    graph, params = nnx.split(objects()[0], nnx.Param)

    def split_step(state: Any, batch: Any) -> Any:
        params, opt_state = state
        value, grads = jax.value_and_grad(lambda p: squares(nnx.merge(graph, p)(batch[0]), batch[1]))(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    ways = [(linen_state, linen_step), (lambda: (params, tx.init(params)), split_step)]
    if jax.tree.leaves(objects()[0]) != [objects()[0]]:  # from flax 0.12 nnx's objects are trees
        ways.append((objects, nnx_step))
    for make_state, train_step in ways:
        results = tune.sweep(make_state, train_step, {"learning_rate": [1e-3, 0.3]}, batches=BATCHES, progress=False)
        state, losses = set_hyperparams(make_state(), learning_rate=0.3), []
        for batch in BATCHES:
            state, value = train_step(state, batch)
            losses.append(float(value))
        np.testing.assert_allclose(results.outcomes[1].losses, losses, rtol=1e-5)


@pytest.mark.parametrize("method", ["grid", tune.Halving(draw="grid")])
def test_the_bar_reaches_its_end(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = []

    class Bar:
        def __init__(self, total: int, **_: Any) -> None:
            self.total, self.done, self.closed = total, 0, False
            bars.append(self)

        def update(self, steps: int) -> None:
            self.done += steps

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr("tqdm.tqdm", Bar)
    swept(Training(), {"learning_rate": np.geomspace(1e-3, 0.1, 9)}, method=method, progress=True)
    (bar,) = bars
    assert bar.done == bar.total == (54 if method == "grid" else 9 * 2 + 4)
    assert bar.closed


def test_without_tqdm_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tqdm", None)
    swept(Training(), {"learning_rate": [0.1]}, progress=True)
    assert capsys.readouterr().err == 'no progress bar: pip install "adaptx[plot]" brings tqdm\n'


def test_no_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        swept(Training())
