"""Recorded states and answers: where they lie, and the files of recorded oracles, read and written.

The form of an oracle file is told in data/oracles_intel/README.md.
"""

from __future__ import annotations

import json
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

OWN = Path(__file__).with_name("data")
"""Recordings of this project's own programs; data/README.md tells how they were made."""
POOL_SIZE = 1 << 16

Patch = Sequence[Any]
Case = dict[str, Any]


def of_others(name: str) -> Path:
    """A folder of states that other people's programs wrote; they are not part of the project."""
    folder = os.environ.get("FPSTATE_CORPUS")
    if folder is None:
        pytest.skip(f"FPSTATE_CORPUS, the folder of recorded state, is not set: no {name}")
    return Path(folder) / name


def build(patches: Iterable[Patch], pool: bytes, size: int, base: bytes = b"") -> bytearray:
    """Apply patches to zeros or to a base: (offset, hex digits) or (offset, start in the pool, length)."""
    image = bytearray(base[:size].ljust(size, b"\0"))
    for patch in patches:
        piece = bytes.fromhex(patch[1]) if len(patch) == 2 else pool[patch[1] : patch[1] + patch[2]]
        piece = piece[: max(0, size - patch[0])]
        image[patch[0] : patch[0] + len(piece)] = piece
    return image


@dataclass(frozen=True)
class OracleFile:
    """One file of cases and answers: its header, its cases, and the templates that their images start from."""

    name: str
    header: dict[str, Any]
    cases: list[Case]
    pool: bytes

    @property
    def kind(self) -> str:
        """``sequences``, ``xrstor``, ``sigreturn``, ``ptrace`` or ``kvm``."""
        kind: str = self.header["kind"]
        return kind

    @property
    def permission(self) -> int:
        """1: permission for TILEDATA, and tiles used before; 0: none; 2: permission, and tiles not used yet."""
        permission: int = self.header["permission"]
        return permission

    @property
    def size(self) -> int:
        """Bytes of an area or an image."""
        size: int = self.header.get("area") or self.header["size"]
        return size

    def templates(self) -> list[bytes]:
        """The images that cases patch."""
        return [bytes(build(patches, self.pool, self.size)) for patches in self.header["templates"]]

    def pattern(self) -> bytes:
        """The state in the registers before each case, in the standard format."""
        return bytes(build(self.header["pattern"], self.pool, self.size))


@dataclass(frozen=True)
class Oracles:
    """A folder of oracle files of one machine."""

    folder: Path

    @property
    def machine(self) -> dict[str, Any]:
        """What machine.json says of the processor and its kernel."""
        machine: dict[str, Any] = json.loads((self.folder / "machine.json").read_text())
        return machine

    @property
    def pool(self) -> bytes:
        """The bytes that images and moves are cut from."""
        return _unpacked(self.folder / "pool.bin.xz")

    def names(self, kind: str = "") -> list[str]:
        """The names of the files that begin with ``kind``."""
        suffix = ".jsonl.xz"
        return sorted(path.name.removesuffix(suffix) for path in self.folder.glob(f"{kind}*{suffix}"))

    def read(self, name: str) -> OracleFile:
        """Read a file; its count and its checksum must be right."""
        raw = lzma.decompress((self.folder / f"{name}.jsonl.xz").read_bytes())
        lines = raw.splitlines()
        end = json.loads(lines[-1])
        assert end["crc"] == zlib.crc32(raw[: raw.rindex(lines[-1])]), f"{name}: checksum"
        assert end["end"] == len(lines) - 2, f"{name}: number of lines"
        return OracleFile(name, json.loads(lines[0]), [json.loads(line) for line in lines[1:-1]], self.pool)

    def write(self, name: str, header: dict[str, Any], cases: Iterable[Case]) -> int:
        """Write a file in the same form, and return the number of its cases."""
        lines = [*_lines(header, cases)]
        body = b"".join(lines)
        end = json.dumps({"end": len(lines) - 1, "crc": zlib.crc32(body)}, separators=(",", ":")) + "\n"
        (self.folder / f"{name}.jsonl.xz").write_bytes(lzma.compress(body + end.encode(), preset=9))
        return len(lines) - 1


def _lines(header: dict[str, Any], cases: Iterable[Case]) -> Iterator[bytes]:
    for line in (header, *cases):
        yield json.dumps(line, separators=(",", ":")).encode() + b"\n"


@cache
def _unpacked(path: Path) -> bytes:
    return lzma.decompress(path.read_bytes())


INTEL = Oracles(OWN / "oracles_intel")
