"""An image with its consumer and its target, clean to begin with: what the mutators break."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from fpstate.arch.component import COMPACTED_BIT, USER_DYNAMIC, Component, components_in
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Format, Layout
from fpstate.image import Image
from fpstate.image.canonical import register_spans
from fpstate.image.consumer import INIT_PKRU, OLDER_FORMS, Consumer, Target
from fpstate.image.convert import convert
from fpstate.image.finding import Finding
from fpstate.image.legacy import FSAVE_LAYOUT, to_fsave, to_fxsave
from fpstate.image.rules import Verdict, check, predict
from fpstate.image.subject import (
    FRAME,
    IA32_FSAVE_SIZE,
    MAGIC1,
    MAGIC2,
    MXCSR_AT,
    SOFTWARE_AT,
    XCOMP_BV_AT,
    XSTATE_BV_AT,
)

_C = Component
_WHOLE_CPU: Final = "sapphire-rapids"
_FIXED: Final[Mapping[int, bytes]] = MappingProxyType(
    {
        _C.X87: struct.pack("<HHBxHQQ", 0x37F, 0x3800, 0xC0, 0, 0, 0),
        _C.PKRU: INIT_PKRU.to_bytes(4, "little"),
        _C.CET_U: struct.pack("<QQ", 1, 0x7FFF_0000_1000),
        _C.CET_S: struct.pack("<QQQ", 0x1000, 0x2000, 0x3000),
        _C.TILECFG: b"\1"
        + bytes(15)
        + struct.pack("<8H", *[64] * 8)
        + bytes(16)
        + bytes([16] * 8)
        + bytes(8),
    }
)
CLEAN_MXCSR: Final = 0x3FA1
"""MXCSR of clean cases: bits that every processor has, and not the initial ones."""


@dataclass
class Case:
    """An image for a consumer on a target: what the functions of ``fpstate.image.rules`` take."""

    data: bytearray
    consumer: Consumer
    target: Target
    address: int = 0
    layout: Layout | None = None

    def findings(self) -> list[Finding]:
        """Return what ``check`` says."""
        return check(self.data, self.consumer, self.target, address=self.address, layout=self.layout)

    def verdict(self) -> Verdict:
        """Return what ``predict`` says."""
        return predict(self.data, self.consumer, self.target, address=self.address, layout=self.layout)

    @property
    def origin(self) -> int:
        """Bytes before the XSAVE image: the FSAVE part of a 32-bit program's signal frame."""
        return IA32_FSAVE_SIZE if self.consumer is Consumer.SIGRETURN32 else 0

    @property
    def format(self) -> Format:
        """The format that the header states."""
        return Format.COMPACTED if self.word(XCOMP_BV_AT) & COMPACTED_BIT else Format.STANDARD

    def word(self, offset: int, size: int = 8) -> int:
        """Return an unsigned integer of the image, ``offset`` bytes from where that begins."""
        at = self.origin + offset
        return int.from_bytes(self.data[at : at + size], "little")

    def put(self, offset: int, value: int, size: int = 8) -> None:
        """Write an unsigned integer into the image, ``offset`` bytes from where that begins."""
        at = self.origin + offset
        self.data[at : at + size] = value.to_bytes(size, "little")

    def place(self, component: int) -> slice:
        """Return where a component's bytes are."""
        own = self.target.standard
        if self.format is Format.COMPACTED:
            own = Layout.compacted(self.target.cpu, self.word(XCOMP_BV_AT) & ~COMPACTED_BIT)
        return slice(self.origin + own.offset(component), self.origin + own.place(component).end)

    def forget(self, component: int, *, wipe: bool = True) -> None:
        """Clear a component's XSTATE_BV bit, and its bytes too unless they are to stay behind."""
        self.put(XSTATE_BV_AT, self.word(XSTATE_BV_AT) & ~(1 << component))
        if wipe:
            place = self.place(component)
            self.data[place] = bytes(place.stop - place.start)


def clean_case(
    consumer: Consumer,
    cpu: Cpu | str = _WHOLE_CPU,
    format: Format | None = None,
    *,
    permitted: int = USER_DYNAMIC,
) -> Case:
    """Return an image without a finding: every component the consumer may load is there and not initial.

    Signal frames have their magic words, KVM payloads the size that KVM reads; the forms from before XSAVE hold what
    they can of the same registers. The format is the standard one
    except for XRSTORS; ``format`` chooses where there is a choice. ``permitted`` is as for ``Target.from_cpu``.
    """
    cpu = Cpu.catalog(cpu) if isinstance(cpu, str) else cpu
    target = Target.from_cpu(cpu, permitted=permitted)
    if format is None:
        format = Format.COMPACTED if consumer is Consumer.XRSTORS else Format.STANDARD
    mask = target.kvm_xcr0 if consumer is Consumer.KVM else target.user_xfeatures
    if consumer is Consumer.XRSTORS:
        mask |= target.xss
    layout = Layout.compacted(cpu, mask) if format is Format.COMPACTED else target.standard
    data = _filled(layout, mask, target)
    if consumer in OLDER_FORMS:
        return Case(_older(consumer, Image(data, layout)), consumer, target)
    if consumer is Consumer.SIGRETURN32:
        fsave = _older(Consumer.FSAVE, Image(data, layout)).ljust(IA32_FSAVE_SIZE, b"\0")
        return Case(fsave + as_frame(data, target), consumer, target)
    if consumer is Consumer.SIGRETURN:
        data = as_frame(data, target)
    elif consumer is Consumer.KVM:
        data = data.ljust(target.kvm_size, b"\0")
    return Case(data, consumer, target)


def as_frame(data: bytes | bytearray, target: Target) -> bytearray:
    """Return an XSAVE image with the software bytes and the second magic word of a signal frame."""
    size = target.user_size
    frame = bytearray(data).ljust(size, b"\0")[:size]
    frame[SOFTWARE_AT:512] = bytes(512 - SOFTWARE_AT)
    FRAME.pack_into(frame, SOFTWARE_AT, MAGIC1, size + 4, target.user_xfeatures, size)
    return frame + MAGIC2.to_bytes(4, "little")


def _older(consumer: Consumer, image: Image) -> bytearray:
    """Return x87, and SSE where it has a place, in the form of a request from before XSAVE."""
    if consumer is Consumer.FSAVE:
        x87 = convert(image, FSAVE_LAYOUT, drop=components_in(image.layout.mask & ~1), narrow_pointers=True)
        return bytearray(to_fsave(x87.image))
    fxsave = to_fxsave(image)
    if consumer is not Consumer.KVM_FPU:
        return bytearray(fxsave)
    control, stack, xmm = fxsave[:24], fxsave[32:160], fxsave[160:416]
    return bytearray(stack + control + xmm + fxsave[24:28] + bytes(4))


def _filled(layout: Layout, present: int, target: Target) -> bytearray:
    image = Image.initial(layout, "built")
    for component in components_in(present):
        size = layout.size_of(component)
        if component in _FIXED:
            image.store.write(component, 0, _FIXED[component])
        if component == _C.X87:
            image.store.write(component, 32, b"\x21" * 8 + b"\xff\x3f")
        elif component not in _FIXED:
            for offset, length in register_spans(component) or ((0, size),):
                image.store.write(
                    component, offset, bytes(1 + (7 * n + 11 * component) % 255 for n in range(length))
                )
    data = bytearray(image.to_bytes())
    if present >> _C.SSE & 1:
        data[MXCSR_AT : MXCSR_AT + 8] = struct.pack("<II", CLEAN_MXCSR, target.mxcsr_mask)
    return data
