"""Paths: the leaves of any tree of parameters by name, and the patterns that choose among them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from jax.tree_util import keystr, tree_flatten_with_path

from adaptx.sparse import RowSparse

Patterns = str | re.Pattern[str] | Iterable[str | re.Pattern[str]]


def leaves_by_path(tree: Any) -> tuple[list[tuple[str, Any]], Any]:
    """Path and leaf of every leaf, and the treedef; a RowSparse is a leaf as its table is, and so is None.

    A path is the names on the way, "encoder/layers/0/kernel", whatever the containers are: dicts, lists, modules. What
    an nnx variable holds has the variable's path.
    """
    variable = getattr(sys.modules.get("flax.nnx"), "Variable", ())  # there is none before flax is imported
    is_leaf = lambda x: x is None or isinstance(x, RowSparse)
    nodes, _ = tree_flatten_with_path(tree, is_leaf=lambda x: is_leaf(x) or isinstance(x, variable))
    named = [(keystr(keys, simple=True, separator="/"), node) for keys, node in nodes]
    leaves = [(path, leaf) for path, node in named for leaf in jax.tree.leaves(node, is_leaf=is_leaf)]
    return leaves, jax.tree.structure(tree, is_leaf=is_leaf)


class Matcher(NamedTuple):
    """Patterns, compiled, and their text."""

    regexes: tuple[re.Pattern[str], ...]
    text: str

    @classmethod
    def of(cls, name: str, patterns: Patterns) -> Matcher:
        """A string must fit the whole path: `*` stands for any characters of one part, `?` for one of them, `**` for
        any number of parts. A compiled regular expression may fit anywhere in it, by `search`."""
        given: Any = patterns
        listed = [*given] if isinstance(given, Iterable) and not isinstance(given, str) else [given]
        for pattern in listed or [""]:
            text = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
            if not (isinstance(text, str) and text):
                allowed = "a path like '**/kernel' or a compiled regular expression"
                raise ValueError(f"{name}: a pattern must be {allowed}, got {pattern!r}")
        regexes = tuple(re.compile(rf"\A{_glob(p)}\Z") if isinstance(p, str) else p for p in listed)
        return cls(regexes, ", ".join(p if isinstance(p, str) else f"/{p.pattern}/" for p in listed))

    def fits(self, path: str) -> bool:
        return any(regex.search(path) for regex in self.regexes)


def _glob(pattern: str) -> str:
    """The pattern as a regular expression."""
    part = lambda text: re.escape(text).replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
    *start, last = pattern.split("/")
    before = "".join("(?:[^/]+/)*" if text == "**" else part(text) + "/" for text in start)
    return before + (".*" if last == "**" else part(last))


def keys_of_leaves(name: str, matchers: Mapping[str, Matcher], tree: Any, rest: str | None = None) -> list[str]:
    """Of each leaf the key of the one matcher that fits its path, or `rest` where none does.

    None may fit as it likes: `optax.partition` only wants it to have a key, so that gradients may be None.
    """
    wrong, keys, used = [], [], set()
    leaves, _ = leaves_by_path(tree)
    for path, leaf in leaves:
        hits = [key for key, matcher in matchers.items() if matcher.fits(path)]
        if not hits and rest is not None:
            hits = [rest]
        if leaf is not None and len(hits) != 1:
            wrong.append(f"{path or 'the root'} in {' and '.join(hits) or 'none'}")
        keys.append((hits or list(matchers))[0])
        used.update(hits)
    rules = "; ".join(f"{key}: {matcher.text}" for key, matcher in matchers.items())
    if wrong:
        more = f" and {len(wrong) - 3} more" * (len(wrong) > 3)
        raise ValueError(
            f"{name}: a leaf must be in one group, but {', '.join(wrong[:3])}{more}; the rules are {rules}"
        )
    empty = [key for key in matchers if key not in used]
    if empty and _is_whole(tree):
        there = ", ".join(path for path, _ in leaves[:3]) + ", ..." * (len(leaves) > 3)
        raise ValueError(f"{name}: no leaf is in {', '.join(empty)}; leaves are {there}; the rules are {rules}")
    return keys


def _is_whole(tree: Any) -> bool:
    """Not a part of a tree of parameters: there are leaves, and none is left out by None or `optax.masked`."""
    left_out = lambda x: x is None or isinstance(x, optax.MaskedNode)
    leaves = jax.tree.leaves(tree, is_leaf=left_out)
    return bool(leaves) and not any(map(left_out, leaves))
