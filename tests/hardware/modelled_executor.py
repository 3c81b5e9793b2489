"""The executor's place taken by a model, so that sequences for processors that are not here are compared too.

It shows that the comparison works for them: what they contain, and that wrong models are caught.
"""

from __future__ import annotations

from collections.abc import Iterator

from model_instructions import MOVES, PLAIN, RESTORES, SAVES_BY_KIND
from model_sequences import AREAS, SAVES, Batch, Kind, Operation

from fpstate.arch import Component, mask_of
from fpstate.engine.model import Processor
from fpstate.errors import ProcessorFault
from linux_signal import pass_through_a_frame

_KEY_0 = 3


class ModelledExecutor:
    """What ``model_executor.Executor`` is, without a processor: ``processor`` executes what it is given."""

    def __init__(self, processor: Processor, area_size: int) -> None:
        self.processor = processor
        self.area_size = area_size
        self.areas = 1 << 20
        self._fresh = processor.snapshot()
        self._memory: list[bytearray] = []
        self._data = b""

    def run(self, batch: Batch) -> tuple[list[tuple[int, int, int]], Iterator[bytes]]:
        """Return each operation's result, vector and PKRU where it closed key 0, and the area after each save."""
        self._memory, self._data = [bytearray(area) for area in batch.areas], batch.data
        records, copies = [], []
        for sequence in batch.sequences:
            self.processor.file = self._fresh.copy()
            for operation in sequence:
                records.append(self._execute(operation))
                if operation[0] in SAVES:
                    copies.append(bytes(self._memory[operation[6]]))
        assert len(self._memory) == AREAS * len(batch.sequences)
        return records, iter(copies)

    def area(self, number: int) -> bytes:
        """Return an area as the last batch left it."""
        return bytes(self._memory[number])

    def _execute(self, operation: Operation) -> tuple[int, int, int]:
        value = vector = 0
        try:
            value = self._perform(operation) or 0
        except ProcessorFault as fault:
            vector = fault.vector
            pass_through_a_frame(self.processor)
        pkru = self.processor.rdpkru() if self.processor.xcr0 & mask_of(Component.PKRU) else 0
        if not pkru & _KEY_0:
            return value, vector, 0
        self.processor.wrpkru(pkru & ~_KEY_0)
        return value, vector, pkru

    def _perform(self, operation: Operation) -> int | None:
        kind, index, length, skew, where, value, number = operation
        processor, area = self.processor, self._memory[number]
        address = self.areas + number * self.area_size + skew
        x87 = processor.file.values[0]
        result: int | None = None
        if kind in SAVES_BY_KIND or kind in RESTORES:
            (SAVES_BY_KIND | RESTORES)[kind](processor, memoryview(area)[skew:], value, address)
        elif kind in MOVES:
            method, size = MOVES[kind]
            method(processor, index, self._data[where : where + size])
        elif kind in PLAIN:
            PLAIN[kind](processor)
        elif kind == Kind.EDIT:
            area[where : where + length] = value.to_bytes(8, "little")[:length]
        elif kind == Kind.COPY:
            area[where : where + 8 * length] = self._data[value : value + 8 * length]
        elif kind == Kind.STTILECFG:
            processor.sttilecfg(memoryview(area)[where:])
        elif kind == Kind.TILESTORED:
            processor.tilestored(index, memoryview(area)[where:])
        elif kind == Kind.TILELOADD:
            processor.tileloadd(index, self._data[where : where + 1024])
        elif kind == Kind.LDTILECFG:
            processor.ldtilecfg(self._data[where : where + 64])
        elif kind != Kind.START:
            result = {
                Kind.XGETBV: lambda: processor.xgetbv(value),
                Kind.ZERO: lambda: processor.zero_vector(index),
                Kind.TILEZERO: lambda: processor.tilezero(index),
                Kind.FLDCW: lambda: processor.fldcw(value),
                Kind.LDMXCSR: lambda: processor.ldmxcsr(value),
                Kind.WRPKRU: lambda: processor.wrpkru(value),
                Kind.RDPKRU: processor.rdpkru,
                Kind.STMXCSR: lambda: processor.file.mxcsr,
                Kind.FNSTCW: lambda: int.from_bytes(x87[0:2], "little"),
                Kind.FNSTSW: lambda: int.from_bytes(x87[2:4], "little"),
            }[Kind(kind)]()
        return result
