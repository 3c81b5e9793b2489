"""This processor and the model of it, through the same sequences, and what is not equal afterwards.

What a processor may choose, it chooses here, and the model follows after it was checked to be a legal choice:

* XINUSE[i] may be 1 while component i is initial (SDM Vol. 1, 13.6), and an interrupt between two instructions can
  change that. It must not be 0 while it is not.
* XSAVEOPT may write what it could have left out. It must not leave out what was modified since, or what was not
  restored from this very area.
* FOP, FIP and FDP may be lost by a task switch while no exception keeps them (``Pointers.ZEROED``); FCS and FDS
  always, as 64-bit kernels save with REX.W, where they have no place.

All else must be equal: every byte of every area after every save, every result, the vector of every exception.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from functools import partial

from model_executor import Executor
from model_instructions import MOVES, PLAIN, RESTORES, SAVES_BY_KIND
from model_sequences import AREAS, SAVES, SEQUENCES, Batch, Generator, Kind, Operation

from fpstate.arch import Component, mask_of
from fpstate.arch.component import components_in
from fpstate.engine.model import Pointers, Processor, RegisterFile
from fpstate.engine.model.contents import pending, without_pointers
from fpstate.engine.model.register_file import REACHED
from fpstate.engine.model.save import unmodified
from fpstate.errors import ProcessorFault
from fpstate.image.control import MXCSR_INIT
from linux_signal import pass_through_a_frame

_HEADER = struct.Struct("<QQ")
_POINTERS = slice(6, 24)
_NO_POINTERS = bytes(18)
_SELECTORS = (12, 13, 20, 21)
_SSE = 2
_PKRU = mask_of(Component.PKRU)
_KEY_0 = 3


class _DifferenceError(Exception):
    """The processor and the model disagree."""


class Comparison:
    """Runs batches on both and counts; ``differences`` has a line for each sequence that went apart.

    ``counts`` has what the sequences contained and what was left to the processor to choose.
    """

    def __init__(self, processor: Processor, executor: Executor, generator: Generator) -> None:
        self.processor = processor
        self.executor = executor
        self.generator = generator
        self.differences: list[str] = []
        self.counts: Counter[str] = Counter()
        self.sequences = 0
        self._mask = generator.compared
        if self._mask & mask_of(Component.TILEDATA):
            processor.xfd = 0  # the executor has used tiles before its first sequence
        self._fresh = processor.snapshot()
        self._areas: list[bytearray] = []
        self._first = 0
        self._data = b""

    def run(self, sequences: int, *, most_differences: int = 20) -> None:
        """Compare this many sequences, or fewer where that many went apart."""
        wanted = self.sequences + sequences
        while self.sequences < wanted and len(self.differences) < most_differences:
            batch = self.generator.batch(min(SEQUENCES, wanted - self.sequences))
            self._batch(batch)

    def _batch(self, batch: Batch) -> None:
        records, copies = self.executor.run(batch)
        self._data = batch.data
        at = 0
        for number, sequence in enumerate(batch.sequences):
            saves = sum(1 for operation in sequence if operation[0] in SAVES)
            saved = [next(copies) for _ in range(saves)]
            self._first = AREAS * number
            self._areas = [bytearray(area) for area in batch.areas[self._first : self._first + AREAS]]
            try:
                self._sequence(sequence, records[at : at + len(sequence)], iter(saved))
                self._final_areas()
            except _DifferenceError as difference:
                self.differences.append(f"batch {batch.number}, sequence {number}: {difference}")
            at += len(sequence)
            self.sequences += 1

    def _sequence(
        self, sequence: list[Operation], records: list[tuple[int, int, int]], saved: Iterator[bytes]
    ) -> None:
        self.processor.file = self._fresh.copy()
        counts = self.counts
        for step, (operation, (value, vector, pkru)) in enumerate(zip(sequence, records, strict=True)):
            kind = operation[0]
            counts[Kind(kind).name] += 1
            try:
                try:
                    if kind in SAVES:
                        self._save(operation, vector, next(saved))
                    else:
                        _PERFORM[kind](self, operation, value)
                    raised, rule = 0, ""
                except ProcessorFault as fault:
                    raised, rule = fault.vector, fault.rule
                if raised != vector:
                    raise _DifferenceError(f"vector {vector}, the model says {raised} {rule}")
                self._open_key_0(pkru)
            except _DifferenceError as difference:
                raise _DifferenceError(f"step {step}, {Kind(kind).name} {operation}: {difference}") from None
            if vector:
                counts[f"vector {vector} {rule}".rstrip()] += 1
                pass_through_a_frame(self.processor)

    def _final_areas(self) -> None:
        for number, area in enumerate(self._areas):
            if area != self.executor.area(self._first + number):
                found = _first_difference(area, self.executor.area(self._first + number))
                raise _DifferenceError(f"area {number} at the end: {found}")

    def _open_key_0(self, closed: int) -> None:
        """What the executor does after each operation, so that its memory stays open to it."""
        if not self._mask & _PKRU:
            return
        pkru = self.processor.rdpkru()
        if closed != (pkru if pkru & _KEY_0 else 0):
            raise _DifferenceError(f"PKRU {closed:#x}, the model says {pkru:#x}")
        if closed:
            self.counts["key 0 closed"] += 1
            self.processor.wrpkru(pkru & ~_KEY_0)

    # Saves

    def _save(self, operation: Operation, vector: int, saved: bytes) -> None:
        kind, _, _, skew, _, mask, number = operation
        area = self._areas[number - self._first]
        address = self.executor.areas + number * self.executor.area_size + skew
        before = bytes(area) if kind in _OPTIMISED else b""
        if not vector and kind not in _LEGACY:
            rfbm = mask & self.processor.xcr0
            self._follow_in_use(rfbm, saved, kind in _COMPACTED, kind in _SHORT)
        SAVES_BY_KIND[kind](self.processor, memoryview(area)[skew:], mask, address)
        if area == saved:
            if before and before != saved:
                self._count_left_out(operation, before, saved)
            return
        if before:
            self._follow_optimisation(operation, area, before, saved, address)
        if area != saved:
            self._follow_lost_selectors(area, saved, kind)
        if area != saved:
            self._follow_lost_pointers(area, saved)
        if area != saved:
            raise _DifferenceError(_first_difference(area, saved))

    def _follow_in_use(self, rfbm: int, saved: bytes, compacted: bool, short: bool) -> None:
        file = self.processor.file
        lower_alone = short and not self.processor.behaviour.upper_in_use
        observed = _HEADER.unpack_from(saved, 512)[0] & rfbm
        own = (file.lower if lower_alone else file.in_use) & rfbm
        if compacted and file.mxcsr != MXCSR_INIT:
            observed = observed & ~_SSE | own & _SSE
        self.counts["in-use bits"] += rfbm.bit_count()
        if observed != own:
            self._choose(own ^ observed, observed, lower_alone=lower_alone, short=short)

    def _choose(self, bits: int, observed: int, *, lower_alone: bool = False, short: bool = False) -> None:
        """Take these bits of XINUSE as observed, or of its lower half alone, which saves outside 64-bit mode show."""
        self.counts["in-use bits chosen otherwise"] += bits.bit_count()
        for bit in components_in(bits):
            self.counts[f"in-use bit {bit} chosen {observed >> bit & 1}"] += 1
        file = self.processor.file
        wrong = file.not_initial() & bits & ~observed & self._mask
        if wrong and short:
            wrong = mask_of(*(number for number in components_in(wrong) if _reached_differs(file, number)))
        if wrong:
            raise _DifferenceError(f"XINUSE {observed:#x} lacks {wrong:#x}, which is not initial")
        if lower_alone:
            file.lower = file.lower & ~bits | observed & bits
        else:
            file.in_use = file.in_use & ~bits | observed & bits

    def _follow_optimisation(
        self, operation: Operation, area: bytearray, before: bytes, saved: bytes, address: int
    ) -> None:
        """Where the model left a component out that the processor wrote, write it too."""
        file = self.processor.file
        left_out = unmodified(self.processor, address, 0) & operation[5] & file.in_use & self._mask
        if not left_out:
            return
        whole = bytearray(before)
        info, file.info = file.info, None
        SAVES_BY_KIND[operation[0]](self.processor, whole, operation[5], address)
        file.info = info
        for _, spans in self._spans(left_out):
            if any(area[span] != saved[span] for span in spans):
                self.counts["optimisation not taken"] += 1
                for span in spans:
                    area[span] = whole[span]

    def _count_left_out(self, operation: Operation, before: bytes, saved: bytes) -> None:
        file = self.processor.file
        address = self.executor.areas + operation[6] * self.executor.area_size
        left_out = unmodified(self.processor, address, 0) & operation[5] & file.in_use & self._mask
        for component, spans in self._spans(left_out & ~1):
            if any(saved[span] != file.values[component][: span.stop - span.start] for span in spans):
                self.counts["optimisation seen"] += 1

    def _spans(self, mask: int) -> Iterator[tuple[int, tuple[slice, ...]]]:
        layout = self.generator.standard
        for place in layout.places:
            if not mask >> place.component & 1:
                continue
            if place.component == Component.PKRU:
                yield int(place.component), (slice(place.offset, place.offset + 4),)
            elif place.component == Component.X87:
                yield 0, (slice(0, 24), slice(32, 160))
            else:
                yield int(place.component), (slice(place.offset, place.end),)

    def _follow_lost_selectors(self, area: bytearray, saved: bytes, kind: int) -> None:
        file = self.processor.file
        if kind in _NARROW and any(file.selectors) and not any(saved[at] for at in _SELECTORS):
            self.counts["selectors lost"] += 1
            file.selectors = (0, 0)
            for at in _SELECTORS:
                area[at] = 0

    def _follow_lost_pointers(self, area: bytearray, saved: bytes) -> None:
        file, behaviour = self.processor.file, self.processor.behaviour
        lost = behaviour.pointers is Pointers.ZEROED and pending(file.values[0])
        if lost and saved[_POINTERS] == _NO_POINTERS and area[_POINTERS] == file.values[0][_POINTERS]:
            self.counts["pointers lost"] += 1
            file.values[0] = without_pointers(file.values[0])
            area[_POINTERS] = _NO_POINTERS

    # Everything else

    def _start(self, operation: Operation, value: int) -> None:
        pass

    def _restore(self, operation: Operation, value: int) -> None:
        kind, _, _, skew, _, mask, number = operation
        area = self._areas[number - self._first]
        address = self.executor.areas + number * self.executor.area_size + skew
        RESTORES[kind](self.processor, area if not skew else memoryview(area)[skew:], mask, address)

    def _xgetbv(self, operation: Operation, value: int) -> None:
        expected = self.processor.xgetbv(operation[5])
        if operation[5] == 0:
            if value != expected:
                raise _DifferenceError(f"{value:#x}, the model says {expected:#x}")
            return
        file = self.processor.file
        mxcsr = file.mxcsr != MXCSR_INIT
        if mxcsr and not value & _SSE:
            raise _DifferenceError(f"{value:#x} lacks bit 1, MXCSR is {file.mxcsr:#x}")
        observed = value & self._mask
        own = file.in_use & self._mask
        if mxcsr:
            observed = observed & ~_SSE | own & _SSE
        self.counts["in-use bits"] += self._mask.bit_count()
        if observed != own:
            self._choose(observed ^ own, observed)

    def _move(self, operation: Operation, value: int) -> None:
        kind, index, _, _, where, _, _ = operation
        method, size = MOVES[kind]
        method(self.processor, index, self._data[where : where + size])

    def _zero(self, operation: Operation, value: int) -> None:
        self.processor.zero_vector(operation[1])

    def _plain(self, operation: Operation, value: int) -> None:
        PLAIN[operation[0]](self.processor)

    def _fldcw(self, operation: Operation, value: int) -> None:
        self.processor.fldcw(operation[5])

    def _ldmxcsr(self, operation: Operation, value: int) -> None:
        self.processor.ldmxcsr(operation[5])

    def _wrpkru(self, operation: Operation, value: int) -> None:
        self.processor.wrpkru(operation[5])

    def _ldtilecfg(self, operation: Operation, value: int) -> None:
        self.processor.ldtilecfg(self._data[operation[4] : operation[4] + 64])

    def _tile(self, operation: Operation, value: int) -> None:
        kind, tile, _, _, where, _, number = operation
        if kind == Kind.TILEZERO:
            self.processor.tilezero(tile)
        elif kind == Kind.TILELOADD:
            self.processor.tileloadd(tile, self._data[where : where + 1024])
        else:
            area = memoryview(self._areas[number - self._first])[where:]
            perform = (
                self.processor.sttilecfg
                if kind == Kind.STTILECFG
                else partial(self.processor.tilestored, tile)
            )
            perform(area)

    def _read(self, operation: Operation, value: int) -> None:
        file = self.processor.file
        x87 = file.values[0]
        expected = {
            Kind.STMXCSR: file.mxcsr,
            Kind.FNSTCW: int.from_bytes(x87[0:2], "little"),
            Kind.FNSTSW: int.from_bytes(x87[2:4], "little"),
            Kind.RDPKRU: int.from_bytes(file.values.get(Component.PKRU, b"")[:4], "little"),
        }[Kind(operation[0])]
        if value != expected:
            raise _DifferenceError(f"{value:#x}, the model says {expected:#x}")

    def _edit(self, operation: Operation, value: int) -> None:
        _, _, length, _, where, data, number = operation
        self._areas[number - self._first][where : where + length] = data.to_bytes(8, "little")[:length]

    def _copy(self, operation: Operation, value: int) -> None:
        _, _, length, _, where, data, number = operation
        area = self._areas[number - self._first]
        area[where : where + 8 * length] = self._data[data : data + 8 * length]


def _first_difference(model: bytes | bytearray, processor: bytes) -> str:
    at = next(
        index for index, (mine, other) in enumerate(zip(model, processor, strict=True)) if mine != other
    )
    start = at & ~7
    return f"byte {at}: {processor[start : start + 8].hex()}, the model has {bytes(model[start : start + 8]).hex()}"


def _reached_differs(file: RegisterFile, component: int) -> bool:
    """Whether a component is not initial in what of it exists outside 64-bit mode."""
    size = REACHED.get(component, len(file.initial[component]))
    return file.values[component][:size] != file.initial[component][:size]


_SHORT = frozenset(range(Kind.FXSAVE32, Kind.XRSTOR32 + 1))
_LEGACY = frozenset({Kind.FXSAVE, Kind.FXSAVE64, Kind.FXSAVE32})
_NARROW = SAVES - {Kind.FXSAVE64, Kind.XSAVE64, Kind.XSAVEC64, Kind.XSAVEOPT64, Kind.XSAVES64}
_COMPACTED = frozenset({Kind.XSAVEC, Kind.XSAVEC64, Kind.XSAVES64, Kind.XSAVEC32})
_OPTIMISED = frozenset({Kind.XSAVEOPT, Kind.XSAVEOPT64, Kind.XSAVEOPT32})
_C = Comparison
_PERFORM = {
    Kind.START: _C._start,
    **dict.fromkeys(RESTORES, _C._restore),
    Kind.XGETBV: _C._xgetbv,
    **dict.fromkeys(MOVES, _C._move),
    **dict.fromkeys(PLAIN, _C._plain),
    Kind.ZERO: _C._zero,
    Kind.FLDCW: _C._fldcw,
    Kind.LDMXCSR: _C._ldmxcsr,
    **dict.fromkeys((Kind.STMXCSR, Kind.FNSTCW, Kind.FNSTSW, Kind.RDPKRU), _C._read),
    Kind.WRPKRU: _C._wrpkru,
    Kind.LDTILECFG: _C._ldtilecfg,
    **dict.fromkeys((Kind.STTILECFG, Kind.TILEZERO, Kind.TILELOADD, Kind.TILESTORED), _C._tile),
    Kind.EDIT: _C._edit,
    Kind.COPY: _C._copy,
}
