"""Images that processors, Linux and Bochs made decode to the values that were in the registers."""

import json
from pathlib import Path
from typing import Any

import pytest

from fpstate.arch.component import COMPACTED_BIT, Component, components_in
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Layout
from fpstate.errors import ImageError
from fpstate.image import Image, differences
from patterns import NOT_BY_FORMULA, POINTERS, X87, amd_layout, expectations, loaded, saved, stated, wrong
from recorded import OWN

LEGACY_AND_AVX512 = 0xE7
GENERATED = OWN / "generated"
MACHINES = {
    "generated": (Cpu.catalog("zen4"), 0xE7),
    "generated_intel": (Cpu.catalog("emerald-rapids"), 0x602E7),
}
"""The processor that each folder was recorded on, and its XCR0."""
REGSETS = {
    **{("generated", "ptrace"): 17, ("generated_intel", "ptrace"): 22},
    **{("generated", "sigframe"): 3, ("generated_intel", "sigframe"): 8},
}
BOCHS = {
    "arrow_lake": "lunar-lake",  # no AVX-512, with UINTR
    "corei7_sandy_bridge_2600k": "haswell",
    "corei7_skylake_x": "skylake-x",
    "tigerlake": "tiger-lake",
}


def layout_of(cpu: Cpu, xcomp_bv: int, standard_mask: int) -> Layout:
    if xcomp_bv & COMPACTED_BIT:
        return Layout.compacted(cpu, xcomp_bv & ~COMPACTED_BIT)
    return Layout.standard(cpu, standard_mask)


def image_of(path: Path, cpu: Cpu, entry: dict[str, Any], standard_mask: int) -> Image:
    layout = layout_of(cpu, int(entry["xcomp_bv"], 16), standard_mask)
    return Image(path.read_bytes()[: layout.size], layout)


def raw_index(folder: str) -> list[dict[str, Any]]:
    index: list[dict[str, Any]] = json.loads((OWN / folder / "raw" / "raw.json").read_text())
    return [entry for entry in index if not entry["insn"].startswith("fxsave")]


@pytest.mark.parametrize(("folder", "count"), [("generated", 21), ("generated_intel", 32)])
def test_xsave_in_all_its_forms_decodes_to_the_pattern(folder: str, count: int) -> None:
    cpu, xcr0 = MACHINES[folder]
    index = raw_index(folder)
    for entry in index:
        image = image_of(OWN / folder / "raw" / entry["file"], cpu, entry, xcr0)
        # Without X87 the generator leaves x87 as the run before had it, with the same pattern, but emptied.
        left = image.xstate_bv & X87 & ~entry["mode"]
        values = loaded(entry["pattern_t"], entry["mode"] & ~POINTERS | left)
        if left and not entry["mode"] & NOT_BY_FORMULA:
            values["ftag_abridged"] = 0
        expected = saved(values, image.xstate_bv, compacted=image.layout.xcomp_bv != 0)
        assert image.xstate_bv == int(entry["xstate_bv"], 16)
        assert wrong(image.registers, expected) == [], entry["file"]
    assert len(index) == count


@pytest.mark.parametrize("folder", MACHINES)
def test_poisoned_gaps_and_unused_components_do_not_show(folder: str) -> None:
    cpu, xcr0 = MACHINES[folder]
    idle = [entry for entry in raw_index(folder) if entry["mode"] == 0]
    assert len(idle) >= 2
    for entry in idle:
        image = image_of(OWN / folder / "raw" / entry["file"], cpu, entry, xcr0)
        assert b"\xcc" in image.to_bytes()
        initial = Image.initial(Layout.compacted(cpu))
        if folder == "generated_intel":  # Linux gives programs a PKRU that is not initial
            initial.registers["pkru"] = 0x55555554
        assert image.in_use == initial.in_use
        assert image == initial


@pytest.mark.parametrize("kind", ["ptrace", "sigframe"])
@pytest.mark.parametrize("folder", MACHINES)
def test_linux_shows_debuggers_and_handlers_what_the_threads_held(folder: str, kind: str) -> None:
    cpu, xcr0 = MACHINES[folder]
    decoded = 0
    for path in sorted((OWN / folder / "expected").glob("*.json")):
        for thread, values in enumerate(expectations(OWN / folder, path.stem)):
            name = f"{path.stem}.t{thread}.xstate.bin" if kind == "ptrace" else f"{path.stem}.fpstate.bin"
            file = OWN / folder / kind / name
            if not file.exists() or (kind == "sigframe" and path.stem.startswith("i386")):
                continue
            data = file.read_bytes()
            mask = xcr0 if kind == "ptrace" else int.from_bytes(data[472:480], "little")
            layout = Layout.standard(cpu, mask)
            image = Image(data[: layout.size], layout)
            held = saved(stated(values), image.xstate_bv)
            assert held == stated(values), "what XSTATE_BV lacks was initial"
            assert wrong(image.registers, held) == [], file.name
            assert len(held) - len([name for name in held if name not in image.registers]) >= 28
            decoded += 1
    assert decoded == REGSETS[folder, kind]


@pytest.mark.parametrize("model", BOCHS)
def test_intel_models_save_what_they_restored(model: str) -> None:
    folder = GENERATED / "bochs" / model
    cpu = Cpu.catalog(BOCHS[model])
    dumps = json.loads((folder / "info.json").read_text())["dumps"]
    standard_mask = int(dumps[0]["rfbm"], 16)
    images = {dump["file"]: image_of(folder / dump["file"], cpu, dump, standard_mask) for dump in dumps}
    restored = {dump["insn"]: images[dump["file"]] for dump in dumps if "image" in dump["insn"]}
    compared = 0
    for dump in dumps:
        if dump["insn"] not in ("xsave64", "xsaveopt64", "xsavec64", "xsaves64"):
            continue
        source = restored["image_compact" if dump["insn"] == "xsaves64" else "image_std"].copy()
        kept = source.xstate_bv & int(dump["rfbm"], 16)
        source.store.view[512:520] = kept.to_bytes(8, "little")
        image = images[dump["file"]]
        assert image == source, (dump["file"], differences(image, source))
        assert image.in_use == kept
        compared += 1
    assert compared >= 3
    for dump in dumps:
        if dump["insn"] == "xsaves64_init":
            assert images[dump["file"]].in_use == 0


def test_intel_and_amd_offsets_are_not_confused() -> None:
    dump = GENERATED / "bochs" / "corei7_skylake_x" / "00_image_std_rfbme7.bin"
    intel = Image(dump.read_bytes(), Layout.standard(Cpu.catalog("skylake-x"), LEGACY_AND_AVX512))
    smaller = Layout.standard(Cpu.catalog("zen4"), LEGACY_AND_AVX512)
    with pytest.raises(ImageError):
        Image(dump.read_bytes(), smaller)
    misread = Image(dump.read_bytes()[: smaller.size], smaller)
    assert misread != intel
    assert {each.register for each in differences(intel, misread)} >= {"k0", "zmm0", "zmm16"}
    assert set(components_in(intel.in_use)) >= {Component.OPMASK, Component.ZMM_HI256, Component.HI16_ZMM}


def test_of_a_real_regset_too_another_vendors_offsets_give_other_registers() -> None:
    cpu, xcr0 = MACHINES["generated_intel"]
    data = (OWN / "generated_intel/ptrace/x64_amx_2t.t0.xstate.bin").read_bytes()
    intel = Image(data, Layout.standard(cpu, xcr0))
    misread = Image(data, amd_layout(intel.layout))
    values = stated(expectations(OWN / "generated_intel", "x64_amx_2t")[0])
    assert wrong(intel.registers, values) == []
    assert {"k0", "zmm0", "zmm16", "pkru"} <= set(wrong(misread.registers, values))
