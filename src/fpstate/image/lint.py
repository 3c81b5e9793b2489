"""What no consumer minds and yet is seldom meant: lints, by what they cost whoever finds out late."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fpstate.arch.component import (
    LEGACY,
    LEGACY_PLACES,
    MIN_SIZE,
    Component,
    component_name,
    components_in,
    mask_of,
)
from fpstate.image.canonical import register_spans
from fpstate.image.consumer import Consumer
from fpstate.image.control import FCW_INIT, MXCSR_INIT, ControlWord, StatusWord
from fpstate.image.finding import Severity
from fpstate.image.initial import initial_bytes
from fpstate.image.rule import EVERY, Breach, Rule
from fpstate.image.subject import (
    MXCSR_AT,
    RESERVED_AT,
    SOFTWARE_AT,
    XSTATE_BV_AT,
    Subject,
)
from fpstate.image.tile import CONFIGURATION_SIZE, is_loaded, use_defects

_X87_PIECES: Final = ((0, 24), (32, 128))
_STACK: Final = slice(32, 160)
_FCW_AT, _FSW_AT, _TAG_AT, _TAG_HIGH_AT, _MASK_AT = 0, 2, 4, 5, 28
_PENDING_BITS: Final = 0x8080
_ALL_FULL: Final = 0xFF
_TAG_EMPTY: Final = 0xFF
_MM: Final = 1 << 17
_AMX_PAIR: Final = mask_of(Component.TILECFG, Component.TILEDATA)
_RESERVED_LEGACY: Final = (416, SOFTWARE_AT)


def stated(subject: Subject) -> int:
    """The components that the image has room for and states."""
    room: int = subject.layout.mask if subject.layout else LEGACY
    return subject.xstate_bv & room


def unstated_data(subject: Subject) -> list[int]:
    """The components whose XSTATE_BV bit is clear although their bytes are neither zeros nor initial."""
    return [
        component
        for component in subject.held()
        if not subject.xstate_bv >> component & 1 and _has_data(subject, component)
    ]


def is_initial(subject: Subject, component: int) -> bool:
    """Tell whether a component's registers, taken from its bytes, are those of the initial configuration."""
    data = subject.component_bytes(component)
    spans = _spans(component, len(data))
    return all(
        data[offset : offset + size] == initial_bytes(component, offset, size) for offset, size in spans
    )


def _spans(component: int, size: int) -> tuple[tuple[int, int], ...]:
    if component == Component.X87:
        return _X87_PIECES
    return register_spans(component) or ((0, size),)


def _has_data(subject: Subject, component: int) -> bool:
    data = subject.component_bytes(component)
    return any(any(data[offset : offset + size]) for offset, size in _spans(component, len(data))) and (
        not is_initial(subject, component)
    )


def _dropped_data(subject: Subject) -> Iterator[Breach]:
    if subject.is_frame or subject.compacted:
        return
    for component in unstated_data(subject):
        yield Breach(
            f"there is data for {component_name(component)}, but XSTATE_BV says that it is initial: it will be lost",
            *(XSTATE_BV_AT, subject.xstate_bv, subject.xstate_bv | 1 << component, component),
        )


def _stale_data(subject: Subject) -> Iterator[Breach]:
    if not (subject.is_frame or subject.compacted) or subject.layout is None:
        return
    for component in unstated_data(subject):
        yield Breach(
            f"{component_name(component)} is absent, and its bytes hold something left over"
            + (": what the stack had before the frame" if subject.is_frame else ""),
            *(subject.layout.offset(component), None, None, component),
        )


def _over_set(subject: Subject) -> Iterator[Breach]:
    for component in components_in(stated(subject) & ~LEGACY):
        if is_initial(subject, component):
            yield Breach(
                f"{component_name(component)} is stated, and is initial: loading it marks it as in use",
                *(XSTATE_BV_AT, subject.xstate_bv, subject.xstate_bv & ~(1 << component), component),
            )


def _full_tag(subject: Subject) -> Iterator[Breach]:
    if not subject.xstate_bv & 1:
        return
    tag, high = subject.value(_TAG_AT, 1), subject.value(_TAG_HIGH_AT, 1)
    all_zero = not any(subject.padded[_STACK])
    if high or (tag == _ALL_FULL and all_zero):
        found = subject.value(_TAG_AT, 2)
        yield Breach(
            f"the tag bytes are {found:#06x}: this looks like the full tag word, where all ones mean empty;"
            " in the abridged one they mean that all eight registers are in use",
            *(_TAG_AT, found, 0 if found in (_TAG_EMPTY, 0xFFFF) else tag, Component.X87, "ftag_abridged"),
        )


def _mxcsr_zero(subject: Subject) -> Iterator[Breach]:
    if subject.mxcsr == 0 and (subject.xstate_bv & mask_of(Component.SSE) or subject.fx_only):
        yield Breach(
            "MXCSR is 0: every SIMD exception is unmasked, and the first inexact result traps",
            *(MXCSR_AT, 0, MXCSR_INIT, Component.SSE, "mxcsr"),
        )


def _fcw_zero(subject: Subject) -> Iterator[Breach]:
    if subject.xstate_bv & 1 and subject.value(_FCW_AT, 2) == 0:
        yield Breach(
            "FCW is 0: every x87 exception is unmasked, and results are rounded to 24 bits",
            *(_FCW_AT, 0, FCW_INIT, Component.X87, "fctrl"),
        )


def _amd_only(subject: Subject) -> Iterator[Breach]:
    if subject.mxcsr & _MM & subject.target.mxcsr_mask and stated(subject) & mask_of(Component.SSE):
        yield Breach(
            "MXCSR bit 17, the misaligned-exception mask, exists on AMD alone: an Intel processor refuses it",
            *(MXCSR_AT, subject.mxcsr, subject.mxcsr & ~_MM, Component.SSE, "mxcsr"),
        )


def _tiles_without_shape(subject: Subject) -> Iterator[Breach]:
    if subject.xstate_bv & _AMX_PAIR == mask_of(Component.TILEDATA):
        yield Breach(
            "TILEDATA without TILECFG: with no configuration the tiles have no shape",
            *(XSTATE_BV_AT, subject.xstate_bv, subject.xstate_bv | _AMX_PAIR, Component.TILEDATA),
        )


def _unusable_tile(subject: Subject) -> Iterator[Breach]:
    if not subject.xstate_bv & mask_of(Component.TILECFG) or subject.layout is None:
        return
    data = subject.component_bytes(Component.TILECFG)
    if len(data) < CONFIGURATION_SIZE or not is_loaded(data):
        return
    for defect in use_defects(data):
        yield Breach(
            f"{defect.text}: TILELOADD and TILESTORED raise #UD for it",
            *(subject.layout.offset(Component.TILECFG) + defect.offset, defect.found, defect.expected),
            *(Component.TILECFG, "tilecfg"),
        )


def _ignored_reserved(subject: Subject) -> Iterator[Breach]:
    if (
        subject.fx_only
        or not subject.instruction
        or subject.compacted
        or subject.consumer is Consumer.XRSTORS
    ):
        return
    rest = subject.padded[RESERVED_AT + 8 : MIN_SIZE]
    if any(rest):
        first = next(index for index, byte in enumerate(rest) if byte)
        yield Breach(
            f"byte {24 + first} of the header is {rest[first]:#04x}: ignored here, refused by ptrace, KVM and"
            " the compacted format",
            *(RESERVED_AT + 8 + first, rest[first], 0),
        )


def _between(subject: Subject) -> Iterator[Breach]:
    layout = subject.layout
    if layout is None:
        return
    for start, end in (_RESERVED_LEGACY, *_holes(subject)):
        data = subject.content[start:end]
        if any(data):
            first = next(index for index, byte in enumerate(data) if byte)
            left_over = ": nobody writes them in a frame, which keeps what the stack had"
            foreign = "" if start < MIN_SIZE else ": perhaps the layout is that of another processor"
            yield Breach(
                f"bytes {start} to {end - 1} belong to no register, and hold something"
                + (left_over if subject.is_frame else foreign),
                *(start + first, data[first], 0),
            )


def _holes(subject: Subject) -> Iterator[tuple[int, int]]:
    """Yield the gaps between extended components, and behind the last one, up to where the image ends."""
    assert subject.layout is not None
    end = MIN_SIZE
    for place in subject.layout.places:
        if place.component in LEGACY_PLACES:
            continue
        if place.offset > end:
            yield end, place.offset
        end = place.end
    if end < subject.length:
        yield end, subject.length


def _pending_bits(subject: Subject) -> Iterator[Breach]:
    if not subject.xstate_bv & 1:
        return
    status, control = StatusWord(subject.value(_FSW_AT, 2)), ControlWord(subject.value(_FCW_AT, 2))
    expected = int(status.recomputed(control))
    if (expected ^ int(status)) & _PENDING_BITS:
        yield Breach(
            f"ES and B of FSW {int(status):#06x} do not follow from its flags and FCW's masks: a load gives"
            f" {expected:#06x}",
            *(_FSW_AT, int(status), expected, Component.X87, "fstat"),
        )


def _foreign_mask(subject: Subject) -> Iterator[Breach]:
    found, expected = subject.value(_MASK_AT, 4), subject.target.mxcsr_mask
    if found not in (0, expected) and stated(subject) & mask_of(Component.SSE):
        yield Breach(
            f"MXCSR_MASK is {found:#x} and {expected:#x} here: it tells where the image was made, and is ignored",
            *(_MASK_AT, found, expected, None, "mxcsr_mask"),
        )


def _short_payload(subject: Subject) -> Iterator[Breach]:
    size = subject.target.kvm_size
    if subject.complete and subject.length < size:
        yield Breach(
            f"{subject.length} bytes, and KVM_SET_XSAVE reads {size}: pass a buffer of that size",
            *(subject.length, subject.length, size),
        )


_WARNING, _NOTE = Severity.WARNING, Severity.NOTE
_X87_READERS: Final = EVERY - {Consumer.SIGRETURN32}
"""Those that take x87 from the FXSAVE image."""

LINTS: Final = (
    Rule("XS101", "Data in a component that is not stated", _WARNING, EVERY, "SDM Vol. 1, 13.8", _dropped_data,
         "set the component's XSTATE_BV bit, or clear its bytes"),
    Rule("XS102", "Left-over bytes in an absent component", _NOTE, EVERY, "SDM Vol. 1, 13.10", _stale_data,
         "they may be another context's: clear them before the image leaves the machine"),
    Rule("XS103", "An initial component that is stated", _NOTE, EVERY, "SDM Vol. 1, 13.6", _over_set),
    Rule("XS104", "A tag word in the full form", _WARNING, _X87_READERS, "SDM Vol. 1, 10.5.1", _full_tag,
         "the abridged tag of an empty stack is 0"),
    Rule("XS105", "MXCSR is 0", _WARNING, EVERY, "SDM Vol. 1, 10.2.3", _mxcsr_zero),
    Rule("XS106", "FCW is 0", _WARNING, _X87_READERS, "SDM Vol. 1, 8.1.5", _fcw_zero),
    Rule("XS107", "An MXCSR bit that Intel lacks", _NOTE, EVERY, "APM Vol. 1, 4.2.2", _amd_only),
    Rule("XS108", "TILEDATA without TILECFG", _WARNING, EVERY, "SDM Vol. 1, 18.3", _tiles_without_shape),
    Rule("XS109", "Reserved header bytes that are ignored here", _WARNING,
         frozenset({Consumer.XRSTOR, Consumer.SIGRETURN}), "SDM Vol. 1, 13.8.1", _ignored_reserved),
    Rule("XS110", "Bytes that belong to no register", _NOTE, EVERY, "SDM Vol. 1, 13.4", _between),
    Rule("XS111", "ES and B that do not follow from the flags", _NOTE, _X87_READERS, "SDM Vol. 1, 8.1.3.3",
         _pending_bits),
    Rule("XS112", "Another processor's MXCSR_MASK", _NOTE, EVERY, "SDM Vol. 1, 11.6.6", _foreign_mask),
    Rule("XS113", "Less than KVM reads", _WARNING, frozenset({Consumer.KVM}), "KVM API, 4.43", _short_payload),
    Rule("XS114", "A tile that cannot be loaded or stored", _WARNING, EVERY, "SDM Vol. 2, TILELOADD and TILESTORED",
         _unusable_tile, "rows have a multiple of 4 bytes; start_row is 0 unless one was interrupted"),
)  # fmt: skip
"""In the order of their ids."""
