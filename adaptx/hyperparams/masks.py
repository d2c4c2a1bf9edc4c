"""Masks of the weight decay that go by names, and so stay right when layers are stacked."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from adaptx.hyperparams.paths import Matcher, leaves_by_path

_READY = {
    # The last name is `bias`, or `b` as in Haiku, or one with it: bias_q, in_proj_bias.
    "biases": re.compile(r"(^|/)(bias(_[^/]*)?|[^/]*_bias|b)$"),
    # A module or array is called something with `norm`, or ln, bn or gn: LayerNorm_0, norm1, ln_f, bn2.
    "norms": re.compile(r"(^|/)([^/]*norm(?!al)[^/]*|(ln|bn|gn)(_[^/]*|\d+)?)(/|$)", re.IGNORECASE),
    # The array is called something with `embed`, or emb, wte or wpe; or it is the weight of such a module. What embeds
    # patches is a convolution and no table.
    "embeddings": re.compile(
        r"(^|/)((?!patch)[^/]*embed[^/]*|([^/]*_)?emb|wte|wpe)(/(weight|table|embeddings?|w))?$",
        re.IGNORECASE,
    ),
}


def no_decay_on(*what: str | re.Pattern[str]) -> Callable[[Any], Any]:
    """A mask that keeps weight decay off norms, biases or embeddings, by the names on the paths of their leaves.

        tx = adamw(1e-3, weight_decay=0.1, mask=no_decay_on("norms", "biases"))

    Arguments:
        what: "norms" (names with norm, or ln, bn, gn), "biases" (bias, bias_..., ..._bias, b), "embeddings" (names with
            embed, or emb, wte, wpe), and patterns of further paths as in `group_by_path`, which have a `/` or a `*`,
            or are regular expressions.

    Returns: a function of the parameters that gives the tree of bools, True where the decay applies.

    Errors:
        ValueError: nothing given, or a word that is none of these.
    """
    for item in what or ("",):
        known = isinstance(item, str) and (item in _READY or {*"/*"} & {*item})
        if not known and not isinstance(item, re.Pattern):
            allowed = f"{', '.join(_READY)} or a pattern like '**/scale'"
            raise ValueError(f"no_decay_on: it must be {allowed}, got {item!r}")
    matcher = Matcher.of("no_decay_on", [_READY.get(item, item) if isinstance(item, str) else item for item in what])

    def mask(params: Any) -> Any:
        leaves, treedef = leaves_by_path(params)
        return treedef.unflatten([not matcher.fits(path) for path, _ in leaves])

    return mask
