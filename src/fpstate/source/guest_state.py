"""A vCPU's state that is whole: the image, and everything without which its bytes cannot be read or loaded.

``KVM_GET_XSAVE`` alone leaves out XCR0, IA32_XSS, IA32_XFD and IA32_XFD_ERR, and states offsets that only the
producer's CPUID leaf 0DH explains. What is kept here can be decoded on any machine and loaded into any vCPU
that has room for it. Sources: SDM Vol. 1, 13.3 (XCR0, IA32_XSS) and 13.14 (XFD); KVM API 4.22 and 4.42 to 4.45.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Self

from fpstate.arch.component import (
    COMPACTED_BIT,
    LEGACY,
    Component,
    component_name,
    components_in,
    mask_of,
    mask_text,
    xcr0_problem,
)
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Format, Layout
from fpstate.errors import IncompleteState, LayoutError
from fpstate.image.finding import Finding, Severity
from fpstate.image.image import Image
from fpstate.image.subject import MXCSR_AT, RESERVED_AT, XCOMP_BV_AT, XSTATE_BV_AT

PKRU_OS_DEFAULT: Final = 0x5555_5554
"""What Linux gives a new program: key 0 open, all others without access (``init_pkru_value``)."""
_MXCSR_CHECKED: Final = LEGACY | mask_of(Component.AVX)
"""Any of these in XSTATE_BV, and the kernel looks at MXCSR (``copy_uabi_to_xstate``)."""


class PkruPolicy(enum.Enum):
    """What PKRU becomes where the image does not state it (XSTATE_BV[9] is 0) and the vCPU has it.

    ``INITIAL`` is what the architecture says: absent is 0, every key open (SDM Vol. 1, 13.5.7).
    ``OS_DEFAULT`` writes 0x55555554. ``KEEP`` writes nothing: KVM then leaves the vCPU's own value, unlike that
    of any other absent component (``fpu_copy_uabi_to_guest_fpstate``).
    """

    INITIAL = "initial"
    KEEP = "keep"
    OS_DEFAULT = "os-default"

    @property
    def value_written(self) -> int | None:
        """The value that a load writes, None where it writes none."""
        return _WRITTEN[self]


_WRITTEN: Final = {PkruPolicy.INITIAL: 0, PkruPolicy.KEEP: None, PkruPolicy.OS_DEFAULT: PKRU_OS_DEFAULT}


@dataclass(frozen=True)
class GuestState:
    """The image of one vCPU with XCR0, IA32_XSS, IA32_XFD, IA32_XFD_ERR, its producer and a PKRU policy.

    ``image`` is kept as a read-only copy, in whichever format it came; ``cpu`` is the processor that its layout
    is of. Masks are component bitmaps. Nothing is checked on the way in, so that a flawed state can be looked at:
    ``findings`` lists what is wrong, ``check`` raises. States are equal when all fields are, images by their
    registers.
    """

    image: Image
    xcr0: int
    cpu: Cpu
    xss: int = 0
    xfd: int = 0
    xfd_err: int = 0
    pkru: PkruPolicy = PkruPolicy.INITIAL

    def __post_init__(self) -> None:
        if not self.image.readonly:
            copy = Image(self.image.to_bytes(), self.image.layout, self.image.layout_source)
            object.__setattr__(self, "image", copy)

    @classmethod
    def initial(cls, cpu: Cpu, *, xcr0: int | None = None) -> Self:
        """Return the state of a vCPU behind a reset, every component initial.

        ``xcr0`` None stands for everything that the processor has: what its firmware and kernel would enable.
        """
        xcr0 = cpu.user_mask if xcr0 is None else xcr0
        return cls(Image.initial(Layout.standard(cpu, xcr0 & cpu.user_mask | LEGACY)), xcr0, cpu)

    @property
    def enabled(self) -> int:
        """What XRSTORS could load in this vCPU: XCR0|IA32_XSS."""
        return self.xcr0 | self.xss

    def findings(self) -> list[Finding]:
        """Return everything for which this state is not whole, in the order of the ids; see docs/guest-state.md."""
        return [finding for condition in _CONDITIONS for finding in condition(self)]

    def check(self) -> None:
        """Raise IncompleteState, which carries the findings, where the state is not whole."""
        if found := self.findings():
            raise IncompleteState(
                "the state is not whole: " + "; ".join(f"{each.id} {each.message}" for each in found),
                tuple(found),
                help=next((each.help for each in found if each.help), None),
            )


def with_pkru(image: Image, value: int) -> Image:
    """State PKRU in a writable image whose layout has it, also where it is 0; return the image."""
    image.store.activate(Component.PKRU)
    image.store.write(Component.PKRU, 0, value.to_bytes(4, "little"))
    return image


def _finding(
    id: str, message: str, source: str, *, offset: int | None = None, found: int | None = None,
    expected: int | None = None, component: int | None = None, register: str | None = None, help: str = "",
) -> Finding:  # fmt: skip
    return Finding(
        *(id, Severity.ERROR, message, component, register, offset, found, expected),
        source=source,
        help=help,
    )


def _xcr0(state: GuestState) -> Iterator[Finding]:
    if problem := xcr0_problem(state.xcr0, state.cpu.xcr0):
        yield _finding(
            "GS001",
            f"XCR0 {state.xcr0:#x} cannot be set: {problem}",
            "SDM Vol. 1, 13.3; XSETBV in Vol. 2",
            found=state.xcr0,
            register="xcr0",
        )


def _xss(state: GuestState) -> Iterator[Finding]:
    if excess := state.xss & ~state.cpu.xss:
        yield _finding(
            "GS002",
            f"IA32_XSS {state.xss:#x} has {mask_text(excess)}, {state.cpu.name} has {state.cpu.xss:#x}",
            "SDM Vol. 1, 13.3",
            found=state.xss,
            expected=state.xss & state.cpu.xss,
            register="xss",
        )


def _header(state: GuestState) -> Iterator[Finding]:
    image = state.image
    if image.xcomp_bv != image.layout.xcomp_bv:
        yield _finding(
            "GS003",
            f"XCOMP_BV {image.xcomp_bv:#x} is not that of the layout, {image.layout.xcomp_bv:#x}",
            "SDM Vol. 1, 13.4.2",
            offset=XCOMP_BV_AT,
            found=image.xcomp_bv,
            expected=image.layout.xcomp_bv,
        )
    if image.xstate_bv & ~image.layout.mask:
        yield _finding(
            "GS003",
            f"XSTATE_BV {image.xstate_bv:#x} has {mask_text(image.xstate_bv & ~image.layout.mask)},"
            " for which the layout has no room",
            "SDM Vol. 1, 13.4.2",
            offset=XSTATE_BV_AT,
            found=image.xstate_bv,
            expected=image.xstate_bv & image.layout.mask,
        )
    if any(image.reserved):
        first = next(index for index, byte in enumerate(image.reserved) if byte)
        yield _finding(
            "GS003",
            f"reserved byte {16 + first} of the header is {image.reserved[first]:#04x}",
            "SDM Vol. 1, 13.4.2",
            offset=RESERVED_AT + first,
            found=image.reserved[first],
            expected=0,
        )


def _not_enabled(state: GuestState) -> Iterator[Finding]:
    supervisor = sum(1 << number for number in components_in(state.cpu.xss))
    if excess := state.image.xstate_bv & ~state.xcr0 & ~supervisor & ~LEGACY:
        yield _finding(
            "GS004",
            f"XSTATE_BV {state.image.xstate_bv:#x} has {mask_text(excess)}, XCR0 is {state.xcr0:#x}",
            "SDM Vol. 1, 13.8",
            offset=XSTATE_BV_AT,
            found=state.image.xstate_bv,
            expected=state.image.xstate_bv & ~excess,
            help="ship the XCR0 that the state was saved under (KVM_GET_XCRS)",
        )


def _supervisor_without_xss(state: GuestState) -> Iterator[Finding]:
    """An image that refers to supervisor components makes the guest's XRSTORS fault where IA32_XSS lacks them."""
    image = state.image
    supervisor = state.cpu.xss & ~COMPACTED_BIT
    places = [(XSTATE_BV_AT, "XSTATE_BV", image.xstate_bv), (XCOMP_BV_AT, "XCOMP_BV", image.xcomp_bv)]
    for offset, name, value in places[: 2 if image.layout.format is Format.COMPACTED else 1]:
        if lacking := value & supervisor & ~state.xss:
            yield _finding(
                "GS005",
                f"{name} {value:#x} has the supervisor components {mask_text(lacking)}, IA32_XSS is {state.xss:#x}",
                "SDM Vol. 1, 13.12",
                offset=offset,
                found=value,
                expected=value & ~lacking,
                help="save IA32_XSS (MSR 0DA0H) with the image: without it the guest's XRSTORS raises #GP",
            )


def _xfd(state: GuestState) -> Iterator[Finding]:
    capable = sum(1 << number for number, place in state.cpu.geometry.items() if place.xfd)
    for register, value in (("xfd", state.xfd), ("xfd_err", state.xfd_err)):
        allowed = state.xcr0 & capable
        if excess := value & ~allowed:
            yield _finding(
                "GS006",
                f"IA32_{register.upper()} {value:#x} has {mask_text(excess)}; XCR0 and CPUID allow {allowed:#x}",
                "SDM Vol. 1, 13.14",
                found=value,
                expected=value & allowed,
                register=register,
            )
    for component in components_in(state.xfd & state.image.xstate_bv):
        yield _finding(
            "GS007",
            f"IA32_XFD holds {component_name(component)} back, and XSTATE_BV states it",
            "SDM Vol. 1, 13.14; Linux fpu_update_guest_xfd",
            offset=XSTATE_BV_AT,
            found=state.image.xstate_bv,
            expected=state.image.xstate_bv & ~state.xfd,
            component=component,
            help="XFD[i]=1 implies XSTATE_BV[i]=0: recent kernels drop the component, older ones were hit by a fault",
        )


def _mxcsr(state: GuestState) -> Iterator[Finding]:
    mxcsr = int.from_bytes(state.image.store.view[MXCSR_AT : MXCSR_AT + 4], "little")
    excess = mxcsr & ~state.cpu.mxcsr_mask
    if excess and state.image.xstate_bv & _MXCSR_CHECKED:
        yield _finding(
            "GS008",
            f"MXCSR {mxcsr:#x} has reserved bits {excess:#x}, the mask is {state.cpu.mxcsr_mask:#x}",
            "SDM Vol. 1, 11.6.6",
            offset=MXCSR_AT,
            found=mxcsr,
            expected=mxcsr & state.cpu.mxcsr_mask,
            component=Component.SSE,
            register="mxcsr",
        )


def _layout(state: GuestState) -> Iterator[Finding]:
    """Each place must be that of the producer's leaf 0DH, or one of the two is another processor's."""
    image = state.image
    try:
        kind = Layout.standard if image.layout.format is Format.STANDARD else Layout.compacted
        expected = kind(state.cpu, image.layout.mask)
    except LayoutError as error:
        yield _finding("GS009", f"the layout is not {state.cpu.name}'s: {error}", "CPUID leaf 0DH")
        return
    for mine, right in zip(image.layout.places, expected.places, strict=True):
        if mine != right:
            yield _finding(
                "GS009",
                f"{component_name(mine.component)} lies at {mine.offset} with {mine.size} bytes; leaf 0DH of"
                f" {state.cpu.name} says {right.offset} with {right.size}",
                "CPUID leaf 0DH",
                offset=mine.offset,
                found=mine.offset,
                expected=right.offset,
                component=mine.component,
            )


_CONDITIONS: Final[tuple[Callable[[GuestState], Iterator[Finding]], ...]] = (
    *(_xcr0, _xss, _header, _not_enabled, _supervisor_without_xss, _xfd, _mxcsr, _layout),
)
