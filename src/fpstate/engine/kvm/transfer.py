"""States into vCPUs and out of them: foretold, loaded in the order that the kernel needs, read back, compared.

Order of a load: KVM_SET_CPUID2 (which bounds all that follows), KVM_SET_XCRS, the MSRs IA32_XSS, IA32_XFD and
IA32_XFD_ERR with those of supervisor components, then KVM_SET_XSAVE. KVM_SET_FPU is never used: it takes no MXCSR
and does not set XSTATE_BV (``kvm_arch_vcpu_ioctl_set_fpu``).
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from fpstate.arch.component import SUPERVISOR_SUPPORTED, Component, component_name, components_in, mask_of
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Format, Layout
from fpstate.engine.kvm.destination import (
    CARRIED_BY_MSRS,
    STATE_MSRS,
    SUPERVISOR_MSRS,
    Destination,
    StateVcpu,
)
from fpstate.engine.kvm.prediction import Action, Outcome, Prediction, predict_load
from fpstate.errors import KvmError, LoadMismatch, LoadRefused
from fpstate.image.convert import convert
from fpstate.image.difference import Difference, differences
from fpstate.image.image import Image
from fpstate.image.subject import SOFTWARE_AT
from fpstate.source.guest_state import GuestState, PkruPolicy, with_pkru

_SOFTWARE: Final = slice(SOFTWARE_AT, 512)
_PKRU: Final = mask_of(Component.PKRU)


@dataclass(frozen=True)
class ComponentReport:
    """What became of one component, and the registers that do not read back as loaded."""

    component: int
    action: Action
    differences: tuple[Difference, ...] = ()

    @property
    def name(self) -> str:
        """The component's name."""
        return component_name(self.component)


@dataclass(frozen=True)
class LoadReport:
    """A load that was done: what was foretold, the state read back, each component, and controls that differ.

    ``controls`` has name, wanted and found of each of XCR0, XSS, XFD, XFD_ERR and the MSRs of supervisor
    components that reads back otherwise.
    """

    prediction: Prediction
    after: GuestState
    components: tuple[ComponentReport, ...]
    controls: tuple[tuple[str, int, int], ...] = ()

    @property
    def exact(self) -> bool:
        """Whether everything reads back as it was loaded."""
        return not self.controls and not any(each.differences for each in self.components)

    def problems(self) -> list[str]:
        """Return a sentence for each register and control that reads back otherwise."""
        found = [f"{name} {wanted:#x} reads back {there:#x}" for name, wanted, there in self.controls]
        different = dict.fromkeys(item for each in self.components for item in each.differences)
        return found + [f"{item.register} {item.a:#x} reads back {item.b:#x}" for item in different]


def save(
    vcpu: StateVcpu, *, destination: Destination | None = None, pkru: PkruPolicy = PkruPolicy.INITIAL
) -> GuestState:
    """Return a vCPU's whole state; the vCPU stays as it is.

    The image is in the host's standard layout, or compacted where supervisor components that KVM keeps in MSRs
    are enabled. Bytes 464 to 511, where KVM states the host's mask, are zeros. Raises KvmError.
    """
    there = Destination.of(vcpu) if destination is None else destination
    data, layout = vcpu.xsave(), there.layout
    data[_SOFTWARE] = bytes(512 - SOFTWARE_AT)
    controls = read_msrs(vcpu, there)
    image = Image(bytes(data[: layout.size]), layout, "host")
    xss = controls.get("xss", 0)
    if supervisor := xss & CARRIED_BY_MSRS & there.guest_xss:
        image = _with_supervisor(image, there.cpu, supervisor, controls)
    return GuestState(
        image, vcpu.xcr0(), there.cpu, xss, controls.get("xfd", 0), controls.get("xfd_err", 0), pkru
    )


def load(
    vcpu: StateVcpu,
    state: GuestState,
    *,
    allow_loss: int = 0,
    cpuid: bytearray | None = None,
    destination: Destination | None = None,
) -> LoadReport:
    """Load a state and prove it: everything reads back as it was loaded, register by register.

    ``cpuid`` (struct kvm_cpuid2) is set first where it is given, for vCPUs that were not told theirs.
    ``allow_loss`` names components whose registers may be lost. ``destination`` saves asking the vCPU what it has,
    where many states follow each other.

    Raises LoadRefused, with the prediction, before the vCPU is touched: where the kernel would refuse the state or
    lose part of it. Raises KvmError where an ioctl fails all the same, after putting the earlier state back, and
    LoadMismatch, with the report, where something reads back otherwise.
    """
    there = Destination.of(vcpu, cpuid=cpuid) if destination is None else destination
    prediction = _accepted(state, there, allow_loss)
    if cpuid is not None:
        vcpu.set_cpuid(cpuid)
        told = Destination.of(vcpu)
        if told != there:  # KVM has changes of its own
            there, prediction = told, _accepted(state, told, allow_loss)
    before = vcpu.xsave(), vcpu.xcr0(), read_msrs(vcpu, there)
    prediction = _keeping_pkru(prediction, before[0])
    try:
        _write(vcpu, prediction)
    except KvmError:
        _put_back(vcpu, there, *before)
        raise
    report = _compare(prediction, vcpu, before[0])
    if not report.exact:
        raise LoadMismatch("loaded, but read back otherwise: " + "; ".join(report.problems()), report)
    return report


def _keeping_pkru(prediction: Prediction, earlier: bytearray) -> Prediction:
    """Let the payload state the PKRU that the vCPU keeps: left out, KVM keeps it and does not give it back.

    KVM_GET_XSAVE would have bit 9 clear and zeros until the guest has run, and who saves by then would lose it.
    """
    layout = prediction.destination.layout
    old = Image(earlier[: layout.size], layout)
    if dict(prediction.actions).get(Component.PKRU) is not Action.KEPT or not old.xstate_bv & _PKRU:
        return prediction
    assert prediction.payload is not None
    image = with_pkru(Image(bytearray(prediction.payload[: layout.size]), layout), old.registers["pkru"])
    return replace(prediction, payload=image.to_bytes() + prediction.payload[layout.size :])


def _accepted(state: GuestState, there: Destination, allow_loss: int) -> Prediction:
    """Foretell a load, and raise LoadRefused where it is not to be done."""
    prediction = predict_load(state, there, allow_loss=allow_loss)
    if prediction.payload is None:
        is_loss = prediction.outcome is Outcome.LOSS
        elsewhere = (
            "name what may be lost, or load it into a vCPU that has these components" if is_loss else None
        )
        raise LoadRefused(
            f"{prediction}: " + ("; ".join(prediction.reasons) or "the kernel would refuse it"),
            prediction,
            help=next((each.help for each in prediction.findings if each.help), elsewhere),
        )
    return prediction


def _write(vcpu: StateVcpu, prediction: Prediction) -> None:
    assert prediction.payload is not None
    vcpu.set_xcr0(prediction.xcr0)
    write_msrs(vcpu, _wanted_msrs(prediction), prediction.destination)
    vcpu.set_xsave(bytearray(prediction.payload))


def _put_back(
    vcpu: StateVcpu, there: Destination, xsave: bytearray, xcr0: int, msrs: Mapping[str, int]
) -> None:
    """Undo a load that failed half-way. XCR0 goes last: the earlier one may not be legal, as on a new vCPU."""
    write_msrs(vcpu, msrs, there)
    vcpu.set_xsave(xsave)
    vcpu.set_xcr0(xcr0)


def read_msrs(vcpu: StateVcpu, there: Destination) -> dict[str, int]:
    """Return the MSRs of a state that this KVM has, by the names of ``STATE_MSRS``."""
    values = vcpu.msrs(STATE_MSRS[name] for name in there.msrs)
    return {name: values[STATE_MSRS[name]] for name in there.msrs}


def write_msrs(vcpu: StateVcpu, values: Mapping[str, int], there: Destination) -> None:
    """Set MSRs by the names of ``STATE_MSRS``; those that are so already are left alone.

    Raises KvmError where KVM refuses one.
    """
    before = read_msrs(vcpu, there)
    for name, value in values.items():
        if before.get(name, 0) == value:
            continue
        if vcpu.set_msrs({STATE_MSRS[name]: value}) != 1:
            raise KvmError(
                "KVM_SET_MSRS",
                errno.EINVAL,
                help=f"MSR {STATE_MSRS[name]:#x} ({name}) cannot be {value:#x} in this guest",
            )


def _wanted_msrs(prediction: Prediction) -> dict[str, int]:
    """Return every MSR that the state has or the vCPU has: what the state lacks becomes 0."""
    wanted = dict.fromkeys(prediction.destination.msrs, 0) | dict(prediction.msrs)
    return wanted | {"xss": prediction.xss, "xfd": prediction.xfd, "xfd_err": prediction.xfd_err}


def _with_supervisor(image: Image, cpu: Cpu, supervisor: int, msrs: Mapping[str, int]) -> Image:
    """Return a compacted image of the user components with the supervisor registers that the MSRs hold."""
    layout = Layout.compacted(cpu, image.layout.mask | supervisor & SUPERVISOR_SUPPORTED)
    whole = convert(image, layout).image
    for name in SUPERVISOR_MSRS:
        if name in whole.registers and msrs.get(name):
            whole.registers[name] = msrs[name]
    return Image(whole.to_bytes(), layout, "host")


def _compare(prediction: Prediction, vcpu: StateVcpu, earlier: bytearray) -> LoadReport:
    there = prediction.destination
    after = save(vcpu, destination=there)
    assert prediction.payload is not None
    wanted = Image(bytearray(prediction.payload[: there.layout.size]), there.layout)
    if dict(prediction.actions).get(Component.PKRU) is Action.KEPT:
        old = Image(earlier[: there.layout.size], there.layout).registers["pkru"]
        wanted.registers["pkru"] = old
    found = after.image
    if found.layout.format is not Format.STANDARD:
        found = convert(found, there.layout, drop=components_in(CARRIED_BY_MSRS)).image
    by_component: dict[int, list[Difference]] = {}
    for each in differences(wanted, found):
        for name in each.components:
            by_component.setdefault(_number(name), []).append(each)
    reports = tuple(
        ComponentReport(component, action, tuple(by_component.pop(component, ())))
        for component, action in prediction.actions
    )
    reports += tuple(
        ComponentReport(number, Action.INITIALISED, tuple(items)) for number, items in by_component.items()
    )
    return LoadReport(prediction, after, reports, tuple(_control_differences(prediction, vcpu, after)))


def _number(name: str) -> int:
    return (
        Component.__members__[name] if name in Component.__members__ else int(name.removeprefix("component"))
    )


def _control_differences(
    prediction: Prediction, vcpu: StateVcpu, after: GuestState
) -> list[tuple[str, int, int]]:
    there = read_msrs(vcpu, prediction.destination)
    found = [("XCR0", prediction.xcr0, after.xcr0)]
    found += [(name.upper(), value, there.get(name, 0)) for name, value in _wanted_msrs(prediction).items()]
    return [each for each in found if each[1] != each[2]]
