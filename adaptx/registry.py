"""The registry's public door: `adaptx.registry.OPTIMIZERS` maps each name to what the optimizer declares."""

from adaptx.core.registry import OPTIMIZERS, Entry, Paper
from adaptx.glossary import GLOSSARY, Argument

__all__ = ["GLOSSARY", "OPTIMIZERS", "Argument", "Entry", "Paper"]
