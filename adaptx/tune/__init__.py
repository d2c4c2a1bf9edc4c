"""Tuning: sweeps of hyperparameters from one compilation, and the learning-rate range test."""

from adaptx.tune.range_test import RangeTest, lr_range_test
from adaptx.tune.results import Outcome, Results
from adaptx.tune.rungs import Halving
from adaptx.tune.space import choice, log_uniform, uniform
from adaptx.tune.sweeps import sweep

__all__ = [
    "sweep",
    "Halving",
    "lr_range_test",
    "uniform",
    "log_uniform",
    "choice",
    "Results",
    "Outcome",
    "RangeTest",
]
