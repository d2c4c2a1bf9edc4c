"""The wheel: what is in it, what it asks for, and that it runs on nothing more than it asks for."""

import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
RUNTIME = {"jax", "optax", "chex", "numpy"}

# Runs in a new process. The environment around the tests has flax and more; these may not be found here.
IMPORT_ALL = """
import sys

target, *forbidden = sys.argv[1:]

class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in forbidden:
            raise ModuleNotFoundError(f"No module named {name!r} (not a runtime dependency)", name=name)

sys.meta_path.insert(0, Forbid())
sys.path.insert(0, target)

import importlib, pkgutil
import adaptx

assert adaptx.__file__.startswith(target), adaptx.__file__
for module in pkgutil.walk_packages(adaptx.__path__, "adaptx."):
    importlib.import_module(module.name)

import jax.numpy as jnp
params = {"w": jnp.ones(3)}
tx = adaptx.adam(1e-3)
tx.update(params, tx.init(params), params)
print(adaptx.__version__)
"""


def run(*command: str, cwd: Path = ROOT) -> str:
    result = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # The installed backend, as pip would call it, but without an isolated environment to download.
    run("-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder))
    (path,) = folder.glob("*.whl")
    return path


def needed(roots: set[str]) -> set[str]:
    """These distributions and everything they need, without extras."""
    found: set[str] = set()
    todo = set(roots)
    while todo:
        name = canonicalize_name(todo.pop())
        if name in found:
            continue
        found.add(name)
        for line in metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.add(requirement.name)
    return found


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    package = (ROOT / "adaptx").rglob("*")
    tree = {p.relative_to(ROOT).as_posix() for p in package if p.is_file() and "__pycache__" not in p.parts}
    assert names == tree
    assert {"adaptx/py.typed", "adaptx/CATALOGUE.md"} <= names


def test_wheel_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    fields = Parser().parsestr(archive.read(name).decode())
    requirements = [Requirement(line) for line in fields.get_all("Requires-Dist", [])]
    runtime = [r for r in requirements if r.marker is None or "extra" not in str(r.marker)]
    assert {r.name for r in runtime} == RUNTIME
    assert len(runtime) == len(RUNTIME)
    assert all(r.specifier for r in runtime), "every runtime dependency states a lower bound"
    assert fields["Name"] == "adaptx"
    assert fields["Requires-Python"] == ">=3.11"
    assert fields["License-Expression"] == "Apache-2.0"
    assert any(n.endswith("/licenses/LICENSE") for n in archive.namelist())


def test_wheel_runs_on_its_runtime_dependencies_alone(wheel, tmp_path):
    target = tmp_path / "site"
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    allowed = needed(RUNTIME)
    forbidden = [
        module
        for module, owners in metadata.packages_distributions().items()
        if module != "adaptx" and allowed.isdisjoint(map(canonicalize_name, owners))
    ]
    assert {"flax", "matplotlib", "tqdm", "sklearn", "pytest"} <= set(forbidden)
    version = run("-c", IMPORT_ALL, str(target), *forbidden, cwd=tmp_path).strip()
    assert f"adaptx-{version}-" in wheel.name
