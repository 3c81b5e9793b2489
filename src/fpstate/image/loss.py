"""The rules whose breach a consumer lets pass, and then loads less, or something else, than the image states."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fpstate.arch.component import LEGACY, MIN_SIZE, Component, component_name, components_in, mask_of
from fpstate.arch.component import mask_text as names
from fpstate.arch.layout import Layout
from fpstate.image.consumer import FRAMES, INSTRUCTIONS, Consumer
from fpstate.image.control import MXCSR_INIT
from fpstate.image.finding import Severity
from fpstate.image.refusal import regset_size
from fpstate.image.rule import EVERY, REGSETS, RESTORES, UABI, Breach, Rule
from fpstate.image.subject import (
    MAGIC1,
    MAGIC2,
    MAGIC2_SIZE,
    MXCSR_AT,
    SOFTWARE_AT,
    XCOMP_BV_AT,
    XSTATE_BV_AT,
    Subject,
)
from fpstate.image.tile import Defect, restore_defect

_EXTENDED_SIZE_AT: Final = SOFTWARE_AT + 4
_XFEATURES_AT: Final = SOFTWARE_AT + 8
_XSTATE_SIZE_AT: Final = SOFTWARE_AT + 16
_SSE: Final = mask_of(Component.SSE)
_AVX: Final = mask_of(Component.AVX)
_PKRU: Final = mask_of(Component.PKRU)
_TILECFG: Final = mask_of(Component.TILECFG)
_COPIED: Final = UABI | {Consumer.SIGRETURN32}


def misplaced(subject: Subject) -> int:
    """The present components that lie elsewhere, or have another size, than the consumer will take for granted."""
    given, expected = subject.given, subject.expected_layout
    if given is None or expected is None or subject.fx_only:
        return 0
    shared = subject.xstate_bv & given.mask & expected.mask & ~LEGACY
    return mask_of(*(n for n in components_in(shared) if given.place(n) != expected.place(n)))


def _no_magic1(subject: Subject) -> Iterator[Breach]:
    if not subject.is_frame:
        yield Breach(
            "no signal frame's software bytes: x87, XMM and MXCSR are loaded, all else becomes initial",
            *_disbelieved(subject),
        )


def _no_magic2(subject: Subject) -> Iterator[Breach]:
    if subject.is_frame and subject.sizes_fit and subject.magic2 not in (None, MAGIC2):
        yield Breach(
            "no second magic word behind the state: x87, XMM and MXCSR are loaded, all else becomes initial",
            *_disbelieved(subject),
        )


def _sizes(subject: Subject) -> Iterator[Breach]:
    if not subject.is_frame or subject.sizes_fit:
        return
    size, extended_size = subject.frame.xstate_size, subject.frame.extended_size
    if size > extended_size:
        reason = f"xstate_size {size} is more than extended_size {extended_size}"
    else:
        reason = f"xstate_size {size} is not between {MIN_SIZE} and the task's {subject.target.user_size}"
    yield Breach(f"{reason}: x87, XMM and MXCSR are loaded, all else becomes initial", *_disbelieved(subject))


def _disbelieved(subject: Subject) -> tuple[int, int | None, int]:
    """The word for which a frame is taken for an FXSAVE image: its offset, what it is, and what it should be."""
    frame = subject.frame
    if not subject.is_frame:
        return SOFTWARE_AT, frame.magic1, MAGIC1
    if subject.sizes_fit:
        return subject.magic2_at, subject.magic2, MAGIC2
    if frame.xstate_size > frame.extended_size:
        return _EXTENDED_SIZE_AT, frame.extended_size, frame.xstate_size + MAGIC2_SIZE
    fitting = min(max(frame.xstate_size, MIN_SIZE), subject.target.user_size)
    return _XSTATE_SIZE_AT, frame.xstate_size, fitting


def _xfeatures(subject: Subject) -> Iterator[Breach]:
    if subject.fx_only:
        return
    if lost := subject.xstate_bv & subject.target.xcr0 & ~subject.rfbm:
        found = subject.frame.xfeatures
        yield Breach(
            f"{names(lost)} is in XSTATE_BV but not in the frame's xfeatures {found:#x} and the task's"
            f" {subject.target.user_xfeatures:#x}: it becomes initial",
            *(_XFEATURES_AT, found, found | lost),
        )


def _smaller_frame(subject: Subject) -> Iterator[Breach]:
    size, user_size = subject.frame.xstate_size, subject.target.user_size
    if not subject.fx_only and size < user_size and not _behind_end(subject):
        yield Breach(
            f"a frame of {size} bytes where this kernel's have {user_size}: Linux 6.15 until the revert in 7.1"
            " looks for the second magic word at the latter, and loads x87 and SSE alone",
            *(_XSTATE_SIZE_AT, size, user_size),
        )


def _behind_end(subject: Subject) -> list[tuple[int, int]]:
    return (
        [] if subject.fx_only else [item for item in subject.reach() if item[1] > subject.frame.xstate_size]
    )


def _states_behind_end(subject: Subject) -> Iterator[Breach]:
    for component, end in _behind_end(subject):
        if subject.complete and subject.xstate_bv >> component & 1:
            yield Breach(
                f"{component_name(component)} ends at {end}, the frame at {subject.frame.xstate_size}:"
                " what lies behind it is loaded",
                *(_XSTATE_SIZE_AT, subject.frame.xstate_size, end, component),
            )


def _xfd_dropped(subject: Subject) -> Iterator[Breach]:
    for component in components_in(subject.xstate_bv & subject.target.guest_xfd):
        yield Breach(
            f"the guest's IA32_XFD holds {component_name(component)} back: KVM clears it without a word",
            *(XSTATE_BV_AT, subject.xstate_bv, subject.xstate_bv & ~subject.target.guest_xfd, component),
            help="set IA32_XFD before the state, and only ship what it lets through",
        )


def _hidden(subject: Subject) -> Iterator[Breach]:
    visible = subject.target.guest_xcr0 | LEGACY
    if hidden := subject.xstate_bv & subject.target.kvm_xcr0 & ~visible & ~subject.target.guest_xfd:
        yield Breach(
            f"{names(hidden)} is not in the guest's CPUID: it is taken, but the next KVM_GET_XSAVE lacks it",
            *(XSTATE_BV_AT, subject.xstate_bv, subject.xstate_bv & visible),
            help="set the guest's CPUID first (KVM_SET_CPUID2)",
        )


def mxcsr_is_lost(subject: Subject) -> bool:
    """Whether an MXCSR reaches no register, as only SSE carries it where the kernel restores its own image.

    XSAVE in the standard format writes MXCSR whatever XSTATE_BV says. A 0 that no component carries is a blank.
    """
    if subject.consumer not in _COPIED or subject.compacted or not subject.target.compacted_restore:
        return False
    if subject.fx_only or subject.xstate_bv & _SSE or subject.mxcsr == MXCSR_INIT:
        return False
    return bool(subject.xstate_bv & _AVX or subject.mxcsr)


def _mxcsr_lost(subject: Subject) -> Iterator[Breach]:
    if mxcsr_is_lost(subject):
        how = (
            "with AVX but without SSE: it reads back, yet"
            if subject.xstate_bv & _AVX
            else "with neither SSE nor AVX:"
        )
        yield Breach(
            f"MXCSR {subject.mxcsr:#x} comes {how} the register gets {MXCSR_INIT:#x}",
            *(MXCSR_AT, subject.mxcsr, MXCSR_INIT, Component.SSE, "mxcsr"),
        )


def _pkru_opened(subject: Subject) -> Iterator[Breach]:
    if not subject.target.user_xfeatures & _PKRU & _opening(subject):
        return
    if subject.fx_only:
        place = _disbelieved(subject)
        reason = "the frame is taken for an FXSAVE image, in which PKRU has no place,"
    elif subject.xstate_bv & _PKRU:
        found = subject.frame.xfeatures
        place = _XFEATURES_AT, found, found | _PKRU
        reason = "PKRU is not in the frame's xfeatures"
    else:
        place = XSTATE_BV_AT, subject.xstate_bv, subject.xstate_bv | _PKRU
        reason = "PKRU is absent"
    yield Breach(f"{reason} and so becomes 0: every protection key is open", *place, Component.PKRU, "pkru")


def _opening(subject: Subject) -> int:
    """Return what becomes initial: of a frame all that it does not bring, else what is asked for and absent."""
    if subject.fx_only:
        return ~LEGACY
    if subject.consumer in FRAMES:
        return ~(subject.rfbm & subject.xstate_bv)
    return subject.rfbm & ~subject.xstate_bv


def _pkru_kept(subject: Subject) -> Iterator[Breach]:
    if subject.target.guest_xcr0 & ~subject.xstate_bv & _PKRU:
        yield Breach(
            "PKRU is absent: KVM keeps the vCPU's value, while all other absent components become initial",
            *(XSTATE_BV_AT, subject.xstate_bv, subject.xstate_bv | _PKRU, Component.PKRU, "pkru"),
        )


def _truncated(subject: Subject) -> Iterator[Breach]:
    full = regset_size(subject)
    if subject.length > full:
        yield Breach(f"{subject.length} bytes, of which the first {full} count", full, subject.length, full)


def _not_asked_for(subject: Subject) -> Iterator[Breach]:
    reachable = subject.target.xcr0 | (subject.target.xss if subject.consumer is Consumer.XRSTORS else 0)
    if left := subject.xstate_bv & reachable & ~subject.rfbm:
        yield Breach(
            f"{names(left)} is stated but not asked for: the registers keep what they hold",
            *(XSTATE_BV_AT, subject.xstate_bv, subject.rfbm),
        )


def _misplaced(subject: Subject) -> Iterator[Breach]:
    given, expected = subject.given, subject.expected_layout
    if given is None or expected is None:
        return
    for component in components_in(misplaced(subject)):
        there, here = given.place(component), expected.place(component)
        yield Breach(
            f"{component_name(component)} lies at {there.offset} with {there.size} bytes,"
            f" and is read at {here.offset} with {here.size}",
            *(there.offset, there.offset, here.offset, component),
        )


def dropped_tilecfg(subject: Subject) -> Defect | None:
    """Return why a TILECFG that is asked for and present is not loaded as it stands; None where it is.

    No one answers it with a fault or an errno: the kernel's own restore comes later, and the processor's makes
    TILECFG initial without a word.
    """
    if subject.fx_only or not subject.rfbm & subject.xstate_bv & _TILECFG:
        return None
    data = subject.read(Component.TILECFG)
    return restore_defect(data) if data else None


def _tilecfg_dropped(subject: Subject) -> Iterator[Breach]:
    defect = dropped_tilecfg(subject)
    if defect and not misplaced(subject) & _TILECFG:
        layout = subject.expected_layout
        assert layout is not None
        reads_back = " (it reads back as it stands)" if subject.consumer in UABI else ""
        yield Breach(
            f"{defect.text}: TILECFG becomes initial, and tile instructions then raise #UD{reads_back}",
            *(layout.offset(Component.TILECFG) + defect.offset, defect.found, defect.expected),
            *(Component.TILECFG, "tilecfg"),
        )


def _compacted_frame(subject: Subject) -> Iterator[Breach]:
    if subject.fx_only or not subject.compacted or not subject.takes_compacted:
        return
    here, standard = subject.expected_layout, subject.target.standard
    own = Layout.standard(subject.target.cpu, subject.frame.xfeatures & subject.target.xcr0).size
    if here is None or subject.frame.xstate_size not in (subject.target.user_size, own):
        return
    if subject.xstate_bv & ~here.mask:
        return
    present = subject.xstate_bv & standard.mask & ~LEGACY
    moved = [n for n in components_in(present) if here.place(n) != standard.place(n)]
    if moved:
        first = here.place(moved[0])
        yield Breach(
            f"XCOMP_BV says compacted, and xstate_size {subject.frame.xstate_size} is that of the standard format, in"
            f" which the kernel writes frames: {names(mask_of(*moved))} are read as compacted, the first at byte"
            f" {first.offset}",
            *(XCOMP_BV_AT, subject.xcomp_bv, 0, moved[0]),
        )


_SIG, _PT, _KVM = Consumer.SIGRETURN, Consumer.PTRACE, Consumer.KVM
_WARNING, _NOTE = Severity.WARNING, Severity.NOTE
_FRAME = "check_xstate_in_sigframe"

LOSSES: Final = (
    Rule("XS020", "No first magic word", _WARNING, FRAMES, _FRAME, _no_magic1,
         "write the software bytes 464 to 511 of a frame, and the second magic word behind the state"),
    Rule("XS021", "No second magic word", _WARNING, FRAMES, _FRAME, _no_magic2),
    Rule("XS022", "Sizes in the frame that are not believed", _WARNING, FRAMES, _FRAME, _sizes),
    Rule("XS023", "The frame does not ask for what it states", _WARNING, FRAMES,
         "restore_fpregs_from_user", _xfeatures),
    Rule("XS024", "A frame smaller than the kernel's own", _NOTE, FRAMES, _FRAME, _smaller_frame),
    Rule("XS025", "KVM drops what XFD holds back", _WARNING, frozenset({_KVM}), "fpu_copy_uabi_to_guest_fpstate",
         _xfd_dropped),
    Rule("XS026", "KVM takes what the guest cannot see", _WARNING, frozenset({_KVM}),
         "kvm_vcpu_ioctl_x86_get_xsave2", _hidden),
    Rule("XS027", "MXCSR without SSE", _WARNING, _COPIED, "SDM Vol. 1, 13.8.2; xfeatures_mxcsr_quirk", _mxcsr_lost,
         "set the SSE bit too"),
    Rule("XS028", "PKRU absent, and so all keys open", _WARNING, RESTORES | FRAMES | {_PT}, "SDM Vol. 1, 13.5.7",
         _pkru_opened, "state PKRU; 0x55555554 is what Linux gives a new program"),
    Rule("XS029", "PKRU absent, and so kept", _NOTE, frozenset({_KVM}), "fpu_copy_uabi_to_guest_fpstate",
         _pkru_kept),
    Rule("XS030", "Bytes behind the regset", _NOTE, REGSETS | {Consumer.KVM_FPU},
         "ptrace_regset; kvm_arch_vcpu_ioctl_set_fpu", _truncated),
    Rule("XS031", "Stated but not asked for", _WARNING, INSTRUCTIONS,
         "SDM Vol. 1, 13.8", _not_asked_for),
    Rule("XS032", "Laid out for another processor", _WARNING, EVERY, "CPUID leaf 0DH", _misplaced,
         "convert the image to the target's layout"),
    Rule("XS033", "The frame states components behind its own end", _WARNING, FRAMES,
         "restore_fpregs_from_user", _states_behind_end,
         "give the frame the size that its xfeatures need, or leave the component out of them"),
    Rule("XS034", "TILECFG that no processor loads", _WARNING, EVERY, "SDM Vol. 2, LDTILECFG", _tilecfg_dropped,
         "give each tile at most 16 rows of at most 64 bytes, or neither, with palette 1 and zeros elsewhere"),
    Rule("XS035", "A compacted header on a frame of standard size", _WARNING, frozenset({_SIG}),
         "restore_fpregs_from_user", _compacted_frame, "clear XCOMP_BV if the bytes are in the standard format"),
)  # fmt: skip
"""In the order of their ids."""
