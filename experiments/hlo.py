"""What a compiled program makes one device do, read from its text: `as_text()`.

Loops count as often as they run. XLA's own cost analysis counts a loop's body once.
"""

import functools
import math
import re
from typing import NamedTuple

import numpy as np

_KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
    """One collective of the program.

    Attributes:
      kind: its HLO name, such as "all-gather".
      elements: of its result on one device.
      bytes: of that result.
      trips: how often it runs; a loop of unknown length counts once.
      in_loop: whether a loop's body holds it.
      groups: of devices that exchange, or pairs of source and target; empty for all.
    """

    kind: str
    elements: int
    bytes: int
    trips: int
    in_loop: bool
    groups: list[list[int]]


class _Instruction(NamedTuple):
    name: str
    type: str
    kind: str
    rest: str


class Program:
    """A compiled program's computations.

    Args:
      text: of `jax.jit(f).lower(...).compile().as_text()`.
    """

    def __init__(self, text: str):
        self._bodies: dict[str, list[_Instruction]] = {}
        body: list[_Instruction] = []
        self._types: dict[tuple[str, str], str] = {}
        for line in text.splitlines():
            if header := _HEADER.match(line):
                name = header.group(1)
                body = self._bodies[name] = []
                if line.startswith("ENTRY"):
                    self._entry = name
            elif found := _LINE.match(line):
                body.append(_Instruction(*found.groups()))
                self._types[name, found.group(1)] = found.group(2)

    def collectives(self) -> list[Collective]:
        """All of them, those of every branch included."""
        return self._collectives(self._entry, 1, False)

    def matmul_flops(self) -> int:
        """Operations of the products, two a multiply-add; of branches the most."""
        return self._flops(self._entry)

    def _collectives(self, name: str, trips: int, inside: bool) -> list[Collective]:
        found = []
        for x in self._bodies[name]:
            kind = x.kind.removesuffix("-start")
            if kind in _KINDS:
                sizes = [_size(a) for a in _ARRAY.findall(x.type)]
                found.append(
                    Collective(
                        kind,
                        sum(n for n, _ in sizes),
                        sum(n * width for n, width in sizes),
                        trips,
                        inside,
                        _groups(x.rest),
                    )
                )
            for called, times in _calls(x):
                loop = inside or x.kind == "while"
                found += self._collectives(called, trips * times, loop)
        return found

    @functools.cache  # noqa: B019, a program lives as long as one measurement
    def _flops(self, name: str) -> int:
        total = 0
        for x in self._bodies[name]:
            if x.kind == "dot":
                total += self._dot(name, x)
            costs = [times * self._flops(called) for called, times in _calls(x)]
            total += max(costs, default=0) if x.kind == "conditional" else sum(costs)
        return total

    def _dot(self, name: str, x: _Instruction) -> int:
        left = re.split(r"[,)]", x.rest)[0].split("%")[-1]
        shape = _shape(self._types[name, left])
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", x.rest)
        depth = math.prod(shape[a] for a in _numbers(contracted.group(1)))
        return 2 * math.prod(_shape(x.type)) * depth


def _calls(x: _Instruction) -> list[tuple[str, int]]:
    """The computations that an instruction runs, and how often."""
    if x.kind == "while":
        trips = _TRIPS.search(x.rest)
        body = re.search(r"body=%?([\w.\-]+)", x.rest).group(1)
        return [(body, int(trips.group(1)) if trips else 1)]
    if x.kind == "conditional":
        listed = re.search(r"branch_computations=\{([^}]*)\}", x.rest)
        names = (
            listed.group(1)
            if listed
            else ",".join(re.findall(r"(?:true|false)_computation=([^,]+)", x.rest))
        )
        return [(name.strip().removeprefix("%"), 1) for name in names.split(",")]
    if x.kind in ("fusion", "call", "async-start"):
        called = re.search(r"(?:calls|to_apply)=%?([\w.\-]+)", x.rest)
        return [(called.group(1), 1)] if called else []
    return []


def _groups(rest: str) -> list[list[int]]:
    """Device groups, from any of the ways in which HLO writes them."""
    if listed := re.search(r"(?:replica_groups|pairs)=\{(\{[{}\d,]*\})\}", rest):
        return [
            [int(i) for i in group.split(",") if i]
            for group in re.findall(r"\{([\d,]*)\}", listed.group(1))
        ]
    order = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
    if iota := re.search(rf"replica_groups=\[([\d,]+)\]<={order}", rest):
        shape, *ids = iota.groups()
        return _devices(*ids).reshape(_numbers(shape)).tolist()
    mesh = re.search(
        rf"replica_groups=\w*mesh\[([^\]]*)\](?:, device_ids=\({order}\))? \{{(.*?)\}}",
        rest,
    )
    if not mesh:
        return []
    axes = dict(re.findall(r"'(\w+)'=(\d+)", mesh.group(1)))
    shape = [int(n) for n in axes.values()]
    across = [list(axes).index(a) for a in re.findall(r"'(\w+)'", mesh.group(4))]
    ids = _devices(mesh.group(2) or str(math.prod(shape)), mesh.group(3))
    moved = np.moveaxis(ids.reshape(shape), across, range(-len(across), 0))
    return moved.reshape(-1, math.prod(shape[a] for a in across)).tolist()


def _devices(shape: str, order: str | None) -> np.ndarray:
    sizes = _numbers(shape)
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids.transpose(_numbers(order)) if order else ids


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]


def _shape(text: str) -> list[int]:
    return _numbers(_ARRAY.search(text).group(3))


def _size(array: tuple[str, str, str]) -> tuple[int, int]:
    """Elements, and bytes of each."""
    _, bits, shape = array
    return math.prod(_numbers(shape)), max(int(bits or 8) // 8, 1)
