"""Precision: training with 16-bit parameters that tracks float32, and what optimizer state takes in memory."""

from adaptx.precision.kahan import KahanState, kahan
from adaptx.precision.master_weights import MasterWeightsState, master_weights
from adaptx.precision.memory import Memory, memory
from adaptx.precision.stochastic_rounding import StochasticRoundingState, stochastic_rounding

__all__ = [
    "KahanState",
    "MasterWeightsState",
    "Memory",
    "StochasticRoundingState",
    "kahan",
    "master_weights",
    "memory",
    "stochastic_rounding",
]
