"""A text corpus that every Python has: the identifiers and words of the standard library's sources."""

import re
import sysconfig
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

WORD = re.compile(r"[^\W\d]\w*")
FOREIGN = {"site-packages", "dist-packages", "__pycache__"}


class CorpusError(ValueError):
    """Sources that are missing or too few. The message is one line for the user."""


class Source(NamedTuple):
    """One file."""

    package: str | None  # the top-level package that it belongs to
    words: list[str]  # in order, their case kept


def standard_library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def sources_in(directory: Path) -> list[Path]:
    """Every Python file below the directory but installed packages, in the order of their names."""
    return [p for p in sorted(directory.rglob("*.py")) if FOREIGN.isdisjoint(p.relative_to(directory).parts)]


def read(directory: Path) -> list[Source]:
    """The words of every file of `sources_in`.

    Errors: CorpusError for a directory that is missing or has no Python files.
    """
    if not directory.is_dir():
        raise CorpusError(f"{directory}: no such directory")
    sources = []
    for path in sources_in(directory):
        inside = path.relative_to(directory).parts
        # A few of the library's tests are in other encodings on purpose: what cannot be read is no word.
        words = WORD.findall(path.read_text(encoding="utf-8", errors="replace"))
        sources.append(Source(inside[0] if len(inside) > 1 else None, words))
    if not any(source.words for source in sources):
        raise CorpusError(f"{directory}: no Python sources with words in them")
    return sources


def vocabulary(sources: Sequence[Source], at_least: int) -> dict[str, int]:
    """Words seen at least so often, numbered from the most frequent."""
    counts = Counter(word for source in sources for word in source.words)
    kept = [word for word, count in counts.most_common() if count >= at_least]
    return {word: number for number, word in enumerate(kept)}
