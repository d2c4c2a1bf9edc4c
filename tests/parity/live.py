"""Runs the presets beside the frameworks: `python -m tests.parity.live [--seed N] [--draws N]`, by `make parity`.

The settings of the golden files, then hyperparameters and gradients drawn at random; names, order and defaults of all
arguments; golden files that are still what the frameworks give. Prints the largest deviation of each method.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import json
import secrets
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from adaptx.presets.words import FRAMEWORKS
from tests.parity import frameworks, ours
from tests.parity.problem import GOLDEN, KEPT, STEPS, Problem, Setting, deviation, drawn, flat, stored
from tests.parity.settings import METHODS, settings

# Where a default is not theirs: a rate of None makes Optax's Adadelta ascend.
OTHER_DEFAULTS = {("optax", "adadelta", "learning_rate")}


Rng = np.random.Generator
_rate = lambda rng: float(10 ** rng.uniform(-4, -0.3))
_decay = lambda rng: float(rng.uniform(0.05, 0.999))
_eps = lambda rng: float(10 ** rng.uniform(-10, -1))
_flag = lambda rng: bool(rng.integers(2))
_size = lambda rng: float(rng.uniform(0.05, 1.5))
DRAW: dict[str, Callable[[Rng], Any]] = {
    **dict.fromkeys(("lr", "learning_rate"), _rate),
    **dict.fromkeys(("b1", "b2", "beta_1", "beta_2", "momentum"), _decay),
    # A centered variance cancels while its decay is short.
    **dict.fromkeys(("alpha", "rho", "decay"), lambda rng: float(rng.uniform(0.5, 0.999))),
    **dict.fromkeys(("eps", "epsilon", "eps_root", "epsilon_1", "epsilon_2"), _eps),
    **dict.fromkeys(("weight_decay", "weight_decay_rate", "lr_decay", "momentum_decay"), lambda rng: _size(rng) / 5),
    **dict.fromkeys(("initial_accumulator_value", "initial_scale", "clipnorm", "clipvalue", "global_clipnorm"), _size),
    **dict.fromkeys(("clip_threshold", "clipping_threshold"), _size),
    **dict.fromkeys(("maximize", "decoupled_weight_decay", "amsgrad", "centered", "nesterov", "eps_in_sqrt"), _flag),
    **dict.fromkeys(("bias_correction", "bias_correction_mu", "bias_correction_nu"), _flag),
    **dict.fromkeys(("multiply_by_parameter_scale", "factored"), _flag),
    **dict.fromkeys(("beta2_decay", "beta_2_decay"), lambda rng: -float(rng.uniform(0.3, 0.95))),
    "betas": lambda rng: (_decay(rng), _decay(rng)),
    "threshold": lambda rng: float(rng.uniform(4, 8)),
    "decay_rate": lambda rng: float(rng.uniform(0.3, 0.95)),
    "min_dim_size_to_factor": lambda rng: int(rng.integers(1, 7)),
    "d": lambda rng: 1 + _size(rng),
}
CLIPS = ["clipnorm", "clipvalue", "global_clipnorm"]


def random_setting(framework: str, method: str, rng: Rng) -> Setting:
    """Most arguments away from their defaults."""
    arguments = [a for a in inspect.signature(ours.preset(framework, method)).parameters if a in DRAW]
    kwargs = {a: DRAW[a](rng) for a in arguments if a not in CLIPS and (a == "learning_rate" or rng.random() < 0.8)}
    if framework == "keras" and rng.random() < 0.5:
        clip = str(rng.choice(CLIPS))
        kwargs[clip] = DRAW[clip](rng)
    if method == "adafactor" and framework == "torch" and "eps" in kwargs:
        kwargs["eps"] = (kwargs["eps"], _size(rng))
    if method == "rmsprop" and "momentum" not in kwargs:
        kwargs.pop("nesterov", None)  # which is refused where it would change nothing
    if kwargs.get("centered") and kwargs.get("bias_correction"):
        kwargs["eps"] = 1.0  # the first corrected variance is 0 but for rounding
    return Setting(kwargs, float(rng.uniform(0, 0.5)) if rng.random() < 0.5 else None)


@dataclasses.dataclass
class Row:
    """What came of one method."""

    framework: str
    method: str
    golden: float
    random: float
    stale: float  # of the golden file, against the framework
    wrong: str = ""

    @property
    def fails(self) -> bool:
        return bool(self.wrong) or not max(self.golden, self.random) <= 1e-12 or not self.stale <= 1e-12


def signature_differences(framework: str, method: str) -> str:
    """Arguments that the framework has under that name in another order, or with another default; "" if all agree."""
    preset = inspect.signature(ours.preset(framework, method)).parameters
    theirs = inspect.signature(frameworks.made_by(framework, method)).parameters
    wrong = [a for a in preset if a not in theirs]
    wrong += [
        f"{a}={p.default!r} is {theirs[a].default!r}"
        for a, p in preset.items()
        if a in theirs and p.default != theirs[a].default and (framework, method, a) not in OTHER_DEFAULTS
    ]
    positional = [a for a, p in preset.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    order = [a for a in theirs if a != "params"][: len(positional)]
    wrong += [] if positional == order else [f"positional {positional}, theirs {order}"]
    bound = getattr(frameworks.made_by(framework, method), "keywords", {})  # Optax's nadam is a partial of adam
    known = {*preset, *bound, *FRAMEWORKS[framework].instead, "kwargs"}
    return "; ".join([*wrong, *(f"nothing is said of {a}" for a in theirs if a not in known)])


def errors(framework: str, method: str, todo: list[Setting], problem: Problem, exact: bool = True) -> list[float]:
    """The deviation of the preset from the framework, over all steps, for each setting."""
    start, steps = flat(problem.params), np.arange(1, STEPS + 1)
    with frameworks.in_float64() if exact else contextlib.nullcontext():
        theirs = [frameworks.trajectory(framework, method, setting, problem) for setting in todo]
    ours_ = ours.trajectories(framework, method, todo, problem)
    return [deviation(a, b, steps, start) for a, b in zip(ours_, theirs, strict=True)]


def stale(framework: str, method: str, problem: Problem) -> float:
    """How far the golden file is from what the framework gives now."""
    with np.load(GOLDEN / f"{framework}-{method}.npz") as file:
        about, kept = json.loads(str(file["about"])), file["params"]
    if json.dumps(about["settings"]) != json.dumps([setting._asdict() for setting in settings(framework, method)]):
        return float("inf")
    at = [t - 1 for t in KEPT]
    with frameworks.in_float64():
        now = [frameworks.trajectory(framework, method, Setting(**s), problem)[at] for s in about["settings"]]
    return max(deviation(a, b, KEPT, flat(problem.params)) for a, b in zip(now, kept, strict=True))


def checked(framework: str, method: str, seed: int, draws: int) -> Row:
    rng = np.random.default_rng([seed, len(framework), *map(ord, method)])
    random = [random_setting(framework, method, rng) for _ in range(draws)]
    at_random = errors(framework, method, random, drawn(int(rng.integers(2**31))))
    row = Row(
        framework,
        method,
        max(errors(framework, method, settings(framework, method), stored())),
        max(at_random, default=0.0),
        stale(framework, method, stored()),
        signature_differences(framework, method),
    )
    if not row.random <= 1e-12:
        row.wrong += f" {random[int(np.argmax(at_random))]}"
    return row


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--draws", type=int, default=12)
    given = parser.parse_args(arguments)
    print("seed", given.seed, *(f"{k} {v}" for k, v in frameworks.VERSIONS.items()))
    print(f"{'preset':18} {'settings':>9} {'random':>9} {'stale':>9}")
    failed = 0
    for framework, methods in METHODS.items():
        for method in methods:
            row = checked(framework, method, given.seed, given.draws)
            failed += row.fails
            numbers = " ".join(f"{v:9.1e}" for v in (row.golden, row.random, row.stale))
            print(f"{framework + '.' + method:18} {numbers} {'FAILS ' * row.fails}{row.wrong}", flush=True)
    for framework in ("keras", "optax"):
        plain = max(errors(framework, "adafactor", settings(framework, "adafactor"), stored(), exact=False))
        failed += not plain <= 1e-6
        print(f"{framework}.adafactor with the float32 inside of it, which hides what is below 1e-7: {plain:.1e}")
    print(f"{failed} fail" if failed else "all agree")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
