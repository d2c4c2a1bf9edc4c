"""Hyperparameters that live in the state, groups of parameters, and schedules: a new value compiles nothing."""

from adaptx.hyperparams.groups import Groups, group_by_path, group_table, inject_per_group, reset_group
from adaptx.hyperparams.inject import (
    Counted,
    DecayPair,
    InjectState,
    Scheduled,
    get_hyperparams,
    inject_hyperparams,
    set_hyperparams,
)
from adaptx.hyperparams.layerwise import Stacked, layerwise_decay
from adaptx.hyperparams.masks import no_decay_on
from adaptx.hyperparams.schedules import Recurrent, inverse_sqrt, recurrent, warmup_stable_decay

__all__ = [
    "inject_hyperparams",
    "get_hyperparams",
    "set_hyperparams",
    "InjectState",
    "Scheduled",
    "DecayPair",
    "Counted",
    "group_by_path",
    "inject_per_group",
    "group_table",
    "reset_group",
    "Groups",
    "layerwise_decay",
    "Stacked",
    "no_decay_on",
    "warmup_stable_decay",
    "inverse_sqrt",
    "recurrent",
    "Recurrent",
]
