"""Images that break one rule and no other, for tests of whatever reads images.

``MUTATORS`` says for each rule of ``fpstate.image.rules`` how to break it, ``broken_case`` does so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from fpstate.arch.component import COMPACTED_BIT, LEGACY, Component, mask_of
from fpstate.arch.layout import Format, Layout
from fpstate.image.consumer import FRAMES, WHOLE_IMAGE, Consumer, Target
from fpstate.image.subject import (
    FRAME,
    MAGIC1,
    MAGIC2,
    MXCSR_AT,
    RESERVED_AT,
    SOFTWARE_AT,
    XCOMP_BV_AT,
    XSTATE_BV_AT,
)
from fpstate.image.tile import ROWS_AT, WIDTHS_AT
from fpstate.testing.case import CLEAN_MXCSR, Case, as_frame, clean_case

_C = Component


@dataclass(frozen=True, slots=True)
class Mutator:
    """How one rule is broken, for each of ``consumers``; ``format`` is the image to begin with, if it matters."""

    consumers: tuple[Consumer, ...]
    apply: Callable[[Case], None]
    format: Format | None = None


def broken_case(rule: str, consumer: Consumer) -> Case:
    """Return an image that breaks this rule, and no other, for one of ``MUTATORS[rule].consumers``."""
    mutator = MUTATORS[rule]
    case = clean_case(consumer, format=mutator.format)
    mutator.apply(case)
    return case


def _unknown_bit(case: Case) -> int:
    known = case.target.cpu.xcr0 | case.target.cpu.xss
    return next(1 << number for number in range(62) if not known >> number & 1)


def _or(offset: int, bits: int, size: int = 8) -> Callable[[Case], None]:
    return lambda case: case.put(offset, case.word(offset, size) | bits, size)


def _set(offset: int, value: int, size: int) -> Callable[[Case], None]:
    return lambda case: case.put(offset, value, size)


def _change(**changes: int | bool) -> Callable[[Case], None]:
    def apply(case: Case) -> None:
        case.target = case.target.with_(**changes)

    return apply


def _cut_header(case: Case) -> None:
    del case.data[400 if case.consumer is Consumer.KVM_FPU else case.origin + 560 :]


def _cut_component(case: Case) -> None:
    if case.consumer in FRAMES:
        _shrink_frame(case, 832)
        case.put(SOFTWARE_AT + 8, case.target.user_xfeatures)
        case.put(XSTATE_BV_AT, case.target.user_xfeatures)
        return
    last = Layout.compacted if case.format is Format.COMPACTED else Layout.standard
    del case.data[last(case.target.cpu, case.word(XSTATE_BV_AT)).size - 8 :]


def _without_pkru(case: Case) -> Target:
    """Return the target of a task without PKRU, which every frame that brings less would set to 0."""
    return case.target.with_(user_xfeatures=case.target.user_xfeatures & ~mask_of(_C.PKRU))


def _shrink_frame(case: Case, size: int) -> None:
    """Make the frame end at ``size``, behind AVX, and ask for no more than lies before that."""
    case.data = case.data[: case.origin + size] + MAGIC2.to_bytes(4, "little")
    kept = LEGACY | mask_of(_C.AVX)
    case.target = _without_pkru(case)
    case.put(XSTATE_BV_AT, kept)
    FRAME.pack_into(case.data, case.origin + SOFTWARE_AT, MAGIC1, size + 4, kept, size)


def _overstate_frame(case: Case) -> None:
    case.put(832, MAGIC2, 4)
    words = MAGIC1, 836, case.target.user_xfeatures, 832
    FRAME.pack_into(case.data, case.origin + SOFTWARE_AT, *words)
    del case.data[case.origin + case.target.user_size :]


def _shorten(count: int) -> Callable[[Case], None]:
    def apply(case: Case) -> None:
        del case.data[-count:]

    return apply


def _misalign(case: Case) -> None:
    case.address = 0x1010


def _state_unknown(case: Case) -> None:
    case.put(XSTATE_BV_AT, case.word(XSTATE_BV_AT) | _unknown_bit(case))


def _make_room_for_unknown(case: Case) -> None:
    case.put(XCOMP_BV_AT, case.word(XCOMP_BV_AT) | _unknown_bit(case))


def _compact(case: Case) -> None:
    """Compact the image for one who takes none, or take away the processor's XSAVEC."""
    length, fsave = len(case.data), case.data[: case.origin]
    case.data = clean_case(Consumer.XRSTOR, format=Format.COMPACTED).data
    if case.consumer in FRAMES:
        case.data = fsave + as_frame(case.data, case.target)
    if case.consumer in (Consumer.XRSTOR, Consumer.SIGRETURN):
        without = case.target.cpu.features - {"XSAVEC", "XSAVES"}
        case.target = replace(case.target, cpu=replace(case.target.cpu, features=without))
    else:
        case.data = case.data.ljust(length, b"\0")


def _standardise(case: Case) -> None:
    case.data = clean_case(Consumer.XRSTOR).data


def _reserve_shadow_stack(case: Case) -> None:
    start = case.place(_C.CET_U).start
    case.put(start, case.word(start) | 0x40)


def _no_frame(case: Case) -> None:
    case.target = _without_pkru(case)
    case.data[case.origin + SOFTWARE_AT : case.origin + 512] = bytes(48)
    del case.data[case.origin + case.target.user_size :]


def _break_magic2(case: Case) -> None:
    case.target = _without_pkru(case)
    case.data[-4:] = bytes(4)


def _break_sizes(case: Case) -> None:
    case.target = _without_pkru(case)
    case.put(SOFTWARE_AT + 4, 0, 4)


def _ask_for_less(case: Case) -> None:
    case.put(SOFTWARE_AT + 8, case.target.user_xfeatures & ~mask_of(_C.AVX))


def _hide(case: Case) -> None:
    case.target = case.target.with_(guest_xcr0=case.target.guest_xcr0 & ~mask_of(_C.OPMASK))


def _orphan_mxcsr(case: Case) -> None:
    case.forget(_C.SSE)


def _forget(component: int, *, wipe: bool = True) -> Callable[[Case], None]:
    return lambda case: case.forget(component, wipe=wipe)


def _lengthen(case: Case) -> None:
    case.data += bytes(64)


def _ask_for_part(case: Case) -> None:
    case.target = case.target.with_(requested=~mask_of(_C.AVX) & (1 << 64) - 1)


def _swap_places(case: Case) -> None:
    own = case.target.standard
    if case.format is Format.COMPACTED:
        own = Layout.compacted(case.target.cpu, case.word(XCOMP_BV_AT) & ~COMPACTED_BIT)
    first, second = own.place(_C.OPMASK), own.place(_C.TILECFG)
    swapped = {
        _C.OPMASK: replace(first, offset=second.offset),
        _C.TILECFG: replace(second, offset=first.offset),
    }
    places = [swapped.get(Component(place.component), place) for place in own.places]
    case.layout = Layout.from_places(own.format, places)
    left, right = case.place(_C.OPMASK), case.place(_C.TILECFG)
    case.data[left], case.data[right] = case.data[right], case.data[left]


def _make_initial(case: Case) -> None:
    case.data[case.place(_C.OPMASK)] = bytes(64)


def _overfill_tile(case: Case) -> None:
    case.data[case.place(_C.TILECFG).start + ROWS_AT] = 17


def _narrow_tile(case: Case) -> None:
    case.data[case.place(_C.TILECFG).start + WIDTHS_AT] = 62


def _amd_mxcsr(case: Case) -> None:
    case.target = replace(case.target, cpu=replace(case.target.cpu, mxcsr_mask=0x2FFFF))
    case.put(MXCSR_AT, CLEAN_MXCSR | 1 << 17, 4)
    case.put(MXCSR_AT + 4, 0x2FFFF, 4)


def _short_payload(case: Case) -> None:
    case.forget(_C.TILEDATA)
    del case.data[case.target.standard.offset(_C.TILEDATA) :]


_X, _S, _SIG, _PT, _KVM = (
    *(Consumer.XRSTOR, Consumer.XRSTORS, Consumer.SIGRETURN),
    *(Consumer.PTRACE, Consumer.KVM),
)
_SIG32, _FP, _XFP, _FSAVE = (
    *(Consumer.SIGRETURN32, Consumer.FPREGS),
    *(Consumer.PRXFPREG, Consumer.FSAVE),
)
_EVERY = (*WHOLE_IMAGE, _SIG32)
_FRAMES = (_SIG, _SIG32)
_X87 = WHOLE_IMAGE
_CMP = Format.COMPACTED

MUTATORS: Final[Mapping[str, Mutator]] = MappingProxyType(
    {
        "XS001": Mutator((_X, _S, _SIG, _KVM, _SIG32, Consumer.KVM_FPU), _cut_header),
        "XS002": Mutator((_X, _S, _SIG, _KVM, _SIG32), _cut_component),
        "XS003": Mutator(_FRAMES, _shorten(4)),
        "XS004": Mutator((_PT, _FP, _XFP, _FSAVE), _shorten(3)),
        "XS005": Mutator((_PT, _FP, _XFP, _FSAVE), _shorten(64)),
        "XS006": Mutator((_X, _S, _SIG), _misalign),
        "XS007": Mutator((_X, _SIG), _state_unknown),
        "XS008": Mutator((_X, _S, _SIG), _state_unknown, _CMP),
        "XS009": Mutator((_X, _S, _SIG), _make_room_for_unknown, _CMP),
        "XS010": Mutator((_PT, _SIG32), _state_unknown),
        "XS011": Mutator((_KVM,), _state_unknown),
        "XS012": Mutator((_X, _SIG, _PT, _KVM, _SIG32), _set(XCOMP_BV_AT, 1, 8)),
        "XS013": Mutator((_X, _SIG, _PT, _KVM, _SIG32), _compact),
        "XS014": Mutator((_S,), _standardise),
        "XS015": Mutator(_EVERY, _set(RESERVED_AT, 1, 1)),
        "XS016": Mutator((_PT, _KVM, _S, _SIG32), _set(RESERVED_AT + 32, 0x80, 1)),
        "XS017": Mutator((*_EVERY, _FP, _XFP), _or(MXCSR_AT, 1 << 16, 4)),
        "XS018": Mutator((_X, _S, _SIG), _change(xfd=mask_of(_C.TILEDATA))),
        "XS019": Mutator((_S,), _reserve_shadow_stack),
        "XS020": Mutator(_FRAMES, _no_frame),
        "XS021": Mutator(_FRAMES, _break_magic2),
        "XS022": Mutator(_FRAMES, _break_sizes),
        "XS023": Mutator(_FRAMES, _ask_for_less),
        "XS024": Mutator(_FRAMES, lambda case: _shrink_frame(case, 832)),
        "XS025": Mutator((_KVM,), _change(guest_xfd=mask_of(_C.TILEDATA))),
        "XS026": Mutator((_KVM,), _hide),
        "XS027": Mutator((_PT, _KVM, _SIG32), _orphan_mxcsr),
        "XS028": Mutator((_X, _S, _SIG, _PT, _SIG32), _forget(_C.PKRU)),
        "XS029": Mutator((_KVM,), _forget(_C.PKRU)),
        "XS030": Mutator((_PT, _FP, _XFP, _FSAVE, Consumer.KVM_FPU), _lengthen),
        "XS031": Mutator((_X, _S), _ask_for_part),
        "XS032": Mutator(_EVERY, _swap_places),
        "XS033": Mutator(_FRAMES, _overstate_frame),
        "XS034": Mutator(_EVERY, _overfill_tile),
        "XS035": Mutator((_SIG,), lambda case: None, _CMP),
        "XS101": Mutator((_X, _PT, _KVM), _forget(_C.OPMASK, wipe=False)),
        "XS102": Mutator((_S, *_FRAMES), _forget(_C.OPMASK, wipe=False)),
        "XS103": Mutator(_EVERY, _make_initial),
        "XS104": Mutator(_X87, _set(4, 0xFFFF, 2)),
        "XS105": Mutator(_EVERY, _set(MXCSR_AT, 0, 4)),
        "XS106": Mutator(_X87, _set(0, 0, 2)),
        "XS107": Mutator(_EVERY, _amd_mxcsr),
        "XS108": Mutator(_EVERY, _forget(_C.TILECFG)),
        "XS109": Mutator((_X, _SIG), _set(RESERVED_AT + 32, 0x80, 1)),
        "XS110": Mutator(_EVERY, _set(420, 0x5A, 1)),
        "XS111": Mutator(_X87, _or(2, 0x80, 2)),
        "XS112": Mutator(_EVERY, _set(MXCSR_AT + 4, 0xFFBF, 4)),
        "XS113": Mutator((_KVM,), _short_payload),
        "XS114": Mutator(_EVERY, _narrow_tile),
    }
)
"""How each rule is broken, by its id."""
