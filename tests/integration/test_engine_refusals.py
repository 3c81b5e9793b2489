"""A native guest that is denied, or whose state is refused: by which exception, why, and that nobody else suffers."""

from __future__ import annotations

import pytest
from engine_runs import QUANTUM, check, run_all

from fpstate.arch import Component, mask_of
from fpstate.arch.component import AMX
from fpstate.engine import native_exit
from fpstate.engine.native import NativeEngine, NativeVcpu
from fpstate.engine.sigill import Fault
from fpstate.errors import PermissionDenied, RestoreFault
from fpstate.program import BUILTIN, FAULTS
from fpstate.vso.vcpu import ExitKind

CANARY = BUILTIN["canary"]
TILEDATA = mask_of(Component.TILEDATA)
TILEZERO = "vpxor xmm0, xmm0, xmm0; .byte 0xC4, 0xE2, 0x7B, 0x49, 0xC0; mov eax, 0; call gs:[0]"
CONFIGURE = """
    sub rsp, 64
    mov rdi, rsp
    xor eax, eax
    mov ecx, 8
    rep stosq
    mov byte ptr [rsp], 1
    mov word ptr [rsp + 16], 64
    mov byte ptr [rsp + 48], 16
    .byte 0xC4, 0xE2, 0x78, 0x49, 0x04, 0x24 /* ldtilecfg [rsp] */
"""


def beside_canaries(engine: NativeEngine, vcpu: NativeVcpu) -> list[str | None]:
    """Run a vCPU among canaries; return what is wrong with these."""
    others = [engine.vcpu(CANARY.load(), seed=seed, argument=3000) for seed in range(4)]
    run_all(engine, [*others[:2], vcpu, *others[2:]], quantum=QUANTUM)
    return [check(other, seed, 3000) for seed, other in enumerate(others)]


@pytest.mark.parametrize(
    ("at", "data", "why"),
    [
        (24, b"\xff\xff\xff\xff", "MXCSR 0xffffffff at byte 24"),
        (530, b"\1", "0x1 at byte 530"),
        (519, b"\x40", "at byte 512"),
    ],
)
def test_a_refused_state_says_which_exception_and_why(engine: NativeEngine, at, data, why) -> None:
    victim = engine.vcpu(CANARY.load(), seed=9, argument=10**9)
    queue = engine.queue()
    queue.add(victim)
    queue.run_slices(QUANTUM, 3)
    queue.remove(victim)
    victim.vso.buffer.view[at : at + len(data)] = data
    assert beside_canaries(engine, victim) == [None] * 4
    assert victim.exit is not None
    error = victim.exit.error
    assert victim.exit.kind is ExitKind.REFUSED
    assert isinstance(error, RestoreFault)
    assert (error.vector, error.mnemonic) == (13, "#GP")
    assert str(victim.exit).startswith("refused: XRSTOR raised #GP: ")
    assert why in str(victim.exit)


def told_by(monkeypatch: pytest.MonkeyPatch, si_code: int) -> None:
    """Let the core tell each fault as Linux tells #NM of a component without permission."""

    def as_on_intel(*found: int) -> Fault:
        signal, _, _, error_code, address = found
        return Fault(signal, si_code, 14, error_code, address)

    monkeypatch.setattr(native_exit, "Fault", as_on_intel)


class WithTiles:
    """The core of a processor with TILEDATA, in a process with this permission."""

    def __init__(self, native, permission: int) -> None:
        self.native = native
        self.permission = permission

    def __call__(self) -> dict[str, object]:
        return {**self.native, "dynamic_mask": TILEDATA, "permission": self.permission}


@pytest.fixture
def on_intel(native, monkeypatch: pytest.MonkeyPatch):
    def describe(*, permission: int, si_code: int = 1) -> None:
        told_by(monkeypatch, si_code)
        monkeypatch.setattr(native, "features", WithTiles(native.features(), permission))

    return describe


@pytest.mark.parametrize("permitted", [0x202E7, 0x602E7], ids=["not permitted", "not this context"])
def test_a_guest_without_permission_is_denied_wiped_and_alone(engine, on_intel, permitted) -> None:
    victim = engine.vcpu(FAULTS["undefined_instruction"].load())
    on_intel(permission=permitted)
    assert beside_canaries(engine, victim) == [None] * 4
    end = victim.exit
    assert (end.kind, end.code, end.rip) == (ExitKind.DENIED, Component.TILEDATA, 0)
    assert isinstance(end.error, PermissionDenied)
    assert str(end).startswith("denied: TILEDATA was used, and only ")
    assert not victim.vso.alive
    assert victim.core.save_mask == 0
    assert not any(any(memory) for memory in engine.manager.pool.free_memory())
    assert engine.manager.statistics().denials == 1


def test_a_context_that_may_but_whose_process_may_not_is_denied_too(engine, on_intel) -> None:
    victim = engine.vcpu(FAULTS["undefined_instruction"].load())
    victim.vso.permitted |= TILEDATA
    on_intel(permission=0x202E7)
    assert beside_canaries(engine, victim) == [None] * 4
    assert victim.exit.kind is ExitKind.DENIED
    assert "the kernel permits this process " in str(victim.exit)
    assert "ARCH_REQ_XCOMP_PERM" in victim.exit.error.help


def test_an_undefined_instruction_stays_a_fault_there(engine, on_intel) -> None:
    """The negative control: the same end but for si_code."""
    victim = engine.vcpu(FAULTS["undefined_instruction"].load())
    on_intel(permission=0x202E7, si_code=2)
    assert beside_canaries(engine, victim) == [None] * 4
    assert (victim.exit.kind, victim.exit.signal, victim.exit.vector) == (ExitKind.FAULT, "SIGILL", 6)
    assert engine.manager.statistics().denials == 0


def test_a_tile_instruction_without_a_configuration_says_so(engine: NativeEngine, assemble) -> None:
    """Where the processor has tiles; elsewhere the instruction is undefined, and nothing is said of tiles."""
    for managed in (engine.managed & ~AMX, engine.managed | AMX):
        vcpu = engine.vcpu(assemble(TILEZERO))
        engine.managed = managed
        assert beside_canaries(engine, vcpu) == [None] * 4
        assert (vcpu.exit.kind, vcpu.exit.signal, vcpu.exit.vector) == (ExitKind.FAULT, "SIGILL", 6)
        named = "#UD, a tile instruction without a tile configuration" in str(vcpu.exit)
        assert named == (managed & AMX == AMX)


def test_tiles_that_a_context_may_not_use_are_denied_by_the_processor(
    engine: NativeEngine, native, assemble
) -> None:
    if not native.features()["dynamic_mask"] & TILEDATA:
        pytest.skip("AMX under XFD (CPUID.(0DH,18):ECX[2])")
    vcpu = engine.vcpu(assemble(CONFIGURE + TILEZERO), permitted=engine.managed & ~TILEDATA)
    assert beside_canaries(engine, vcpu) == [None] * 4
    assert (vcpu.exit.kind, vcpu.exit.code) == (ExitKind.DENIED, Component.TILEDATA)
