"""Writes what the documents say of the optimizers from the registry: `python -m tests.documents.generate`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import optax

from adaptx import sparse
from adaptx.registry import OPTIMIZERS, Entry
from tests.conformance.ledger import LEDGER
from tests.documents.presets import presets_section
from tests.sparse.semantics import dense_rules, semantics

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
CATALOGUE = ROOT / "adaptx" / "CATALOGUE.md"
SWEEP_REPORT = ROOT / "benchmarks" / "results" / "sweep.md"
SPARSE_REPORT = ROOT / "benchmarks" / "results" / "sparse.md"
PRECISION_REPORT = ROOT / "benchmarks" / "results" / "precision.md"


def readme_table() -> str:
    """One row an optimizer: what it is, from which paper, what it stores and how far it looks."""
    rows = [
        "| optimizer | direction | first line | source | looks at |",
        "|---|---|---|---|---|",
    ]
    for entry in OPTIMIZERS.values():
        direction = f"`{entry.direction.__name__}`" if entry.direction else "-"
        reach = " or ".join(dict.fromkeys(entry.reduces))
        source = f"[{_authors(entry)} {entry.paper.year}]({entry.paper.url})"
        what = _first_line(entry).replace("|", r"\|")  # a bar would end the cell
        rows.append(f"| `{entry.name}` | {direction} | {what} | {source} | {reach} |")
    return "\n".join(rows)


def sparse_table() -> str:
    """The ready optimizers of tables, what is exact about them, and what they keep for each row."""
    rows = [
        "| `adaptx.sparse` | first line | rows that are not used | state for a table of (rows, width) |",
        "|---|---|---|---|",
    ]
    for name, dense in dense_rules().items():
        what = (getattr(sparse, name).__doc__ or "").splitlines()[0].rstrip(".")
        found = {decayed: semantics(dense(**({"weight_decay": 0.1} if decayed else {}))) for decayed in (False, True)}
        how = found[False] + (", with decay at the touch lazy" if found[False] != found[True] else "")
        rows.append(f"| `{name}` | {what} | {how} | {_kept(getattr(sparse, name)(0.1))} |")
        if name == "adam":
            own = _kept(sparse.adam(0.1, bias="row"))
            rows.append(f'| `adam(bias="row")` | the same, counting the steps of each row | lazy | {own} |')
    return "\n".join(rows)


def _kept(tx: optax.GradientTransformation) -> str:
    """The state's kind, and what of it has rows."""
    state: Any = tx.init(jnp.zeros((5, 3)))
    arrays = {field: a for field, a in state._asdict().items() if a is not None and a.ndim}
    kept = [f"{field} {'(rows, width)' if a.ndim == 2 else '(rows,)'}" for field, a in arrays.items()]
    return f"`{type(state).__name__}`: {', '.join(kept)}"


def speed() -> str:
    """AdaGrad at 4,096 uniform ids, from the last report."""
    found = re.search(r"^\| adagrad +\| 1M x 64 \| 4096 uniform.*$", SPARSE_REPORT.read_text(), re.MULTILINE)
    assert found, "run `make bench-sparse`"
    times = float(found[0].split("|")[7])
    return (
        f"With 4,096 ids of a table of 1M x 64 AdaGrad's step is {times:.0f} times as fast as dense Optax's "
        "([sparse.md](benchmarks/results/sparse.md))."
    )


def sweep_line() -> str:
    """The sweep's time beside the loop that compiles anew and beside the best other way, from the last report."""
    row = re.search(r"^\| tune\.sweep, adaptx\.adam .*$", SWEEP_REPORT.read_text(), re.MULTILINE)
    assert row, "run `make bench-sweep`"
    faster, beside = (float(cell) for cell in row[0].split("|")[3:5])
    return (
        f"1/{faster:.0f} of the time of the loop that compiles `optax.adam` anew for each, and {beside:.2f} times that "
        "of the best other way"
    )


# How a row of the costs is stored, and which row of the losses that is.
CHOICES = {
    "adamw": ("nothing: `adamw` in float32", "float32"),
    "bfloat16, precision.step": ('`compress_state(tx, "bfloat16")`, `precision.step`', "state bfloat16"),
    "8bit, precision.step": ('`compress_state(tx, "8bit")`, `precision.step`', "state 8bit"),
    "4bit, precision.step": ('`compress_state(tx, "4bit")`, `precision.step`', "state 4bit"),
    "bfloat16, update": ('`compress_state(tx, "bfloat16")`, `update`', "state bfloat16"),
    "8bit, update": ('`compress_state(tx, "8bit")`, `update`', "state 8bit"),
    "4bit, update": ('`compress_state(tx, "4bit")`, `update`', "state 4bit"),
    "bfloat16 parameters, adamw": ("bfloat16 parameters, nothing else", "parameters bfloat16"),
    "the same, stochastic_rounding": ("the same, `stochastic_rounding`", "the same, stochastic_rounding"),
    "the same, kahan": ("the same, `kahan`", "the same, kahan"),
    "the same, master_weights": ("the same, `master_weights`", "the same, master_weights"),
}


def precision_table() -> str:
    """What each choice costs, from the last report."""
    text = PRECISION_REPORT.read_text()
    parts = {part.splitlines()[0]: _rows(part) for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]}
    costs = parts["What a step costs"]
    trainings = {title.split(": ")[1].split(",")[0]: rows for title, rows in parts.items() if ": " in title}
    backend = re.search(r"^- Machine: (.*)$", text, re.MULTILINE)
    assert backend, "run `make bench-precision`"
    rows = [
        f"| AdamW | state, bytes a parameter | set aside in a step | time | {' | '.join(trainings)} |",
        "|---|---|---|---|" + "---|" * len(trainings),
    ]
    for name, (choice, loss) in CHOICES.items():
        _, times, temporary, state, _ = costs[name]
        losses = " | ".join("" if loss == "float32" else training[loss][1] for training in trainings.values())
        rows.append(f"| {choice} | {state} | {temporary} | {times} x | {losses} |")
    rows.append(f"\nMeasured on: {backend[1]}. Not measured on accelerators.")
    return "\n".join(rows)


def _rows(text: str) -> dict[str, list[str]]:
    """The rows of a report's table, by their first cell."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return {first: rest for first, *rest in lines}


def laws_line() -> str:
    """How many exceptions to the laws are declared."""
    return f"Declared exceptions to the laws: {len(LEDGER)}."


def catalogue() -> str:
    """Every optimizer in full: equations, arguments with defaults, source, flags."""
    parts = [
        "# The catalogue\n\nGenerated from the registry by `python -m tests.documents.generate`; a test fails when it "
        "is stale. The equations are executed against the code by the tests.\n\n"
        "Flags: *looks at*: how far one element's update looks; *normalised*: huge gradients, usual steps; "
        "*odd*: (-g, -x) gives -u; *scale free*: g -> c g changes nothing at eps = eps_root = 0; *zero is fixed*: zero "
        "gradients give the decay alone."
    ]
    for entry in OPTIMIZERS.values():
        text = (entry.factory.__doc__ or "").split("\n", 1)
        equations, _, arguments = text[1].partition("\nArguments:\n")
        arguments = arguments.partition("\n\n")[0]
        direction = f"`adaptx.{entry.direction.__name__}`" if entry.direction else f"none: {entry.direction_reason}"
        parts.append(
            f"## {entry.name}\n\n{_first_line(entry)}\n\n{_fenced(equations)}\n\n"
            + "\n".join("- " + re.sub(r"^(\w+):", r"`\1`:", line.strip()) for line in arguments.splitlines())
            + f"\n\nDirection: {direction}. Source: [{entry.paper.title}, {entry.paper.year}]({entry.paper.url}). "
            f"Family: {entry.family}. Maturity: {entry.maturity}. Typical rate: {entry.typical_rate:g}.\n\n"
            + f"State: `{_state(entry)}`.\n\n{_flags(entry)}"
        )
    return "\n\n".join([*parts, presets_section()]) + "\n"


def _state(entry: Entry) -> str:
    """The state's fields in the fullest case."""
    state = entry.factory(**entry.cases[-1]).init({"x": jnp.zeros(1)})
    return f"{type(state).__name__}({', '.join(type(state)._fields)})"


def _first_line(entry: Entry) -> str:
    return (entry.factory.__doc__ or "").splitlines()[0].partition(": ")[2].rstrip(".")


def _authors(entry: Entry) -> str:
    """The surnames in the paper's title line."""
    return re.findall(r"\(([^()]*?)(?: \d{4})?\)", entry.paper.title)[0]


def _fenced(text: str) -> str:
    """The indented equations as code blocks, prose as it is."""
    lines, inside = [], False
    for line in text.strip().splitlines():
        equation = line.startswith("    ") or line in ("Start:", "Step t = 1, 2, ...:")
        if equation != inside:
            lines.append("```" if inside else "```text")
            inside = equation
        lines.append(line)
    if inside:
        lines.append("```")
    return "\n".join(lines)


def _flags(entry: Entry) -> str:
    """One row a case."""
    rows = [
        "| case | looks at | normalised | odd | scale free | zero is fixed | needs |",
        "|---|---|---|---|---|---|---|",
    ]
    yes = lambda value: "yes" if value else "no"
    for i, case in enumerate(entry.cases):
        given = ", ".join(f"{k}={v}" for k, v in case.items())
        flags = [yes(flag[i]) for flag in (entry.normalised, entry.odd, entry.scale_free, entry.zero_is_fixed)]
        rows.append(f"| `{given}` | {entry.reduces[i]} | {' | '.join(flags)} | {', '.join(entry.needs[i]) or '-'} |")
    return "\n".join(rows)


def with_section(text: str, name: str, content: str) -> str:
    """The text with what stands between its markers `<!-- name -->` and `<!-- end name -->` replaced."""
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}"


def readme() -> str:
    """The README with its generated sections renewed."""
    text = with_section(README.read_text(), "optimizers", readme_table())
    text = with_section(text, "sparse", sparse_table())
    text = with_section(text, "speed", speed())
    text = with_section(text, "sweep", sweep_line())
    text = with_section(text, "precision", precision_table())
    return with_section(text, "laws", laws_line())


if __name__ == "__main__":
    README.write_text(readme())
    CATALOGUE.write_text(catalogue())
