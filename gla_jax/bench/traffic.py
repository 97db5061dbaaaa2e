"""Bytes that a compiled program moves, and its collectives, read from XLA's text with loops counted as they run.

An operation reads its operands from the device's memory and writes its result there: what a fusion keeps to itself is
free, and so is what XLA places on the chip. Caches are not modelled. A kernel of one's own (Pallas, cuDNN) counts its
operands and its result once, however often it reads them.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from gla_jax.bench.products import REST, part_of

BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}  # others carry their bits in their name: f32, s8, u4
FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id", "replica-id",
    "domain", "optimization-barrier", "add-dependency",
}  # fmt: skip
SLICES = {"dynamic-slice", "slice", "gather"}
# Bytes that leave a device, of its operand and its result.
COLLECTIVES = {
    "collective-permute": lambda operand, result: operand,
    "all-to-all": lambda operand, result: operand,
    "all-gather": lambda operand, result: result - operand,
    "reduce-scatter": lambda operand, result: operand - result,
    "all-reduce": lambda operand, result: 2 * operand,  # a reduce-scatter, then an all-gather, on many devices
}
ARRAY = re.compile(r"([a-z]+\d*\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
NAME = re.compile(r"%([\w.\-]+)")


@dataclass
class Traffic:
    """moved: bytes by part; sent: bytes by (part, collective); calls: by the same; unknown: loops counted once."""

    moved: Counter = field(default_factory=Counter)
    sent: Counter = field(default_factory=Counter)
    calls: Counter = field(default_factory=Counter)
    unknown: int = 0

    def add(self, other: "Traffic", times: float = 1) -> None:
        """Add what another program moves, so many times."""
        for name in ("moved", "sent", "calls"):
            for key, value in getattr(other, name).items():
                getattr(self, name)[key] += times * value
        self.unknown += other.unknown


class Instruction(NamedTuple):
    """A line of a computation; sizes: bytes of each array of its result; arrays: the same, 0 for those on the chip."""

    root: bool
    name: str
    sizes: tuple[int, ...]
    arrays: tuple[int, ...]
    op: str
    operands: tuple[str, ...]
    rest: str

    def called(self, role: str) -> list[str]:
        """Names of the computations it calls in a role: calls, body, condition, branch_computations, to_apply."""
        match = re.search(rf"\b{role}=(?:\{{([^}}]*)\}}|(%[\w.\-]+))", self.rest)
        return NAME.findall(match[1] or match[2]) if match else []


@dataclass
class Computation:
    """The instructions of a computation, by name in order."""

    instructions: dict[str, Instruction] = field(default_factory=dict)

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that read each one."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for name in set(instruction.operands):
                users.setdefault(name, []).append(instruction)
        return users

    @property
    def root(self) -> Instruction:
        """The instruction whose result is the computation's."""
        return next(each for each in self.instructions.values() if each.root)


def array_bytes(text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Bytes of every array of an HLO type, and those in the device's memory: 0 for other spaces, S(1) in a layout."""
    sizes, moved = [], []
    for kind, shape, layout in ARRAY.findall(text):
        bits = BITS.get(kind) or int(re.search(r"\d+", kind)[0])
        sizes.append(math.prod(map(int, filter(None, shape.split(",")))) * bits // 8)
        moved.append(0 if re.search(r"S\([1-9]", layout) else sizes[-1])
    return tuple(sizes), tuple(moved)


def read_hlo(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a module by name, and the name of its entry."""
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        if header := HEADER.match(line):
            current = computations[header[2]] = Computation()
            entry = header[2] if header[1] else entry
        elif current is not None and (match := INSTRUCTION.match(line)):
            root, name, kind, op, rest = match.groups()
            operands = tuple(NAME.findall(_balanced(rest)))
            current.instructions[name] = Instruction(bool(root), name, *array_bytes(kind), op, operands, rest)
    return computations, entry


def _balanced(text: str) -> str:
    """The text up to the bracket that closes an open one."""
    depth = 1
    for place, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if not depth:
            return text[:place]
    return text


def read_traffic(text: str, part: str = REST) -> Traffic:
    """The traffic of a compiled program, by jax.stages.Compiled.as_text; part: of what lies in no scope."""
    computations, entry = read_hlo(text)
    done: dict[tuple[str, str], Traffic] = {}

    def whole(name: str, part: str) -> Traffic:
        if (name, part) not in done:
            total = Traffic()
            for each in computations[name].instructions.values():
                _add(total, each, computations, name, part, whole)
            done[name, part] = total
        return done[name, part]

    return whole(entry, part)


def _add(total: Traffic, each: Instruction, computations: dict, name: str, part: str, whole) -> None:
    part = _part(each, computations[name]) or part
    if each.op == "while":
        (body,), (condition,) = each.called("body"), each.called("condition")
        trips = _trips(each, computations[condition])
        total.unknown += trips is None
        return total.add(whole(body, part), 1 if trips is None else trips)
    if each.op == "conditional":
        names = each.called("branch_computations") or [
            branch for role in ("true_computation", "false_computation") for branch in each.called(role)
        ]
        return total.add(max((whole(branch, part) for branch in names), key=lambda branch: branch.moved.total()))
    if each.op == "call" or (each.op == "async-start" and not each.arrays):
        return total.add(whole(each.called("to_apply")[0], part))
    if each.op in FREE or each.op.endswith("-done") or each.op.endswith("-update"):
        return None
    own = computations[name].instructions
    operands = [sum(own[operand].arrays) if operand in own else 0 for operand in each.operands]
    kind = each.op.removesuffix("-start")
    if kind in COLLECTIVES:
        # A started one has operand and result side by side, and sometimes signals.
        result = max(each.sizes, default=0) if each.op.endswith("-start") else sum(each.sizes)
        sent = sum(sum(own[operand].sizes) for operand in each.operands if operand in own)
        total.sent[part, kind] += COLLECTIVES[kind](sent, result)
        total.calls[part, kind] += 1
    total.moved[part] += _moved(each, operands, computations)
    return None


def _part(each: Instruction, computation: Computation, steps: int = 3) -> str | None:
    """The part that an instruction's scope names; a copy, which has none, belongs to what reads it."""
    operation = re.search(r'op_name="([^"]*)"', each.rest)
    if part := operation and part_of(operation[1]):
        return part
    users = computation.users[each.name] if steps else []
    return next(filter(None, (_part(user, computation, steps - 1) for user in users)), None)


def _moved(each: Instruction, operands: list[int], computations: dict[str, Computation]) -> int:
    result = sum(each.arrays)
    if each.op in ("copy-start", "slice-start", "async-start"):  # (to, from, signal): from is the operand again
        return sum(each.arrays[:1]) + sum(operands)
    if each.op in SLICES:
        return 2 * result
    if each.op == "dynamic-update-slice":
        return 2 * operands[1]
    if each.op == "custom-call" and len(each.arrays) > 1 and "__cublas" in each.rest:
        return sum(operands) + each.arrays[0]  # the rest is workspace
    if each.op != "fusion":
        return sum(operands) + result
    inner = computations[each.called("calls")[0]]
    parameters = [p for p in inner.instructions.values() if p.op == "parameter"]
    read = 0
    for parameter in parameters:
        size = operands[int(parameter.rest.partition(")")[0])]
        users = inner.users[parameter.name]
        if (sliced := _sliced(parameter, inner, computations)) is not None:
            size = min(size, sliced)
        elif len(users) == 1 and users[0].op == "dynamic-update-slice" and users[0].operands[0] == parameter.name:
            update = _size(inner.instructions[users[0].operands[1]])
            result, size = result - size + update, 0  # written in place
        read += size
    return read + max(result, 0)


def _sliced(parameter: Instruction, inner: Computation, computations: dict[str, Computation]) -> int | None:
    """Bytes that a fusion reads of a parameter of which slices alone are taken, also in fusions inside; else None."""
    total = 0
    for user in inner.users[parameter.name]:
        if user.op == "fusion":
            nested = computations[user.called("calls")[0]]
            places = [place for place, operand in enumerate(user.operands) if operand == parameter.name]
            taken = [
                _sliced(each, nested, computations)
                for each in nested.instructions.values()
                if each.op == "parameter" and int(each.rest.partition(")")[0]) in places
            ]
        else:
            taken = [_size(user) if user.op in SLICES and user.operands[0] == parameter.name else None]
        if None in taken:
            return None
        total += sum(taken)
    return total if inner.users[parameter.name] else None


def _size(each: Instruction) -> int:
    return sum(each.arrays)


def _trips(loop: Instruction, condition: Computation) -> int | None:
    """Trips of a while loop: XLA's own note, else the constant that a counter from 0 is compared with."""
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(noted[1])
    root = condition.root
    if root.op != "compare" or "direction=LT" not in root.rest:
        return None
    end = condition.instructions.get(root.operands[1])
    literal = end and end.op == "constant" and re.match(r"(\d+)\)", end.rest)
    return int(literal[1]) if literal else None
