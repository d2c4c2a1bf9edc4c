"""The documents say what the code does: generated parts are fresh, the README's code runs, its facts are measured."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax
import pytest

import adaptx
from tests.documents import generate

README = generate.README.read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(autouse=True)
def _users_settings() -> Iterator[None]:
    """A reader of the README has no strict rank promotion."""
    with jax.numpy_rank_promotion("allow"):
        yield


def test_catalogue_is_fresh() -> None:
    assert generate.CATALOGUE.read_text() == generate.catalogue(), "run `python -m tests.documents.generate`"


def test_readme_is_fresh() -> None:
    assert generate.readme() == README, "run `python -m tests.documents.generate`"


def test_rows_of_a_table_have_as_many_cells() -> None:
    for text in (generate.README.read_text(), generate.CATALOGUE.read_text()):
        for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table


def test_a_stale_table_is_noticed() -> None:
    stale = README.replace("`adamax`", "`adamin`", 1)
    assert generate.with_section(stale, "optimizers", generate.readme_table()) != stale


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block{i}" for i in range(len(BLOCKS))])
def test_readme_code_runs(block: str) -> None:
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_quickstart_is_twenty_lines_and_learns() -> None:
    assert len(BLOCKS[0].strip().splitlines()) <= 20
    names: dict[str, object] = {}
    exec(compile(BLOCKS[0], "README.md", "exec"), names)
    assert float(names["loss"]) < 0.5  # type: ignore[arg-type]  (exec fills it)


def test_sparse_examples_are_fifteen_lines() -> None:
    found = [block for block in BLOCKS if "rows_value_and_grad" in block]
    assert [("linen" in block, "nnx" in block) for block in found] == [(True, False), (False, True)]
    assert all(len([line for line in block.splitlines() if line.strip()]) <= 15 for block in found)


def test_every_name_of_the_package_is_in_the_readme_or_catalogue() -> None:
    text = README + generate.CATALOGUE.read_text()
    rooms = (adaptx, adaptx.sparse, adaptx.curvature, adaptx.tune)
    missing = [name for room in rooms for name in room.__all__ if name not in text]
    assert not missing


# The README's table "what happens": each row is measured here, on this release of Optax.


def _bfloat16_second_moment(tx: optax.GradientTransformation) -> float:
    x = jnp.ones(1, jnp.bfloat16)
    state = jax.lax.fori_loop(0, 3000, lambda _, s: tx.update(x, s, x)[1], tx.init(x))
    return float(optax.tree.get(state, "nu")[0])


def _huge(tx: optax.GradientTransformation) -> float:
    x = jnp.ones(1)
    state = tx.init(x)
    for _ in range(3):
        update, state = tx.update(1e20 * x, state, x)
    return abs(float(update[0]))


def test_what_happens_in_optax() -> None:
    if tuple(map(int, optax.__version__.split(".")[:3])) > (0, 2, 8):
        pytest.skip(f"the README's table is of optax 0.2.8, this is {optax.__version__}")
    half, zero = optax.adam(1e-3), jnp.zeros(2, jnp.float16)
    assert jnp.isnan(half.update(zero, half.init(zero), zero)[0]).all()
    assert _bfloat16_second_moment(optax.adam(1e-3)) == pytest.approx(0.5)
    assert _huge(optax.adam(1e-3)) == 0
    wide = jnp.ones((3, 2))
    assert optax.adam(1e-3).update(jnp.ones((1, 2)), optax.adam(1e-3).init(wide), wide)[0].shape == (3, 2)
    optax.adam(1e-3, b1=1.5)
    x = jnp.ones(2)
    assert (optax.adadelta().update(x, optax.adadelta().init(x), x)[0] > 0).all()
    short = jnp.ones(2, jnp.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        injected = optax.inject_hyperparams(optax.adamw)(1e-3)
        assert jnp.isnan(injected.update(short, injected.init(short), short)[0]).all()


def test_what_happens_in_adaptx() -> None:
    half, zero = adaptx.adam(1e-3), jnp.zeros(2, jnp.float16)
    assert (half.update(zero, half.init(zero), zero)[0] == 0).all()
    assert _bfloat16_second_moment(adaptx.adam(1e-3)) == pytest.approx(1 - 0.999**3000, rel=1e-4)
    assert _huge(adaptx.adam(1e-3)) == pytest.approx(1e-3, rel=1e-4)
    wide = jnp.ones((3, 2))
    with pytest.raises(ValueError, match=r"like float32\[3, 2\], got float32\[1, 2\]"):
        adaptx.adam(1e-3).update(jnp.ones((1, 2)), adaptx.adam(1e-3).init(wide), wide)
    with pytest.raises(ValueError, match=r"adam: b1 must be in \[0, 1\), got 1.5"):
        adaptx.adam(1e-3, b1=1.5)
    x = jnp.ones(2)
    assert (adaptx.adadelta().update(x, adaptx.adadelta().init(x), x)[0] < 0).all()
    short = jnp.ones(2, jnp.bfloat16)
    with pytest.raises(ValueError, match=r"hyperparam_dtype=jnp\.float32"):
        optax.inject_hyperparams(adaptx.adamw)(1e-3).init(short)
