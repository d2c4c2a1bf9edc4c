"""Precision: training with 16-bit parameters that tracks float32, and optimizer state in few bits."""

from adaptx.precision import codecs
from adaptx.precision.compress import CompressedState, Store, Stored, compress_state
from adaptx.precision.kahan import KahanState, kahan
from adaptx.precision.master_weights import MasterWeightsState, master_weights
from adaptx.precision.memory import Leaf, Memory, memory
from adaptx.precision.step import step
from adaptx.precision.stochastic_rounding import StochasticRoundingState, stochastic_rounding

__all__ = [
    "CompressedState",
    "KahanState",
    "Leaf",
    "MasterWeightsState",
    "Memory",
    "StochasticRoundingState",
    "Store",
    "Stored",
    "codecs",
    "compress_state",
    "kahan",
    "master_weights",
    "memory",
    "step",
    "stochastic_rounding",
]
