"""Tiles that guests of a KVM do not have: denied before they are entered, whether or not the KVM enforces XCR0."""

from __future__ import annotations

import pytest
from kvm_runs import check, run_all, run_one

from fpstate.arch.component import AMX, AVX512, LEGACY
from fpstate.engine.kvm.engine import KvmEngine
from fpstate.engine.kvm.opcode import loads_tile_configuration
from fpstate.engine.kvm.small_guest import pkru_inside, xcr0_inside
from fpstate.engine.kvm.tile_denial import uses_tiles
from fpstate.errors import PermissionDenied, UnsupportedHere
from fpstate.program import BUILTIN, Program
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
        assert str(guest.exit).startswith("denied: TILEDATA was used, and only X87|SSE")
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


def test_where_nothing_faults_a_program_that_does_not_look_is_denied_too(kvm, unenforced, assemble):
    engine = kvm(None, unenforced)
    assert not engine.keeps_residents
    guest = run_one(engine, assemble(USES_TILES))
    assert (guest.exit.kind, guest.exit.code, guest.slices) == (ExitKind.DENIED, 18, 0)
    assert run_one(engine, assemble(FINISHES)).exit.kind is ExitKind.FINISHED
    for builtin in (CANARY, PROBE):
        assert check(run_one(engine, builtin.load(), argument=1), 0, 1) is None


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


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("ldtilecfg [rax]", True),
        ("ldtilecfg [r9 + 8 * r10 + 5]", True),
        ("ldtilecfg [rip + 77]", True),
        ("sttilecfg [rax]", False),
        ("tilerelease", False),
        ("tilezero tmm0", False),
        ("vpshufb xmm0, xmm1, xmm2", False),
    ],
)
def test_code_that_can_load_a_configuration_is_known(assemble, body, found):
    program = assemble(body)
    assert loads_tile_configuration(program.memory()) == found
    assert uses_tiles(program, enforced=False) == found
    assert not uses_tiles(program, enforced=True)


@pytest.mark.parametrize("builtin", BUILTIN.values(), ids=list(BUILTIN))
def test_which_built_in_programs_would_be_denied(builtin):
    program: Program = builtin.load()
    assert loads_tile_configuration(program.memory()) == (builtin in (CANARY, MATMUL))
    assert uses_tiles(program, enforced=False) == (builtin is MATMUL)


def test_tiles_that_are_permitted_and_not_there_are_said_to_be_missing(kvm):
    from fpstate.arch import Cpu
    from fpstate.engine.kvm.tile_denial import denial
    from fpstate.vso.permission import Kind

    manager = Manager(Cpu.catalog("emerald-rapids"))
    manager.request(18, Kind.GUEST)
    ended = denial(manager, manager.create(Kind.GUEST), "amx", 0xE7)
    assert ended.code == 18
    assert "amx uses TILEDATA, and guests of this KVM have X87|SSE|AVX|OPMASK" in str(ended)


def test_no_state_is_made_of_a_program_with_tiles_that_guests_do_not_have(kvm, monkeypatch, assemble):
    from fpstate.engine.kvm.session import Session

    kvm()
    monkeypatch.setattr(Session, "_withheld", AMX)
    with Session() as session:
        for program in (assemble(USES_TILES), MATMUL.load()):
            with pytest.raises(UnsupportedHere, match=r"needs TILECFG\|TILEDATA, which guests of this KVM"):
                session.start(program)
        session.start(CANARY.load(), argument=100)
        assert CANARY.check(session.finish().result, 0, 100, session.features) is None
