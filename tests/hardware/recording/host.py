"""The machine whose answers are recorded: its components and their places, what it permits, and its machine.json."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from fpstate.arch import Component, Cpu, Layout, mask_of
from fpstate.arch.component import AMX, COMPACTED_BIT, LEGACY, LEGACY_PLACES, components_in
from fpstate.image.consumer import INIT_PKRU

NONE, USED, UNUSED = 0, 1, 2
"""Permission for TILEDATA as headers state it: not asked for; tiles were used; asked for, and not used yet."""
_LISTED = (0, 1, 2, 5, 6, 7, 9, 17, 18)
"""The components that the files tell of."""
_WITH_SUBLEAVES = {0x7: range(3), 0xD: range(64), 0x1D: range(2), 0x1E: range(1)}
_WITHOUT = (0x1, 0x6, 0x80000001, 0x80000008)
_BRAND = (0x80000002, 0x80000003, 0x80000004)
_REGISTERS = ("eax", "ebx", "ecx", "edx")


@dataclass(frozen=True)
class Host:
    """A processor under Linux as the recorder sees it. ``enabled`` is XCR0; sizes are in bytes."""

    cpu: Cpu
    enabled: int

    @classmethod
    def here(cls) -> Host:
        """This machine; raises UnsupportedHere where fpstate's core or XSAVE is missing."""
        cpu = Cpu.host()
        return cls(cpu, cpu.enabled_xcr0 or LEGACY)

    @property
    def xcr0(self) -> int:
        """Those enabled components that the files tell of."""
        return self.enabled & mask_of(*_LISTED)

    @cached_property
    def standard(self) -> Layout:
        """The standard layout of all that is enabled and known."""
        return Layout.standard(self.cpu, self.cpu.user_mask & self.enabled | LEGACY)

    @cached_property
    def size(self) -> int:
        """Of a standard image, up to a multiple of 64."""
        return -(-self.standard.size // 64) * 64

    @property
    def compaction(self) -> bool:
        """Whether there is a compacted format."""
        return self.cpu.has("XSAVEC")

    @property
    def has_pkru(self) -> bool:
        """Whether there are RDPKRU and WRPKRU."""
        return bool(self.xcr0 >> Component.PKRU & 1) and self.cpu.has("OSPKE")

    @property
    def has_tiles(self) -> bool:
        """Whether tiles can be had by permission."""
        return self.xcr0 & AMX == AMX and self.cpu.has("XFD")

    @property
    def permissions(self) -> tuple[int, ...]:
        """The states of permission that a process can be in."""
        return (USED, NONE, UNUSED) if self.has_tiles else (NONE,)

    def xfeatures(self, permission: int) -> int:
        """The components in a task's signal frames."""
        return self.standard.mask if permission == USED else self.standard.mask & ~mask_of(Component.TILEDATA)

    def layout(self, image: bytes | bytearray, at: int = 0) -> Layout:
        """The layout of an image by its own header; bits that no component here has are left out."""
        room = int.from_bytes(image[at + 520 : at + 528], "little")
        return _compacted(self.cpu, room & self.standard.mask) if room & COMPACTED_BIT else self.standard


@cache
def _compacted(cpu: Cpu, mask: int) -> Layout:
    return Layout.compacted(cpu, mask)


def place_of(layout: Layout, component: int) -> tuple[int, int] | None:
    """Where a component is, and its size; None where the layout has no room for it."""
    if component == Component.X87:
        return 32, 128  # ST0 to ST7; what controls them is told apart
    if component == Component.SSE:
        return LEGACY_PLACES[component]
    return (layout.offset(component), layout.size_of(component)) if component in layout else None


def describe(host: Host, *, pointers: dict[str, int], kvm: str) -> dict[str, Any]:
    """What machine.json says. ``pointers``: measured bits of x87 pointers, see ``pointer_widths``."""
    cpu = host.cpu
    described = {
        "processor": {
            "vendor": cpu.vendor,
            "family": cpu.family,
            "model": cpu.model,
            "stepping": cpu.stepping,
            "brand": _brand(),
            **_leaves(),
        },
        "kernel": _kernel(guest=cpu.has("HYPERVISOR")),
        "kvm": kvm,
        "xcr0": cpu.enabled_xcr0,
        "xss": cpu.xss,
        "mxcsr_mask": cpu.mxcsr_mask,
        "standard_size": host.standard.size,
        "compacted_size": Layout.compacted(cpu, host.standard.mask).size if host.compaction else 0,
        "linear_address_bits": _leaf(0x80000008, 0)[0] >> 8 & 0xFF,
        "pointer_bits": pointers,
        "standard_places": {
            str(n): place_of(host.standard, n) for n in components_in(host.standard.mask & ~3)
        },
        "compacted_alignment_64": [
            n for n in components_in(host.standard.mask & ~3) if cpu.geometry[n].aligned
        ],
        "signal_frame": {
            name: {
                "xfeatures": host.xfeatures(permission),
                "xstate_size": Layout.standard(cpu, host.xfeatures(permission)).size,
            }
            for permission, name in ((NONE, "without TILEDATA"), (USED, "once tiles were used"))
            if permission in host.permissions
        },
    }
    if host.has_pkru:
        described["default_pkru"] = INIT_PKRU
    return described


def _kernel(*, guest: bool) -> str:
    version = platform.release().split("-")[0]
    return f"{platform.system()} {version}, {platform.machine()}{', itself a guest' if guest else ''}"


def _leaf(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
    from fpstate._core import cpuid

    return cpuid(leaf, subleaf)


def _brand() -> str:
    if _leaf(1 << 31, 0)[0] < _BRAND[-1]:
        return ""
    words = [value for leaf in _BRAND for value in _leaf(leaf, 0)]
    return b"".join(value.to_bytes(4, "little") for value in words).split(b"\0")[0].decode("latin-1").strip()


def _leaves() -> dict[str, Any]:
    def known(leaf: int) -> bool:
        return leaf <= _leaf(leaf & 1 << 31, 0)[0]

    found: dict[str, Any] = {}
    for leaf in filter(known, _WITHOUT):
        values = zip(_REGISTERS, _leaf(leaf, 0), strict=True)
        found[f"leaf_{leaf:x}"] = {name: f"{value:08x}" for name, value in values}
    for leaf, subleaves in _WITH_SUBLEAVES.items():
        if known(leaf):
            tables = {f"{n:x}": _leaf(leaf, n) for n in subleaves}
            found[f"leaf_{leaf:x}"] = {
                n: [f"{value:08x}" for value in values]
                for n, values in tables.items()
                if n == "0" or any(values)
            }
    return found
