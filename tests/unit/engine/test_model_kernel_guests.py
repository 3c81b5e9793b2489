"""Guests in the kernel model: entered with their own registers and switches, left without a trace."""

import pytest

from fpstate.arch import Component, Cpu, mask_of
from fpstate.arch.component import LEGACY
from fpstate.engine.model.kernel import Core, Kernel
from fpstate.engine.model.task import Task, Vm
from fpstate.engine.model.virtual_machine import (
    create_vcpu,
    enter_guest,
    leave_guest,
    set_cpuid,
    write_guest_xfd,
)
from fpstate.errors import (
    PermissionDenied,
    PermissionFrozen,
    ProcessorFault,
    UnsupportedComponent,
    VsoError,
)
from fpstate.image.consumer import INIT_PKRU
from fpstate.vso.fpstate import Fpstate
from fpstate.vso.guest import GuestFpu
from fpstate.vso.permission import Kind

pytest.importorskip(
    "fpstate._core", reason="the native core (fpstate._core), which aligns buffers, is not built"
)

TILEDATA, CET_S, AVX = (mask_of(n) for n in (Component.TILEDATA, Component.CET_S, Component.AVX))
HOST = {"zmm31": 0x1111, "k1": 0x2222, "pl3_ssp": 0x3000, "mxcsr": 0x1FA0}
GUEST = {"zmm31": 0xAAAA, "zmm5": 0xBBBB, "pl0_ssp": 0xC000, "pl3_ssp": 0xD000, "pkru": 0x0C}


class Host:
    """A kernel with one task that runs a guest."""

    def __init__(self, name: str = "sapphire-rapids", *, amx: bool = False) -> None:
        self.kernel = Kernel(Cpu.catalog(name))
        (self.core,) = self.kernel.cores
        self.task = self.kernel.spawn("vcpu")
        if amx:
            self.kernel.request(self.task, Component.TILEDATA, Kind.GUEST)
        self.guest = create_vcpu(self.kernel, self.task)
        if amx:
            set_cpuid(self.kernel, self.task, TILEDATA)
        self.kernel.switch(self.core, self.task)

    def write(self, values: dict[str, int]) -> None:
        for register, value in values.items():
            self.kernel.run(self.core, lambda cpu, name=register, new=value: cpu.write(name, new))

    def read(self, values: dict[str, int]) -> dict[str, int]:
        return {name: self.core.processor.read(name) for name in values}

    def enter(self) -> None:
        enter_guest(self.kernel, self.core)

    def leave(self) -> None:
        leave_guest(self.kernel, self.core)


@pytest.fixture
def host() -> Host:
    return Host()


def zeros(values: dict[str, int]) -> dict[str, int]:
    return dict.fromkeys(values, 0)


def test_host_and_guest_keep_their_own_registers(host):
    host.write(HOST)
    host.enter()
    assert host.read(GUEST) == zeros(GUEST)
    host.write(GUEST)
    host.leave()
    assert host.read(HOST | {"pl0_ssp": 0, "pkru": 0}) == HOST | {"pl0_ssp": 0, "pkru": INIT_PKRU}
    host.enter()
    assert host.read(GUEST) == GUEST


def test_a_preempted_guest_goes_on_where_it_was(host):
    other = host.kernel.spawn()
    host.write(HOST)
    host.enter()
    host.write(GUEST)
    for _ in range(3):
        host.kernel.switch(host.core, other)
        assert host.core.registers.in_use == mask_of(Component.PKRU)
        assert host.guest.in_use
        host.kernel.switch(host.core, host.task)
        host.enter()
        assert host.read(GUEST) == GUEST
    host.leave()
    assert host.read(HOST) == HOST


def test_a_swap_that_keeps_the_hosts_registers_would_be_seen(host, monkeypatch):
    host.write(HOST)
    monkeypatch.setattr(Fpstate, "restore", lambda self, processor: setattr(self, "loaded_on", processor))
    host.enter()
    assert host.read({"k1": 0}) == {"k1": HOST["k1"]}


def test_xcr0_and_xss_are_the_guests_while_it_runs():
    kernel = Kernel(Cpu.catalog("sapphire-rapids"))
    (core,) = kernel.cores
    task = kernel.spawn()
    create_vcpu(kernel, task, xcr0=0x3)
    kernel.switch(core, task)
    host = (core.processor.xcr0, core.processor.xss)
    enter_guest(kernel, core)
    assert (core.processor.xcr0, core.processor.xss) == (0x3, 0x1C00)
    with pytest.raises(ProcessorFault, match="#UD"):
        kernel.run(core, lambda processor: processor.write("ymm0", 1))
    leave_guest(kernel, core)
    assert (core.processor.xcr0, core.processor.xss) == host == (0x602E7, 0x9C00)


def test_a_guest_held_to_less_has_that_alone():
    kernel = Kernel(Cpu.catalog("zen4"))
    (core,) = kernel.cores
    task = kernel.spawn()
    guest = create_vcpu(kernel, task, permitted=LEGACY)
    kernel.switch(core, task)
    enter_guest(kernel, core)
    assert (guest.xfeatures, core.processor.xcr0, core.processor.xss) == (LEGACY, LEGACY, 0)


class TestXfd:
    def test_nm_is_the_guests_own_and_it_finds_the_reason(self):
        host = Host(amx=True)
        host.enter()
        host.write({"tmm0": 5})
        write_guest_xfd(host.kernel, host.core, TILEDATA)
        with pytest.raises(ProcessorFault, match="#NM"):
            host.write({"tmm0": 6})
        assert (host.guest.xfd_err, host.core.processor.xfd_err) == (TILEDATA, 0)
        assert host.task.killed is None

    def test_disabled_state_does_not_survive_a_switch_and_does_not_fault_in_the_host(self):
        host = Host(amx=True)
        host.enter()
        host.write({"tmm0": 5, "zmm31": 7})
        write_guest_xfd(host.kernel, host.core, TILEDATA)
        host.leave()
        assert not host.guest.fpstate.vso.in_use & TILEDATA
        host.enter()
        write_guest_xfd(host.kernel, host.core, 0)
        assert host.read({"tmm0": 0, "zmm31": 0}) == {"tmm0": 0, "zmm31": 7}

    def test_written_while_it_is_out_it_takes_the_bit_from_the_image(self):
        host = Host(amx=True)
        host.enter()
        host.write({"tmm0": 5})
        host.leave()
        assert host.guest.fpstate.vso.in_use & TILEDATA
        write_guest_xfd(host.kernel, host.core, TILEDATA)
        assert not host.guest.fpstate.vso.in_use & TILEDATA
        host.enter()
        assert host.core.processor.xfd == TILEDATA

    def test_without_that_the_host_would_fault(self):
        host = Host(amx=True)
        host.enter()
        host.write({"tmm0": 5})
        host.leave()
        host.guest.fpstate.xfd = TILEDATA
        with pytest.raises(ProcessorFault, match="#NM"):
            host.enter()

    def test_the_host_has_its_own(self):
        host = Host(amx=True)
        assert host.core.processor.xfd == TILEDATA
        host.enter()
        assert host.core.processor.xfd == 0
        host.leave()
        assert host.core.processor.xfd == TILEDATA

    def test_bits_that_the_guest_lacks_are_its_gp(self, host):
        host.enter()
        with pytest.raises(UnsupportedComponent, match="#GP"):
            write_guest_xfd(host.kernel, host.core, TILEDATA)


class TestPermission:
    def test_it_comes_before_the_first_vcpu(self, host):
        with pytest.raises(PermissionFrozen):
            host.kernel.request(host.task, Component.TILEDATA, Kind.GUEST)
        with pytest.raises(PermissionDenied):
            set_cpuid(host.kernel, host.task, TILEDATA)

    def test_another_process_may_still_ask(self, host):
        other = host.kernel.spawn()
        host.kernel.request(other, Component.TILEDATA, Kind.GUEST)
        create_vcpu(host.kernel, other)
        set_cpuid(host.kernel, other, TILEDATA)
        assert other.vm.guest.uabi_size == 11008


def test_leaving_a_guest_that_was_preempted_does_not_give_it_the_hosts_keys(host):
    """I1, I11: PKRU is the guest's own, whether VM exit came at once or with the preemption."""
    other = host.kernel.spawn()
    host.enter()
    host.write({"pkru": 0x0C})
    host.kernel.switch(host.core, other)
    host.kernel.switch(host.core, host.task)
    host.leave()
    assert (host.guest.pkru, host.read({"pkru": 0})) == (0x0C, {"pkru": INIT_PKRU})
    host.enter()
    assert host.read({"pkru": 0}) == {"pkru": 0x0C}


def test_an_entry_that_the_processor_refuses_leaves_the_host_as_it_was(host):
    host.task.vm.xcr0 = 0b100
    with pytest.raises(ProcessorFault, match="XSETBV"):
        host.enter()
    assert host.read({"pkru": 0}) == {"pkru": INIT_PKRU}
    host.leave()
    assert (host.guest.pkru, host.core.processor.xcr0) == (0, host.kernel.config.xcr0)


@pytest.mark.parametrize("xcr0", [0x602E7, 0xE6, 0x27, 0x10000_0003])
def test_a_guest_enables_no_more_than_it_may_and_no_part_of_a_group(xcr0):
    """I8 (B30): tiles that a guest was not given permission for cannot be enabled in it."""
    kernel = Kernel(Cpu.catalog("sapphire-rapids"))
    task = kernel.spawn()
    with pytest.raises(ProcessorFault, match="XSETBV in the guest"):
        create_vcpu(kernel, task, xcr0=xcr0)
    assert task.vm is None
    assert len(task.manager.vsos()) == 1


def test_a_thread_has_one_vcpu(host):
    host.enter()
    with pytest.raises(VsoError, match="vCPU's thread already"):
        create_vcpu(host.kernel, host.task)
    assert host.task.vm.guest is host.guest


def test_a_guest_is_killed_with_its_task_and_leaves_nothing(host):
    host.enter()
    host.write(GUEST)
    host.leave()
    host.enter()
    host.kernel.end(host.task)
    assert host.core.registers.in_use == 0
    assert host.core.processor.xcr0 == host.kernel.config.xcr0
    assert host.kernel.pool.bytes_held == 0
    assert host.kernel.pool.bytes_mapped > 0
    assert not any(any(free) for free in host.kernel.pool.free_memory())


def test_a_task_may_end_while_its_guest_is_swapped_in_and_another_runs(host):
    other = host.kernel.spawn()
    host.enter()
    host.write(GUEST)
    host.kernel.switch(host.core, other)
    assert host.guest.in_use
    host.kernel.end(host.task)
    assert host.core.current is other
    assert host.kernel.pool.bytes_held == 0


def test_exec_ends_the_guest(host):
    host.enter()
    host.write(GUEST)
    host.leave()
    host.kernel.exec(host.task)
    assert host.task.vm is None
    assert host.kernel.pool.bytes_held == 0


def test_a_task_without_a_guest_cannot_enter_one():
    kernel = Kernel(Cpu.catalog("zen4"))
    (core,) = kernel.cores
    kernel.switch(core, kernel.spawn())
    for call in (enter_guest, leave_guest):
        with pytest.raises(VsoError, match="runs no guest"):
            call(kernel, core)


def test_a_confidential_guests_registers_are_not_looked_at():
    kernel = Kernel(Cpu.catalog("zen4"))
    core: Core = kernel.cores[0]
    task: Task = kernel.spawn()
    task.vm = Vm(GuestFpu(task.manager, confidential=True), 0x2E7, 0x1800)
    kernel.switch(core, task)
    kernel.run(core, lambda processor: processor.write("zmm31", 5))
    enter_guest(kernel, core)
    kernel.run(core, lambda processor: processor.write("zmm31", 6))
    leave_guest(kernel, core)
    assert core.processor.read("zmm31") == 5
    assert task.vm.guest.fpstate.vso.size == 0
