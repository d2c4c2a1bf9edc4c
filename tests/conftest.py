"""Every test runs on 8 fake CPU devices, with implicit rank promotion an error."""

from __future__ import annotations

import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

# Most of a test's time is compilation. What one worker has compiled no other does again, nor the next run.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".pytest_cache" / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@contextlib.contextmanager
def x64(on: bool = True) -> Iterator[None]:
    """64-bit numbers inside the block only."""
    before = bool(jax.config.read("jax_enable_x64"))
    jax.config.update("jax_enable_x64", on)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


@pytest.fixture
def strict() -> Iterator[None]:
    """Strict dtype promotion: for calls that run our code only, since Optax's own Adam fails under it."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(autouse=True, scope="session")
def _tests_so_far() -> list[None]:
    return []


@pytest.fixture(autouse=True)
def _forget_programs(_tests_so_far: list[None]) -> Iterator[None]:
    """Every 400 tests a worker forgets what it compiled: some thousand programs exhaust the process's memory maps."""
    yield
    _tests_so_far.append(None)
    program = sys.modules.get("tests.conformance.program")
    if program is not None and len(_tests_so_far) % 400 == 0:
        jax.clear_caches()
        for cached in (
            program._program,
            program._traced_program,
            program.transformation,
            program.jitted,
            program.looped,
        ):
            cached.cache_clear()
