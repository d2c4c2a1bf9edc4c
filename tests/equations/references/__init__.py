"""References: every optimizer as a NumPy float64 loop, transcribed from its paper and from nothing in the library.

A reference is a generator named like its optimizer, in the file of its family. It receives the steps (t, x, g) one by
one and yields each step's update and the state that the paper names, by the library's slot names. x and g are one
array: a tensor, or with `@over_tree` all parameters as the one long vector that papers write, so that `norm` is the
paper's norm in both. Where a method takes the Hessian's diagonal it is `hessian_of(g)`.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

from tests.equations.references import loop
from tests.equations.references.loop import OVER_TREE, Reference

FAMILIES = [
    importlib.import_module(f"{__name__}.{module.name}")
    for module in pkgutil.iter_modules(__path__)
    if module.name != "loop"
]

# Name -> the loop. A registered optimizer that is missing here fails law A1.
REFERENCES: dict[str, Reference] = {
    name: function
    for family in FAMILIES
    for name, function in vars(family).items()
    if inspect.isfunction(function) and function.__module__ == family.__name__ and not name.startswith("_")
}


def replay(
    name: str, params: Any, grads: Sequence[Any], kwargs: Mapping[str, Any], iterates: Sequence[Any] | None = None
) -> list[tuple[Any, dict[str, Any]]]:
    """`loop.replay` of the optimizer's reference."""
    return loop.replay(REFERENCES[name], params, grads, kwargs, iterates)


__all__ = ["FAMILIES", "OVER_TREE", "REFERENCES", "replay"]
