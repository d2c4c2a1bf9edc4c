"""Sweep: many trials of a training run, which differ in numbers, from one compilation."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from adaptx.core.checks import shown
from adaptx.glossary import is_count
from adaptx.tune.batches import Batches
from adaptx.tune.journal import Journal
from adaptx.tune.plan import Plan, available_cores, free_memory, narrower, planned
from adaptx.tune.programs import Programs, checked_score, checked_step, fingerprint, flops, traced
from adaptx.tune.progress import progress_bar
from adaptx.tune.results import Results
from adaptx.tune.run import finished
from adaptx.tune.rungs import Halving, checked_method, rung_steps, rungs_of
from adaptx.tune.space import axes_of, grid, random
from adaptx.tune.values import Values, each_trials_values


def sweep(
    make_state: Callable[..., Any],
    train_step: Callable[..., Any],
    space: Any,
    trials: int | None = None,
    method: str | Halving = "grid",
    *,
    batches: Any = None,
    steps: int | None = None,
    evaluate: Callable[[Any], Any] | None = None,
    seed: int = 0,
    path: str | Path | None = None,
    devices: Sequence[Any] | None = None,
    memory: int | None = None,
    progress: bool | None = None,
) -> Results:
    """Trains once for each of many choices of hyperparameters, without compiling again.

        tx = inject_hyperparams(adam)(1e-3)

        def make_state():
            return params, tx.init(params)

        def train_step(state, batch):
            params, opt_state = state
            loss, grads = jax.value_and_grad(loss_function)(params, batch)
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        results = sweep(make_state, train_step, {"learning_rate": log_uniform(1e-4, 1)}, 32, batches=batches)
        print(results)
        results.best.hyperparams

    A step is compiled once and serves all trials: one after the other, or many side by side by `vmap`, as many as fit
    into memory, on one device or on several. Which of them the results say. Every trial sees the same batches. One
    whose loss is NaN or infinite stops there, and the table says at which step; it does not touch the others.

    Arguments:
        make_state: a function that gives what a training begins with, a tree of arrays: parameters and optimizer state,
            a Flax TrainState, a model and an optimizer of nnx. What it has as arguments of the space's names it is
            given, as traced arrays of the default dtypes; every other name is that of a hyperparameter that
            `inject_hyperparams` keeps in the state.
        train_step: a function (state, batch) -> (state, loss), traced; without batches of the state alone. The state it
            returns is like the one it gets; the loss is one real number.
        space: the values of each name, as a list, `choice`, `uniform` or `log_uniform`.
        trials: how many. Of a grid the most, shared evenly by its ranges; default: all points of the lists.
        method: "grid" (every combination, the default), "random" (independent draws), "halving" or a `Halving`.
        batches: an iterable of batches, trees of arrays that are all alike. It is gone through again where it is
            shorter than the steps. Up to 256 MiB are kept on the device; beyond, it is gone through anew for each group
            of trials, and must then give the same batches. A generator is kept in memory, and needs steps.
        steps: of each trial; default: as many as there are batches.
        evaluate: a function of a state that gives its score, the smaller the better, traced. Default: the mean of the
            last tenth of the losses.
        seed: of the draws. The same seed gives the same table; where other numbers of trials run side by side, as on
            another machine, to float32's rounding.
        path: a file that keeps each finished trial. A sweep that was interrupted or killed goes on from there. It knows
            its space, steps, method, train_step and evaluate; that data and first parameters are the same is up to you.
        devices: those to use; default: all of this process.
        memory: bytes that the trials may take on each device; default: half of what is free. Halving holds the states
            of those that go on in the host's memory.
        progress: whether to show a bar, which needs tqdm; default: where stderr is a terminal.

    Returns: the finished trials. After Ctrl-C, with a warning, those that are finished by then.

    Errors:
        ValueError: an empty space or axis, a name that is no hyperparameter, one that shapes the program, a value
            out of range, numbers that are none, a step that returns no loss or another state, a `path` of another
            sweep, a loss that is not finite from the first step of every trial.
        TypeError: arguments of other kinds.

    Source: Jamieson and Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter Optimization, 2016,
        https://arxiv.org/abs/1502.07943 (successive halving).
    """
    for name, f in {"make_state": make_state, "train_step": train_step, "evaluate": evaluate}.items():
        if not callable(f) and not (f is None and name == "evaluate"):
            raise TypeError(f"sweep: {name} must be a function, got {shown(f)}")
    for name, number, least in (("trials", trials, 1), ("steps", steps, 1), ("seed", seed, 0), ("memory", memory, 1)):
        if not is_count(number, least) and not (number is None and name != "seed"):
            raise ValueError(f"sweep: {name} must be an int >= {least}, got {shown(number)}")
    trials, steps = (None if n is None else int(n) for n in (trials, steps))  # numpy's ints, too
    axes, halving = axes_of(space), checked_method(method)
    draw = method if halving is None else halving.draw
    drawn = grid(axes, trials) if draw == "grid" else random(axes, trials, seed)
    devices = list(jax.local_devices() if devices is None else devices)
    if not devices or not all(isinstance(d, jax.Device) for d in devices) or len(set(devices)) < len(devices):
        raise ValueError(f"sweep: devices must be some of jax.devices(), each once, got {shown(devices)}")

    template, values = each_trials_values(make_state, drawn)
    data = Batches("sweep", batches, steps)
    rungs = rungs_of(halving, len(drawn), data.steps)
    step = traced(partial(checked_step, "sweep", train_step), template, *data.example)
    score = None if evaluate is None else traced(partial(checked_score, evaluate), template)
    described = dict(
        space={name: repr(axis) for name, axis in axes.items()},
        trials=len(drawn),
        method=repr(method if halving is None else halving),
        steps=data.steps,
        seed=int(seed) if draw == "random" else None,
        train_step=fingerprint(step, template, *data.example),
        evaluate=None if score is None else fingerprint(score, template),
    )
    journal = None if path is None else Journal(path, described, drawn)
    done = {} if journal is None else {o.number: o for o in journal.outcomes}
    results = lambda how: Results([done[i] for i in sorted(done)], axes, len(drawn), data.steps, how)
    if len(done) == len(drawn):
        return checked_results(results(f"all trials were in {path}"), path)

    most = round(math.sqrt(rungs[0].trials * rungs[-1].trials))  # a width that no rung leaves half empty
    memory = free_memory(devices[0]) if memory is None else memory
    state_bytes = sum(x.nbytes for x in jax.tree.leaves(template))
    cores = available_cores() if data.keeps else 1  # what is read anew for each group is read by one thread
    plan = planned(most, devices, flops(step, template, *data.example), state_bytes, memory, cores)
    began = time.perf_counter()
    make = lambda plan: compiled_programs(make_state, step, score, template, plan, data, values[0])
    programs = make(plan)
    if smaller := narrower(plan, most, programs.bytes(), memory):
        plan, programs = smaller, make(smaller)
    compiled = time.perf_counter()
    todo = [i for i in range(len(drawn)) if i not in done]
    bar = progress_bar(sum(rung_steps(rungs, len(todo))), "step", progress)
    try:
        for outcomes in finished(programs, data, values, drawn, rungs, todo, plan.workers, bar.update):
            if journal is not None:
                journal.add(outcomes)
            done |= {o.number: o for o in outcomes}
    except KeyboardInterrupt:
        if not done:
            raise
        warnings.warn(f"sweep: interrupted; {len(done)} of {len(drawn)} trials are finished", stacklevel=2)
    finally:
        bar.close()
    seconds = f"compiled in {compiled - began:.2g} s, trained in {time.perf_counter() - compiled:.2g} s"
    return checked_results(results(f"{plan}; {seconds}"), path)


def compiled_programs(
    make_state: Callable[..., Any], step: Any, score: Any, template: Any, plan: Plan, data: Batches, values: Values
) -> Programs:
    programs = Programs(make_state, step, score, template, plan.devices, plan.width, data.size)
    data.onto = programs.shared
    programs.compile(values, next(data.segments()))
    return programs


def checked_results(results: Results, path: Any) -> Results:
    """The results; one line where no trial could begin."""
    if results.complete and all(o.diverged == 1 for o in results.outcomes):
        kept = "" if path is None else f" (the trials are in {path}; remove it before the next sweep)"
        raise ValueError(
            "sweep: the loss is not finite from the first step of every trial: look at the data, the model and the "
            f"first parameters{kept}"
        )
    return results
