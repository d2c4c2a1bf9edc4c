"""Progress: a bar on stderr, or one line where tqdm is not installed."""

from __future__ import annotations

import importlib
import sys
from typing import Any


class _NoBar:
    def update(self, steps: int) -> None:
        pass

    def set_description(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


def progress_bar(total: int, unit: str, wanted: bool | None) -> Any:
    """tqdm's bar, or what has its `update`, `set_description` and `close`; None: a bar where stderr is a terminal."""
    if wanted is False:
        return _NoBar()
    try:
        tqdm = importlib.import_module("tqdm").tqdm
    except ImportError:
        print('no progress bar: pip install "adaptx[plot]" brings tqdm', file=sys.stderr)
        return _NoBar()
    return tqdm(total=total, unit=unit, file=sys.stderr, leave=False, disable=None if wanted is None else False)
