"""Images that processors, Linux and Bochs made decode to the values that were in the registers."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fpstate.arch.component import COMPACTED_BIT, Component, components_in
from fpstate.arch.cpu import Cpu
from fpstate.arch.layout import Layout
from fpstate.errors import ImageError
from fpstate.image import Image, differences, initial_value

LEGACY_AND_AVX512 = 0xE7
X87, SSE, AVX, ZMM_LOW, ZMM_HIGH, OPMASK = (1 << bit for bit in range(6))
BOCHS = {
    "arrow_lake": "lunar-lake",  # no AVX-512, with UINTR
    "corei7_sandy_bridge_2600k": "haswell",
    "corei7_skylake_x": "skylake-x",
    "tigerlake": "tiger-lake",
}


@pytest.fixture(scope="module")
def generated() -> Path:
    folder = os.environ.get("FPSTATE_CORPUS")
    if not folder:
        pytest.skip("FPSTATE_CORPUS is not set: no recorded states to read")
    return Path(folder) / "generated"


def layout_of(cpu: Cpu, xcomp_bv: int, standard_mask: int) -> Layout:
    if xcomp_bv & COMPACTED_BIT:
        return Layout.compacted(cpu, xcomp_bv & ~COMPACTED_BIT)
    return Layout.standard(cpu, standard_mask)


def image_of(path: Path, cpu: Cpu, entry: dict[str, Any], standard_mask: int) -> Image:
    layout = layout_of(cpu, int(entry["xcomp_bv"], 16), standard_mask)
    return Image(path.read_bytes()[: layout.size], layout)


def pattern_zmm(thread: int, register: int, mode: int) -> int:
    data = bytes((64 * thread + 7 * register + 3 * byte + 1) & 0xFF for byte in range(64))
    if register >= 16:
        return int.from_bytes(data if mode & ZMM_HIGH else b"", "little")
    held = 64 if mode & ZMM_LOW else 32 if mode & AVX else 16 if mode & SSE else 0
    return int.from_bytes(data[:held], "little")


def pattern_st(thread: int, register: int) -> int:
    exponent = 0x3FFF + register - thread | (register & 1) << 15
    data = bytes([0x11 * (register + 1) & 0xFF] * 4 + [register, thread, 0x5A, 0x80 | register])
    return exponent << 64 | int.from_bytes(data, "little")


def pattern(thread: int, mode: int) -> dict[str, int]:
    """The values that the generator put into the registers, by register name."""
    values = {f"zmm{number}": pattern_zmm(thread, number, mode) for number in range(32)}
    for number in range(8):
        opmask = 0x0101010101010101 * (number + 1) ^ thread << 56 ^ 1 << 63
        values[f"k{number}"] = opmask if mode & OPMASK else 0
        values[f"st{number}"] = pattern_st(thread, number) if mode & X87 else 0
    values["fctrl"] = {1: 0x27F, 2: 0xF7F}.get(thread, 0x37F) if mode & X87 else 0x37F
    values["fstat"] = thread << 11 if mode & X87 else 0
    values["ftag_abridged"] = 0xFF if mode & X87 else 0
    values["mxcsr"] = 0x1F80 | thread << 13 | (thread == 3) if mode & (X87 | SSE) else 0x1F80
    return values


def only_of(image: Image, mask: int, values: dict[str, int]) -> dict[str, int]:
    """What is left of ``values`` in an image that was saved with ``mask`` as requested features."""
    kept = Image.initial(image.layout)
    for name, value in values.items():
        if name in kept.registers and value != initial_value(name):
            kept.registers[name] = value
    bitmap = kept.xstate_bv & mask
    kept.store.view[512:520] = bitmap.to_bytes(8, "little")
    return {name: kept.registers[name] for name in values if name in kept.registers}


def read(image: Image, names: dict[str, int]) -> dict[str, int]:
    return {name: image.registers[name] for name in names}


def test_xsave_in_all_its_forms_decodes_to_the_pattern(generated: Path) -> None:
    index = json.loads((generated / "raw" / "raw.json").read_text())
    cpu = Cpu.catalog("zen4")
    decoded = 0
    for entry in index:
        if entry["insn"].startswith("fxsave"):
            continue
        image = image_of(generated / "raw" / entry["file"], cpu, entry, LEGACY_AND_AVX512)
        # Without X87 the generator leaves x87 as the run before had it, with the same pattern, but emptied.
        mode = entry["mode"] | (image.xstate_bv & X87)
        expected = only_of(image, int(entry["rfbm"], 16), pattern(entry["pattern_t"], mode))
        assert image.xstate_bv == int(entry["xstate_bv"], 16)
        if not entry["mode"] & X87:
            expected["ftag_abridged"] = 0
        if image.xstate_bv & 0b110 == 0:
            expected["mxcsr"] = 0x1F80
        elif not int(entry["xcomp_bv"], 16):
            expected["mxcsr"] = pattern(entry["pattern_t"], mode)["mxcsr"]
        assert read(image, expected) == expected, entry["file"]
        decoded += 1
    assert decoded == 21


def test_poisoned_gaps_and_unused_components_do_not_show(generated: Path) -> None:
    cpu = Cpu.catalog("zen4")
    index = {entry["file"]: entry for entry in json.loads((generated / "raw" / "raw.json").read_text())}
    for name in ("11_xsavec64_t0_m0_rfbme7.bin", "12_xsave64_t0_m0_rfbme7.bin"):
        image = image_of(generated / "raw" / name, cpu, index[name], LEGACY_AND_AVX512)
        assert b"\xcc" in image.to_bytes()
        assert image.in_use == 0
        assert image == Image.initial(Layout.compacted(cpu))


@pytest.mark.parametrize("kind", ["ptrace", "sigframe"])
def test_linux_shows_debuggers_and_handlers_what_the_threads_held(generated: Path, kind: str) -> None:
    cpu = Cpu.catalog("zen4")
    layout = Layout.standard(cpu, LEGACY_AND_AVX512)
    decoded = 0
    for path in sorted((generated / "expected").glob("*.json")):
        expected = json.loads(path.read_text())
        for thread, values in enumerate(expected["threads"]):
            name = f"{path.stem}.t{thread}.xstate.bin" if kind == "ptrace" else f"{path.stem}.fpstate.bin"
            file = generated / kind / name
            if not file.exists() or (kind == "sigframe" and expected["bits"] == 32):
                continue
            image = Image(file.read_bytes()[: layout.size], layout)
            stated = {
                **{"fctrl": values["fcw"], "fstat": values["fsw"]},
                **{"ftag_abridged": values["ftw_abridged"], "mxcsr": values["mxcsr"]},
                **{f"k{number}": text for number, text in enumerate(values["k"])},
            }
            held = {name: int(text, 16) for name, text in stated.items()}
            for prefix in ("st", "zmm"):
                for number, text in enumerate(values[prefix]):
                    held[f"{prefix}{number}"] = int.from_bytes(bytes.fromhex(text), "little")
            assert read(image, held) == held, file.name
            decoded += 1
    assert decoded >= 3


@pytest.mark.parametrize("model", BOCHS)
def test_intel_models_save_what_they_restored(generated: Path, model: str) -> None:
    folder = generated / "bochs" / model
    cpu = Cpu.catalog(BOCHS[model])
    dumps = json.loads((folder / "info.json").read_text())["dumps"]
    standard_mask = int(dumps[0]["rfbm"], 16)
    images = {dump["file"]: image_of(folder / dump["file"], cpu, dump, standard_mask) for dump in dumps}
    loaded = {dump["insn"]: images[dump["file"]] for dump in dumps if "image" in dump["insn"]}
    compared = 0
    for dump in dumps:
        if dump["insn"] not in ("xsave64", "xsaveopt64", "xsavec64", "xsaves64"):
            continue
        source = loaded["image_compact" if dump["insn"] == "xsaves64" else "image_std"].copy()
        saved = source.xstate_bv & int(dump["rfbm"], 16)
        source.store.view[512:520] = saved.to_bytes(8, "little")
        image = images[dump["file"]]
        assert image == source, (dump["file"], differences(image, source))
        assert image.in_use == saved
        compared += 1
    assert compared >= 3
    for dump in dumps:
        if dump["insn"] == "xsaves64_init":
            assert images[dump["file"]].in_use == 0


def test_intel_and_amd_offsets_are_not_confused(generated: Path) -> None:
    dump = generated / "bochs" / "corei7_skylake_x" / "00_image_std_rfbme7.bin"
    intel = Image(dump.read_bytes(), Layout.standard(Cpu.catalog("skylake-x"), LEGACY_AND_AVX512))
    amd_layout = Layout.standard(Cpu.catalog("zen4"), LEGACY_AND_AVX512)
    with pytest.raises(ImageError):
        Image(dump.read_bytes(), amd_layout)
    misread = Image(dump.read_bytes()[: amd_layout.size], amd_layout)
    assert misread != intel
    assert {each.register for each in differences(intel, misread)} >= {"k0", "zmm0", "zmm16"}
    assert set(components_in(intel.in_use)) >= {Component.OPMASK, Component.ZMM_HI256, Component.HI16_ZMM}
