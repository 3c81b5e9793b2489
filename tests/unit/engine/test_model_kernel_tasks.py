"""Tasks of the kernel model: switches, first uses, permission, fork and exec follow Linux, and nothing leaks."""

import warnings

import pytest

from fpstate.arch import Component, Cpu, mask_of
from fpstate.arch.component import LEGACY
from fpstate.engine.model.kernel import Core, Kernel
from fpstate.engine.model.kernel_registers import KernelRegisters
from fpstate.engine.model.processor import Processor
from fpstate.engine.model.signals import deliver_signal, sigreturn
from fpstate.engine.model.task import Task
from fpstate.errors import (
    FpStateError,
    GuestOnlyComponent,
    GuestOnlyComponentWarning,
    PermissionDenied,
    ProcessorFault,
    StackTooSmall,
    UnsupportedComponent,
    VsoError,
)
from fpstate.image.consumer import INIT_PKRU
from fpstate.vso.manager import Manager
from fpstate.vso.permission import AltstackRefused, Kind

pytest.importorskip(
    "fpstate._core", reason="the native core (fpstate._core), which aligns buffers, is not built"
)

TILEDATA, AVX, CET_S, PASID, LBR = (
    mask_of(component)
    for component in (Component.TILEDATA, Component.AVX, Component.CET_S, Component.PASID, Component.LBR)
)
WRITTEN = {
    Component.X87: ("st0", 0x4000_C90F_DAA2_2168_C235),
    Component.SSE: ("xmm3", 0x1111_2222_3333_4444),
    Component.AVX: ("ymm3h", 0x5555_6666),
    Component.BNDREGS: ("bnd1", 0x1212_3434),
    Component.BNDCSR: ("bndcfgu", 0x5656_7000),
    Component.OPMASK: ("k1", 0xFF00FF),
    Component.ZMM_HI256: ("zmm3h", 0x6666),
    Component.HI16_ZMM: ("zmm31", 0x7777),
    Component.PKRU: ("pkru", 0x0000_0030),
    Component.PASID: ("pasid", 0x8000_0123),
    Component.CET_U: ("pl3_ssp", 0x7FFF_0000_1000),
    Component.TILECFG: ("tilecfg", 1),
    Component.TILEDATA: ("tmm2", 1 << 8000),
    Component.APX: ("r17", 0x1717),
}
PROCESSORS = (
    *("zen1", "zen4", "haswell", "skylake-sp", "knights-landing", "tiger-lake", "bulldozer"),
    *("sapphire-rapids", "granite-rapids", "diamond-rapids-model", "apx-no-amx-model"),
)


def kernel_of(name: str, processors: int = 1) -> Kernel:
    return Kernel(Cpu.catalog(name), processors=processors)


def write(kernel: Kernel, core: Core, name: str, value: int) -> None:
    kernel.run(core, lambda processor: processor.write(name, value))


def read(core: Core, *names: str) -> list[int]:
    return [core.processor.read(name) for name in names]


def samples(features: int) -> dict[str, int]:
    return {name: value for component, (name, value) in WRITTEN.items() if features >> component & 1}


@pytest.fixture
def spr() -> Kernel:
    return kernel_of("sapphire-rapids")


class TestSwitch:
    @pytest.mark.parametrize("name", PROCESSORS)
    def test_each_task_finds_its_own_registers_again_in_every_component(self, name):
        kernel = kernel_of(name)
        (core,) = kernel.cores
        tasks = [kernel.spawn() for _ in range(3)]
        dynamic = kernel.config.init_xfd
        held = samples(kernel.config.kernel_max.features & ~CET_S)
        assert len(held) >= 3
        for number, task in enumerate(tasks):
            if dynamic:
                kernel.request(task, Component.TILEDATA)
            kernel.switch(core, task)
            for register, value in held.items():
                write(kernel, core, register, value + (number << 10))
        for _ in range(2):
            for number, task in enumerate(tasks):
                kernel.switch(core, task)
                assert read(core, *held) == [value + (number << 10) for value in held.values()]

    def test_what_the_next_task_lacks_is_initial(self, spr):
        (core,) = spr.cores
        first, second = spr.spawn(), spr.spawn()
        spr.request(first, Component.TILEDATA)
        spr.switch(core, first)
        for register, value in samples(spr.config.user_max.features).items():
            write(spr, core, register, value)
        spr.switch(core, second)
        assert core.registers.in_use == mask_of(Component.PKRU)
        assert read(core, "xmm3", "ymm3h", "k1", "zmm31", "tmm2", "tilecfg") == [0] * 6
        assert read(core, "pkru") == [INIT_PKRU]

    def test_a_restore_of_what_the_task_has_alone_would_leave_them(self, spr, monkeypatch):
        (core,) = spr.cores
        restore = KernelRegisters.restore
        monkeypatch.setattr(
            KernelRegisters, "restore", lambda self, image, rfbm: restore(self, image, rfbm & image.xstate_bv)
        )
        first, second = spr.spawn(), spr.spawn()
        spr.switch(core, first)
        write(spr, core, "k1", 5)
        spr.switch(core, second)
        assert read(core, "k1") == [5]

    def pointer_after_a_switch(self) -> int:
        """FDP of a task that uses x87, behind one that left another there."""
        kernel = kernel_of("bulldozer")
        (core,) = kernel.cores
        first, second = kernel.spawn(), kernel.spawn()
        kernel.switch(core, second)
        write(kernel, core, "st0", 5)
        kernel.switch(core, first)
        write(kernel, core, "fdp", 0x1234_5678)
        kernel.switch(core, second)
        (pointer,) = read(core, "fdp")
        return pointer

    def test_x87_pointers_do_not_stay_on_processors_that_leave_them(self):
        assert self.pointer_after_a_switch() == 0

    def test_without_clearing_them_they_would(self, monkeypatch):
        monkeypatch.setattr(Processor, "fninit", lambda self: None)
        assert self.pointer_after_a_switch() == 0x1234_5678

    def test_a_state_is_on_one_processor_at_a_time(self):
        kernel = kernel_of("zen4", processors=2)
        first, second = kernel.cores
        task = kernel.spawn()
        kernel.switch(first, task)
        with pytest.raises(VsoError, match="another processor"):
            task.fpu.load(second.registers)
        kernel.switch(first, None)
        kernel.switch(second, task)
        write(kernel, second, "xmm1", 9)
        kernel.switch(second, None)
        kernel.switch(first, task)
        assert read(first, "xmm1") == [9]

    def test_no_state_is_held_for_tasks_that_use_nothing(self, spr):
        (core,) = spr.cores
        tasks = [spr.spawn() for _ in range(20)]
        for task in tasks * 2:
            spr.switch(core, task)
        spr.switch(core, None)
        assert spr.pool.bytes_held == 0
        assert {task.fpu.fpstate.size for task in tasks} == {2560}

    def test_xfd_is_written_only_where_it_changes(self, spr):
        (core,) = spr.cores
        tasks = [spr.spawn() for _ in range(3)]
        spr.request(tasks[0], Component.TILEDATA)
        for task in tasks:
            spr.switch(core, task)
        assert core.registers.xfd_writes == 0
        spr.switch(core, tasks[0])
        write(spr, core, "tmm0", 1)
        assert (core.registers.xfd_writes, core.processor.xfd) == (1, 0)
        spr.switch(core, tasks[1])
        assert (core.registers.xfd_writes, core.processor.xfd) == (2, TILEDATA)

    def test_an_xfd_that_changed_behind_the_kernel_is_written_all_the_same(self, spr):
        """I9 (B22): what is compared is the register, so that no copy of it can be stale."""
        (core,) = spr.cores
        task = spr.spawn()
        for value in (0, TILEDATA):
            core.processor.xfd = value
            spr.switch(core, task)
            assert core.processor.xfd == task.fpu.fpstate.xfd == TILEDATA
            spr.switch(core, None)

    def test_a_signal_after_a_task_with_tiles_finds_none_and_may_use_none(self, spr):
        """I9, I10 (B23): the state that a handler begins with goes with the task's own IA32_XFD."""
        (core,) = spr.cores
        user, other = spr.spawn(), spr.spawn()
        spr.request(user, Component.TILEDATA)
        spr.switch(core, user)
        write(spr, core, "tmm0", 5)
        spr.switch(core, other)
        frame = deliver_signal(spr, core)
        assert not int.from_bytes(frame[512:520], "little") & TILEDATA
        assert (core.processor.xfd, read(core, "tmm0")) == (TILEDATA, [0])
        with pytest.raises(PermissionDenied):
            write(spr, core, "tmm0", 6)
        sigreturn(spr, core)
        assert (core.processor.xfd, core.registers.in_use & TILEDATA) == (TILEDATA, 0)
        spr.switch(core, user)
        assert read(core, "tmm0") == [5]

    def test_idling_releases_tiles(self, spr):
        (core,) = spr.cores
        task = spr.spawn()
        spr.request(task, Component.TILEDATA)
        spr.switch(core, task)
        write(spr, core, "tmm0", 7)
        write(spr, core, "tilecfg", 1)
        spr.idle(core)
        assert not core.registers.in_use & (TILEDATA | mask_of(Component.TILECFG))
        spr.switch(core, task)
        assert read(core, "tmm0", "tilecfg") == [7, 1]


class TestFirstUse:
    def test_without_permission_it_is_refused_and_the_task_may_live_on(self, spr):
        (core,) = spr.cores
        task = spr.spawn()
        spr.switch(core, task)
        write(spr, core, "zmm31", 3)
        with pytest.raises(PermissionDenied, match="TILEDATA") as caught:
            write(spr, core, "tmm0", 1)
        assert caught.value.errno_name == "EPERM"
        assert core.processor.xfd_err == 0
        assert read(core, "zmm31", "tmm0") == [3, 0]
        assert task.fpu.fpstate.xfd == TILEDATA

    def test_a_task_that_is_killed_for_it_leaves_nothing(self, spr):
        (core,) = spr.cores
        task, other = spr.spawn(), spr.spawn()
        spr.switch(core, task)
        write(spr, core, "zmm31", 3)
        spr.switch(core, other)
        spr.switch(core, task)
        with pytest.raises(PermissionDenied) as caught:
            write(spr, core, "tmm0", 1)
        spr.kill(core, caught.value)
        assert task.killed is caught.value
        assert core.current is None
        assert core.registers.in_use == 0
        assert spr.pool.bytes_held == 0
        with pytest.raises(VsoError):
            spr.switch(core, task)

    def test_with_permission_the_state_grows_once_and_never_shrinks(self, spr):
        (core,) = spr.cores
        task = spr.spawn()
        spr.request(task, Component.TILEDATA)
        spr.switch(core, task)
        state = task.fpu.fpstate
        assert (state.xfd, state.size, state.user_size) == (TILEDATA, 2560, 2816)
        write(spr, core, "tmm0", 1)
        assert (state.xfd, state.size, state.user_size) == (0, 10752, 11008)
        core.processor.tilerelease()
        spr.switch(core, None)
        spr.switch(core, task)
        assert (state.xfd, state.size, core.processor.xfd) == (0, 10752, 0)

    def test_it_is_for_each_thread_while_permission_is_for_the_process(self, spr):
        (core,) = spr.cores
        first = spr.spawn()
        spr.request(first, Component.TILEDATA)
        second = spr.thread(first)
        spr.switch(core, first)
        write(spr, core, "tmm0", 1)
        spr.switch(core, second)
        assert (second.fpu.fpstate.xfd, core.processor.xfd) == (TILEDATA, TILEDATA)
        write(spr, core, "tmm0", 2)
        spr.switch(core, first)
        assert read(core, "tmm0") == [1]

    def test_other_faults_are_the_tasks_own(self):
        kernel = kernel_of("haswell")
        (core,) = kernel.cores
        kernel.switch(core, kernel.spawn())
        with pytest.raises(ProcessorFault) as caught:
            kernel.run(core, lambda processor: processor.ldmxcsr(1 << 20))
        assert caught.value.mnemonic == "#GP"

    def test_what_is_in_use_and_not_permitted_is_refused_at_the_switch(self, spr):
        (core,) = spr.cores
        task, other = spr.spawn(permitted=LEGACY), spr.spawn()
        spr.switch(core, task)
        write(spr, core, "ymm3h", 1)
        with pytest.raises(PermissionDenied, match="AVX"):
            spr.switch(core, other)
        assert task.killed
        spr.switch(core, other)
        assert read(core, "ymm3h") == [0]

    def test_requests_fail_as_in_the_kernel(self, spr):
        task = spr.spawn()
        with pytest.raises(UnsupportedComponent):
            spr.request(task, Component.TILECFG)


class TestGuestOnlyComponents:
    def test_in_a_host_they_warn_and_the_task_is_refused(self, spr):
        (core,) = spr.cores
        task, other = spr.spawn(), spr.spawn()
        spr.switch(core, task)
        write(spr, core, "pl0_ssp", 0x1000)
        with pytest.warns(GuestOnlyComponentWarning), pytest.raises(GuestOnlyComponent):
            spr.switch(core, other)
        assert isinstance(task.killed, GuestOnlyComponent)
        spr.switch(core, other)
        assert read(core, "pl0_ssp") == [0]

    def test_user_shadow_stacks_are_the_hosts_own(self, spr):
        (core,) = spr.cores
        task, other = spr.spawn(), spr.spawn()
        spr.switch(core, task)
        write(spr, core, "pl3_ssp", 0x1000)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            spr.switch(core, other)
        assert read(core, "pl3_ssp") == [0]
        spr.switch(core, task)
        assert read(core, "pl3_ssp") == [0x1000]

    def test_what_the_kernel_does_not_enable_cannot_be_reached(self, spr):
        (core,) = spr.cores
        spr.switch(core, spr.spawn())
        for component in (Component.UINTR, Component.PT):
            with pytest.raises(ProcessorFault, match="not enabled"):
                spr.check_enabled(core, mask_of(component))
        spr.check_enabled(core, spr.config.kernel_max.features | LBR)


class TestBranchRecords:
    def test_they_are_kept_apart_and_never_seen_by_the_next(self, spr):
        (core,) = spr.cores
        recorder, other = spr.spawn(), spr.spawn()
        recorder.records_branches = True
        spr.switch(core, recorder)
        write(spr, core, "lbr_3_from_ip", 0xFFFF_8000_1234)
        spr.switch(core, other)
        assert read(core, "lbr_3_from_ip") == [0]
        assert recorder.fpu.fpstate.vso.in_use & LBR == 0
        assert recorder.branches.registers["lbr_3_from_ip"] == 0xFFFF_8000_1234
        spr.switch(core, recorder)
        assert read(core, "lbr_3_from_ip") == [0xFFFF_8000_1234]

    def test_what_is_not_recorded_is_lost(self, spr):
        (core,) = spr.cores
        task, other = spr.spawn(), spr.spawn()
        spr.switch(core, task)
        write(spr, core, "lbr_3_from_ip", 5)
        spr.switch(core, other)
        spr.switch(core, task)
        assert read(core, "lbr_3_from_ip") == [0]

    def test_a_switch_that_forgets_them_would_show_them(self, spr, monkeypatch):
        (core,) = spr.cores
        monkeypatch.setattr(Task, "switch_branches_in", lambda self, registers: None)
        task, other = spr.spawn(), spr.spawn()
        spr.switch(core, task)
        write(spr, core, "lbr_3_from_ip", 5)
        spr.switch(core, other)
        assert read(core, "lbr_3_from_ip") == [5]


class TestFork:
    def parent(self, kernel: Kernel, *, running: bool = True) -> Task:
        (core,) = kernel.cores
        task = kernel.spawn()
        kernel.request(task, Component.TILEDATA)
        kernel.switch(core, task)
        for register, value in samples(kernel.config.kernel_max.features & ~CET_S).items():
            write(kernel, core, register, value)
        write(kernel, core, "mxcsr", 0x1FA0)
        write(kernel, core, "fctrl", 0x0F7F)
        if not running:
            kernel.switch(core, None)
        return task

    @pytest.mark.parametrize("running", [True, False])
    @pytest.mark.parametrize("how", ["fork", "thread"])
    def test_all_but_dynamic_state_and_pasid_is_inherited(self, spr, running, how):
        (core,) = spr.cores
        task = self.parent(spr, running=running)
        child = getattr(spr, how)(task)
        spr.switch(core, child)
        held = samples(spr.config.kernel_default.features & ~PASID) | {"mxcsr": 0x1FA0, "fctrl": 0x0F7F}
        assert read(core, *held) == list(held.values())
        assert read(core, "tmm2", "pasid") == [0, 0]
        assert (child.fpu.fpstate.xfd, child.fpu.fpstate.size) == (TILEDATA, 2560)

    def test_the_parent_keeps_all_of_it(self, spr):
        (core,) = spr.cores
        task = self.parent(spr)
        child = spr.fork(task)
        spr.switch(core, child)
        write(spr, core, "zmm31", 1)
        spr.switch(core, task)
        held = samples(spr.config.kernel_max.features & ~CET_S)
        assert read(core, *held) == list(held.values())

    def test_permission_goes_to_a_new_process_and_then_is_its_own(self, spr):
        task = self.parent(spr)
        child = spr.fork(task)
        assert child.manager is not task.manager
        assert child.manager.permissions.mask(Kind.HOST) & TILEDATA
        other = spr.spawn()
        forked = spr.fork(other)
        spr.request(forked, Component.TILEDATA)
        assert not other.manager.permissions.mask(Kind.HOST) & TILEDATA

    def test_the_guest_lock_goes_with_it(self, spr):
        task = spr.spawn()
        task.manager.permissions.freeze_guest()
        assert spr.fork(task).manager.permissions.guest_frozen
        assert not spr.spawn().manager.permissions.guest_frozen

    def test_a_child_of_a_signal_handler_returns_from_it_and_a_thread_does_not(self, spr):
        (core,) = spr.cores
        task = spr.spawn()
        spr.switch(core, task)
        write(spr, core, "zmm31", 7)
        deliver_signal(spr, core)
        child, thread = spr.fork(task), spr.thread(task)
        for returning in (child, task):
            spr.switch(core, returning)
            sigreturn(spr, core)
            assert read(core, "zmm31") == [7]
        spr.switch(core, thread)
        with pytest.raises(VsoError, match="no signal handler"):
            sigreturn(spr, core)

    def test_a_frame_with_tiles_is_too_large_for_a_child_which_gets_x87_and_sse_of_it(self, spr):
        """As ``check_xstate_in_sigframe`` has it: the frame is larger than the child's ``user_size``."""
        (core,) = spr.cores
        task = self.parent(spr)
        deliver_signal(spr, core)
        child = spr.fork(task)
        spr.switch(core, child)
        sigreturn(spr, core)
        assert read(core, "xmm3", "mxcsr", "zmm31", "tmm2") == [WRITTEN[Component.SSE][1], 0x1FA0, 0, 0]

    def test_a_signal_stack_that_is_too_small_goes_to_a_child_and_not_to_a_thread(self, spr):
        """I7 (B16): the child's request is refused as its parent's is; stacks of those that ended do not count."""
        task = spr.spawn()
        spr.sigaltstack(task, 2048)
        child, thread = spr.fork(task), spr.thread(task)
        assert (child.altstack, thread.altstack) == (2048, 0)
        for refused in (task, child, thread):
            with pytest.raises(StackTooSmall):
                spr.request(refused, Component.TILEDATA)
        spr.end(task)
        spr.request(thread, Component.TILEDATA)
        with pytest.raises(AltstackRefused):
            spr.sigaltstack(thread, 2048)

    def test_a_thread_shares_permission_and_gets_a_shadow_stack_of_its_own(self, spr):
        (core,) = spr.cores
        task = self.parent(spr)
        child = spr.thread(task, shadow_stack=0x7000_2000)
        assert child.manager is task.manager
        spr.switch(core, child)
        assert read(core, "pl3_ssp", "zmm31") == [0x7000_2000, 0x7777]


class TestExec:
    @pytest.mark.parametrize("running", [True, False])
    def test_nothing_is_left(self, spr, running):
        (core,) = spr.cores
        task = TestFork().parent(spr, running=running)
        assert spr.pool.bytes_held > 0 or running
        spr.exec(task)
        assert spr.pool.bytes_held == 0
        spr.switch(core, task)
        assert core.registers.in_use == mask_of(Component.PKRU)
        assert read(core, "pkru", "mxcsr", "fctrl", "pasid") == [INIT_PKRU, 0x1F80, 0x037F, 0]
        assert core.processor.xfd == TILEDATA

    def test_permission_is_dropped(self, spr):
        (core,) = spr.cores
        task = TestFork().parent(spr)
        spr.exec(task)
        assert not task.manager.permissions.mask(Kind.HOST) & TILEDATA
        with pytest.raises(PermissionDenied):
            write(spr, core, "tmm0", 1)
        spr.request(task, Component.TILEDATA)
        write(spr, core, "tmm0", 1)

    def test_the_policy_of_the_process_holds_for_the_next_program_too(self, spr):
        """I8: neither exec nor fork widens what a process may be granted."""
        held = Manager(config=spr.config, pool=spr.pool, policy=spr.config.kernel_default.features)
        task = Task.start("held", held)
        for one in (task, spr.fork(task)):
            spr.exec(one)
            with pytest.raises(PermissionDenied, match="outside the policy"):
                spr.request(one, Component.TILEDATA)

    def test_no_signal_frame_is_left(self, spr):
        (core,) = spr.cores
        task = spr.spawn()
        spr.switch(core, task)
        deliver_signal(spr, core)
        spr.exec(task)
        with pytest.raises(VsoError, match="no signal handler"):
            sigreturn(spr, core)


class TestInUse:
    def test_an_mxcsr_of_its_own_counts_as_sse(self, spr):
        (core,) = spr.cores
        spr.switch(core, spr.spawn())
        core.processor.ldmxcsr(0x1FA0)
        assert core.registers.in_use & LEGACY == mask_of(Component.SSE)

    def test_what_is_held_back_counts_as_initial(self, spr):
        (core,) = spr.cores
        task = spr.spawn()
        spr.request(task, Component.TILEDATA)
        spr.switch(core, task)
        write(spr, core, "tmm0", 5)
        assert core.registers.in_use & TILEDATA
        core.registers.xfd = TILEDATA
        assert not core.registers.in_use & TILEDATA
        assert read(core, "tmm0") == [5]


def test_ended_tasks_give_everything_back(spr):
    (core,) = spr.cores
    tasks = [TestFork().parent(spr) for _ in range(3)]
    for task in tasks:
        spr.end(task)
    assert core.current is None
    assert spr.pool.bytes_held == 0
    assert not any(any(free) for free in spr.pool.free_memory())


def test_an_error_is_one_of_ours_where_no_task_runs(spr):
    with pytest.raises(FpStateError, match="no task"):
        write(spr, spr.cores[0], "xmm0", 1)


class TestFailedSwitch:
    """I5, I6: a load that fails leaves registers that are nobody's, and no state behind them."""

    def test_a_task_that_runs_elsewhere_does_not_become_the_current_one(self):
        kernel = kernel_of("sapphire-rapids", processors=2)
        first, second = kernel.cores
        task = kernel.spawn()
        kernel.switch(first, task)
        write(kernel, first, "pkru", 0x30)
        with pytest.raises(VsoError, match="another processor"):
            kernel.switch(second, task)
        assert second.current is None
        kernel.switch(second, None)
        assert (task.fpu.pkru, read(first, "pkru")) == (INIT_PKRU, [0x30])
        kernel.switch(first, None)
        assert task.fpu.pkru == 0x30

    def test_a_task_that_was_loaded_in_part_is_loaded_again(self, spr, monkeypatch):
        (core,) = spr.cores
        task, other = spr.spawn(), spr.spawn()
        spr.switch(core, task)
        write(spr, core, "zmm31", 7)
        spr.switch(core, None)
        with monkeypatch.context() as interrupted:
            interrupted.setattr(Task, "switch_branches_in", self.interrupt)
            with pytest.raises(KeyboardInterrupt):
                spr.switch(core, task)
        spr.switch(core, other)
        write(spr, core, "zmm31", 8)
        spr.switch(core, task)
        assert read(core, "zmm31") == [7]

    @staticmethod
    def interrupt(task: Task, registers: KernelRegisters) -> None:
        raise KeyboardInterrupt
