"""Guests on real vCPUs: what they see of loads and resets, and how they go on in another process."""

from __future__ import annotations

import dataclasses
import json
import random
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from types import ModuleType

import pytest
from oracle import SHARE, mutants, share

from fpstate.arch import Component, Cpu
from fpstate.arch.component import USER_SUPPORTED, mask_of
from fpstate.command.kvm_load import load_file
from fpstate.command.kvm_reset import dirty_from_inside
from fpstate.command.kvm_selftest import forget
from fpstate.engine.kvm.inside import seen_inside
from fpstate.engine.kvm.reset import REGISTERS, reset, survivors
from fpstate.engine.kvm.sampling import Sampler
from fpstate.engine.kvm.session import Session, ask_for_dynamic
from fpstate.engine.kvm.trap import Why
from fpstate.errors import KvmError, LoadRefused, ProgramError, UnsupportedHere, VsoError
from fpstate.image import Image
from fpstate.image.consumer import Consumer
from fpstate.image.rules import predict
from fpstate.program import BUILTIN, FAULTS, parse_probe
from fpstate.program.block import RESULT
from fpstate.source.checkpoint import SavedState
from fpstate.source.state_file import read_state, state_files, write_state

LOADS = 2000
STATES = 1000
FEWEST = 30
FIRST_VECTOR_SLOT = 30


@pytest.fixture(scope="module")
def session(core: ModuleType) -> Iterator[Session]:
    try:
        session = Session()
    except UnsupportedHere as error:
        pytest.skip(str(error))
    with session:
        yield session


def runnable(session: Session) -> list[str]:
    usable = session.destination.full_xcr0
    return [name for name, builtin in BUILTIN.items() if not builtin.missing(Cpu.host(), usable)]


def test_a_dynamic_component_that_the_kernel_does_not_give_is_gone_without(session):
    """The real arch_prctl: too late here, after the first vCPU, or unsupported."""
    before = session.device.capability("KVM_CAP_XSAVE2")
    ask_for_dynamic(mask_of(Component.TILEDATA))
    assert session.device.capability("KVM_CAP_XSAVE2") == before


def uninterrupted(session: Session, name: str) -> str | None:
    """What is wrong with the result of a program that runs from its start to its end."""
    builtin = BUILTIN[name]
    session.start(builtin.load(), seed=5, argument=builtin.default_argument)
    block = session.finish()
    return builtin.check(block.result, 5, builtin.default_argument, block.features)


def tries(count: int, *, long: int = 10) -> int:
    """How many guests to run: fewer still where only a share is asked for, as on emulated processors."""
    asked = share(count, long=long)
    return max(asked // 5, FEWEST) if SHARE > 1 else asked


def by_tcg() -> bool:
    """Whether the processor is QEMU's TCG, which rounds otherwise at times."""
    from fpstate._core import cpuid

    words = [word for leaf in range(0x80000002, 0x80000005) for word in cpuid(leaf, 0)]
    return b"QEMU TCG" in b"".join(word.to_bytes(4, "little") for word in words)


# Resets


def test_a_fresh_guest_sees_nothing_but_initial_registers(session):
    reset(session.vcpu, destination=session.destination)
    assert seen_inside(session) == []


def test_after_a_reset_neither_side_sees_what_a_guest_left(session):
    for seed in range(20):
        dirty_from_inside(session, seed=seed)
        assert len(survivors(session.vcpu, destination=session.destination)) > 30
        reset(session.vcpu, destination=session.destination)
        assert survivors(session.vcpu, destination=session.destination) == []
        assert seen_inside(session) == []


def test_without_a_reset_the_next_guest_sees_what_the_last_one_left(session):
    """The control of the one above."""
    dirty_from_inside(session)
    assert {"mxcsr", "st0", "fcw"} <= {each.name for each in seen_inside(session)}


@pytest.mark.parametrize(
    ("kept", "component", "ending"),
    [
        (~mask_of(Component.X87), Component.SSE, "mm0"),
        (mask_of(Component.SSE), Component.SSE, "mm0"),
        (mask_of(Component.OPMASK), Component.OPMASK, "k0"),
    ],
    ids=["x87 and general registers only", "XMM left", "mask registers left"],
)
def test_a_reset_that_forgets_registers_is_caught_by_their_names_on_both_sides(
    session, kept, component, ending
):
    if not session.destination.full_xcr0 >> component & 1:
        pytest.skip(f"this guest has no {component.name}")
    dirty_from_inside(session)
    forget(session, kept)
    outside = {each.name for each in survivors(session.vcpu, destination=session.destination)}
    inside = {each.name for each in seen_inside(session)}
    assert any(name.endswith(ending) for name in outside)
    assert any(name.endswith(ending) for name in inside)
    assert not outside & {"st0", "fctrl", "fstat", *REGISTERS}
    assert not inside & {"st0", "fcw", "fsw"}


# Loads


def test_a_guest_sees_what_the_rules_foretell_of_a_load(session):
    """Registers as the program inside stores them, MXCSR among them, which KVM_GET_XSAVE tells otherwise at times."""
    there, target, probe = session.destination, session.destination.target(), BUILTIN["probe"].load()
    if target.kvm_size > 4096:
        pytest.skip("KVM_SET_XSAVE of 4096 bytes is too small for this processor's components")
    features = there.full_xcr0 & USER_SUPPORTED
    outcomes: Counter[str] = Counter()
    for data, _ in mutants(target, 51, tries(LOADS), lambda image: image.ljust(there.xsave_size, b"\0")):
        verdict = predict(data, Consumer.KVM, target)
        session.start(probe)
        session.vcpu.set_xcr0(there.full_xcr0)
        try:
            session.vcpu.set_xsave(data)
        except KvmError:
            assert not verdict.accepted
            outcomes["rejected"] += 1
            continue
        assert verdict.accepted
        seen = parse_probe(session.finish().result, features)
        stated = bytearray(data[: there.layout.size])
        stated[512:520] = verdict.loaded.to_bytes(8, "little")
        registers = Image(stated, there.layout).registers
        for name, value in seen.items():
            if name[:2] in ("st", "zm", "ym", "xm") or name[0] == "k":
                assert value == registers[name], (name, str(verdict))
        assert seen["fcw"] == registers["fctrl"] or not verdict.loaded & 1
        if verdict.mxcsr is not None:
            assert seen["mxcsr"] == verdict.mxcsr
        outcomes["as read back" if verdict.mxcsr == verdict.reported_mxcsr else "not as read back"] += 1
    assert outcomes["as read back"] > tries(LOADS) // 20
    assert outcomes["rejected"] > tries(LOADS) // 50
    if target.compacted_restore and SHARE == 1:  # what KVM_GET_XSAVE says would be the wrong oracle
        assert outcomes["not as read back"] > 0


# Going on


def test_a_checkpoint_disturbs_nobody(session):
    builtin = BUILTIN["canary"]
    session.start(builtin.load(), seed=3, argument=builtin.default_argument)
    stops, quantum, before = 0, 50_000, None
    while session.run(quantum).why is Why.PREEMPTED:
        saved = session.checkpoint().checkpoint
        assert saved is not None
        there = (saved.registers.rip, saved.registers.general)
        if (
            there == before
        ):  # a checkpoint may cost KVM its page tables, and an entry then more than a quantum
            quantum *= 2
        before = there
        stops += 1
        assert stops < 10_000
    assert session.space is not None
    block = session.space.read_block("canary")
    assert builtin.check(block.result, 3, builtin.default_argument, block.features) is None


def test_states_of_every_program_go_on_to_the_right_result_in_another_process(session, tmp_path):
    """1,000 states in CI, each stopped at a random point: saved by one process, loaded by another."""
    count = tries(STATES, long=3)
    wrong = [name for name in runnable(session) if uninterrupted(session, name)]
    assert not wrong or by_tcg(), "on this processor programs are wrong that nobody stops"
    names = [name for name in runnable(session) if name not in wrong]
    done = run_command("kvm", "save", *names, "--to", tmp_path, "--count", count, "--seed", 5)
    assert done.returncode == 0, done.stderr
    assert len(state_files(tmp_path)) == count
    done = run_command("kvm", "load", tmp_path, "--json")
    files = json.loads(done.stdout)["files"]
    assert not [each for each in files if not each["loaded"] or each["result"] != "right"][:3]
    assert done.returncode == 0, done.stderr
    assert len(files) == count
    assert {each["program"] for each in files} == set(names)
    points = {read_state(path).checkpoint.registers.rip for path in state_files(tmp_path)}
    assert len(points) > min(count // 10, 40)


def canary_found(session: Session) -> tuple[int, int]:
    """How many mismatches the canary has counted so far, and the slot of the first."""
    checkpoint = session.checkpoint().checkpoint
    at = checkpoint.block - checkpoint.memory_start + RESULT
    _, mismatches, slot = struct.unpack_from("<3Q", checkpoint.memory_bytes(), at)
    return mismatches, slot


def test_a_state_that_lost_one_bit_is_noticed_by_its_program(session):
    """The control of the one above: one bit of one register in the image of a canary that runs for ever."""
    dirty_from_inside(session, seed=4)
    saved = session.checkpoint()
    session.resume(saved)
    session.run(20_000_000)
    assert canary_found(session)[0] == 0
    image = saved.state.image.copy()
    image.registers["xmm3"] ^= 1 << 17
    session.resume(SavedState(dataclasses.replace(saved.state, image=image), saved.checkpoint))
    for _ in range(100):
        session.run(20_000_000)
        if canary_found(session)[0]:
            break
    assert canary_found(session)[1] == FIRST_VECTOR_SLOT + 3


def run_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fpstate", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.usefixtures("session")
def test_a_guest_that_loaded_a_segment_register_is_not_checkpointed_without_it(session, assemble):
    session.start(assemble("mov eax, ds; mov es, eax; jmp $"))
    session.run(2_000_000)
    session.checkpoint()
    session.start(assemble("mov eax, 0x18; mov es, eax; jmp $"))
    for _ in range(50):  # a tick may come before the guest has begun
        session.run(2_000_000)
        if session.context["rip"] > session.space.entry + 5:
            break
    with pytest.raises(VsoError, match="loaded es 0x18, and no checkpoint has"):
        session.checkpoint()


def test_a_session_without_a_guest_or_closed_says_so():
    with Session() as session:
        for use in (lambda: session.run(1000), session.finish, session.checkpoint):
            with pytest.raises(VsoError, match="no guest is here"):
                use()
        session.start(BUILTIN["spin"].load(), argument=5)
    with pytest.raises(VsoError, match="no guest is here"):
        session.run(1000)
    with pytest.raises(VsoError, match="was closed"):
        session.start(BUILTIN["spin"].load())


def test_a_guest_that_faults_is_said_to_and_the_session_can_go_on(session):
    session.start(FAULTS["undefined_instruction"].load())
    with pytest.raises(VsoError, match="did not finish: exception 6 at 0x"):
        session.finish()
    session.start(BUILTIN["probe"].load())
    assert session.finish().result


def test_a_program_that_is_over_too_soon_is_said_to_be(session, monkeypatch):
    monkeypatch.setattr(Sampler, "_stopped", lambda self, nanoseconds: False)
    sampler = Sampler(session, BUILTIN["spin"].load(), argument=1)
    with pytest.raises(VsoError, match="over before"):
        sampler.sample(1, random.Random(1))


def test_a_checkpoint_that_is_refused_leaves_the_guest_that_is_here(session):
    spin = BUILTIN["spin"]
    session.start(spin.load(), seed=9, argument=spin.default_argument)
    session.run(100_000)
    saved = session.checkpoint()
    broken = dataclasses.replace(saved.checkpoint, base=saved.checkpoint.base + 4096)
    outside = dataclasses.replace(saved.checkpoint, block=saved.checkpoint.base)
    for checkpoint in (broken, outside):
        with pytest.raises(ProgramError):
            session.resume(SavedState(saved.state, checkpoint))
    for bit in (1, 3, 9, 12, 13, 17, 19, 20, 40):
        registers = dataclasses.replace(
            saved.checkpoint.registers, rflags=saved.checkpoint.registers.rflags ^ 1 << bit
        )
        with pytest.raises(ProgramError, match=f"RFLAGS has {1 << bit:#x}"):
            session.resume(
                SavedState(saved.state, dataclasses.replace(saved.checkpoint, registers=registers))
            )
    for name in ("rip", "fs_base", "gs_base"):
        registers = dataclasses.replace(saved.checkpoint.registers, **{name: 1 << 47})
        with pytest.raises(ProgramError, match=f"{name} 0x800000000000 is no canonical address"):
            session.resume(
                SavedState(saved.state, dataclasses.replace(saved.checkpoint, registers=registers))
            )
    with pytest.raises(LoadRefused, match="GS001"):
        session.resume(SavedState(dataclasses.replace(saved.state, xcr0=0), saved.checkpoint))
    block = session.finish()
    assert spin.check(block.result, 9, spin.default_argument, block.features) is None


def test_a_damaged_file_is_refused_and_nothing_of_it_is_loaded(session, tmp_path):
    dirty_from_inside(session)
    write_state(tmp_path / "state", session.checkpoint())
    data = (tmp_path / "state").read_bytes()
    reset(session.vcpu, destination=session.destination)
    before, source = bytes(session.vcpu.xsave()), random.Random(1)
    for number in range(50):
        damaged = bytearray(data)
        damaged[source.randrange(len(data))] ^= 1 << source.randrange(8)
        (tmp_path / "state").write_bytes(damaged if number % 2 else data[: source.randrange(len(data))])
        loaded = load_file(session, str(tmp_path / "state"))
        assert (loaded.exit_code, loaded.report) == (2, None)
        assert bytes(session.vcpu.xsave()) == before
    (tmp_path / "state").write_bytes(data)
    assert load_file(session, str(tmp_path / "state")).exit_code == 0
    assert bytes(session.vcpu.xsave()) != before


def test_a_state_without_a_program_has_nothing_to_go_on_with(session):
    session.start(BUILTIN["spin"].load(), argument=5)
    saved = session.checkpoint()
    with pytest.raises(ProgramError, match="no program"):
        session.resume(SavedState(saved.state))
