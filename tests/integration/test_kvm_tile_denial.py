"""Programs that need tiles which guests of a KVM do not have: denied unentered; what others hold tells nothing."""

from __future__ import annotations

import pytest
from kvm_runs import check, run_all, run_one
from tile_programs import CONFIGURED, FINISH, LEAVE_AND_GO_ON, LOOK, RELEASE, USE

from fpstate.arch.component import AMX, AVX512, LEGACY
from fpstate.engine.kvm.engine import KvmEngine
from fpstate.engine.kvm.small_guest import pkru_inside, xcr0_inside
from fpstate.engine.kvm.tile_denial import needs_tiles
from fpstate.errors import PermissionDenied, UnsupportedHere
from fpstate.program import BUILTIN, Program
from fpstate.program.load import Segment
from fpstate.vso.manager import Manager
from fpstate.vso.vcpu import ExitKind

CANARY, MATMUL, PROBE = BUILTIN["canary"], BUILTIN["amx_matmul"], BUILTIN["probe"]
USES_TILES = "lea rax, [rdi + 64]; ldtilecfg [rax]; tilezero tmm0; mov eax, 0; call gs:[0]"
FINISHES = "mov eax, 0; call gs:[0]"


class WithheldAndEnforced(KvmEngine):
    """As if the processor had tiles, its guests none, and XCR0 were enforced."""

    def _withholds(self):
        return AMX


class WithheldAndInForce(KvmEngine):
    """As if CPL 3 ran with the host's XCR0: AVX-512 stands for tiles, where this KVM lets guests see that."""

    def _withholds(self):
        return AMX | AVX512


@pytest.fixture
def unenforced(kvm) -> type[KvmEngine]:
    """An engine that finds XCR0 not to be in force."""
    inside = xcr0_inside(kvm())
    if inside is None or not inside & AVX512:
        pytest.skip("a KVM that does not enforce XCR0 at CPL 3, on a processor with AVX-512")
    return WithheldAndInForce


@pytest.fixture
def data_program(assemble) -> Program:
    """A program that has the bytes of LDTILECFG in data alone."""
    code, data = assemble(FINISHES).memory(), assemble(USES_TILES).memory()
    segments = (Segment(0, code, len(code), False, True), Segment(4096, data, len(data), False, False))
    return Program("data", segments, 0)


def test_a_guest_tells_which_xcr0_is_in_force(kvm):
    engine = kvm()
    inside = xcr0_inside(engine)
    assert inside is not None
    assert inside & LEGACY == LEGACY
    assert inside in (LEGACY, engine.manager.config.cpu.user_mask)
    assert engine.manager.statistics().contexts == 0


def test_a_guest_tells_whether_it_has_a_pkru(kvm):
    engine = kvm()
    found = pkru_inside(engine)
    assert (found is not None) == bool(engine.offered(-1) & 0x200)
    assert found in (None, 0x55555554)


def test_a_guest_that_never_ends_tells_nothing(kvm, monkeypatch):
    from fpstate.engine.kvm import small_guest

    engine = kvm()
    monkeypatch.setattr(small_guest, "_XGETBV", b"\xeb\xfe")
    monkeypatch.setattr(small_guest, "_BUDGET_NS", 1_000_000)
    assert xcr0_inside(engine) is None
    assert engine.manager.statistics().contexts == 0


@pytest.mark.parametrize("each", [False, True], ids=["shared", "one each"])
@pytest.mark.parametrize("kind", [WithheldAndEnforced, WithheldAndInForce])
def test_a_program_that_needs_tiles_is_denied_unentered_and_the_others_finish(kvm, kind, each):
    engine = kvm(None, kind, each=each)
    good = [engine.vcpu(CANARY.load(), seed=seed, argument=3000) for seed in range(4)]
    bad = [engine.vcpu(MATMUL.load(), argument=100) for _ in range(3)]
    run_all(engine, [*good[:2], *bad, *good[2:]])
    for guest in bad:
        assert (guest.exit.kind, guest.exit.code) == (ExitKind.DENIED, 18)
        assert "denied: amx_matmul needs TILEDATA, and guests of this KVM have X87|SSE" in str(guest.exit)
        assert isinstance(guest.exit.error, PermissionDenied)
        assert (guest.slices, guest.vso.alive, guest.vso.size, guest.space) == (0, False, 0, None)
    assert [check(guest, seed, 3000) for seed, guest in enumerate(good)] == [None] * 4
    assert engine.manager.statistics().denials == 3


def test_without_tiles_in_the_processor_such_a_program_is_not_for_this_machine(kvm):
    engine = kvm()
    if engine.manager.config.user_max.features & AMX:
        pytest.skip("a processor without AMX")
    with pytest.raises(UnsupportedHere, match=r"amx_matmul needs TILECFG\|TILEDATA"):
        engine.vcpu(MATMUL.load())
    assert engine.manager.statistics().contexts == 0


def test_bytes_of_tile_instructions_that_are_not_executed_deny_nobody(
    kvm, unenforced, assemble, data_program
):
    engine = kvm(None, unenforced)
    assert not engine.keeps_residents
    programs = [
        assemble(FINISHES + ";" + USES_TILES),
        data_program,
        assemble(FINISHES),
        CANARY.load(),
        PROBE.load(),
    ]
    guests = [engine.vcpu(program, argument=1) for program in programs]
    run_all(engine, guests)
    assert {str(guest.exit) for guest in guests} == {"finished"}
    assert engine.manager.statistics().denials == 0


@pytest.mark.parametrize("each", [False, True], ids=["shared", "one each"])
def test_where_nothing_faults_whoever_uses_tiles_is_denied_at_the_next_exit(kvm, assemble, each):
    engine = kvm(each=each)
    if not engine.manager.config.user_max.features & AMX:
        pytest.skip("a processor with AMX")
    if engine.keeps_residents:
        pytest.skip("a KVM that does not enforce XCR0 at CPL 3, and gives guests no AMX")
    good = [engine.vcpu(CANARY.load(), seed=seed, argument=300) for seed in range(2)]
    bad = engine.vcpu(assemble(CONFIGURED + USE + LEAVE_AND_GO_ON + LOOK + RELEASE + FINISH))
    run_all(engine, [good[0], bad, good[1]])
    assert (bad.exit.kind, bad.exit.code, bad.slices > 0) == (ExitKind.DENIED, 17, True)
    assert "TILECFG" in str(bad.exit)
    assert "guests of this KVM have" in str(bad.exit)
    assert [check(guest, seed, 300) for seed, guest in enumerate(good)] == [None] * 2


def test_where_instructions_fault_it_is_entered_and_the_fault_decides(kvm, assemble):
    """On a processor without AMX the instruction is undefined, which is not a matter of permission."""
    engine = kvm(None, WithheldAndEnforced)
    if engine.manager.config.user_max.features & AMX:
        pytest.skip("a processor without AMX")
    guest = run_one(engine, assemble(USES_TILES))
    assert (guest.exit.kind, guest.exit.signal, guest.exit.si_code) == (ExitKind.FAULT, "SIGILL", 2)


@pytest.mark.parametrize("each", [False, True], ids=["shared", "one each"])
def test_a_state_that_may_not_be_kept_is_loaded_each_time(kvm, unenforced, each):
    """Else a KVM vCPU that one guest has for itself would go on with zeros for its tiles."""
    loads = []
    engine = kvm(None, unenforced, vcpus=1, each=each)
    guest = engine.vcpu(CANARY.load(), argument=10**9)
    load = engine.exchange.load
    engine.exchange.load = lambda vso, image: (loads.append(vso), load(vso, image))
    queue = engine.queue()
    queue.add(guest)
    queue.run_slices(100_000, 10)
    queue.clear()
    assert len(loads) == guest.slices >= 10


@pytest.mark.parametrize("builtin", BUILTIN.values(), ids=list(BUILTIN))
def test_which_built_in_programs_would_be_denied(builtin):
    assert needs_tiles(builtin.load()) == (builtin is MATMUL)


def test_tiles_that_are_permitted_and_not_there_are_said_to_be_missing(kvm):
    from fpstate.arch import Cpu
    from fpstate.engine.kvm.tile_denial import denial

    manager = Manager(Cpu.catalog("emerald-rapids"))
    ended = denial(manager, "amx", 0xE7)
    assert ended.code == 18
    assert manager.statistics().denials == 1
    assert "amx needs TILEDATA, and guests of this KVM have X87|SSE|AVX|OPMASK" in str(ended)


def test_no_state_is_made_of_a_program_with_tiles_that_guests_do_not_have(kvm, monkeypatch, assemble):
    from fpstate.engine.kvm.session import Session

    kvm()
    monkeypatch.setattr(Session, "_withheld", AMX)
    with Session() as session:
        with pytest.raises(UnsupportedHere, match=r"needs TILECFG\|TILEDATA, which guests of this KVM"):
            session.start(MATMUL.load())
        session.start(assemble(FINISHES + ";" + USES_TILES))
        session.finish()
        session.start(CANARY.load(), argument=100)
        assert CANARY.check(session.finish().result, 0, 100, session.features) is None
