"""Writers of what images come in besides cores: signal frames, KVM's buffers, minidumps, CRIU's core images.

For tests on machines without Windows, CRIU, KVM or the processor in question.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fpstate.arch.component import COMPACTED_BIT, LEGACY, LEGACY_PLACES, LEGACY_SIZE, MIN_SIZE, Component
from fpstate.arch.layout import Format
from fpstate.image import Image
from fpstate.image.legacy import to_fsave, to_fxsave
from fpstate.image.subject import FRAME, MAGIC1, MAGIC2, SOFTWARE_AT
from fpstate.source.criu_schema import core_entry
from fpstate.source.thread import Machine

_CRIU_MAGIC: Final = struct.pack("<II", 0x54564319, 0x55053847)
_CRIU_FIELDS: Final[Mapping[int, tuple[str, int]]] = {
    Component.AVX: ("ymmh_space", 4),
    Component.BNDREGS: ("bndreg_state", 8),
    Component.BNDCSR: ("bndcsr_state", 8),
    Component.OPMASK: ("opmask_reg", 8),
    Component.ZMM_HI256: ("zmm_upper", 8),
    Component.HI16_ZMM: ("hi16_zmm", 8),
    Component.PKRU: ("pkru", 4),
}


def signal_frame(image: Image, *, xfeatures: int | None = None, machine: Machine = "x86-64") -> bytes:
    """Return the extended state of a frame as Linux lays it out: with both magic words, on i386 behind FSAVE."""
    size = image.layout.size
    extra = 4 + (112 if machine == "i386" else 0)
    data = bytearray(image.to_bytes())
    wanted = image.layout.mask if xfeatures is None else xfeatures
    data[SOFTWARE_AT:LEGACY_SIZE] = bytes(LEGACY_SIZE - SOFTWARE_AT)
    FRAME.pack_into(data, SOFTWARE_AT, MAGIC1, size + extra, wanted, size)
    area = bytes(data) + MAGIC2.to_bytes(4, "little")
    if machine != "i386":
        return area
    header = to_fsave(image, cs=0x23, ds=0x2B)
    return header + header[4:6] + bytes(2) + area


def kvm_xsave(image: Image, *, host: int | None = None, size: int = 4096) -> bytes:
    """Return an image as KVM_GET_XSAVE gives it, with the mask of what the host has at byte 464."""
    data = bytearray(image.to_bytes().ljust(size, b"\0"))
    struct.pack_into("<Q", data, SOFTWARE_AT, image.layout.mask if host is None else host)
    return bytes(data)


def kvm_fpu(image: Image, *, mxcsr: int = 0) -> bytes:
    """Return x87 and XMM of an image as KVM_GET_FPU gives them; the kernel leaves ``mxcsr`` 0."""
    area = to_fxsave(image)
    return area[32:160] + area[:24] + area[160:416] + struct.pack("<II", mxcsr, 0)


@dataclass(frozen=True, slots=True)
class DumpedThread:
    """A thread to write to a minidump; ``exception`` is its context in the exception stream, if it raised one."""

    tid: int
    context: bytes
    exception: bytes | None = None


def windows_context(
    image: Image,
    machine: Machine = "x86-64",
    *,
    flags: int | None = None,
    compaction: int | None = None,
    gap: int = 56,
) -> bytes:
    """Return a CONTEXT with a CONTEXT_EX and an XSTATE area, or without them where the image has no room beyond SSE.

    ``flags`` and ``compaction`` replace what would be stated; ``gap`` bytes lie between CONTEXT_EX and area.
    """
    size, fxsave, flags_at = (1232, 256, 48) if machine == "x86-64" else (716, 204, 0)
    base = 0x10001F if machine == "x86-64" else 0x1003F
    extended = image.layout.mask & ~LEGACY
    context = bytearray(size)
    data = image.to_bytes()
    context[fxsave : fxsave + LEGACY_SIZE] = data[:LEGACY_SIZE] if extended else to_fxsave(image)
    if machine == "x86-64":
        context[52:56] = context[fxsave + 24 : fxsave + 28]
    else:
        context[28:136] = to_fsave(image)
    struct.pack_into("<I", context, flags_at, (base | (0x40 if extended else 0)) if flags is None else flags)
    if not extended:
        return bytes(context)
    if compaction is None:
        compaction = COMPACTED_BIT | extended if image.layout.format is Format.COMPACTED else 0
    area = struct.pack("<QQ48x", image.xstate_bv & ~LEGACY, compaction) + data[MIN_SIZE:]
    header = struct.pack("<iIiIiI", -size, size + 24 + gap + len(area), -size, size, 24 + gap, len(area))
    return bytes(context) + header + bytes(gap) + area


def xstate_config(image: Image) -> bytes:
    """Return XSTATE_CONFIG_FEATURE_MSC_INFO for an image's layout."""
    layout = image.layout
    enabled = layout.mask | (COMPACTED_BIT if layout.format is Format.COMPACTED else 0)
    numbers = [0] * 128
    for place in layout.places:
        if place.component not in LEGACY_PLACES:
            numbers[2 * place.component : 2 * place.component + 2] = (place.offset, place.size)
    return struct.pack("<IIQ128I", 528, 0, enabled, *numbers)


def minidump(
    threads: Sequence[DumpedThread], machine: Machine = "x86-64", *, config: bytes | None = None
) -> bytes:
    """Return a minidump with these threads; ``config`` is what MINIDUMP_MISC_INFO_5 says of the extended state."""
    body = bytearray()
    raised = next((thread for thread in threads if thread.exception is not None), None)
    kinds = [7, 3, *([15] if config is not None else []), *([6] if raised is not None else [])]
    start = 32 + 12 * len(kinds)

    def put(data: bytes) -> tuple[int, int]:
        body.extend(data)
        return len(data), start + len(body) - len(data)

    places = {7: put(struct.pack("<H54x", 9 if machine == "x86-64" else 0))}
    contexts = [(thread.tid, *put(thread.context)) for thread in threads]
    rows = (struct.pack("<I36xII", *context) for context in contexts)
    places[3] = put(struct.pack("<I", len(threads)) + b"".join(rows))
    if config is not None:
        places[15] = put(struct.pack("<II824x", 1364, 0) + config + bytes(4))
    if raised is not None:
        place = put(raised.exception or b"")
        places[6] = put(struct.pack("<I156xII", raised.tid, *place))
    header = struct.pack("<4sIIIIIQ", b"MDMP", 0xA793, len(kinds), 32, 0, 0, 0)
    return header + b"".join(struct.pack("<III", kind, *places[kind]) for kind in kinds) + bytes(body)


def criu_core(
    image: Image,
    *,
    xstate_bv: int | None = None,
    comm: str = "",
    compat: bool = False,
    common_magic: bool = True,
) -> bytes:
    """Return an image as CRIU's core image; what CRIU has no field for is left out. Needs protobuf."""
    entry: Any = core_entry()(mtype=1)
    area = to_fxsave(image)
    registers = entry.thread_info.fpregs
    names = ("cwd", "swd", "twd", "fop", "rip", "rdp", "mxcsr", "mxcsr_mask")
    for name, value in zip(names, struct.unpack_from("<HHHHQQII", area), strict=True):
        setattr(registers, name, value)
    registers.st_space.extend(struct.unpack("<32I", area[32:160]))
    registers.xmm_space.extend(struct.unpack("<64I", area[160:416]))
    registers.xsave.xstate_bv = image.xstate_bv if xstate_bv is None else xstate_bv
    for component, (name, width) in _CRIU_FIELDS.items():
        if component in image.layout:
            data = image.store.read_all(component)
            data = data[:8] if component == Component.PKRU else data
            count = len(data) // width
            getattr(registers.xsave, name).extend(
                struct.unpack(f"<{count}{'I' if width == 4 else 'Q'}", data)
            )
    if Component.CET_U in image.layout:
        registers.xsave.cet.cet, registers.xsave.cet.ssp = struct.unpack(
            "<QQ", image.store.read_all(Component.CET_U)
        )
    entry.thread_info.gpregs.mode = 2 if compat else 1
    entry.tc.comm = comm.encode()
    message = entry.SerializeToString()
    magic = _CRIU_MAGIC if common_magic else _CRIU_MAGIC[4:]
    return magic + struct.pack("<I", len(message)) + bytes(message)
