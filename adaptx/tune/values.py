"""Values: a trial's numbers, as its state will hold them or as make_state gets them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from adaptx.core.checks import shown
from adaptx.glossary import GLOSSARY
from adaptx.hyperparams.inject import Scheduled, chosen_hyperparams, kept_hyperparams
from adaptx.tune.space import Trial


class Values(NamedTuple):
    """What distinguishes one trial from another; a group's have a leading axis."""

    arguments: dict[str, Any]  # of make_state
    kept: dict[str, Any]  # in the state, by path


def each_trials_values(make_state: Callable[..., Any], drawn: Sequence[Trial]) -> tuple[Any, list[Values]]:
    """A state of the first trial, and for every trial what makes its own."""
    parameters = inspect.signature(make_state).parameters
    required = [
        p.name for p in parameters.values() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if missing := [name for name in required if name not in drawn[0]]:
        raise ValueError(f"sweep: make_state needs {', '.join(missing)}, which the space has not")
    any_name = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    takes = [name for name in drawn[0] if any_name or name in parameters]
    # As arrays, which is what each trial's are: a Python number would leave other dtypes as they are.
    template = checked_state("sweep", make_state(**{name: jnp.array(np.asarray(drawn[0][name])) for name in takes}))
    found = kept_hyperparams(template)
    kept = {name: k for k in found.values() for name in (k.argument, k.name)}
    for name in drawn[0]:
        meaning = GLOSSARY.get(name)
        if name in takes or name in found or name in kept:
            if name not in takes and isinstance((found | kept)[name].value, Scheduled):
                raise ValueError(
                    f"sweep: {name} is scheduled; to sweep its peak, inject a constant and chain "
                    "optax.scale_by_schedule(shape) after the optimizer"
                )
            continue
        if meaning is not None and not meaning.test(0.5):
            raise ValueError(
                f"sweep: {name} shapes the program ({meaning.allowed}); make a sweep for each of its values"
            )
        there = ", ".join(dict.fromkeys(k.name for k in found.values())) or "none, without inject_hyperparams"
        raise ValueError(
            f"sweep: {name} is no argument of make_state and no hyperparameter of its state (there: {there}); "
            "what is off (None) is not there"
        )
    values = []
    for trial in drawn:
        chosen = chosen_hyperparams("sweep", template, [(n, v) for n, v in trial.items() if n not in takes], False)
        if takes:  # whose ranges are checked where the state keeps them by the same name
            chosen_hyperparams("sweep", template, [(n, trial[n]) for n in takes if n in found or n in kept], True)
        values.append(Values({name: trial[name] for name in takes}, jax.tree.map(np.asarray, chosen)))
    return template, values


def settled(state: Any) -> Any:
    """Python's numbers as arrays, and no weak types: what a step gives has none, and would be another program."""

    def strong(x: Any) -> Any:
        return x if jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key) else jnp.asarray(x, jnp.result_type(x))

    return jax.tree.map(strong, state)


def checked_state(caller: str, state: Any) -> Any:
    """What make_state gave, settled; it must be a tree of arrays."""
    for path, leaf in tree_leaves_with_path(state):
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | int | float | complex):
            raise TypeError(
                f"{caller}: make_state must return a tree of arrays, got {shown(leaf)} at {keystr(path) or 'the root'} "
                "(nnx objects are trees from flax 0.12 on; before, give their parameters and tx.init(...) of them)"
            )
    return settled(state)
