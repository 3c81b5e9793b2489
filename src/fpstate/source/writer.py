"""What the writers of cores do to the state, and how it shows.

gdb's ``gcore`` makes the register set anew from what gdb knows: XSTATE_BV is all of XCR0, MXCSR_MASK is 0
(``i387_collect_xsave``, gdb/i387-tdep.c). Before release 14 it read and wrote every state at Intel's
offsets; on an AMD processor what it wrote for AVX-512 and PKRU is other registers' bytes, or none. No release knows
tiles: XCR0 comes without AMX and TILECFG and TILEDATA are left out, in notes of the size that the kernel's have
(releases 16.3 and 18.1) or of the size of what is left (13.1).
"""

from __future__ import annotations

from typing import Final

from fpstate.arch.component import AMX, COMPONENTS, LEGACY_PLACES, Component, components_in
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Format, Layout
from fpstate.errors import LayoutError
from fpstate.image.finding import Finding, Severity
from fpstate.source.inference import disputed, infer, is_intel

_MXCSR_MASK: Final = slice(28, 32)
_XSTATE_BV: Final = slice(512, 520)
_NEVER_AMD: Final = 1 << 21 | 1 << 22 | 1 << 27 | 1 << 29 | 1 << 31
"""CPUID.1:EDX bits DS, ACPI, SS, TM and PBE: none of 247 recorded AMD processors sets any, 445 Intel ones do."""
_SOURCE: Final = "gdb/i387-tdep.c, i387_collect_xsave"
_NAMES: Final = {
    Component.OPMASK: "k0-k7",
    Component.ZMM_HI256: "the upper halves of zmm0-zmm15",
    Component.HI16_ZMM: "zmm16-zmm31",
    Component.TILECFG: "tilecfg",
    Component.TILEDATA: "tmm0-tmm7",
}
_TILES_SIZE: Final = 8192
"""Bytes of TILEDATA; all that there is besides, in a signal frame or in a register set, has fewer."""


def by_gdb(data: bytes, xcr0: int, xstate_bv: int) -> bool:
    """Tell whether a register set is of gdb's making; no processor and no kernel leaves these two values."""
    return xcr0 != 0 and xstate_bv == xcr0 and not any(data[_MXCSR_MASK])


def damaged(xcr0: int, size: int, hwcap: int | None, cpu: Cpu | None) -> int:
    """Return the components whose bytes may be others', in a register set that gdb wrote; usually none.

    That is where gdb would have used Intel's places for an AMD processor. AT_HWCAP can rule an AMD out, and so
    can ``cpu``, whoever names it; what remains cannot be told apart, and is not taken for the truth.
    """
    try:
        intel = intel_layout(xcr0, size)
    except LayoutError:
        return 0
    if cpu is not None:
        try:
            if is_intel(Layout.standard(cpu, xcr0)):
                return 0
        except LayoutError:
            return 0
    elif hwcap is not None and hwcap & _NEVER_AMD:
        return 0
    return disputed(xcr0) & intel.mask


def intel_layout(xcr0: int, size: int) -> Layout:
    """Return the layout of gdb before 14 for a register set of ``size`` bytes; raises LayoutError for others."""
    layout = infer(xcr0, size)
    if not is_intel(layout):
        raise LayoutError(f"{size} bytes for XCR0 {xcr0:#x} are not laid out Intel's way")
    return layout


def leaves_tiles_out(xcr0: int, size: int, frame: int | None, enabled: int) -> bool:
    """Tell whether a register set that gdb wrote is of a processor with AMX, of which it then says nothing.

    That shows in the set's size, and in ``frame``, which is AT_MINSIGSTKSZ: a signal frame with room for all that
    the kernel enabled. Where that is not known, ``enabled`` is what somebody says of the processor. False where
    nothing tells.
    """
    if xcr0 & AMX:
        return False
    if padding(xcr0, size):
        return True
    if frame is not None:
        return frame > _TILES_SIZE
    return enabled & AMX == AMX


def padding(xcr0: int, size: int) -> int:
    """Return the components for which a register set that gdb wrote has room, and that its XCR0 leaves out."""
    return AMX if not xcr0 & AMX and size > _TILES_SIZE else 0


def without(data: bytes, layout: Layout, components: int) -> tuple[bytes, Layout]:
    """Return a register set and its layout with these components left out, so that nobody reads them."""
    places = [place for place in layout.places if not components >> place.component & 1]
    xstate_bv = int.from_bytes(data[_XSTATE_BV], "little") & ~components
    kept = data[: _XSTATE_BV.start] + xstate_bv.to_bytes(8, "little") + data[_XSTATE_BV.stop :]
    return kept, Layout.from_places(Format.STANDARD, places, size=layout.size)


def written_by_gdb() -> Finding:
    """Say that gdb made the register set."""
    return Finding(
        "SRC001",
        Severity.NOTE,
        "written by gdb: XSTATE_BV names all of XCR0, and MXCSR_MASK is 0, whatever the processor had",
        source=_SOURCE,
    )


def lost(components: int) -> list[Finding]:
    """Say which registers a gdb before 14 may have lost, component by component."""
    return [
        Finding(
            "SRC002",
            Severity.WARNING,
            f"{_NAMES.get(Component(number), COMPONENTS[number].title)}: left out, since gdb before 14 wrote Intel's"
            " offsets on every processor and lost these registers on AMD's",
            component=number,
            register=_NAMES.get(Component(number), COMPONENTS[number].fields[0].name),
            source=_SOURCE,
            help="write the core with gdb 14 or newer; if an Intel processor made it, name that with --cpu",
        )
        for number in components_in(components)
        if number not in LEGACY_PLACES
    ]


def tiles_left_out() -> list[Finding]:
    """Say that TILECFG and the tiles are not known."""
    return [
        Finding(
            "SRC017",
            Severity.WARNING,
            f"{_NAMES[component]}: not known, since the processor has AMX, and gdb stores nothing of it",
            component=component,
            register=_NAMES[component],
            source=_SOURCE,
            help="a core that Linux writes has it (kill -QUIT); of a live process show reads it",
        )
        for component in (Component.TILECFG, Component.TILEDATA)
    ]


def no_state() -> Finding:
    """Say that a core has nothing about a thread's floating-point state."""
    return Finding(
        "SRC003",
        Severity.WARNING,
        "the core has no floating-point state for this thread: its registers are not known",
        help="Linux with lazy FPU switching left the notes of threads out that had not used the FPU",
    )


def legacy_only(size: int) -> Finding:
    """Say that the core has no more than the legacy state of a thread."""
    held = "x87 and SSE (FXSAVE)" if size == 512 else "x87 (FSAVE)"
    return Finding(
        "SRC004",
        Severity.NOTE,
        f"the core holds {held} of this thread alone: what else it used is not known",
    )
