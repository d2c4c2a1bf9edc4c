"""The layout: imports run one way between rooms and never in a circle, and the core stays small."""

import ast
import graphlib
import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "adaptx"

# A room imports from lower floors only, and from itself. Rooms on one floor do not know each other.
FLOORS = [
    {"glossary"},  # words, and what a value of each may be: it grows by a line with each new argument
    {"core"},
    {"optimizers"},
    {"wrappers", "curvature", "sparse", "monitor", "parallel", "presets"},
    {"precision"},  # wraps transformations, with the wrappers' helpers
    {"hyperparams"},
    {"tune", "checkpoint", "interop"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
CORE_LINES = 640  # 500 for the foundation; then rules made of rules, needs that are trees, rounding, storage, fast sums


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph(root: Path) -> dict[str, set[str]]:
    """Every module of the package, with the modules of the package that it imports, anywhere in its text."""
    files = {module_name(path, root): path for path in sorted(root.rglob("*.py"))}
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        imported: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    up = package.split(".")[: len(package.split(".")) - node.level + 1]
                    base = ".".join([*up, base] if base else up)
                # `from adaptx.core import lift` is the module lift, where there is one.
                names = (f"{base}.{alias.name}" for alias in node.names)
                imported.update(name if name in files else base for name in names)
        graph[module] = {name for name in imported if name.partition(".")[0] == root.name} - {module}
    return graph


def room(module: str) -> str | None:
    """The room of a module; None for the top level (`adaptx` itself, its public shelf)."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Imports that do not run down. The top level may import any room, and no room may import the top level."""
    wrong = []
    for module, imported in graph.items():
        here = room(module)
        if here not in FLOOR:
            continue
        for other in sorted(imported):
            there = room(other)
            if there != here and (there not in FLOOR or FLOOR[there] >= FLOOR[here]):
                wrong.append(f"{module} imports {other}")
    return wrong


def code_lines(source: str) -> int:
    """Lines that hold code: not blank, not comment, not docstring."""
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in silent:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and type(first.value.value) is str:
                lines.difference_update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(lines)


def test_imports_run_one_way():
    assert upward(import_graph(PACKAGE)) == []


def test_imports_make_no_circle():
    list(graphlib.TopologicalSorter(import_graph(PACKAGE)).static_order())  # raises CycleError, naming the circle


def test_every_folder_is_a_known_room():
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders <= FLOOR.keys() - {"glossary"}, "give the new room its floor in FLOORS"


def test_no_room_for_leftovers():
    names = {"utils.py", "misc.py", "utils", "misc", "_src", "contrib"}
    assert [p for p in PACKAGE.rglob("*") if p.name in names] == []


def test_core_is_small():
    sources = {p.name: p.read_text(encoding="utf-8") for p in sorted((PACKAGE / "core").rglob("*.py"))}
    counts = {name: code_lines(source) for name, source in sources.items()}
    total = sum(len(source.splitlines()) for source in sources.values())
    report = f"core: {sum(counts.values())} lines of code ({total} lines with comments and docstrings): {counts}"
    print(report)
    assert sum(counts.values()) <= CORE_LINES, report


@pytest.mark.parametrize(
    ("path", "text", "wrong"),
    [
        ("core/a.py", "from adaptx.optimizers.b import x", ["adaptx.core.a imports adaptx.optimizers.b"]),
        ("core/a.py", "def f():\n    from ..optimizers import b", ["adaptx.core.a imports adaptx.optimizers.b"]),
        ("core/a.py", "import adaptx", ["adaptx.core.a imports adaptx"]),
        ("sparse/a.py", "from adaptx import monitor", ["adaptx.sparse.a imports adaptx.monitor"]),
        ("optimizers/b.py", "from adaptx.core import a\nfrom . import c\nimport jax", []),
        ("__init__.py", "from adaptx.tune import a", []),
    ],
)
def test_the_import_check_sees(tmp_path, path, text, wrong):
    for name in ("__init__.py", "core/__init__.py", "optimizers/__init__.py", "monitor/__init__.py"):
        file = tmp_path / "adaptx" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    for name in ("core/a.py", "optimizers/b.py"):
        (tmp_path / "adaptx" / name).touch()
    file = tmp_path / "adaptx" / path
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    assert upward(import_graph(tmp_path / "adaptx")) == wrong


def test_code_lines():
    source = '"""Doc\nstring."""\n\n# why\nx = 1  # what\n\ndef f():\n    """Doc."""\n    return """\n"""\n'
    assert code_lines(source) == 4  # x, def, and the two lines of a string that is no docstring
