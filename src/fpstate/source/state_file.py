"""Whole guest states in files: one format, versioned, with a checksum; docs/guest-state.md has it byte by byte.

Numbers are little-endian. A file that is cut short, damaged, foreign or of a later version yields nothing: the
reader looks at length and SHA-256 before it believes anything else, and refuses sections that it must know.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Final

from fpstate.arch.component import COMPACTED_BIT
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Format, Layout, Place
from fpstate.arch.record import leaves_of
from fpstate.errors import FpStateError, SourceError
from fpstate.image.image import Image
from fpstate.source.budget import SECTION, SECTIONS, Budget
from fpstate.source.checkpoint import GENERAL, Checkpoint, GeneralRegisters, Piece, SavedState
from fpstate.source.durable import replace_file
from fpstate.source.guest_state import GuestState, PkruPolicy
from fpstate.source.reader import STATE_LONGEST
from fpstate.source.stream import MemoryStream, Stream, open_stream

MAGIC: Final = b"\x93FPVSO\r\n"
"""First bytes: no text, and damaged by whoever changes line ends."""
VERSION: Final = 1
SUFFIX: Final = ".fpvso"
LONGEST: Final = STATE_LONGEST
"""Larger files are refused, and read no further than one byte beyond."""

_HEADER: Final = struct.Struct("<8sIIQQ")
_SECTION: Final = struct.Struct("<4sIQ")
_CPU: Final = struct.Struct("<IIQII")
_LEAF: Final = struct.Struct("<6I")
_CONTROL: Final = struct.Struct("<4QII")
_IMAGE: Final = struct.Struct("<IIQ")
_PLACE: Final = struct.Struct("<4I")
_REGISTERS: Final = struct.Struct(f"<{len(GENERAL) + 4}Q")
_PROGRAM: Final = struct.Struct("<7QII")
_ADDRESS: Final = struct.Struct("<Q")
_DIGEST: Final = hashlib.sha256().digest_size
_REQUIRED: Final = 1
_UNIT: Final = 8
_COMPONENTS: Final = COMPACTED_BIT.bit_length() - 1
_FORMATS: Final = (Format.STANDARD, Format.COMPACTED)
_POLICIES: Final = (PkruPolicy.INITIAL, PkruPolicy.KEEP, PkruPolicy.OS_DEFAULT)
_TAGS: Final = (b"CPU ", b"CTRL", b"IMAG", b"REGS", b"PROG", b"MEMR")
_MEMORY_TAG: Final = _TAGS[-1]
_COUNT_AT: Final = 12
_PIECE: Final = 256 << 10


def encode(saved: SavedState) -> bytes:
    """Return the bytes of a file. Nothing is checked: ``GuestState.check`` does that."""
    state, checkpoint = saved.state, saved.checkpoint
    sections = [(b"CPU ", _cpu(state.cpu)), (b"CTRL", _control(state)), (b"IMAG", _image(state.image))]
    if checkpoint is not None:
        sections += [(b"REGS", _registers(checkpoint.registers)), (b"PROG", _program(checkpoint))]
        sections += [(b"MEMR", _ADDRESS.pack(piece.address) + piece.data) for piece in checkpoint.memory]
    body = b"".join(
        _SECTION.pack(tag, _REQUIRED, len(payload)) + payload + bytes(-len(payload) % _UNIT)
        for tag, payload in sections
    )
    size = _HEADER.size + len(body) + _DIGEST
    content = _HEADER.pack(MAGIC, VERSION, len(sections), size, 0) + body
    return content + hashlib.sha256(content).digest()


def decode(data: bytes, source: str = "<bytes>") -> SavedState:
    """Return what a file holds; raises SourceError, with the byte and the reason, for everything but a whole one."""
    return _decode(MemoryStream(data, source), with_memory=True)


def decode_state(stream: Stream) -> SavedState:
    """Return what a stream holds without the guest's memory, of which no more than a piece is read at once.

    The pieces are checked all the same. Raises as ``decode`` does.
    """
    return _decode(stream, with_memory=False)


def _decode(stream: Stream, *, with_memory: bool) -> SavedState:
    source, budget = stream.name, Budget.of(stream)
    length = _check_whole(stream)
    found: dict[bytes, list[tuple[int, int]]] = {}
    for tag, start, size in _sections(stream, length, budget):
        found.setdefault(tag, []).append((start, size))
    wanted = _TAGS[:3] if not found.keys() & set(_TAGS[3:]) else _TAGS[:5]
    for tag in (*wanted, *(tag for tag in _TAGS[:5] if tag in found)):
        if len(found.get(tag, ())) != 1:
            raise SourceError(source, f"{len(found.get(tag, ()))} sections {_text(tag)}, there must be one")
    payloads = {tag: stream.read_at(*found[tag][0]) for tag in wanted}
    try:
        state = _read_state(*(payloads[tag] for tag in _TAGS[:3]))
        checkpoint = None
        if len(wanted) > 3:
            checkpoint = _read_checkpoint(payloads[b"REGS"], payloads[b"PROG"])
            places = [_memory_place(stream, *place, checkpoint) for place in found.get(b"MEMR", ())]
            if with_memory:
                memory = tuple(Piece(address, stream.read_at(at, size)) for address, at, size in places)
                checkpoint = replace(checkpoint, memory=memory)
    except (struct.error, ValueError, IndexError, KeyError, FpStateError) as error:
        raise SourceError(
            source, f"its sections contradict themselves: {error}", help="whoever wrote it has a fault"
        ) from error
    return SavedState(state, checkpoint)


def write_state(path: str | os.PathLike[str], saved: SavedState) -> None:
    """Write one file, whole or not at all, readable by its owner alone.

    Raises OSError, and SourceError for a guest with more memory than ``decode`` takes, or a file longer than that.
    """
    memory = saved.checkpoint.memory_size if saved.checkpoint else 0
    _check_fits(path, memory, "memory")
    data = encode(saved)
    _check_fits(path, len(data), "state")
    replace_file(path, data)


def read_state(path: str | os.PathLike[str]) -> SavedState:
    """Read one file, compressed or not, or standard input for ``-``.

    Raises OSError, and SourceError as ``decode`` does. Nothing is kept before header and checksum are right, for a
    source may have no end.
    """
    with closing(open_stream(os.fspath(path))) as stream:
        return _decode(stream, with_memory=True)


def state_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the states in a folder by name; hidden files are not among them."""
    return sorted(path for path in Path(folder).glob(f"*{SUFFIX}") if not path.name.startswith("."))


def _check_fits(path: str | os.PathLike[str], size: int, what: str) -> None:
    if size > LONGEST:
        raise SourceError(
            str(path),
            f"{size} bytes of {what}, and files have at most {LONGEST}",
            help="give the guest less memory",
        )


def _check_whole(stream: Stream) -> int:
    """Return the length; raises SourceError unless magic, version, length and checksum are right, in this order."""
    source, least = stream.name, _HEADER.size + _DIGEST
    head = stream.read_at(0, least)
    if head[: len(MAGIC)] != MAGIC[: len(head)] or not head:
        raise SourceError(
            source,
            f"no guest state: it begins with {head[: len(MAGIC)].hex() or 'nothing'}, not {MAGIC.hex()}",
            offset=0,
            help="fpstate show and fpstate check read cores and raw images",
        )
    if len(head) < least:
        raise SourceError(
            source,
            f"cut short: {len(head)} bytes, the header and the checksum alone have {least}",
            offset=len(head),
        )
    _, version, _, size, _ = _HEADER.unpack_from(head)
    if version != VERSION:
        raise SourceError(
            source,
            f"version {version}, and this fpstate reads version {VERSION}",
            offset=len(MAGIC),
            help="read it with the fpstate that wrote it, or a later one",
        )
    length, computed, stated = _digests(stream)
    if size != length:
        what = "cut short" if length < size else "longer than it says"
        raise SourceError(source, f"{what}: {length} bytes, the header says {size}", offset=16)
    if stated != computed:
        raise SourceError(
            source,
            f"damaged: the SHA-256 of its bytes is {computed.hex()[:16]}..., the file says {stated.hex()[:16]}...",
            offset=length - _DIGEST,
            help="copy it again; nothing of it can be trusted",
        )
    return length


def _digests(stream: Stream) -> tuple[int, bytes, bytes]:
    """Return how many bytes there are, no more than one beyond LONGEST; their SHA-256; and the one at the end."""
    digest, tail, length = hashlib.sha256(), b"", 0
    while length <= LONGEST and (piece := stream.read_at(length, min(_PIECE, LONGEST + 1 - length))):
        length += len(piece)
        tail += piece
        digest.update(tail[:-_DIGEST])
        tail = tail[-_DIGEST:]
    return length, digest.digest(), tail


def _sections(stream: Stream, length: int, budget: Budget) -> Iterator[tuple[bytes, int, int]]:
    """Yield tag, offset and size of each known section's payload; raises SourceError for others that are required."""
    source = stream.name
    count, end = _HEADER.unpack(stream.read_at(0, _HEADER.size))[2], length - _DIGEST
    budget.hold(SECTIONS, count, offset=_COUNT_AT)
    at = _HEADER.size
    for _ in range(count):
        if at + _SECTION.size > end:
            raise SourceError(source, "a section begins behind the last byte", offset=at)
        tag, flags, size = _SECTION.unpack(stream.read_at(at, _SECTION.size))
        start = at + _SECTION.size
        if size > end - start:
            raise SourceError(
                source, f"section {_text(tag)} has {size} bytes, {end - start} are left", offset=at
            )
        if tag in _TAGS:
            if tag != _MEMORY_TAG:
                budget.hold(SECTION, size, offset=at, lead=f"section {_text(tag)} has ")
            yield tag, start, size
        elif flags & _REQUIRED:
            raise SourceError(source, f"section {_text(tag)} is not known, and must be", offset=at)
        at = start + size + -size % _UNIT
    if at != end:
        raise SourceError(source, f"{end - at} bytes belong to no section", offset=at)


def _text(tag: bytes) -> str:
    return repr(tag.decode("latin-1"))


def _cpu(cpu: Cpu) -> bytes:
    leaves, name = leaves_of(cpu), cpu.name.encode()
    known = cpu.enabled_xcr0 is not None
    header = _CPU.pack(cpu.mxcsr_mask, known, cpu.enabled_xcr0 or 0, len(leaves), len(name))
    return header + b"".join(_LEAF.pack(*key, *values) for key, values in leaves.items()) + name


def _read_cpu(payload: bytes) -> Cpu:
    mxcsr_mask, known, enabled, count, length = _CPU.unpack_from(payload)
    end = _CPU.size + count * _LEAF.size
    _expect_size("CPU ", payload, end + length)
    rows = [_LEAF.unpack_from(payload, at) for at in range(_CPU.size, end, _LEAF.size)]
    leaves = {(row[0], row[1]): (row[2], row[3], row[4], row[5]) for row in rows}
    return Cpu.from_cpuid(
        leaves,
        name=payload[end:].decode(),
        enabled_xcr0=enabled if known else None,
        mxcsr_mask=mxcsr_mask,
        provenance="recorded in a guest state",
    )


def _control(state: GuestState) -> bytes:
    policy = _POLICIES.index(state.pkru)
    return _CONTROL.pack(state.xcr0, state.xss, state.xfd, state.xfd_err, policy, 0)


def _image(image: Image) -> bytes:
    layout = image.layout
    header = _IMAGE.pack(_FORMATS.index(layout.format), len(layout.places), layout.size)
    places = (_PLACE.pack(place.component, place.offset, place.size, 0) for place in layout.places)
    return header + b"".join(places) + image.to_bytes()


def _read_image(payload: bytes) -> Image:
    format, count, size = _IMAGE.unpack_from(payload)
    end = _IMAGE.size + count * _PLACE.size
    _expect_size("IMAG", payload, end + size)
    rows = [_PLACE.unpack_from(payload, at) for at in range(_IMAGE.size, end, _PLACE.size)]
    if foreign := [row[0] for row in rows if row[0] >= _COMPONENTS]:
        raise ValueError(f"component {foreign[0]} does not exist")
    places = [Place(*row[:3]) for row in rows]
    return Image(payload[end:], Layout.from_places(_FORMATS[format], places, size=size), "note")


def _read_state(cpu: bytes, control: bytes, image: bytes) -> GuestState:
    _expect_size("CTRL", control, _CONTROL.size)
    xcr0, xss, xfd, xfd_err, policy, _ = _CONTROL.unpack(control)
    return GuestState(_read_image(image), xcr0, _read_cpu(cpu), xss, xfd, xfd_err, _POLICIES[policy])


def _registers(registers: GeneralRegisters) -> bytes:
    rest = (registers.rip, registers.rflags, registers.fs_base, registers.gs_base)
    return _REGISTERS.pack(*registers.general, *rest)


def _program(checkpoint: Checkpoint) -> bytes:
    name = checkpoint.program.encode()
    places = (checkpoint.memory_start, checkpoint.memory_size, checkpoint.base, checkpoint.block)
    numbers = (checkpoint.seed % (1 << 64), checkpoint.argument % (1 << 64), checkpoint.features)
    return _PROGRAM.pack(*numbers, *places, len(name), 0) + name


def _read_checkpoint(registers: bytes, program: bytes) -> Checkpoint:
    """Return a checkpoint whose memory is still to be read."""
    _expect_size("REGS", registers, _REGISTERS.size)
    seed, argument, features, start, size, base, block, length, _ = _PROGRAM.unpack_from(program)
    _expect_size("PROG", program, _PROGRAM.size + length)
    values = _REGISTERS.unpack(registers)
    general, (rip, rflags, fs_base, gs_base) = values[: len(GENERAL)], values[len(GENERAL) :]
    if size > LONGEST:
        raise ValueError(f"{size} bytes of memory, and files have at most {LONGEST}")
    return Checkpoint(
        program=program[_PROGRAM.size :].decode(),
        seed=seed,
        argument=argument,
        features=features,
        memory_start=start,
        memory_size=size,
        base=base,
        block=block,
        registers=GeneralRegisters(general, rip, rflags, fs_base, gs_base),
        memory=(),
    )


def _memory_place(stream: Stream, start: int, size: int, guest: Checkpoint) -> tuple[int, int, int]:
    """Return a piece's address, and where in the file its bytes lie and how many they are."""
    (address,) = _ADDRESS.unpack(stream.read_at(start, min(size, _ADDRESS.size)))
    held = size - _ADDRESS.size
    first, last = guest.memory_start, guest.memory_start + guest.memory_size
    if not first <= address <= address + held <= last:
        raise ValueError(f"memory at {address:#x} lies outside {first:#x} to {last:#x}")
    return address, start + _ADDRESS.size, held


def _expect_size(tag: str, payload: bytes, size: int) -> None:
    if len(payload) != size:
        raise ValueError(f"section {tag!r} has {len(payload)} bytes instead of {size}")
