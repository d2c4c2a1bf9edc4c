"""adaptx: adaptive-gradient optimizers for JAX that equal their papers, as Optax transformations."""

from adaptx import hyperparams, registry, sparse, tune
from adaptx.optimizers.adagrad.adadelta import AdadeltaState, adadelta, scale_by_adadelta
from adaptx.optimizers.adagrad.adagrad import AdaGradState, adagrad, scale_by_adagrad
from adaptx.optimizers.adagrad.adagrad_norm import AdaGradNormState, adagrad_norm, scale_by_adagrad_norm
from adaptx.optimizers.adagrad.ftrl import FTRLState, ftrl
from adaptx.optimizers.adagrad.rmsprop import RMSPropState, rmsprop, scale_by_rmsprop
from adaptx.optimizers.adam.adabound import adabound
from adaptx.optimizers.adam.adam import AdamState, adam, adamw, scale_by_adam
from adaptx.optimizers.adam.adamax import AdamaxState, adamax, scale_by_adamax
from adaptx.optimizers.adam.nadam import NAdamState, nadam, scale_by_nadam
from adaptx.optimizers.factored.adafactor import AdafactorState, adafactor
from adaptx.optimizers.factored.adam_mini import adam_mini, scale_by_adam_mini
from adaptx.optimizers.factored.came import CAMEState, came, scale_by_came
from adaptx.optimizers.parameter_free.dog import DoGState, dog
from adaptx.optimizers.sign.lion import LionState, lion, scale_by_lion
from adaptx.optimizers.sign.signum import SignumState, scale_by_signum, signum
from adaptx.optimizers.trust_ratio.lamb import lamb
from adaptx.optimizers.trust_ratio.lars import LARSState, lars
from adaptx.wrappers.zero_small import zero_small

__version__ = "0.1.0"

# In reading order, by family.
__all__ = [
    # AdaGrad and its line
    "adagrad", "scale_by_adagrad", "AdaGradState",
    "adagrad_norm", "scale_by_adagrad_norm", "AdaGradNormState",
    "ftrl", "FTRLState",
    "rmsprop", "scale_by_rmsprop", "RMSPropState",
    "adadelta", "scale_by_adadelta", "AdadeltaState",
    # Adam and its line
    "adam", "adamw", "scale_by_adam", "AdamState",
    "adamax", "scale_by_adamax", "AdamaxState",
    "nadam", "scale_by_nadam", "NAdamState",
    "adabound",
    # The sign line
    "lion", "scale_by_lion", "LionState",
    "signum", "scale_by_signum", "SignumState",
    # Factored and shared second moments
    "adafactor", "AdafactorState",
    "came", "scale_by_came", "CAMEState",
    "adam_mini", "scale_by_adam_mini",
    # Trust ratio
    "lamb",
    "lars", "LARSState",
    # Parameter-free
    "dog", "DoGState",
    # To chain with any of them
    "zero_small",
    # Tables of which a step uses few rows
    "sparse",
    # Numbers that live in the state
    "hyperparams",
    # Sweeps and range tests
    "tune",
    # What every optimizer declares
    "registry",
]  # fmt: skip
