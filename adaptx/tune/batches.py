"""Batches: the data of a sweep, stacked for many steps at a time and the same for every trial."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator, Sized
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from adaptx.core.checks import is_key, shown

SEGMENT_BYTES = 64 << 20  # of the batches that are on the device at a time
KEPT_BYTES = 256 << 20  # all segments stay there where they are no more than this
SEGMENT_STEPS = 1000


class Segment(NamedTuple):
    """The batches of some steps."""

    start: int  # how many steps come before
    steps: int
    stacked: tuple[Any, ...]  # () or one tree with a leading axis, of the same length in all segments


class Batches:
    """Batches for so many steps, gone through again from the first where there are fewer.

    What is iterable only once, such as a generator, is kept in memory.
    """

    steps: int
    size: int  # of a segment, in steps

    def __init__(self, caller: str, batches: Any, steps: int | None) -> None:
        self.caller: str = caller
        self.onto: Any = None  # a sharding
        self.keeps: bool = True  # whether all segments stay on the device
        self.example: tuple[Any, ...] = ()  # () or the shapes and dtypes of one batch
        if batches is None:
            if steps is None:
                raise ValueError(f"{caller}: without batches it needs steps, the number of them")
            self.given, self.steps, self.size = None, steps, min(steps, SEGMENT_STEPS)
            return
        if not isinstance(batches, Iterable) or isinstance(batches, str | dict):
            raise TypeError(f"{caller}: batches must be a list or another iterable of batches, got {shown(batches)}")
        if isinstance(batches, Iterator):
            if steps is None:
                raise ValueError(f"{caller}: batches that can be gone through only once need steps, the number of them")
            batches = list(itertools.islice(batches, steps))
        self.given: Any = batches
        self.rest: Any = iter(batches)  # the first time through goes on behind the batch that is looked at here
        first = next(self.rest, None)
        if first is None:
            raise ValueError(f"{caller}: there are no batches")
        self.first: Any = first
        self.example = (self._abstract(first),)
        if steps is None:
            if not isinstance(batches, Sized):
                raise ValueError(f"{caller}: these batches have no length; give steps, the number of them")
            steps = len(batches)
        bytes_each = max(1, sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self.example)))
        self.steps = steps
        self.size = max(1, min(steps, SEGMENT_STEPS, SEGMENT_BYTES // bytes_each))
        self.keeps = steps * bytes_each <= KEPT_BYTES
        self.kept: list[Segment] = []
        self.lock: threading.Lock = threading.Lock()

    def segments(self) -> Iterator[Segment]:
        """All segments in order, from the first step."""
        if self.given is None:
            for start in range(0, self.steps, self.size):
                yield Segment(start, min(self.size, self.steps - start), ())
            return
        if not self.keeps:
            yield from self._read()
            return
        with self.lock:  # groups that train at the same time read them once
            if not self.kept:
                self.kept = list(self._read())
        yield from self.kept

    def _read(self) -> Iterator[Segment]:
        source = self._endless()
        for start in range(0, self.steps, self.size):
            count = min(self.size, self.steps - start)
            some = [next(source) for _ in range(count)]
            some += some[-1:] * (self.size - count)  # one shape for all segments
            yield Segment(start, count, (jax.device_put(self._stacked(start, some), self.onto),))

    def each(self) -> Iterator[tuple[Any, ...]]:
        """What each step gets beside the state: () or one batch."""
        if self.given is None:
            yield from itertools.repeat((), self.steps)
        else:
            yield from ((batch,) for batch in itertools.islice(self._endless(), self.steps))

    def _endless(self) -> Iterator[Any]:
        rest, self.rest = self.rest, None
        if rest is None:  # from the second time on
            rest = iter(self.given)
            first = next(rest, None)
            alike = lambda a, b: is_key(a) or np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True)
            same = jax.tree.structure(first) == jax.tree.structure(self.first)
            if not same or not jax.tree.all(jax.tree.map(alike, first, self.first)):
                raise ValueError(
                    f"{self.caller}: the batches begin with another one when they are gone through again, and trials "
                    "would not see the same; give a list, or shuffle by a fixed seed"
                )
        yield self.first
        yield from rest
        while True:
            empty = True
            for batch in self.given:
                empty = False
                yield batch
            if empty:
                raise ValueError(f"{self.caller}: the batches could be gone through only once; give a list of them")

    def _abstract(self, batch: Any) -> Any:
        """Shapes and dtypes as JAX sees them."""
        for path, leaf in tree_leaves_with_path(batch):
            if not isinstance(leaf, jax.Array) and np.asarray(leaf).dtype.kind not in "biufcV":
                raise TypeError(
                    f"{self.caller}: a batch must hold arrays, got {shown(leaf)} at {keystr(path) or 'the root'}"
                )
        seen = lambda x: x if isinstance(x, jax.Array) else np.asarray(x)
        dtype = lambda x: x.dtype if isinstance(x, jax.Array) else jax.dtypes.canonicalize_dtype(x.dtype)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), dtype(seen(x))), batch)

    def _stacked(self, start: int, some: list[Any]) -> Any:
        for i, batch in enumerate(some):
            if self._abstract(batch) != self.example[0]:
                raise ValueError(
                    f"{self.caller}: batch {start + i} is {shown(self._abstract(batch))}, and the first is "
                    f"{shown(self.example[0])}; all must be alike (drop the last, or pad it)"
                )
        # Of many arrays jnp.stack would compile a program of its own; only keys need it.
        return jax.tree.map(lambda *xs: jnp.stack(xs) if is_key(xs[0]) else np.stack(list(map(np.asarray, xs))), *some)
