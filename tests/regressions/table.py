"""Bugs of other libraries: the law that guards every optimizer here against each, and a defect of its kind.

An entry of the table is one line: where it was reported, what happened, the law, the case that the defect is planted
in, and the defect. LAWS_OWN means that the law's own planted defect is this bug.
"""

# ruff: noqa: E501 (one entry a line)

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tests.conformance.cases import Case
from tests.conformance.laws.f_symmetries import couples, drifts
from tests.regressions import defects


class Regression(NamedTuple):
    bug: str
    what: str
    law: str
    case: str
    plant: Callable[[Case], Case] | None


LAWS_OWN = None

REGRESSIONS = (
    Regression("optax#1414", "injected with bfloat16 parameters, b2 rounds to 1 and Adam returns NaN", "H4", "adam-0", defects.bfloat16_decay_rates),
    Regression("optax#1754, optax#1769, keras#11860", "Adam and AMSGrad: zero float16 gradients give NaN", "E1", "adam-0", LAWS_OWN),
    Regression("optax#1784, optax#1785", "scale_by_rms and scale_by_stddev: zero float16 gradients give NaN", "E1", "rmsprop-0", defects.rmsprop_in_float16),
    Regression("optax (38 optimizers measured)", "Adamax: zero float16 gradients give NaN", "E1", "adamax-0", defects.adamax_in_float16),
    Regression("torch (for-loop default)", "Adagrad: zero float16 gradients give NaN", "E1", "adagrad-0", defects.adagrad_in_float16),
    Regression("torch (float16 gradients of 300)", "Adagrad and NAdam: squares overflow and every step is 0", "E3", "adagrad-0", defects.adagrad_in_float16),
    Regression("optax#1789", "adan: zero float16 gradients give NaN", "E1", "adan-0", defects.adan_in_float16),
    Regression("optax#1790", "novograd: zero float16 gradients give NaN", "E1", "novograd-0", defects.novograd_in_float16),
    Regression("optax#1725", "rprop returns the update of the step before", "A3", "rprop-0", defects.previous_update),
    Regression("optax#1736", "sm3: a number is an IndexError", "D1", "sm3-0", defects.has_an_axis),
    Regression("optax#1736, torch#100701", "an empty leaf is an error, or stops the others", "D1", "sm3-0", defects.maximum_of_nothing),
    Regression("optax.adafactor, optax.madgrad", "adafactor and madgrad: NaN at count 2^31 - 1", "E4", "madgrad-0", defects.count_wraps),
    Regression("optax#1791", "adafactor: decay_offset > 0 gives NaN for ever", "A1", "adafactor-2", defects.power_of_a_negative),
    Regression("optax#1743", "SAM's normalize: 0/0", "E7", "adam-0", LAWS_OWN),
    Regression("optax#1744, optax#415", "schedule_free and inject_hyperparams ask the schedule for step 1 first", "F5", "adam-0", defects.schedule_starts_at_one),
    Regression("heavyball#29", "warm-up is off by one step", "F5", "adam-0", defects.schedule_starts_at_one),
    Regression("fairscale#263, burn#5699, maxtext#5143", "clipping by a global norm that overflows gives updates of 0", "E3", "adam-0", defects.clip_by_global_norm),
    Regression("keras-hub#2629, tt-metal#55935, heavyball#2", "bfloat16 second moments stop at .50 where .95 is true", "C4", "adam-0", LAWS_OWN),
    Regression("optax (measured)", "dog, dowg, cocob, madgrad, prodigy: state aliases the parameters, so that both cannot be donated", "B6", "dog-0", LAWS_OWN),
    Regression("optax.dadapt_adamw", "zero gradients over the tree give 0/0", "E1", "dadapt_adam-0", defects.divides_by_the_gradients),
    Regression("optax.prodigy, pytorch_optimizer", "the same", "E1", "prodigy-0", defects.divides_by_the_gradients),
    Regression("optax.cocob", "the learning rate scales gradients whose scale does not matter", "A5", "cocob-0", defects.has_no_rate),
    Regression("optax.adopt, optax.madgrad", "complex parameters are an error", "C5", "adopt-0", defects.clips_what_has_no_order),
    Regression("optax.adan", "gradients and parameters of two dtypes: the state's dtype drifts", "C3", "adan-0", LAWS_OWN),
    Regression("optax (35 of 38 optimizers)", "a gradient of a wrong, broadcastable shape is accepted", "G1", "adam-0", LAWS_OWN),
    Regression("optax#377, optax#1039, optax#1122, equinox#853", "MultiSteps fails where a float32 rate makes bfloat16 updates float32", "C1", "adam-0", defects.float32_rate),
    Regression("optax#412", "adafactor cannot be injected: it branches on a number", "B4", "adam-0", LAWS_OWN),
    Regression("optax#271, torchopt#232", "a MaskedNode inside the tree is taken for an array", "D1", "adam-0", defects.masked_node_is_an_array),
    Regression("optax#913", "a mask that is a callable pytree is called", "D1", "adam-2", defects.calls_every_mask),
    Regression("optax#1131", "arguments for others end in a TypeError", "H4", "adam-0", defects.takes_no_other_arguments),
    Regression("optax#1171, optax#1207, optax#1210", "the state's dtype drifts, and scan refuses it", "C1", "adam-0", LAWS_OWN),
    Regression("flax#924, jax#4840", "under x64 float32 becomes float64", "C1", "adam-0", defects.default_float),
    Regression("optax#1051", "prodigy does the same", "C1", "prodigy-0", defects.default_float),
    Regression("torch#110940", "the step's dtype follows a global default", "C1", "adam-0", defects.counts_in_the_default_int),
    Regression("optax#1186", "an array made inside a trace is kept: UnexpectedTracerError", "B5", "adam-0", LAWS_OWN),
    Regression("optax#1389", "AMSGrad takes its maximum after the bias correction", "A1", "adam-1", defects.amsgrad_after_correction),
    Regression("optax#196, optax#287, torch#59998, tf-keras#30, tensorflow#38541", "complex gradients: g g in place of |g|^2", "C5", "adam-0", defects.complex_square),
    Regression("optax 292dcbf7", "DoG: arguments in the wrong order", "A1", "dog-1", defects.swapped_arguments),
    Regression("optax#1148", "nnx models: a tree that is no dict fails", "H5", "adam-0", LAWS_OWN),
    Regression("flax#5172", "state is not sharded like its parameter", "D2", "adam-0", LAWS_OWN),
    Regression("equinox#69", "a leaf that is a Python number has no dtype", "D1", "adam-0", defects.leaf_has_a_dtype),
    Regression("equinox#940", "a Python number in the state: the second step compiles again", "B7", "adam-0", LAWS_OWN),
    Regression("torch#92699", "NAdam: the product of momenta differs between paths", "A1", "nadam-0", defects.product_not_kept),
    Regression("torch#116490, torch#118230", "differentiable optimizers: derivatives that are NaN or missing", "B9", "adam-0", LAWS_OWN),
    Regression("torch#186444", "a learning rate of 0 gives NaN", "E7", "adam-0", defects.divides_by_the_rate),
    Regression("bitsandbytes (Lion), bitsandbytes#13", "decay that should be decoupled is added to the gradient", "F5", "adam-0", LAWS_OWN),
    Regression("bitsandbytes (LAMB)", "the same where a trust ratio rescales the step", "F5", "lamb-0", couples),
    Regression("FlagGems#4988", "Adam decays as AdamW does", "A1", "adam-0", defects.decays_by_default),
    Regression("OneTrainer#996", "bfloat16 decay rounds to nothing", "C3", "adam-0", LAWS_OWN),
    Regression("pytorch_optimizer#397", "eps is added to the accumulator at every step", "F4", "adam-0", LAWS_OWN),
    Regression("pytorch_optimizer#431, pytorch_optimizer#480", "StableSPAM and AdamP: zero norms give NaN", "E7", "adam-0", LAWS_OWN),
    Regression("tensorflow#9047", "eps-hat in place of eps", "A1", "adam-2", defects.eps_hat),
    Regression("SOAP_JAX", "the branch without a refresh returns the old second moment", "A1", "adam-0", LAWS_OWN),
    Regression("optax.adadelta()", "the default rate leaves the sign as it is, and ascends", "A1", "adadelta-0", defects.ascends),
    Regression("optax.yogi", "a zero gradient moves the parameters", "E1", "yogi-0", lambda case: case.broken(drifts)),
    Regression("optax d74d4796", "madgrad starts its averaging at 0, not at the parameters", "A1", "madgrad-0", defects.starts_at_zero),
    Regression("pytorch_optimizer#135", "Lion takes the sign after the momentum has moved", "A1", "lion-0", defects.sign_of_the_new_momentum),
    Regression("pytorch_optimizer#346", "ADOPT divides by a moment that has the gradient in it", "A1", "adopt-0", defects.divides_by_the_new_moment),
    Regression("pytorch_optimizer#354", "RAdam without the second bias correction", "A1", "radam-0", defects.one_correction_missing),
    Regression("pytorch_optimizer#477", "Adafactor's clipping never clips", "A1", "adafactor-0", defects.never_clips),
    Regression("optax.inject_hyperparams", "b1, b2 and eps as float32 numbers: a run ends up to 3e-2 elsewhere", "H1", "adam-0", LAWS_OWN),
    Regression("optax.rmsprop(centered=True)", "a variance rounded below 0 gives NaN", "E2", "rmsprop-1", defects.variance_below_zero),
)  # fmt: skip

# Reported, and not possible with what is here today.
LATER = (
    ("optax#1746, optax#828", "apply_if_finite's counter, and zero_nans inside MultiSteps: Optax's own wrappers"),
    ("optax#263, optax#165", "which parameters Optax's lookahead passes on; H4 checks what comes out"),
    ("optax#1082", "the optimistic gradient's first step"),
    ("optax#1323", "fromage's schedule and dtype"),
    ("optax 3482972d", "momo's loss as a Python float"),
    ("optax 17e3e7ae, optax 0d67475c, optax.contrib.muon, pytorch_optimizer#371", "Muon"),
    ("optax (shard_map)", "reductions over one shard only: law I2, with parallel/"),
    ("torch#82486, keras#18985", "sparse gradients: no law's, but tests/sparse'"),
    ("pytorch_optimizer#316", "a cautious mask that changes the momentum: a wrapper's, tests/wrappers"),
    ("torch#36831", "a parameter listed twice: the leaves of a pytree are distinct"),
    ("torch#90752, torch#95781, torch#96755", "the fused AdamW's loss scaling: nothing is fused by hand"),
    ("torch#35047, torch#43706, torch#74424, torch#75214, torch#103256, torchao#3314, torchtitan#4615", "what a restored state loses: checkpoint/"),
    ("bitsandbytes#1269, bitsandbytes#1382", "groups overridden in the wrong order; a resumed AdEMAMix"),
    ("spd#643", "the eps of gradient clipping, which is Optax's"),
    ("pytorch_optimizer#139, #170, #179, #203, #257, #305, #306, #333, #335, #376, #385", "other methods"),
    ("heavyball a727da9, heavyball e06cc21", "Shampoo's eps and factors"),
)  # fmt: skip
