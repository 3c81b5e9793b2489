"""Between a VSO's buffer and the image that KVM_SET_XSAVE takes and KVM_GET_XSAVE2 gives."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from fpstate.arch.component import Component, components_in, mask_of
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Layout
from fpstate.engine.kvm.destination import check_room
from fpstate.errors import UnsupportedHere
from fpstate.image import Image
from fpstate.image.move import Move, moves
from fpstate.vso.manager import Manager
from fpstate.vso.placement import Copy
from fpstate.vso.vso import XSTATE_BV, Vso, room_for

PKRU, SSE = mask_of(Component.PKRU), mask_of(Component.SSE)
_MXCSR, _MXCSR_AND_MASK = slice(24, 28), slice(24, 32)
_INITIAL_MXCSR = (0x1F80).to_bytes(4, "little")


class Exchange:
    """Moves states between VSOs of one manager and KVM's standard-format images of ``size`` bytes.

    PKRU is in KVM's images and in no VSO: it is switched apart, as natively (``put_pkru``, ``pkru``).
    ``mask``: the components that KVM loads and saves (its supported XCR0). Raises UnsupportedHere where the manager's
    processor lays them out as another than this one does, or where ``size`` is too small for a whole state.
    """

    def __init__(self, manager: Manager, mask: int, size: int) -> None:
        self.manager = manager
        self.mask = mask
        self.layout = Layout.standard(manager.config.cpu, mask)
        if self.layout != Layout.standard(Cpu.host(), mask):
            raise UnsupportedHere(f"the layout of {manager.config.cpu.name}, which the manager has")
        check_room(self.layout, size)
        self.always = mask & PKRU | SSE
        self._pkru = self._place_of_pkru() if mask & PKRU else None
        self._blank = Image.initial(self.layout).to_bytes().ljust(size, b"\0")
        self._starts: dict[int, bytes] = {}
        self._initials: dict[int, Sequence[tuple[slice, bytes]]] = {}
        self._moves: dict[tuple[int, int, bool], Sequence[Move]] = {}

    def load(self, vso: Vso, image: bytearray) -> None:
        """Make ``image`` the VSO's state and initial in all that the VSO lacks, so that a load covers every component.

        XSTATE_BV names PKRU and SSE even where they are initial: KVM keeps what the vCPU had of PKRU otherwise
        (fpu_copy_uabi_to_guest_fpstate), and of MXCSR where the kernel restores in the standard format
        (xfeatures_mxcsr_quirk; SDM vol. 1, 13.8). Raises LayoutError where the buffer claims what it has no room for.
        """
        image[:] = self._blank
        in_use = vso.in_use
        if in_use:
            assert vso.buffer is not None
            view = vso.buffer.view
            for at, to, size in self._between(vso, in_use, out=True):
                image[to : to + size] = view[at : at + size]
        image[XSTATE_BV] = (in_use | self.always).to_bytes(8, "little")

    def put_pkru(self, image: bytearray, value: int) -> None:
        """Let a guest find this PKRU, where guests have one."""
        if self._pkru:
            image[self._pkru] = value.to_bytes(4, "little")

    def pkru(self, image: bytearray) -> int:
        """Return the PKRU that a guest left; 0 where it is initial, and where guests have none."""
        if self._pkru is None or not image[XSTATE_BV.start + Component.PKRU // 8] >> Component.PKRU % 8 & 1:
            return 0
        return int.from_bytes(image[self._pkru], "little")

    def _place_of_pkru(self) -> slice:
        start = self.layout.place(Component.PKRU).offset
        return slice(start, start + 4)

    def in_use(self, image: bytearray) -> int:
        """Return the components of an image whose values are not initial, without PKRU.

        KVM names more: components that a processor or a kernel takes for in use although they are initial. It may
        also leave out SSE where MXCSR alone is not initial (kernels that save by XSAVE; SDM vol. 1, 13.6).
        """
        named: int = struct.unpack_from("<Q", image, XSTATE_BV.start)[0] & self.mask & ~PKRU
        if image[_MXCSR] != _INITIAL_MXCSR:
            named |= SSE
        for component in components_in(named):
            for piece, initial in self._initial(component):
                if image[piece] != initial:
                    break
            else:
                named &= ~(1 << component)
        return named

    def _start(self, vso: Vso) -> bytes:
        """Return an image of the VSO's layout with nothing in use."""
        found = self._starts.get(vso.xfeatures)
        if found is None:
            found = self._starts[vso.xfeatures] = Image.initial(vso.layout).to_bytes()
        return found

    def _initial(self, component: int) -> Sequence[tuple[slice, bytes]]:
        """Return where an image has a component, and what it holds initially."""
        found = self._initials.get(component)
        if found is None:
            whole = [slice(at, at + size) for at, _, size in moves(self.layout, self.layout, 1 << component)]
            registers = [_MXCSR if piece == _MXCSR_AND_MASK else piece for piece in whole]
            found = self._initials[component] = [(piece, self._blank[piece]) for piece in registers]
        return found

    def save(self, vso: Vso, image: bytearray) -> bool:
        """Keep an image as the VSO's state: in its buffer where that has room, else by its manager.

        Returns whether the buffer has room that the state does not use. Raises what ``Manager.store`` raises:
        PermissionDenied for a component that the VSO may not use.
        """
        in_use = self.in_use(image)
        if in_use & ~vso.xfeatures:
            self.manager.store(vso, in_use, self.layout, _copier(image))
        elif vso.buffer:
            view = vso.buffer.view
            view[:] = self._start(vso)
            view[XSTATE_BV] = in_use.to_bytes(8, "little")
            for at, to, size in self._between(vso, in_use, out=False):
                view[to : to + size] = image[at : at + size]
        return room_for(in_use) != vso.xfeatures

    def _between(self, vso: Vso, in_use: int, *, out: bool) -> Sequence[Move]:
        key = (vso.xfeatures, in_use, out)
        found = self._moves.get(key)
        if found is None:
            source, target = (vso.layout, self.layout) if out else (self.layout, vso.layout)
            found = self._moves[key] = moves(source, target, in_use)
        return found


def _copier(image: bytearray) -> Copy:
    def copy(destination: memoryview, pieces: Sequence[Move]) -> None:
        for at, to, size in pieces:
            destination[to : to + size] = image[at : at + size]

    return copy
