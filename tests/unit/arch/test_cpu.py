import json
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
from cpuid_record import leaves_of

from fpstate.arch import Component, Cpu, Geometry, Layout
from fpstate.arch.catalog import ALIASES
from fpstate.arch.cpu import FEATURE_BITS
from fpstate.errors import CpuidError, UnknownCpu

PROJECT = Path(__file__).parents[3]
RECORDED = PROJECT / "tests" / "data" / "generated_intel" / "cpuid.json"
REQUIRED = {
    *("haswell", "skylake-sp", "cascade-lake-sp", "ice-lake-sp", "sapphire-rapids", "emerald-rapids"),
    *("granite-rapids", "diamond-rapids-model", "rocket-lake", "meteor-lake", "arrow-lake"),
    *("zen2", "zen3", "zen4", "zen5"),
}
AVX_LEAVES = {
    (1, 0): (0x000306C3, 0, 1 << 26 | 1 << 28, 1 | 1 << 24 | 1 << 25),
    (0xD, 0): (7, 832, 832, 0),
    (0xD, 2): (256, 576, 0, 0),
}


def test_the_catalog_has_the_processors_that_matter() -> None:
    assert set(Cpu.catalog_names()) >= REQUIRED
    assert list(Cpu.catalog_names()) == sorted(Cpu.catalog_names())


@pytest.mark.parametrize("name", Cpu.catalog_names())
def test_catalog_entries_say_where_they_come_from(name: str) -> None:
    cpu = Cpu.catalog(name)
    assert cpu.name == name
    assert cpu.source == ("model" if name.endswith("-model") else "catalog")
    assert ("model:" in cpu.provenance) == (cpu.source == "model")
    recorded_here = f"{RECORDED.relative_to(PROJECT)}" in cpu.provenance
    assert (cpu.source == "model") + (".txt" in cpu.provenance) + recorded_here == 1


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_other_names_of_a_processor_are_understood(alias: str, name: str) -> None:
    assert Cpu.catalog(alias) == Cpu.catalog(name)
    assert alias not in Cpu.catalog_names()


def test_the_processor_of_the_recordings_is_the_one_that_was_recorded() -> None:
    (record,) = json.loads(RECORDED.read_text())["records"]
    from_the_record = Cpu.from_cpuid(leaves_of(record), name="emerald-rapids", source="catalog")
    cpu = Cpu.catalog("emerald-rapids")
    assert replace(from_the_record, provenance=cpu.provenance) == cpu
    assert cpu.mxcsr_mask == int(record["extra"]["mxcsr_mask"], 16)


def test_another_processor_is_not_taken_for_the_recorded_one() -> None:
    (record,) = json.loads(RECORDED.read_text())["records"]
    record["leaf_d"]["9"][1] = f"{2432:08x}"
    wrong = Cpu.from_cpuid(leaves_of(record), name="emerald-rapids", source="catalog")
    assert wrong.geometry != Cpu.catalog("emerald-rapids").geometry


def test_catalog_entries_are_the_dumps_that_they_name(recorded: list[tuple[dict[str, Any], Cpu]]) -> None:
    read = {
        f"{source['repo']}: {source['path']}": cpu
        for record, cpu in reversed(recorded)
        if record.get("core_type") != "atom"
        for source in record["sources"]
    }
    for name in Cpu.catalog_names():
        cpu = Cpu.catalog(name)
        if ".txt" in cpu.provenance:
            dump = read[cpu.provenance.partition("; ")[2]]
            # The records leave leaf 80000008H out.
            features = cpu.features - {"RSTRFPERRPTRS"}
            same = replace(dump, name=name, source="catalog", provenance=cpu.provenance)
            assert replace(cpu, features=features) == same


@pytest.mark.parametrize("name", [name for name in Cpu.catalog_names() if name != "zen2"])
def test_catalog_entries_agree_with_themselves(name: str) -> None:
    assert Cpu.catalog(name).contradictions() == ()


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownCpu) as caught:
        Cpu.catalog("pentium")
    assert caught.value.known == list(Cpu.catalog_names())


def test_zen2_has_a_phantom_component_9() -> None:
    cpu = Cpu.catalog("zen2")
    assert cpu.xcr0 == 0x207
    assert cpu.geometry[Component.PKRU] == Geometry(64, 832, supervisor=False, aligned=False, xfd=False)
    assert not cpu.has("PKU")
    assert cpu.user_mask == 0x7
    assert [(f.code, f.component) for f in cpu.contradictions()] == [
        ("component_without_feature", 9),
        ("component_size", 9),
    ]


def test_a_component_with_its_flag_is_kept() -> None:
    assert Cpu.catalog("zen3").user_mask == 0x207


def test_supervisor_components_need_xsaves() -> None:
    cpu = Cpu.catalog("zen4")
    assert cpu.supervisor_mask == 0x1800
    without = replace(cpu, features=cpu.features - {"XSAVES"})
    assert without.supervisor_mask == 0
    assert without.xss == 0x1800


def test_diamond_rapids_is_modelled_with_an_unaligned_apx() -> None:
    cpu = Cpu.catalog("diamond-rapids-model")
    assert cpu.source == "model"
    assert cpu.geometry[Component.APX] == Geometry(128, 960, supervisor=False, aligned=False, xfd=False)
    assert cpu.has("APX_F")
    assert cpu.has("AMX_TILE")


def test_only_amd_takes_mxcsr_bit_17() -> None:
    assert Cpu.catalog("zen4").mxcsr_mask == 0x2FFFF
    assert Cpu.catalog("sapphire-rapids").mxcsr_mask == 0xFFFF


def test_zen_saves_x87_error_pointers_where_bulldozer_does_not() -> None:
    assert all(Cpu.catalog(name).has("RSTRFPERRPTRS") for name in ("zen1", "zen2", "zen3", "zen4", "zen5"))
    assert not Cpu.catalog("bulldozer").has("RSTRFPERRPTRS")


@pytest.mark.parametrize(
    ("name", "signature"),
    [
        ("zen4", ("AuthenticAMD", 0x19, 0x11, 1)),
        ("bulldozer", ("AuthenticAMD", 0x15, 0x01, 2)),
        ("sapphire-rapids", ("GenuineIntel", 6, 0x8F, 8)),
        ("haswell", ("GenuineIntel", 6, 0x3C, 3)),
    ],
)
def test_the_signature_is_read_as_the_manual_says(name: str, signature: tuple[str, int, int, int]) -> None:
    cpu = Cpu.catalog(name)
    assert (cpu.vendor, cpu.family, cpu.model, cpu.stepping) == signature


def test_a_cpu_is_a_value() -> None:
    cpu = Cpu.from_cpuid(AVX_LEAVES, name="mine")
    again = Cpu.from_cpuid(dict(AVX_LEAVES), name="mine")
    assert cpu == again
    assert hash(cpu) == hash(again)
    assert pickle.loads(pickle.dumps(cpu)) == cpu
    assert cpu != Cpu.from_cpuid(AVX_LEAVES | {(0xD, 2): (256, 640, 0, 0)}, name="mine")
    with pytest.raises(FrozenInstanceError):
        cpu.xcr0 = 3
    with pytest.raises(TypeError):
        cpu.geometry[2] = Geometry(1, 1, False, False, False)


def test_leaves_that_are_absent_count_as_zeros() -> None:
    cpu = Cpu.from_cpuid(AVX_LEAVES, name="mine")
    assert (cpu.xcr0, cpu.xss, cpu.source, cpu.enabled_xcr0) == (7, 0, "recorded", None)
    assert cpu.contradictions() == ()
    assert Layout.standard(cpu).size == 832


def test_leaf_1_is_needed_and_registers_are_32_bits_wide() -> None:
    with pytest.raises(CpuidError, match="leaf 1"):
        Cpu.from_cpuid({}, name="empty")
    with pytest.raises(CpuidError, match="32-bit"):
        Cpu.from_cpuid({(1, 0): (1 << 32, 0, 0, 0)}, name="wide")


def test_a_processor_without_xsave_still_has_its_legacy_region() -> None:
    cpu = Cpu.from_cpuid({(1, 0): (0x6F6, 0, 0, 1 | 1 << 24 | 1 << 25)}, name="core2")
    assert (cpu.xcr0, cpu.user_mask, cpu.contradictions()) == (0, 0, ())
    assert Layout.standard(cpu, 3).size == 576


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({(0xD, 0): (7, 832, 900, 0)}, "standard_size"),
        ({(0xD, 0): (5, 832, 832, 0)}, "legacy_bits"),
        ({(0xD, 2): (0, 0, 0, 0)}, "missing_subleaf"),
        ({(0xD, 2): (128, 576, 0, 0), (0xD, 0): (7, 704, 704, 0)}, "component_size"),
        ({(0xD, 2): (256, 570, 0, 0), (0xD, 0): (7, 826, 826, 0)}, "overlap"),
        ({(0xD, 5): (64, 1088, 0, 0)}, "subleaf_not_enumerated"),
        ({(0xD, 2): (256, 576, 1, 0), (0xD, 0): (7, 576, 576, 0)}, "supervisor_flag"),
        ({(0xD, 0): (0x207, 832, 2696, 0), (0xD, 9): (8, 2688, 0, 0)}, "component_without_feature"),
        ({(7, 0): (0, 1 << 16, 0, 0)}, "feature_without_component"),
    ],
)
def test_each_kind_of_contradiction_is_found(change: dict, code: str) -> None:
    findings = Cpu.from_cpuid(AVX_LEAVES | change, name="broken").contradictions()
    assert code in {finding.code for finding in findings}
    assert all(finding.code in str(finding) for finding in findings)


def test_apx_and_mpx_cannot_both_be_there() -> None:
    cpu = Cpu.catalog("diamond-rapids-model")
    both = replace(cpu, xcr0=cpu.xcr0 | 0x18)
    assert "apx_with_mpx" in {finding.code for finding in both.contradictions()}


def test_tile_data_without_xfd_is_a_contradiction() -> None:
    cpu = Cpu.catalog("sapphire-rapids")
    tiles = replace(cpu.geometry[18], xfd=False)
    broken = replace(cpu, geometry={**cpu.geometry, 18: tiles})
    assert [finding.code for finding in broken.contradictions()] == ["tiledata_without_xfd"]


def test_no_two_flags_share_a_bit() -> None:
    assert len(set(FEATURE_BITS.values())) == len(FEATURE_BITS)


def test_the_room_imports_neither_the_core_nor_other_packages() -> None:
    code = (
        "import sys; before = set(sys.modules); import fpstate.arch; fpstate.arch.Cpu.catalog('zen4');"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(new - sys.stdlib_module_names - {'fpstate'}), 'fpstate._core' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["[]", "False"]
