"""The model's areas: the sizes and offsets of known processors, each component in its place."""

from __future__ import annotations

import pytest

from fpstate.arch import Component, Cpu, Layout, mask_of
from fpstate.arch.component import COMPACTED_BIT, LEGACY, components_in
from fpstate.engine.model import IA32_XSS, Processor

C = Component
ROOM = 12288
FREE = mask_of(C.PT, C.PASID, C.UINTR, C.CET_U, C.CET_S)
"""Components in which a restore does not take every byte."""

CONFIGURATION = b"\1" + bytes(15) + (64).to_bytes(2, "little") * 8 + bytes(16) + b"\x10" * 8 + bytes(8)
"""All tiles, as large as can be: a restore does not take any other bytes than those of a configuration."""

SIZES = [
    # name, XCR0, standard, standard without TILEDATA, compacted
    ("haswell", 0x7, 832, 832, None),
    ("zen1", 0x7, 832, 832, 832),
    ("zen2", 0x207, 896, 896, 896),
    ("zen3", 0x207, 2440, 2440, 840),
    ("zen4", 0x2E7, 2440, 2440, 2440),
    ("zen5", 0x2E7, 2440, 2440, 2440),
    ("skylake-client", 0x1F, 1088, 1088, 960),
    ("skylake-x", 0xFF, 2688, 2688, 2560),
    ("skylake-sp", 0x2FF, 2696, 2696, 2568),
    ("knights-landing", 0xE7, 2688, 2688, None),
    ("ice-lake-sp", 0x2E7, 2696, 2696, 2440),
    ("tiger-lake", 0x2E7, 2696, 2696, 2440),
    ("alder-lake", 0x207, 2696, 2696, 840),
    ("sapphire-rapids", 0x602E7, 11008, 2816, 10752),
    ("granite-rapids", 0x602E7, 11008, 2816, 10752),
    ("diamond-rapids-model", 0xE02E7, 11008, 2816, 10880),
    ("apx-no-amx-model", 0x802E7, 2696, 2696, 2568),
    ("bulldozer", 0x4000000000000007, 960, 960, None),
]

SUPERVISOR_OFFSETS = [
    (
        *("sapphire-rapids", 0x61EE7, 10752),
        {2: 576, 5: 832, 6: 896, 7: 1408, 9: 2432, 10: 2440, 11: 2448, 12: 2464, 17: 2496, 18: 2560},
    ),
    (
        *("sapphire-rapids", 0x602E7 | 0xDD00, 11776),
        {8: 2432, 9: 2560, 10: 2568, 11: 2576, 12: 2592, 14: 2616, 15: 2664, 17: 3520, 18: 3584},
    ),
    ("diamond-rapids-model", 0xE1EE7, 10880, {17: 2496, 18: 2560, 19: 10752}),
    ("diamond-rapids-model", 0xA1EE7, 2688, {17: 2496, 19: 2560}),
    ("zen4", 0x1AE7, 2480, {9: 2432, 11: 2440, 12: 2456}),
    ("skylake-sp", 0x2FF, 2568, {2: 576, 3: 832, 4: 896, 5: 960, 6: 1024, 7: 1536, 9: 2560}),
]


def full(name: str, mask: int | None = None) -> Processor:
    """A processor with everything enabled, and every component filled with its own number."""
    cpu = Cpu.catalog(name)
    processor = Processor(cpu)
    processor.xsetbv(0, cpu.xcr0)
    if cpu.has("XSAVES"):
        processor.wrmsr(IA32_XSS, cpu.xss)
    for component in components_in((cpu.xcr0 | cpu.xss) & ~LEGACY):
        size = cpu.geometry[component].size
        processor.file.put(component, bytes([0x40 + component]) * size)
    processor.file.put(0, bytes.fromhex("7f03") + bytes(158))
    processor.file.put(1, b"\x41" * 256)
    if cpu.xcr0 >> C.TILECFG & 1:
        processor.file.put(C.TILECFG, CONFIGURATION)
    return processor


def visible(processor: Processor, component: int) -> bytes:
    """What a save writes of a component that is full."""
    value = processor.file.values[component]
    padded = processor.behaviour.pkru_padding or component != C.PKRU
    return value if padded else value[:4] + b"\xcc" * 4


def written_up_to(area: bytearray) -> int:
    """The first byte behind what a save wrote into an area of CCH; four bytes behind PKRU may be unwritten."""
    return -(-len(area.rstrip(b"\xcc")) // 8) * 8


@pytest.mark.parametrize(("name", "xcr0", "standard", "without_tiles", "compacted"), SIZES)
def test_saves_reach_as_far_as_the_layout(name, xcr0, standard, without_tiles, compacted):
    processor = full(name)
    assert processor.xgetbv(0) == xcr0
    for mask, size in ((xcr0, standard), (xcr0 & ~mask_of(C.TILEDATA), without_tiles)):
        area = bytearray(b"\xcc" * ROOM)
        processor.xsave(area, mask)
        assert written_up_to(area) == size
    if compacted is not None:
        area = bytearray(b"\xcc" * ROOM)
        processor.xsavec(area)
        assert written_up_to(area) == compacted
        assert int.from_bytes(area[520:528], "little") == COMPACTED_BIT | xcr0


@pytest.mark.parametrize(("name", "mask", "size", "offsets"), SUPERVISOR_OFFSETS)
def test_xsaves_puts_supervisor_components_among_the_others(name, mask, size, offsets):
    processor, area = full(name), bytearray(b"\xcc" * ROOM)
    expected = {component: visible(processor, component) for component in offsets}
    processor.xsaves(area, mask)
    assert written_up_to(area) == size
    for component, offset in offsets.items():
        assert area[offset : offset + len(expected[component])] == expected[component]


@pytest.mark.parametrize("name", Cpu.catalog_names())
def test_every_component_comes_back_from_every_format(name):
    processor = full(name)
    saves = [(processor.xsave, processor.xrstor, processor.xcr0)]
    if processor.cpu.has("XSAVEOPT"):
        saves.append((processor.xsaveopt, processor.xrstor, processor.xcr0))
    if processor.cpu.has("XSAVEC"):
        saves.append((processor.xsavec, processor.xrstor, processor.xcr0))
    if processor.cpu.has("XSAVES"):
        saves.append((processor.xsaves, processor.xrstors, processor.xcr0 | processor.xss & ~FREE))
    before = processor.snapshot()
    for save, restore, mask in saves:
        area = bytearray(ROOM)
        save(area, mask)
        for component in components_in(mask):
            processor.file.initialise(component)
        restore(area, mask)
        for component in components_in(mask):
            kept = processor.file.values[component]
            expected = before.values[component]
            if component == C.PKRU:
                expected = expected[:4].ljust(len(expected), b"\0")
            elif component == C.BNDCSR:
                expected = expected[:16].ljust(64, b"\0")
            assert kept == expected, (save, component)
        processor.file = before.copy()


def test_apx_lies_where_mpx_would_in_the_standard_format_and_last_in_the_compacted_one():
    processor = full("diamond-rapids-model")
    standard, compacted = bytearray(ROOM), bytearray(ROOM)
    processor.write("r16", 0x1616)
    processor.write("r31", 0x3131)
    processor.xsave(standard)
    processor.xsavec(compacted)
    assert int.from_bytes(standard[960:968], "little") == 0x1616
    assert int.from_bytes(standard[1080:1088], "little") == 0x3131
    layout = Layout.compacted(processor.cpu, processor.xcr0)
    assert layout.offset(C.APX) == 10752
    assert int.from_bytes(compacted[10752:10760], "little") == 0x1616


def test_a_component_after_an_aligned_one_is_found_again():
    """TILECFG begins at a multiple of 64 behind PKRU's 8 bytes."""
    processor = full("sapphire-rapids")
    area = bytearray(b"\xcc" * ROOM)
    processor.xsavec(area, mask_of(C.PKRU, C.TILECFG))
    assert area[576:580] == b"\x49" * 4
    assert area[580:640] == b"\xcc" * 60
    assert area[640:704] == CONFIGURATION


ENABLED = [
    # name, XCR0, IA32_XSS, then EBX and ECX of sub-leaf 0, EAX and EBX of sub-leaf 1
    ("zen4", 0xE7, 0x800, 2432, 2440, 0xF, 2448),
    ("zen3", 0x7, 0, 832, 2440, 0xF, 832),
    ("skylake-x", 0xFF, 0, 2688, 2688, 0xF, 2560),
    ("ice-lake-sp", 0xE7, 0x100, 2688, 2696, 0xF, 2560),
    ("tiger-lake", 0xE7, 0x900, 2688, 2696, 0xF, 2576),
    ("sapphire-rapids", 0x602E7, 0x100, 11008, 11008, 0x1F, 10880),
    ("granite-rapids", 0x602E7, 0x100, 11008, 11008, 0x1F, 10880),
    ("alder-lake", 0x7, 0x900, 832, 2696, 0xF, 976),
    ("zen4", 0xE7, 0x1800, 2432, 2440, 0xF, 2472),
]
"""Sizes that CPUID dumps of such processors state, with what was enabled when they were taken."""


@pytest.mark.parametrize(("name", "xcr0", "xss", "enabled", "supported", "features", "compacted"), ENABLED)
def test_cpuid_states_the_sizes_of_what_is_enabled(name, xcr0, xss, enabled, supported, features, compacted):
    processor = Processor(Cpu.catalog(name))
    processor.xsetbv(0, xcr0)
    processor.wrmsr(IA32_XSS, xss)
    assert processor.cpuid_0d(0)[1:3] == (enabled, supported)
    assert processor.cpuid_0d(1)[:2] == (features, compacted)
    assert processor.cpuid_0d(1)[2] == processor.cpu.xss


def test_cpuid_after_power_up_and_of_components():
    processor = Processor(Cpu.catalog("sapphire-rapids"))
    assert processor.cpuid_0d(0) == (0x602E7, 576, 11008, 0)
    assert processor.cpuid_0d(18) == (8192, 2816, 6, 0)
    assert processor.cpuid_0d(17) == (64, 2752, 2, 0)
    assert processor.cpuid_0d(11) == (16, 0, 1, 0)
    assert processor.cpuid_0d(3) == processor.cpuid_0d(63) == (0, 0, 0, 0)
    assert Processor(Cpu.catalog("haswell")).cpuid_0d(1) == (1, 0, 0, 0)
