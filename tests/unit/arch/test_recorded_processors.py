"""The layout gives CPUID's own sizes on every recorded processor; what disagrees with itself is explained."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from itertools import chain, combinations
from typing import Any

import pytest

from fpstate.arch import Component, Contradiction, Cpu, Layout, mask_of, xcr0_problem
from fpstate.arch.component import component_name, components_in, mask_names
from fpstate.errors import LayoutError

Recorded = list[tuple[dict[str, Any], Cpu]]


@dataclass(frozen=True)
class Explanation:
    """Why some records disagree with themselves: which findings (as patterns), in which records."""

    reason: str
    findings: tuple[str, ...]
    applies: Callable[[dict[str, Any], Cpu], bool]


def listed_as_missing(record: dict[str, Any]) -> set[str]:
    return {name.upper() for names in record["missing_subleaves"] for name in names.split(",")}


EXPLANATIONS = (
    Explanation(
        "AMD family 17h has a 64-byte component 9 but no protection keys: true of the silicon",
        ("component_without_feature:PKRU", "component_size:PKRU"),
        lambda record, cpu: (cpu.vendor, cpu.family) == ("AuthenticAMD", 0x17),
    ),
    Explanation(
        "the tool that made the dump, or the hypervisor under it, left sub-leaves out",
        ("missing_subleaf:*",),
        lambda record, cpu: bool(record["missing_subleaves"]),
    ),
    Explanation(
        "AMD family 15h keeps XCR0[62] where the firmware takes the LWP flag away",
        ("component_without_feature:LWP",),
        lambda record, cpu: (cpu.vendor, cpu.family) == ("AuthenticAMD", 0x15),
    ),
    Explanation(
        "VMware takes MPX from XCR0 but passes the host's size for all of XCR0 on",
        ("standard_size",),
        lambda record, cpu: record.get("hypervisor_id") == "VMwareVMware" and cpu.standard_size == 1088,
    ),
    Explanation(
        "Intel's emulator flags PKU for processors whose leaf 0DH does not have the component",
        ("feature_without_component:PKRU",),
        lambda record, cpu: record["kind"] == "emulator",
    ),
    Explanation(
        "an early emulator of Sapphire Rapids took leaf 0DH from an older processor",
        (
            "component_without_feature:BND*",
            "supervisor_flag:PT",
            "component_size:*",
            "subleaf_not_enumerated:PKRU",
        ),
        lambda record, cpu: record["kind"] == "emulator" and cpu.model == 0x8F,
    ),
    Explanation(
        "an engineering sample of Ice Lake-SP flags MPX, which its XCR0 no longer has",
        ("feature_without_component:BND*",),
        lambda record, cpu: record["signature"] == "000606a0",
    ),
    Explanation(
        "Centaur CNS describes the CET components without enumerating them",
        ("subleaf_not_enumerated:CET_*",),
        lambda record, cpu: cpu.vendor == "CentaurHauls",
    ),
    Explanation(
        "the tool counted the sub-leaves it printed: 8 and 9 are filed under 5 and 6",
        ("subleaf_not_enumerated:*", "component_size:*"),
        lambda record, cpu: {g.size for n, g in cpu.geometry.items() if n in (5, 6)} == {128, 8},
    ),
    Explanation(
        "leaf 0DH was recorded as zeros although XSAVE is there",
        ("legacy_bits", "feature_without_component:AVX", "standard_size"),
        lambda record, cpu: cpu.xcr0 == 0 and cpu.standard_size == 0,
    ),
)


def label(finding: Contradiction) -> str:
    return finding.code + ("" if finding.component is None else f":{component_name(finding.component)}")


def explanation(record: dict[str, Any], cpu: Cpu, finding: Contradiction) -> Explanation | None:
    for candidate in EXPLANATIONS:
        if candidate.applies(record, cpu) and any(
            fnmatch(label(finding), glob) for glob in candidate.findings
        ):
            return candidate
    return None


def subsets(mask: int) -> Iterator[int]:
    bits = list(components_in(mask))
    chosen = chain.from_iterable(combinations(bits, count) for count in range(len(bits) + 1))
    return (mask_of(*components) for components in chosen)


def legal_xcr0(cpu: Cpu) -> list[int]:
    return [mask for mask in subsets(cpu.xcr0) if xcr0_problem(mask, cpu.xcr0) is None]


def user_complete(cpu: Cpu) -> bool:
    return cpu.has("XSAVE") and cpu.xcr0 != 0 and set(components_in(cpu.xcr0 & ~3)) <= set(cpu.geometry)


def complete(cpu: Cpu) -> bool:
    return user_complete(cpu) and set(components_in(cpu.xss)) <= set(cpu.geometry)


def trusted(recorded: Recorded) -> Iterator[Cpu]:
    """Processors whose sizes are to be believed: no finding is about a size or a misplaced sub-leaf."""
    doubtful = {"standard_size", "supervisor_flag", "overlap", "legacy_bits"}
    for _, cpu in recorded:
        findings = {finding.code for finding in cpu.contradictions()}
        if user_complete(cpu) and not findings & doubtful:
            yield cpu


def test_every_contradiction_is_explained(recorded: Recorded) -> None:
    unexplained = [
        f"{record['id']}: {finding}"
        for record, cpu in recorded
        for finding in cpu.contradictions()
        if explanation(record, cpu, finding) is None
    ]
    assert unexplained == []


def test_every_explanation_is_needed(recorded: Recorded) -> None:
    used = {explanation(record, cpu, finding) for record, cpu in recorded for finding in cpu.contradictions()}
    assert [item.reason for item in EXPLANATIONS if item not in used] == []


def test_a_new_contradiction_is_not_explained(recorded: Recorded) -> None:
    record, cpu = next(item for item in recorded if not item[1].contradictions() and item[1].xcr0 == 0xE7)
    broken = replace(cpu, standard_size=cpu.standard_size + 64)
    (finding,) = broken.contradictions()
    assert label(finding) == "standard_size"
    assert explanation(record, broken, finding) is None


def test_missing_sub_leaves_are_those_the_corpus_lists(recorded: Recorded) -> None:
    for record, cpu in recorded:
        found = {component_name(f.component) for f in cpu.contradictions() if f.code == "missing_subleaf"}
        assert found == listed_as_missing(record), record["id"]


def test_standard_size_of_all_components_is_d0_ecx(recorded: Recorded) -> None:
    cpus = list(trusted(recorded))
    assert len(cpus) > 400
    assert [cpu.name for cpu in cpus if Layout.standard(cpu, cpu.xcr0).size != cpu.standard_size] == []


def test_d0_ebx_is_the_standard_size_of_some_legal_xcr0(recorded: Recorded) -> None:
    def explained(cpu: Cpu) -> bool:
        return any(Layout.standard(cpu, mask).size == cpu.enabled_size for mask in legal_xcr0(cpu))

    assert [cpu.name for cpu in trusted(recorded) if not explained(cpu)] == []


def test_d1_ebx_is_the_compacted_size_of_some_legal_pair(recorded: Recorded) -> None:
    def explained(cpu: Cpu) -> bool:
        return any(
            Layout.compacted(cpu, user | supervisor).size == cpu.compacted_size
            for supervisor in subsets(cpu.xss)
            for user in legal_xcr0(cpu)
        )

    cpus = [cpu for cpu in trusted(recorded) if complete(cpu) and cpu.compacted_size]
    assert len(cpus) > 250
    assert [cpu.name for cpu in cpus if not explained(cpu)] == []


def test_supervisor_components_have_no_offset_and_only_tiles_are_aligned_or_xfd(recorded: Recorded) -> None:
    tiles = {Component.TILECFG: (True, False), Component.TILEDATA: (True, True)}
    for record, cpu in recorded:
        if record["kind"] == "emulator":
            continue
        for number, geometry in cpu.geometry.items():
            assert geometry.offset == 0 or not geometry.supervisor, record["id"]
            assert (geometry.aligned, geometry.xfd) == tiles.get(number, (False, False)), record["id"]


def test_incomplete_records_refuse_a_layout_instead_of_guessing(recorded: Recorded) -> None:
    incomplete = [cpu for _, cpu in recorded if cpu.has("XSAVE") and cpu.xcr0 and not user_complete(cpu)]
    assert incomplete
    for cpu in incomplete:
        with pytest.raises(LayoutError, match="does not say how large") as caught:
            Layout.standard(cpu, cpu.xcr0)
        missing = cpu.xcr0 & ~3 & ~mask_of(*cpu.geometry)
        assert all(name in str(caught.value) for name in mask_names(missing))
