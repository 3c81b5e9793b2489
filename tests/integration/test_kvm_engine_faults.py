"""A guest that goes wrong ends alone, with the report that the native engine gives; and it cannot reach out."""

from __future__ import annotations

import itertools
import random

import pytest
from kvm_runs import QUANTUM, check, run_all, run_one, turn

from fpstate.arch.component import LEGACY
from fpstate.engine.kvm.abi import EXITS, SREGS_SIZE
from fpstate.engine.kvm.context import SREGS
from fpstate.engine.kvm.reset import DEBUG as DEBUG_REGISTERS
from fpstate.engine.kvm.reset import DEBUG_INITIAL
from fpstate.engine.kvm.supervisor import GS_PAGE, HANDLERS_PAGE, IDT_PAGE, STACK_PAGE, TABLES_PAGE
from fpstate.engine.native import NativeEngine
from fpstate.program import BUILTIN, FAULTS
from fpstate.vso.manager import Manager
from fpstate.vso.scheduler import Scheduler
from fpstate.vso.vcpu import ExitKind

CANARY = BUILTIN["canary"]
ENDLESS = {"endless_loop", "yield_for_ever"}
ENDING = [name for name in FAULTS if name not in ENDLESS]
DIFFERENT = {"system_call"}
"""What natively reaches the kernel of the host, and in a virtual machine nobody."""


@pytest.mark.parametrize("name", [name for name in ENDING if name not in DIFFERENT])
def test_the_report_is_the_native_one(kvm, native, name):
    here = run_one(kvm(), FAULTS[name].load(), seed=1, argument=3).exit
    natively = NativeEngine(Manager(), timeout=1).vcpu(FAULTS[name].load(), seed=1, argument=3)
    Scheduler(natively.engine).run([natively])
    there = natively.exit
    assert (here.kind, here.code, here.signal, here.si_code) == (
        there.kind,
        there.code,
        there.signal,
        there.si_code,
    )
    assert (here.vector, here.error_code, here.address, here.rip) == (
        there.vector,
        there.error_code,
        there.address,
        there.rip,
    )
    assert str(here) == str(there)


@pytest.mark.parametrize("each", [False, True], ids=["shared", "one each"])
def test_a_breakpoint_is_not_lost_to_a_tick(kvm, each):
    """Ticks come while KVM delivers #BP: most of these guests are new to KVM, and entering them takes long."""
    engine = kvm(each=each)
    guests = [engine.vcpu(FAULTS["breakpoint"].load()) for _ in range(150)]
    run_all(engine, guests, quantum=40_000)
    assert {str(guest.exit) for guest in guests} == {"SIGTRAP (vector 3) at 0x1, address 0x1"}


def test_a_guest_that_spins_behind_a_breakpoint_leaves_room_for_others(kvm, assemble):
    engine = kvm(vcpus=1, timeout=0.1)
    spinning = engine.vcpu(assemble("jmp 1f; int3; 1: jmp 1b"))
    other = engine.vcpu(CANARY.load(), seed=1, argument=1000)
    run_all(engine, [spinning, other])
    assert spinning.exit.kind is ExitKind.EXPIRED
    assert check(other, 1, 1000) is None


def test_a_system_call_reaches_nobody(kvm):
    end = run_one(kvm(), FAULTS["system_call"].load()).exit
    assert end.kind is ExitKind.FAULT
    assert end.signal in {"SIGILL", "SIGSEGV"}


@pytest.mark.parametrize("each", [False, True], ids=["shared", "one each"])
@pytest.mark.parametrize("name", sorted(ENDLESS))
def test_an_endless_guest_ends_when_its_time_is_up(kvm, name, each):
    engine = kvm(timeout=0.02, each=each)
    endless = engine.vcpu(FAULTS[name].load())
    other = engine.vcpu(CANARY.load(), seed=1, argument=2000)
    run_all(engine, [endless, other])
    assert endless.exit.kind is ExitKind.EXPIRED
    assert endless.slices > 10
    assert 20_000_000 < endless.used_ns < 2_000_000_000
    assert check(other, 1, 2000) is None


@pytest.mark.parametrize("each", [False, True], ids=["shared", "one each"])
def test_two_hundred_failing_guests_harm_nobody(kvm, each):
    engine = kvm(each=each)
    faults = list(itertools.islice(itertools.cycle(FAULTS[name] for name in ENDING), 200))
    bad = [engine.vcpu(fault.load()) for fault in faults]
    good = [engine.vcpu(CANARY.load(), seed=seed, argument=4000) for seed in range(20)]
    run_all(engine, [*good[:10], *bad, *good[10:]])
    assert [check(guest, seed, 4000) for seed, guest in enumerate(good)] == [None] * 20
    ends = {name: {str(guest.exit) for guest in bad if guest.name == name} for name in ENDING}
    assert all(len(found) == 1 for found in ends.values())
    assert all("vector" in end for name, (end,) in ends.items() if FAULTS[name].signal)
    assert engine.manager.statistics().contexts == 0


PAGES = {"tables": TABLES_PAGE, "gates": IDT_PAGE, "handlers": HANDLERS_PAGE, "exception stack": STACK_PAGE}


@pytest.mark.parametrize(
    "deed", ["mov rax, [rcx]", "mov [rcx], rax", "jmp rcx"], ids=["reads", "writes", "runs"]
)
@pytest.mark.parametrize("page", PAGES)
def test_a_guest_cannot_reach_what_is_above_it(kvm, assemble, page, deed):
    end = run_one(kvm(), assemble(f"mov ecx, {PAGES[page]:#x}; {deed}; mov eax, 0; call gs:[0]")).exit
    assert (end.kind, end.signal, end.address) == (ExitKind.FAULT, "SIGSEGV", PAGES[page])


def test_a_guest_cannot_write_where_gs_points(kvm, assemble):
    end = run_one(kvm(), assemble("mov rax, gs:[0]; mov gs:[0], rax; mov eax, 0; call gs:[0]")).exit
    assert (end.kind, end.signal, end.error_code, end.address) == (ExitKind.FAULT, "SIGSEGV", 7, GS_PAGE)


def test_a_guest_sees_no_page_but_its_own_and_two_that_cannot_be_written(kvm, assemble):
    """It reads one byte of every page of the lowest two megabytes; which it may read is told by who faults."""
    engine = kvm()
    program = assemble("mov rcx, [rdi + FPSTATE_ARGUMENT]; mov al, [rcx]; mov eax, 0; call gs:[0]")
    pages = [number << 12 for number in range(512)]
    guests = [engine.vcpu(program, argument=address) for address in pages]
    run_all(engine, guests)
    seen = [
        address for address, guest in zip(pages, guests, strict=True) if guest.exit.kind is ExitKind.FINISHED
    ]
    own = [(1 << 20) + offset for offset in range(0, 64 << 10, 4096)]
    assert seen == [0x43000, 0x44000, *own]


@pytest.mark.parametrize(
    "instruction",
    [
        "mov rax, cr3",
        "mov cr3, rax",
        "mov rax, dr0",
        "rdmsr",
        "wrmsr",
        "lgdt [rdi]",
        "cli",
        "in al, 0x60",
    ],
)
def test_what_only_a_kernel_may_is_a_fault(kvm, assemble, instruction):
    end = run_one(kvm(), assemble(f"{instruction}; mov eax, 0; call gs:[0]")).exit
    assert (end.kind, end.signal, end.vector, end.rip) == (ExitKind.FAULT, "SIGSEGV", 13, 0)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("or dword ptr [rsp], 0x100; popfq; nop; nop", ExitKind.FAULT),
        ("mov eax, 0; or dword ptr [rsp], 0x100; popfq; call gs:[0]", ExitKind.FINISHED),
        ("mov eax, 0; or dword ptr [rsp], 0x100; popfq; out 0xF5, eax", ExitKind.FINISHED),
    ],
)
def test_a_guest_that_sets_the_trap_flag_traps_itself_alone(kvm, assemble, body, kind):
    engine = kvm(vcpus=1)
    guest = run_one(engine, assemble("pushfq; " + body))
    assert guest.exit.kind is kind
    if kind is ExitKind.FAULT:
        assert (guest.exit.signal, guest.exit.vector) == ("SIGTRAP", 1)
    assert check(run_one(engine, CANARY.load(), seed=2, argument=2000), 2, 2000) is None
    carrier = engine.carriers.borrow(0)
    assert DEBUG_REGISTERS.unpack_from(carrier.kvm.debugregs()) == DEBUG_INITIAL


def test_a_guest_keeps_its_flags(kvm, assemble):
    """When it leaves, either way, and when it is preempted by one that has others."""
    program = assemble(
        """
        mov rbx, [rdi + FPSTATE_SEED]
        and ebx, 1
        imul ebx, ebx, 0x240400
        pushfq
        or [rsp], rbx
        popfq
        mov ecx, 50
    1:  mov eax, 1
        call gs:[0]
        mov eax, 1
        out 0xF5, eax
        mov esi, 100000
    2:  dec esi
        jnz 2b
        pushfq
        pop rax
        and eax, 0x240400
        cmp eax, ebx
        jne 3f
        dec ecx
        jnz 1b
        mov eax, 0
        call gs:[0]
    3:  mov eax, 256
        call gs:[0]
        """
    )
    engine = kvm(vcpus=1)
    guests = [engine.vcpu(program, seed=seed) for seed in range(6)]
    report = run_all(engine, guests)
    assert [str(guest.exit) for guest in guests] == ["finished"] * 6
    assert report.yields == 6 * 2 * 50


def test_a_quantum_too_short_to_get_anywhere_is_lengthened(kvm):
    """Where entering alone takes as long, nothing would ever go on."""
    engine = kvm(vcpus=1)
    guests = [engine.vcpu(CANARY.load(), seed=seed, argument=300) for seed in range(3)]
    run_all(engine, guests, quantum=1000)
    assert [check(guest, seed, 300) for seed, guest in enumerate(guests)] == [None] * 3


def test_fs_and_gs_bases_belong_to_the_guest(kvm, assemble):
    program = assemble(
        """
        mov rbx, [rdi + FPSTATE_SEED]
        wrfsbase rbx
        mov ecx, 50
    1:  mov eax, 1
        call gs:[0]
        rdfsbase rdx
        cmp rdx, rbx
        jne 2f
        dec ecx
        jnz 1b
        mov eax, 0
        call gs:[0]
    2:  mov eax, 256
        call gs:[0]
        """
    )
    engine = kvm(vcpus=1)
    guests = [engine.vcpu(program, seed=seed << 20) for seed in range(6)]
    run_all(engine, guests)
    ends = {str(guest.exit) for guest in guests}
    if any("SIGILL" in end for end in ends):
        pytest.skip("FSGSBASE in guests (CR4.FSGSBASE)")
    assert ends == {"finished"}


def test_guests_of_random_bytes_end_alone(kvm):
    """Whatever they execute: each ends in some way, and the others are right."""
    from fpstate.program import Program

    engine, source = kvm(timeout=0.03), random.Random(4)
    wild = [
        engine.vcpu(Program.from_bytes(source.randbytes(512), format="flat", name=f"wild{number}"))
        for number in range(300)
    ]
    good = [engine.vcpu(CANARY.load(), seed=seed, argument=20) for seed in range(10)]
    run_all(engine, [*good[:5], *wild, *good[5:]])
    assert [check(guest, seed, 20) for seed, guest in enumerate(good)] == [None] * 10
    assert all(guest.exit is not None for guest in wild)
    assert engine.manager.statistics().contexts == 0


def test_an_exit_that_nobody_expects_is_told_and_ends_the_guest_alone(kvm):
    """A page table root of zeros: no handler can run, and KVM gives up on the vCPU."""
    engine = kvm(vcpus=1)
    broken = engine.vcpu(CANARY.load(), seed=1, argument=2000)
    broken.memory.piece.write(0, bytes(4096))
    good = engine.vcpu(CANARY.load(), seed=2, argument=2000)
    run_all(engine, [broken, good])
    assert broken.exit.kind is ExitKind.REFUSED
    assert any(f"KVM_EXIT_{name} at" in str(broken.exit) for name in EXITS.values())
    assert check(good, 2, 2000) is None


def test_a_guest_that_shuts_down_does_not_take_the_next_one_with_it(kvm):
    """A tick between the third fault and its delivery leaves it pending in the KVM vCPU."""
    engine = kvm(vcpus=1)
    guests = []
    for seed in range(60):
        broken = engine.vcpu(CANARY.load(), seed=seed, argument=200)
        broken.memory.piece.write(0, bytes(4096))
        guests += [broken, engine.vcpu(CANARY.load(), seed=seed, argument=200)]
    run_all(engine, guests, quantum=50_000)
    if not engine.carriers.borrow(0).kvm.machine.device.capability("KVM_CAP_X86_TRIPLE_FAULT_EVENT"):
        pytest.skip("KVM_CAP_X86_TRIPLE_FAULT_EVENT (Linux 6.0)")
    assert {guest.exit.kind for guest in guests[::2]} == {ExitKind.REFUSED}
    assert [check(guest, seed, 200) for seed, guest in enumerate(guests[1::2])] == [None] * 60


def test_a_state_that_the_kernel_refuses_ends_the_guest_alone(kvm):
    engine = kvm()
    guests = [engine.vcpu(CANARY.load(), seed=seed, argument=20_000) for seed in range(3)]
    turn(engine, guests, 9)
    guests[1].vso.buffer.view[24:28] = b"\xff\xff\xff\xff"
    run_all(engine, guests)
    assert guests[1].exit.kind is ExitKind.REFUSED
    assert "KVM_SET_XSAVE failed: Invalid argument (EINVAL)" in str(guests[1].exit)
    assert (check(guests[0], 0, 20_000), check(guests[2], 2, 20_000)) == (None, None)


def test_registers_that_the_kernel_refuses_end_the_guest_alone(kvm):
    engine = kvm()
    guests = [engine.vcpu(CANARY.load(), seed=seed, argument=20_000) for seed in range(3)]
    turn(engine, guests, 9)
    guests[1].context.data[SREGS : SREGS + SREGS_SIZE] = b"\xff" * SREGS_SIZE
    run_all(engine, guests)
    assert guests[1].exit.kind is ExitKind.REFUSED
    assert (check(guests[0], 0, 20_000), check(guests[2], 2, 20_000)) == (None, None)


def test_a_denied_guest_is_told_from_one_that_has_no_such_instruction(kvm, avx, assemble):
    """Where KVM enforces XCR0, AVX raises #UD in a guest that may not use it; UD2 does so everywhere."""
    engine = kvm()
    for body, kind in (("vaddps ymm0, ymm1, ymm2; vpcmpeqd ymm3, ymm3, ymm3; 1: jmp 1b", ExitKind.DENIED),
                       ("ud2", ExitKind.FAULT)):  # fmt: skip
        guest = engine.vcpu(assemble(body), permitted=LEGACY)
        run_all(engine, [guest], quantum=QUANTUM)
        assert guest.exit.kind is kind
