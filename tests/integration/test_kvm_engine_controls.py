"""Negative controls: a KVM engine that is broken in one place is caught, so that silence means something."""

from __future__ import annotations

import re

import pytest
from kvm_runs import check, run_all, turn, turn_into_the_loop

from fpstate.arch import Component, Cpu, mask_of
from fpstate.arch.component import LEGACY, components_in
from fpstate.arch.layout import Layout
from fpstate.engine.kvm.context import Context
from fpstate.engine.kvm.engine import KvmEngine
from fpstate.engine.kvm.exchange import PKRU, Exchange
from fpstate.engine.kvm.opcode import denied_component
from fpstate.engine.leak import audit
from fpstate.errors import UnsupportedHere
from fpstate.image import Image
from fpstate.image.move import moves
from fpstate.program import BUILTIN, canary_pattern
from fpstate.program.block import ENTRY_PKRU
from fpstate.program.expected.canary import vector_kind
from fpstate.vso.manager import Manager
from fpstate.vso.permission import Kind
from fpstate.vso.pool import Pool

CANARY = BUILTIN["canary"]
ARGUMENT = 30_000
OPMASK = mask_of(Component.OPMASK)


def start(engine, count=6):
    return [engine.vcpu(CANARY.load(), seed=seed, argument=ARGUMENT) for seed in range(count)]


def problems(engine):
    guests = start(engine)
    run_all(engine, guests)
    return [check(guest, seed, ARGUMENT) for seed, guest in enumerate(guests)]


class SkipsWhatIsAbsent(Exchange):
    """Loads what a VSO holds, and leaves the rest as the guest before had it."""

    def load(self, vso, image):
        before = bytes(image)
        super().load(vso, image)
        in_use = int.from_bytes(image[512:520], "little")
        left = int.from_bytes(before[512:520], "little") & self.mask & ~vso.xfeatures & ~LEGACY
        for at, _, size in moves(self.layout, self.layout, left):
            image[at : at + size] = before[at : at + size]
        image[512:520] = (in_use | left).to_bytes(8, "little")


class ForgetsMxcsr(Exchange):
    """Loads MXCSR as a fresh guest has it."""

    def load(self, vso, image):
        super().load(vso, image)
        image[24:28] = (0x1F80).to_bytes(4, "little")


class ForgetsMasks(Exchange):
    """Loses k0 to k7."""

    def load(self, vso, image):
        super().load(vso, image)
        in_use = int.from_bytes(image[512:520], "little")
        image[512:520] = (in_use & ~OPMASK).to_bytes(8, "little")


class CopiesTooLittle(Exchange):
    """Loses the last 64 bytes of what it loads."""

    def load(self, vso, image):
        super().load(vso, image)
        end = max(self.layout.place(component).end for component in components_in(vso.xfeatures | LEGACY))
        image[end - 64 : end] = bytes(64)


def words(values):
    """The 64-bit words of registers, without those too plain to be anybody's secret."""
    split = (value >> shift & (1 << 64) - 1 for value in values for shift in range(0, 512, 64))
    return {word for word in split if word >> 48 and word != (1 << 64) - 1}


def engine_with(exchange: type[Exchange]) -> type[KvmEngine]:
    class Broken(KvmEngine):
        def _exchange(self, mask, size):
            return exchange(self.manager, mask, size)

    return Broken


class ForgetsToScrub(Pool):
    """Takes buffers back as they are."""

    def _scrub_and_free(self, buffer):
        buffer.slab.give(buffer.slot, scrub=False)


@pytest.fixture
def beyond_legacy(kvm) -> int:
    mask = kvm().managed & ~LEGACY
    if not mask:
        pytest.skip("a component beyond x87 and SSE in guests")
    return mask


def test_a_kvm_that_would_cut_states_short_is_refused(kvm):
    engine = kvm()
    with pytest.raises(UnsupportedHere, match="KVM_CAP_XSAVE2"):
        Exchange(engine.manager, engine.exchange.mask, engine.exchange.layout.size - 1)


def test_the_engine_as_it_is_keeps_every_register(kvm):
    assert problems(kvm(vcpus=1)) == [None] * 6


def test_a_load_that_skips_what_a_guest_lacks_leaks_and_is_caught(kvm, beyond_legacy):
    """Whoever meets another's registers holds its words, or is denied a component that it never used."""
    report = audit(kvm(None, engine_with(SkipsWhatIsAbsent)), contexts=16)
    assert not report.clean
    assert report.leaked_bytes > 0 or any("denied: " in problem for problem in report.damaged)
    assert all(leak.owner.startswith("canary 0x1") for leak in report.leaks)


def test_the_leak_carries_another_guest_s_values(kvm, beyond_legacy):
    for kind, leaks in ((KvmEngine, False), (engine_with(SkipsWhatIsAbsent), True)):
        engine = kvm(None, kind, vcpus=1)
        canary = engine.vcpu(CANARY.load(), seed=77, argument=10**9)
        idle = engine.vcpu(BUILTIN["spin"].load(), argument=10**9)
        turn_into_the_loop(engine, [canary], 4)
        turn(engine, [canary, idle], 8)
        secrets = words(canary_pattern(77, canary.vso.permitted).values())
        assert bool(secrets & words(idle.vso.image().registers.in_use().values())) == leaks


def test_an_mxcsr_that_is_forgotten_is_named(kvm):
    found = problems(kvm(None, engine_with(ForgetsMxcsr), vcpus=1))
    assert all("the first in mxcsr at" in problem for problem in found)


def test_mask_registers_that_are_forgotten_are_named(kvm):
    if not kvm().managed & OPMASK:
        pytest.skip("AVX-512 in guests (XCR0[5])")
    found = problems(kvm(None, engine_with(ForgetsMasks), vcpus=1))
    assert all(re.search(r"the first in k\d at", problem) for problem in found)


def test_a_copy_64_bytes_short_is_caught_by_name(kvm):
    engine = kvm(None, engine_with(CopiesTooLittle), vcpus=1)
    kind = vector_kind(engine.managed)[0]
    found = problems(engine)
    assert all(re.search(rf"the first in {kind}\d+ at", problem) for problem in found)


def test_buffers_that_go_back_unscrubbed_are_caught(kvm):
    report = audit(kvm(Manager(pool=ForgetsToScrub())), contexts=16)
    assert {leak.place for leak in report.leaks} == {"free pool memory"}


class ShortManager(Manager):
    """Loses the last 64 bytes of each state that it moves into another buffer."""

    def _pieces(self, source, target, in_use):
        *most, (at, to, size) = super()._pieces(source, target, in_use)
        return [*most, (at, to, size - 64)]


def test_a_short_move_into_another_buffer_is_seen(kvm):
    assert None not in problems(kvm(ShortManager(), vcpus=1))


@pytest.mark.parametrize(("register", "bit"), [("xmm5", 1 << 100), ("st3", 1 << 70), ("mxcsr", 1 << 13)])
def test_one_flipped_bit_is_reported_as_that_very_register(kvm, register, bit):
    engine = kvm(vcpus=1)
    guests = start(engine, 3)
    turn_into_the_loop(engine, guests, 9)
    image = Image(guests[1].vso.buffer.view, guests[1].vso.layout, "vso")
    image.registers[register] = image.registers[register] ^ bit
    run_all(engine, guests)
    assert (check(guests[0], 0, ARGUMENT), check(guests[2], 2, ARGUMENT)) == (None, None)
    name = register.replace("xmm", vector_kind(guests[1].block.features)[0])
    assert f"the first in {name} at" in check(guests[1], 1, ARGUMENT)


def test_a_general_register_that_changes_is_seen(kvm):
    engine = kvm(vcpus=1)
    guests = start(engine, 2)
    turn_into_the_loop(engine, guests, 6)
    guests[0].context["r13"] ^= 4
    run_all(engine, guests)
    assert "the first in r13 at" in check(guests[0], 0, ARGUMENT)
    assert check(guests[1], 1, ARGUMENT) is None


class ForgetsGeneralRegisters(KvmEngine):
    """Loads the general registers of the guest before."""

    def queue(self):
        queue = super().queue()
        enter = queue._enter

        def enter_with_others(ticker, carrier, guest, quantum_ns):
            before = carrier.resident
            if before is not None and before is not guest and before.exit is None:
                for name in ("r12", "r14"):
                    guest.context[name] = before.context[name]
            enter(ticker, carrier, guest, quantum_ns)

        queue._enter = enter_with_others
        return queue


def test_general_registers_of_another_are_seen(kvm):
    found = problems(kvm(None, ForgetsGeneralRegisters, vcpus=1))
    assert any("the first in r1" in (problem or "") for problem in found)


# What this machine may not have: checked without running it


def image_size(cpu: Cpu) -> int:
    """Bytes of KVM_GET_XSAVE2 that hold all of a processor's user components."""
    return max(4096, Layout.standard(cpu, cpu.user_mask).size)


@pytest.fixture
def with_keys(monkeypatch) -> Cpu:
    """A processor with PKRU, which the exchange takes for this one."""
    cpu = Cpu.catalog("emerald-rapids")
    monkeypatch.setattr("fpstate.engine.kvm.exchange.Cpu.host", lambda: cpu)
    return cpu


def test_a_load_names_pkru_even_where_it_is_initial(with_keys):
    """KVM would keep the PKRU of the guest before otherwise."""
    manager, size = Manager(with_keys), image_size(with_keys)
    exchange = Exchange(manager, with_keys.user_mask, size)
    image = bytearray(b"\xff" * size)
    exchange.load(manager.create(), image)
    assert int.from_bytes(image[512:520], "little") == PKRU | mask_of(Component.SSE)
    assert not any(image[520:])


@pytest.mark.parametrize("value", [ENTRY_PKRU, 0, 0xFFFFFFFC])
def test_pkru_goes_in_and_out_beside_the_vso(with_keys, value):
    """So that it takes no buffer and no permission, as natively."""
    manager, size = Manager(with_keys), image_size(with_keys)
    exchange = Exchange(manager, with_keys.user_mask, size)
    vso, image = manager.create(Kind.GUEST, permitted=LEGACY), bytearray(size)
    exchange.load(vso, image)
    exchange.put_pkru(image, value)
    at = exchange.layout.place(Component.PKRU).offset
    assert image[at : at + 8] == value.to_bytes(8, "little")
    assert exchange.pkru(image) == value
    assert exchange.in_use(image) == 0
    exchange.save(vso, image)
    assert vso.size == 0
    image[513] &= ~2
    assert exchange.pkru(image) == 0


def test_without_pkru_there_is_none_to_go_in(core):
    cpu = Cpu.host()
    mask = cpu.user_mask & ~PKRU
    exchange, image = Exchange(Manager(), mask, image_size(cpu)), bytearray(image_size(cpu))
    exchange.put_pkru(image, ENTRY_PKRU)
    assert not any(image)
    assert exchange.pkru(b"\xff" * len(image)) == 0


def test_what_is_not_initial_is_in_use_whatever_the_header_says(core):
    cpu = Cpu.host()
    mask = cpu.user_mask
    exchange = Exchange(Manager(), mask, image_size(cpu))
    image = bytearray(Image.initial(Layout.standard(cpu, mask)).to_bytes().ljust(image_size(cpu), b"\0"))
    image[512:520] = mask.to_bytes(8, "little")
    assert exchange.in_use(image) == 0
    image[160 + 77] = 1
    assert exchange.in_use(image) == mask_of(Component.SSE)
    image[512:520] = bytes(8)
    assert exchange.in_use(image) == 0
    image[24:28] = (0x1FC0).to_bytes(4, "little")
    assert exchange.in_use(image) == mask_of(Component.SSE)


@pytest.mark.parametrize(
    ("code", "xcr0", "component"),
    [
        ("c5f458c2", 0x03, 2),  # vaddps ymm0, ymm1, ymm2
        ("c5f458c2", 0x07, None),
        ("62f1744858c2", 0x03, 2),  # vaddps zmm0, zmm1, zmm2
        ("62f1744858c2", 0x07, 5),
        ("62f1744858c2", 0xE7, None),
        ("c5f892c8", 0x07, 5),  # kmovw k1, eax
        ("c4e1fb92c8", 0x07, 5),  # kmovq k1, rax
        ("c4e3f932c805", 0x07, 5),  # kshiftlw k1, k0, 5
        ("67c5f458c2", 0x03, 2),  # with an address size prefix
        ("0f0b9090", 0x03, None),  # ud2
        ("0f58c290", 0x03, None),  # addps xmm0, xmm2
        ("c5", 0x03, None),
        ("c4e27849053fdc0000", 0xE7, 18),  # ldtilecfg [rip + 0xdc3f]
        ("c4e27949878000", 0xE7, 18),  # sttilecfg
        ("c4e27849c0", 0xE7, 18),  # tilerelease
        ("c4e27b49c0", 0xE7, 18),  # tilezero tmm0
        ("c4e27b4b2406", 0xE7, 18),  # tileloadd tmm4, [rsi + rax]
        ("c4c27a4b0c06", 0x03, 18),  # tilestored [r14 + rax], tmm1
        ("c4e24b5ec4", 0xE7, 18),  # tdpbssd tmm0, tmm4, tmm6
        ("c4e24a5cc4", 0xE7, 18),  # tdpbf16ps tmm0, tmm4, tmm6
        ("c4e24b5ec4", 0x602E7, None),
        ("c4e2fb49c0", 0xE7, None),  # with W there is no such instruction
        ("c4e279502d00000000", 0x03, 2),  # vpdpbusd xmm5, xmm0, [rip]
    ],
)
def test_an_instruction_tells_which_component_it_needs(code, xcr0, component):
    assert denied_component(bytes.fromhex(code), xcr0) == component


def test_a_context_keeps_registers_apart():
    context = Context.start(root=0x1000, entry=1, stack=2, argument=3, cr4=0)
    assert (
        context["rip"],
        context["rsp"],
        context["rdi"],
        context["rflags"],
        context["cr3"],
        context.cpl,
    ) == (
        *(1, 2, 3, 0x202, 0x1000),
        3,
    )
