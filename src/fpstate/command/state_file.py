"""One state from whatever a verb is given, and states written to files that their owner alone can read."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Final

from fpstate.arch import Cpu, Layout
from fpstate.arch.component import COMPACTED_BIT, LEGACY, MIN_SIZE, components_in, mask_text
from fpstate.errors import AmbiguousLayout, ImageError, LayoutError, SourceError
from fpstate.image import Image
from fpstate.image.legacy import FSAVE_SIZE, FXSAVE_SIZE, from_fsave, from_fxsave

FORMATS: Final = ("std", "compacted", "fxsave", "fsave")
"""Names of the formats of raw bytes."""
_LONGEST: Final = 1 << 20
_MACHINE_READABLE: Final = (b"\x7fELF", b"MDMP", b"\x19\x43\x56\x54", b"\x47\x38\x05\x55")
"""How files begin that hold more than one raw state: cores, minidumps, CRIU images."""


def processor(name: str | None) -> Cpu | None:
    """Return the processor that a command line names: ``host``, one of the catalog, or none."""
    if name is None:
        return None
    return Cpu.host() if name == "host" else Cpu.catalog(name)


def read_state(
    source: str, *, cpu: Cpu | None = None, format: str | None = None, thread: int | None = None
) -> Image:
    """Return the one state that a source holds: raw bytes, ``-`` for stdin, a core, or a process's number.

    ``cpu`` made the raw bytes; ``format`` is what they are, told from length and header if not given. Raises
    SourceError where it holds several threads and ``thread`` names none, LayoutError or AmbiguousLayout where the
    layout cannot be known, ImageError for bytes that are no such image, and OSError.
    """
    named = source.isascii() and source.isdigit()
    data = b"" if named else _read(source)
    if named or data.startswith(_MACHINE_READABLE):
        return _of_thread(source, cpu, thread)
    return raw_image(data, cpu=cpu, format=format)


def raw_image(data: bytes, *, cpu: Cpu | None = None, format: str | None = None) -> Image:
    """Return the image that raw bytes are; see ``read_state``."""
    if format == "fxsave" or (format is None and len(data) == FXSAVE_SIZE):
        return from_fxsave(data)
    if format == "fsave" or (format is None and len(data) == FSAVE_SIZE):
        return from_fsave(data)
    if len(data) < MIN_SIZE:
        raise ImageError(
            f"{len(data)} bytes are no state: FSAVE has {FSAVE_SIZE}, FXSAVE {FXSAVE_SIZE}, XSAVE {MIN_SIZE} or more",
            offset=len(data),
            found=len(data),
            expected=MIN_SIZE,
        )
    xstate_bv, xcomp_bv = (int.from_bytes(data[at : at + 8], "little") for at in (512, 520))
    compacted = bool(xcomp_bv & COMPACTED_BIT) if format is None else format == "compacted"
    layout = _compacted(xcomp_bv, cpu) if compacted else _standard(len(data), xstate_bv, cpu)
    if len(data) < layout.size:
        raise ImageError(
            f"{len(data)} bytes, but {mask_text(layout.mask)} {layout.format.value} needs {layout.size}",
            offset=len(data),
            found=len(data),
            expected=layout.size,
        )
    return Image(data[: layout.size], layout, "inferred" if cpu is None else "given")


def write_private(target: str, data: bytes) -> None:
    """Write a whole file at once, readable by its owner alone; ``-`` is stdout.

    A file that exists is replaced only when all is written. What is no regular file (a pipe, a device) is written
    to as it is.
    """
    if target == "-":
        sys.stdout.buffer.write(data)
        return
    path = Path(target).resolve()
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        path.write_bytes(data)
        return
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _read(source: str) -> bytes:
    if source == "-":
        data = sys.stdin.buffer.read(_LONGEST + 1)
    else:
        with open(source, "rb") as file:
            data = file.read(_LONGEST + 1)
    if len(data) > _LONGEST and not data.startswith(_MACHINE_READABLE):
        raise SourceError(source, f"more than {_LONGEST} bytes are no single state")
    return data


def _of_thread(source: str, cpu: Cpu | None, wanted: int | None) -> Image:
    from fpstate.source.open import open_source

    threads = open_source(source, cpu=cpu)
    chosen = [thread for thread in threads if wanted in (None, thread.tid)]
    if len(chosen) != 1:
        tids = ", ".join(str(thread.tid) for thread in threads[:20])
        raise SourceError(
            source, f"{len(chosen)} of its {len(threads)} threads were meant", help=f"name one of {tids}"
        )
    return chosen[0].image


def _standard(length: int, xstate_bv: int, cpu: Cpu | None) -> Layout:
    """Return the layout of all components of the processor that end within ``length``, if it ends there."""
    if cpu is None:
        from fpstate.source.inference import infer

        return infer(0, length, xstate_bv)
    whole = Layout.standard(cpu, cpu.xcr0)
    mask = LEGACY | sum(
        1 << place.component for place in whole.places if place.end <= length and place.component > 1
    )
    layout = Layout.standard(cpu, mask)
    if layout.size != length and length < whole.size:
        raise LayoutError(
            f"no set of components has {length} bytes on {cpu.name}: {mask_text(mask)} has {layout.size},"
            f" all it has {whole.size}",
            help="name the processor that made the state, or pass exactly the state",
        )
    return layout


def _compacted(xcomp_bv: int, cpu: Cpu | None) -> Layout:
    """Return the layout that a header names; without a processor, that on which all of the catalog agree."""
    mask = xcomp_bv & ~COMPACTED_BIT
    if cpu is not None:
        return Layout.compacted(cpu, mask)
    cpus = [Cpu.catalog(name) for name in Cpu.catalog_names()]
    able = [each for each in cpus if all(n in each.geometry for n in components_in(mask & ~LEGACY))]
    found = {Layout.compacted(each, mask): each.name for each in able}
    if len(found) > 1:
        raise AmbiguousLayout(f"processors lay {mask_text(mask)} out differently", sorted(found.values()))
    if not found:
        raise LayoutError(f"no known processor has {mask_text(mask)}", help="name its producer with --cpu")
    return next(iter(found))
