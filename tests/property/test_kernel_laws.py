"""Random histories of tasks on the kernel model: each context's registers are what it wrote last, and nothing else.

Beside the model goes a plain account: for each task, and each guest, a dictionary of what its registers must be.
"""

import random
from dataclasses import dataclass, field

import pytest

from fpstate.arch import Component, Cpu, mask_of
from fpstate.engine.model.kernel import Core, Kernel
from fpstate.engine.model.kernel_registers import KernelRegisters
from fpstate.engine.model.signals import deliver_signal, sigreturn
from fpstate.engine.model.task import Task
from fpstate.engine.model.virtual_machine import create_vcpu, enter_guest, leave_guest, set_cpuid
from fpstate.errors import PermissionDenied
from fpstate.image import initial_value
from fpstate.image.consumer import INIT_PKRU
from fpstate.vso.permission import Kind

pytest.importorskip(
    "fpstate._core", reason="the native core (fpstate._core), which aligns buffers, is not built"
)

PROCESSORS = (
    *("sapphire-rapids", "diamond-rapids-model", "skylake-sp", "zen4", "knights-landing"),
    *("bulldozer", "haswell", "zen1"),
)
SEQUENCES, STEPS = 12, 120
TILEDATA = mask_of(Component.TILEDATA)
REGISTERS = {
    Component.SSE: ("xmm3", "mxcsr"),
    Component.AVX: ("ymm3h",),
    Component.BNDREGS: ("bnd2",),
    Component.OPMASK: ("k5",),
    Component.HI16_ZMM: ("zmm20",),
    Component.PKRU: ("pkru",),
    Component.CET_U: ("pl3_ssp",),
    Component.TILEDATA: ("tmm4",),
    Component.APX: ("r25",),
}
SUPERVISOR = ("pl3_ssp", "pl0_ssp")


@dataclass
class Account:
    """What a context's registers must be; ``frames`` are those that signals put aside."""

    registers: dict[str, int]
    tiles_permitted: bool = False
    frames: list[dict[str, int]] = field(default_factory=list)
    guest: dict[str, int] | None = None
    inside: bool = False


class History:
    """A kernel with two processors, tasks, the account, and a source of chance."""

    def __init__(self, name: str, seed: int) -> None:
        self.chance = random.Random(f"{name} {seed}")
        self.kernel = Kernel(Cpu.catalog(name), processors=2)
        features = self.kernel.config.kernel_max.features
        self.names = [each for number, names in REGISTERS.items() if features >> number & 1 for each in names]
        self.guest_names = [name for name in self.names if name != "tmm4" or self.kernel.config.init_xfd]
        if features >> Component.CET_S & 1:
            self.guest_names.append("pl0_ssp")
        self.tasks: dict[Task, Account] = {}
        self.spawn()

    def fresh(self, *, guest: bool = False) -> dict[str, int]:
        names = self.guest_names if guest else self.names
        start = {name: initial_value(name) for name in names}
        if "pkru" in start and not guest:
            start["pkru"] = INIT_PKRU
        return start

    def spawn(self) -> None:
        self.tasks[self.kernel.spawn()] = Account(self.fresh())

    def run(self) -> None:
        for _ in range(STEPS):
            core = self.chance.choice(self.kernel.cores)
            if core.current is None or self.chance.random() < 0.3:
                self.switch(core)
            else:
                self.chance.choice(_EVENTS)(self, core, core.current, self.tasks[core.current])
            self.check(core)
        core, other = self.kernel.cores
        self.kernel.switch(other, None)
        for task in list(self.tasks):
            self.put(core, task)
            self.check(core)

    def switch(self, core: Core) -> None:
        elsewhere = {other.current for other in self.kernel.cores if other is not core}
        free = [task for task in self.tasks if task not in elsewhere]
        task = self.chance.choice([*free, None]) if free else None
        if self.chance.random() < 0.1:
            self.kernel.idle(core)
        self.put(core, task)

    def put(self, core: Core, task: Task | None) -> None:
        self.kernel.switch(core, task)
        if task and self.tasks[task].inside:
            enter_guest(self.kernel, core)

    def check(self, core: Core) -> None:
        if core.current is None:
            return
        account = self.tasks[core.current]
        expected = account.guest if account.inside else account.registers
        assert expected is not None
        assert {name: core.processor.read(name) for name in expected} == expected

    # Events

    def write(self, core: Core, task: Task, account: Account) -> None:
        values = account.guest if account.inside else account.registers
        assert values is not None
        name = self.chance.choice(list(values))
        new = 0x1F80 | self.chance.getrandbits(6) if name == "mxcsr" else self.chance.getrandbits(24) << 3
        try:
            self.kernel.run(core, lambda processor: processor.write(name, new))
        except PermissionDenied:
            assert name == "tmm4"
            assert not account.tiles_permitted
        else:
            assert name != "tmm4" or account.tiles_permitted or account.inside
            values[name] = new

    def clear(self, core: Core, task: Task, account: Account) -> None:
        values = account.guest if account.inside else account.registers
        assert values is not None
        core.processor.write("ymm3h", 0)
        values["ymm3h"] = 0

    def fork(self, core: Core, task: Task, account: Account) -> None:
        if len(self.tasks) > 8 or account.inside or task.fpu.guest_active:
            return
        how = self.chance.choice((self.kernel.fork, self.kernel.thread))
        inherited = dict(account.registers)
        if "tmm4" in inherited:
            inherited["tmm4"] = 0
        self.tasks[how(task)] = Account(inherited, account.tiles_permitted)

    def exec(self, core: Core, task: Task, account: Account) -> None:
        if account.inside or any(other.manager is task.manager for other in self.tasks if other is not task):
            return
        self.kernel.exec(task)
        self.tasks[task] = Account(self.fresh())

    def ask(self, core: Core, task: Task, account: Account) -> None:
        if not self.kernel.config.init_xfd or account.inside:
            return
        self.kernel.request(task, Component.TILEDATA)
        for other, theirs in self.tasks.items():
            theirs.tiles_permitted |= other.manager is task.manager

    def signal(self, core: Core, task: Task, account: Account) -> None:
        if account.inside:
            return
        deliver_signal(self.kernel, core)
        account.frames.append(dict(account.registers))
        supervisor = {name: value for name, value in account.registers.items() if name in SUPERVISOR}
        account.registers = self.fresh() | supervisor

    def sigreturn(self, core: Core, task: Task, account: Account) -> None:
        if account.inside or not account.frames:
            return
        sigreturn(self.kernel, core)
        supervisor = {name: value for name, value in account.registers.items() if name in SUPERVISOR}
        account.registers = account.frames.pop() | supervisor

    def guest(self, core: Core, task: Task, account: Account) -> None:
        if account.inside:
            leave_guest(self.kernel, core)
            account.inside = False
            return
        if account.guest is None:
            if self.kernel.config.init_xfd:
                if task.manager.permissions.guest_frozen:
                    return
                self.kernel.request(task, Component.TILEDATA, Kind.GUEST)
            create_vcpu(self.kernel, task)
            set_cpuid(self.kernel, task, self.kernel.config.init_xfd)
            account.guest = self.fresh(guest=True)
        enter_guest(self.kernel, core)
        account.inside = True

    def park(self, core: Core, task: Task, account: Account) -> None:
        waiting = [
            other for other in self.tasks if all(each.current is not other for each in self.kernel.cores)
        ]
        if waiting:
            chosen = self.chance.choice(waiting)
            chosen.manager.park(chosen.fpu.fpstate.vso)


_EVENTS = (
    *(History.write,) * 6,
    *(History.clear, History.fork, History.exec, History.ask, History.signal, History.sigreturn),
    *(History.guest, History.guest, History.park),
)


def run_all(name: str) -> list[History]:
    histories = [History(name, seed) for seed in range(SEQUENCES)]
    for history in histories:
        history.run()
    return histories


@pytest.mark.parametrize("name", PROCESSORS)
def test_every_context_finds_what_it_wrote_last(name):
    for history in run_all(name):
        for task in history.tasks:
            history.kernel.end(task)
        assert history.kernel.pool.bytes_held == 0
        assert not any(any(free) for free in history.kernel.pool.free_memory())


@pytest.mark.parametrize(
    "mask",
    [mask_of(Component.OPMASK), mask_of(Component.SSE), mask_of(Component.HI16_ZMM), TILEDATA],
    ids=["opmask", "sse", "zmm", "tiles"],
)
def test_a_kernel_that_leaves_one_component_alone_is_caught(mask, monkeypatch):
    restore = KernelRegisters.restore
    monkeypatch.setattr(
        KernelRegisters, "restore", lambda self, image, rfbm: restore(self, image, rfbm & ~mask)
    )
    with pytest.raises(AssertionError):
        run_all("sapphire-rapids")


def test_a_kernel_that_forgets_pkru_is_caught(monkeypatch):
    monkeypatch.setattr(KernelRegisters, "pkru", property(lambda self: 0, lambda self, value: None))
    with pytest.raises(AssertionError):
        run_all("sapphire-rapids")
