"""Minidumps: a directory that repeats and overlaps, threads that share contexts, XSTATE areas anywhere."""

from __future__ import annotations

import struct
from typing import Final

from fpstate.testing.container import windows_context, xstate_config

from .draw import Draw
from .placing import Reference, placed, times
from .states import image

_SYSTEM, _THREADS, _MISC, _EXCEPTION = 7, 3, 15, 6
_KINDS: Final = (0, 4, 5, 9, 21, 0xFFFF, _SYSTEM, _THREADS, _MISC, _EXCEPTION)
_CONTEXT_SIZES: Final = {"x86-64": 1232, "i386": 716}


def minidump(draw: Draw, *, far: bool = False) -> bytes:
    """A minidump of some machine."""
    machine = draw.pick(("x86-64", "x86-64", "i386"))
    states = [image(draw, compacted=draw.chance(110)) for _ in range(1 + draw.few(3))]
    contexts = [draw.mangled(_context(draw, state, machine), 12) for state in states]
    body, references = placed(draw, contexts, far=far)
    streams = [
        (_SYSTEM, struct.pack("<H54x", draw.odd(9 if machine == "x86-64" else 0, 2, 3))),
        (_THREADS, b""),
    ]
    if draw.chance(128):
        streams.append(
            (_MISC, struct.pack("<II824x", 1364, 0) + _config(draw, xstate_config(states[0])) + bytes(4))
        )
    if draw.chance(60):
        streams.append((_EXCEPTION, b""))
    if draw.chance(24):
        streams += [(draw.pick(_KINDS), draw.noise(16))] * times(draw)
    return draw.mangled(_file(draw, streams, body, references), 16)


def _context(draw: Draw, state: object, machine: str) -> bytes:
    data = bytearray(windows_context(state, machine))  # type: ignore[arg-type]
    size, flags = _CONTEXT_SIZES[machine], 48 if machine == "x86-64" else 0
    spots = [(flags, 4), *((size + at, 4) for at in range(0, 24, 4)), (size + 80, 8), (size + 88, 8)]
    for at, width in spots:
        if at + width <= len(data):
            right = int.from_bytes(data[at : at + width], "little")
            data[at : at + width] = draw.odd(right, width, 5).to_bytes(width, "little")
    if draw.chance(4):
        data = data.ljust(draw.pick((65_536, 65_537, 1 << 20)), b"\0")
    return bytes(data)


def _config(draw: Draw, config: bytes) -> bytes:
    changed = bytearray(config)
    for at in (0, 8, 12, 32, 36, 56, 60, 88, 92, 152, 156, 160, 164):
        right = int.from_bytes(changed[at : at + 4], "little")
        changed[at : at + 4] = draw.odd(right, 4, 5).to_bytes(4, "little")
    return bytes(changed)


def _file(draw: Draw, streams: list[tuple[int, bytes]], body: bytes, contexts: list[Reference]) -> bytes:
    """Header, directory, the small streams with the lists among them, then the contexts."""
    start = 32 + 12 * len(streams)
    threads_size = 4 + 48 * len(contexts)
    sizes = [{_THREADS: threads_size, _EXCEPTION: 168}.get(kind, len(data)) for kind, data in streams]
    behind = start + sum(sizes)
    places = [Reference(behind + at & 0xFFFFFFFF, size & 0xFFFFFFFF) for at, size in contexts]
    tids = 3 if draw.chance(10) else 1 << 32
    rows = [
        struct.pack("<I36xII", index % tids, each.size, each.offset) for index, each in enumerate(places, 1)
    ]
    taken = draw.pick(places) if places else Reference(0, 0)
    made = {
        _THREADS: struct.pack("<I", draw.odd(len(rows), 4, 4)) + b"".join(rows),
        _EXCEPTION: struct.pack("<I156xII", draw.odd(1, 4, 40), draw.odd(taken.size, 4, 10), taken.offset),
    }
    directory, at = b"", start
    for (kind, _), size in zip(streams, sizes, strict=True):
        directory += struct.pack("<III", draw.odd(kind, 4, 3), draw.odd(size, 4, 3), draw.odd(at, 4, 3))
        at += size
    count = draw.odd(len(streams), 4, 3)
    header = struct.pack("<4sIIIIIQ", b"MDMP", draw.odd(0xA793, 4, 2), count, draw.odd(32, 4, 2), 0, 0, 0)
    return header + directory + b"".join(data or made.get(kind, b"") for kind, data in streams) + body
