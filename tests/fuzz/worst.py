"""The worst inputs known, made here: small files that once took gigabytes, minutes or a traceback, and their siblings.

Files of a few kilobytes are made rather than kept: what compresses well is short to write down.
"""

from __future__ import annotations

import bz2
import json
import lzma
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from grammar.kinds import Made
from grammar.state_file import base_sections, sealed
from grammar.states import standard

from fpstate.testing.build import random_image
from fpstate.testing.container import windows_context
from fpstate.testing.core import CoreNote, layout_note, linux_notes, register_set

_MIB: Final = 1 << 20
_BLOCK: Final = 65_536
_FAR: Final = 48
_NEAR: Final = 2
_IMAGE: Final = random_image(standard("haswell"), 1, present=7)
_STATE: Final = register_set(_IMAGE)


@dataclass(frozen=True, slots=True)
class Worst:
    """An input that was or could be bad; ``codes`` are those that its verbs may end with."""

    name: str
    make: Callable[[], bytes]
    kind: str = "core"
    file: str = "in.bin"
    codes: frozenset[int | None] = frozenset({2})
    cpu: str | None = None

    def made(self) -> Made:
        """The input, with plain options."""
        return Made(self.kind, self.file, self.make(), cpu=self.cpu)


def _core(
    segments: Sequence[tuple[int, int]], body: bytes, *, count: int | None = None, extended: int = -1
) -> bytes:
    """A 64-bit core: ``segments`` are offsets in ``body`` and sizes; ``extended`` is their number in section 0."""
    table = 64 + (64 if extended >= 0 else 0)
    start = table + 56 * len(segments)
    number = 0xFFFF if extended >= 0 else len(segments) if count is None else count
    fields = (4, 62, 1, 0, table, 64 if extended >= 0 else 0, 0, 64, 56, number, 64, 1, 0)
    section = struct.pack("<44xI16x", extended) if extended >= 0 else b""
    rows = b"".join(
        struct.pack("<IIQQQQQQ", 4, 4, (start + at) % (1 << 64), 0, 0, size, 0, 4) for at, size in segments
    )
    return b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", *fields) + section + rows + body


def _notes(tid: int, state: bytes = _STATE) -> bytes:
    return b"".join(note.to_bytes() for note in linux_notes([(tid, state)]))


def _overlapping(count: int, size: int = _MIB) -> bytes:
    """Segments that all name one thread with a register set of ``size`` bytes, which a stated layout makes legal."""
    layout = CoreNote("LINUX", 0x205, layout_note(_IMAGE.layout)).to_bytes()
    unit = _notes(1, _STATE.ljust(size, b"\0"))
    return _core([(0, len(layout)), *[(len(layout), len(unit))] * count], layout + unit)


def _layouts(count: int) -> bytes:
    """Segments that all name one layout note of 1 MiB, of components that repeat."""
    note = CoreNote("LINUX", 0x205, layout_note(_IMAGE.layout) * (_MIB // 16)).to_bytes()
    return _core([(0, len(note))] * count, note)


def _vectors(count: int) -> bytes:
    """Segments that all name one auxiliary vector of 1 MiB that never ends."""
    note = CoreNote("CORE", 6, struct.pack("<QQ", 16, 1) * (_MIB // 16)).to_bytes()
    unit = _notes(1)
    return _core([(0, len(note))] * count + [(len(note), len(unit))], note + unit)


def _threads(count: int) -> bytes:
    unit = _notes(1)
    return _core([(0, len(unit) * count)], unit * count)


def _sharing(count: int) -> bytes:
    """A minidump whose threads all have one context."""
    context = windows_context(_IMAGE)
    at = 32 + 24
    threads = at + 56
    place = threads + 4 + 48 * count
    rows = struct.pack("<I36xII", 1, len(context), place) * count
    streams = struct.pack("<III", 7, 56, at) + struct.pack("<III", 3, 4 + 48 * count, threads)
    header = struct.pack("<4sIIIIIQ", b"MDMP", 0xA793, 2, 32, 0, 0, 0)
    return header + streams + struct.pack("<H54x", 9) + struct.pack("<I", count) + rows + context


def _gzip(pieces: Sequence[tuple[bytes, int]]) -> bytes:
    """One member, of pieces that are each repeated: the packed form is repeated, the checksum is right."""
    made, crc, size = b"", 0, 0
    for data, count in pieces:
        packed = zlib.compressobj(9, wbits=-15)
        made += (packed.compress(data) + packed.flush(zlib.Z_FULL_FLUSH)) * count
        for _ in range(count):
            crc = zlib.crc32(data, crc)
        size += len(data) * count
    end = zlib.compressobj(9, wbits=-15).flush()
    return b"\x1f\x8b\x08" + bytes(7) + made + end + struct.pack("<II", crc, size & 0xFFFFFFFF)


def _zstd(pieces: Sequence[tuple[bytes, int]]) -> bytes:
    """One frame of stored blocks, and of runs where a piece is one byte again and again."""
    made = b"\x28\xb5\x2f\xfd\0\x58"
    for data, count in pieces:
        run = len(set(data)) == 1
        parts = [data[at : at + _BLOCK] for at in range(0, len(data), _BLOCK)]
        blocks = (
            ((2 if run else 0) | len(part) << 3).to_bytes(3, "little") + (part[:1] if run else part)
            for part in parts
        )
        made += b"".join(blocks) * count
    return made + b"\1\0\0"


_MEMBERS: Final[dict[str, Callable[[Sequence[tuple[bytes, int]]], bytes]]] = {
    "gzip": _gzip,
    "xz": lambda pieces: b"".join(lzma.compress(data, preset=0) * count for data, count in pieces),
    "bzip2": lambda pieces: b"".join(bz2.compress(data) * count for data, count in pieces),
    "zstd": _zstd,
}


def _backward(codec: str, steps: int) -> bytes:
    """Segments far away and near in turn, so that reading them as they come inflates everything for each step."""
    unit = _notes(1)
    unit = unit.ljust(4096, b"\0")
    near, far = _NEAR * _MIB, _FAR * _MIB
    size = len(_notes(1))
    head = _core([(far + 4096, size), (near, size)] * steps, b"")
    zeros = bytes(_MIB)
    pieces = [(head, 1), (zeros, _NEAR), (unit, 1), (zeros, _FAR - _NEAR), (unit, 1)]
    return _MEMBERS[codec](pieces)


def _bomb(codec: str, mib: int) -> bytes:
    """A file that inflates to ``mib`` MiB of zeros behind the beginning of a core."""
    return _MEMBERS[codec]([(b"\x7fELF\2\1\1" + bytes(9), 1), (bytes(_MIB), mib)])


def _nested(depth: int) -> bytes:
    """Compression in compression: only the outermost is taken off."""
    data = _bomb("xz", 8)
    for _ in range(depth):
        data = lzma.compress(data, preset=0)
    return data


def _leaves() -> bytes:
    """A guest state whose CPUID says that components have 2 and 4 GiB."""
    sections = []
    for tag, flags, payload in base_sections("sapphire-rapids"):
        changed = bytearray(payload)
        if tag == b"CPU ":
            for at in range(24, len(changed) - 24, 24):
                leaf, sub = struct.unpack_from("<II", changed, at)
                if leaf == 0xD and sub in (2, 18):
                    struct.pack_into("<I", changed, at + 8, 0x7FFFF000 * (1 if sub == 2 else 2))
        sections.append((tag, flags, bytes(changed)))
    return sealed(sections)


def _named(name: bytes) -> bytes:
    """A guest state of a program that is named so."""
    kept = [each for each in base_sections("haswell", running=True) if each[0] != b"PROG"]
    program = next(each for each in base_sections("haswell", running=True) if each[0] == b"PROG")
    payload = program[2][:56] + struct.pack("<II", len(name), 0) + name
    return sealed([*kept, (b"PROG", 1, payload)])


def _pieces(count: int) -> bytes:
    """A guest state with many pieces of memory, which all lie at one place."""
    sections = base_sections("haswell", running=True)
    piece = next(each for each in sections if each[0] == b"MEMR")
    return sealed([*sections, *[piece] * count])


def _criu(count: int) -> bytes:
    """A core image of nearly 1 MiB: the message with the registers again and again, which protobuf joins."""
    state = b"\x4a" + _length(32 * 2) + b"\x80\x01" * 32
    message = (
        b"\x08\x01" + (b"\x12" + _length(len(state) + 2) + b"\x1a" + _length(len(state)) + state) * count
    )
    return struct.pack("<III", 0x54564319, 0x55053847, len(message)) + message


def _length(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80, value >> 7])


def _symbols(count: int) -> bytes:
    """An object file that is nearly all symbol table."""
    names = b"\0.text\0.symtab\0.strtab\0.shstrtab\0"
    text, symbols, strings = b"\x90" * 64, bytes(24) * count, b"\0_start\0"
    parts, at = [text, symbols, strings, names], 64
    rows = [(0, 0, 0, 0, 0, 0, 0, 0)]
    for data, (name, kind, flags, link, entry) in zip(
        parts, ((1, 1, 6, 0, 0), (7, 2, 0, 3, 24), (15, 3, 0, 0, 0), (23, 3, 0, 0, 0)), strict=True
    ):
        rows.append((name, kind, flags, at, len(data), link, 0, entry))
        at += len(data)
    table = b"".join(struct.pack("<IIQQQQIIQQ", *r[:3], 0, r[3], r[4], r[5], r[6], 1, r[7]) for r in rows)
    fields = (1, 62, 1, 0, 0, at, 0, 64, 56, 0, 64, len(rows), 4)
    return b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", *fields) + b"".join(parts) + table


def _segments(count: int) -> bytes:
    """A linked program with as many segments as its header can state, and dynamic entries of the whole file."""
    rows = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, 64, 64, 4096) * count
    dynamic = struct.pack("<IIQQQQQQ", 2, 6, 0, 0, 0, 64 + 56 * (count + 1), 64 + 56 * (count + 1), 8)
    fields = (3, 62, 1, 0, 64, 0, 0, 64, 56, count + 1, 0, 0, 0)
    return b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", *fields) + dynamic + rows


def _layout(**changes: Any) -> bytes:
    return json.dumps(standard("haswell").to_dict() | changes).encode()


def _places() -> bytes:
    places = [{"component": 0, "offset": 0, "size": 160}, {"component": 1, "offset": 160, "size": 256}]
    places.append({"component": 2, "offset": 576, "size": (8 << 30) - 576})
    return _layout(size=8 << 30, places=places)


_ANY: Final = frozenset({0, 1, 2, 4})
_JSON: Final = {"kind": "layout", "file": "layout.json"}
_SAVED: Final = {"kind": "state file", "file": "in.fpvso", "codes": _ANY}
_PROGRAM: Final = {"kind": "program", "file": "in.elf", "codes": frozenset({0, 2})}

WORST: Final[tuple[Worst, ...]] = (
    Worst("one register set of 1 MiB that 100 segments name", lambda: _overlapping(100), codes=_ANY),
    Worst("the same of 2,000 segments", lambda: _overlapping(2000), codes=_ANY),
    Worst("the same of 2,000 segments, gzip", lambda: _gzip([(_overlapping(2000), 1)]), codes=_ANY),
    Worst("the same of 20,000 segments, gzip", lambda: _gzip([(_overlapping(20_000), 1)]), codes=_ANY),
    Worst(
        "a register set of 64 KiB that 4,000 segments name", lambda: _overlapping(4000, 65_536), codes=_ANY
    ),
    Worst("one layout note of 1 MiB that 200 segments name", lambda: _layouts(200)),
    Worst("one auxiliary vector of 1 MiB that 200 segments name", lambda: _vectors(200), codes=_ANY),
    *(
        Worst(f"segments far and near in turn, {codec}", lambda codec=codec: _backward(codec, 6), codes=_ANY)
        for codec in _MEMBERS
    ),
    Worst("100,000 threads, xz", lambda: lzma.compress(_threads(100_000), preset=0), codes=_ANY),
    Worst("threads that share one context", lambda: _sharing(3000), "minidump", codes=_ANY),
    Worst(
        "100,000 threads that share one context, xz",
        lambda: lzma.compress(_sharing(100_000), preset=0),
        codes=_ANY,
    ),
    Worst("5 GiB of zeros, gzip", lambda: _bomb("gzip", 5 << 10)),
    Worst("5 GiB of zeros, zstd", lambda: _bomb("zstd", 5 << 10)),
    Worst("compression in compression", lambda: _nested(3), codes=_ANY),
    Worst("empty members, gzip", lambda: _MEMBERS["gzip"]([(b"", 1)]) * 40_000, codes=_ANY),
    Worst("empty members, xz", lambda: lzma.compress(b"") * 20_000, codes=_ANY),
    Worst("empty members, bzip2", lambda: bz2.compress(b"") * 50_000, codes=_ANY),
    *(
        Worst(f"PN_XNUM, {number} segments", lambda number=number: _core([], b"", extended=number))
        for number in (0, 1 << 20, (1 << 20) + 1, (1 << 32) - 1)
    ),
    Worst("a segment at the end of all offsets", lambda: _core([((1 << 64) - 200, 1 << 20)], _notes(1))),
    Worst("CPUID that states 2 and 4 GiB", _leaves, **_SAVED),
    Worst("a program's name that moves the cursor", lambda: _named(b"\x1b[31mX\x1b[2J"), **_SAVED),
    Worst("a program's name of line ends", lambda: _named(b"\n\r\x07\xc2\x9b2J"), **_SAVED),
    Worst("2,000 pieces of memory at one place", lambda: _pieces(2000), **_SAVED),
    Worst("registers 10,000 times over", lambda: _criu(10_000), "criu", "core-1.img"),
    Worst("JSON 200,000 deep", lambda: b"[" * 200_000, **_JSON),
    Worst("JSON objects 100,000 deep", lambda: b'{"a":' * 100_000 + b"1" + b"}" * 100_000, **_JSON),
    Worst("a size of 10^30", lambda: _layout(size=10**30), **_JSON),
    Worst(
        "a size of 100,000 digits",
        lambda: _layout(size=0).replace(b'"size": 0', b'"size": ' + b"9" * 100_000),
        **_JSON,
    ),
    Worst("a layout of 8 GiB", _places, **_JSON),
    Worst("a layout of infinite size", lambda: _layout(size=float("inf")), **_JSON),
    Worst("a layout that is no UTF-8", lambda: b'{"\xff": 1}', **_JSON),
    Worst("an object file of 80,000 symbols", lambda: _symbols(80_000), **_PROGRAM),
    Worst("a program of 20,000 segments", lambda: _segments(20_000), **_PROGRAM),
)
"""By what is bad about them."""
