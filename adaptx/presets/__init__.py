"""Presets: other frameworks' optimizers by name, with their arguments, defaults and exact rules.

`presets.torch.adam(lr=1e-3)`, `presets.keras.rmsprop(momentum=0.9)`, `presets.optax.amsgrad(1e-3)`: the framework's own
trajectories, to 1e-12 in float64 (Adafactor, where Keras and Optax have float32 numbers inside, to 1e-7). Low precision
is this library's: float32 accumulators, one cast. torch's pairs, such as betas, are no numbers that a state could hold:
to inject a decay rate, take Optax's or Keras's preset, or the library's own optimizer.
"""

from adaptx.presets import keras, optax, torch

__all__ = ["keras", "optax", "torch"]
