"""The rules whose breach makes a consumer refuse an image, each for those that apply it.

XRSTOR answers with #GP (or #PF, where memory ends), sigreturn with SIGSEGV, ptrace and KVM with an errno. Which
rule a consumer applies was measured; docs/rules.md tells where, and where the manuals alone say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fpstate.arch.component import (
    COMPACTED_BIT,
    LEGACY_SIZE,
    MIN_SIZE,
    Component,
    component_name,
    components_in,
)
from fpstate.arch.component import mask_text as names
from fpstate.image.consumer import FRAMES, Consumer
from fpstate.image.finding import Severity
from fpstate.image.rule import EVERY, REGSETS, RESTORES, UABI, Breach, Rule
from fpstate.image.subject import (
    MAGIC2_SIZE,
    MXCSR_AT,
    RESERVED_AT,
    XCOMP_BV_AT,
    XSTATE_BV_AT,
    Subject,
)

_ALIGNMENT: Final = 64
_FX_ALIGNMENT: Final = 16
_CHECKED_BY_ALL: Final = slice(RESERVED_AT, RESERVED_AT + 8)
_CHECKED_BY_SOME: Final = slice(RESERVED_AT + 8, MIN_SIZE)
_MM: Final = 1 << 17
_CET_RESERVED: Final = 0x3C0
_CET_SUPPRESS_AND_TRACKER: Final = 0xC00
_SSP_RESERVED: Final = 3


def _header_missing(subject: Subject) -> Iterator[Breach]:
    needed, name = LEGACY_SIZE if subject.fx_only else MIN_SIZE, "the header"
    if subject.consumer is Consumer.KVM_FPU:
        needed, name = _REGSET_SIZES[Consumer.KVM_FPU], "struct kvm_fpu"
    elif subject.fx_only:
        name = "the FXSAVE image"
    if subject.length < needed:
        yield Breach(
            f"{subject.length} bytes: {name} ends at {needed}" + _after_fsave(subject),
            *(subject.length, subject.length, needed),
        )


def _component_cut(subject: Subject) -> Iterator[Breach]:
    if subject.length < MIN_SIZE:
        return
    for component, end in subject.reach():
        if end > subject.length:
            absent = not subject.fx_only and not subject.xstate_bv >> component & 1
            yield Breach(
                f"{component_name(component)} is {'absent, and yet ' if absent else ''}read up to byte {end},"
                f" the image has {subject.length}" + _after_fsave(subject),
                *(subject.length, subject.length, end, component),
            )


def _magic2_cut(subject: Subject) -> Iterator[Breach]:
    if not subject.fx_only and subject.magic2 is None and subject.length >= MIN_SIZE:
        end = subject.magic2_at + MAGIC2_SIZE
        yield Breach(
            f"the second magic word is read up to byte {end}, the frame has {subject.length}"
            + _after_fsave(subject),
            *(subject.length, subject.length, end),
        )


def _regset_unit(subject: Subject) -> Iterator[Breach]:
    unit = _UNITS[subject.consumer]
    if subject.length % unit:
        yield Breach(
            f"{subject.length} bytes are not a multiple of {unit} (EINVAL)",
            *(subject.length, subject.length, subject.length // unit * unit),
        )


def _regset_short(subject: Subject) -> Iterator[Breach]:
    full, unit = regset_size(subject), _UNITS[subject.consumer]
    if subject.length < full and not subject.length % unit:
        answer = "EFAULT" if subject.consumer is Consumer.PTRACE else "EINVAL"
        yield Breach(f"{subject.length} bytes of {full} ({answer})", subject.length, subject.length, full)


def regset_size(subject: Subject) -> int:
    """Return the bytes that a regset, or struct kvm_fpu, must have; what follows is cut off."""
    return _REGSET_SIZES.get(subject.consumer) or subject.target.standard.size


def _misaligned(subject: Subject) -> Iterator[Breach]:
    needed = _FX_ALIGNMENT if subject.fx_only else _ALIGNMENT
    if subject.address % needed:
        yield Breach(
            f"the address {subject.address:#x} is not a multiple of {needed}",
            found=subject.address,
            expected=subject.address // needed * needed,
        )


def _not_enabled(subject: Subject) -> Iterator[Breach]:
    enabled = subject.target.xcr0
    if subject.instruction and not subject.compacted and (excess := subject.xstate_bv & ~enabled):
        yield Breach(
            f"XSTATE_BV {subject.xstate_bv:#x} has {names(excess)}{_bit63(excess)}, XCR0 is {enabled:#x}",
            *(XSTATE_BV_AT, subject.xstate_bv, enabled),
        )


def _no_room(subject: Subject) -> Iterator[Breach]:
    if not subject.compacted or not subject.takes_compacted:
        return
    room = subject.xcomp_bv & ~COMPACTED_BIT
    if excess := subject.xstate_bv & ~room:
        yield Breach(
            f"XSTATE_BV {subject.xstate_bv:#x} has {names(excess)}{_bit63(excess)},"
            f" which XCOMP_BV {subject.xcomp_bv:#x} gives no room",
            *(XSTATE_BV_AT, subject.xstate_bv, room),
        )


def _room_not_enabled(subject: Subject) -> Iterator[Breach]:
    if not subject.compacted or not subject.takes_compacted:
        return
    enabled = subject.target.xcr0 | (subject.target.xss if subject.consumer is Consumer.XRSTORS else 0)
    if excess := subject.xcomp_bv & ~COMPACTED_BIT & ~enabled:
        yield Breach(
            f"XCOMP_BV {subject.xcomp_bv:#x} has {names(excess)}, enabled are {enabled:#x}",
            *(XCOMP_BV_AT, subject.xcomp_bv, COMPACTED_BIT | enabled),
        )


def _not_the_tasks(subject: Subject) -> Iterator[Breach]:
    allowed = subject.target.user_xfeatures
    if not subject.fx_only and (excess := subject.xstate_bv & ~allowed):
        yield Breach(
            f"XSTATE_BV {subject.xstate_bv:#x} has {names(excess)}{_bit63(excess)},"
            f" the task may have {allowed:#x} (EINVAL)",
            *(XSTATE_BV_AT, subject.xstate_bv, allowed),
        )


def _not_the_guests(subject: Subject) -> Iterator[Breach]:
    allowed = subject.target.kvm_xcr0
    if excess := subject.xstate_bv & ~allowed:
        yield Breach(
            f"XSTATE_BV {subject.xstate_bv:#x} has {names(excess)}{_bit63(excess)}, KVM takes {allowed:#x} (EINVAL)",
            *(XSTATE_BV_AT, subject.xstate_bv, allowed),
        )


def _xcomp_bv_without_63(subject: Subject) -> Iterator[Breach]:
    if subject.xcomp_bv and not subject.compacted and not subject.fx_only:
        yield Breach(f"XCOMP_BV is {subject.xcomp_bv:#x} without bit 63", XCOMP_BV_AT, subject.xcomp_bv, 0)


def _compacted(subject: Subject) -> Iterator[Breach]:
    if subject.compacted and not subject.takes_compacted and not subject.fx_only:
        reason = (
            "this processor has no XSAVEC" if subject.instruction else "the standard format alone is taken"
        )
        yield Breach(f"the image is compacted, and {reason}", XCOMP_BV_AT, subject.xcomp_bv, 0)


def _standard(subject: Subject) -> Iterator[Breach]:
    if not subject.compacted:
        yield Breach(
            "the image is in the standard format, which XRSTORS does not take",
            *(XCOMP_BV_AT, subject.xcomp_bv, subject.xcomp_bv | COMPACTED_BIT),
        )


def _reserved_16(subject: Subject) -> Iterator[Breach]:
    if not subject.fx_only and (found := subject.value(RESERVED_AT, 8)):
        yield Breach(
            f"bytes 16 to 23 of the header are {subject.padded[_CHECKED_BY_ALL].hex()}", RESERVED_AT, found, 0
        )


def _reserved_24(subject: Subject) -> Iterator[Breach]:
    checked = not subject.instruction or subject.compacted or subject.consumer is Consumer.XRSTORS
    if subject.fx_only or not checked:
        return
    rest = subject.padded[_CHECKED_BY_SOME]
    if any(rest):
        first = next(index for index, byte in enumerate(rest) if byte)
        yield Breach(
            f"byte {24 + first} of the header is {rest[first]:#04x}", RESERVED_AT + 8 + first, rest[first], 0
        )


def _mxcsr_reserved(subject: Subject) -> Iterator[Breach]:
    excess = subject.mxcsr & ~subject.target.mxcsr_mask
    if excess and subject.reads_mxcsr:
        hint = (
            "bit 17 exists on AMD alone: clear it to move the image to this processor"
            if excess == _MM
            else ""
        )
        yield Breach(
            f"MXCSR {subject.mxcsr:#x} has reserved bits {excess:#x}, the mask is {subject.target.mxcsr_mask:#x}",
            *(
                MXCSR_AT,
                subject.mxcsr,
                subject.mxcsr & subject.target.mxcsr_mask,
                Component.SSE,
                "mxcsr",
                hint,
            ),
        )


def _held_back(subject: Subject) -> Iterator[Breach]:
    if not subject.instruction:
        return
    target = subject.target
    if held := subject.rfbm & subject.xstate_bv & target.xfd & ~target.expandable:
        for component in components_in(held):
            yield Breach(
                f"IA32_XFD holds {component_name(component)} back: loading it raises #NM, which Linux answers with"
                " SIGILL, as the task has no permission for it",
                *(XSTATE_BV_AT, subject.xstate_bv, subject.xstate_bv & ~held, component),
            )


def _cet_reserved(subject: Subject) -> Iterator[Breach]:
    present, layout = subject.xstate_bv & subject.rfbm, subject.expected_layout
    for component, registers in _CET:
        if layout is None or component not in layout or not present >> component & 1:
            continue
        for index, (register, is_pointer) in enumerate(registers):
            offset = layout.offset(component) + 8 * index
            found = subject.value(offset, 8)
            excess = found & (_SSP_RESERVED if is_pointer else _CET_RESERVED)
            if not is_pointer and found & _CET_SUPPRESS_AND_TRACKER == _CET_SUPPRESS_AND_TRACKER:
                excess |= _CET_SUPPRESS_AND_TRACKER
            if excess:
                yield Breach(
                    f"{register} {found:#x} has bits that cannot be loaded: {excess:#x}",
                    *(offset, found, found & ~excess, component, register),
                )


def _after_fsave(subject: Subject) -> str:
    return f", after {subject.origin} bytes in the form of FSAVE" if subject.origin else ""


def _bit63(mask: int) -> str:
    return " and bit 63" if mask & COMPACTED_BIT else ""


_CET: Final = (
    (Component.CET_U, (("u_cet", False), ("pl3_ssp", True))),
    (Component.CET_S, (("pl0_ssp", True), ("pl1_ssp", True), ("pl2_ssp", True))),
)

_UNITS: Final = {Consumer.PTRACE: 8, Consumer.FPREGS: 8, Consumer.PRXFPREG: 4, Consumer.FSAVE: 4}
"""Bytes of which a regset's length is a multiple (``struct user_regset``, its ``size``)."""
_REGSET_SIZES: Final = {
    Consumer.FPREGS: 512,
    Consumer.PRXFPREG: 512,
    Consumer.FSAVE: 108,
    Consumer.KVM_FPU: 416,
}

_X, _S, _SIG, _PT, _KVM, _SIG32 = (
    *(Consumer.XRSTOR, Consumer.XRSTORS, Consumer.SIGRETURN),
    *(Consumer.PTRACE, Consumer.KVM, Consumer.SIGRETURN32),
)
_ERROR = Severity.ERROR
_VALIDATE = "validate_user_xstate_header"
_SDM = "SDM Vol. 1, 13.8"

REFUSALS: Final = (
    Rule("XS001", "The header is cut off", _ERROR, EVERY - {_PT} | {Consumer.KVM_FPU},
         "SDM Vol. 1, 13.4", _header_missing),
    Rule("XS002", "A component is cut off", _ERROR, EVERY - {_PT}, "SDM Vol. 1, 13.4.3", _component_cut,
         "restore fewer components, or append zeros"),
    Rule("XS003", "The second magic word is cut off", _ERROR, FRAMES, "check_xstate_in_sigframe",
         _magic2_cut),
    Rule("XS004", "The length is not a multiple of the regset's unit", _ERROR, REGSETS, "ptrace_regset", _regset_unit),
    Rule("XS005", "The regset is too short", _ERROR, REGSETS, "xstateregs_set, xfpregs_set, fpregs_set",
         _regset_short, "append zeros up to the size that PTRACE_GETREGSET returns"),
    Rule("XS006", "The address is misaligned", _ERROR, RESTORES, "SDM Vol. 1, 13.8 and 10.5", _misaligned),
    Rule("XS007", "XSTATE_BV has components that XCR0 lacks", _ERROR, frozenset({_X, _SIG}), "SDM Vol. 1, 13.8.1",
         _not_enabled),
    Rule("XS008", "XSTATE_BV has components that XCOMP_BV lacks", _ERROR, RESTORES, "SDM Vol. 1, 13.8.2", _no_room),
    Rule("XS009", "XCOMP_BV has components that are not enabled", _ERROR, RESTORES, "SDM Vol. 1, 13.8.2 and 13.12",
         _room_not_enabled),
    Rule("XS010", "XSTATE_BV has components that the task may not have", _ERROR, frozenset({_PT, _SIG32}), _VALIDATE,
         _not_the_tasks),
    Rule("XS011", "XSTATE_BV has components that KVM does not take", _ERROR, frozenset({_KVM}),
         "fpu_copy_uabi_to_guest_fpstate", _not_the_guests),
    Rule("XS012", "XCOMP_BV without its bit 63", _ERROR, EVERY - {_S}, f"SDM Vol. 1, 13.8.1; {_VALIDATE}",
         _xcomp_bv_without_63),
    Rule("XS013", "The compacted format is not taken", _ERROR, EVERY - {_S}, f"SDM Vol. 1, 13.8; {_VALIDATE}",
         _compacted, "convert the image to the standard format"),
    Rule("XS014", "The standard format is not taken", _ERROR, frozenset({_S}), "SDM Vol. 1, 13.12", _standard,
         "convert the image to the compacted format"),
    Rule("XS015", "Header bytes 16 to 23 are not zero", _ERROR, EVERY, f"{_SDM}; {_VALIDATE}", _reserved_16),
    Rule("XS016", "Header bytes 24 to 63 are not zero", _ERROR, EVERY, f"SDM Vol. 1, 13.8.2; {_VALIDATE}",
         _reserved_24),
    Rule("XS017", "MXCSR has reserved bits", _ERROR, EVERY | {Consumer.FPREGS, Consumer.PRXFPREG},
         "SDM Vol. 1, 10.2.3; copy_uabi_to_xstate; xfpregs_set", _mxcsr_reserved),
    Rule("XS018", "XFD holds a component back", _ERROR, RESTORES, "SDM Vol. 1, 13.14", _held_back,
         "request the component with arch_prctl(ARCH_REQ_XCOMP_PERM), or leave it out of XSTATE_BV or the mask"),
    Rule("XS019", "Shadow-stack state that cannot be loaded", _ERROR, frozenset({_S}), "SDM Vol. 1, 13.12 and 17.2",
         _cet_reserved),
)  # fmt: skip
"""In the order of their ids."""

assert {consumer for rule in REFUSALS for consumer in rule.consumers} == set(Consumer)
assert EVERY >= UABI
