"""Load a guest program from a file: flat binary or ELF."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from fpstate.errors import ProgramError
from fpstate.program.block import SSE, X87

Format = Literal["flat", "elf"]

FILE_MAXIMUM: Final = 16 << 20
"""Larger files are refused unread."""

_ELF_MAGIC = b"\x7fELF"
_NOT_CODE: Final = (
    (b"#!", "a script"),
    (b"MZ", "a Windows executable"),
    (b"!<arch>\n", "a static library"),
    (b"\xcf\xfa\xed\xfe", "a Mach-O executable"),
    (b"\xca\xfe\xba\xbe", "a Mach-O or Java class file"),
    (b"\x1f\x8b", "gzip data"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x89PNG", "a PNG picture"),
    (b"%PDF", "a PDF document"),
    (b"BC\xc0\xde", "LLVM bitcode"),
)


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a program: ``data`` goes to ``offset`` from the load base, zeros follow up to
    ``memory_size`` bytes. Two segments may share a page, which then needs the rights of both.
    """

    offset: int
    data: bytes
    memory_size: int
    writable: bool
    executable: bool


@dataclass(frozen=True, slots=True)
class Program:
    """A guest program, ready to be placed at any page-aligned base.

    ``entry`` is an offset from the base; ``features`` a mask of components, as in XCR0, that a
    vCPU must have to run it, ``optional`` of those that it uses only where its block offers them.
    """

    name: str
    segments: tuple[Segment, ...]
    entry: int
    features: int = X87 | SSE
    optional: int = 0

    @property
    def size(self) -> int:
        """Bytes of memory from the base to the end of the last segment."""
        return max(segment.offset + segment.memory_size for segment in self.segments)

    def memory(self) -> bytes:
        """What lies at the base once the program is loaded, ``size`` bytes."""
        memory = bytearray(self.size)
        for segment in self.segments:
            memory[segment.offset : segment.offset + len(segment.data)] = segment.data
        return bytes(memory)

    def check_fits(self, memory_size: int) -> None:
        """Raise ProgramError when the program does not fit into ``memory_size`` bytes."""
        if self.size > memory_size:
            raise ProgramError(
                self.name,
                f"needs {self.size} bytes of memory; the vCPU has {memory_size} for it",
                help="Give the vCPU more memory, or make the program's arrays smaller.",
            )

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        format: Format | None = None,
        features: int = X87 | SSE,
        optional: int = 0,
        name: str | None = None,
    ) -> Program:
        """Load a flat binary (suffix ``.bin`` or ``format="flat"``) or a relocation-free ELF file.

        Raises ProgramError with the reason for anything that cannot run as it is.
        """
        path = Path(path)
        return cls.from_bytes(
            _read(path),
            path=str(path),
            format=format or ("flat" if path.suffix == ".bin" else None),
            features=features,
            optional=optional,
            name=name or path.stem,
        )

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        *,
        path: str = "<bytes>",
        format: Format | None = None,
        features: int = X87 | SSE,
        optional: int = 0,
        name: str | None = None,
    ) -> Program:
        """Load a program from its bytes; ``path`` names it in errors. Otherwise as ``from_file``."""
        if not data:
            raise ProgramError(path, "is empty", help="Build the program again; this file holds no code.")
        name = name or Path(path).stem
        if data.startswith(_ELF_MAGIC):
            if format == "flat":
                raise ProgramError(
                    path,
                    "is an ELF file, not a flat binary",
                    help="Load it as ELF, or copy its code out with objcopy -O binary.",
                )
            # Loading flat binaries does without pyelftools, which takes a while to import.
            from fpstate.program.elf import load_elf

            segments, entry = load_elf(data, path)
            return cls(name, segments, entry, features, optional)
        _refuse_other_files(data, path)
        if format != "flat":
            raise ProgramError(
                path,
                "is neither ELF nor named as a flat binary",
                help="Link it with gcc -static-pie -nostdlib, or say that it is flat (suffix .bin, --flat).",
            )
        return cls(
            name, (Segment(0, data, len(data), writable=True, executable=True),), 0, features, optional
        )


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ProgramError(str(path), "is a directory", help="Name the program file inside it.")
        if not stat.S_ISREG(status.st_mode):
            raise ProgramError(str(path), "is not a regular file", help="Copy the program to a file first.")
        if status.st_size > FILE_MAXIMUM:
            raise ProgramError(
                str(path),
                f"has {status.st_size} bytes; program files are limited to {FILE_MAXIMUM}",
                help="Strip it, and let the program make its data from the seed.",
            )
        with path.open("rb") as file:
            return file.read(FILE_MAXIMUM)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ProgramError(
            str(path), f"cannot be read: {reason}", help="Check the name and the permissions."
        ) from error


def _refuse_other_files(data: bytes, path: str) -> None:
    for magic, what in _NOT_CODE:
        if data.startswith(magic):
            raise ProgramError(
                path, f"is {what}, not a guest program", help="Name a flat binary or an ELF file for x86-64."
            )
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return
    # Neither way to leave a program is valid UTF-8: such a file could never finish.
    raise ProgramError(
        path,
        "is text, not machine code",
        help="Compile it first: gcc -O2 -ffreestanding -nostdlib -static-pie -fno-stack-protector.",
    )
