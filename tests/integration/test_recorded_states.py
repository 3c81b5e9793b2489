"""Frames, regsets and buffers that Linux, KVM, processors, CRIU and Bochs wrote of known registers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fpstate.arch import Component, Cpu, Layout, mask_of
from fpstate.arch.component import AMX
from fpstate.errors import AmbiguousLayout, SourceError
from fpstate.image import Image, differences
from fpstate.source.open import open_source
from fpstate.source.raw import open_raw
from patterns import (
    AMX_REGISTERS,
    DEFAULT_PKRU,
    NOT_BY_FORMULA,
    PKRU,
    Values,
    amd_layout,
    expectations,
    little,
    loaded,
    noticed_flips,
    outside,
    saved,
    stated,
    unheld,
    with_vectors,
    wrong,
)
from recorded import OWN


@dataclass(frozen=True)
class Machine:
    """A processor that states were recorded on, and what its kernel had enabled."""

    folder: Path
    cpu: Cpu
    xcr0: int

    def states(self, pattern: str) -> list[tuple[Machine, Path]]:
        return [(self, path) for path in sorted(self.folder.glob(pattern))]

    def thread(self, program: str, index: int = 0) -> Values:
        return with_vectors(stated(expectations(self.folder, program)[index]))


ZEN4 = Machine(OWN / "generated", Cpu.catalog("zen4"), 0xE7)
EMERALD = Machine(OWN / "generated_intel", Cpu.catalog("emerald-rapids"), 0x602E7)
WITHOUT_TILEDATA = 0x202E7
"""``xfeatures`` of a thread that has not used tiles."""
BOCHS = {
    "arrow_lake": "lunar-lake",
    "corei7_sandy_bridge_2600k": "haswell",
    "corei7_skylake_x": "skylake-x",
    "tigerlake": "tiger-lake",
}


def both(pattern: str) -> list[Any]:
    """The states of both processors whose paths fit, as parameters."""
    return [
        pytest.param(machine, path, id=f"{machine.folder.name}/{path.name}")
        for each in (ZEN4, EMERALD)
        for machine, path in each.states(pattern)
    ]


def assert_registers(image: Image, expected: Values, lost: set[str] | frozenset[str] = frozenset()) -> int:
    """Every register is as expected, but for those that the image has no room for; return how many were compared."""
    assert wrong(image.registers, expected) == []
    assert unheld(image.registers, expected) == lost
    return len(expected) - len(lost)


def test_the_formula_gives_every_register_of_every_expectation() -> None:
    compared = 0
    for machine in (ZEN4, EMERALD):
        for path in sorted((machine.folder / "expected").glob("*.json")):
            for thread in expectations(machine.folder, path.stem):
                values, formula = stated(thread), loaded(thread["pattern_t"], thread["mode"])
                known = {name: value for name, value in values.items() if name in formula}
                assert known == {name: formula[name] for name in known}, path.name
                assert len(known) == len(values) - 11 * bool(thread["mode"] & NOT_BY_FORMULA)
                compared += len(known)
    assert compared == 3209


@pytest.mark.parametrize(("machine", "path"), both("sigframe/*.fpstate.bin"))
@pytest.mark.parametrize("how", ["inferred", "given"])
def test_signal_frames_hold_what_the_thread_had(machine: Machine, path: Path, how: str) -> None:
    program = path.name.removesuffix(".fpstate.bin")
    (state,) = open_source(path, cpu=machine.cpu if how == "given" else None)
    expected = machine.thread(program)
    no_room = {name for name in expected if name.startswith("tmm") and not USED[program]}
    assert all(expected[name] == 0 for name in no_room)
    assert_registers(state.image, expected, no_room)
    assert state.machine == ("i386" if "i386" in program else "x86-64")
    assert state.xcr0 == (machine.xcr0 if machine is ZEN4 or USED[program] else WITHOUT_TILEDATA)
    assert (state.image.layout_source, state.findings) == (how, ())


USED = {
    **{
        path.name.split(".")[0]: False
        for machine in (ZEN4, EMERALD)
        for _, path in machine.states("sigframe/*")
    },
    **{"x64_sig_amx": True, "x64_sig_amxsmall": True, "x64_sig_released": True},
}
"""Whether the thread had used tiles: its frames have room for TILEDATA from then on."""


@pytest.mark.parametrize(("machine", "path"), both("sigframe/*.fpstate.bin"))
def test_frames_without_their_second_magic_word_say_what_is_lost(machine: Machine, path: Path) -> None:
    (state,) = open_raw(path.read_bytes()[:-4])
    assert [finding.id for finding in state.findings] == ["SRC007"]
    assert state.image == open_source(path)[0].image


@pytest.mark.parametrize(("machine", "path"), both("ptrace/*.xstate.bin"))
@pytest.mark.parametrize("how", ["inferred", "given"])
def test_register_sets_of_ptrace_are_raw_images_that_state_xcr0(
    machine: Machine, path: Path, how: str
) -> None:
    program, thread = path.name.split(".")[0], int(path.name.split(".")[1][1:])
    (state,) = open_source(path, cpu=machine.cpu if how == "given" else None)
    compared = assert_registers(state.image, machine.thread(program, thread))
    assert compared >= (44 if "i386" in program else 116)
    assert state.image.layout_source == how
    assert state.xcr0 == (machine.xcr0 if how == "inferred" else None)


@pytest.mark.parametrize(("machine", "path"), both("ptrace/*.getfpregs.bin"))
def test_the_older_requests_of_ptrace_give_the_same_x87_and_xmm(machine: Machine, path: Path) -> None:
    (beside,) = open_source(path.with_name(path.name.replace("getfpregs", "xstate")))
    (state,) = open_source(path)
    names = [name for name in state.image.registers.names(widest=True) if name != "mxcsr_mask"]
    assert len(names) >= 12
    for name in names:
        # FSAVE has no more of a tag word than FXSAVE; both pointers are 32 bits there.
        if name not in ("fop", "fip", "fdp"):
            assert state.image.registers[name] == beside.image.registers[name], name


@pytest.mark.parametrize(("machine", "path"), both("kvm/0[3-6]*.kvm_xsave*.bin"))
def test_kvm_xsave_holds_the_pattern(machine: Machine, path: Path) -> None:
    (state,) = open_source(path, cpu=machine.cpu)
    thread = int(path.name.split("_t")[1][0])
    assert state.image.xstate_bv == (7 if path.name.startswith("06") else KVM_MASK[machine.cpu.name])
    expected = saved(with_vectors(loaded(thread, 63 | PKRU)), state.image.xstate_bv)
    no_room = AMX_REGISTERS | {"pkru"} if machine is ZEN4 else AMX_REGISTERS
    assert assert_registers(state.image, expected, no_room) >= 116
    assert [(finding.id, finding.found) for finding in state.findings] == [("SRC010", machine.xcr0)]


KVM_MASK = {"zen4": 0xE7, "emerald-rapids": 0x2E7}
"""What KVM gave guests there."""


def test_a_buffer_whose_mask_does_not_tell_the_processor_needs_its_name() -> None:
    with pytest.raises(AmbiguousLayout) as caught:
        open_source(ZEN4.folder / "kvm/03_pattern_t0.kvm_xsave.bin")
    assert {"zen4", "ice-lake-sp"} <= set(caught.value.candidates)


@pytest.mark.parametrize(
    ("machine", "path"), [each for each in both("kvm/0*.kvm_xsave.bin") if "intel" in each.id]
)
def test_a_host_with_amx_tells_its_layout_though_the_buffer_is_too_short_for_it(
    machine: Machine, path: Path
) -> None:
    (state,), (given,) = open_source(path), open_source(path, cpu=machine.cpu)
    assert (state.image, state.image.layout_source) == (given.image, "inferred")
    assert "no room for TILECFG|TILEDATA" in state.findings[0].message
    data = bytearray(path.read_bytes())
    for component in (Component.TILECFG, Component.TILEDATA):
        data[512:520] = (1 << component).to_bytes(8, "little")
        with pytest.raises(SourceError, match="beyond the 4096") as caught:
            open_raw(bytes(data))
        assert caught.value.offset == 512


@pytest.mark.parametrize(("machine", "path"), both("kvm/0[1278]*.kvm_xsave*.bin"))
def test_kvm_xsave_of_an_initial_vcpu_is_initial(machine: Machine, path: Path) -> None:
    (state,) = open_source(path, cpu=machine.cpu)
    assert (state.image.xstate_bv, state.image.in_use) == (0, 0)


@pytest.mark.parametrize(("machine", "path"), both("kvm/*.kvm_fpu.bin"))
def test_kvm_fpu_holds_the_same_x87_and_xmm_as_kvm_xsave(machine: Machine, path: Path) -> None:
    (state,) = open_source(path)
    (beside,) = open_source(path.with_name(path.name.replace("kvm_fpu", "kvm_xsave")), cpu=machine.cpu)
    names = [name for name in state.image.registers.names(widest=True) if not name.startswith("mxcsr")]
    values = {name: state.image.registers[name] for name in names}
    if path.name[:2] in ("07", "08"):  # XSTATE_BV is 0, and KVM_GET_FPU gives what lies there all the same
        assert (beside.image.in_use, state.image.in_use) == (0, 3)
    else:
        assert wrong(beside.image.registers, values) == []
    assert len(names) >= 29
    assert [(finding.id, finding.found) for finding in state.findings] == [("SRC011", 0), ("SRC016", None)]
    if "pattern" in path.name:
        thread = int(path.name.split("_t")[1][0])
        expected = with_vectors(loaded(thread, 63))
        known = {name: value for name, value in expected.items() if name in names}
        assert len(known) == 27
        assert wrong(state.image.registers, known) == []


def raw_entries() -> list[Any]:
    return [
        pytest.param(machine, entry, id=f"{machine.folder.name}/{entry['file']}")
        for machine in (ZEN4, EMERALD)
        for entry in json.loads((machine.folder / "raw/raw.json").read_text())
    ]


@pytest.mark.parametrize(("machine", "entry"), raw_entries())
@pytest.mark.parametrize("how", ["inferred", "given"])
def test_raw_images_hold_the_pattern(machine: Machine, entry: dict[str, Any], how: str) -> None:
    path = machine.folder / "raw" / entry["file"]
    fxsave, compacted = entry["insn"].startswith("fxsave"), int(entry["xcomp_bv"], 16) != 0
    if how == "inferred" and machine is EMERALD and not (fxsave or compacted):
        # 11008 bytes that state no XCR0 may also be of an announced processor with APX.
        with pytest.raises(AmbiguousLayout) as caught:
            open_source(path)
        assert {"emerald-rapids", "diamond-rapids-model"} <= set(caught.value.candidates)
        return
    (state,) = open_source(path, cpu=machine.cpu if how == "given" else None)
    image = state.image
    assert image.layout_source == ("format" if fxsave else how)
    assert image.xstate_bv == (3 if fxsave else int(entry["xstate_bv"], 16))
    values = raw_values(entry)
    expected = saved(values, image.xstate_bv, compacted=compacted)
    room = int(entry["rfbm"], 16) & machine.xcr0 if compacted else 3 if fxsave else machine.xcr0
    no_room = outside(expected, room) | ({"mxcsr"} if compacted and not room & 2 else set())
    assert assert_registers(image, expected, no_room) >= 9


def raw_values(entry: dict[str, Any]) -> Values:
    """What the registers held when they were saved, as far as it is known, and as the instruction's form keeps it."""
    mode = entry["mode"]
    if int(entry.get("xinuse", "0x3"), 16) & 1 and not mode & NOT_BY_FORMULA and not mode & 1:
        mode |= NOT_BY_FORMULA  # left by the run before, with its registers
    values = with_vectors(loaded(entry["pattern_t"], mode))
    if "32fmt" in entry["insn"]:
        values |= {name: values[name] & 0xFFFFFFFF for name in ("fip", "fdp") if name in values}
    return values


def test_a_32_bit_process_saves_registers_0_to_7_and_leaves_the_rest_as_it_was() -> None:
    """XSAVE outside 64-bit mode: what it does not write is the buffer's 11H, under an XSTATE_BV that names it."""
    facts = json.loads((EMERALD.folder / "raw/raw32.json").read_text())
    source = bytes((7 * byte + 3) & 0xFF for byte in range(192))
    full = {
        "zmm0": source[:64],
        "zmm1": source[64:128],
        "zmm7": source[128:],
        "k1": source[:8],
        "k7": source[8:16],
    }
    held = {f"zmm{n}": 0 for n in range(8)} | {f"k{n}": 0 for n in range(8)} | {"pkru": DEFAULT_PKRU}
    held |= {name: int.from_bytes(data, "little") for name, data in full.items()}
    held |= {"st0": 0x4000C90FDAA22168C235, "st1": 0x3FFF8000000000000000, "mxcsr": 0x1F80, "fctrl": 0x37F}
    unwritten = {f"xmm{n}": little("11" * 16) for n in range(8, 16)}
    unwritten |= {f"zmm{n}": little("11" * 64) for n in range(8, 16)}
    seen = 0
    for name in facts["files"]:
        (state,) = open_source(EMERALD.folder / "raw" / name, cpu=EMERALD.cpu)
        image = state.image
        fxsave = "fxsave" in name
        known = {n: v for n, v in with_vectors(held).items() if n in image.registers}
        assert wrong(image.registers, known) == [], name
        assert wrong(image.registers, {n: v for n, v in unwritten.items() if n in image.registers}) == []
        assert image.xstate_bv == (3 if fxsave else int(facts["xinuse"], 16))
        if not fxsave:
            assert not image.xstate_bv & mask_of(Component.HI16_ZMM, Component.TILECFG, Component.TILEDATA)
        seen += len(known)
    assert seen == 3 * 37 + 12


def criu_images() -> list[Any]:
    return [
        pytest.param(path, id=f"{path.parent.name}/{path.name}") for _, path in EMERALD.states("criu/*/*.img")
    ]


@pytest.mark.parametrize("path", criu_images())
def test_images_of_criu_hold_everything_but_tiles_and_name_those(path: Path) -> None:
    pytest.importorskip("google.protobuf", reason="protobuf is not installed (the extra criu)")
    program, thread = path.parent.name, int(path.stem[-1])
    (state,) = open_source(path)
    expected = EMERALD.thread(program, thread)
    assert assert_registers(state.image, expected, AMX_REGISTERS) == 117
    in_use = AMX if expected["tilecfg"] else 0
    assert [(each.id, each.component) for each in state.findings] == [
        ("SRC015", component)
        for component in (Component.TILECFG, Component.TILEDATA)
        if in_use >> component & 1
    ]
    assert bool(in_use) == (program == "x64_amx_2t")


SAMPLES = {
    "ptrace/x64_amx_2t.t1.xstate.bin": (1, 7743),
    "sigframe/x64_sig_amx.fpstate.bin": (0, 3647),
    "raw/00_xsave64_t0_m3647_rfbm602e7.bin": (0, 3647),
    "raw/02_xsavec64_t2_m3647_rfbm602e7.bin": (2, 3647),
    "kvm/04_pattern_t1.kvm_xsave.bin": (1, 63 | PKRU),
}
"""Thread and mode of one state of each kind."""


@pytest.mark.parametrize("name", SAMPLES)
def test_a_flipped_bit_anywhere_is_noticed_by_these_comparisons(name: str) -> None:
    (state,) = open_source(EMERALD.folder / name, cpu=EMERALD.cpu)
    image = state.image
    values = {name: value for name, value in loaded(*SAMPLES[name]).items() if name in image.registers}
    assert wrong(image.registers, values) == []
    assert noticed_flips(image, values) >= 2 * (3 + 8 + 1 + 3 * 16 + 3 * 16 + 8 + 1)


@pytest.mark.parametrize("name", [*SAMPLES][:3])
def test_the_layout_of_amd_in_the_place_of_intels_is_noticed(name: str) -> None:
    (state,) = open_source(EMERALD.folder / name, cpu=EMERALD.cpu)
    expected = {register: state.image.registers[register] for register in state.image.registers}
    misread = Image(state.image.to_bytes(), amd_layout(state.image.layout))
    moved = {*(f"k{n}" for n in range(8)), *(f"zmm{n}" for n in range(32)), "pkru"}
    assert moved <= set(wrong(misread.registers, expected))
    assert moved <= {each.register for each in differences(misread, state.image)}


def without_a_processor(path: Path) -> tuple[Image | None, list[str]]:
    """The image if its layout can be inferred, else the processors that it could be of."""
    try:
        return open_source(path)[0].image, []
    except AmbiguousLayout as error:
        return None, error.candidates


@pytest.mark.parametrize("model", BOCHS)
def test_images_of_bochs_hold_what_was_restored(model: str) -> None:
    folder, cpu = ZEN4.folder / "bochs" / model, Cpu.catalog(BOCHS[model])
    dumps = json.loads((folder / "info.json").read_text())["dumps"]
    restored, compared = {}, 0
    for dump in dumps:
        path = folder / dump["file"]
        (state,) = open_source(path, cpu=cpu)
        assert state.image.layout_source == "given"
        guess, candidates = without_a_processor(path)
        assert (guess is None) == (BOCHS[model] in candidates)
        if guess is not None:
            assert (guess.layout_source, differences(guess, state.image)) == ("inferred", [])
        if "image" in dump["insn"]:
            restored[dump["insn"]] = state.image
        elif dump["insn"] in ("xsave64", "xsaveopt64", "xsavec64", "xsaves64"):
            source = restored["image_compact" if dump["insn"] == "xsaves64" else "image_std"].copy()
            kept = source.xstate_bv & int(dump["rfbm"], 16)
            source.store.view[512:520] = kept.to_bytes(8, "little")
            assert differences(state.image, source) == []
            assert state.image.in_use == kept != 0
            compared += 1
    assert compared >= 3


def test_the_layout_of_another_processor_is_noticed_by_these_comparisons() -> None:
    path = ZEN4.folder / "bochs/corei7_skylake_x/00_image_std_rfbme7.bin"
    (right,) = open_source(path, cpu=Cpu.catalog("skylake-x"))
    (misread,) = open_source(path, layout=Layout.standard(ZEN4.cpu, 0xE7))
    assert {"k0", "zmm0", "zmm16"} <= {each.register for each in differences(right.image, misread.image)}
