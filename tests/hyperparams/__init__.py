"""Hyperparameters in the state."""
