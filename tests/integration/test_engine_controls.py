"""Negative controls: a switch that is broken on purpose is caught, so the silence of the others means something."""

from collections.abc import Iterable

import pytest
from engine_runs import check, run_all, turn, turn_into_the_loop

from fpstate.arch.component import LEGACY
from fpstate.engine.native import NativeEngine, NativeVcpu
from fpstate.image import Image
from fpstate.program import BUILTIN, canary_pattern
from fpstate.program.expected.canary import vector_kind
from fpstate.vso.manager import Manager
from fpstate.vso.vso import Vso

CANARY = BUILTIN["canary"]
ARGUMENT = 60_000


def start(engine: NativeEngine, count: int, **options) -> list[NativeVcpu]:
    return [engine.vcpu(CANARY.load(), seed=seed, argument=ARGUMENT, **options) for seed in range(count)]


def wrong(vcpus: list[NativeVcpu]) -> int:
    return sum(check(vcpu, seed, ARGUMENT) is not None for seed, vcpu in enumerate(vcpus))


class LeakingEngine(NativeEngine):
    """Restores the components that a VSO holds and leaves the others as the last guest had them."""

    def restore_mask(self, vso: Vso) -> int:
        return vso.xfeatures


def idle_growth(engine: NativeEngine) -> tuple[int, int]:
    """Run contexts that use nothing beside canaries; return the bytes that these idle ones came to hold."""
    idle = [engine.vcpu(BUILTIN["spin"].load(), seed=seed, argument=10**9) for seed in range(4)]
    canaries = start(engine, 4)
    mixed = [vcpu for pair in zip(canaries, idle, strict=True) for vcpu in pair]
    turn(engine, mixed, 40)
    return sum(vcpu.vso.size for vcpu in idle), sum(vcpu.exit is not None for vcpu in idle)


def words(values: Iterable[int]) -> set[int]:
    """The 64-bit words of registers, without those too plain to be anybody's secret."""
    split = (value >> shift & (1 << 64) - 1 for value in values for shift in range(0, 512, 64))
    return {word for word in split if word >> 48 and word != (1 << 64) - 1}


def test_contexts_that_use_nothing_stay_empty_beside_canaries(engine: NativeEngine) -> None:
    assert idle_growth(engine) == (0, 0)


def test_a_restore_of_a_context_s_own_components_alone_leaks(manager: Manager) -> None:
    """What an idle context lacks is not initialised then, and it is found to hold another's registers."""
    held, ended = idle_growth(LeakingEngine(manager))
    assert held + ended > 0


def test_the_leak_carries_another_context_s_values(manager: Manager) -> None:
    for engine, leaks in ((NativeEngine(manager), False), (LeakingEngine(manager), True)):
        canary = engine.vcpu(CANARY.load(), seed=77, argument=10**9)
        idle = engine.vcpu(BUILTIN["spin"].load(), argument=10**9)
        turn_into_the_loop(engine, [canary], 4)
        turn(engine, [canary, idle], 8)
        secrets = words(canary_pattern(77, canary.vso.permitted).values())
        foreign = secrets & words(idle.vso.image().registers.in_use().values())
        assert bool(foreign) == leaks


class ShortManager(Manager):
    """Loses the last 64 bytes of each state that it moves into another buffer."""

    def _pieces(self, source, target, in_use):
        *most, (at, to, size) = super()._pieces(source, target, in_use)
        return [*most, (at, to, size - 64)]


def test_a_short_copy_is_seen_by_the_canaries(native) -> None:
    for manager, expected in ((Manager(), 0), (ShortManager(), 6)):
        engine = NativeEngine(manager, timeout=5)
        vcpus = start(engine, 6)
        run_all(engine, vcpus)
        assert wrong(vcpus) == expected


FLIPS = [("xmm5", 1 << 100), ("st3", 1 << 70), ("xmm0", 1), ("st0", 1 << 63), ("mxcsr", 1 << 13)]


@pytest.mark.parametrize(("register", "bit"), FLIPS)
def test_one_flipped_bit_is_reported_as_that_very_register(
    engine: NativeEngine, register: str, bit: int
) -> None:
    vcpus = start(engine, 3)
    turn_into_the_loop(engine, vcpus, 9)
    victim = vcpus[1]
    assert victim.exit is None
    assert victim.vso.in_use & LEGACY == LEGACY
    image = Image(victim.vso.buffer.view, victim.vso.layout, "vso")
    before = image.registers[register]
    image.registers[register] = before ^ bit
    run_all(engine, vcpus)
    assert (check(vcpus[0], 0, ARGUMENT), check(vcpus[2], 2, ARGUMENT)) == (None, None)
    report = check(victim, 1, ARGUMENT)
    assert report is not None
    name = register.replace("xmm", vector_kind(victim.block.features)[0])
    assert f"the first in {name} at" in report


def test_a_flipped_bit_in_upper_halves_is_reported(engine: NativeEngine, avx: int) -> None:
    vcpus = start(engine, 2)
    turn_into_the_loop(engine, vcpus, 8)
    image = Image(vcpus[0].vso.buffer.view, vcpus[0].vso.layout, "vso")
    image.registers["ymm9h"] ^= 1 << 127
    run_all(engine, vcpus)
    assert "the first in " in check(vcpus[0], 0, ARGUMENT)
    assert "mm9 at" in check(vcpus[0], 0, ARGUMENT)
    assert check(vcpus[1], 1, ARGUMENT) is None


def test_a_state_of_one_context_in_another_is_seen(engine: NativeEngine) -> None:
    vcpus = start(engine, 4)
    turn_into_the_loop(engine, vcpus, 12)
    image = vcpus[1].vso.image()
    engine.manager.load(vcpus[2].vso, image)
    vcpus[2].attach()
    run_all(engine, vcpus)
    assert [check(vcpu, seed, ARGUMENT) is None for seed, vcpu in enumerate(vcpus)] == [
        True,
        True,
        False,
        True,
    ]


def test_a_general_register_that_changes_is_seen(engine: NativeEngine) -> None:
    vcpus = start(engine, 2)
    turn_into_the_loop(engine, vcpus, 6)
    vcpus[0].core.set_register(13, vcpus[0].core.registers[13] ^ 4)
    run_all(engine, vcpus)
    assert "the first in r13 at" in check(vcpus[0], 0, ARGUMENT)
    assert check(vcpus[1], 1, ARGUMENT) is None


def test_an_illegal_state_in_a_buffer_is_refused_and_the_others_go_on(engine: NativeEngine) -> None:
    vcpus = start(engine, 3)
    turn_into_the_loop(engine, vcpus, 9)
    vcpus[1].vso.buffer.view[24:28] = b"\xff\xff\xff\xff"
    run_all(engine, vcpus)
    assert vcpus[1].exit.kind.value == "refused"
    assert "#GP" in str(vcpus[1].exit)
    assert (check(vcpus[0], 0, ARGUMENT), check(vcpus[2], 2, ARGUMENT)) == (None, None)
