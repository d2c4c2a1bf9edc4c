"""The notebooks: stored with the outputs of a complete run, and executed again here with few steps."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

FEW_STEPS = "8"
BYTES = 1_500_000
# What a run leaves behind of the machine it ran on: absolute paths, the folders of an installation.
PLACES = re.compile(r"(?:^|[\s'\"(=:])(?:/[\w.-]+){2,}|\b[A-Za-z]:\\|site-packages|~/", re.MULTILINE)
# How a finding that is computed says that it is not so: at all, or in the data that this Python brings.
UNTRUE = re.compile("DOES NOT HOLD|NOT HERE")
# A warning of our code, or one that our calls draw, ends the cell. Others still show on stderr, which fails too.
STRICT = "import warnings; warnings.filterwarnings('error', module=r'(__main__|adaptx)(\\.|$)')"


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell: Any) -> str:
    """What a cell shows as text."""
    shown = []
    for output in cell.outputs:
        shown += [output.get("text", "")]
        shown += [value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")]
    return "\n".join(map(str, shown))


def faults(notebook: Any) -> list[str]:
    """What is wrong with the outputs a notebook holds."""
    cells, found = code_cells(notebook), []
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        found.append("the cells were not all executed once, from top to bottom")
    for cell in cells:
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"{cell.id}: {output.ename}: {output.evalue}")
            if output.get("name") == "stderr":
                found.append(f"{cell.id}: stderr: {output.text}")
    return found


def execute(notebook: Any, folder: Path, most_steps: str | None) -> list[str]:
    """Runs the notebook in `folder` with the Python that runs the tests; returns the faults of the run."""
    kernel = folder / "kernels" / "this-python"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.joinpath("kernel.json").write_text(
        json.dumps({"argv": command, "display_name": "tests", "language": "python"}), encoding="utf-8"
    )
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    environment.pop("XLA_FLAGS", None)  # one device, as for a reader; conftest.py asks for eight
    if most_steps is not None:
        # With few steps most of the time is compilation.
        environment |= {"ADAPTX_NOTEBOOK_STEPS": most_steps, "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    manager = AsyncKernelManager(
        kernel_name="this-python", kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(kernel.parent)])
    )
    notebook.cells.insert(0, nbformat.v4.new_code_cell(STRICT, id="strict"))
    client = nbclient.NotebookClient(
        notebook, km=manager, timeout=600, allow_errors=True, resources={"metadata": {"path": str(folder)}}
    )
    asyncio.run(client.async_execute(env=environment, cleanup_kc=True))
    return faults(notebook)


def test_there_are_notebooks():
    assert NOTEBOOKS


@each_notebook
def test_stored_as_a_complete_run(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert faults(notebook) == []
    assert any(output.get("data", {}).get("image/png") for cell in code_cells(notebook) for output in cell.outputs)
    assert not UNTRUE.search("".join(map(texts, code_cells(notebook))))


@each_notebook
def test_stored_without_traces_of_a_machine(path):
    notebook = read(path)
    shown = "\n".join(map(texts, code_cells(notebook)))
    assert PLACES.findall(shown) == []
    assert [cell.metadata for cell in notebook.cells if cell.metadata] == []
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert path.stat().st_size < BYTES


@pytest.mark.suite
@each_notebook
def test_runs_with_few_steps(path, tmp_path):
    assert execute(read(path), tmp_path, FEW_STEPS) == []


@pytest.mark.slow
@each_notebook
def test_what_it_says_holds_here(path, tmp_path):
    """At full size, on this Python's library: the findings at the end are computed, so they can fail."""
    notebook = read(path)
    assert execute(notebook, tmp_path, None) == []
    findings = texts(code_cells(notebook)[-1])
    assert "holds" in findings
    assert not UNTRUE.search(findings), findings


@pytest.mark.suite
def test_the_run_sees_faults(tmp_path):
    cells = {
        "fine": "import warnings; print(1)",
        "error": "1 / 0",
        "ours": "warnings.warn('ours')",
        "theirs": "exec(compile('warnings.warn(\"theirs\")', 'x.py', 'exec'), {'warnings': warnings, '__name__': 'x'})",
    }
    cells = [nbformat.v4.new_code_cell(source, id=name) for name, source in cells.items()]
    found = execute(nbformat.v4.new_notebook(cells=cells), tmp_path, FEW_STEPS)
    assert [line.split(":")[:2] for line in found] == [
        ["error", " ZeroDivisionError"],
        ["ours", " UserWarning"],
        ["theirs", " stderr"],
    ]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda cells: None, []),
        (lambda cells: cells[0].update(execution_count=None), ["executed once"]),
        (lambda cells: cells.reverse(), ["executed once"]),
        (lambda cells: cells[1].outputs.append(nbformat.v4.new_output("error", ename="E", evalue="why")), ["E: why"]),
        (
            lambda cells: cells[1].outputs.append(nbformat.v4.new_output("stream", name="stderr", text="w")),
            ["stderr: w"],
        ),
    ],
    ids=["sound", "not executed", "out of order", "error", "stderr"],
)
def test_the_stored_check_sees_faults(change, fault):
    cells = [nbformat.v4.new_code_cell("1", id=f"c{i}", execution_count=i + 1) for i in range(2)]
    change(cells)
    found = faults(nbformat.v4.new_notebook(cells=cells))
    assert len(found) == len(fault)
    assert all(part in line for part, line in zip(fault, found, strict=True))


@pytest.mark.parametrize(
    "text", ["/srv/a/b.py:3: UserWarning", "in '/srv/a'", "C:\\a", "lib/site-packages/a.py", "x\n/srv/a", "~/a.py"]
)
def test_the_check_for_places_sees(text):
    assert PLACES.search(text)


@pytest.mark.parametrize("text", ["nu_2 / nu_1", "loss 0.1/0.2", "and/or", "1000 x"])
def test_the_check_for_places_passes(text):
    assert not PLACES.search(text)
