"""The registers of a modelled processor, component by component, and what it tracks about them.

Sources: SDM Vol. 1, 13.6 (XINUSE, XMODIFIED, XRSTOR_INFO and initial configurations), 8.1 (x87).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from fpstate.arch.component import LEGACY_PLACES, Component
from fpstate.arch.cpu import Cpu
from fpstate.engine.model.behaviour import Behaviour, Pointers
from fpstate.engine.model.contents import pending, without_pointers
from fpstate.image.control import MXCSR_INIT
from fpstate.image.initial import initial_bytes

X87: Final = int(Component.X87)
EVERYTHING: Final = (1 << 63) - 1


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
    ``in_use`` is XINUSE, without the bit that an MXCSR other than 1F80H adds. ``modified`` is XMODIFIED.
    """

    tracks_values: bool
    hides_pointers: bool
    initial: Mapping[int, bytes]
    values: dict[int, bytes]
    mxcsr: int = MXCSR_INIT
    in_use: int = 0
    modified: int = EVERYTHING
    info: RestoreInfo | None = None
    selectors: tuple[int, int] = field(default=(0, 0))

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
            *(self.in_use, self.modified, self.info, self.selectors),
        )

    def put(self, component: int, value: bytes) -> None:
        """Change a component's registers as a restore does; ``value`` has its size and legal contents."""
        bit = 1 << component
        self.values[component] = value
        self.modified |= bit
        if self.tracks_values and self.is_initial(component, value):
            self.in_use &= ~bit
        else:
            self.in_use |= bit

    def write(self, component: int, value: bytes) -> None:
        """Change registers as an instruction with a result does: they are in use, whatever the value is."""
        self.values[component] = value
        self.modified |= 1 << component
        self.in_use |= 1 << component

    def initialise(self, component: int) -> None:
        """Put a component into its initial configuration."""
        self.values[component] = self.initial[component]
        self.in_use &= ~(1 << component)
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
