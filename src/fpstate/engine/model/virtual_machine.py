"""Guests in the kernel model: a task's vCPU, entered and left with its own XCR0, IA32_XSS, IA32_XFD and PKRU.

Source: Linux ``arch/x86/kvm/x86.c`` (``kvm_load_guest_fpu``, ``kvm_load_guest_xsave_state`` and their twins).
"""

from __future__ import annotations

from fpstate.arch.component import LEGACY, xcr0_complete, xcr0_problem
from fpstate.engine.model.fault import PROTECTION, fault
from fpstate.engine.model.kernel import Core, Kernel
from fpstate.engine.model.task import Task, Vm
from fpstate.errors import FpStateError, VsoError
from fpstate.vso.guest import GuestFpu


def create_vcpu(
    kernel: Kernel, task: Task, *, xcr0: int | None = None, permitted: int | None = None
) -> GuestFpu:
    """Make a task the thread of a vCPU (KVM_CREATE_VCPU); the first freezes the process's guest permission.

    ``xcr0``: what the guest enables of what it may use (None: all of it). ``permitted`` narrows that. Raises VsoError
    where the task has a vCPU already, ProcessorFault (#GP) for an XCR0 that XSETBV would refuse in the guest.
    """
    if task.vm:
        raise VsoError(f"{task.name} is a vCPU's thread already", help="take another thread for another vCPU")
    guest = GuestFpu(task.manager, permitted=permitted)
    vm = Vm(guest, 0, 0)
    _enable_all(kernel, vm)
    if xcr0 is not None:
        if problem := xcr0_problem(xcr0, vm.xcr0):
            guest.free()
            raise fault(PROTECTION, f"XSETBV in the guest: {problem}", "SDM Vol. 1, 13.3; __kvm_set_xcr")
        vm.xcr0 = xcr0
    task.vm = vm
    return guest


def set_cpuid(kernel: Kernel, task: Task, features: int) -> None:
    """Let a guest see dynamic components, and enable them (KVM_SET_CPUID2); raises PermissionDenied."""
    vm = _vm(task)
    vm.guest.enable_features(features)
    _enable_all(kernel, vm)


def enter_guest(kernel: Kernel, core: Core) -> None:
    """Run the guest from here on: its state for the host's where that is still in, then VM entry."""
    task = kernel.running(core)
    vm = _vm(task)
    if not task.fpu.guest_active:
        task.fpu.pkru = core.registers.pkru
        task.fpu.swap(vm.guest, core.registers, enter=True)
    if not vm.entered:
        vm.enter(core.registers)


def leave_guest(kernel: Kernel, core: Core) -> None:
    """Run the host again: VM exit where the guest runs, then the host's state for the guest's."""
    task = kernel.running(core)
    vm = _vm(task)
    if vm.entered:
        vm.exit(core.registers, task.fpu.pkru)
    try:
        task.fpu.swap(vm.guest, core.registers, enter=False)
    except FpStateError as refusal:
        kernel.kill(core, refusal)
        raise


def write_guest_xfd(kernel: Kernel, core: Core, value: int) -> None:
    """WRMSR of IA32_XFD in a guest, which KVM intercepts. Raises UnsupportedComponent (#GP in the guest)."""
    _vm(kernel.running(core)).guest.update_xfd(value)


def _enable_all(kernel: Kernel, vm: Vm) -> None:
    vm.xcr0 = xcr0_complete(kernel.config.xcr0 & (vm.guest.user_xfeatures | LEGACY))
    vm.xss = kernel.config.xss & vm.guest.xfeatures


def _vm(task: Task) -> Vm:
    if task.vm is None:
        raise VsoError(f"{task.name} runs no guest", help="create_vcpu() first")
    return task.vm
