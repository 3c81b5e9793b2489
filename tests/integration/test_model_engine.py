"""fpstate run --engine model: scripted contexts on processors in software, every result checked, nothing leaked."""

import json
from collections.abc import Callable, Iterator

import pytest

from fpstate.arch import Component, Cpu, mask_of
from fpstate.arch.component import LEGACY
from fpstate.command.main import main
from fpstate.engine.model.behaviour import Behaviour
from fpstate.engine.model.context import ModelVcpu
from fpstate.engine.model.engine import STEP_NS, ModelEngine
from fpstate.engine.model.kernel import Kernel
from fpstate.engine.model.kernel_registers import KernelRegisters
from fpstate.engine.model.leak import audit
from fpstate.engine.model.script import Script, Setting
from fpstate.engine.model.scripts import SCRIPTS
from fpstate.engine.model.step import Ask, Check, Refused, SetXfd, Step, Write, Yield
from fpstate.errors import (
    GuestOnlyComponent,
    GuestOnlyComponentWarning,
    PermissionDenied,
    ProcessorFault,
    UnsupportedHere,
    VsoError,
)
from fpstate.vso import FpuConfig, Manager, Pool, Scheduler
from fpstate.vso.permission import Kind
from fpstate.vso.vcpu import ExitKind

pytest.importorskip(
    "fpstate._core", reason="the native core (fpstate._core), which aligns buffers, is not built"
)

TILECFG, TILEDATA = mask_of(Component.TILECFG), mask_of(Component.TILEDATA)
UINTR = mask_of(Component.UINTR)
CONTEXTS = 12
QUANTUM = 100_000


def engine_on(name: str, **options: object) -> ModelEngine:
    return ModelEngine(Manager(Cpu.catalog(name)), **options)


def scripted(*steps: Step, **fields: object) -> Script:
    return Script("test", "steps of a test", lambda setting: steps, **fields)


def run(engine: ModelEngine, *vcpus: ModelVcpu, quantum_ns: int = QUANTUM) -> None:
    queue = engine.queue()
    for vcpu in vcpus:
        queue.add(vcpu)
    while len(queue):
        queue.run(quantum_ns, 10**10)


def problem(script: Script, vcpu: ModelVcpu) -> str | None:
    return script.check(vcpu.block.result, vcpu.setting.seed) if vcpu.block else str(vcpu.exit)


class SkipsWhatIsAbsent(KernelRegisters):
    """Restores what the next context has, and leaves what it lacks in the registers."""

    def restore(self, image, rfbm):
        super().restore(image, rfbm & (image.xstate_bv | LEGACY))


class KeepsTiles(KernelRegisters):
    """Leaves one component alone: tiles, of which most contexts know nothing."""

    def restore(self, image, rfbm):
        super().restore(image, rfbm & (image.xstate_bv | ~TILEDATA))


class KeepsConfigurations(KernelRegisters):
    """Leaves TILECFG alone."""

    def restore(self, image, rfbm):
        super().restore(image, rfbm & (image.xstate_bv | ~TILECFG))


class KeepsPkru(KernelRegisters):
    """Leaves PKRU as the context before had it."""

    pkru = property(KernelRegisters.pkru.fget, lambda registers, value: None)


class BrokenEngine(ModelEngine):
    """An engine whose processors are switched by another kernel."""

    broken: type[KernelRegisters] = KernelRegisters

    def registers(self):
        return self.broken(self.manager.config, self.kernel.behaviour)


class ForgetsToScrub(Pool):
    """Takes buffers back as they are."""

    def _scrub_and_free(self, buffer):
        buffer.slab.give(buffer.slot, scrub=False)


class CutsRows(Manager):
    """Moves the first half of each row of the tiles."""

    def _pieces(self, source, target, in_use):
        if not in_use & TILEDATA:
            return super()._pieces(source, target, in_use)
        at, to = source.place(Component.TILEDATA).offset, target.place(Component.TILEDATA).offset
        rows = [(at + 64 * row, to + 64 * row, 32) for row in range(128)]
        return [*super()._pieces(source, target, in_use & ~TILEDATA), *rows]


class CopiesTooLittle(Manager):
    """Loses the last 8 bytes of what it moves."""

    def _pieces(self, source, target, in_use):
        *rest, (at, to, size) = super()._pieces(source, target, in_use)
        return [*rest, (at, to, size - 8)]


@pytest.fixture
def broken_on() -> Iterator[Callable[[type[KernelRegisters]], ModelEngine]]:
    def make(registers: type[KernelRegisters]) -> ModelEngine:
        engine = BrokenEngine(Manager(Cpu.catalog("sapphire-rapids")))
        engine.broken = registers
        return engine

    return make


class TestScripts:
    @pytest.mark.parametrize("name", Cpu.catalog_names())
    @pytest.mark.parametrize("quantum_ns", [STEP_NS, QUANTUM])
    def test_every_script_that_can_run_finds_what_it_must(self, name, quantum_ns):
        engine = engine_on(name)
        usable = [script for script in SCRIPTS.values() if not script.missing(engine.managed)]
        started = [
            (script, engine.vcpu(script, seed=seed, argument=3))
            for seed in range(2)
            for script in usable
            if script.name != "host-shadow-stacks"
        ]
        run(engine, *(vcpu for _, vcpu in started), quantum_ns=quantum_ns)
        assert {script.name: problem(script, vcpu) for script, vcpu in started} == {
            script.name: None for script, _ in started
        }
        assert engine.manager.statistics().bytes_held == 0
        assert engine.manager.vsos() == []

    def test_amx_cpus_run_all_but_mpx_and_the_model_of_apx_that_too(self):
        missing = {
            name: {script.name for script in SCRIPTS.values() if script.missing(engine_on(name).managed)}
            for name in ("sapphire-rapids", "granite-rapids", "diamond-rapids-model", "skylake-sp")
        }
        assert missing == {
            "sapphire-rapids": {"mpx", "apx", "user-interrupts"},
            "granite-rapids": {"mpx", "apx", "user-interrupts"},
            "diamond-rapids-model": {"mpx", "user-interrupts"},
            "skylake-sp": {
                *("apx", "user-interrupts", "shadow-stack", "branches", "amx", "amx-denied"),
                *("guest-shadow-stacks", "guest-xfd", "host-shadow-stacks"),
            },
        }

    @pytest.mark.parametrize(
        ("name", "components"),
        [
            ("sapphire-rapids", {"AVX", "HI16_ZMM", "PKRU", "PASID", "CET_U", "TILECFG", "TILEDATA", "LBR"}),
            ("diamond-rapids-model", {"APX", "TILEDATA"}),
            ("skylake-sp", {"BNDREGS", "BNDCSR", "OPMASK", "PKRU"}),
        ],
    )
    def test_the_canary_has_every_component_that_its_context_may_use(self, name, components):
        vcpu = engine_on(name).vcpu(SCRIPTS["canary"], argument=1)
        written = {name for step in vcpu.steps if isinstance(step, Write) for name in step.registers}
        assert {Component[each] for each in components} <= {
            number for number in Component if vcpu.setting.features >> number & 1
        }
        assert {"TILEDATA": "tmm7", "APX": "r31", "LBR": "lbr_31_info", "BNDREGS": "bnd3", "PKRU": "pkru"}[
            next(iter({"TILEDATA", "APX", "LBR", "BNDREGS", "PKRU"} & components))
        ] in written

    def test_the_guests_canary_has_its_kernels_shadow_stacks_and_the_hosts_has_not(self):
        engine = engine_on("sapphire-rapids")
        guest, host = engine.vcpu(SCRIPTS["guest"]), engine.vcpu(SCRIPTS["canary"])
        assert "CET_S" in {n.name for n in Component if guest.setting.features >> n & 1}
        assert "CET_S" not in {n.name for n in Component if host.setting.features >> n & 1}

    def test_a_run_is_the_same_each_time(self):
        def told() -> tuple[object, ...]:
            engine = engine_on("sapphire-rapids")
            vcpus = [engine.vcpu(SCRIPTS[name], seed=3, argument=2) for name in ("canary", "amx", "guest")]
            queue = engine.queue()
            for vcpu in vcpus:
                queue.add(vcpu)
            while len(queue):
                queue.run(3 * STEP_NS, 10**10)
            report = queue.report()
            return (report, [(vcpu.slices, vcpu.preemptions, vcpu.block) for vcpu in vcpus])

        assert told() == told()

    def test_a_quantum_is_a_number_of_steps(self):
        engine = engine_on("zen4")
        script = scripted(*[Check({"xmm0": 0})] * 10)
        slices = []
        for quantum_ns in (1, STEP_NS, 5 * STEP_NS, 100 * STEP_NS):
            vcpu = engine.vcpu(script)
            run(engine, vcpu, quantum_ns=quantum_ns)
            slices.append((vcpu.slices, vcpu.preemptions))
        assert slices == [(11, 10), (11, 10), (3, 2), (1, 0)]

    def test_idle_contexts_hold_nothing(self):
        engine = engine_on("sapphire-rapids")
        run(engine, *(engine.vcpu(SCRIPTS["idle"]) for _ in range(10)))
        assert engine.manager.statistics().bytes_peak == 0

    def test_a_buffer_that_is_no_longer_needed_is_parked(self):
        manager = Manager(Cpu.catalog("sapphire-rapids"), shrink_after=4)
        engine = ModelEngine(manager)
        script = scripted(Write({"zmm20": 1, "xmm1": 1}), Yield(), Write({"zmm20": 0}), *[Yield()] * 5)
        vcpu = engine.vcpu(script)
        queue = engine.queue()
        queue.add(vcpu)
        sizes = []
        while len(queue):
            queue.run_slices(QUANTUM, 1)
            sizes.append(vcpu.vso.size)
        assert sizes[:4] == [1600, 1600, 1600, 576]
        assert manager.statistics().parks == 1

    def test_saves_and_restores_are_counted(self):
        engine = engine_on("zen4")
        run(engine, engine.vcpu(SCRIPTS["sse"], argument=3))
        counts = engine.manager.statistics()
        assert (counts.saves, counts.restores) == (3, 3)

    def test_a_guest_that_yields_leaves_to_its_host_and_one_that_is_preempted_does_not(self):
        engine = engine_on("sapphire-rapids")
        vcpu = engine.vcpu(scripted(Yield(), *[Check({"xmm0": 0})] * 4), kind=Kind.GUEST)
        queue = engine.queue()
        queue.add(vcpu)
        queue.run_slices(2 * STEP_NS, 1)
        assert (vcpu.preemptions, vcpu.task.fpu.guest_active) == (0, False)
        queue.run_slices(2 * STEP_NS, 1)
        assert (vcpu.preemptions, vcpu.task.fpu.guest_active) == (1, True)

    @pytest.mark.parametrize("name", ["canary", "guest"])
    def test_contexts_can_be_held_to_fewer_components(self, name):
        vcpu = engine_on("sapphire-rapids").vcpu(SCRIPTS[name], permitted=LEGACY, argument=1)
        assert vcpu.setting.features == vcpu.vso.permitted == LEGACY

    def test_results_differ_where_a_register_was_lost(self):
        engine = engine_on("zen4")
        script = scripted(Write({"xmm1": 5}), Yield(), Check({"xmm1": 6, "xmm2": 0}))
        vcpu = engine.vcpu(script)
        run(engine, vcpu)
        assert vcpu.exit.kind is ExitKind.FINISHED
        assert problem(script, vcpu) == (
            "test: 1 of 2 checks failed, first: step 3: xmm1 holds 0x5 instead of 0x6"
        )

    def test_a_script_that_checks_nothing_is_not_right(self):
        engine = engine_on("zen4")
        script = scripted(Write({"xmm1": 5}))
        vcpu = engine.vcpu(script)
        run(engine, vcpu)
        assert problem(script, vcpu) == "test: no check was made"


class TestUserInterrupts:
    """A kernel that keeps user interrupts, as patches for Linux have done."""

    def engine(self) -> ModelEngine:
        config = FpuConfig.from_cpu(Cpu.catalog("sapphire-rapids"), out_of_tree=UINTR)
        assert config.xss == 0x9C00 | UINTR
        return ModelEngine(Manager(config=config))

    def test_they_are_kept_across_switches_and_in_guests(self):
        engine = self.engine()
        vcpus = [
            (SCRIPTS[name], engine.vcpu(SCRIPTS[name], seed=seed, argument=3))
            for seed in range(3)
            for name in ("user-interrupts", "canary", "guest", "signals")
        ]
        run(engine, *(vcpu for _, vcpu in vcpus), quantum_ns=STEP_NS)
        assert [problem(script, vcpu) for script, vcpu in vcpus] == [None] * len(vcpus)
        assert all(vcpu.setting.features & UINTR for _, vcpu in vcpus)

    def test_nothing_of_them_leaks(self):
        assert audit(self.engine(), contexts=CONTEXTS).clean

    def test_a_kernel_that_leaves_the_vector_set_would_fault(self, monkeypatch):
        engine = self.engine()
        monkeypatch.setattr("fpstate.engine.model.kernel_registers._UINTR", 0)
        vcpu = engine.vcpu(scripted(Write({"uintr_uinv": 0x40})))
        run(engine, vcpu)
        assert vcpu.exit.kind is ExitKind.FAULT
        assert "UINV" in str(vcpu.exit.error)


class TestRefusals:
    def exit_of(self, engine: ModelEngine, script: Script, **options: object) -> ModelVcpu:
        vcpu = engine.vcpu(script, **options)
        run(engine, vcpu)
        assert vcpu.block is None
        return vcpu

    def test_amx_without_permission_ends_that_context_alone(self):
        engine = engine_on("sapphire-rapids")
        denied = engine.vcpu(scripted(Write({"zmm1": 1}), Write({"tmm0": 1}), denied=TILEDATA))
        other = engine.vcpu(SCRIPTS["amx"], argument=2)
        run(engine, denied, other)
        assert denied.exit.kind is ExitKind.DENIED
        assert isinstance(denied.exit.error, PermissionDenied)
        assert (denied.exit.code, denied.exit.rip) == (Component.TILEDATA, 2)
        assert problem(SCRIPTS["amx"], other) is None
        assert engine.manager.statistics().bytes_held == 0

    def test_shadow_stacks_of_a_kernel_in_a_host_are_warned_about(self):
        engine = engine_on("sapphire-rapids")
        with pytest.warns(GuestOnlyComponentWarning, match="CET_S"):
            vcpu = self.exit_of(engine, scripted(Write({"pl0_ssp": 0x1000})))
        assert isinstance(vcpu.exit.error, GuestOnlyComponent)

    @pytest.mark.filterwarnings("error")
    def test_in_a_guest_they_are_not(self):
        engine = engine_on("sapphire-rapids")
        vcpu = engine.vcpu(SCRIPTS["guest-shadow-stacks"], argument=2)
        run(engine, vcpu)
        assert problem(SCRIPTS["guest-shadow-stacks"], vcpu) is None

    @pytest.mark.parametrize("register", ["uintr_handler", "rtit_ctl", "hwp_request"])
    def test_components_that_the_kernel_leaves_off_cannot_be_reached(self, register):
        vcpu = self.exit_of(engine_on("granite-rapids"), scripted(Write({register: 1})))
        assert (vcpu.exit.kind, vcpu.exit.signal, vcpu.exit.vector) == (ExitKind.FAULT, "SIGILL", 6)
        assert isinstance(vcpu.exit.error, ProcessorFault)

    def test_a_refusal_that_does_not_come_is_a_wrong_result(self):
        engine = engine_on("sapphire-rapids")
        script = scripted(Refused(Write({"xmm0": 1}), "EPERM"), Refused(Write({"tmm0": 1}), "#NM"))
        vcpu = engine.vcpu(script)
        run(engine, vcpu)
        assert "2 of 2 checks failed" in problem(script, vcpu)
        assert "was done, not refused by EPERM" in problem(script, vcpu)

    def test_guest_permission_is_asked_for_before_the_first_guest(self):
        engine = engine_on("sapphire-rapids")
        vcpu = engine.vcpu(SCRIPTS["guest"])
        assert vcpu.setting.features & TILEDATA
        assert engine.manager.permissions.guest_frozen
        denied = engine.vcpu(SCRIPTS["guest-shadow-stacks"])
        assert not denied.setting.features & TILEDATA

    def test_a_policy_without_tiles_denies_them_to_guests(self):
        cpu = Cpu.catalog("sapphire-rapids")
        engine = ModelEngine(Manager(cpu, policy=(1 << 62) - 1 & ~TILEDATA))
        script = scripted(Refused(Write({"tmm0": 1}), "#UD"), Refused(SetXfd(TILEDATA), "EOPNOTSUPP"))
        vcpu = engine.vcpu(script, kind=Kind.GUEST)
        run(engine, vcpu)
        assert problem(script, vcpu) is None

    def test_asking_for_what_is_not_dynamic_is_refused(self):
        engine = engine_on("zen4")
        script = scripted(Refused(Ask(Component.TILEDATA), "EOPNOTSUPP"), Refused(Ask(25), "EINVAL"))
        vcpu = engine.vcpu(script)
        run(engine, vcpu)
        assert problem(script, vcpu) is None

    def test_scripts_for_what_the_processor_lacks_or_for_the_other_kind(self):
        with pytest.raises(UnsupportedHere, match="TILEDATA"):
            engine_on("zen4").vcpu(SCRIPTS["amx"])
        with pytest.raises(UnsupportedHere, match="for a host"):
            engine_on("sapphire-rapids").vcpu(SCRIPTS["amx"], kind=Kind.GUEST)

    def test_a_time_limit_is_one_of_steps(self):
        engine = engine_on("zen4", timeout=5 * STEP_NS / 1e9)
        vcpu = self.exit_of(engine, scripted(*[Yield()] * 10))
        assert (vcpu.exit.kind, vcpu.exit.rip) == (ExitKind.EXPIRED, 5)

    def test_a_time_limit_shorter_than_a_step_is_a_limit(self):
        vcpu = self.exit_of(engine_on("zen4", timeout=STEP_NS / 2e9), scripted(*[Yield()] * 10))
        assert (vcpu.exit.kind, vcpu.exit.rip) == (ExitKind.EXPIRED, 1)

    def test_a_context_that_cannot_be_loaded_is_ended_and_frees_its_state(self, monkeypatch):
        engine = engine_on("zen4")
        queue, vcpu = engine.queue(), engine.vcpu(scripted(*[Yield()] * 3))
        queue.add(vcpu)
        monkeypatch.setattr(type(queue.core.registers), "restore", self.no_memory)
        assert queue.run(QUANTUM, 10**10) is vcpu
        assert (vcpu.exit.kind, engine.manager.vsos()) == (ExitKind.REFUSED, [])

    @staticmethod
    def no_memory(*_: object) -> None:
        raise MemoryError

    def test_no_memory_ends_a_context_and_no_other(self, monkeypatch):
        engine = engine_on("zen4")
        store, refused = Manager.store, []

        def fails_once(manager, vso, *arguments):
            if vso is large.vso and not refused:
                refused.append(vso)
                raise MemoryError
            store(manager, vso, *arguments)

        large, small = (engine.vcpu(SCRIPTS[name], argument=2) for name in ("avx512", "sse"))
        monkeypatch.setattr(Manager, "store", fails_once)
        run(engine, large, small)
        assert large.exit.kind is ExitKind.REFUSED
        assert "no memory" in str(large.exit.error)
        assert problem(SCRIPTS["sse"], small) is None

    @pytest.mark.parametrize("where", ["switch", "run"])
    def test_an_interrupt_leaves_a_queue_that_can_be_run_again(self, monkeypatch, where):
        engine = engine_on("sapphire-rapids")
        vcpus = [
            (SCRIPTS[name], engine.vcpu(SCRIPTS[name], argument=2)) for name in ("canary", "guest", "sse")
        ]
        queue = engine.queue()
        for _, vcpu in vcpus:
            queue.add(vcpu)
        usual, calls = getattr(Kernel, where), []

        def interrupted(kernel, *arguments):
            calls.append(where)
            if len(calls) == 8:
                raise KeyboardInterrupt
            return usual(kernel, *arguments)

        monkeypatch.setattr(Kernel, where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            queue.run_slices(3 * STEP_NS, 100)
        while len(queue):
            queue.run(3 * STEP_NS, 10**10)
        assert [vcpu.exit.kind for _, vcpu in vcpus] == [ExitKind.FINISHED] * 3
        assert [problem(script, vcpu) for script, vcpu in vcpus] == [None] * 3

    def test_a_context_is_run_once(self):
        engine = engine_on("zen4")
        queue, vcpu = engine.queue(), engine.vcpu(SCRIPTS["sse"])
        queue.add(vcpu)
        with pytest.raises(VsoError, match="in the queue"):
            queue.add(vcpu)
        while len(queue):
            queue.run(QUANTUM, 10**10)
        with pytest.raises(VsoError, match="has ended"):
            queue.add(vcpu)


class TestLeakAudit:
    @pytest.mark.parametrize("name", Cpu.catalog_names())
    def test_nothing_leaks(self, name):
        engine = engine_on(name)
        report = audit(engine, contexts=CONTEXTS)
        assert (report.leaks, report.damaged) == ([], [])
        assert report.searched_bytes > CONTEXTS * 576
        assert engine.manager.vsos() == []

    @pytest.mark.parametrize("tracks_values", [True, False])
    def test_whatever_the_processor_tracks(self, tracks_values):
        behaviour = Behaviour(tracks_values=tracks_values)
        assert audit(engine_on("granite-rapids", behaviour=behaviour), contexts=CONTEXTS, seed=7).clean

    def test_registers_that_a_switch_leaves_behind_are_caught(self, broken_on):
        report = audit(broken_on(SkipsWhatIsAbsent), contexts=CONTEXTS)
        assert report.leaked_bytes > 0
        assert {"a fresh host", "a fresh guest"} & {leak.place.partition(" of ")[2] for leak in report.leaks}

    def test_one_component_that_is_left_behind_is_enough(self, broken_on):
        report = audit(broken_on(KeepsTiles), contexts=CONTEXTS)
        assert report.leaked_bytes > 0
        assert "tmm" in {leak.place[:3] for leak in report.leaks}

    def test_a_tile_configuration_that_is_left_behind_is_caught(self, broken_on):
        report = audit(broken_on(KeepsConfigurations), contexts=CONTEXTS)
        assert report.leaks
        assert all(max(leak.word.to_bytes(8, "little")) <= 64 for leak in report.leaks), (
            "rows, or bytes of a row"
        )

    def test_a_pkru_that_is_left_behind_is_caught(self, broken_on):
        report = audit(broken_on(KeepsPkru), contexts=CONTEXTS)
        assert any("pkru" in each for each in (*report.damaged, *map(str, report.leaks)))

    def test_rows_of_tiles_that_are_cut_short_are_caught(self):
        report = audit(ModelEngine(CutsRows(Cpu.catalog("emerald-rapids"))), contexts=CONTEXTS)
        assert any("tmm" in each for each in report.damaged)
        assert not any("zmm" in each or "xmm" in each for each in report.damaged)

    def test_buffers_that_go_back_unscrubbed_are_caught(self):
        manager = Manager(Cpu.catalog("sapphire-rapids"), pool=ForgetsToScrub())
        report = audit(ModelEngine(manager), contexts=CONTEXTS)
        assert {leak.place for leak in report.leaks} == {"free pool memory"}

    def test_a_copy_that_is_too_short_is_caught(self):
        report = audit(ModelEngine(CopiesTooLittle(Cpu.catalog("sapphire-rapids"))), contexts=CONTEXTS)
        assert report.damaged
        assert any("checks failed" in each for each in report.damaged)

    def test_guests_that_keep_the_hosts_registers_are_caught(self, monkeypatch):
        from fpstate.vso.fpstate import Fpstate

        restore = Fpstate.restore

        def only_hosts(self, processor):
            if self.vso.is_guest and not self.vso.buffer:
                self.loaded_on = processor
            else:
                restore(self, processor)

        monkeypatch.setattr(Fpstate, "restore", only_hosts)
        assert not audit(engine_on("sapphire-rapids"), contexts=CONTEXTS).clean


class TestScheduler:
    @pytest.mark.parametrize("processors", [1, 2])
    def test_contexts_are_shared_out_among_host_threads(self, processors):
        import os

        if len(os.sched_getaffinity(0)) < processors:
            pytest.skip(f"{processors} processors (sched_getaffinity)")
        engine = engine_on("sapphire-rapids")
        names = ("canary", "amx", "guest", "signals", "sse")
        vcpus = [(SCRIPTS[name], engine.vcpu(SCRIPTS[name], seed=3, argument=2)) for name in names * 4]
        report = Scheduler(engine, quantum_ns=3 * STEP_NS, processors=processors).run(
            vcpu for _, vcpu in vcpus
        )
        assert [problem(script, vcpu) for script, vcpu in vcpus] == [None] * len(vcpus)
        assert report.preemptions > len(vcpus)
        assert report.switches >= report.preemptions + report.yields

    def test_settings_are_values(self):
        setting = engine_on("zen4").vcpu(SCRIPTS["sse"], seed=4, argument=2).setting
        assert setting == Setting(Cpu.catalog("zen4"), setting.features, Kind.HOST, 4, 2)


class TestCommand:
    def run(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
        code = main(["run", "--engine", "model", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    def test_it_reports_as_the_other_engines_do(self, capsys):
        code, out, _ = self.run(capsys, "--cpu", "sapphire-rapids", "--vcpus", "40", "--json")
        told = json.loads(out)
        assert code == 0
        assert (told["engine"], told["cpu"], told["schema"]) == ("model", "sapphire-rapids", "fpstate-run/1")
        assert (told["finished"], told["checked"], told["wrong"], told["leaked_bytes"]) == (40, 40, 0, 0)
        assert told["preemptions"] > 0
        assert set(told["left_out"]) == {"mpx", "apx", "user-interrupts"}

    def test_people_are_told_that_it_is_software(self, capsys):
        code, out, _ = self.run(capsys, "--cpu", "skylake-sp", "--vcpus", "6", "--no-audit", "canary", "mpx")
        assert code == 0
        assert "model: skylake-sp, in software" in out
        assert "6 checked, 0 wrong" in out

    def test_guests_alone(self, capsys):
        code, out, _ = self.run(capsys, "--cpu", "sapphire-rapids", "--vcpus", "12", "--guest", "--json")
        told = json.loads(out)
        assert (code, told["left_out"]["amx"]) == (0, "is for hosts")

    @pytest.mark.parametrize(
        ("arguments", "code", "said"),
        [
            (("--cpu", "sapphire-rapids", "spin"), 2, "no such script"),
            (("--cpu", "zen4", "amx"), 3, "TILECFG|TILEDATA"),
            (("--cpu", "nosuch"), 2, "unknown processor"),
        ],
    )
    def test_what_cannot_be_run_is_said(self, capsys, arguments, code, said):
        got, _, err = self.run(capsys, *arguments)
        assert got == code
        assert said in err

    def test_a_processor_can_be_named_for_the_model_alone(self, capsys):
        assert main(["run", "--cpu", "zen4"]) == 2
        assert "--cpu is for --engine model" in capsys.readouterr().err

    def test_a_wrong_result_is_exit_code_1(self, capsys, monkeypatch):
        monkeypatch.setattr("fpstate.engine.model.kernel_registers.KernelRegisters.save", lose_the_last_mask)
        code, out, _ = self.run(capsys, "--cpu", "zen4", "--vcpus", "2", "--no-audit", "avx512")
        assert code == 1
        assert "k7 holds 0x0 instead of" in out


def lose_the_last_mask(self, rfbm, save=KernelRegisters.save):
    image = save(self, rfbm)
    if "k7" in image.registers:
        image.registers["k7"] = 0
    return image
