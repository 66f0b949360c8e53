"""Collectives and memory traffic of a compiled program, read from its HLO text.

The compiler's own cost analysis counts the body of a loop once. Here it counts as often as it runs
if the text says how often: by ``known_trip_count`` or, in scans of the TPU compiler, by a counter
that is compared with a constant.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator

__all__ = ["Collective", "Instruction", "Module", "parse"]

# Types whose names do not tell their width, as "f32" does.
_BYTES = {"pred": 1, "token": 0, "opaque": 0}
# f32[8,128]{1,0:T(8,128)S(1)}: type, sizes, and the layout with the memory space S.
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
# ENTRY %main (x: f32[8]) -> f32[8] {
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{$")
#   ROOT %sum = f32[8]{0} add(%a, %b), metadata={...}
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"\b(?:body|condition|to_apply|calls|(?:true|false)_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Bytes that each of n devices sends for one byte of a collective's value (the larger of input and
# output), with ring algorithms. For all kinds that are not listed: (n - 1) / n.
_SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "collective-permute": lambda n: 1.0,
    "collective-broadcast": lambda n: 1.0,
}
# Instructions that move no data.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id "
    "iota opt-barrier".split()
)
# Instructions that read only as much of their operand as they return.
_SLICES = frozenset(("dynamic-slice", "slice", "gather"))


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of the text: ``name = shape opcode(operands), rest``.

    Attributes:
      bytes: of the result, those in main memory (HBM).
      payload: bytes of the result, wherever they lie.
      root: whether it is the result of its computation.
    """

    name: str
    opcode: str
    bytes: int
    payload: int
    operands: tuple[str, ...]
    rest: str
    root: bool

    @property
    def called(self) -> list[str]:
        """Names of the computations that it calls."""
        names = _CALLED.findall(self.rest)
        for branches in _BRANCHES.findall(self.rest):
            names += [name.strip().lstrip("%") for name in branches.split(",")]
        return names


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind and group size.

    Attributes:
      kind: ``'all-gather'`` and so on.
      group: number of devices that exchange data with each other.
      count: how often it runs on each device.
      bytes: of the values (the larger of input and output), summed over ``count``.
      sent: bytes that each device sends for them with ring algorithms.
    """

    kind: str
    group: int
    count: int
    bytes: int
    sent: float


class Module:
    """A parsed program of one device.

    Attributes:
      computations: name -> its instructions by name.
      entry: name of the computation that is run.
    """

    def __init__(self, computations: dict[str, dict[str, Instruction]], entry: str):
        self.computations, self.entry = computations, entry

    def collectives(self) -> list[Collective]:
        """One entry for each kind and group size, those that send most first."""
        sums: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0, 0, 0.0])
        for kind, group, size, times in self._walk_collectives():
            sent = _SENT[kind](group) if kind in _SENT else (group - 1) / group
            total = sums[kind, group]
            total[0] += times
            total[1] += size * times
            total[2] += size * sent * times
        found = [Collective(*key, int(n), int(b), s) for key, (n, b, s) in sums.items()]
        return sorted(found, key=lambda c: -c.sent)

    def traffic(self) -> int:
        """Bytes that instructions read from and write to main memory (HBM).

        If an instruction reads or writes only a slice of an array, the slice counts. Values that
        the compiler keeps in a TPU's vector memory do not count.
        """
        return sum(
            times * self._count_moved(self.computations[name], instruction)
            for name, times in self._walk_runs(fused=False)
            for instruction in self.computations[name].values()
        )

    def _walk_collectives(self) -> Iterator[tuple[str, int, int, int]]:
        """``(kind, group, bytes, times)`` of each collective."""
        seen = set()
        for name, times in self._walk_runs(fused=True):
            computation = self.computations[name]
            if any('"AsyncCollectiveDone"' in i.rest for i in computation.values()):
                continue  # counted at its start
            for instruction in computation.values():
                kind = instruction.opcode.removesuffix("-start")
                if kind not in _KINDS:
                    continue
                # The TPU compiler lists a collective that overlaps with other work several times,
                # under one channel.
                channel = re.search(r"channel_id=(\d+)", instruction.rest)
                # Collectives of shard_map, and combined ones, all have channel 1.
                key: tuple[str, ...] = (kind, name, instruction.name)
                if channel is not None and channel[1] != "1":
                    key = (kind, channel[1])
                if key in seen:
                    continue
                seen.add(key)
                inputs = sum(
                    computation[o].payload for o in instruction.operands if o in computation
                )
                # The result of a start includes its operands.
                result = instruction.payload
                if instruction.opcode.endswith("-start") and result > inputs:
                    result -= inputs
                # On TPUs a reduce-scatter is a fusion of an all-reduce and a slice.
                if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                    kind = "reduce-scatter"
                yield kind, _group_size(instruction), max(inputs, result), times

    def _walk_runs(self, fused: bool) -> Iterator[tuple[str, int]]:
        """Computations and how often each runs; with ``fused`` also those inside of fusions."""
        pending = [(self.entry, 1)]
        while pending:
            name, times = pending.pop()
            yield name, times
            for instruction in self.computations[name].values():
                opcode = instruction.opcode
                inside = opcode in ("while", "conditional", "call") or opcode.startswith("async")
                if not inside and not (fused and opcode == "fusion"):
                    continue
                loop = opcode == "while"
                runs = times * (self._count_trips(name, instruction) if loop else 1)
                pending += [(c, runs) for c in instruction.called if c in self.computations]

    def _count_trips(self, name: str, loop: Instruction) -> int:
        """Iterations of a loop in the computation ``name``; 1 if the text does not say."""
        if known := _TRIPS.search(loop.rest):
            return int(known[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
        inside = self.computations.get(condition[1], {}) if condition else {}
        root = next((i for i in inside.values() if i.root), None)
        # The usual form: counter < limit, where the counter is an element of the loop's state.
        if root is None or root.opcode != "compare" or "direction=LT" not in root.rest:
            return 1
        counter, limit = (inside.get(operand) for operand in root.operands)
        place = counter and re.search(r"index=(\d+)", counter.rest)
        if not place or limit is None or limit.opcode != "constant":
            return 1
        outside = self.computations[name]
        start = outside.get(loop.operands[0])
        # Follow that element back to where it was made, for the value that it starts from.
        while start is not None and start.opcode in ("tuple", "copy", "bitcast"):
            operand = start.operands[int(place[1]) if start.opcode == "tuple" else 0]
            start = outside.get(operand)
        first = int(start.operands[0]) if start is not None and start.opcode == "constant" else 0
        return max(0, int(limit.operands[0]) - first)

    def _count_moved(self, computation: dict[str, Instruction], i: Instruction) -> int:
        inside = i.opcode in ("while", "conditional", "call") or i.opcode.startswith("async")
        # Bodies of loops and calls are counted as computations of their own, an asynchronous
        # instruction at its start.
        if i.opcode in _FREE or i.opcode.endswith("-done") or inside:
            return 0
        sizes = [computation[o].bytes if o in computation else 0 for o in i.operands]
        if i.opcode in _SLICES:
            # The slice is read and written; the rest of the array is not touched.
            return 2 * i.bytes
        if i.opcode == "dynamic-update-slice":
            # In place: only the update (operand 1) is read and written.
            return 2 * sizes[1]
        if i.opcode.endswith("-start"):  # its result includes the operand
            return max(i.bytes, sum(sizes))
        if i.opcode == "fusion" and i.called and i.called[0] in self.computations:
            return self._count_fusion(self.computations[i.called[0]], i.bytes, sizes)
        return i.bytes + sum(sizes)

    def _count_fusion(self, body: dict[str, Instruction], result: int, sizes: list[int]) -> int:
        total = 0
        for instruction in body.values():
            if instruction.opcode == "parameter":
                number = int(instruction.operands[0])
                whole = sizes[number] if number < len(sizes) else 0
                # Slices that overlap do not add up to more than the whole.
                total += int(min(whole, self._count_read(instruction, body)))
        updates = [x for x in body.values() if x.opcode == "dynamic-update-slice"]
        for update in updates:  # in place: only the slice is written
            written = body[update.operands[1]].bytes if update.operands[1] in body else 0
            result += min(0, written - update.bytes)
        return total + max(result, 0)

    def _count_read(self, value: Instruction, body: dict[str, Instruction]) -> float:
        """Bytes that a fusion reads of one of its parameters, nested fusions included."""
        total = 0.0
        for user in body.values():
            places = [n for n, operand in enumerate(user.operands) if operand == value.name]
            if not places or user.opcode == "parameter":
                continue
            if user.opcode == "bitcast":
                total += self._count_read(user, body)
            elif user.opcode in _SLICES and places == [0]:
                total += user.payload
            # What is overwritten need not be read.
            elif user.opcode == "dynamic-update-slice" and places == [0]:
                continue
            elif user.opcode == "fusion" and user.called and user.called[0] in self.computations:
                inner = self.computations[user.called[0]]
                parameters = {
                    int(i.operands[0]): i for i in inner.values() if i.opcode == "parameter"
                }
                total += sum(self._count_read(parameters[n], inner) for n in places)
            else:
                # Any other use may read all of it: the caller cuts this down to the array's size.
                return math.inf
        return total


def parse(text: str) -> Module:
    """Parse the ``as_text()`` of a compiled executable."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif current is not None and (found := _LINE.match(line)):
            instruction = _parse_instruction(found[2], found[3], bool(found[1]))
            if instruction is not None:
                current[instruction.name] = instruction
    return Module(computations, entry)


def _parse_instruction(name: str, text: str, root: bool) -> Instruction | None:
    shape, text = _split_shape(text)
    opcode, parenthesis, rest = text.partition("(")
    if not parenthesis:
        return None
    arguments, rest = _split_at_closing(rest)
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
    if opcode in ("parameter", "constant"):
        # parameter(2), constant(16): not a name, but the number that is needed later.
        operands = (arguments.strip(),)
    elif not operands:
        # Without % signs, the last word of each argument is its name.
        operands = tuple(w.split()[-1] for w in arguments.split(",") if w.strip())
    return Instruction(name, opcode, *_count_bytes(shape), operands, rest, root)


def _split_shape(text: str) -> tuple[str, str]:
    """A result's shape, which may be a tuple of shapes, and the text after it."""
    if not text.startswith("("):
        shape, _, rest = text.partition(" ")
        return shape, rest
    shape, rest = _split_at_closing(text[1:])
    return shape, rest.lstrip()


def _split_at_closing(text: str) -> tuple[str, str]:
    """The text before and after the closing parenthesis; the opening one is cut off already."""
    depth = 1
    for place in re.finditer(r"[()]", text):
        depth += 1 if place[0] == "(" else -1
        if not depth:
            return text[: place.start()], text[place.end() :]
    return text, ""


def _count_bytes(shape: str) -> tuple[int, int]:
    """``(bytes in main memory, bytes anywhere)`` of a shape or of all shapes of a tuple."""
    main = anywhere = 0
    for kind, sizes, layout in _SHAPE.findall(shape):
        width = re.search(r"(\d+)", kind)
        # Types of less than 8 bits count as one byte a value.
        size = _BYTES[kind] if kind in _BYTES else max(1, int(width[1]) // 8) if width else 0
        size *= math.prod(int(re.sub(r"\D", "", n)) for n in sizes.split(",") if n)
        anywhere += size
        # S(1) and above are other memories than HBM, such as a TPU's vector memory.
        main += 0 if re.search(r"S\([1-9]\d*\)", layout) else size
    return main, anywhere


def _group_size(instruction: Instruction) -> int:
    """Number of devices in each group of a collective."""
    # It has pairs of sender and receiver instead of groups.
    if instruction.opcode.startswith("collective-permute"):
        return 2
    rest = instruction.rest
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        # {{0,1},{2,3}}: all groups are of one size, so the first one will do.
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        # [2,4]<=[8]: 2 groups of 4.
        return int(found[2])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
        # mesh['data'=2,'fsdp'=4] {'fsdp'}: named axes, perhaps a part of one.
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        named = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part or sizes[axis]) for axis, part in named)
    return 1
