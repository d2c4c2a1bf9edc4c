"""check_in_place: does a compiled step write the rows that it uses, and leave the rest of the table alone?"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any, NamedTuple

# What may have a table's shape in a program that writes rows in place; the CPU may write them in a loop.
_ALLOWED = {
    "parameter", "scatter", "dynamic-update-slice", "get-tuple-element", "tuple", "while", "call", "conditional",
    "bitcast", "opt-barrier",
}  # fmt: skip
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+?)(?:\{[^ ]*\})? ([\w-]+)\((.*)$")
_DONATE = "donate it, by jax.jit(step, donate_argnums=...), and return it in its place"
_ORDER = "return what is donated in the order in which it comes in, and use the old table nowhere after the update"


class _Instruction(NamedTuple):
    name: str
    shape: str
    opcode: str
    rest: str  # operands and attributes

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.-]+)", self.rest.split("), ")[0])


def check_in_place(step: Any, *args: Any, **kwargs: Any) -> list[str]:
    """Compiles a jitted step and looks whether its tables are updated in place; nothing is run.

    Looked at are the arguments that are written by rows, and all of their shape. A table, and every state array of its
    shape, must be donated and returned in its own place, or XLA copies it, which costs more than a dense step does. The
    arithmetic is the same either way, so only the compiled program shows it.

        step = jax.jit(step, donate_argnums=(0, 1))  # step(params, state, batch) -> (params, state, ...)
        sparse.check_in_place(step, params, state, batch)

    Arguments:
        step: what `jax.jit` (or `nnx.jit`) returns.
        args, kwargs: what it is called with: arrays, or `jax.ShapeDtypeStruct` in place of large ones.

    Returns: the names of the arrays that are written by rows, all of them in place.

    Errors:
        TypeError: a step that is not jitted.
        ValueError: naming every table that is not updated in place, what happens to it, and the remedy; or a step that
            writes no rows.
    """
    if not hasattr(step, "lower"):
        raise TypeError("check_in_place: step must be jitted: jax.jit(step, donate_argnums=...)")
    lines = step.lower(*args, **kwargs).compile().as_text().splitlines()
    computations = _computations(lines)
    entry = computations["ENTRY"]
    written = {_axes(i) for body in computations.values() for i in body.values() if i.opcode == "scatter"}
    root = list(entry.values())[-1]
    returned = {_axes(entry[o]) for o in (root.operands if root.opcode == "tuple" else [root.name])}
    shapes = written & returned
    tables = {i.name: _name(i) for i in entry.values() if i.opcode == "parameter" and _axes(i) in shapes}
    if not tables:
        raise ValueError("check_in_place: the step writes no rows of any of its arguments")
    kept = {int(n) for n in re.findall(r"\{[\d, ]*\}: \((\d+)", lines[0])}
    numbers = {i.name: int(i.rest.split(")")[0]) for i in entry.values() if i.opcode == "parameter"}
    wrong = {name: _DONATE for name in tables if numbers[name] not in kept}

    elsewhere: dict[str, set[str]] = defaultdict(set)
    for where, body in computations.items():
        if where.startswith("fused") or "wrapped" in where:
            continue  # only the result of a fusion is stored
        for i in body.values():
            opcode = _result(i, computations)
            if _axes(i) in shapes and opcode not in _ALLOWED:
                source = _source(i, body)
                if opcode == "copy" and source in tables:
                    wrong.setdefault(source, _ORDER)
                else:
                    elsewhere[_axes(i)].add(opcode)
    found = []
    for remedy in (_DONATE, _ORDER):
        if names := [tables[name] for name in tables if wrong.get(name) == remedy]:
            found.append(f"copied whole: {', '.join(names)}; {remedy}")
    for axes, opcodes in elsewhere.items():
        names = [name for name in tables if _axes(entry[name]) == axes and name not in wrong]
        remedy = _ORDER if opcodes == {"copy"} else "its gradient, or another use of it, is dense"
        if "convert" in opcodes and (short := [name for name in names if entry[name].shape.startswith("bf16")]):
            names, remedy = short, "XLA widens bfloat16 tables whole on CPU; take float32 or float16 there"
        if names:
            said = " or ".join(tables[name] for name in names)
            found.append(f"walked whole by {', '.join(sorted(opcodes))}: {said}; {remedy}")
    if found:
        raise ValueError("check_in_place: " + ". ".join(found))
    return [*tables.values()]


def _computations(lines: list[str]) -> dict[str, dict[str, _Instruction]]:
    """The compiled program: the instructions of each computation by name."""
    computations: dict[str, dict[str, _Instruction]] = {}
    body: dict[str, _Instruction] = {}
    for line in lines:
        if line.endswith("{") and "=" not in line.split("(")[0]:
            name = "ENTRY" if line.startswith("ENTRY") else line.split("(")[0].strip().lstrip("%")
            body = computations.setdefault(name, {})
        elif found := _INSTRUCTION.match(line):
            body[found[1]] = _Instruction(*found.groups())
    return computations


def _axes(i: _Instruction) -> str:
    """The shape without the dtype, which a conversion changes: "[1000,8]"."""
    return i.shape[i.shape.find("[") :] if i.shape.count("[") == 1 else i.shape


def _name(parameter: _Instruction) -> str:
    """What the caller calls it, as in params['emb']."""
    found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', parameter.rest)
    return found[1].replace("\\'", "'") if found else parameter.name


def _result(i: _Instruction, computations: dict[str, dict[str, _Instruction]]) -> str:
    """The opcode that makes the result; of a fusion, its last one."""
    called = re.search(r"calls=%?([\w.-]+)", i.rest)
    if i.opcode != "fusion" or not called:
        return i.opcode
    last = list(computations[called[1]].values())[-1]
    return last.opcode


def _source(i: _Instruction, body: dict[str, _Instruction]) -> str:
    """The parameter that an array of the table's shape comes from."""
    while i.opcode != "parameter":
        before = [body[o] for o in i.operands if o in body and _axes(body[o]) == _axes(i)]
        if not before:
            return ""
        i = before[0]
    return i.name
