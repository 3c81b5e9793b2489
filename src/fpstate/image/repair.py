"""The steps by which an image becomes one that its consumer takes, each with a record of what it changed."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Literal

from fpstate.arch.component import (
    COMPACTED_BIT,
    MIN_SIZE,
    Component,
    component_name,
    components_in,
    mask_of,
)
from fpstate.arch.layout import Format, Layout
from fpstate.errors import ImageError
from fpstate.image.consumer import WHOLE_IMAGE, Consumer, Target
from fpstate.image.control import MXCSR_INIT
from fpstate.image.convert import convert
from fpstate.image.image import Image
from fpstate.image.lint import unstated_data
from fpstate.image.rules import check
from fpstate.image.subject import (
    FRAME,
    MAGIC1,
    MAGIC2,
    MXCSR_AT,
    RESERVED_AT,
    SOFTWARE_AT,
    XCOMP_BV_AT,
    XSTATE_BV_AT,
    Subject,
)
from fpstate.image.tile import restore_defect

Leftovers = Literal["auto", "state", "clear", "keep"]
"""What to do with data in components that are not stated: state them, clear the bytes, or keep all as it is.

``auto`` states them in standard images that somebody built, and clears the bytes in compacted images and
signal frames, where processor and kernel leave what was there before.
"""

_SSE: Final = mask_of(Component.SSE)
_AVX: Final = mask_of(Component.AVX)
_TILECFG: Final = mask_of(Component.TILECFG)
_SOFTWARE: Final = slice(SOFTWARE_AT, 512)


@dataclass(frozen=True, slots=True)
class Repair:
    """One change: ``rule`` is what was broken, ``offset`` where, ``before`` and ``after`` what was written."""

    rule: str
    message: str
    offset: int | None = None
    before: int | None = None
    after: int | None = None
    component: int | None = None


class Workpiece:
    """An image on its way to being legal: the steps are to be taken in the order in which ``sanitise`` does."""

    def __init__(self, data: bytearray, consumer: Consumer, target: Target, layout: Layout | None) -> None:
        if consumer not in WHOLE_IMAGE:
            raise ImageError(
                f"{consumer.title} takes another form than an XSAVE image, and nothing is repaired for it",
                help="repair the image for ptrace, and convert what comes of it",
            )
        self.data, self.consumer, self.target = data, consumer, target
        self.repairs: list[Repair] = []
        self._given = layout
        if len(data) < MIN_SIZE:
            self._note("XS001", f"zeros from byte {len(data)} to {MIN_SIZE}", len(data))
            data.extend(bytes(MIN_SIZE - len(data)))
        subject = self._subject()
        self.was_frame = subject.is_frame
        found = layout or subject.layout
        if found is None:
            raise ImageError(
                f"XCOMP_BV {subject.xcomp_bv:#x} names components of which {target.cpu.name} does not say the size",
                offset=XCOMP_BV_AT,
                found=subject.xcomp_bv,
                expected=COMPACTED_BIT | target.xcr0,
                help="name the processor that made the image",
            )
        self.layout = self._given = found

    def header(self) -> None:
        """Make the header agree with the layout: bitmaps, then reserved bytes."""
        reserved = self.data[RESERVED_AT:MIN_SIZE]
        if any(reserved):
            self._note(
                "XS015" if any(reserved[:8]) else "XS016", "reserved header bytes cleared", RESERVED_AT
            )
            self.data[RESERVED_AT:MIN_SIZE] = bytes(MIN_SIZE - RESERVED_AT)
        self._put("XS012", "XCOMP_BV made that of the layout", XCOMP_BV_AT, self.layout.xcomp_bv)
        stated = self._word(XSTATE_BV_AT)
        rule = "XS008" if self.layout.format is Format.COMPACTED else "XS007"
        self._put(rule, "components without a place left out", XSTATE_BV_AT, stated & self.layout.mask)
        if len(self.data) < self.layout.size:
            self._note("XS002", f"zeros from byte {len(self.data)} to {self.layout.size}", len(self.data))
            self.data.extend(bytes(self.layout.size - len(self.data)))

    def leftovers(self, policy: Leftovers) -> None:
        """Deal with data in components that are not stated."""
        if policy == "auto":
            policy = "clear" if self.was_frame or self.layout.format is Format.COMPACTED else "state"
        if policy == "keep":
            return
        for component in unstated_data(self._subject()):
            place = self.layout.place(component)
            name = component_name(component)
            if policy == "clear":
                self._note("XS102", f"left-over bytes of {name} cleared", place.offset, component)
                self._wipe(component)
            else:
                self._put(
                    *("XS101", f"{name} stated, as it holds data", XSTATE_BV_AT),
                    *(self._word(XSTATE_BV_AT) | 1 << component, component),
                )

    def components(self) -> None:
        """Make initial what the consumer does not take."""
        allowed, rule = self._allowed()
        for component in components_in(self._word(XSTATE_BV_AT) & ~allowed):
            self._put(
                *(rule, f"{component_name(component)} left out: the target does not take it", XSTATE_BV_AT),
                *(self._word(XSTATE_BV_AT) & ~(1 << component), component),
            )
            self._wipe(component)

    def registers(self) -> None:
        """Clear reserved bits of registers, and let SSE carry an MXCSR that would be lost without it."""
        mxcsr = self._word(MXCSR_AT, 4)
        self._put("XS017", "reserved bits of MXCSR cleared", MXCSR_AT, mxcsr & self.target.mxcsr_mask, size=4)
        if self._loses_tilecfg():
            self._put(
                *("XS034", "TILECFG left out: it would become initial", XSTATE_BV_AT),
                *(self._word(XSTATE_BV_AT) & ~_TILECFG, Component.TILECFG),
            )
            self._wipe(Component.TILECFG)
        for finding in check(self.data, self.consumer, self.target, layout=self.layout):
            if finding.id == "XS019" and finding.offset is not None and finding.expected is not None:
                self._put(
                    *("XS019", f"{finding.register} made loadable", finding.offset),
                    *(finding.expected, finding.component),
                )
        if self._loses_mxcsr():
            place = self.layout.place(Component.SSE)
            if any(self.data[place.offset : place.end]):
                self._note("XS102", "left-over bytes of SSE cleared", place.offset, Component.SSE)
                self._wipe(Component.SSE)
            self._put(
                *("XS027", "SSE stated, as MXCSR needs it", XSTATE_BV_AT),
                *(self._word(XSTATE_BV_AT) | _SSE, Component.SSE),
            )

    def _loses_tilecfg(self) -> bool:
        """Tell whether no restore loads the TILECFG that is asked for; a frame that is made anew asks for it."""
        subject = self._subject()
        is_frame = self.consumer is Consumer.SIGRETURN
        asked = self.target.user_xfeatures if is_frame else subject.rfbm
        if not asked & subject.xstate_bv & self.layout.mask & _TILECFG:
            return False
        place = self.layout.place(Component.TILECFG)
        return restore_defect(self.data[place.offset : place.end]) is not None

    def _loses_mxcsr(self) -> bool:
        """Tell whether the consumer, or the way to the layout that it reads, makes MXCSR initial."""
        findings = check(self.data, self.consumer, self.target, layout=self.layout)
        if any(finding.id == "XS027" for finding in findings):
            return True
        if self.layout.format is Format.COMPACTED or self._wanted_layout() is None:
            return False
        carried = self._word(XSTATE_BV_AT) & (_SSE | _AVX)
        return not carried and self._word(MXCSR_AT, 4) not in (0, MXCSR_INIT)

    def format(self) -> None:
        """Convert to the format and the layout that the consumer reads."""
        wanted = self._wanted_layout()
        if wanted is None:
            return
        rule = "XS032" if wanted.format is self.layout.format else "XS013"
        rule = "XS014" if self.consumer is Consumer.XRSTORS and rule == "XS013" else rule
        image = Image(bytes(self.data[: self.layout.size]), self.layout)
        data = bytearray(convert(image, wanted).image.to_bytes())
        self._note(rule, f"laid out anew: {wanted.format.value}, {wanted.size} bytes", XCOMP_BV_AT)
        if self.layout.format is wanted.format is Format.STANDARD:
            data[_SOFTWARE] = self.data[_SOFTWARE]
        self.data, self.layout, self._given = data, wanted, wanted

    def length(self) -> None:
        """Make the length what the consumer reads, and a signal frame of what is to be one."""
        if self.consumer is Consumer.SIGRETURN:
            self._frame()
            return
        size = {Consumer.PTRACE: self.target.standard.size, Consumer.KVM: self.target.kvm_size}.get(
            self.consumer, max(self.layout.size, *self._reach())
        )
        rule = {Consumer.PTRACE: "XS005", Consumer.KVM: "XS113"}.get(self.consumer, "XS002")
        if len(self.data) < size:
            self._note(rule, f"zeros from byte {len(self.data)} to {size}", len(self.data))
            self.data.extend(bytes(size - len(self.data)))
        elif len(self.data) > size and self.consumer is Consumer.PTRACE:
            self._note("XS030", f"bytes behind {size} left out", size)
            del self.data[size:]

    def _frame(self) -> None:
        subject = self._subject()
        if not subject.fx_only and subject.magic2 == MAGIC2 and subject.complete:
            return
        size = self.target.user_size
        rule = "XS021" if subject.is_frame else "XS020"
        self._note(
            rule, f"software bytes and second magic word of a frame of {size} bytes written", SOFTWARE_AT
        )
        words = FRAME.pack(MAGIC1, size + 4, self.target.user_xfeatures, size)
        self.data = self.data[:size].ljust(size, b"\0")
        self.data[_SOFTWARE] = words.ljust(512 - SOFTWARE_AT, b"\0")
        self.data.extend(struct.pack("<I", MAGIC2))

    def _wanted_layout(self) -> Layout | None:
        target = self.target
        if self.consumer is Consumer.XRSTORS:
            mask = self._allowed()[0]
            keep = self.layout.format is Format.COMPACTED and not self.layout.mask & ~mask
            wanted = Layout.compacted(target.cpu, self.layout.mask if keep else mask)
        elif self.layout.format is Format.COMPACTED and self._subject().takes_compacted:
            wanted = Layout.compacted(target.cpu, self.layout.mask & self._allowed()[0])
        else:
            wanted = target.standard
        known = {place.component: place for place in self.layout.places}
        same = all(known.get(place.component, place) == place for place in wanted.places)
        missing = self.layout.mask & ~wanted.mask
        return None if same and not missing and wanted.format is self.layout.format else wanted

    def _allowed(self) -> tuple[int, str]:
        target = self.target
        if self.consumer is Consumer.XRSTORS:
            return (target.xcr0 | target.xss) & ~target.xfd, "XS009"
        if self.consumer is Consumer.KVM:
            return target.kvm_xcr0 & ~target.guest_xfd, "XS011"
        if self.consumer is Consumer.PTRACE:
            return target.user_xfeatures, "XS010"
        own = target.user_xfeatures if self.consumer is Consumer.SIGRETURN else target.xcr0
        return own & ~target.xfd, "XS007"

    def _reach(self) -> tuple[int, ...]:
        return (MIN_SIZE, *(end for _, end in self._subject().reach()))

    def _wipe(self, component: int) -> None:
        place = self.layout.place(component)
        if component == Component.X87:
            self.data[0:MXCSR_AT] = b"\x7f\x03".ljust(MXCSR_AT, b"\0")
            self.data[32:160] = bytes(128)
        else:
            self.data[place.offset : place.end] = bytes(place.size)

    def _subject(self) -> Subject:
        return Subject(self.data, self.consumer, self.target, layout=self._given)

    def _word(self, offset: int, size: int = 8) -> int:
        return int.from_bytes(self.data[offset : offset + size], "little")

    def _put(
        self, rule: str, message: str, offset: int, value: int, component: int | None = None, *, size: int = 8
    ) -> None:
        before = self._word(offset, size)
        if before != value:
            self.repairs.append(Repair(rule, message, offset, before, value, component))
            self.data[offset : offset + size] = value.to_bytes(size, "little")

    def _note(self, rule: str, message: str, offset: int, component: int | None = None) -> None:
        self.repairs.append(Repair(rule, message, offset, component=component))
