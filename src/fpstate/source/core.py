"""ELF cores of Linux, FreeBSD and NetBSD: the state of each thread that the core has notes about.

Where from: Linux ``fs/binfmt_elf.c`` and ``arch/x86/kernel/fpu/regset.c``; FreeBSD ``sys/kern/imgact_elf.c`` and
``sys/sys/procfs.h``; NetBSD ``sys/kern/core_elf32.c`` and ``sys/arch/{amd64,i386}/include/ptrace.h``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from fpstate.arch.component import AVX512, HEADER_SIZE, LEGACY, LEGACY_SIZE, MIN_SIZE, Component, mask_of
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Format, Layout
from fpstate.errors import LayoutError, SourceError
from fpstate.image import Image
from fpstate.source import writer
from fpstate.source.budget import THREADS
from fpstate.source.inference import AMD, layout_of
from fpstate.source.note import ElfCore, Note, read_core
from fpstate.source.reader import listed
from fpstate.source.register_set import Producer, read_register_set, stated_layout
from fpstate.source.stream import Stream
from fpstate.source.thread import Machine, ThreadState

_THREAD, _XSTATE, _LAYOUT, _AUXV = "thread", "NT_X86_XSTATE", "NT_X86_XSAVE_LAYOUT", "NT_AUXV"
_FXREGS, _FPREGS, _NETBSD_XSTATE = "NT_PRXFPREG", "NT_PRFPREG", "PT_GETXSTATE"
_NETBSD: Final = "NetBSD-CORE@"
_KINDS: Final = {
    ("CORE", 1): _THREAD,
    ("CORE", 2): _FPREGS,
    ("CORE", 6): _AUXV,
    ("LINUX", 0x202): _XSTATE,
    ("LINUX", 0x205): _LAYOUT,
    ("LINUX", 0x46E62B7F): _FXREGS,
    ("FreeBSD", 1): _THREAD,
    ("FreeBSD", 2): _FPREGS,
    ("FreeBSD", 0x202): _XSTATE,
    (_NETBSD, 35): _FPREGS,
    (_NETBSD, 41): _NETBSD_XSTATE,
    (_NETBSD, 43): _NETBSD_XSTATE,
}
"""What the notes that matter are, by owner and type. NetBSD's owner ends in the thread's number; its types are
ptrace requests, 41 on amd64 and 43 on i386."""
_BY_TRUST: Final = (_XSTATE, _NETBSD_XSTATE, _FXREGS, _FPREGS)
_TID_OFFSETS: Final[dict[tuple[str, Machine], int]] = {
    ("CORE", "x86-64"): 32,
    ("CORE", "x32"): 24,
    ("CORE", "i386"): 24,
    ("FreeBSD", "x86-64"): 40,
    ("FreeBSD", "i386"): 24,
}
"""Where NT_PRSTATUS has the thread's number: ``pr_pid`` of ``elf_prstatus`` and of FreeBSD's ``prstatus_t``."""
_FXSAVE_SIZE, _FSAVE_SIZE = 512, 108
_FPREG_SIZES: Final = {_FXSAVE_SIZE: _FXSAVE_SIZE, _FSAVE_SIZE: _FSAVE_SIZE, 176: _FSAVE_SIZE}
"""Sizes of NT_PRFPREG, and how much of it counts: FreeBSD's 32-bit ``struct fpreg`` is FSAVE, padded."""
_NETBSD_XSTATE_SIZE: Final = 2384
_NETBSD_COMPONENTS: Final = AVX512 | mask_of(Component.AVX)
_AT_NULL, _AT_HWCAP, _AT_MINSIGSTKSZ = 0, 16, 51
_PLACE: Final = struct.Struct("<qQII")
_NOTHING: Final = Note("", 0, 0, 0)
_WITHOUT: Final = Image(bytes(MIN_SIZE), Layout.from_places(Format.STANDARD, ()), "format")
"""The image of every thread without a state: read-only, and so shared."""


class _Place(NamedTuple):
    """A thread of a core: its number, -1 where there is none, and the best note about its state."""

    tid: int
    offset: int
    size: int
    rank: int


class _Threads:
    """The threads of a core in its order, 24 bytes each: that many of them take little memory."""

    def __init__(self, core: ElfCore) -> None:
        self.with_state = 0
        self._core = core
        self._packed = bytearray()
        self._last: tuple[int | None, dict[str, Note]] | None = None

    def __len__(self) -> int:
        return len(self._packed) // _PLACE.size

    def __iter__(self) -> Iterator[_Place]:
        """Yield each thread that was closed."""
        return map(_Place._make, _PLACE.iter_unpack(bytes(self._packed)))

    def begin(self, tid: int | None, offset: int) -> None:
        """Close the thread before, and begin one; ``offset`` is where the core names it."""
        self.close()
        self._core.budget.charge(THREADS, offset=offset)
        self._last = (tid, {})

    def add(self, tid: int | None, kind: str, note: Note) -> None:
        """Add a note about the state of the last thread, or of another one where it names that."""
        self._core.check_size(note)
        if self._last is None or (tid is not None and self._last[0] != tid):
            self.begin(tid, note.offset)
        last, notes = self._last or (None, {})
        if kind in notes:
            raise SourceError(self._core.stream.name, f"a second {kind} of thread {last}", offset=note.offset)
        notes[kind] = note

    def close(self) -> None:
        """Keep the best note of the last thread."""
        if self._last is None:
            return
        tid, notes = self._last
        kind = next((kind for kind in _BY_TRUST if kind in notes), None)
        note = _NOTHING if kind is None else notes[kind]
        rank = len(_BY_TRUST) if kind is None else _BY_TRUST.index(kind)
        self._packed += _PLACE.pack(-1 if tid is None else tid, note.offset, note.size, rank)
        self.with_state += kind is not None
        self._last = None


class _Contents:
    def __init__(self, core: ElfCore) -> None:
        self.threads = _Threads(core)
        self.layout: Layout | None = None
        self.hwcap: int | None = None
        self.frame: int | None = None


def core_threads(stream: Stream, *, cpu: Cpu | None = None) -> list[ThreadState]:
    """Return what ``core_states`` yields, all at once; raises BudgetExceeded where that takes too much memory."""
    return listed(stream, core_states(stream, cpu=cpu))


def core_states(stream: Stream, *, cpu: Cpu | None = None) -> Iterator[ThreadState]:
    """Yield the state of every thread in a core, in the order of its notes.

    The layout is the one that the core states (``"note"``), else that of ``cpu`` (``"given"``), else the one known
    layout that XCR0 and the size leave (``"inferred"``). A thread about which the core says nothing has an image
    without components, and a finding. The notes are gone through twice: to find the threads and the layout, which
    may stand last, and to read each state. Raises SourceError, with the byte, for what is damaged or holds
    no state at all, BudgetExceeded, and AmbiguousLayout where several layouts fit.
    """
    core = read_core(stream)
    contents = _contents(core)
    if not contents.threads.with_state:
        raise SourceError(
            stream.name,
            f"no floating-point state; threads: {len(contents.threads)}",
            help="its writer left NT_PRFPREG and NT_X86_XSTATE out, or no thread had used the FPU",
        )
    producer = Producer(contents.layout, cpu, contents.hwcap, contents.frame)
    for place in contents.threads:
        yield _state(core, place, producer)


def _contents(core: ElfCore) -> _Contents:
    contents = _Contents(core)
    for note in core.notes():
        named, tid = _owner(note.name)
        kind = _KINDS.get((named, note.type))
        if kind == _THREAD:
            contents.threads.begin(_tid(core, note), note.offset)
        elif kind == _LAYOUT:
            if contents.layout is not None:
                raise SourceError(
                    core.stream.name,
                    "a second layout: every state would be read otherwise than by the first",
                    offset=note.offset,
                    help="NT_X86_XSAVE_LAYOUT stands once in a core; it was damaged, or something was put behind it",
                )
            contents.layout = _layout(core, note)
        elif kind == _AUXV and contents.hwcap is None:
            values = _auxiliary(core, note)
            contents.hwcap, contents.frame = values.get(_AT_HWCAP), values.get(_AT_MINSIGSTKSZ)
        elif kind is not None:
            contents.threads.add(tid, kind, note)
    contents.threads.close()
    return contents


def _owner(name: str) -> tuple[str, int | None]:
    """Split the thread's number off NetBSD's name of a note."""
    if name.startswith(_NETBSD):
        digits = name.removeprefix(_NETBSD)
        if digits.isascii() and digits.isdigit() and len(digits) < 10:
            return _NETBSD, int(digits)
    return name, None


def _tid(core: ElfCore, note: Note) -> int:
    offset = _TID_OFFSETS.get((note.name, core.machine))
    if offset is None or note.size < offset + 4:
        raise SourceError(
            core.stream.name,
            f"NT_PRSTATUS of {note.name}, {note.size} bytes, names no thread",
            offset=note.offset,
        )
    return int.from_bytes(core.description(note)[offset : offset + 4], "little")


def _auxiliary(core: ElfCore, note: Note) -> dict[int, int]:
    """Return the auxiliary vector by key, as far as AT_NULL (Linux ``arch/x86/include/asm/elf.h``)."""
    entry = struct.Struct("<QQ" if core.bits == 64 else "<II")
    data = core.description(note)
    values: dict[int, int] = {}
    for key, value in entry.iter_unpack(data[: len(data) // entry.size * entry.size]):
        if key == _AT_NULL:
            break
        values.setdefault(key, value)
    return values


def _layout(core: ElfCore, note: Note) -> Layout:
    try:
        return stated_layout(core.description(note))
    except LayoutError as error:
        raise SourceError(core.stream.name, f"{_LAYOUT}: {error}", offset=note.offset) from error


def _state(core: ElfCore, place: _Place, producer: Producer) -> ThreadState:
    tid = None if place.tid < 0 else place.tid
    if place.rank == len(_BY_TRUST):
        return ThreadState(tid, _WITHOUT, core.machine, findings=(writer.no_state(),))
    kind = _BY_TRUST[place.rank]
    note = Note("", 0, place.offset, place.size)
    data = core.description(note)
    if kind == _XSTATE:
        found = read_register_set(data, producer, name=core.stream.name, offset=note.offset)
        return ThreadState(tid, found.image, core.machine, found.xcr0, findings=found.findings)
    if kind == _NETBSD_XSTATE:
        return _netbsd_state(core, tid, note, data)
    return _legacy_state(core, tid, kind, note, data)


def _legacy_state(core: ElfCore, tid: int | None, kind: str, note: Note, data: bytes) -> ThreadState:
    from fpstate.image.legacy import from_fsave, from_fxsave

    size = _FPREG_SIZES.get(len(data))
    if size is None:
        raise SourceError(
            core.stream.name,
            f"{kind} has {len(data)} bytes, neither those of FXSAVE (512) nor of FSAVE (108)",
            offset=note.offset,
        )
    image = from_fxsave(data) if size == _FXSAVE_SIZE else from_fsave(data[:size])
    return ThreadState(tid, image, core.machine, findings=(writer.legacy_only(size),))


def _netbsd_state(core: ElfCore, tid: int | None, note: Note, data: bytes) -> ThreadState:
    """Read NetBSD's ``struct xstate``: two bitmaps, FXSAVE, then components without gaps, always at these places."""
    if len(data) != _NETBSD_XSTATE_SIZE:
        raise SourceError(
            core.stream.name,
            f"{_NETBSD_XSTATE} has {len(data)} bytes, not {_NETBSD_XSTATE_SIZE}",
            offset=note.offset,
        )
    rfbm, xstate_bv = struct.unpack_from("<QQ", data)
    held = LEGACY | rfbm & _NETBSD_COMPONENTS
    header = (xstate_bv & held).to_bytes(8, "little").ljust(HEADER_SIZE, b"\0")
    image = data[16 : 16 + LEGACY_SIZE] + header + data[16 + LEGACY_SIZE :]
    layout = Layout.from_places(Format.STANDARD, layout_of(AMD, held).places, size=len(image))
    return ThreadState(tid, Image(image, layout, "format"), core.machine, rfbm or None)
