"""Mutation testing: how many small, deliberate mistakes in the core, its glossary and two optimizers are noticed?

    python tests/mutate.py                      every mutant (`make mutate`)
    python tests/mutate.py --sample 40          a seeded sample
    python tests/mutate.py --only moments.py    one file
    python tests/mutate.py --list               show the mutants, run nothing

Why a runner of our own: mutmut leaves out every decorated function, and here those are the custom derivatives and all
public factories; cosmic-ray starts a new process per mutant, and importing JAX would cost more than the tests. This one
imports JAX once and forks before its backend starts and before adaptx is imported, so a mutant costs its tests only.
The mutated text is handed to the import system of the forked process; no file is ever changed.

Not mutated: annotations, strings, and decorators (the registry's rows are data that the tests read, not behaviour).
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import dataclasses
import importlib.machinery
import importlib.util
import os
import platform
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TARGETS = (
    "adaptx/core/*.py",
    "adaptx/glossary.py",
    "adaptx/optimizers/adam/adam.py",
    "adaptx/optimizers/adagrad/adagrad.py",
)
TESTS = ("tests/core", "tests/equations", "tests/identities", "tests/conformance", "tests/parity")
MARKED = "not slow"
# A survivor costs the whole selection, so it is what a minute holds: every law on the fullest cases of the two mutated
# optimizers; cheaper ones also on default cases, with one rule that reduces over each tensor and one over the tree.
COSTLY = "B3 or B4 or B9 or C4 or C5 or D1 or H4 or H5 or H6 or I1 or L1"
NAMED = f"""not catches and not wrong_flag and (not test_law or -adam-2 or -adagrad-3
    or (-adam-0 or -dog-0 or -lamb-0) and not ({COSTLY}))
    and (not test_golden or test_the_preset and (keras-adamw or optax-adamw or optax-amsgrad or torch-adagrad))"""

# Mutants that no test can notice, because they behave the same. Key: file, function, mutated line as the record shows
# it. Value: why. An entry that is noticed after all, or that no longer exists, is an error.
_MASKED = "the number stands where the outer `where` takes its other branch"
EQUIVALENT: dict[tuple[str, str, str], str] = {
    (
        "adaptx/core/moments.py",
        "_safe_sqrt_jvp",
        "return root, jnp.where(root == 0, 0, 0.5 / jnp.where(root == 0, (2), root)) * tangents[0]",
    ): _MASKED,
    (
        "adaptx/core/moments.py",
        "safe_div",
        "return jnp.where(d == 0, 0, n / jnp.where(d == 0, (2), d))",
    ): _MASKED,
    (
        "adaptx/core/moments.py",
        "_safe_div_jvp",
        "return q, (dn - q * dd) * jnp.where(d == 0, 0, 1 / jnp.where(d == 0, (2), d))",
    ): _MASKED,
    (
        "adaptx/core/rounding.py",
        "bounded",
        "return jnp.where((size > 1) & jnp.isfinite(size), g / jnp.where(size > 1, size, (2)).astype(g.dtype), g)",
    ): _MASKED,
    (
        "adaptx/core/rule.py",
        "Like.__call__",
        "return jnp.where((x == x), full, full) if isinstance(x, Tracer) else full",
    ): "both branches are the same array; the condition only makes it depend on x",
}

OPERATORS: dict[type, tuple[type, ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.MatMult: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
    # An ordering both moves its boundary and turns round.
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
# Swapping the arguments of these changes nothing, or is noticed by any call at all.
NOT_SWAPPED = {"maximum", "minimum", "max", "min", "add", "isinstance", "issubclass", "hasattr", "getattr", "setattr"}


@dataclasses.dataclass(frozen=True)
class Mutant:
    file: str  # relative to the root, with slashes
    line: int
    scope: str
    before: str  # the source line, or lines in one
    after: str  # the same with the mistake
    text: bytes = dataclasses.field(repr=False)  # the whole mutated file

    @property
    def key(self) -> tuple[str, str, str]:
        return self.file, self.scope, self.after

    def __str__(self) -> str:
        return f"{self.file}:{self.line} ({self.scope}) {self.after}"


def replacements(node: ast.AST) -> Iterator[ast.AST | str]:
    """What a node may become: another node, or text."""

    def changed(**fields: Any) -> ast.AST:
        new = copy.copy(node)
        for field, value in fields.items():
            setattr(new, field, value)
        return new

    match node:
        case ast.BinOp(left=left, op=op, right=right) | ast.AugAssign(target=left, op=op, value=right):
            if not any(isinstance(x, ast.JoinedStr) or _is_constant(x, str) for x in (left, right)):
                yield from (changed(op=new()) for new in OPERATORS.get(type(op), ()))
        case ast.BoolOp(op=op):
            yield from (changed(op=new()) for new in OPERATORS[type(op)])
        case ast.Compare(ops=[op, *rest]):
            yield from (changed(ops=[new(), *rest]) for new in OPERATORS[type(op)])
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield operand
        case ast.Constant(value=bool() as value):
            yield str(not value)
        case ast.Constant(value=int() as value):
            yield str(value + 1)
        case ast.Constant(value=float() as value):
            yield repr(value / 2 if value else 1.0)  # half, so that a decay rate stays one
        case ast.Return(value=value) if value is not None and not _is_constant(value, type(None)):
            yield "return None"
        case ast.Raise() | ast.Expr(value=ast.Call()):
            yield "pass"
        case ast.Call(func=func, args=[first, second, *rest]):
            name = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
            starred = any(isinstance(a, ast.Starred) for a in (first, second))
            if name not in NOT_SWAPPED and not starred and ast.dump(first) != ast.dump(second):
                yield changed(args=[second, first, *rest])


def _is_constant(node: ast.AST, kind: type) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, kind)


def negated(test: ast.AST) -> str | None:
    """A condition turned round, where its own operators do not already give that mutant."""
    return None if isinstance(test, ast.Compare | ast.BoolOp | ast.UnaryOp) else f"not {ast.unparse(test)}"


def sites(node: ast.AST, scope: tuple[str, ...] = ()) -> Iterator[tuple[str, ast.AST, ast.AST | str]]:
    """Every (scope, node, replacement) below a node."""
    if isinstance(node, ast.JoinedStr):  # text for people; and Python 3.11 does not know the places inside
        return
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        scope = (*scope, node.name)
    yield from ((".".join(scope) or "module", node, new) for new in replacements(node))
    tests = [node.test] if isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert) else getattr(node, "ifs", [])
    for test in tests:
        if (text := negated(test)) is not None:
            yield ".".join(scope) or "module", test, text
    unions = isinstance(node, ast.Call) and getattr(node.func, "id", "") in {"isinstance", "issubclass"}
    for field, value in ast.iter_fields(node):
        if field in {"annotation", "returns", "decorator_list", "type_params"}:
            continue
        if isinstance(node, ast.keyword) and node.arg == "strict":  # zip's own check, which never fires in correct code
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST):
                continue
            if unions and isinstance(child, ast.BinOp):  # isinstance(x, int | float): a union, not arithmetic
                continue
            yield from sites(child, scope)


def mutants_of(path: Path) -> list[Mutant]:
    source = path.read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found: dict[bytes, Mutant] = {}
    for scope, node, new in sites(ast.parse(source)):
        assert isinstance(node, ast.expr | ast.stmt)
        first, last = starts[node.lineno - 1], starts[node.end_lineno or node.lineno]
        start, end = first + node.col_offset, starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
        after = new if isinstance(new, str) else ast.unparse(new)
        if isinstance(node, ast.expr) and not after.isidentifier():
            after = f"({after})"
        shown = [source[first:last], source[first:start] + after.encode() + source[end:last]]
        text = source[:first] + shown[1] + source[last:]
        compile(text, path, "exec")  # a mutant that does not parse would be a mistake of this file
        before, after = (" ".join(piece.decode().split()) for piece in shown)
        found.setdefault(text, Mutant(path.relative_to(ROOT).as_posix(), node.lineno, scope, before, after, text))
    return list(found.values())


# Running one mutant, in a forked process


class MutantFinder:
    """Gives the mutated text when its module is imported."""

    def __init__(self, mutant: Mutant):
        self.path = str(ROOT / mutant.file)
        self.name = mutant.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        self.text = mutant.text

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self.name:
            return None
        text = self.text

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname: str) -> Any:
                return compile(text, self.path, "exec", dont_inherit=True)

        return importlib.util.spec_from_file_location(name, self.path, loader=Loader(name, self.path))


class Observer:
    """A pytest plugin: tests that noticed mutants, of the same file first, go first; which one notices is written."""

    def __init__(self, file: str, noticed: Counter[tuple[str, str]], result: Path):
        self.file, self.noticed, self.result = file, noticed, result

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        anywhere: Counter[str] = Counter()
        for (_, test), count in self.noticed.items():
            anywhere[test] += count
        items.sort(key=lambda item: (-self.noticed[self.file, item.nodeid], -anywhere[item.nodeid]))

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.result.write_text(report.nodeid, encoding="utf-8")

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.result.write_text("import or collection", encoding="utf-8")


def child(mutant: Mutant | None, args: argparse.Namespace, noticed: Counter[tuple[str, str]], folder: Path) -> int:
    """The forked process: its own session, output into a file, and the mutant in place of its module."""
    os.setsid()
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.dont_write_bytecode = True
    warnings.resetwarnings()  # the fork happened with all of them off
    if mutant is not None:
        sys.meta_path.insert(0, MutantFinder(mutant))
    import pytest

    options = ["-x", "-q", "--no-header", "--tb=short", "-p", "no:cacheprovider"]
    options += ["-m", args.marker, "-k", args.keyword]
    if importlib.util.find_spec("hypothesis"):
        options.append("--hypothesis-seed=0")
    # Two processes may meet in the compilation cache; that is no fault of the mutant.
    for verb in ("reading", "writing"):
        options += ["-W", f"ignore:Error {verb} persistent compilation cache"]
    return int(
        pytest.main(
            [*options, *args.tests], plugins=[Observer(mutant.file if mutant else "", noticed, folder / "result")]
        )
    )


@dataclasses.dataclass
class Run:
    mutant: Mutant | None
    folder: Path
    pid: int
    started: float
    status: str = ""  # survived, killed, timeout, crash
    by: str = ""
    seconds: float = 0.0


def start(mutant: Mutant | None, args: argparse.Namespace, noticed: Counter[tuple[str, str]]) -> Run:
    folder = Path(tempfile.mkdtemp(dir=args.scratch))
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX and Python warn of forks; JAX has no threads before its backend starts
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = child(mutant, args, noticed, folder)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # without the parent's exit handlers
    return Run(mutant, folder, pid, time.monotonic())


def end(run: Run) -> None:
    """Kill the process and what it started."""
    with contextlib.suppress(ProcessLookupError):  # it may not have its own session yet
        os.killpg(run.pid, signal.SIGKILL)
    os.kill(run.pid, signal.SIGKILL)
    os.waitpid(run.pid, 0)


def finish(run: Run, timeout: float) -> bool:
    """Whether the process has ended; one that takes too long is ended here."""
    run.seconds = time.monotonic() - run.started
    pid, status = os.waitpid(run.pid, os.WNOHANG)
    if pid == 0:
        if run.seconds < timeout:
            return False
        end(run)
        run.status, run.by = "timeout", "timeout"
        return True
    result = run.folder / "result"
    run.by = result.read_text(encoding="utf-8") if result.exists() else "import or collection"
    code = os.waitstatus_to_exitcode(status)
    run.status = "survived" if code == 0 else "crash" if code < 0 else "killed"
    return True


def unchanged(what: str, args: argparse.Namespace, noticed: Counter[tuple[str, str]]) -> float:
    """The unchanged package must pass; the seconds that takes."""
    run = start(None, args, noticed)
    while not finish(run, args.timeout or 3600):
        time.sleep(0.1)
    if run.status != "survived":
        sys.exit(f"the unchanged package fails ({what}; {run.by}):\n{(run.folder / 'log').read_text()[-5000:]}")
    print(f"the unchanged package passes in {run.seconds:.1f} s ({what})", flush=True)
    return run.seconds


def run_all(mutants: list[Mutant], args: argparse.Namespace) -> list[Run]:
    noticed: Counter[tuple[str, str]] = Counter()
    unchanged("nothing compiled yet", args, noticed)
    timeout = args.timeout or 30 + 4 * unchanged("programs from the compilation cache", args, noticed)
    waiting, running, done = list(reversed(mutants)), [], []
    try:
        while waiting or running:
            while waiting and len(running) < args.jobs:
                running.append(start(waiting.pop(), args, noticed))
            time.sleep(0.02)
            for run in [run for run in running if finish(run, timeout)]:
                running.remove(run)
                done.append(run)
                if run.status == "killed" and run.mutant:
                    noticed[run.mutant.file, run.by] += 1
                place = f"[{len(done)}/{len(mutants)}] {run.status:8} {run.seconds:5.1f} s"
                print(f"{place}  {run.mutant}{'' if run.status == 'survived' else '  by ' + run.by}", flush=True)
    except KeyboardInterrupt:
        print("interrupted: the report covers what was done")
    finally:
        for run in running:
            end(run)
    # Otherwise a test that depends on the order would have counted as noticing mutants.
    unchanged("tests in their last order", args, noticed)
    return done


# The record


def code(text: str) -> str:
    """Markdown code."""
    return "`" + text.replace("`", "'") + "`"


def report(done: list[Run], total: int, seconds: float, args: argparse.Namespace) -> tuple[str, float]:
    import jax

    survived = [r for r in done if r.status == "survived"]
    open_ = [r for r in survived if r.mutant and r.mutant.key not in EQUIVALENT]
    equivalent = [r for r in survived if r.mutant and r.mutant.key in EQUIVALENT]

    def score(runs: list[Run], adjusted: bool) -> float:
        unseen = sum(r.status == "survived" for r in runs)
        same = sum(r in equivalent for r in runs) if adjusted else 0
        return 100 * (1 - (unseen - same) / (len(runs) - same)) if len(runs) > same else 100.0

    chosen = f'`{" ".join(args.tests)} -m "{args.marker}"' + (f' -k "{args.keyword}"`' if args.keyword else "`")
    ends = Counter(r.status for r in done)
    lines = [
        "# Mutation score",
        "",
        "Written by `make mutate`. A mutant is one small mistake (another operator, constant or order of arguments, a",
        "condition turned round, a statement or a result left out); it is killed when a test fails. The raw score",
        "counts every survivor; the adjusted one leaves out those listed, with reasons, in `tests/mutate.py` as",
        "behaving the same.",
        "",
        f"- Raw score: **{score(done, False):.1f} %**; adjusted: **{score(done, True):.1f} %**",
        f"- {len(done)} of {total} mutants run: {ends['killed']} killed, {ends['timeout']} timed out, "
        f"{ends['crash']} crashed, {len(survived)} survived ({len(equivalent)} of them equivalent)",
        f"- Tests: {chosen}; {seconds / 60:.0f} minutes, {args.jobs} jobs",
        f"- Python {platform.python_version()}, jax {jax.__version__}, {time.strftime('%Y-%m-%d')}"
        + (f"; a sample with seed {args.seed}" if args.sample else ""),
        "",
        "| file | mutants | survived | equivalent | raw % | adjusted % |",
        "|---|---|---|---|---|---|",
    ]
    for file in sorted({r.mutant.file for r in done if r.mutant}):
        runs = [r for r in done if r.mutant and r.mutant.file == file]
        counts = f"{len(runs)} | {sum(r in survived for r in runs)} | {sum(r in equivalent for r in runs)}"
        lines.append(f"| {file} | {counts} | {score(runs, False):.1f} | {score(runs, True):.1f} |")
    for title, runs in (("Survivors", open_), ("Equivalent survivors", equivalent)):
        lines += ["", f"## {title}", ""]
        for m in sorted((r.mutant for r in runs if r.mutant), key=lambda m: (m.file, m.line, m.after)):
            why = f". {EQUIVALENT[m.key]}" if m.key in EQUIVALENT else ""
            lines.append(f"- {m.file}:{m.line} `{m.scope}`: {code(m.before)} became {code(m.after)}{why}")
        if not runs:
            lines.append("None.")
    return "\n".join(lines) + "\n", score(done, True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="*", default=TESTS, help=f"default: {' '.join(TESTS)}")
    parser.add_argument("-m", "--marker", default=MARKED, help=f"pytest's -m (default: {MARKED})")
    parser.add_argument("-k", "--keyword", default=" ".join(NAMED.split()), help="pytest's -k")
    parser.add_argument("--only", default="", help="mutate only files whose path contains this")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="run N mutants chosen at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 8))
    parser.add_argument("--timeout", type=float, default=0, help="seconds for one mutant (default: from a plain run)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/mutation.md")
    parser.add_argument("--fail-under", type=float, default=90.0, help="least adjusted score, in percent")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    args = parser.parse_args()
    args.tests = [t for t in args.tests if (ROOT / t.partition("::")[0]).exists()]

    files = sorted({path for pattern in TARGETS for path in ROOT.glob(pattern)})
    everything = [m for path in files for m in mutants_of(path)]
    mutants = [m for m in everything if args.only in m.file]
    # A shuffled order, so that an interrupted run is a fair sample and the tests that notice much are soon known.
    random.Random(args.seed).shuffle(mutants)
    if args.sample:
        mutants = mutants[: args.sample]
    if args.list:
        print(*sorted(mutants, key=lambda m: (m.file, m.line)), sep="\n")
        print(*(f"{count} in {file}" for file, count in Counter(m.file for m in mutants).items()), sep="\n")
        return 0
    stale = EQUIVALENT.keys() - {m.key for m in everything}
    if stale:
        sys.exit("listed as equivalent, but no such mutant:\n" + "\n".join(map(str, sorted(stale))))
    if not args.tests:
        sys.exit("none of the tests exist")

    os.chdir(ROOT)
    sys.path[0] = str(ROOT)  # for the tests' imports, as `python -m pytest` has it
    with tempfile.TemporaryDirectory(prefix="mutate-") as scratch:
        args.scratch = scratch
        # Most programs are the same in most mutants, so their compilation is shared; failing examples are not kept.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{scratch}/jax"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = f"{scratch}/hypothesis"
        os.environ["JAX_PLATFORMS"] = "cpu"  # conftest sets this too, but jax reads it when imported
        os.environ["OPENBLAS_NUM_THREADS"] = "1"  # a library with threads does not survive a fork
        for module in ("numpy", "jax", "jax.numpy", "jax.export", "optax", "chex", "flax.nnx", "pytest"):
            if importlib.util.find_spec(module.partition(".")[0]):
                importlib.import_module(module)
        assert "adaptx" not in sys.modules
        began = time.monotonic()
        done = run_all(mutants, args)
        text, score = report(done, len(mutants), time.monotonic() - began, args)
    print("\n" + text)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    print(f"written to {args.out}")
    noticed = [r for r in done if r.mutant and r.mutant.key in EQUIVALENT and r.status != "survived"]
    for run in noticed:
        print(f"listed as equivalent, but noticed by {run.by}: {run.mutant}")
    return int(bool(noticed) or score < args.fail_under)


if __name__ == "__main__":
    sys.exit(main())
