"""Hyperparameters that live in the state: logged, changed and swept without compiling again."""

from adaptx.hyperparams.inject import InjectState, Scheduled, get_hyperparams, inject_hyperparams, set_hyperparams

__all__ = ["inject_hyperparams", "get_hyperparams", "set_hyperparams", "InjectState", "Scheduled"]
