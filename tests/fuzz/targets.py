"""What is fuzzed: each source from its first byte to decoded registers, and what it may answer.

A target takes any bytes. It returns what came of them, and raises what must never happen: anything that is no
error of ours, or one that does not say where.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fpstate.arch.cpu import Cpu
from fpstate.command.register_report import Wanted, describe
from fpstate.errors import AmbiguousLayout, SourceError
from fpstate.source.core import core_threads
from fpstate.source.criu import criu_threads
from fpstate.source.minidump import minidump_threads
from fpstate.source.raw import open_raw
from fpstate.source.raw_format import FORMATS
from fpstate.source.stream import MemoryStream
from fpstate.source.thread import ThreadState

CORPUS: Final = Path(__file__).parent / "corpus"
CPUS: Final = (None, "zen4", "ice-lake-sp", "sapphire-rapids", "zen2")
_WANTED: Final = Wanted(all=True, lane_type="f32")
_NOT_AT_A_BYTE: Final = "no floating-point state"


def _raw(data: bytes, cpu: Cpu | None) -> list[ThreadState]:
    """The last byte chooses the format, as ``--format`` does, so that one corpus serves for all of them."""
    choice = data[-1] % (len(FORMATS) + 1) if data else 0
    return open_raw(data[:-1], cpu=cpu, format=None if choice == len(FORMATS) else FORMATS[choice])


TARGETS: Final[dict[str, Callable[[bytes, Cpu | None], list[ThreadState]]]] = {
    "core": lambda data, cpu: core_threads(MemoryStream(data, "fuzz"), cpu=cpu),
    "minidump": lambda data, cpu: minidump_threads(MemoryStream(data, "fuzz"), cpu=cpu),
    "criu": lambda data, cpu: criu_threads(MemoryStream(data, "core-1.img"), cpu=cpu),
    "raw": _raw,
}


def attempt(target: str, data: bytes, *, cpu: str | None = None, decode: bool = True) -> str:
    """Read bytes as a target and decode every register; return ``read``, ``refused`` or ``ambiguous``."""
    try:
        threads = TARGETS[target](data, None if cpu is None else Cpu.catalog(cpu))
    except (AmbiguousLayout, SourceError) as error:
        return _answer(error)
    for thread in threads if decode else ():
        describe(thread, _WANTED, views=False)
    return "read"


def _answer(error: AmbiguousLayout | SourceError) -> str:
    if isinstance(error, AmbiguousLayout):
        assert error.candidates
        return "ambiguous"
    assert _NOT_AT_A_BYTE in str(error) if error.offset is None else error.offset >= 0, error
    return "refused"


def corpus(target: str) -> list[bytes]:
    """The fixed corpus of a target: files that are read, one of each kind."""
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


_NUMBERS: Final = (0, 1, 63, 64, 511, 576, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, -1)


def mutate(data: bytes, source: random.Random) -> bytes:
    """Change some bytes and numbers, more often early ones; sometimes cut, repeat or insert a part."""
    changed = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 4, 16))):
        at = source.randrange(min(len(changed), source.choice((32, 256, 1536, 1 << 20))) or 1)
        choice = source.random()
        if choice < 0.4:
            changed[at : at + 1] = source.randbytes(1)
        elif choice < 0.8:
            size = source.choice((2, 4, 4, 8))
            number = source.choice(_NUMBERS) & (1 << 8 * size) - 1
            changed[at : at + size] = number.to_bytes(size, "little")
        elif choice < 0.9:
            del changed[at : at + source.choice((1, 4, 64, 1 << 20))]
        else:
            start = source.randrange(len(changed) or 1)
            changed[at:at] = changed[start : start + source.randrange(1, 256)]
    return bytes(changed)
