"""An image as its consumer sees it: the fields that rules ask about, read from raw bytes once.

Nothing is taken for granted here: the bytes may be too short, and the header may say anything.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from fpstate.arch.component import (
    COMPACTED_BIT,
    LEGACY,
    LEGACY_SIZE,
    MIN_SIZE,
    Component,
    components_in,
    mask_of,
)
from fpstate.arch.layout import Format, Layout
from fpstate.image.consumer import FRAMES, INSTRUCTIONS, OLDER_FORMS, Consumer, Target

MXCSR_AT: Final = 24
SOFTWARE_AT: Final = 464
XSTATE_BV_AT: Final = LEGACY_SIZE
XCOMP_BV_AT: Final = LEGACY_SIZE + 8
RESERVED_AT: Final = LEGACY_SIZE + 16
MAGIC1: Final = 0x46505853
MAGIC2: Final = 0x46505845
MAGIC2_SIZE: Final = 4
IA32_FSAVE_SIZE: Final = 112
"""Bytes before the FXSAVE image in the signal frame of a 32-bit program (``struct fregs_state``)."""
FRAME: Final = struct.Struct("<IIQI")
"""``struct _fpx_sw_bytes`` without its padding: magic1, extended_size, xfeatures, xstate_size."""

_HEADER: Final = struct.Struct("<QQ")
_WORD: Final = struct.Struct("<I")
_MXCSR_CARRIERS: Final = mask_of(Component.SSE, Component.AVX)
_SSE: Final = mask_of(Component.SSE)
_UABI_MXCSR: Final = LEGACY | mask_of(Component.AVX)


@dataclass(frozen=True, slots=True)
class Frame:
    """The software bytes 464 to 511 of a signal frame's image (``struct _fpx_sw_bytes``)."""

    magic1: int
    extended_size: int
    xfeatures: int
    xstate_size: int


class Subject:
    """Some bytes, for one consumer on one target, at an address of which the low bits count.

    ``layout`` says where the components lie when that is known better than from the target's CPUID. All offsets
    count from the XSAVE image, which begins ``origin`` bytes into what the consumer is given.
    """

    def __init__(
        self,
        data: bytes | bytearray | memoryview,
        consumer: Consumer,
        target: Target,
        *,
        address: int = 0,
        layout: Layout | None = None,
    ) -> None:
        self.origin = IA32_FSAVE_SIZE if consumer is Consumer.SIGRETURN32 else 0
        self.data = bytes(data)[self.origin :]
        self.consumer = consumer
        self.target = target
        self.address = address
        self.given = layout
        self.length = len(self.data)
        self.padded = self.data if self.length >= MIN_SIZE else self.data.ljust(MIN_SIZE, b"\0")
        self.xstate_bv: int
        self.xcomp_bv: int
        self.xstate_bv, self.xcomp_bv = _HEADER.unpack_from(self.padded, XSTATE_BV_AT)
        self.mxcsr: int = _WORD.unpack_from(self.padded, MXCSR_AT)[0]
        self.compacted = bool(self.xcomp_bv & COMPACTED_BIT)

    @cached_property
    def frame(self) -> Frame:
        """The software bytes, read as those of a signal frame whether or not it is one."""
        return Frame(*FRAME.unpack_from(self.padded, SOFTWARE_AT))

    @cached_property
    def is_frame(self) -> bool:
        """Whether the bytes say of themselves that they come from a signal frame."""
        return self.frame.magic1 == MAGIC1

    @cached_property
    def sizes_fit(self) -> bool:
        """Whether the frame's sizes are such that the kernel believes them (``check_xstate_in_sigframe``)."""
        frame = self.frame
        if self.target.magic2_at_user_size:
            return True
        return MIN_SIZE <= frame.xstate_size <= min(self.target.user_size, frame.extended_size)

    @cached_property
    def magic2_at(self) -> int:
        """Where the kernel looks for the second magic word."""
        return self.target.user_size if self.target.magic2_at_user_size else self.frame.xstate_size

    @cached_property
    def magic2(self) -> int | None:
        """The word there; None where the bytes end before."""
        if self.magic2_at + MAGIC2_SIZE > self.length:
            return None
        return int(_WORD.unpack_from(self.data, self.magic2_at)[0])

    @cached_property
    def fx_only(self) -> bool:
        """Whether the bytes are taken for an FXSAVE image, of which no more than that is loaded."""
        if self.consumer in OLDER_FORMS:
            return True
        if self.consumer not in FRAMES:
            return False
        return not self.is_frame or not self.sizes_fit or self.magic2 not in (None, MAGIC2)

    @cached_property
    def rfbm(self) -> int:
        """The components that the restore is asked for: the instruction's RFBM, or what the kernel passes."""
        target = self.target
        if self.fx_only:
            return LEGACY
        if self.consumer in FRAMES:
            return self.frame.xfeatures & target.user_xfeatures
        if self.consumer is Consumer.XRSTOR:
            return target.requested & target.xcr0
        if self.consumer is Consumer.XRSTORS:
            return target.requested & (target.xcr0 | target.xss)
        return target.user_xfeatures if self.consumer is Consumer.PTRACE else target.kvm_xcr0

    @cached_property
    def instruction(self) -> bool:
        """Whether the processor itself reads these bytes, header and all, and not the kernel for it."""
        return self.consumer in INSTRUCTIONS or (self.consumer is Consumer.SIGRETURN and not self.fx_only)

    @cached_property
    def takes_compacted(self) -> bool:
        """Whether the consumer can read the compacted format; sigreturn leaves that to the processor."""
        return self.instruction and self.target.compaction

    @cached_property
    def reads_mxcsr(self) -> bool:
        """Whether a reserved bit in these bytes' MXCSR is refused."""
        if self.fx_only:
            return True
        if not self.instruction:
            return bool(self.xstate_bv & _UABI_MXCSR)
        if self.compacted or self.consumer is Consumer.XRSTORS:
            return bool(self.rfbm & self.xstate_bv & _SSE)
        return bool(self.rfbm & _MXCSR_CARRIERS)

    @cached_property
    def layout(self) -> Layout | None:
        """Where the components lie; None where a compacted header names components that CPUID does not."""
        if self.given is not None:
            return self.given
        if self.compacted:
            return self.target.compacted(self.xcomp_bv)
        return self.target.standard

    @cached_property
    def expected_layout(self) -> Layout | None:
        """Where the consumer will look for the components, whatever is known of the producer.

        None where XCOMP_BV has what is not enabled: processors refuse that before they reach for any component
        (measured on Emerald Rapids, which otherwise finds memory missing before it judges the header).
        """
        if not self.compacted:
            return self.target.standard
        enabled = self.target.xcr0 | (self.target.xss if self.consumer is Consumer.XRSTORS else 0)
        return None if self.xcomp_bv & ~COMPACTED_BIT & ~enabled else self.target.compacted(self.xcomp_bv)

    @cached_property
    def format(self) -> Format:
        """The format that the header states."""
        return Format.COMPACTED if self.compacted else Format.STANDARD

    @cached_property
    def touched(self) -> int:
        """The components up to whose last byte the consumer reaches.

        In the standard format XRSTOR reaches the last byte of what it is asked for, present or not. In the compacted
        format Intel's processors do so too, within XCOMP_BV, and AMD's read what is present. A hole in the middle,
        where absent components would be, is not noticed: an image that is too short is. The kernel copies what is
        present, and looks at nothing of what it refuses.
        """
        if self.fx_only:
            return LEGACY
        if not self.instruction:
            return self.xstate_bv & self.allowed
        if not self.compacted:
            return self.rfbm
        present: int = self.rfbm & self.xcomp_bv
        return present if self.target.reads_absent else present & self.xstate_bv

    @cached_property
    def allowed(self) -> int:
        """The components that the consumer lets the task or the guest have."""
        target = self.target
        if self.consumer is Consumer.KVM:
            return target.kvm_xcr0
        if self.consumer is Consumer.XRSTORS:
            return target.xcr0 | target.xss
        return target.xcr0 if self.consumer is Consumer.XRSTOR else target.user_xfeatures

    def reach(self) -> list[tuple[int, int]]:
        """The components that the consumer reads, each with the first byte behind it."""
        layout = self.expected_layout
        if layout is None:
            return []
        return [
            (place.component, place.end) for place in layout.places if self.touched >> place.component & 1
        ]

    @cached_property
    def complete(self) -> bool:
        """Whether no byte that the consumer reads lies behind the end."""
        ends = [MIN_SIZE, *(end for _, end in self.reach())]
        return self.length >= max(ends)

    def value(self, offset: int, size: int) -> int:
        """Return bytes as an unsigned integer; those behind the end are zeros."""
        return int.from_bytes(self.padded[offset : offset + size], "little")

    @cached_property
    def content(self) -> bytes:
        """The bytes without a frame's second magic word, which is no component's even where it lies in one.

        A word in its place that is another one is none either, where the frame's sizes are believed.
        """
        if not self.is_frame or self.magic2 is None or not (self.magic2 == MAGIC2 or self.sizes_fit):
            return self.padded
        return (
            self.padded[: self.magic2_at] + bytes(MAGIC2_SIZE) + self.padded[self.magic2_at + MAGIC2_SIZE :]
        )

    def component_bytes(self, component: int) -> bytes:
        """Return a component's bytes as they stand, present or not, as far as they reach."""
        layout = self.layout
        if layout is None or component not in layout:
            return b""
        place = layout.place(component)
        return self.content[place.offset : place.end]

    def read(self, component: int) -> bytes:
        """Return the bytes that the consumer takes for a component; empty where it has no place or is cut off."""
        layout = self.expected_layout
        if layout is None or component not in layout:
            return b""
        place = layout.place(component)
        data = self.data[place.offset : place.end]
        return data if len(data) == place.size else b""

    def held(self) -> list[int]:
        """The components that the layout has room for, ascending."""
        return list(components_in(self.layout.mask)) if self.layout else []
