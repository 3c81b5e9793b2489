"""The child of child.c: it performs single instructions on its registers and tells what each of them did."""

from __future__ import annotations

import mmap
import os
import select
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fpstate.arch import Cpu

from .host import NONE, USED
from .memory import Memory

SELECTORS = (0x33, 0x2B)
"""Of code and data while x87 instructions are executed, in child.h too; some processors save them."""
HAS_XGETBV1, HAS_PKRU = 1, 2
ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, TILEDATA = 158, 0x1023, 18
SIGILL, SIGSEGV = 4, 11
ILL_ILLOPC = 1
"""#NM of tiles without permission: Linux raises SIGILL with this code, all else with ILL_ILLOPN."""
PAGE_FAULT = 14

_ORDER = struct.Struct("<QQQQ")
_STEP = struct.Struct("<QQQQ")
_RECORD = struct.Struct("<QQQQQIiI4x")
_STUB = struct.Struct("<24sQ")
_PAGE = 4096
_TABLE_SIZE = 3 * _PAGE
_SIZE = 64 << 20
_SECONDS = 60
# fmt: off
_FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-stack-protector", "-fcf-protection=none",
          "-mgeneral-regs-only", "-fno-pie", "-no-pie", "-nostdlib", "-static", "-Wl,--build-id=none")
# fmt: on
_TILES = bytes.fromhex("01" + 15 * "00" + "4000" + 30 * "00" + "10" + 15 * "00")
"""A configuration of one tile."""

Step = tuple[int, int, int, int]
"""A stub's address and its three operands."""


class Record(NamedTuple):
    """What a step did. ``in_use`` is XGETBV(1), ``pkru`` PKRU right afterwards; ``signal`` 0: no exception."""

    value: int
    in_use: int
    pkru: int
    address: int
    error: int
    signal: int
    code: int
    vector: int

    @property
    def fault(self) -> tuple[int, int, int | None] | None:
        """Signal, si_code and vector; no vector where the kernel states none."""
        if not self.signal:
            return None
        return self.signal, self.code, self.vector or None

    def without_vector(self) -> Record:
        """The same where the kernel raised the signal itself: vector and error are those of an earlier exception."""
        return self._replace(vector=0, error=0)


def compile_freestanding(gcc: str, folder: Path, name: str, sources: Sequence[str], *flags: str) -> Path:
    """Compile sources that lie beside this file, without a C library, and return the program."""
    program = folder / name
    paths = [Path(__file__).with_name(source) for source in sources]
    subprocess.run([gcc, *_FLAGS, *flags, "-o", program, *paths], check=True, env=clean_environment())
    return program


def compile_child(gcc: str, folder: Path) -> Path:
    """Compile child.c and operations.S and return the program."""
    return compile_freestanding(gcc, folder, "recording-child", ["child.c", "operations.S"])


def clean_environment() -> dict[str, str]:
    """The environment without what a sanitizer preloads: it must not get into compilers and children."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


class ChildEndedError(Exception):
    """The child ended, or took longer than a minute."""


class Child(Memory):
    """A running child. Its memory is shared with it; behind the last byte inaccessible memory begins.

    ``stubs`` are the addresses of the instructions that it can perform, by name.
    """

    def __init__(self, program: Path, cpu: Cpu, *, permission: int = NONE) -> None:
        file = os.memfd_create("recording")
        try:
            os.ftruncate(file, _SIZE)
            super().__init__(mmap.mmap(file, _SIZE), _PAGE + _TABLE_SIZE)
            self._process = subprocess.Popen(
                [program, str(file), str(_SIZE)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env=clean_environment(),
                pass_fds=[file],
            )
        finally:
            os.close(file)
        self.has = HAS_XGETBV1 * cpu.has("XGETBV1") | HAS_PKRU * cpu.has("OSPKE")
        try:
            self._answer()
            self.stubs = {name.rstrip(b"\0").decode(): address for name, address in self._table()}
            if permission != NONE:
                self._ask_for_tiles(use=permission == USED)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def step(self, stub: str, first: int = 0, second: int = 0, third: int = 0) -> Step:
        """Return a step of ``run``."""
        return self.stubs[stub], first, second, third

    def run(self, steps: Sequence[Step]) -> list[Record]:
        """Perform steps in order; raises ChildEndedError."""
        at = self.place(b"".join([_STEP.pack(*step) for step in steps]))
        size = _RECORD.size * len(steps)
        records = self.reserve(size)
        self.memory[: _ORDER.size] = _ORDER.pack(at, len(steps), records, self.has)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"!")
        except BrokenPipeError as error:
            raise ChildEndedError(self._ended()) from error
        self._answer()
        told = [Record(*each) for each in _RECORD.iter_unpack(self.read(records, size))]
        return [
            record.without_vector() if (record.signal, record.code) == (SIGILL, ILL_ILLOPC) else record
            for record in told
        ]

    def close(self) -> None:
        """End the child."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self.memory.close()

    def _table(self) -> Iterator[tuple[bytes, int]]:
        for name, address in _STUB.iter_unpack(
            self.memory[_PAGE : _PAGE + _TABLE_SIZE // _STUB.size * _STUB.size]
        ):
            if address:
                yield name, address

    def _answer(self) -> None:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], _SECONDS)
        if not ready or not self._process.stdout.read(1):
            raise ChildEndedError(self._ended())

    def _ended(self) -> str:
        self._process.kill()
        return f"the recording child ended with {self._process.wait()}"

    def _ask_for_tiles(self, *, use: bool) -> None:
        asked = [self.step("syscall", ARCH_REQ_XCOMP_PERM, TILEDATA, ARCH_PRCTL)]
        if use:
            asked.append(self.step("ldtilecfg", self.place(_TILES)))
            asked += [self.step("tilezero.0"), self.step("tilerelease")]
        for record in self.run(asked):
            if record.value and not record.signal:
                raise ChildEndedError(
                    f"permission for TILEDATA was refused: errno {(1 << 64) - record.value}"
                )
            if record.signal:
                raise ChildEndedError(f"tiles cannot be used: {record.fault}")
        self.release()
