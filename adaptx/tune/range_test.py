"""Range test: the loss while the learning rate rises from very small to too large, in one short run."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from adaptx.core.checks import shown
from adaptx.glossary import is_count, is_number
from adaptx.hyperparams.inject import chosen_hyperparams, with_hyperparams
from adaptx.tune import plots
from adaptx.tune.batches import Batches
from adaptx.tune.programs import checked_step
from adaptx.tune.progress import progress_bar
from adaptx.tune.values import checked_state


@dataclasses.dataclass(frozen=True, eq=False)
class RangeTest(plots.Pictured):
    """A range test's curve, one value for each step that was taken, and the rate that it suggests."""

    name: str
    rates: NDArray[np.floating]
    losses: NDArray[np.floating]
    smoothed: NDArray[np.floating]
    smoothing: float
    stopped: str  # why it ended

    @property
    def window(self) -> int:
        """The steps whose losses weigh most in a smoothed one."""
        return max(1, round(1 / (1 - self.smoothing)))

    def rate_at(self, i: int) -> float:
        """The rate that the smoothed loss of step i tells of: that of the mean age of the losses in it.

        With s = smoothing: s / (1 - s) - (i + 1) s^(i + 1) / (1 - s^(i + 1)) steps before.
        """
        s, old = self.smoothing, self.smoothing ** (i + 1)
        return float(self.rates[max(0, i - round(s / (1 - s) - (i + 1) * old / (1 - old)))])

    @property
    def lowest(self) -> float:
        """The rate where the smoothed loss is smallest; beyond it steps do harm."""
        return self.rate_at(self._least)

    @property
    def _least(self) -> int:
        return int(np.argmin(np.where(np.isfinite(self.smoothed), self.smoothed, np.inf)))

    @property
    def suggestion(self) -> float | None:
        """The rate where the loss falls fastest, per factor of the rate; None where it falls no further than by chance.

        The fall at step i is that of the smoothed loss from `window` steps before to as many after. By chance is what
        is less than four standard deviations of a smoothed loss.
        """
        m, h = self.smoothed[: self._least + 1], self.window  # what an explosion left may fall again
        falls = m[h : -2 * h] - m[3 * h :] if len(m) > 3 * h else np.zeros(0)
        if not falls.size:
            return None
        noise = 1.4826 * np.median(np.abs(self.losses[: len(m)] - m))  # of one loss; the median knows no explosion
        if falls.max() < 4 * noise * math.sqrt((1 - self.smoothing) / (1 + self.smoothing)) or falls.max() <= 0:
            return None
        return self.rate_at(2 * h + int(np.argmax(falls)))

    def __str__(self) -> str:
        found = (
            "none: the loss falls no further than by chance" if self.suggestion is None else f"{self.suggestion:.3g}"
        )
        taken = f"{len(self.rates)} steps from {self.rates[0]:.3g} to {self.rates[-1]:.3g}"
        return f"suggested {self.name} {found}; smallest loss at {self.lowest:.3g}; {taken}, {self.stopped}"

    def _picture(self) -> Any:
        return plots.range_picture(self)


def lr_range_test(
    make_state: Callable[[], Any],
    train_step: Callable[..., Any],
    batches: Any = None,
    *,
    low: float = 1e-6,
    high: float = 10.0,
    steps: int = 200,
    name: str = "learning_rate",
    smoothing: float = 0.9,
    stop: float = 4.0,
    progress: bool | None = None,
) -> RangeTest:
    """Trains a few steps while the learning rate rises, and suggests a rate from the loss.

        rate_i = low (high / low)^(i / (steps - 1)),  i = 0, 1, ..., steps - 1
        m_i = smoothing m_(i-1) + (1 - smoothing) loss_i,  m_(-1) = 0
        smoothed_i = m_i / (1 - smoothing^(i + 1))

    It ends early where a loss is not finite, or, after 1 / (1 - smoothing) steps, where the smoothed one exceeds the
    smallest so far `stop` times (where that is not above 0: by stop - 1 times the larger of its size and the first's).
    The rate is set in the state, so the step is compiled once; it works for whatever `inject_hyperparams` takes:
    `inject_hyperparams(lambda learning_rate: optax.chain(...))` for a chain. A schedule of the rate is put aside.

    Arguments:
        make_state: a function that gives what a training begins with, as `sweep` has it, without arguments.
        train_step: a function (state, batch) -> (state, loss), as `sweep` has it.
        batches: an iterable of batches that are all alike, gone through again where there are fewer than steps; without
            them train_step gets the state alone.
        low: the first rate; default 1e-6.
        high: the last rate; default 10.
        steps: how many, 3 or more; default 200.
        name: of the rate in the state, such as "embed/learning_rate" in a partition; default "learning_rate".
        smoothing: in [0, 1); default 0.9. The larger, the smoother and the later the curve.
        stop: > 1; default 4.
        progress: whether to show a bar, which needs tqdm; default: where stderr is a terminal.

    Returns: the curve; its `suggestion` is the rate where the loss falls fastest, the lag of the smoothing taken off.

    Errors:
        ValueError: numbers that are none of these; a name that is not in the state; a step that returns no loss or
            another state; a loss that is not finite at the first step.
        TypeError: arguments of other kinds.

    Source: Smith, Cyclical Learning Rates for Training Neural Networks, 2015, https://arxiv.org/abs/1506.01186. The
        exponential ramp, the smoothing and the choice by the steepest fall are later practice.
    """
    caller = "lr_range_test"
    for argument, f in {"make_state": make_state, "train_step": train_step}.items():
        if not callable(f):
            raise TypeError(f"{caller}: {argument} must be a function, got {shown(f)}")
    if required := [p.name for p in inspect.signature(make_state).parameters.values() if p.default is p.empty]:
        raise ValueError(f"{caller}: make_state must need no arguments, and needs {', '.join(required)}")
    finite = lambda v: is_number(v) and math.isfinite(v)
    if not (finite(low) and finite(high) and 0 < low < high):
        raise ValueError(f"{caller}: low and high must be numbers, 0 < low < high, got {shown(low)} and {shown(high)}")
    if not is_count(steps, 3):
        raise ValueError(f"{caller}: steps must be an int >= 3, got {shown(steps)}")
    if not (finite(smoothing) and 0 <= smoothing < 1):
        raise ValueError(f"{caller}: smoothing must be in [0, 1), got {shown(smoothing)}")
    if not (is_number(stop) and stop > 1):
        raise ValueError(f"{caller}: stop must be > 1, got {shown(stop)}")

    state = checked_state(caller, make_state())
    rates = np.geomspace(low, high, steps)
    set_to = lambda rate: chosen_hyperparams(caller, state, [(name, rate)], override=True)
    set_to(float(low))  # a name that is not there is an error of now
    step = partial(checked_step, caller, train_step)
    ramped = jax.jit(lambda state, rate, *batch: step(with_hyperparams(state, rate), *batch))
    data, losses, smoothed, mean = Batches(caller, batches, steps), [], [], 0.0
    bar, stopped = progress_bar(steps, "step", progress), "to the end"
    try:
        for i, (rate, batch) in enumerate(zip(rates.tolist(), data.each(), strict=True)):
            state, loss = ramped(state, set_to(rate), *batch)
            losses.append(float(loss))
            mean = smoothing * mean + (1 - smoothing) * losses[-1]
            smoothed.append(mean / (1 - smoothing ** (i + 1)))
            bar.update(1)
            if not math.isfinite(losses[-1]):
                if i == 0:
                    raise ValueError(
                        f"{caller}: the first loss is {losses[0]}: look at the data, the model and the state"
                    )
                stopped = f"where the loss was {losses[-1]}"
                break
            # The first means are of few losses; batches that are not alike would end the test at once.
            best = min(smoothed)
            much = best if best > 0 else max(abs(smoothed[0]), abs(best))
            if i * (1 - smoothing) >= 1 and smoothed[-1] - best > (stop - 1) * much > 0:
                stopped = f"where the loss had risen from {best:.3g} to {smoothed[-1]:.3g}"
                break
    finally:
        bar.close()
    return RangeTest(name, rates[: len(losses)], np.array(losses), np.array(smoothed), float(smoothing), stopped)
