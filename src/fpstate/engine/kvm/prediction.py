"""What loading a state into a vCPU will do, said before the vCPU is touched."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from fpstate.arch.component import (
    LEGACY,
    Component,
    components_in,
    mask_of,
    mask_text,
    xcr0_problem,
)
from fpstate.engine.kvm.destination import CARRIED_BY_MSRS, SUPERVISOR_MSRS, Destination
from fpstate.errors import ConversionLoss, FpStateError
from fpstate.image.consumer import Consumer
from fpstate.image.control import MXCSR_INIT
from fpstate.image.convert import convert
from fpstate.image.finding import Finding, Severity
from fpstate.image.image import Image
from fpstate.image.loss import LOSSES
from fpstate.image.rules import Verdict, check, predict
from fpstate.image.tile import restore_defect
from fpstate.source.guest_state import PKRU_OS_DEFAULT, GuestState, with_pkru

_PKRU: Final = mask_of(Component.PKRU)
_TILECFG: Final = mask_of(Component.TILECFG)
_ILLEGAL_TILECFG: Final = "XS034"
_MXCSR_CARRIERS: Final = LEGACY | mask_of(Component.AVX)
"""One of them brings MXCSR where the kernel restores in the standard format; without any the vCPU's old one stays
(``xfeatures_mxcsr_quirk``; SDM Vol. 1, 13.8)."""
_LOSSES: Final = frozenset(rule.id for rule in LOSSES)
_XSTATE_BV: Final = slice(512, 520)


class Outcome(enum.Enum):
    """What becomes of a state: the kernel refuses it; loads it; loads less than it states; or loads it, with doubts.

    ``SUSPICIOUS``: nothing that the image states is lost, but something about it deserves a look, such as data in
    a component that it does not state.
    """

    REJECTED = "rejected"
    LOADED = "loaded"
    LOSS = "loaded with loss"
    SUSPICIOUS = "suspicious"


def outcome_of(verdict: Verdict, findings: list[Finding]) -> Outcome:
    """Return the outcome of a payload that KVM_SET_XSAVE is given as it stands."""
    if not verdict.accepted:
        return Outcome.REJECTED
    if verdict.lost or verdict.mxcsr_lost:
        return Outcome.LOSS
    doubts = any(each.severity is Severity.WARNING and each.id not in _LOSSES for each in findings)
    return Outcome.SUSPICIOUS if doubts else Outcome.LOADED


class Action(enum.Enum):
    """What a load does with one component."""

    LOADED = "loaded"
    INITIALISED = "initialised"
    KEPT = "kept"
    SET = "set by policy"
    STRIPPED = "stripped, was initial"
    DROPPED = "dropped"


@dataclass(frozen=True)
class Prediction:
    """What a load will do. ``lost`` are the components whose registers would be lost, ``stripped`` those that the
    vCPU lacks and that are initial; ``reasons`` and ``findings`` say why, in words and as data.

    ``payload`` is what KVM_SET_XSAVE will be given, None where the state is rejected; ``xcr0``, ``xss``, ``xfd`` and
    ``xfd_err`` are what the vCPU will get, ``msrs`` the registers of supervisor components by name.
    """

    outcome: Outcome
    state: GuestState
    destination: Destination
    answer: str = ""
    lost: int = 0
    stripped: int = 0
    reasons: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    payload: bytes | None = field(default=None, repr=False)
    xcr0: int = 1
    xss: int = 0
    xfd: int = 0
    xfd_err: int = 0
    msrs: tuple[tuple[str, int], ...] = ()
    actions: tuple[tuple[int, Action], ...] = ()

    def __str__(self) -> str:
        if self.outcome is Outcome.REJECTED:
            return f"rejected ({self.answer})" if self.answer else "rejected"
        if self.outcome is Outcome.LOSS:
            return f"loaded with loss of {mask_text(self.lost)}"
        return str(self.outcome.value)


def predict_load(state: GuestState, destination: Destination, *, allow_loss: int = 0) -> Prediction:
    """Say what loading ``state`` will do. ``allow_loss`` names the components whose registers may be lost.

    A loss that is not allowed gives the outcome LOSS and no payload. One that is allowed becomes an action
    DROPPED, and the outcome is that of what is left.
    """
    room = destination.guest_xcr0 | LEGACY | destination.guest_xss
    harmless = _leaked(state)
    dropped = allow_loss & state.image.xstate_bv & ~(room & (state.enabled | LEGACY))
    kept = _without(state, harmless | dropped)
    if found := kept.findings():
        whole = _without(state, harmless)
        if dropped and not whole.findings() and (others := _lost(whole, destination) & ~allow_loss):
            return _loss(state, destination, others)  # of a set that XCR0 has whole or not at all
        reasons = tuple(f"{each.id} {each.message}" for each in found)
        return Prediction(
            *(Outcome.REJECTED, state, destination, "EINVAL"),
            reasons=reasons,
            findings=tuple(found),
        )
    lost = _lost(kept, destination)
    if lost & ~allow_loss:
        return _loss(state, destination, lost & ~allow_loss)
    if illegal := _illegal_tilecfg(kept.image) & allow_loss & room:
        kept = replace(kept, image=_unstated(kept.image, illegal))
    lacking = (kept.image.xstate_bv | kept.xcr0 | kept.xss) & ~room
    fitted = _without(kept, lacking)
    capable = destination.xfd_capable
    fitted = replace(fitted, xfd=fitted.xfd & capable, xfd_err=fitted.xfd_err & capable)
    try:
        return _fitting(
            state, fitted, destination, harmless | lacking & ~lost, dropped | lost | illegal, allow_loss
        )
    except ConversionLoss as error:
        mask = mask_of(*(loss.component for loss in error.losses))
        return replace(_loss(state, destination, mask), reasons=tuple(map(str, error.losses)))
    except FpStateError as error:
        return Prediction(Outcome.REJECTED, state, destination, reasons=(str(error),))


def _leaked(state: GuestState) -> int:
    """Return the components that the guest never had and that say nothing: initial, or the host's default PKRU.

    Hosts leaked their own PKRU into guest images for a while; see ``fpu_copy_guest_fpstate_to_uabi``.
    """
    foreign = state.image.xstate_bv & state.image.layout.mask & ~state.enabled & ~LEGACY & ~state.cpu.xss
    if not foreign or state.image.xcomp_bv != state.image.layout.xcomp_bv:
        return 0
    if state.image.xstate_bv & ~state.image.layout.mask:
        return 0
    harmless = foreign & ~state.image.in_use
    if foreign & _PKRU and state.image.registers["pkru"] == PKRU_OS_DEFAULT:
        harmless |= _PKRU
    return harmless


def _without(state: GuestState, mask: int) -> GuestState:
    """Return a state that does not have some components: not stated, not enabled, not held back."""
    if not mask:
        return state
    keep = ~(mask & ~LEGACY)
    return replace(
        state,
        image=_unstated(state.image, mask),
        xcr0=state.xcr0 & keep,
        xss=state.xss & keep,
        xfd=state.xfd & keep,
        xfd_err=state.xfd_err & keep,
    )


def _unstated(image: Image, mask: int) -> Image:
    """Return an image that does not state some components."""
    data = bytearray(image.to_bytes())
    stated = int.from_bytes(data[_XSTATE_BV], "little")
    data[_XSTATE_BV] = (stated & ~mask).to_bytes(8, "little")
    return Image(bytes(data), image.layout, image.layout_source)


def _lost(state: GuestState, destination: Destination) -> int:
    """Return the components that are not initial and that the vCPU lacks, or for which KVM has no way."""
    in_use = state.image.in_use
    room = destination.guest_xcr0 | LEGACY | destination.guest_xss
    return in_use & ~room | in_use & destination.guest_xss & ~CARRIED_BY_MSRS


def _illegal_tilecfg(image: Image) -> int:
    """Return TILECFG's bit where it is stated and no restore loads it: KVM takes it, and the guest's is initial."""
    stated = image.xstate_bv & image.layout.mask & _TILECFG
    return stated if stated and restore_defect(image.store.read_all(Component.TILECFG)) else 0


def _loss(state: GuestState, destination: Destination, mask: int) -> Prediction:
    names = mask_text(mask)
    return Prediction(
        *(Outcome.LOSS, state, destination),
        lost=mask,
        reasons=(
            f"{names}: not initial, and the vCPU has {mask_text(destination.guest_xcr0 | destination.guest_xss)}",
        ),
    )


def _fitting(
    state: GuestState, fitted: GuestState, destination: Destination, stripped: int, dropped: int, allowed: int
) -> Prediction:
    """Make the payload for a state of which the vCPU has every component."""
    reasons = list(_narrowings(state, fitted))
    if problem := xcr0_problem(fitted.xcr0, destination.guest_xcr0 | 1):
        return Prediction(
            *(Outcome.REJECTED, state, destination, "EINVAL"),
            reasons=(f"KVM_SET_XCRS refuses XCR0 {fitted.xcr0:#x}: {problem}",),
        )
    supervisor = tuple(_supervisor(fitted))
    converted = convert(
        fitted.image,
        destination.layout,
        drop=components_in(allowed | CARRIED_BY_MSRS),
        mxcsr_mask=destination.cpu.mxcsr_mask,
    )
    image = converted.image
    if image.registers.canonical("mxcsr") != MXCSR_INIT or not image.xstate_bv & _MXCSR_CARRIERS:
        image.store.activate(
            Component.SSE
        )  # elsewhere MXCSR reaches no register (XS027), or stays what it was
    by_policy = _apply_pkru(fitted, destination, image)
    payload = image.to_bytes().ljust(destination.xsave_size, b"\0")
    if len(payload) > destination.xsave_size:
        return Prediction(
            *(Outcome.REJECTED, state, destination),
            reasons=(f"{len(payload)} bytes, and the vCPU's buffer has {destination.xsave_size}",),
        )
    target = destination.target(fitted.xfd)
    verdict = predict(payload, Consumer.KVM, target)
    original = check(state.image.to_bytes(), Consumer.XRSTORS, target, layout=state.image.layout)
    doubts = [each for each in original if each.severity is Severity.WARNING and each.id.startswith("XS1")]
    reasons += [f"{each.id} {each.message}" for each in doubts]
    outcome = outcome_of(verdict, [])
    if outcome is Outcome.LOSS:
        losses = [each for each in check(payload, Consumer.KVM, target) if each.id == _ILLEGAL_TILECFG]
        reasons += [f"{each.id} {each.message}" for each in losses]
        doubts += losses
    if outcome is Outcome.LOADED and reasons:
        outcome = Outcome.SUSPICIOUS
    return Prediction(
        *(outcome, state, destination, verdict.answer, verdict.lost, stripped),
        reasons=tuple(reasons),
        findings=(*verdict.refusals, *doubts),
        payload=payload if outcome in (Outcome.LOADED, Outcome.SUSPICIOUS) else None,
        xcr0=fitted.xcr0,
        xss=fitted.xss,
        xfd=fitted.xfd,
        xfd_err=fitted.xfd_err,
        msrs=supervisor,
        actions=tuple(_actions(verdict, by_policy, stripped, dropped, supervisor)),
    )


def _narrowings(state: GuestState, fitted: GuestState) -> Iterator[str]:
    for name in ("xcr0", "xss", "xfd", "xfd_err"):
        before, after = getattr(state, name), getattr(fitted, name)
        if before != after:
            yield f"{name.upper()} {before:#x} becomes {after:#x}: the vCPU lacks {mask_text(before & ~after)}"


def _supervisor(state: GuestState) -> Iterator[tuple[str, int]]:
    registers = state.image.registers
    for name in SUPERVISOR_MSRS:
        if registers.get(name):
            yield name, registers[name]


def _apply_pkru(state: GuestState, destination: Destination, image: Image) -> int:
    """Carry the PKRU policy out; returns PKRU's bit where it wrote a value."""
    value = state.pkru.value_written
    if not destination.guest_xcr0 & _PKRU or image.xstate_bv & _PKRU or value is None:
        return 0
    with_pkru(image, value)
    return _PKRU


def _actions(
    verdict: Verdict, by_policy: int, stripped: int, dropped: int, supervisor: tuple[tuple[str, int], ...]
) -> Iterator[tuple[int, Action]]:
    by_msr = {
        component
        for name, _ in supervisor
        for component, names in _SUPERVISOR_REGISTERS.items()
        if name in names
    }
    everything = verdict.loaded | verdict.initialised | verdict.kept | stripped | dropped | mask_of(*by_msr)
    for component in components_in(everything):
        bit = 1 << component
        if dropped & bit:
            yield component, Action.DROPPED
        elif stripped & bit:
            yield component, Action.STRIPPED
        elif by_policy & bit:
            yield component, Action.SET
        elif verdict.kept & bit:
            yield component, Action.KEPT
        elif verdict.loaded & bit or component in by_msr:
            yield component, Action.LOADED
        else:
            yield component, Action.INITIALISED


_SUPERVISOR_REGISTERS: Final = {
    Component.CET_U: ("u_cet", "pl3_ssp"),
    Component.CET_S: ("pl0_ssp", "pl1_ssp", "pl2_ssp"),
}
