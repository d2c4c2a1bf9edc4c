"""Groups: parameters by the paths of their leaves, each group with hyperparameters or an optimizer of its own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from optax.transforms import PartitionState

from adaptx.core.checks import expanded_mask, shown
from adaptx.glossary import is_number
from adaptx.hyperparams.inject import InjectState, inject_hyperparams, kept_hyperparams
from adaptx.hyperparams.paths import Matcher, Patterns, keys_of_leaves, leaves_by_path


class Groups:
    """What `group_by_path` gives: called with a tree it gives the group of each leaf, as `optax.partition` asks."""

    names: tuple[str, ...]

    def __init__(self, rules: Mapping[str, Patterns], rest: str | None = None) -> None:
        self._matchers = {group: Matcher.of("group_by_path", patterns) for group, patterns in rules.items()}
        self._rest = rest
        self.names = (*self._matchers, *([] if rest is None else [rest]))
        if len(set(self.names)) < len(self.names) or not all(isinstance(n, str) and n for n in self.names):
            raise ValueError(f"group_by_path: groups must be distinct names, got {', '.join(map(repr, self.names))}")

    def __call__(self, tree: Any) -> Any:
        """The tree with a group's name at each leaf."""
        treedef = leaves_by_path(tree)[1]
        return treedef.unflatten(keys_of_leaves("group_by_path", self._matchers, tree, self._rest))

    def __repr__(self) -> str:
        rules = [f"{group}: {matcher.text}" for group, matcher in self._matchers.items()]
        return f"Groups({'; '.join([*rules, *([] if self._rest is None else [f'{self._rest}: the rest'])])})"


def group_by_path(rules: Mapping[str, Patterns], rest: str | None = None) -> Groups:
    """Groups of parameters by the paths of their leaves, in any tree: linen's dicts, FrozenDicts, nnx States, modules.

        groups = group_by_path({"embed": "**/embedding", "kernels": "**/kernel"}, rest="others")
        tx = optax.partition({"embed": adagrad(0.1), "kernels": adamw(1e-3), "others": adam(1e-3)}, groups)

    A path is made of the names on the way to a leaf: "params/encoder/layers_0/kernel". A pattern is a string that fits
    the whole path, with `*` for any characters of one part, `?` for one of them and `**` for any number of parts; or a
    compiled regular expression that is found in it. Paths say nothing of shapes, so that layers may be stacked.

    Each leaf must be in one group; and of a whole tree (without None or masked leaves) each group must have a leaf.
    nnx.Optimizer takes the state of `optax.partition` from flax 0.12 on.

    Arguments:
        rules: group -> a pattern, or several of which any may fit.
        rest: the group of the leaves that no pattern fits; default None: there may be none.

    Returns: Groups, for `optax.partition`, `inject_per_group` and `group_table`.

    Errors:
        ValueError: no rules, or what is no pattern; when it is used, a leaf in no group or in several, a group without
            leaves.
    """
    if not isinstance(rules, Mapping) or not rules:
        raise ValueError(f"group_by_path: rules must be a dict of groups and patterns, got {rules!r}")
    return Groups(rules, rest)


def inject_per_group(
    factory: Callable[..., Any],
    groups: Groups,
    per_group: Mapping[str, Mapping[str, Any]],
    static: str | Iterable[str] = (),
) -> Callable[..., optax.GradientTransformationExtraArgs]:
    """`inject_hyperparams` for each group: one optimizer, with some arguments that are a group's own.

        own = {"embed": dict(learning_rate=1e-2), "others": dict(weight_decay=None)}
        tx = inject_per_group(adamw, groups, own)(1e-3, weight_decay=0.1)

    `get_hyperparams` and `set_hyperparams` then call them "embed/learning_rate". Each group has its own state: what an
    optimizer sums over the tree (LAMB does not, DoG does) is summed over the group.

    Arguments:
        factory: as in `inject_hyperparams`.
        groups: from `group_by_path`.
        per_group: group -> arguments in place of the common ones.
        static: as in `inject_hyperparams`.

    Returns: a function of the common arguments that gives the transformation.

    Errors:
        ValueError: a group that is not there.
        TypeError: what is no Groups or no dict of dicts; an argument that is not there.
    """
    if not isinstance(groups, Groups):
        raise TypeError(f"inject_per_group: groups must come from group_by_path, got {shown(groups)}")
    if not isinstance(per_group, Mapping) or not all(isinstance(own, Mapping) for own in per_group.values()):
        raise TypeError(f"inject_per_group: per_group must be a dict of groups and arguments, got {shown(per_group)}")
    if unknown := [group for group in per_group if group not in groups.names]:
        there = ", ".join(groups.names)
        raise ValueError(f"inject_per_group: no group {', '.join(map(str, unknown))}; there are {there}")
    signature, injected = inspect.signature(factory), inject_hyperparams(factory, static)

    @functools.wraps(factory)
    def made(*args: Any, **kwargs: Any) -> optax.GradientTransformationExtraArgs:
        known = {
            a: v for a, v in kwargs.items() if a in signature.parameters
        }  # the factory knows what to say of others
        common = {**signature.bind_partial(*args, **known).arguments, **kwargs}
        return optax.partition({g: injected(**{**common, **per_group.get(g, {})}) for g in groups.names}, groups)

    return made


def reset_group(tx: optax.GradientTransformation, state: Any, params: Any, *groups: str) -> Any:
    """The state with some groups as `init` makes them: moments and counts anew, all other groups untouched.

    Hyperparameters in the state keep their values; a schedule of the group begins again, since it reads its count. (One
    schedule around the whole partition reads the first group's.)

    Arguments:
        tx: the transformation that the state belongs to, with an `optax.partition` in it.
        state: its state.
        params: the parameters, for `init`.
        groups: names of the partition's groups.

    Returns: the new state, of the same structure; also under jit.

    Errors:
        ValueError: a group that is not there, or none given.
    """
    there: dict[str, None] = {}

    def at(old: Any, fresh: Any) -> Any:
        if not _is_partition(old):
            return old
        there.update(dict.fromkeys(old.inner_states))
        pairs = {g: (inner, fresh.inner_states[g]) for g, inner in old.inner_states.items()}
        return PartitionState(
            {
                g: _mapped(_anew, *pair, _is_injected) if g in groups else _mapped(at, *pair, _is_partition)
                for g, pair in pairs.items()
            }
        )

    fresh = tx.init(params)
    if [jnp.shape(a) for a in jax.tree.leaves(state)] != [jnp.shape(a) for a in jax.tree.leaves(fresh)]:
        raise ValueError("reset_group: the state is not that of this transformation and these parameters")
    state = _mapped(at, state, fresh, _is_partition)
    missing = [group for group in groups if group not in there]
    if missing or not groups:
        what = f"no group {', '.join(map(repr, missing))}" if missing else "give the groups to reset"
        raise ValueError(f"reset_group: {what}; there are {', '.join(there) or 'none'}")
    return state


def _brief(value: Any) -> str:
    """A number in four digits, or the shape of what is none: of a sweep, or abstract."""
    if value is None:
        return "-"
    return f"{float(value):.4g}" if is_number(value) and not isinstance(value, Tracer) else shown(value)


def _mapped(f: Callable[[Any, Any], Any], old: Any, fresh: Any, is_leaf: Callable[[Any], bool]) -> Any:
    """f on the leaves of both, in the containers of the old one (nnx.Optimizer keeps each array in a variable)."""
    leaves, treedef = jax.tree.flatten(old, is_leaf=is_leaf)
    return treedef.unflatten(list(map(f, leaves, jax.tree.leaves(fresh, is_leaf=is_leaf))))


def _anew(old: Any, fresh: Any) -> Any:
    """The fresh state, but with the hyperparameters of the old one."""
    if not _is_injected(old):
        return fresh
    return InjectState(old.hyperparams, _mapped(_anew, old.inner, fresh.inner, _is_injected))


def _is_partition(s: Any) -> bool:
    return isinstance(s, PartitionState)


def _is_injected(s: Any) -> bool:
    return isinstance(s, InjectState)


def group_table(params: Any, groups: Groups, state: Any = None, mask: Any = None) -> str:
    """One line for each leaf: its path, shape, group, and the group's learning rate and weight decay.

    Arguments:
        params: the parameters, arrays or their ShapeDtypeStructs.
        groups: from `group_by_path`.
        state: of an optimizer made by `inject_per_group`, whose rates are shown; without it they are left out.
        mask: the decay's mask, a tree of bools or a function giving one: "-" stands where it is False.

    Returns: the text, to print.
    """
    members = jax.tree.leaves(groups(params))
    decays = expanded_mask("group_table", mask, params, params)
    values = {(kept.group, kept.argument): kept.number for kept in kept_hyperparams(state).values()}
    rows = [("path", "shape", "group", "learning rate", "weight decay")]
    for (path, leaf), group, decay in zip(leaves_by_path(params)[0], members, decays, strict=True):
        if leaf is None:
            continue
        found = [values.get((group, a), values.get(("", a))) for a in ("learning_rate", "weight_decay")]
        rate, weight_decay = map(_brief, found)
        rows.append((path, str(jnp.shape(leaf)), group, rate, weight_decay if decay else "-"))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)
