"""The processor's side of the comparison: the child of executor.c, and what it is asked first."""

from __future__ import annotations

import dataclasses
import mmap
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from model_sequences import AREAS, OPERATION, SAVES, SEQUENCES, Batch, Generator, Kind, Operation
from oracle import ENVIRONMENT

from fpstate.arch import Cpu
from fpstate.engine.model import Behaviour, Processor
from fpstate.image.control import MXCSR_INIT

_BATCH = struct.Struct("<QQQQQQQQ")
_RECORD = struct.Struct("<QII")
_PAGE = 4096
_MOST_OPERATIONS = 64 * SEQUENCES
_MOST_COPIES = 12 * SEQUENCES
_TELLING_POINTER = 0x0100_8000_0000_0001
_CHILD_ENVIRONMENT = {**ENVIRONMENT, "GLIBC_TUNABLES": "glibc.pthread.rseq=0"}
"""Without rseq: the kernel writes to it at each task switch, with whatever PKRU is loaded, and raises SIGSEGV where a
sequence has just closed key 0."""
_FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror", "-mgeneral-regs-only", "-fno-pie", "-no-pie")


def compile_executor(gcc: str, folder: Path) -> Path:
    """Compile executor.c and return the program."""
    program, source = folder / "executor", Path(__file__).with_name("executor.c")
    subprocess.run([gcc, *_FLAGS, "-o", program, source], check=True, env=ENVIRONMENT)
    return program


class Executor:
    """The child of executor.c, and the memory that it shares; ``components`` is what the sequences use."""

    def __init__(self, program: Path, area_size: int, data_size: int, components: int) -> None:
        self.area_size = area_size
        sizes = (
            *(
                OPERATION.size * _MOST_OPERATIONS,
                area_size * AREAS * SEQUENCES,
                _RECORD.size * _MOST_OPERATIONS,
            ),
            *(area_size * _MOST_COPIES, data_size),
        )
        starts = [_PAGE]
        for size in sizes:
            starts.append(starts[-1] + -(-size // _PAGE) * _PAGE)
        self._operations, self.areas, self._records, self._copies, self._data, end = starts
        self._file = os.memfd_create("batch")
        os.ftruncate(self._file, end)
        self.memory = mmap.mmap(self._file, end)
        command = [program, str(self._file), str(end), str(area_size), str(components)]
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=_CHILD_ENVIRONMENT,
            pass_fds=[self._file],
        )

    def run(self, batch: Batch) -> tuple[list[tuple[int, int, int]], Iterator[bytes]]:
        """Return each operation's result, vector and PKRU where it closed key 0, and the area after each save."""
        memory = self.memory
        operations = [operation for sequence in batch.sequences for operation in sequence]
        saves = sum(1 for operation in operations if operation[0] in SAVES)
        assert len(operations) <= _MOST_OPERATIONS
        assert saves <= _MOST_COPIES
        packed = b"".join([OPERATION.pack(*operation) for operation in operations])
        for start, data in (
            (self._operations, packed),
            (self.areas, b"".join(batch.areas)),
            (self._data, batch.data),
        ):
            memory[start : start + len(data)] = data
        places = self._operations, self.areas, self._records, self._copies, self._data
        memory[: _BATCH.size] = _BATCH.pack(*places, len(operations), 0, 0)
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(b".")
        assert self._child.stdout.read(1), f"the executor ended: {self._child.wait(timeout=10)}"
        records = memory[self._records : self._records + _RECORD.size * len(operations)]
        size = self.area_size
        copies = (
            memory[start : start + size] for start in range(self._copies, self._copies + saves * size, size)
        )
        return list(_RECORD.iter_unpack(records)), copies

    def area(self, number: int) -> bytes:
        """Return an area as the last batch left it."""
        start = self.areas + number * self.area_size
        return self.memory[start : start + self.area_size]

    def close(self) -> None:
        """End the child."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        self._child.stdout.close()
        self._child.wait(timeout=10)
        self.memory.close()
        os.close(self._file)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What CPUID does not tell: the widths of x87 pointers, and whether programs can leave 64-bit mode here."""

    behaviour: Behaviour
    short: bool


def measured(cpu: Cpu, program: Path) -> Measured:
    """Ask the processor itself."""
    processor = Processor.under_linux(cpu)
    generator = Generator(cpu, processor.xcr0, 0)
    image = bytearray(generator.area_size)
    image[0:4] = bytes.fromhex("7e030100")  # an invalid operation is flagged, and not masked
    image[8:24] = _TELLING_POINTER.to_bytes(8, "little") * 2
    image[24:28] = MXCSR_INIT.to_bytes(4, "little")
    steps: list[Operation] = [
        (Kind.START, 0, 0, 0, 0, 3, 0),
        (Kind.FXRSTOR64, 0, 0, 0, 0, 0, 0),
        (Kind.FXSAVE64, 0, 0, 0, 0, 0, 1),
        (Kind.FXSAVE32, 0, 0, 0, 0, 0, 2),
    ]
    executor = Executor(program, generator.area_size, 0, 0)
    records, copies = executor.run(Batch(0, [steps], [bytes(image), bytes(image), bytes(image)], b""))
    saved = next(copies)
    executor.close()
    widths = {_TELLING_POINTER: 64, _TELLING_POINTER | 0xFF << 56: 57, _TELLING_POINTER | 0xFFFF << 48: 48}
    fip, fdp = (widths[int.from_bytes(saved[start : start + 8], "little")] for start in (8, 16))
    behaviour = dataclasses.replace(processor.behaviour, fip_bits=fip, fdp_bits=fdp)
    return Measured(behaviour, short=not records[-1][1])
