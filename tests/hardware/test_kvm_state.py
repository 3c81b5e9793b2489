"""States on the kernel's own KVM: loaded and read back equal, foretold rightly, reset with nothing left."""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
import random
from collections import Counter
from collections.abc import Iterator
from types import ModuleType

import pytest
from oracle import host_target, mutants, share

from fpstate.arch import Component, Format, Layout
from fpstate.arch.component import mask_text, xcr0_problem
from fpstate.engine.kvm.abi import DEBUGREGS_SIZE, FPU_SIZE, REGISTERS, REGS
from fpstate.engine.kvm.destination import Destination
from fpstate.engine.kvm.device import Device
from fpstate.engine.kvm.prediction import Outcome, outcome_of
from fpstate.engine.kvm.reset import DEBUG, RFLAGS, initial_payload, reset, survivors
from fpstate.engine.kvm.transfer import load, save
from fpstate.engine.kvm.vcpu import KvmVcpu, Machine
from fpstate.errors import FpStateError, KvmError, LoadRefused, ResetIncomplete
from fpstate.image import Image
from fpstate.image.consumer import Consumer
from fpstate.image.rules import check, predict
from fpstate.source.guest_state import GuestState
from fpstate.testing import clean_case, random_image

STATES = 1000
MUTANTS = 2000
PAGE = mmap.PAGESIZE


@pytest.fixture(scope="module")
def machine(core: ModuleType) -> Iterator[Machine]:
    try:
        device = Device()
    except FpStateError as error:
        pytest.skip(str(error))
    with device, Machine(device) as machine:
        yield machine


@pytest.fixture
def vcpu(machine: Machine) -> KvmVcpu:
    return machine.vcpu()


@pytest.fixture
def destination(vcpu: KvmVcpu) -> Destination:
    return Destination.of(vcpu, supported_xcr0=vcpu.machine.device.supported_xcr0)


def random_state(destination: Destination, seed: int, *, dense: bool = False) -> GuestState:
    """A random state, standard or compacted, of everything that the guest has."""
    cpu, mask = destination.cpu, destination.full_xcr0
    compacted = seed % 2 and cpu.has("XSAVEC")
    layout = Layout.compacted(cpu, mask) if compacted else Layout.standard(cpu, mask)
    image = random_image(layout, seed, present=mask if dense else None, mxcsr_mask=cpu.mxcsr_mask)
    return GuestState(image, mask, cpu)


def test_random_valid_states_are_loaded_and_read_back_equal(vcpu, destination):
    """1,000 states in CI."""
    formats = Counter()
    for seed in range(share(STATES)):
        state = random_state(destination, seed)
        report = load(vcpu, state, destination=destination)
        formats[state.image.layout.format] += 1
        assert report.prediction.outcome is Outcome.LOADED
        assert report.exact
        back = save(vcpu, destination=destination)
        assert back.image == state.image
        assert (back.xcr0, back.xss, back.xfd) == (state.xcr0, 0, 0)
        back.check()
    assert formats[Format.STANDARD]


def test_a_register_that_changes_behind_the_load_is_told(vcpu, destination):
    """The read-back's control: one flipped bit in one register of each component."""
    state = random_state(destination, 2, dense=True)
    for name in ("st0", "xmm7", "ymm3h", "k5", "zmm9h", "zmm30"):
        if name not in register_names(destination):
            continue
        load(vcpu, state, destination=destination)
        data = vcpu.xsave()
        image = Image(data[: destination.layout.size], destination.layout)
        image.registers[name] ^= 1
        vcpu.set_xsave(bytearray(image.to_bytes().ljust(vcpu.xsave_size, b"\0")))
        assert save(vcpu, destination=destination).image != state.image, name


def register_names(destination: Destination) -> set[str]:
    return set(Image.initial(destination.layout).registers.names())


def test_the_outcome_that_is_foretold_is_the_one_that_comes(vcpu, destination):
    """Mutated payloads as they stand: rejected, loaded, loaded with a loss, or suspicious."""
    target, counts = host_target(), Counter()
    if target.kvm_size > 4096:
        pytest.skip("KVM_SET_XSAVE of 4096 bytes is too small for this processor's components")
    layout = destination.layout
    for data, _ in mutants(target, 41, share(MUTANTS), lambda image: image.ljust(vcpu.xsave_size, b"\0")):
        verdict = predict(data, Consumer.KVM, target)
        outcome = outcome_of(verdict, check(data, Consumer.KVM, target))
        counts[outcome] += 1
        before = bytes(vcpu.xsave())
        try:
            vcpu.set_xsave(data)
        except KvmError:
            assert outcome is Outcome.REJECTED
            assert bytes(vcpu.xsave()) == before
            continue
        assert outcome is not Outcome.REJECTED
        stated, found = Image(data[: layout.size], layout), Image(vcpu.xsave()[: layout.size], layout)
        if outcome is Outcome.LOADED:
            assert found == stated
        if outcome is Outcome.SUSPICIOUS:
            assert found.registers["mxcsr"] in (stated.registers["mxcsr"], 0x1F80)
    possible = set(Outcome) if target.compacted_restore else set(Outcome) - {Outcome.LOSS}
    assert set(counts) == possible


def test_a_vcpu_is_told_its_cpuid_first_and_only_where_the_state_will_be_loaded(machine, destination):
    state, bare = random_state(destination, 8, dense=True), KvmVcpu(machine, 700)
    try:
        assert Destination.of(bare).guest_xcr0 == 0
        if destination.guest_xcr0 & ~3:
            with pytest.raises(LoadRefused, match="loaded with loss of"):
                load(bare, state)
        supported = machine.device.supported_cpuid()
        with pytest.raises(LoadRefused, match="GS001"):
            load(bare, dataclasses.replace(state, xcr0=0), cpuid=supported)
        assert Destination.of(bare).guest_xcr0 == 0
        assert load(bare, state, cpuid=supported).exact
    finally:
        bare.close()


def test_every_xcr0_gets_the_answer_that_is_foretold(vcpu, destination):
    """KVM_SET_XCRS, all combinations of the low ten components and some of the higher ones."""
    source, supported = random.Random(7), destination.full_xcr0
    values = [
        *range(1 << 10),
        *(source.getrandbits(20) | 1 for _ in range(1000)),
        *(1 << n for n in range(64)),
    ]
    answers: Counter[bool] = Counter()
    for value in values:
        try:
            vcpu.set_xcr0(value)
            taken = True
        except KvmError:
            taken = False
        assert taken is (xcr0_problem(value, supported) is None), hex(value)
        assert not taken or vcpu.xcr0() == value
        answers[taken] += 1
    assert answers[True] > 1
    assert answers[False] > 100


def test_a_refused_state_leaves_the_vcpu_alone(vcpu, destination):
    load(vcpu, random_state(destination, 1), destination=destination)
    before = bytes(vcpu.xsave()), vcpu.xcr0()
    state = random_state(destination, 2, dense=True)
    data = bytearray(state.image.to_bytes())
    data[540] = 1
    flawed = GuestState(Image(data, state.image.layout), state.xcr0, state.cpu)
    with pytest.raises(LoadRefused, match="GS003"):
        load(vcpu, flawed, destination=destination)
    assert (bytes(vcpu.xsave()), vcpu.xcr0()) == before


@pytest.mark.parametrize("answer", [0, 4096, 11008, 16384])
def test_the_kernel_stays_within_a_buffer_of_the_size_that_the_capability_says(machine, answer, monkeypatch):
    """Answers of KVM_CAP_XSAVE2 are faked; 0 is that of kernels without it. The page behind the buffer is closed."""
    real = Device.capability
    if (answer or PAGE) < machine.device.xsave_size:
        pytest.skip(f"this KVM needs {machine.device.xsave_size} bytes")
    monkeypatch.setattr(
        Device,
        "capability",
        lambda device, name: answer if name == "KVM_CAP_XSAVE2" else real(device, name),
    )
    vcpu = machine.vcpu()
    size, there = answer or PAGE, Destination.of(vcpu)
    assert vcpu.xsave_size == there.xsave_size == size
    with guarded(size) as buffer:
        state = random_state(there, answer, dense=True)
        load(vcpu, state)
        vcpu.xsave(buffer)
        assert Image(bytes(buffer[: there.layout.size]), there.layout) == state.image
        vcpu.set_xsave(bytearray(initial_payload(there)))
        vcpu.set_xsave(buffer)
        assert save(vcpu).image == state.image


def test_a_buffer_that_is_too_small_for_the_kernel_is_noticed_at_the_page_behind_it(vcpu):
    with guarded(PAGE) as buffer:
        vcpu.xsave_size = PAGE - 64
        with pytest.raises(KvmError, match="EFAULT"):
            vcpu.xsave(buffer[64:])
        with pytest.raises(KvmError, match="EFAULT"):
            vcpu.set_xsave(buffer[64:])
        vcpu.xsave_size = PAGE
        with pytest.raises(ValueError, match="4032 bytes given"):
            vcpu.set_xsave(buffer[64:])


class guarded:  # noqa: N801
    """A buffer that ends where memory ends: the page behind it has no access rights."""

    def __init__(self, size: int) -> None:
        room = -(-size // PAGE) * PAGE
        self.map = mmap.mmap(-1, room + PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        held = ctypes.c_char.from_buffer(self.map, room)
        address = ctypes.addressof(held)
        del held
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), PAGE, 0) == 0
        self.view = memoryview(self.map)[room - size : room]

    def __enter__(self) -> memoryview:
        return self.view

    def __exit__(self, *error: object) -> None:
        self.view.release()


def test_set_fpu_transfers_no_mxcsr_and_no_component_that_is_initial(vcpu, destination):
    """Why a reset by KVM_SET_FPU is none, and a load neither (kvm_arch_vcpu_ioctl_set_fpu)."""
    fpu = bytearray(random.Random(1).randbytes(FPU_SIZE))
    fpu[128:134] = bytes.fromhex("7f030038ff00")
    fpu[408:412] = (0x9FC0).to_bytes(4, "little")
    vcpu.set_fpu(fpu)
    fresh = save(vcpu, destination=destination)
    assert fresh.image.xstate_bv & 3 == 0
    assert fresh.image.registers["xmm3"] == 0
    load(vcpu, random_state(destination, 4, dense=True), destination=destination)
    before = save(vcpu, destination=destination).image.registers["mxcsr"]
    vcpu.set_fpu(fpu)
    after = save(vcpu, destination=destination).image
    assert after.registers["xmm3"] == int.from_bytes(fpu[200:216], "little")
    assert after.registers["mxcsr"] == before != 0x9FC0


def dirty(vcpu: KvmVcpu, destination: Destination) -> None:
    """Put something into every register that the host can set."""
    case = clean_case(Consumer.KVM, destination.cpu, permitted=0)
    image = Image(case.data[: destination.layout.size], destination.layout)
    load(vcpu, GuestState(image, destination.full_xcr0, destination.cpu), destination=destination)
    vcpu.set_regs(bytearray(REGS.pack(*range(0x1001, 0x1001 + len(REGISTERS)))))
    vcpu.set_debugregs(bytearray(DEBUG.pack(1, 2, 3, 4, 0xFFFF0FF1, 0x401).ljust(DEBUGREGS_SIZE, b"\0")))


def test_a_reset_leaves_nothing_that_the_host_can_see(vcpu, destination):
    dirty(vcpu, destination)
    assert len(survivors(vcpu, destination=destination)) > 40
    reset(vcpu, destination=destination)
    assert survivors(vcpu, destination=destination) == []
    image = save(vcpu, destination=destination).image
    assert image == Image.initial(destination.layout)


def test_a_reset_forgets_an_exception_that_is_being_delivered(vcpu, destination):
    events = vcpu.events()
    events[0], events[1] = 1, 13
    vcpu.set_events(events)
    assert "exception (event) is 0xd, not 0x0" in map(str, survivors(vcpu, destination=destination))
    reset(vcpu, destination=destination)
    assert vcpu.events()[0] == 0


def test_xcr0_is_what_was_asked_for(vcpu, destination):
    dirty(vcpu, destination)
    reset(vcpu, xcr0=1, destination=destination)
    assert vcpu.xcr0() == 1
    reset(vcpu, destination=destination)
    assert vcpu.xcr0() == destination.full_xcr0


def keep_components(vcpu: KvmVcpu, destination: Destination, kept: int) -> None:
    """A reset with a fault: components that it forgets."""
    layout = destination.layout
    before = Image(vcpu.xsave()[: layout.size], layout)
    data = bytearray(before.to_bytes())
    data[512:520] = (before.xstate_bv & kept).to_bytes(8, "little")
    vcpu.set_xsave(data.ljust(vcpu.xsave_size, b"\0"))
    vcpu.set_regs(bytearray(REGS.pack(*(RFLAGS if name == "rflags" else 0 for name in REGISTERS))))
    vcpu.set_debugregs(bytearray(DEBUG.pack(0, 0, 0, 0, 0xFFFF0FF0, 0x400).ljust(DEBUGREGS_SIZE, b"\0")))


@pytest.mark.parametrize(
    ("kept", "name"),
    [
        (~1, "xmm0"),
        (1 << Component.SSE, "xmm15"),
        (1 << Component.OPMASK, "k3"),
        (1 << Component.X87, "st0"),
        (1 << Component.HI16_ZMM, "zmm31"),
    ],
    ids=["x87 and general registers only", "XMM left", "mask registers left", "x87 left", "ZMM16-31 left"],
)
def test_a_reset_that_forgets_components_is_caught_by_the_names_of_their_registers(
    vcpu, destination, kept, name
):
    if kept > 0 and not kept & (destination.guest_xcr0 | 3):
        pytest.skip(f"this guest has no {mask_text(kept)}")
    dirty(vcpu, destination)
    keep_components(vcpu, destination, kept)
    found = {each.name for each in survivors(vcpu, destination=destination)}
    assert any(each == name or each[1:] == name[1:] for each in found)
    assert not found & set(REGISTERS)
    reset(vcpu, destination=destination)


def test_a_reset_says_what_it_left(vcpu, destination, monkeypatch):
    dirty(vcpu, destination)
    monkeypatch.setattr("fpstate.engine.kvm.reset.STEPS", ())
    with pytest.raises(ResetIncomplete, match=r"a reset left .*mxcsr \(SSE\)") as caught:
        reset(vcpu, destination=destination)
    assert {"rax", "dr0", "k3" if destination.guest_xcr0 & 32 else "rbx"} <= {
        each.name for each in caught.value.survivors
    }
