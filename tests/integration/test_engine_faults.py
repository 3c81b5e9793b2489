"""A guest that goes wrong is stopped, with what Linux says of its fault; Python and the others live on."""

import itertools
import math

import pytest
from engine_runs import QUANTUM, check, run_all, runnable

from fpstate.engine.native import NativeEngine, NativeVcpu
from fpstate.errors import ProgramError, UnsupportedHere, VsoError
from fpstate.program import BUILTIN, FAULTS, Fault
from fpstate.vso.manager import Manager
from fpstate.vso.vcpu import ExitKind

PAGE_FAULTS = {"read_null": 0, "write_kernel": 0xFFFF800000000000, "bad_stack": 8, "return_to_zero": 0}
LOADED = [name for name in FAULTS if name not in {"endless_loop", "yield_for_ever"}]


def run_one(engine: NativeEngine, program, **options) -> NativeVcpu:
    vcpu = engine.vcpu(program, **options)
    queue = engine.queue()
    queue.add(vcpu)
    while queue.run(QUANTUM, 20_000_000) is None and len(queue):
        pass
    assert vcpu.exit is not None
    return vcpu


def problem(vcpu: NativeVcpu, fault: Fault) -> str | None:
    """Say where an end is not the one that the fault declares."""
    end = vcpu.exit
    assert end is not None
    if fault.signal is not None:
        found = end.kind, end.signal, end.vector
        expected = ExitKind.FAULT, fault.signal, fault.vector
        return None if found == expected else f"{fault.name}: {found} instead of {expected}"
    if fault.name in {"endless_loop", "yield_for_ever"}:
        expected_kind = ExitKind.EXPIRED
    elif fault.operation or fault.name == "oversized_result":
        expected_kind = ExitKind.FAILED
    else:
        expected_kind = ExitKind.FINISHED
    return None if end.kind is expected_kind else f"{fault.name}: {end}"


@pytest.mark.parametrize("name", LOADED)
def test_a_guest_ends_as_its_fault_declares(engine: NativeEngine, name: str) -> None:
    assert problem(run_one(engine, FAULTS[name].load()), FAULTS[name]) is None


@pytest.mark.parametrize(("name", "address"), PAGE_FAULTS.items())
def test_a_page_fault_tells_the_address(engine: NativeEngine, name: str, address: int) -> None:
    end = run_one(engine, FAULTS[name].load()).exit
    assert end is not None
    assert end.address == address
    assert end.error_code & 0b10 == (0 if name in {"read_null", "return_to_zero"} else 0b10)


def test_other_faults_tell_where_they_happened(engine: NativeEngine) -> None:
    halt, division = (run_one(engine, FAULTS[name].load()).exit for name in ("halt", "divide_by_zero"))
    assert (halt.rip, halt.address) == (0, 0)
    assert (division.rip, division.address) == (6, 6)


def test_an_endless_guest_ends_when_its_time_is_up(manager: Manager) -> None:
    engine = NativeEngine(manager, timeout=0.02)
    for name in ("endless_loop", "yield_for_ever"):
        vcpu = run_one(engine, FAULTS[name].load())
        assert vcpu.exit.kind is ExitKind.EXPIRED
        assert vcpu.slices > 1


def test_a_thousand_failing_guests_in_a_row_harm_nobody(manager: Manager) -> None:
    engine, canary = NativeEngine(manager, timeout=0.5), BUILTIN["canary"]
    faults = [FAULTS[name] for name in LOADED]
    bad = [(engine.vcpu(fault.load()), fault) for fault in itertools.islice(itertools.cycle(faults), 1000)]
    good = [engine.vcpu(canary.load(), seed=seed, argument=1000) for seed in range(40)]
    run_all(engine, [*good[:20], *(vcpu for vcpu, _ in bad), *good[20:]], quantum=60_000)
    assert [text for vcpu, fault in bad if (text := problem(vcpu, fault))] == []
    assert [check(vcpu, seed, 1000) for seed, vcpu in enumerate(good)] == [None] * len(good)
    assert math.sqrt(2) * math.sqrt(2) == 2.0000000000000004
    assert engine.manager.statistics().contexts == 0


def test_flags_that_a_guest_leaves_set_do_not_reach_the_host(engine: NativeEngine, assemble) -> None:
    """AC would fault unaligned accesses of C code, DF turn its copies around."""
    fragments = {
        "by call": "pushfq; or dword ptr [rsp], 0x40400; popfq; mov eax, 0; call gs:[0]",
        "by port": "pushfq; or dword ptr [rsp], 0x40400; popfq; mov eax, 0; out 0xF5, eax",
        "by fault": "pushfq; or dword ptr [rsp], 0x40400; popfq; hlt",
        "by tick": "pushfq; or dword ptr [rsp], 0x40400; popfq; 1: jmp 1b",
    }
    short = NativeEngine(engine.manager, timeout=0.01)
    ends = [run_one(short, assemble(body)).exit.kind for body in fragments.values()]
    assert ends == [ExitKind.FINISHED, ExitKind.FINISHED, ExitKind.FAULT, ExitKind.EXPIRED]
    assert bytes(range(256))[1:200].hex() == bytes(range(1, 200)).hex()


def test_a_guest_keeps_the_flags_that_it_set(engine: NativeEngine, assemble) -> None:
    program = assemble(
        """
        pushfq
        or dword ptr [rsp], 0x240400
        popfq
        mov ecx, 2000
    1:  mov eax, 1
        call gs:[0]
        mov eax, 1
        out 0xF5, eax
        pushfq
        pop rax
        and eax, 0x240400
        cmp eax, 0x240400
        jne 2f
        dec ecx
        jnz 1b
        mov eax, 0
        call gs:[0]
    2:  mov eax, 256
        call gs:[0]
        """
    )
    assert run_one(engine, program).exit.kind is ExitKind.FINISHED


@pytest.mark.parametrize(
    ("name", "body", "kind"),
    [
        ("any instruction", "or dword ptr [rsp], 0x100; popfq; nop; nop", ExitKind.FAULT),
        (
            "a call of the exit",
            "mov eax, 0; or dword ptr [rsp], 0x100; popfq; call gs:[0]",
            ExitKind.FINISHED,
        ),
        ("a port write", "mov eax, 0; or dword ptr [rsp], 0x100; popfq; out 0xF5, eax", ExitKind.FINISHED),
    ],
)
def test_a_guest_that_sets_the_trap_flag_traps_itself_alone(engine, assemble, name, body, kind) -> None:
    vcpu = run_one(engine, assemble("pushfq; " + body))
    assert vcpu.exit.kind is kind
    if kind is ExitKind.FAULT:
        assert (vcpu.exit.signal, vcpu.exit.vector) == ("SIGTRAP", 1)
    assert run_one(engine, BUILTIN["spin"].load(), argument=1000).exit.kind is ExitKind.FINISHED


@pytest.mark.parametrize("value", ["0", "0x1000", "0x7fffffffe000", "0x123456789abc"])
def test_a_guest_that_changes_fs_does_not_hurt_the_host(engine: NativeEngine, assemble, value: str) -> None:
    change = f"movabs rcx, {value}; wrfsbase rcx;"
    leaving = {
        "mov eax, 0; call gs:[0]": ExitKind.FINISHED,
        "mov eax, 0; out 0xF5, eax": ExitKind.FINISHED,
        "hlt": ExitKind.FAULT,
        "1: jmp 1b": ExitKind.EXPIRED,
    }
    short = NativeEngine(engine.manager, timeout=0.01)
    for leave, kind in leaving.items():
        assert run_one(short, assemble(change + leave)).exit.kind is kind
        with pytest.raises(ValueError, match="invalid literal"):
            int("thread-local errno and thread state still work")


@pytest.mark.parametrize("stack", ["0x10", "0x8000000000000000", "0xffffffff80000000", "0xfff", "-8"])
def test_a_guest_without_a_usable_stack_is_still_preempted(
    engine: NativeEngine, assemble, stack: str
) -> None:
    program = assemble(
        f"movabs rsp, {stack}; mov ecx, 20000000; 1: dec ecx; jnz 1b; mov eax, 0; out 0xF5, eax"
    )
    vcpu = run_one(engine, program)
    assert vcpu.exit.kind is ExitKind.FINISHED
    assert vcpu.preemptions > 5


def test_a_stack_that_grows_too_far_meets_a_guard_page(engine: NativeEngine, assemble) -> None:
    vcpu = run_one(engine, assemble("1: push rax; jmp 1b"))
    assert (vcpu.exit.kind, vcpu.exit.signal, vcpu.exit.vector) == (ExitKind.FAULT, "SIGSEGV", 14)
    assert vcpu.exit.address == vcpu.core.code_start - 8


def test_what_a_guest_writes_outside_its_memory_is_a_fault_of_its_own(engine, assemble) -> None:
    vcpu = run_one(engine, assemble("mov rax, rdi; add rax, 0x1000; mov [rax], rax"))
    assert (vcpu.exit.kind, vcpu.exit.signal) == (ExitKind.FAULT, "SIGSEGV")


def test_a_program_that_this_machine_cannot_run_is_refused(engine: NativeEngine) -> None:
    missing = [builtin for builtin in BUILTIN.values() if builtin.required & ~engine.managed]
    if not missing:
        pytest.skip("a machine that lacks a component of some built-in program")
    for builtin in missing:
        assert builtin not in runnable(engine)
        with pytest.raises(UnsupportedHere, match=builtin.name):
            engine.vcpu(builtin.load())
    assert engine.manager.statistics().contexts == 0


def test_a_program_that_does_not_fit_leaves_no_vso_behind(engine: NativeEngine) -> None:
    with pytest.raises(ProgramError):
        engine.vcpu(BUILTIN["spin"].load(), memory_size=4096)
    assert engine.manager.statistics().contexts == 0


def test_a_vcpu_that_ended_is_not_run_again(engine: NativeEngine) -> None:
    vcpu = run_one(engine, BUILTIN["spin"].load(), argument=10)
    with pytest.raises(VsoError, match="ended"):
        engine.queue().add(vcpu)
