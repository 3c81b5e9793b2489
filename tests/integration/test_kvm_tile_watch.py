"""Tiles that a KVM does not keep: found in use at an exit, whatever the program did to put them there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from kvm_runs import check, run_all, run_one
from tile_programs import (
    COUNT,
    ERASED,
    FAULT,
    FINISH,
    LEAVE_AND_GO_ON,
    LOOK,
    MADE,
    NOT_A_BREAKPOINT,
    PORT_AND_GO_ON,
    RELEASE,
    STORE,
    USE,
    restored,
    spin,
)

from fpstate.arch.component import AMX
from fpstate.engine.kvm import queue as kvm_queue
from fpstate.engine.kvm.engine import KvmEngine
from fpstate.engine.kvm.opcode import can_load_tiles, can_read_tiles
from fpstate.engine.kvm.session import Session
from fpstate.engine.kvm.supervisor import STACK_TOP
from fpstate.engine.kvm.tile_watch import TileWatch, xinuse_of
from fpstate.engine.kvm.trap import Why
from fpstate.errors import PermissionDenied, UnsupportedHere
from fpstate.program import BUILTIN, Program
from fpstate.program.load import Segment
from fpstate.vso.vcpu import ExitKind

CANARY = BUILTIN["canary"]
ROUNDS = 300
SHORT = 100_000
"""Nanoseconds that a guest behind a supposed breakpoint does not get done in."""
USES = {
    "made, then finished": MADE + FINISH,
    "made, a yield by the call": MADE + LEAVE_AND_GO_ON + RELEASE + FINISH,
    "made, a yield by the port": MADE + PORT_AND_GO_ON + RELEASE + FINISH,
    "made, a yield with tiles": MADE + USE + LEAVE_AND_GO_ON + FINISH,
    "made, until the tick": MADE + spin(0),
    "made, a fault": MADE + FAULT,
    "made and erased": ERASED + FINISH,
    "restored, then finished": restored(0x20000) + FINISH,
    "restored, until the tick": restored(0x20000) + spin(0),
    "restored with tiles, a yield": restored(0x60000) + LEAVE_AND_GO_ON + FINISH,
}
"""Programs that have tiles in use at an exit, and do not show it."""
GIVEN_BACK = MADE + USE + LOOK + RELEASE + FINISH


class Unwatched(KvmEngine):
    """The sabotaged twin: nobody looks."""

    def vcpu(self, program, **options):
        guest = super().vcpu(program, **options)
        guest.watch = None
        return guest


@pytest.fixture
def unkept(kvm):
    """unkept(class, ...) -> an engine on a KVM that runs tile instructions and does not keep tiles."""

    def make(kind: type[KvmEngine] = KvmEngine, **options) -> KvmEngine:
        engine = kvm(None, kind, **options)
        if not engine.manager.config.user_max.features & AMX:
            pytest.skip("a processor with AMX")
        if engine.keeps_residents:
            pytest.skip("a KVM that does not enforce XCR0 at CPL 3, and gives guests no AMX")
        return engine

    return make


@pytest.mark.parametrize("each", [False, True], ids=["shared", "one each"])
@pytest.mark.parametrize("body", USES.values(), ids=list(USES))
def test_whoever_has_tiles_in_use_at_an_exit_is_denied_by_name_and_the_others_finish(
    unkept, assemble, body, each
):
    engine = unkept(each=each)
    program = assemble(body)
    good = [engine.vcpu(CANARY.load(), seed=seed, argument=ROUNDS) for seed in range(3)]
    bad = [engine.vcpu(program) for _ in range(2)]
    run_all(engine, [good[0], bad[0], good[1], bad[1], good[2]])
    for guest in bad:
        assert (guest.exit.kind, guest.exit.code) == (ExitKind.DENIED, 17), str(guest.exit)
        assert isinstance(guest.exit.error, PermissionDenied)
        assert "TILECFG" in str(guest.exit)
        assert "TILEDATA" in str(guest.exit)
        assert (guest.block, guest.vso.alive, guest.vso.size) == (None, False, 0)
    assert [check(guest, seed, ROUNDS) for seed, guest in enumerate(good)] == [None] * 3
    assert engine.manager.statistics().denials == 2
    assert engine.manager.statistics().bytes_held == 0


def test_unwatched_it_finishes_and_its_configuration_is_gone(unkept, assemble):
    look = (
        "sub rsp, 64\nsttilecfg [rsp]\nmov rdx, [rsp]\nmov [rdi + 2048], rdx\nmov qword ptr [rdi + 40], 8\n"
    )
    body = MADE + LEAVE_AND_GO_ON + look + FINISH
    lost = run_one(unkept(Unwatched), assemble(body))
    assert lost.exit.kind is ExitKind.FINISHED
    assert lost.block.result[:8] == bytes(8)
    assert run_one(unkept(Unwatched), assemble(MADE + look + FINISH)).exit.kind is ExitKind.FINISHED


def test_tiles_that_are_given_back_in_time_are_right_or_denied(unkept, assemble):
    """Never wrong: a tick may come while they are in use, or another thread may have the processor."""
    engine = unkept(vcpus=1)
    guests = [
        engine.vcpu(assemble(body))
        for body in (GIVEN_BACK, MADE + USE + spin(3_000_000) + LOOK + RELEASE + FINISH)
    ]
    run_all(engine, guests, quantum=20_000_000)
    for guest in guests:
        if guest.exit.kind is ExitKind.FINISHED:
            assert guest.block.result[:8] == bytes(8)
        else:
            assert (guest.exit.kind, guest.exit.code) == (ExitKind.DENIED, 17)


def switching(monkeypatch, *, always: bool) -> None:
    """Count a context switch in each run of a guest, or none."""
    counts = iter(range(1 << 62)) if always else iter(lambda: 0, 1)
    monkeypatch.setattr(kvm_queue, "context_switches", lambda: next(counts))


def test_where_another_thread_had_the_processor_the_code_decides(unkept, assemble, monkeypatch):
    """The kernel drops tiles then too, and a guest that gave them back since shows none."""
    switching(monkeypatch, always=True)
    engine = unkept(vcpus=1)
    denied = run_one(engine, assemble(GIVEN_BACK))
    assert (denied.exit.kind, denied.exit.code) == (ExitKind.DENIED, 17)
    assert run_one(engine, assemble(FINISH)).exit.kind is ExitKind.FINISHED
    assert check(run_one(engine, CANARY.load(), seed=2, argument=ROUNDS), 2, ROUNDS) is None


def fixed(program: Program) -> Program:
    """Return a program as it is, in memory that it cannot write."""
    code = program.memory()
    return Program(program.name, (Segment(0, code, len(code), False, True),), program.entry)


@pytest.mark.parametrize("each", [False, True], ids=["shared", "one each"])
def test_tiles_given_back_after_exits_without_a_look_deny_in_code_that_cannot_change_too(
    unkept, assemble, each, monkeypatch
):
    """Behind a byte CCH a guest keeps its KVM vCPU, as a #BP may be pending: each exit drops its tiles."""
    monkeypatch.setattr(kvm_queue, "_MOST_STAYS", 1000)  # none of them ends with a look
    body = restored(0x20000) + USE + NOT_A_BREAKPOINT + STORE + RELEASE + COUNT + FINISH
    engine = unkept(each=each, timeout=60)
    good = engine.vcpu(CANARY.load(), seed=1, argument=ROUNDS)
    bad = [engine.vcpu(fixed(assemble(body))) for _ in range(5)]
    run_all(engine, [good, *bad], quantum=SHORT)
    assert {(guest.exit.kind, guest.exit.code) for guest in bad} == {(ExitKind.DENIED, 17)}
    assert check(good, 1, ROUNDS) is None
    twin = unkept(Unwatched, each=each, timeout=60)
    unwatched = [twin.vcpu(fixed(assemble(body))) for _ in range(5)]
    run_all(twin, unwatched, quantum=SHORT)
    finished = [guest.block.result[:8] for guest in unwatched if guest.exit.kind is ExitKind.FINISHED]
    assert (1024).to_bytes(8, "little") in finished


def test_who_loads_no_tiles_or_reads_none_is_not_denied_for_exits_without_a_look(
    unkept, assemble, monkeypatch
):
    switching(monkeypatch, always=True)
    engine = unkept(vcpus=1)
    readers = "tilestored [rsi + rcx], tmm0; tdpbssd tmm0, tmm1, tmm2\n"
    for body in ("xrstor64 [rsp]; ldtilecfg [rsp]\n", readers):
        guest = run_one(engine, fixed(assemble(NOT_A_BREAKPOINT + FINISH + body)))
        assert guest.exit.kind is ExitKind.FINISHED, str(guest.exit)
    both = run_one(engine, fixed(assemble(FINISH + "xrstor64 [rsp]\n" + readers)))
    assert (both.exit.kind, both.exit.code) == (ExitKind.DENIED, 17)


@pytest.mark.parametrize(("load", "saved"), [("xrstor64 [rsp]", False), ("", True)], ids=["xrstor", "none"])
def test_a_session_saves_nobody_who_may_have_tiles_where_it_cannot_be_looked_at(
    unkept, assemble, load, saved
):
    unkept().close()
    with Session() as session:
        session.start(assemble("jmp 1f; int3; 1: jmp 1b\n" + load))
        for _ in range(1000):
            session.run(SHORT)
            if session.space.code(session.context["rip"] - 1, 1) == b"\xcc":
                break
        if saved:
            assert session.checkpoint().checkpoint.program == "test"
        else:
            for _ in range(2):
                with pytest.raises(UnsupportedHere, match="a look whether test has tiles"):
                    session.checkpoint()


def test_a_guest_is_where_it_was_after_a_look(unkept, assemble):
    """Registers, extended state and the exception stack: a guest may have been stopped on the way to a handler."""
    engine = unkept(vcpus=1)
    guest = engine.vcpu(CANARY.load(), seed=4, argument=20_000)
    queue = engine.queue()
    queue.add(guest)
    queue.run_slices(100_000, 3)
    assert guest.watch is not None
    carrier = engine.carriers.borrow(0)
    frame = bytes(range(64))
    guest.memory.put_exception_frame(STACK_TOP - 64, frame)
    before, image = guest.context.general, bytes(carrier.kvm.xsave())
    found = xinuse_of(carrier, guest.memory, guest.context["cr4"], engine.tick)
    assert (found.why, found.operation & AMX) == (Why.LEFT, 0)
    assert found.operation & 2
    assert guest.memory.exception_frame(STACK_TOP - 64, 64) == frame
    assert (guest.context.general, bytes(carrier.kvm.xsave())) == (before, image)
    carrier.resident = None
    engine.carriers.give_back(carrier)
    while queue.run(100_000, 10**9) is None:
        pass
    assert check(guest, 4, 20_000) is None


@pytest.mark.parametrize("body", [USES["made, then finished"], USES["restored, until the tick"]])
def test_no_state_is_saved_of_a_guest_with_tiles(unkept, assemble, body):
    unkept().close()
    with Session() as session:
        session.start(assemble(body))
        with pytest.raises(UnsupportedHere, match="uses TILECFG, and guests of this KVM have"):
            session.finish()
        session.start(CANARY.load(), argument=ROUNDS)
        assert CANARY.check(session.finish().result, 0, ROUNDS, session.features) is None


def test_the_command_names_who_was_denied_and_no_tiles_among_the_components(unkept, assemble, tmp_path):
    unkept().close()
    program = tmp_path / "tiles.bin"
    program.write_bytes(assemble(USES["made, then finished"]).memory())
    done = subprocess.run(
        [sys.executable, "-m", "fpstate", "run", "--engine", "kvm", "--no-audit", "--json", "--vcpus", "4",
         program, "canary"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert (done.returncode, report["ends"], report["wrong"]) == (1, {"denied": 2, "finished": 2}, 0)
    assert "tiles uses TILECFG, and guests of this KVM have" in report["problems"][0]
    assert not {"TILECFG", "TILEDATA"} & set(report["components"])


@pytest.mark.parametrize(
    ("body", "can"),
    [
        ("tilestored [rsi + rcx], tmm0", True),
        ("tilestored [r14 + 8 * r9 + 1024], tmm7", True),
        ("tdpbssd tmm0, tmm1, tmm2", True),
        ("tdpbsud tmm7, tmm6, tmm5", True),
        ("tdpbusd tmm0, tmm1, tmm2", True),
        ("tdpbuud tmm3, tmm4, tmm0", True),
        ("tdpbf16ps tmm0, tmm1, tmm7", True),
        (".byte 0xC4, 0xE2, 0x73, 0x5C, 0xC2", True),  # tdpfp16ps tmm0, tmm2, tmm1
        (".byte 0xC4, 0xE2, 0x71, 0x6C, 0xC2", True),  # tcmmimfp16ps tmm0, tmm2, tmm1
        ("tileloadd tmm0, [rsi + rcx]", False),
        ("tileloaddt1 tmm0, [rsi + rcx]", False),
        ("tilezero tmm0; tilerelease; sttilecfg [rax]", False),
        ("xrstor64 [rax]; ldtilecfg [rax]", False),
        ("vpshufb xmm0, xmm1, xmm2; vpbroadcastd ymm0, xmm1", False),
    ],
)
def test_which_instructions_read_tiles(assemble, body, can):
    assert can_read_tiles(assemble(body).memory()) == can


# Who is watched


@pytest.mark.parametrize(
    ("body", "can"),
    [
        ("ldtilecfg [rax + 8 * r9]", True),
        ("xrstor [rdi]", True),
        ("xrstor64 [r10 + 4 * rcx + 64]", True),
        ("fxrstor64 [rax]", False),
        ("lfence", False),
        ("xsave64 [rax]", False),
        ("vpaddb zmm1, zmm2, zmm3", False),
        ("tilezero tmm0", False),
    ],
)
def test_which_instructions_can_put_tiles_in_use(assemble, body, can):
    assert can_load_tiles(assemble(body).memory()) == can


def test_only_code_that_can_load_tiles_or_be_changed_is_watched(assemble):
    code = assemble("fxrstor64 [rax]; lfence; " + FINISH).memory()

    def watched(code: bytes, *, writable: bool = False, executable: bool = True) -> bool:
        segment = Segment(0, code, len(code), writable=writable, executable=executable)
        more = Segment(4096, b"\xc3", 1, writable=False, executable=True)
        return TileWatch.of(Program("test", (segment, more), 4096)) is not None

    loads = assemble("ldtilecfg [rax]; " + FINISH).memory()
    assert not watched(code)
    assert watched(code, writable=True)
    assert watched(loads)
    assert not watched(loads, executable=False)
    assert not watched(loads, executable=False, writable=True)
    last, first = loads[:2].rjust(4096, b"\x90"), loads[2:]
    pages = (Segment(0, last, 4096, False, True), Segment(4096, first, len(first), False, True))
    assert TileWatch.of(Program("split over two pages", pages, 0)) is not None
