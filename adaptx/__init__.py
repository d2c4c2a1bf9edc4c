"""adaptx: adaptive-gradient optimizers for JAX that equal their papers, as Optax transformations."""

from adaptx import curvature, hyperparams, precision, presets, registry, sparse, tune
from adaptx.optimizers.adagrad.adadelta import AdadeltaState, adadelta, scale_by_adadelta
from adaptx.optimizers.adagrad.adagrad import AdaGradState, adagrad, scale_by_adagrad
from adaptx.optimizers.adagrad.adagrad_da import AdaGradDAState, adagrad_da
from adaptx.optimizers.adagrad.adagrad_full import AdaGradFullState, adagrad_full, scale_by_adagrad_full
from adaptx.optimizers.adagrad.adagrad_norm import AdaGradNormState, adagrad_norm, scale_by_adagrad_norm
from adaptx.optimizers.adagrad.ftrl import FTRLState, ftrl
from adaptx.optimizers.adagrad.kate import KATEState, kate, scale_by_kate
from adaptx.optimizers.adagrad.madgrad import MADGRADState, madgrad
from adaptx.optimizers.adagrad.rmsprop import RMSPropState, rmsprop, scale_by_rmsprop
from adaptx.optimizers.adagrad.sm3 import SM3State, scale_by_sm3, sm3
from adaptx.optimizers.adam.adabelief import adabelief, scale_by_adabelief
from adaptx.optimizers.adam.adabound import adabound
from adaptx.optimizers.adam.adam import AdamState, adam, adamw, scale_by_adam
from adaptx.optimizers.adam.adam_atan2 import adam_atan2, scale_by_adam_atan2
from adaptx.optimizers.adam.adamax import AdamaxState, adamax, scale_by_adamax
from adaptx.optimizers.adam.adamod import AdaModState, adamod
from adaptx.optimizers.adam.adan import AdanState, adan, scale_by_adan
from adaptx.optimizers.adam.ademamix import (
    AdEMAMixState,
    ademamix,
    scale_by_ademamix,
    scale_by_simplified_ademamix,
    simplified_ademamix,
)
from adaptx.optimizers.adam.adopt import adopt, scale_by_adopt
from adaptx.optimizers.adam.laprop import laprop, scale_by_laprop
from adaptx.optimizers.adam.nadam import NAdamState, nadam, scale_by_nadam
from adaptx.optimizers.adam.novograd import NovoGradState, novograd, scale_by_novograd
from adaptx.optimizers.adam.padam import padam, scale_by_padam
from adaptx.optimizers.adam.qhadam import qhadam, scale_by_qhadam
from adaptx.optimizers.adam.radam import radam, scale_by_radam
from adaptx.optimizers.adam.stable_adamw import scale_by_stable_adamw, stable_adamw
from adaptx.optimizers.adam.yogi import scale_by_yogi, yogi
from adaptx.optimizers.curvature.adahessian import adahessian, scale_by_adahessian
from adaptx.optimizers.curvature.sophia import SophiaState, scale_by_sophia, sophia
from adaptx.optimizers.factored.adafactor import AdafactorState, adafactor
from adaptx.optimizers.factored.adam_mini import adam_mini, scale_by_adam_mini
from adaptx.optimizers.factored.came import CAMEState, came, scale_by_came
from adaptx.optimizers.parameter_free.cocob import COCOBState, cocob, scale_by_cocob
from adaptx.optimizers.parameter_free.dadapt_adagrad import DAdaptAdaGradState, dadapt_adagrad
from adaptx.optimizers.parameter_free.dadapt_adam import DAdaptAdamState, dadapt_adam
from adaptx.optimizers.parameter_free.dadapt_sgd import DAdaptSGDState, dadapt_sgd
from adaptx.optimizers.parameter_free.dog import DoGState, dog
from adaptx.optimizers.parameter_free.dowg import dowg
from adaptx.optimizers.parameter_free.prodigy import ProdigyState, prodigy
from adaptx.optimizers.sign.lion import LionState, lion, scale_by_lion
from adaptx.optimizers.sign.rprop import RpropState, rprop
from adaptx.optimizers.sign.signum import SignumState, scale_by_signum, signum
from adaptx.optimizers.trust_ratio.lamb import lamb
from adaptx.optimizers.trust_ratio.lars import LARSState, lars
from adaptx.wrappers.cautious import cautious
from adaptx.wrappers.graft import GraftState, graft
from adaptx.wrappers.mars import MarsState, mars
from adaptx.wrappers.momentum import MomentumState, scale_by_momentum
from adaptx.wrappers.schedule_free import ScheduleFreeState, schedule_free, schedule_free_eval_params
from adaptx.wrappers.update_clipping import UpdateClippingState, update_clipping
from adaptx.wrappers.weight_decay import WeightDecayState, with_weight_decay
from adaptx.wrappers.zero_small import zero_small

__version__ = "0.1.0"

# In reading order, by family.
__all__ = [
    # AdaGrad and its line
    "adagrad", "scale_by_adagrad", "AdaGradState",
    "adagrad_norm", "scale_by_adagrad_norm", "AdaGradNormState",
    "adagrad_full", "scale_by_adagrad_full", "AdaGradFullState",
    "sm3", "scale_by_sm3", "SM3State",
    "kate", "scale_by_kate", "KATEState",
    "ftrl", "FTRLState",
    "adagrad_da", "AdaGradDAState",
    "madgrad", "MADGRADState",
    "rmsprop", "scale_by_rmsprop", "RMSPropState",
    "adadelta", "scale_by_adadelta", "AdadeltaState",
    # Adam and its line
    "adam", "adamw", "scale_by_adam", "AdamState",
    "adamax", "scale_by_adamax", "AdamaxState",
    "nadam", "scale_by_nadam", "NAdamState",
    "radam", "scale_by_radam",
    "yogi", "scale_by_yogi",
    "adabelief", "scale_by_adabelief",
    "padam", "scale_by_padam",
    "qhadam", "scale_by_qhadam",
    "laprop", "scale_by_laprop",
    "adabound",
    "adamod", "AdaModState",
    "stable_adamw", "scale_by_stable_adamw",
    "adam_atan2", "scale_by_adam_atan2",
    "adan", "scale_by_adan", "AdanState",
    "adopt", "scale_by_adopt",
    "ademamix", "scale_by_ademamix", "AdEMAMixState",
    "simplified_ademamix", "scale_by_simplified_ademamix",
    "novograd", "scale_by_novograd", "NovoGradState",
    # Signs
    "rprop", "RpropState",
    # Trust ratio
    "lamb",
    # Curvature: the Hessian's diagonal
    "adahessian", "scale_by_adahessian",
    "sophia", "scale_by_sophia", "SophiaState",
    # The sign line
    "lion", "scale_by_lion", "LionState",
    "signum", "scale_by_signum", "SignumState",
    # Factored and shared second moments
    "adafactor", "AdafactorState",
    "came", "scale_by_came", "CAMEState",
    "adam_mini", "scale_by_adam_mini",
    # Trust ratio
    "lars", "LARSState",
    # Parameter-free
    "dog", "dowg", "DoGState",
    "dadapt_sgd", "DAdaptSGDState",
    "dadapt_adagrad", "DAdaptAdaGradState",
    "dadapt_adam", "DAdaptAdamState",
    "prodigy", "ProdigyState",
    "cocob", "scale_by_cocob", "COCOBState",
    # To chain with any of them
    "zero_small",
    "scale_by_momentum", "MomentumState",
    # Estimates of the Hessian's diagonal
    "curvature",
    "update_clipping", "UpdateClippingState",
    # Around any of them
    "schedule_free", "schedule_free_eval_params", "ScheduleFreeState",
    "cautious",
    "with_weight_decay", "WeightDecayState",
    "mars", "MarsState",
    "graft", "GraftState",
    # Tables of which a step uses few rows
    "sparse",
    # Numbers that live in the state
    "hyperparams",
    # Sweeps and range tests
    "tune",
    # Other frameworks' numerics by name
    "precision",
    "presets",
    # What every optimizer declares
    "registry",
]  # fmt: skip
