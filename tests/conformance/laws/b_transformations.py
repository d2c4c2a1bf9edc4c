"""Laws B: what JAX's own transformations may do to an optimizer."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax

from tests.conformance.cases import Case, grads_like, params_like
from tests.conformance.compare import assert_close, holds
from tests.conformance.law import law
from tests.conformance.program import RECORDED, jitted, looped, numbers, run, transformation
from tests.conftest import x64

# One program compiled in two ways rounds differently; the bound is that over a dozen float32 steps.
CLOSE = 1e-5
# The same in float64, where only a different formula can be seen.
EXACT = 1e-11
# Under jax.disable_jit operations are compiled one by one and kept by shape: nothing is compiled for each case if
# all cases share their shapes, so batches are filled up to a multiple of this.
BATCH = 12


def _with_update(tx: optax.GradientTransformationExtraArgs, update: Any) -> optax.GradientTransformationExtraArgs:
    return optax.GradientTransformationExtraArgs(tx.init, update)


def _scaled(tree: Any, factor: Any) -> Any:
    return jax.tree.map(lambda a: a * factor, tree)


def _at(stacked: Any, i: int) -> Any:
    return jax.tree.map(lambda a: a[i], stacked)


def _stacked(trees: Any) -> Any:
    return jax.tree.map(lambda *a: jnp.stack(a), *trees)


# B1


def _counted_in_python(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """A warm-up that counts its calls in Python: compiled, every step is the first one."""
    calls: list[None] = []

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        calls.append(None)
        updates, state = tx.update(grads, state, params)
        return _scaled(updates, min(1.0, len(calls) / 10)), state

    return _with_update(tx, update)


@law("B1", tier="O", plant=lambda case: case.broken(_counted_in_python))
def compiled_is_eager(case: Case) -> None:
    """Two eager steps are the two compiled steps."""
    tx, params, grads = transformation(case), params_like(), grads_like(2)
    state = tx.init(params)
    for i, (updates, after, moved) in enumerate(looped(case)[:2]):
        eager, state = tx.update(_at(grads, i), state, params)
        assert_close(f"{case.id}: eager and compiled step {i + 1}", (eager, state), (updates, after), CLOSE)
        params = moved


# B2


def _noise_of_numpy(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Gradient noise drawn by NumPy: a number of the trace, not of the step."""
    rng = np.random.default_rng(0)
    return _with_update(tx, lambda g, s, p=None: tx.update(_scaled(g, rng.uniform(0.9, 1.1)), s, p))


@law("B2", tier="C", plant=lambda case: case.broken(_noise_of_numpy))
def scan_is_loop(case: Case) -> None:
    """A compiled loop over the steps (scan's lowering) is a Python loop over the compiled step; scan accepts it."""
    params, grads = params_like(), grads_like(RECORDED)
    expected = looped(case)
    with holds(f"{case.id}: inside a loop"):
        got = run(case, params, grads)
    _, state, moved = expected[-1]
    updates = _stacked(updates for updates, _, _ in expected)
    assert_close(f"{case.id}: loop and scan", (got.params, got.state, got.updates), (moved, state, updates), CLOSE)
    with holds(f"{case.id}: scan"):
        tx = transformation(case)
        jax.eval_shape(lambda s: jax.lax.scan(lambda s, g: tx.update(g, s, params)[::-1], s, grads), tx.init(params))


# B3


def _normed_on_the_host(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Clipping with the norm taken by NumPy: eager and compiled agree, a batch gets the norm of all its members."""

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        norm = lambda s, *rest: np.full(np.shape(s), sum(np.sum(np.square(a)) for a in (s, *rest)) ** 0.5, np.float32)
        leaves = (grads["s"], grads["b"], grads["w"])
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        size = jax.pure_callback(norm, shape, *leaves, vmap_method="broadcast_all")
        return tx.update(_scaled(grads, 1 / jnp.maximum(1, size)), state, params)

    return _with_update(tx, update)


@law("B3", tier="O", plant=lambda case: case.broken(_normed_on_the_host))
def batched_is_alone(case: Case) -> None:
    """vmap over parameters, gradients and states is each of them alone: nothing crosses the batch."""
    tx, update = transformation(case), jitted(case)[0]
    many = [params_like(seed=seed) for seed in (0, 7, 8)]
    sizes = (-0.4, 0.6)  # not opposite: a long average (b1 = 0.995) of two that cancel is rounding
    params = _stacked(many)
    with holds(f"{case.id}: vmap"), jax.disable_jit():
        state, got = jax.vmap(tx.init)(params), []
        for size in sizes:
            updates, state = jax.vmap(tx.update)(_scaled(params, size), state, params)
            got.append(updates)
    for k, x in enumerate(many):
        alone = tx.init(x)
        for i, size in enumerate(sizes):
            expected, alone = update(_scaled(x, size), alone, x)
            assert_close(f"{case.id}: batched and alone, step {i + 1}", _at(got[i], k), expected, CLOSE)
        assert_close(f"{case.id}: batched and alone, the state", _at(state, k), alone, CLOSE)


# B4


def _in_float32(case: Case) -> Case:
    """Arrays among the arguments become float32, as in a state: a traced 0.999 is another number."""
    low = lambda v: v.astype(jnp.float32).astype(v.dtype) if isinstance(v, jax.Array) else v
    return dataclasses.replace(case, factory=lambda **kw: case.factory(**{k: low(v) for k, v in kw.items()}))


def _other(value: float) -> float:
    """Another legal value of a number."""
    return 0.9 * value if value else 0.01


@law("B4", tier="O", plant=_in_float32)
def traced_is_closed_over(case: Case) -> None:
    """Every number among the arguments may be traced and vmapped: the result is the closed-over number's."""
    own = numbers(case)
    rows = [own, *({**own, name: _other(value)} for name, value in own.items())]
    params, grads = (
        {"s": np.float64(0.7), "w": np.float64([-0.6, 1.3])},
        [{"s": np.float64(g), "w": np.float64([g, -g])} for g in (1.2, -0.5)],
    )

    def two_steps(arguments: Any) -> Any:
        tx = case.tx(**arguments)
        first, state = tx.update(grads[0], tx.init(params), params)
        return first, *tx.update(grads[1], state, params)

    with x64(), jax.disable_jit():
        filled = rows + [own] * (-len(rows) % BATCH)
        with holds(f"{case.id}: vmap over {', '.join(own)}"):
            traced = jax.vmap(two_steps)({name: jnp.asarray([row[name] for row in filled]) for name in own})
        for k, (row, name) in enumerate(zip(rows, ["the case's numbers", *own], strict=True)):
            assert_close(f"{case.id}: traced and closed over, {name}", _at(traced, k), two_steps(row), EXACT)


# B5


@law("B5", tier="O", plant=lambda case: case.broken(_counted_in_python))
def runs_inside_cond_and_remat(case: Case) -> None:
    """The update is the same inside cond, and its derivative inside jax.checkpoint."""
    tx, params, g = case.tx(), params_like(), _at(grads_like(1), 0)
    params, g = {"w": params["w"]}, {"w": g["w"]}
    state = tx.init(params)

    def weighed(update: Any, g: Any, state: Any, params: Any) -> Any:
        results = update(g, state, params)
        leaves = [a for a in jax.tree.leaves(results) if jnp.issubdtype(a.dtype, jnp.inexact)]
        return sum((k + 1) * jnp.sum(a) for k, a in enumerate(leaves)), results

    @jax.jit
    def program(wanted: Any, *args: Any) -> Any:
        skip = lambda g, state, params: (jax.tree.map(jnp.zeros_like, params), state)
        inside = jax.lax.cond(wanted, tx.update, skip, *args)
        return inside, *(jax.grad(weighed, 1, True)(update, *args) for update in (jax.checkpoint(tx.update), tx.update))

    with holds(f"{case.id}: inside cond and checkpoint"):
        taken, remat, plain = program(True, g, state, params)
        skipped, _, _ = program(False, g, state, params)
    assert_close(f"{case.id}: inside cond", taken, plain[1], CLOSE)
    assert_close(f"{case.id}: cond's other branch", skipped[1], state, 0)
    assert_close(f"{case.id}: inside checkpoint", remat, plain, CLOSE)


# B6


def _keeps_the_parameters(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """The first iterate stored without a copy, as Optax's DoG, DoWG, COCOB, MADGRAD and Prodigy do."""
    return optax.GradientTransformationExtraArgs(lambda x: tx.init(x)._replace(initial_params=x), tx.update)


@law("B6", tier="O", plant=lambda case: case.broken(_keeps_the_parameters), planted_on="dog")
def donated_together(case: Case) -> None:
    """Parameters and state are donated together, twice: every output takes an input's place, and nothing is copied."""
    tx, params, grads = transformation(case), params_like(), grads_like(2)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, g: Any) -> Any:
        updates, state = tx.update(g, state, params)
        return optax.apply_updates(params, updates), state

    jaxpr = jax.make_jaxpr(tx.init)(params).jaxpr
    kept = {id(v) for v in jaxpr.invars} & {id(v) for v in jaxpr.outvars}
    assert not kept, f"{case.id}: a compiled init hands on {len(kept)} of the parameters' buffers"

    carry = (params, tx.init(params))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(carry))
    with holds(f"{case.id}: donated"):
        compiled = step.lower(*carry, _at(grads, 0)).compile()
        for i in range(2):
            before, carry = carry, compiled(*carry, _at(grads, i))
            alive = [leaf for leaf in jax.tree.leaves(before) if not leaf.is_deleted()]
            assert not alive, f"{case.id}: {len(alive)} donated arrays are still there after step {i + 1}"
    aliased = compiled.memory_analysis().alias_size_in_bytes
    assert aliased == size, f"{case.id}: {aliased} of {size} donated bytes hold an output"
    _, after, moved = looped(case)[1]
    assert_close(f"{case.id}: after two donating steps", carry, (moved, after), CLOSE)


# B7


def _weak_count(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """A count that starts as a Python number's array: the second step, with an int32 in its place, is traced again."""
    return optax.GradientTransformationExtraArgs(lambda x: tx.init(x)._replace(count=jnp.asarray(0)), tx.update)


@law("B7", tier="O", plant=lambda case: case.broken(_weak_count))
def traced_once(case: Case) -> None:
    """One trace serves every step; state and updates are arrays, none of a weak type."""
    update, traces = jitted(case)
    params, grads = params_like(), grads_like(3)
    state, counts = transformation(case).init(params), [len(traces)]
    seen = [state]
    for i in range(3):
        updates, state = update(_at(grads, i), state, params)
        seen += [updates, state]
        counts.append(len(traces))
    assert counts[1] <= counts[0] + 1, f"{case.id}: the first step was traced {counts[1] - counts[0]} times"
    assert counts[3] == counts[1], f"{case.id}: traced again {counts[3] - counts[1]} times after the first step"
    for leaf in jax.tree.leaves(seen):
        assert isinstance(leaf, jax.Array), f"{case.id}: {leaf!r} is in the state or the update"
        assert not leaf.weak_type, f"{case.id}: a weakly typed {leaf.dtype} is in the state or the update"


# B8


def _in_double(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """A factor that NumPy computed: under x64 the product is float64, and the cast at the end hides it."""

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        updates, state = tx.update(grads, state, params)
        factor = np.sqrt(np.ones([]))
        return jax.tree.map(lambda u: (u * jnp.asarray(factor)).astype(u.dtype), updates), state

    return _with_update(tx, update)


@law("B8", tier="O", plant=lambda case: case.broken(_in_double))
def exported_for_all_platforms(case: Case) -> None:
    """One export serves cpu, cuda and tpu, survives serialisation, and holds no float64 array and no callback."""
    tx, params, g = transformation(case), params_like(), _at(grads_like(1), 0)
    inputs, structure = jax.tree.flatten((g, tx.init(params), params))  # the tree is not what is exported
    update = lambda *leaves: jax.tree.leaves(tx.update(*jax.tree.unflatten(structure, leaves)))
    with x64(), holds(f"{case.id}: export"):  # without x64 there is no float64 to leak
        exported = jax.export.export(jax.jit(update), platforms=("cpu", "cuda", "tpu"))(*inputs)
        text = exported.mlir_module()
        got = jax.export.deserialize(exported.serialize()).call(*inputs)
    # A rate may be a float64 number under x64, as every schedule of an integer count is.
    # JAX's own decompositions for TPUs write their tables in float64, and convert them at once.
    table = re.compile(r"= stablehlo\.constant |stablehlo\.convert %cst\w* : \(tensor<\w*f64>\) -> tensor<\w*f32>")
    lines = [line.strip() for line in text.splitlines() if not table.search(line)]
    double = [line for line in lines if re.search(r"x(complex<)?f64>", line)]
    assert not double, f"{case.id}: {len(double)} lines with a float64 array, first {double[0]}"
    assert "callback" not in text, f"{case.id}: a host callback is in the program"
    updates, state, _ = looped(case)[0]
    assert_close(f"{case.id}: exported", list(got), jax.tree.leaves((updates, state)), CLOSE)


def _joins_dtypes(tx: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Decay added after the cast: the gradient's dtype meets the parameter's."""

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        updates, state = tx.update(grads, state, params)
        return jax.tree.map(lambda u, g: (u + 0 * g).astype(u.dtype), updates, grads), state

    return _with_update(tx, update)


@law("B8-strict", tier="O", plant=lambda case: case.broken(_joins_dtypes), crash="TypePromotionError")
def promotes_no_dtype_by_itself(case: Case) -> None:
    """Strict dtype promotion holds around our own code, in every mix of real dtypes and with float32 arguments."""

    def step(given: Any, g: Any, params: Any) -> Any:
        rate = given["learning_rate"]
        tx = case.tx(**{**given, "learning_rate": lambda count: rate / (1 + count.astype(rate.dtype))})
        return tx.update(g, tx.init(params), params)

    given = {name: jnp.float32(value) for name, value in numbers(case).items()}
    for of_grads, of_params in (("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "float16")):
        g, params = params_like(of_grads), params_like(of_params)
        what = f"{case.id}: {of_grads} gradients of {of_params} parameters"
        with jax.numpy_dtype_promotion("strict"), holds(what):
            updates, _ = jax.eval_shape(step, given, g, params)
        expected = case.emitted("bfloat16") if of_params == "bfloat16" else "float32"
        for u in jax.tree.leaves(updates):
            assert str(u.dtype) == expected, f"{what}: with float32 arguments the update is {u.dtype}"
