"""Programs: what a sweep compiles. Each serves all trials: begin makes their states, advance trains, score judges."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import jaxpr_as_fun
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import keystr, tree_leaves_with_path

from adaptx.core.checks import shown
from adaptx.glossary import is_number
from adaptx.hyperparams.inject import with_hyperparams
from adaptx.tune.batches import Segment
from adaptx.tune.values import Values, settled

EACH, SHARED = PartitionSpec("trials"), PartitionSpec()


class Group(NamedTuple):
    """Trials that run at the same time. Every array has a leading axis, one entry for each."""

    states: Any
    alive: Array  # bool: all losses so far are finite
    taken: Array  # int32: steps


class Programs:
    """What is compiled for `width` trials on each device at a time.

    begin: values -> states. advance: a group, through some steps. score: a group's states -> numbers.
    """

    size: int  # of a group
    each: NamedSharding
    shared: NamedSharding
    begin: Callable[..., Any]
    score: Callable[..., Any] | None

    def __init__(
        self,
        make_state: Callable[..., Any],
        step: Callable[..., Any],
        score: Callable[[Any], Any] | None,
        template: Any,  # a state
        devices: Sequence[Any],
        width: int,
        length: int,  # of a segment
    ) -> None:
        self.make_state: Callable[..., Any] = make_state
        self.step: Callable[..., Any] = step
        self.width: int = width
        self.length: int = length
        self.size = width * len(devices)
        mesh = Mesh(np.array(devices), ("trials",))
        self.each, self.shared = NamedSharding(mesh, EACH), NamedSharding(mesh, SHARED)
        self.template: Any = jax.device_put(template, self.shared)

        def over(f: Callable[..., Any], *given: PartitionSpec) -> Callable[..., Any]:
            """On every device by itself: what one device does waits for no other."""
            return (
                f if len(devices) == 1 else jax.shard_map(f, mesh=mesh, in_specs=given, out_specs=EACH, check_vma=False)
            )

        self.begin = jax.jit(over(self._side_by_side(self._begin, None, 0), SHARED, EACH), out_shardings=self.each)
        self._advanced: Any = jax.jit(
            over(self._advance, EACH, SHARED, SHARED, SHARED), donate_argnums=0, out_shardings=self.each
        )
        self.score = None if score is None else jax.jit(over(self._side_by_side(score, 0), EACH))
        self.compiled: Any = None

    def compile(self, values: Values, segment: Segment) -> None:
        group = self.start([values])
        if self.score is not None:  # now, since threads that come to it at the same time would compile it each
            self.score(group.states)
        self.compiled = self._advanced.lower(group, segment.stacked, np.int32(0), np.int32(0)).compile()

    def start(self, values: Sequence[Values]) -> Group:
        """A group of up to `size` trials; where they are fewer, the other places do not run."""
        stacked = jax.device_put(jax.tree.map(lambda *xs: np.stack(xs), *self._filled(values)), self.each)
        return self._group(self.begin(self.template, stacked), len(values), 0)

    def resumed(self, states: Sequence[Any], taken: int) -> Group:
        """The same of states that have gone so many steps."""
        stacked = jax.device_put(jax.tree.map(lambda *xs: jnp.stack(xs), *self._filled(states)), self.each)
        return self._group(stacked, len(states), taken)

    def _filled(self, some: Sequence[Any]) -> list[Any]:
        return [*some, *[some[0]] * (self.size - len(some))]

    def _group(self, states: Any, trials: int, taken: int) -> Group:
        alive = np.arange(self.size) < trials
        return Group(states, *jax.device_put((alive, np.full(self.size, taken, np.int32)), self.each))

    def advance(self, group: Group, segment: Segment, first: int, last: int) -> tuple[Group, Array]:
        """The group after the steps from first to last of a segment, and losses by step: each trial's first `taken`.

        The group that is given is donated.
        """
        return self.compiled(group, segment.stacked, np.int32(first), np.int32(last))

    def bytes(self) -> int:
        """What advance holds on each device, arguments and results included; 0 where the backend does not say."""
        memory: Any = self.compiled.memory_analysis()
        held = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
        return 0 if memory is None else sum(getattr(memory, f) for f in held) - memory.alias_size_in_bytes

    def _side_by_side(self, f: Callable[..., Any], *axes: int | None) -> Callable[..., Any]:
        """A function of one trial for all those of a device; for one alone it is the plain function."""
        if self.width > 1:
            return jax.vmap(f, in_axes=axes)
        one = lambda axis, tree: tree if axis is None else jax.tree.map(lambda x: x[0], tree)
        return lambda *args: jax.tree.map(lambda x: x[None], f(*map(one, axes, args)))

    def _begin(self, template: Any, values: Values) -> Any:
        state = template
        if values.arguments:
            state = settled(self.make_state(**values.arguments))
            if jax.tree.structure(state) != jax.tree.structure(template):
                raise ValueError(
                    "sweep: make_state must give the same tree for every trial, with what is made from an argument as "
                    "an array in it; an optimizer that closes over one is none: wrap it in inject_hyperparams"
                )
        return with_hyperparams(state, values.kept)

    def _advance(self, group: Group, stacked: tuple[Any, ...], first: Array, last: Array) -> tuple[Group, Array]:
        steps = self._side_by_side(self.step, 0, *[None] * len(stacked))

        def going(carry: Any) -> Array:
            i, group, _ = carry
            return (i < last) & jnp.any(group.alive)

        def body(carry: Any) -> Any:
            i, (states, alive, taken), losses = carry
            batch = jax.tree.map(lambda b: jax.lax.dynamic_index_in_dim(b, i, keepdims=False), stacked)
            new, loss = steps(states, *batch)
            good = alive & jnp.isfinite(loss)
            if self.width > 1:  # those that diverged stay as they were; a single one ends the loop
                keep = lambda a, b: jnp.where(good.reshape(good.shape + (1,) * (a.ndim - 1)), a, b)
                new = jax.tree.map(keep, new, states)
            return i + 1, Group(new, good, taken + alive), losses.at[:, i].set(loss)

        losses = jnp.full((self.width, self.length), jnp.nan)
        _, group, losses = jax.lax.while_loop(going, body, (first, group, losses))
        return group, losses


def checked_step(caller: str, train_step: Callable[..., Any], state: Any, *batch: Any) -> tuple[Any, Array]:
    """train_step's state, which must be like the one before, and its loss, one real number."""
    result = train_step(state, *batch)
    if not isinstance(result, tuple) or len(result) != 2 or not is_number(result[1]):
        raise ValueError(
            f"{caller}: train_step must return (state, loss), the loss one real number; got {shown(result)}"
        )
    new, loss = result
    new = settled(new)
    if jax.tree.structure(new) != jax.tree.structure(state):
        raise ValueError(
            f"{caller}: train_step must return a state like the one it gets, {shown(jax.tree.structure(state))}; "
            f"got {shown(jax.tree.structure(new))}"
        )
    form = lambda x: f"{x.dtype}{list(x.shape)}"
    for (path, a), b in zip(tree_leaves_with_path(state), jax.tree.leaves(new), strict=True):
        if form(a) != form(b):
            raise ValueError(
                f"{caller}: train_step makes {form(b)} of the state's {form(a)} at {keystr(path) or 'the root'}"
            )
    return new, jnp.asarray(loss, float)


def checked_score(evaluate: Callable[[Any], Any], state: Any) -> Array:
    """evaluate's number."""
    score = evaluate(state)
    if not is_number(score):
        raise ValueError(f"sweep: evaluate must return one real number, got {shown(score)}")
    return jnp.asarray(score, float)


def traced(f: Callable[..., Any], *like: Any) -> Callable[..., Any]:
    """A function traced here and now, for arguments like these; called under vmap or on several devices it is not
    traced again, as a jitted function would be."""
    closed, form = jax.make_jaxpr(f, return_shape=True)(*like)
    run, form = jaxpr_as_fun(closed), jax.tree.structure(form)
    return lambda *args: form.unflatten(run(*jax.tree.leaves(args)))


def fingerprint(f: Callable[..., Any], *like: Any) -> str:
    """The same for the same program, also in another process."""
    text = re.sub(r"0x[0-9a-f]+", "", str(jax.make_jaxpr(f)(*like)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def flops(f: Callable[..., Any], *like: Any) -> float:
    """Floating-point operations of a function; 0 where they are not known."""
    cost: Any = jax.jit(f).lower(*like).cost_analysis()
    return (cost or {}).get("flops", 0.0)
