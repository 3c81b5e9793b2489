"""Recorded states and answers: where they lie, and the files of recorded oracles, read and written.

The form of an oracle file is told in data/oracles_intel/README.md.
"""

from __future__ import annotations

import hashlib
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

from fpstate.arch import Cpu

OWN = Path(__file__).with_name("data")
"""Recordings of this project's own programs; data/README.md tells how they were made."""
POOL_SIZE = 1 << 16
SUMS = "SHA256SUMS"
_REGISTERS = ("eax", "ebx", "ecx", "edx")

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

    @property
    def cpu(self) -> Cpu:
        """The processor, from the CPUID leaves that machine.json has of it."""
        return cpu_of(self.machine)

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

    def create(self, machine: dict[str, Any], pool: bytes) -> None:
        """Begin a folder: machine.json and the pool. The folder may exist, but must be empty."""
        self.folder.mkdir(parents=True, exist_ok=True)
        assert not any(self.folder.iterdir()), f"{self.folder} is not empty"
        (self.folder / "machine.json").write_text(json.dumps(machine, indent=1) + "\n")
        (self.folder / "pool.bin.xz").write_bytes(lzma.compress(pool, preset=9))

    def seal(self) -> None:
        """Write SHA256SUMS for all that is in the folder."""
        (self.folder / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in self._digests()))

    def altered(self) -> list[str]:
        """The files that are not what SHA256SUMS says, or that it does not name."""
        lines = (self.folder / SUMS).read_text().splitlines()
        stated = {name: digest for digest, name in (line.split(maxsplit=1) for line in lines)}
        return sorted({name for name, _ in {*self._digests()} ^ {*stated.items()}})

    def _digests(self) -> Iterator[tuple[str, str]]:
        for path in sorted(self.folder.iterdir()):
            if path.suffix in (".xz", ".json"):
                yield path.name, hashlib.sha256(path.read_bytes()).hexdigest()


def _lines(header: dict[str, Any], cases: Iterable[Case]) -> Iterator[bytes]:
    for line in (header, *cases):
        yield json.dumps(line, separators=(",", ":")).encode() + b"\n"


@cache
def _unpacked(path: Path) -> bytes:
    return lzma.decompress(path.read_bytes())


def cpu_of(machine: dict[str, Any]) -> Cpu:
    """Return the processor that a machine.json describes."""
    processor = machine["processor"]
    vendor = processor["vendor"].encode().ljust(12, b"\0")
    ebx, edx, ecx = (int.from_bytes(vendor[start : start + 4], "little") for start in (0, 4, 8))
    leaves: dict[tuple[int, int], tuple[int, int, int, int]] = {(0, 0): (0x1E, ebx, ecx, edx)}
    for name, tables in processor.items():
        if not name.startswith("leaf_") or not isinstance(tables, dict):
            continue
        leaf = int(name.removeprefix("leaf_"), 16)
        if tables.keys() <= {*_REGISTERS}:
            leaves[leaf, 0] = _registers([tables.get(register, "0") for register in _REGISTERS])
        else:
            leaves |= {(leaf, int(number, 16)): _registers(values) for number, values in tables.items()}
    return Cpu.from_cpuid(
        leaves,
        name=processor.get("codename") or processor["brand"],
        enabled_xcr0=machine["xcr0"],
        mxcsr_mask=machine["mxcsr_mask"],
        provenance="machine.json",
    )


def _registers(values: Sequence[str]) -> tuple[int, int, int, int]:
    eax, ebx, ecx, edx = (int(value, 16) for value in values)
    return eax, ebx, ecx, edx


INTEL = Oracles(OWN / "oracles_intel")
INTEL_NO_PKRU = Oracles(OWN / "oracles_intel_no_pkru")
AMD = Oracles(OWN / "oracles_amd")
