"""The model of this processor, and this processor: the same registers, areas, results and exceptions."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from model_comparison import Comparison
from model_executor import Executor, Measured, compile_executor, measured
from model_sequences import DATA_SIZE, SAVES, Generator, Kind
from oracle import share

from fpstate.arch import Component, Cpu
from fpstate.arch.component import COMPACTED_BIT
from fpstate.engine.model import Processor, amx, instruction, restore, save, x87
from fpstate.engine.model.machine import Machine, Places
from fpstate.vso.permission import FpuConfig

Compare = Callable[..., Comparison]

FEATURES = {
    **dict.fromkeys(("XSAVEC", "XSAVEC64", "XSAVEC32"), "XSAVEC"),
    **dict.fromkeys(("XSAVEOPT", "XSAVEOPT64", "XSAVEOPT32"), "XSAVEOPT"),
    **dict.fromkeys(("XSAVES64", "XRSTORS64"), "XSAVES"),
    **dict.fromkeys(("VXMM", "VYMM", "VZEROUPPER", "VZEROALL", "ZERO"), "AVX"),
    **{"VZMM": "AVX512F", "KMOV": "AVX512BW"},
    **dict.fromkeys(("WRPKRU", "RDPKRU"), "OSPKE"),
    **dict.fromkeys(
        ("LDTILECFG", "STTILECFG", "TILERELEASE", "TILEZERO", "TILELOADD", "TILESTORED"), "AMX_TILE"
    ),
}
"""What the instructions that not every processor has need."""


@pytest.fixture(scope="module")
def program(core: ModuleType, gcc: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_executor(gcc, tmp_path_factory.mktemp("executor"))


@pytest.fixture(scope="module")
def here(program: Path) -> Measured:
    return measured(Cpu.host(), program)


@pytest.fixture
def compare(program: Path, here: Measured) -> Iterator[Compare]:
    """Run sequences on both, and return what came of it."""
    executors: list[Executor] = []

    def run(
        sequences: int, *, seed: int, kind: type[Executor] = Executor, most_differences: int = 20
    ) -> Comparison:
        cpu = Cpu.host()
        processor = Processor.under_linux(cpu, here.behaviour)
        generator = Generator(cpu, processor.xcr0, seed, short=here.short)
        executors.append(kind(program, generator.area_size, DATA_SIZE, generator.compared))
        comparison = Comparison(processor, executors[-1], generator)
        comparison.run(sequences, most_differences=most_differences)
        return comparison

    yield run
    for executor in executors:
        executor.close()


@pytest.mark.timeout(3600)
def test_the_model_does_what_this_processor_does(compare):
    """50,000 sequences in CI, 1,000,000 with FPSTATE_LONG=1."""
    count = share(50_000, long=20)
    comparison = compare(count, seed=1)
    print(f"{comparison.sequences} sequences:", dict(sorted(comparison.counts.items())))
    assert not comparison.differences, comparison.differences
    assert comparison.sequences == count


@pytest.mark.usefixtures("core")
def test_cpuid_says_what_the_model_says():
    cpu = Cpu.host()
    processor = Processor.under_linux(cpu)
    assert processor.cpuid_0d(0)[1:3] == (cpu.enabled_size, cpu.standard_size)
    sizes = set()
    for guest_supervisor in (False, True):
        processor.xss = FpuConfig.from_cpu(cpu, guest_supervisor=guest_supervisor).xss
        sizes.add(processor.cpuid_0d(1)[1])
    assert cpu.compacted_size in sizes


def test_the_sequences_contain_every_instruction_and_every_refusal_that_this_processor_has(compare, here):
    counts, cpu = compare(6000, seed=2).counts, Cpu.host()
    missing = {kind.name for kind in Kind if not counts[kind.name]}
    if not here.short:
        missing = {kind for kind in missing if not kind.endswith("32")}
    assert missing == {kind for kind in missing if kind in FEATURES and not cpu.has(FEATURES[kind])}
    rules = {"XS006", "XS007", "XS012", "XS015", "XS017"}
    rules |= {"XS008", "XS009", "XS016"} if cpu.has("XSAVEC") else set()
    assert not {rule for rule in rules if not counts[f"vector 13 {rule}"]}
    assert counts["vector 16"]


def test_what_is_left_to_the_processor_is_little(compare):
    """The model foretells nearly every bit of XINUSE, by value or by the table of who sets and who clears it."""
    counts = compare(6000, seed=3).counts
    assert counts["in-use bits"] > 10_000
    assert counts["in-use bits chosen otherwise"] < counts["in-use bits"] // 50


def test_the_modified_optimisation_shows(compare):
    if not Cpu.host().has("XSAVEOPT"):
        pytest.skip("XSAVEOPT (CPUID.(0DH,1):EAX[0])")
    counts = compare(6000, seed=4).counts
    assert counts["optimisation seen"] > counts["optimisation not taken"]


# Processors that do what they must not: the freedom that they have is not wider than it should be


class _OneBitWrong(Executor):
    """Says of the last save of each sequence something else than what the processor wrote, in one bit."""

    def run(self, batch):
        records, copies = super().run(batch)
        return records, self._tampered(batch, list(copies))

    def _tampered(self, batch, copies):
        source, end = random.Random(batch.number), 0
        for sequence in batch.sequences:
            end += sum(1 for operation in sequence if operation[0] in SAVES)
            copy = bytearray(copies[end - 1])
            copy[source.choice((source.randrange(160, 416), source.randrange(528, len(copy))))] ^= 0x10
            copies[end - 1] = bytes(copy)
        return iter(copies)


class _SaysInitial(_OneBitWrong):
    """Says that AVX is initial, whatever it is."""

    def _tampered(self, batch, copies):
        return iter([copy[:512] + bytes([copy[512] & ~4]) + copy[513:] for copy in copies])


class _LeavesOutTooMuch(_OneBitWrong):
    """Says of every XSAVEOPT that it wrote no XMM register."""

    def _tampered(self, batch, copies):
        number = 0
        for sequence in batch.sequences:
            latest: dict[int, bytes] = {}
            for operation in sequence:
                if operation[0] not in SAVES:
                    continue
                if operation[0] in (Kind.XSAVEOPT, Kind.XSAVEOPT64) and not operation[3]:
                    before = latest.get(operation[6], batch.areas[operation[6]])
                    copies[number] = copies[number][:160] + before[160:416] + copies[number][416:]
                latest[operation[6]] = copies[number]
                number += 1
        return iter(copies)


def test_every_single_bit_counts(compare):
    comparison = compare(500, seed=6, kind=_OneBitWrong, most_differences=1000)
    assert len(comparison.differences) == 500


@pytest.mark.parametrize("wrong", [_SaysInitial, _LeavesOutTooMuch])
def test_a_processor_that_chooses_what_it_may_not_is_caught(compare, wrong):
    if wrong is _LeavesOutTooMuch and not Cpu.host().has("XSAVEOPT"):
        pytest.skip("XSAVEOPT (CPUID.(0DH,1):EAX[0])")
    comparison = compare(2000, seed=7, kind=wrong, most_differences=30)
    assert len(comparison.differences) >= 30


# Sabotaged models: each must be caught by the same comparison


def _mxcsr_by_its_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = restore._load

    def load(machine, area, rfbm, present, spans, mxcsr, wide):
        standard = not area[527] & 0x80
        genuine(machine, area, rfbm, present, spans, None if standard and not present & 2 else mxcsr, wide)

    monkeypatch.setattr(restore, "_load", load)


def _absent_components_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = restore._load

    def load(machine, area, rfbm, present, *others):
        genuine(machine, area, rfbm & present, present, *others)

    monkeypatch.setattr(restore, "_load", load)


def _xcomp_bv_of_what_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = save._put_compacted

    def put(machine, area, rfbm, present, *others):
        genuine(machine, area, rfbm, present, *others)
        area[520:528] = (COMPACTED_BIT | present).to_bytes(8, "little")

    monkeypatch.setattr(save, "_put_compacted", put)


def _standard_offsets_in_the_compacted_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Places, "compacted", Places.standard)


def _byte_528_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = restore._check_standard

    def check(machine, area, present, xcomp_bv):
        genuine(machine, bytes(area[:528]) + bytes(48), present, xcomp_bv)

    monkeypatch.setattr(restore, "_check_standard", check)


def _the_whole_of_xstate_bv(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = save._put_standard

    def put(machine, area, rfbm, in_use, *others):
        genuine(machine, area, rfbm, in_use, *others)
        area[512:520] = (in_use & rfbm).to_bytes(8, "little")

    monkeypatch.setattr(save, "_put_standard", put)


def _mxcsr_left_out_where_sse_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "_MXCSR_CARRIERS", 2)


def _what_was_modified_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "unmodified", lambda machine, address, xcomp_bv: (1 << 63) - 1)


def _es_as_memory_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = restore.LOADED[0]

    def load(area):
        value = genuine(area)
        return value[:2] + area[2:4] + value[4:]

    monkeypatch.setattr(restore, "LOADED", {**restore.LOADED, 0: load})


def _fninit_leaves_the_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(x87, "_physical", lambda value: value[32:160])


def _mxcsr_without_reserved_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        restore, "_checked_mxcsr", lambda machine, area: int.from_bytes(area[24:28], "little")
    )


def _a_misaligned_area_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "check_alignment", lambda *arguments: None)


def _all_registers_outside_64_bit_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "reached", lambda spans: spans)


def _selectors_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "selectors", lambda machine: (0, 0))


def _pointers_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = save._put_x87

    def put(machine, area, wide):
        genuine(machine, area, wide)
        area[6:24] = bytes(18)

    monkeypatch.setattr(save, "_put_x87", put)


def _rfbm_without_xcr0(monkeypatch: pytest.MonkeyPatch) -> None:
    """XRSTOR initialises everything, asked for or not."""
    genuine = restore.xrstor

    def xrstor(machine: Machine, area, rfbm, *others):
        genuine(machine, area, machine.xcr0, *others)

    monkeypatch.setattr(restore, "xrstor", xrstor)


def _illegal_configurations_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = {component: take for component, take in restore.LOADED.items() if component != Component.TILECFG}
    monkeypatch.setattr(restore, "LOADED", loaded)


def _tiles_are_kept_by_ldtilecfg(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = amx.ldtilecfg

    def ldtilecfg(machine: Machine, data: bytes) -> None:
        tiles = machine.file.values[Component.TILEDATA]
        genuine(machine, data)
        machine.file.put(Component.TILEDATA, tiles)

    monkeypatch.setattr(amx, "ldtilecfg", ldtilecfg)


def _wrpkru_takes_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = instruction.wrpkru
    monkeypatch.setattr(instruction, "wrpkru", lambda machine, value: genuine(machine, value & 0xFFFF))


SABOTAGES = {
    "an illegal TILECFG is loaded as it stands": _illegal_configurations_are_loaded,
    "LDTILECFG keeps the tiles": _tiles_are_kept_by_ldtilecfg,
    "WRPKRU takes 16 bits": _wrpkru_takes_16_bits,
    "MXCSR comes with XSTATE_BV[1] alone": _mxcsr_by_its_bit,
    "absent components are kept": _absent_components_kept,
    "XSAVEC states what is in use in XCOMP_BV": _xcomp_bv_of_what_is_in_use,
    "the compacted format has the standard offsets": _standard_offsets_in_the_compacted_format,
    "byte 528 is not checked": _byte_528_not_checked,
    "XSAVE writes the whole of XSTATE_BV": _the_whole_of_xstate_bv,
    "XSAVE of AVX leaves MXCSR out": _mxcsr_left_out_where_sse_is_not_asked_for,
    "XSAVEOPT leaves out what was modified": _what_was_modified_is_left_out,
    "ES and B are loaded from memory": _es_as_memory_has_it,
    "FNINIT leaves the stack's slots": _fninit_leaves_the_slots,
    "MXCSR's reserved bits are not checked": _mxcsr_without_reserved_bits,
    "a misaligned area is taken": _a_misaligned_area_is_taken,
    "outside 64-bit mode all registers are saved": _all_registers_outside_64_bit_mode,
    "FCS and FDS are never kept": _selectors_are_lost,
    "FOP, FIP and FDP are never kept": _pointers_are_lost,
    "XRSTOR does not look at EDX:EAX": _rfbm_without_xcr0,
}
NEEDED = {
    "an illegal TILECFG is loaded as it stands": "AMX_TILE",
    "LDTILECFG keeps the tiles": "AMX_TILE",
    "WRPKRU takes 16 bits": "OSPKE",
    "XSAVEC states what is in use in XCOMP_BV": "XSAVEC",
    "the compacted format has the standard offsets": "XSAVEC",
    "XSAVEOPT leaves out what was modified": "XSAVEOPT",
}


@pytest.mark.parametrize("wrong", SABOTAGES)
def test_a_wrong_model_is_caught(compare, here, monkeypatch, wrong):
    if wrong in NEEDED and not Cpu.host().has(NEEDED[wrong]):
        pytest.skip(f"{NEEDED[wrong]} (CPUID)")
    if wrong.startswith("outside") and not here.short:
        pytest.skip("a code segment for 32-bit programs (selector 23H)")
    if wrong.startswith("FCS") and not here.behaviour.selectors:
        pytest.skip("FCS and FDS (CPUID.(07H,0):EBX[13] deprecates them)")
    SABOTAGES[wrong](monkeypatch)
    comparison = compare(5000, seed=5, most_differences=3)
    assert comparison.differences
