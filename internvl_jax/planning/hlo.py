"""What a compiled program does, read from its HLO text, every loop counted as often as it runs.

XLA's own cost analysis counts the body of a loop once, whatever its length, and layers are a loop here.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator

import numpy as np

from internvl_jax.models import scopes

# Bits of an element, by XLA's name of its type.
_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}
_BITS |= {f"{kind}{bits}": bits for kind in "su" for bits in (1, 2, 4, 8, 16, 32, 64)}
_BITS |= {f"f{bits}": bits for bits in (16, 32, 64)}
_BITS |= {
    f"f8{form}": 8 for form in ("e3m4", "e4m3", "e4m3fn", "e4m3b11fnuz", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")
}
_BITS |= {"f4e2m1fn": 4}
_TYPES = "|".join(sorted(_BITS, key=len, reverse=True))
_SHAPE = re.compile(rf"\b({_TYPES})\[([\d,]*)\]")
_ARRAY = re.compile(rf"\b(?:{_TYPES})\[[\d,]*\](?:\{{[^}}]*\}})?")
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
            elif one.opcode == "dot":
                left = axis_sizes(names[one.operands[0]].shape)
                summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.rest).group(1)
                length = math.prod(left[int(axis)] for axis in summed.split(",") if axis)
                total += 2.0 * math.prod(axis_sizes(one.shape)) * length
            elif one.opcode == "convolution":
                total += _convolution_flops(one, *(axis_sizes(names[name].shape) for name in one.operands))
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
    """Bytes of a shape, or of all parts of a tuple; two elements of four bits share a byte."""
    return sum(
        -(-_BITS[kind] * math.prod(int(size) for size in dims.split(",") if size) // 8)
        for kind, dims in _SHAPE.findall(shape)
    )


def _main_bytes(text: str) -> int:
    """Bytes of the arrays of a shape that lie in main memory."""
    return sum(num_bytes(shape) for shape in _ARRAY.findall(text) if "S(" not in shape)


def axis_sizes(shape: str) -> list[int]:
    """Sizes of the axes of a shape, of a tuple's first part."""
    return [int(size) for size in _SHAPE.search(shape).group(2).split(",") if size]


def _convolution_flops(one: Instruction, left: list[int], right: list[int]) -> float:
    """Operations of a convolution, as which the TPU compiler writes every product: the axes that `dim_labels` calls i
    are summed over, and of the window what meets an element of the left side (batches of a product are written as a
    window that meets one element alone).
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.rest)
    window = re.search(r"window=\{([^}]*)\}", one.rest)
    fields = dict(part.split("=") for part in window.group(1).split()) if window else {}
    out, met = axis_sizes(one.shape), 1.0
    for axis in sorted(set(labels.group(1)) - set("bf")):
        number = lambda name, default, axis=axis: fields[name].split("x")[int(axis)] if name in fields else default
        low = int(number("pad", "0_0").split("_")[0])
        stride, apart, spread = (int(number(name, "1")) for name in ("stride", "rhs_dilate", "lhs_dilate"))
        length, taps, places = (
            axes[text.index(axis)] for axes, text in zip((left, right, out), labels.groups(), strict=True)
        )
        met *= _meetings(length, taps, places, low, stride, apart, spread)
    kept = dict(zip(labels.group(3), out, strict=True))
    return 2.0 * kept["b"] * kept["f"] * right[labels.group(2).index("i")] * met


def _meetings(length: int, taps: int, places: int, low: int, stride: int, apart: int, spread: int) -> int:
    """How many pairs of a place of the result and a tap of the window meet an element of the left side, along an axis
    of it.

    Args:
      length: elements of the left side, `spread` apart, `low` behind the beginning.
      taps: of the window, `apart`.
      places: of the result, `stride` apart.
    """
    # The longer of the two as an array, the other one by one.
    (many, step), (few, jump) = sorted(((taps, apart), (places, stride)), reverse=True)
    at = np.arange(many) * step - low
    met = 0
    for number in range(few):
        where = at + number * jump
        met += int(np.sum((where >= 0) & (where <= (length - 1) * spread) & (where % spread == 0)))
    return met


def cycles(one: Instruction) -> int:
    """The compiler's estimate for an instruction on TPU, 0 where it has none."""
    found = re.search(r'"estimated_cycles":"(\d+)"', one.rest)
    return int(found.group(1)) if found else 0


def _constant(one: Instruction | None) -> int | None:
    return int(one.rest.split(")")[0]) if one is not None and one.opcode == "constant" else None
