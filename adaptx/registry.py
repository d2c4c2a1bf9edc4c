"""The registry's public door: `adaptx.registry.OPTIMIZERS` maps each name to what the optimizer declares."""

from adaptx.core.registry import GLOSSARY, OPTIMIZERS, Argument, Entry, Paper

__all__ = ["GLOSSARY", "OPTIMIZERS", "Argument", "Entry", "Paper"]
