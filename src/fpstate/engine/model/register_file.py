"""The registers of a modelled processor, component by component, and what it tracks about them.

Sources: SDM Vol. 1, 13.6 (XINUSE, XMODIFIED, XRSTOR_INFO and initial configurations), 8.1 (x87).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from fpstate.arch.component import LEGACY_PLACES, Component, mask_of
from fpstate.arch.cpu import Cpu
from fpstate.engine.model.behaviour import Behaviour, Pointers
from fpstate.engine.model.contents import pending, without_pointers
from fpstate.image.control import MXCSR_INIT
from fpstate.image.initial import initial_bytes

X87: Final = int(Component.X87)
EVERYTHING: Final = (1 << 63) - 1
REACHED: Final[Mapping[int, int]] = MappingProxyType(
    {Component.SSE: 128, Component.AVX: 128, Component.ZMM_HI256: 256, Component.HI16_ZMM: 0}
)
"""Bytes of these components that exist outside 64-bit mode: registers 0 to 7 (SDM Vol. 1, 13.5)."""
_PARTED: Final = mask_of(*REACHED)
_UPPER_ALONE: Final = mask_of(Component.HI16_ZMM)
_BY_VALUE: Final = mask_of(Component.TILECFG)
"""Its bit in XINUSE goes by value on every processor that has it."""


@dataclass(frozen=True, slots=True)
class RestoreInfo:
    """XRSTOR_INFO: where and how the last XRSTOR or XRSTORS loaded (SDM Vol. 1, 13.6)."""

    cpl: int
    non_root: bool
    address: int
    xcomp_bv: int


@dataclass(slots=True)
class RegisterFile:
    """Every component's bytes as a save would write them, MXCSR apart, and the tracking bitmaps.

    ``values`` and ``initial`` go by component number; their bytes are immutable, so that a copy is cheap.
    ``hides_pointers``: FOP, FIP and FDP are no state while no exception is pending (``Pointers.ZEROED``).
    XINUSE, without the bit that an MXCSR other than 1F80H adds, is ``lower`` or ``upper``: ``upper`` tells of the
    registers that exist in 64-bit mode alone, ``lower`` of all others. So is XMODIFIED ``modified`` or
    ``modified_upper``: a save outside 64-bit mode leaves a component out of which the upper registers alone were
    modified (measured with VEX moves to register 13 on an Intel processor).
    """

    tracks_values: bool
    hides_pointers: bool
    initial: Mapping[int, bytes]
    values: dict[int, bytes]
    mxcsr: int = MXCSR_INIT
    lower: int = 0
    upper: int = 0
    modified: int = EVERYTHING
    modified_upper: int = EVERYTHING
    info: RestoreInfo | None = None
    selectors: tuple[int, int] = field(default=(0, 0))

    @property
    def in_use(self) -> int:
        """XINUSE of all registers, those that exist in 64-bit mode alone too."""
        return self.lower | self.upper

    @in_use.setter
    def in_use(self, mask: int) -> None:
        came = mask & ~self.in_use
        self.lower = (self.lower | came) & mask & ~_UPPER_ALONE
        self.upper = (self.upper | came & _PARTED) & mask

    @classmethod
    def for_cpu(cls, cpu: Cpu, behaviour: Behaviour) -> RegisterFile:
        """Return the registers of a processor, all initial."""
        hides_pointers = behaviour.pointers is Pointers.ZEROED
        sizes = {number: size for number, (_, size) in LEGACY_PLACES.items()}
        sizes |= {number: geometry.size for number, geometry in cpu.geometry.items()}
        initial = {int(number): initial_bytes(number, 0, size) for number, size in sizes.items()}
        return cls(behaviour.tracks_values, hides_pointers, initial, dict(initial))

    def copy(self) -> RegisterFile:
        """Return a register file of its own with the same contents and tracking."""
        return RegisterFile(
            *(self.tracks_values, self.hides_pointers, self.initial, dict(self.values), self.mxcsr),
            *(self.lower, self.upper, self.modified, self.modified_upper),
            *(self.info, self.selectors),
        )

    def put(self, component: int, value: bytes) -> None:
        """Change a component's registers as a restore does; ``value`` has its size and legal contents."""
        bit = 1 << component
        self.values[component] = value
        self.modified |= bit
        self.modified_upper |= bit
        if (self.tracks_values or bit & _BY_VALUE) and self.is_initial(component, value):
            self.lower &= ~bit
            self.upper &= ~bit
            return
        self.lower |= bit & ~_UPPER_ALONE
        self.upper |= bit & _PARTED

    def put_lower(self, component: int, value: bytes) -> None:
        """Change a component as a restore outside 64-bit mode does; the upper part of ``value`` is what was there."""
        if self.tracks_values:
            self.put(component, value)
            return
        self.values[component] = value
        self.modified |= 1 << component
        self.lower |= 1 << component & ~_UPPER_ALONE

    def write(self, component: int, value: bytes, *, upper: bool = False) -> None:
        """Change registers as an instruction with a result does: they are in use, whatever the value is.

        ``upper``: the register exists in 64-bit mode alone.
        """
        bit = 1 << component
        self.values[component] = value
        if upper:
            self.upper |= bit
            self.modified_upper |= bit
        else:
            self.lower |= bit
            self.modified |= bit

    def clear(self, component: int, offset: int, size: int) -> None:
        """Zero a part of the registers that an instruction does not name; what is in use stays so, but by value."""
        value = self.values[component]
        if not any(value[offset : offset + size]):
            return
        value = value[:offset] + bytes(size) + value[offset + size :]
        if self.tracks_values:
            self.put(component, value)
        else:
            self.values[component] = value
            reached = offset < REACHED.get(component, len(value))
            self.modified |= reached << component
            self.modified_upper |= (not reached) << component

    def initialise(self, component: int) -> None:
        """Put a component into its initial configuration."""
        keep = ~(1 << component)
        self.values[component] = self.initial[component]
        self.lower &= keep
        self.upper &= keep
        self.modified |= ~keep
        self.modified_upper |= ~keep

    def initialise_lower(self, component: int) -> None:
        """Put what exists outside 64-bit mode of a component into its initial configuration."""
        value, initial = self.values[component], self.initial[component]
        reaches = REACHED.get(component, len(initial))
        if value[reaches:] == initial[reaches:] and (self.tracks_values or not self.upper >> component & 1):
            self.initialise(component)
        elif self.tracks_values and reaches:
            self.put(component, initial[:reaches] + value[reaches:])
        elif reaches:
            self.values[component] = initial[:reaches] + value[reaches:]
            self.lower &= ~(1 << component)
            self.modified |= 1 << component

    def is_initial(self, component: int, value: bytes) -> bool:
        """Tell whether these are a component's initial registers; x87 pointers that no save shows do not count."""
        initial = self.initial[component]
        if component == X87 and self.hides_pointers and not pending(value):
            value = without_pointers(value)
        return value == initial

    def not_initial(self) -> int:
        """Return the bitmap of the components whose registers are not in their initial configuration."""
        return sum(1 << number for number, value in self.values.items() if not self.is_initial(number, value))
