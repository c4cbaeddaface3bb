"""What a compiled program does, read from its HLO text, every loop counted as often as it runs.

XLA's own cost analysis counts the body of a loop once, whatever its length, and layers are a loop here.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator

from internvl_jax.models import scopes

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}
_SHAPE = re.compile(r"\b(pred|[suf]\d+|bf16)\[([\d,]*)\]")
_ARRAY = re.compile(r"(?:pred|[suf]\d+|bf16)\[[\d,]*\](?:\{[^}]*\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^(ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$")
_COLLECTIVE = re.compile(
    r"^(all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute)(-start)?$"
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of the program.

    Attributes:
      shape: the text of its result's shape.
      opcode: what it does.
      rest: the text behind the opcode: its operands, then its attributes.
      root: whether it is the result of its computation.
    """

    name: str
    shape: str
    opcode: str
    rest: str
    root: bool

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest.split("), ")[0])

    def attribute(self, name: str) -> str | None:
        found = re.search(rf'\b{name}"?[=:] ?"?%?([\w.\-]+)', self.rest)
        return found.group(1) if found else None


@dataclasses.dataclass(frozen=True)
class Collective:
    """A transfer between devices.

    Attributes:
      kind: its opcode, without '-start'.
      bytes: how many bytes a device sends in one run of it.
      group: how many devices exchange with each other.
      hidden: whether other work may run meanwhile.
    """

    kind: str
    bytes: float
    group: int
    hidden: bool


class HloProgram:
    """A compiled program.

    Attributes:
      computations: the instructions of every computation, by its name.
      entry: the name of the computation that a call runs.
    """

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry, current = "", None
        for line in text.splitlines():
            if found := _COMPUTATION.match(line):
                current = self.computations.setdefault(found.group(2), [])
                self.entry = found.group(2) if found.group(1) else self.entry
            elif line == "}":
                current = None
            elif current is not None and (found := _INSTRUCTION.match(line.strip())):
                root, name, shape, opcode, rest = found.groups()
                current.append(Instruction(name, shape, opcode, rest, bool(root)))
            elif current:  # a kernel's metadata has lines of its own
                current[-1] = dataclasses.replace(current[-1], rest=current[-1].rest + line)

    def bodies(
        self, name: str | None = None, times: float = 1, trips: Callable | None = None
    ) -> Iterator[tuple[list[Instruction], float]]:
        """(instructions, how often they run) of the entry, of loops and of branches.

        Branches run equally often, but for the two of a chunk of experts' rows: the second runs where it has any.

        Args:
          trips: says how often a loop runs; None: `self.trips`.
        """
        body = self.computations[name or self.entry]
        yield body, times
        for one in body:
            if one.opcode == "while":
                yield from self.bodies(one.attribute("body"), times * (trips or self.trips)(one, body), trips)
            elif one.opcode == "call":
                yield from self.bodies(one.attribute("to_apply"), times, trips)
            elif one.opcode == "conditional":
                branches = re.findall(r"branch_computations=\{[^}]*\}|(?:true|false)_computation=%[\w.\-]+", one.rest)
                names = re.findall(r"%([\w.\-]+)", " ".join(branches))
                shares = [1 / len(names)] * len(names)
                if (share := scopes.read_chunks(one.rest)) is not None:
                    shares = [1 - share, share]
                for branch, share in zip(names, shares, strict=True):
                    yield from self.bodies(branch, times * share, trips)

    def product_flops(self, body: list[Instruction]) -> float:
        """Floating-point operations of the matrix products of one pass through a computation, those in fusions too."""
        names = {one.name: one for one in body}
        total = 0.0
        for one in body:
            if one.opcode == "fusion":
                total += self.product_flops(self.computations[one.attribute("calls")])
            elif one.opcode in ("convolution", "dot"):
                out, left, right = (num_elements(part) for part in (one.shape, *(names[n].shape for n in one.operands)))
                # [m, k] by [k, n]: the elements of the operands over those of the result are k squared.
                total += 2 * out * math.sqrt(left * right / out) if out else 0.0
        return total

    def read_bytes(self) -> int:
        """Bytes of the arguments that a call reads: not of those that nothing asks for, nor of results that are
        arguments as they were.
        """
        body = self.computations[self.entry]
        read = {name for one in body if not (one.root and one.opcode == "tuple") for name in one.operands}
        return sum(num_bytes(one.shape) for one in body if one.opcode == "parameter" and one.name in read)

    def moved_bytes(self, one: Instruction, names: dict[str, Instruction]) -> int:
        """Bytes that an instruction reads and writes in a device's main memory, at most; of what it only cuts a slice
        out of, as of stacked layers, the slice.
        """
        sizes = [_main_bytes(one.shape)]
        for number, name in enumerate(one.operands):
            size = _main_bytes(names[name].shape) if name in names else 0
            cut = self._cut(one, number) if size else None
            sizes.append(size if cut is None else min(size, cut))
        return sum(sizes)

    def _cut(self, one: Instruction, number: int) -> int | None:
        """Bytes of the slices that an instruction cuts out of one of its operands; None if it reads it otherwise."""
        if one.opcode == "dynamic-slice":
            return num_bytes(one.shape) if number == 0 else None
        if one.opcode != "fusion":
            return None
        inner = self.computations[one.attribute("calls")]
        given = {part.name for part in inner if part.opcode == "parameter" and part.rest.startswith(f"{number})")}
        readers = [(part, place) for part in inner for place, name in enumerate(part.operands) if name in given]
        if not readers or any(part.opcode != "dynamic-slice" or place for part, place in readers):
            return None
        return sum(num_bytes(part.shape) for part, _ in readers)

    def row_bytes(self, one: Instruction, names: dict[str, Instruction]) -> int:
        """Bytes that a gather or scatter (adding to what is there), or those in a fusion, read and write."""
        if one.opcode == "fusion":
            inner = self.computations[one.attribute("calls")]
            inside = {part.name: part for part in inner}
            return sum(self.row_bytes(part, inside) for part in inner)
        if one.opcode == "scatter":
            return 3 * num_bytes(names[one.operands[2]].shape)
        return 2 * num_bytes(one.shape) if one.opcode == "gather" else 0

    def trips(self, loop: Instruction, body: list[Instruction]) -> int:
        """How often a loop runs, at most where data may end it.

        Raises:
          ValueError: it does not count up to a constant, and no scope says how often.
        """
        if (most := scopes.read_turns(loop.rest)) is not None:
            return most
        if known := re.search(r'known_trip_count"?:\s*\{"n":\s*"(\d+)"', loop.rest):
            return int(known.group(1))
        condition = {one.name: one for one in self.computations[loop.attribute("condition")]}
        inner = {one.name: one for one in self.computations[loop.attribute("body")]}
        outer = {one.name: one for one in body}
        compare = next(one for one in condition.values() if one.root)
        counter, limit = (condition[name] for name in compare.operands)
        index = int(counter.attribute("index") or -1)
        root = next(one for one in inner.values() if one.root)
        add = self._value(inner, root.operands[index])
        step = next((_constant(inner.get(name)) for name in add.operands if _constant(inner.get(name)) is not None), 1)
        start = _constant(self._value(outer, self._value(outer, loop.operands[0]).operands[index])) or 0
        count = _constant(limit)
        if compare.opcode != "compare" or count is None or "direction=LT" not in compare.rest or step < 1:
            raise ValueError(f"the loop {loop.name} does not count up to a constant: {compare}")
        return math.ceil((count - start) / step)

    @staticmethod
    def _value(names: dict[str, Instruction], name: str) -> Instruction:
        """What `name` is a copy of."""
        one = names[name]
        while one.opcode in ("copy", "bitcast", "convert") and one.operands and one.operands[0] in names:
            one = names[one.operands[0]]
        return one


def collectives(body: list[Instruction], devices: int) -> Iterator[Collective]:
    """The transfers of one pass through a computation."""
    for one in body:
        if not (found := _COLLECTIVE.match(one.opcode)):
            continue
        kind, start = found.groups()
        group = group_size(one.rest, devices)
        size = num_bytes(one.shape)
        if start and kind in ("all-gather", "collective-permute"):
            size = max(num_bytes(part) for part in re.findall(r"\w+\[[\d,]*\]", one.shape))  # (operand, result, ...)
        others = (group - 1) / group
        sent = {"all-gather": others, "all-reduce": 2 * others, "reduce-scatter": group - 1, "all-to-all": others}
        yield Collective(kind, size * sent.get(kind, 1.0), group, bool(start))


def group_size(rest: str, devices: int) -> int:
    """Devices of one group of a collective."""
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(found.group(2))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found.group(2)))
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(found.group(1).split(","))
    return devices


def num_bytes(shape: str) -> int:
    """Bytes of a shape, or of all parts of a tuple."""
    return sum(
        _BYTES.get(kind, 4) * math.prod(int(size) for size in dims.split(",") if size)
        for kind, dims in _SHAPE.findall(shape)
    )


def _main_bytes(text: str) -> int:
    """Bytes of the arrays of a shape that lie in main memory."""
    return sum(num_bytes(shape) for shape in _ARRAY.findall(text) if "S(" not in shape)


def num_elements(shape: str) -> int:
    """Elements of a shape, of a tuple's first part."""
    found = _SHAPE.search(shape)
    return math.prod(int(size) for size in found.group(2).split(",") if size) if found else 0


def cycles(one: Instruction) -> int:
    """The compiler's estimate for an instruction on TPU, 0 where it has none."""
    found = re.search(r'"estimated_cycles":"(\d+)"', one.rest)
    return int(found.group(1)) if found else 0


def _constant(one: Instruction | None) -> int | None:
    return int(one.rest.split(")")[0]) if one is not None and one.opcode == "constant" else None
