"""Frames, buffers and dumps that Linux, KVM, processors, Bochs and Windows wrote, against what was in the registers."""

from __future__ import annotations

import json
import lzma
import os
import struct
from pathlib import Path

import pytest

from fpstate.arch import Component, Cpu, Layout, mask_of
from fpstate.errors import AmbiguousLayout
from fpstate.image import Image, differences, initial_value
from fpstate.source.open import open_source
from fpstate.source.raw import open_raw

DATA = os.environ.get("FPSTATE_CORPUS")
ROOT = Path(DATA or ".") / "generated"
CORPUS = Path(DATA or ".") / "corpus"
pytestmark = pytest.mark.skipif(
    DATA is None, reason="FPSTATE_CORPUS, the folder of recorded state, is not set"
)

BOCHS = {
    "arrow_lake": "lunar-lake",
    "corei7_sandy_bridge_2600k": "haswell",
    "corei7_skylake_x": "skylake-x",
    "tigerlake": "tiger-lake",
}
ZEN4 = Cpu.catalog("zen4")
CONTROL = {"fctrl": "fcw", "fstat": "fsw", "ftag_abridged": "ftw_abridged", "mxcsr": "mxcsr"}


def files(pattern):
    return sorted(ROOT.glob(pattern)) if DATA else []


def named(path):
    return f"{path.parent.name}/{path.name}"


def load(path):
    return json.loads(path.read_text())


def little(text):
    return int.from_bytes(bytes.fromhex(text), "little")


def stated(thread):
    """Every register that an expectation states."""
    values = {name: int(thread[key], 16) for name, key in CONTROL.items()}
    values |= {f"st{n}": little(text) for n, text in enumerate(thread["st"])}
    values |= {f"zmm{n}": little(text) for n, text in enumerate(thread["zmm"])}
    return values | {f"k{n}": int(text, 16) for n, text in enumerate(thread["k"])}


def read(registers, names):
    return {name: registers[name] for name in names}


def pattern(thread, index):
    """The 64 bytes that the generator gives a vector register."""
    return bytes((64 * thread + 7 * index + 3 * byte + 1) & 0xFF for byte in range(64))


def pattern_st(thread, index):
    data = bytes([0x11 * (index + 1) & 0xFF] * 4 + [index, thread, 0x5A, 0x80 | index])
    return (0x3FFF + index - thread | (index & 1) << 15) << 64 | int.from_bytes(data, "little")


def patterned(thread, mode=63):
    """Every register that a run with these ``mode`` bits filled; 1 x87, 2 SSE, 4 AVX, 8 and 16 ZMM, 32 opmask."""
    values = {"fctrl": {1: 0x27F, 2: 0xF7F}.get(thread, 0x37F), "fstat": thread << 11} if mode & 1 else {}
    for index in range(8):
        values |= {f"st{index}": pattern_st(thread, index)} if mode & 1 else {}
        opmask = 0x0101010101010101 * (index + 1) ^ thread << 56 ^ 1 << 63
        values[f"k{index}"] = opmask if mode & 32 else 0
    for index in range(32):
        low = 64 if mode & 8 else 32 if mode & 4 else 16 if mode & 2 else 0
        size = low if index < 16 else 64 if mode & 16 else 0
        values[f"zmm{index}"] = int.from_bytes(pattern(thread, index)[:size], "little")
    return values


@pytest.mark.parametrize("path", files("sigframe/*.fpstate.bin"), ids=named)
@pytest.mark.parametrize("cpu", [None, ZEN4], ids=["inferred", "given"])
def test_signal_frames_hold_what_the_thread_had(path, cpu):
    program = path.name.removesuffix(".fpstate.bin")
    (expected,) = load(ROOT / f"expected/{program}.json")["threads"]
    (state,) = open_source(path, cpu=cpu)
    assert read(state.image.registers, stated(expected)) == stated(expected)
    assert (state.machine, state.xcr0) == ("i386" if "i386" in program else "x86-64", 0xE7)
    assert state.image.layout_source == ("inferred" if cpu is None else "given")
    assert state.findings == ()


@pytest.mark.parametrize("path", files("sigframe/*.fpstate.bin"), ids=named)
def test_frames_without_their_second_magic_word_say_what_is_lost(path):
    (state,) = open_raw(path.read_bytes()[:-4])
    assert [finding.id for finding in state.findings] == ["SRC007"]
    assert state.image == open_source(path)[0].image


@pytest.mark.parametrize("path", files("ptrace/*.xstate.bin"), ids=named)
def test_register_sets_of_ptrace_are_raw_images_that_state_xcr0(path):
    program, thread = path.name.split(".")[0], int(path.name.split(".")[1][1:])
    expected = load(ROOT / f"expected/{program}.json")["threads"][thread]
    (state,) = open_source(path)
    assert read(state.image.registers, stated(expected)) == stated(expected)
    assert (state.image.layout_source, state.xcr0) == ("inferred", 0xE7)


@pytest.mark.parametrize("path", files("kvm/0[3-6]*.kvm_xsave*.bin"), ids=named)
def test_kvm_xsave_holds_the_pattern_and_needs_the_processor(path):
    with pytest.raises(AmbiguousLayout) as caught:
        open_source(path)
    assert {"zen4", "ice-lake-sp"} <= set(caught.value.candidates)
    (state,) = open_source(path, cpu=ZEN4)
    values = patterned(int(path.name.split("_t")[1][0]), 7 if "bv7" in path.name else 63)
    assert len(values) == 50
    assert read(state.image.registers, values) == values
    assert [(finding.id, finding.found) for finding in state.findings] == [("SRC010", 0xE7)]


@pytest.mark.parametrize("path", files("kvm/0[1278]*.kvm_xsave*.bin"), ids=named)
def test_kvm_xsave_of_an_initial_vcpu_is_initial(path):
    (state,) = open_source(path, cpu=ZEN4)
    assert (state.image.xstate_bv, state.image.in_use) == (0, 0)


@pytest.mark.parametrize("path", files("kvm/*.kvm_fpu.bin"), ids=named)
def test_kvm_fpu_holds_the_same_x87_and_xmm_as_kvm_xsave(path):
    (state,) = open_source(path)
    (beside,) = open_source(path.with_name(path.name.replace("kvm_fpu", "kvm_xsave")), cpu=ZEN4)
    names = [name for name in state.image.registers.names(widest=True) if not name.startswith("mxcsr")]
    if path.name[:2] in ("07", "08"):  # XSTATE_BV is 0, and KVM_GET_FPU gives what lies there all the same
        assert (beside.image.in_use, state.image.in_use) == (0, 3)
    else:
        assert read(state.image.registers, names) == read(beside.image.registers, names)
    assert len(names) >= 29
    assert [(finding.id, finding.found) for finding in state.findings] == [("SRC011", 0), ("SRC016", None)]
    if "pattern" in path.name:
        thread = int(path.name.split("_t")[1][0])
        values = {name: value for name, value in patterned(thread).items() if name[0] in "sf"}
        values |= {f"xmm{n}": int.from_bytes(pattern(thread, n)[:16], "little") for n in range(16)}
        assert read(state.image.registers, values) == values


def raw_entries():
    return load(ROOT / "raw/raw.json") if DATA else []


@pytest.mark.parametrize("entry", raw_entries(), ids=lambda entry: entry["file"])
@pytest.mark.parametrize("cpu", [None, ZEN4], ids=["inferred", "given"])
def test_raw_images_hold_the_pattern(entry, cpu):
    path = ROOT / "raw" / entry["file"]
    (state,) = open_source(path, cpu=cpu)
    fxsave = entry["insn"].startswith("fxsave")
    assert state.image.layout_source == ("format" if fxsave else "inferred" if cpu is None else "given")
    image = state.image
    assert image.xstate_bv == (3 if fxsave else int(entry["xstate_bv"], 16))
    expected = {
        name: value
        for name, value in patterned(entry["pattern_t"], entry["mode"]).items()
        if name in image.registers
    }
    if fxsave:
        expected |= {
            f"xmm{n}": int.from_bytes(pattern(entry["pattern_t"], n)[:16], "little") for n in range(16)
        }
    compared = 0
    for name, value in expected.items():
        saved = [part for part in components_of(name) if image.xstate_bv >> part & 1]
        if saved == components_of(name):
            assert image.registers[name] == value, name
            compared += 1
        elif not saved:
            assert image.registers[name] == initial_value(name)
    assert compared >= 8 or entry["mode"] in (0, 1, 2) or image.xstate_bv.bit_count() <= 2


def components_of(name):
    if name.startswith("zmm"):
        number = int(name[3:])
        return [7] if number >= 16 else [1, 2, 6]
    return [5] if name.startswith("k") else [1] if name.startswith("xmm") else [0]


def without_a_processor(path):
    """The image if its layout can be inferred, else the processors that it could be of."""
    try:
        return open_source(path)[0].image, []
    except AmbiguousLayout as error:
        return None, error.candidates


@pytest.mark.parametrize("model", BOCHS)
def test_images_of_bochs_hold_what_was_restored(model):
    folder, cpu = ROOT / "bochs" / model, Cpu.catalog(BOCHS[model])
    dumps = load(folder / "info.json")["dumps"]
    loaded, compared = {}, 0
    for dump in dumps:
        path = folder / dump["file"]
        (state,) = open_source(path, cpu=cpu)
        assert state.image.layout_source == "given"
        guess, candidates = without_a_processor(path)
        assert (guess is None) == (BOCHS[model] in candidates)
        if guess is not None:
            assert (guess.layout_source, differences(guess, state.image)) == ("inferred", [])
        if "image" in dump["insn"]:
            loaded[dump["insn"]] = state.image
        elif dump["insn"] in ("xsave64", "xsaveopt64", "xsavec64", "xsaves64"):
            source = loaded["image_compact" if dump["insn"] == "xsaves64" else "image_std"].copy()
            kept = source.xstate_bv & int(dump["rfbm"], 16)
            source.store.view[512:520] = kept.to_bytes(8, "little")
            assert differences(state.image, source) == []
            assert state.image.in_use == kept != 0
            compared += 1
    assert compared >= 3


def test_the_layout_of_another_processor_is_noticed_by_these_comparisons():
    path = ROOT / "bochs/corei7_skylake_x/00_image_std_rfbme7.bin"
    (right,) = open_source(path, cpu=Cpu.catalog("skylake-x"))
    (wrong,) = open_source(path, layout=Layout.standard(ZEN4, 0xE7))
    assert {"k0", "zmm0", "zmm16"} <= {each.register for each in differences(right.image, wrong.image)}


DUMPS = {
    "cet": "breakpad/testdata__tiny-exe-with-cet-xsave.dmp.xz",
    "x86": "breakpad/testdata__tiny-exe-with-cet-xsave-x86.dmp",
    "amd": "breakpad/testdata__write_av_non_canonical.dmp",
    "llvm": "llvm/Inputs__sigsegv.dmp.xz",
}


def dump_bytes(name):
    data = (CORPUS / DUMPS[name]).read_bytes()
    return lzma.decompress(data) if DUMPS[name].endswith(".xz") else data


def in_the_manifest(name):
    entries = load(CORPUS / "manifest.json")["entries"]
    return next(entry["minidump"] for entry in entries if entry["file"] == DUMPS[name])


@pytest.mark.parametrize("name", DUMPS)
def test_minidumps_have_the_threads_and_windows_control_words(name):
    threads = open_source(CORPUS / DUMPS[name])
    facts = in_the_manifest(name)
    exceptions = {"amd": 1, "llvm": 1}.get(name, 0)  # the manifest counts the exception's context as a thread
    assert len(threads) == facts["threads"] - exceptions
    assert {thread.machine for thread in threads} == {"x86-64" if facts["arch"] == 9 else "i386"}
    assert all(thread.tid for thread in threads)
    for thread in threads:
        if "fctrl" in thread.image.registers:
            assert thread.image.registers["fctrl"] == 0x27F  # what Windows starts threads with
            assert thread.image.registers["mxcsr"] & ~0x3F == 0x1F80


def test_the_shadow_stack_pointer_is_that_of_a_stack_in_the_dump():
    (thread,) = open_source(CORPUS / DUMPS["cet"])
    registers = thread.image.registers
    assert (thread.image.layout_source, thread.findings) == ("note", ())
    assert thread.image.in_use == mask_of(Component.X87, Component.SSE, Component.CET_U)
    assert (registers["u_cet"], registers["pl3_ssp"] % 8) == (1, 0)
    assert registers["xmm0"] == int("deadbeef" * 4, 16)
    pages = {start for start, size in memory_ranges(dump_bytes("cet"))}
    assert registers["pl3_ssp"] >> 32 in {start >> 32 for start in pages}
    assert thread.image.in_use >> Component.AVX & 1 == 0
    assert "ymm0" not in registers


def memory_ranges(data):
    """Start and size of each range that MemoryInfoListStream or MemoryListStream names."""
    count, directory = struct.unpack_from("<II", data, 8)
    for index in range(count):
        kind, _, at = struct.unpack_from("<III", data, directory + 12 * index)
        if kind == 5:
            for entry in range(struct.unpack_from("<I", data, at)[0]):
                yield struct.unpack_from("<QI", data, at + 4 + 16 * entry)
        elif kind == 16:
            header, size, number = struct.unpack_from("<IIQ", data, at)
            for entry in range(number):
                yield struct.unpack_from("<Q16xQ", data, at + header + entry * size)


def test_both_copies_of_mxcsr_agree_where_windows_kept_the_state():
    for name in ("cet", "amd"):
        data = dump_bytes(name)
        for thread in open_source(CORPUS / DUMPS[name]):
            copies = {struct.unpack_from("<I", data, at + 52)[0] for at in contexts(data, thread.tid)}
            assert thread.image.registers["mxcsr"] in copies


def contexts(data, tid):
    count, directory = struct.unpack_from("<II", data, 8)
    for index in range(count):
        kind, _, at = struct.unpack_from("<III", data, directory + 12 * index)
        if kind == 3:
            for entry in range(struct.unpack_from("<I", data, at)[0]):
                number, context = struct.unpack_from("<I40xI", data, at + 4 + 48 * entry)
                if number == tid:
                    yield context
        if kind == 6 and struct.unpack_from("<I", data, at)[0] == tid:
            yield struct.unpack_from("<I", data, at + 164)[0]


def test_on_x86_ymm_and_shadow_stacks_have_a_place_and_fsave_agrees_with_fxsave():
    data = dump_bytes("x86")
    threads = open_source(CORPUS / DUMPS["x86"])
    assert len(threads) == 3
    for thread in threads:
        image = thread.image
        assert image.layout.mask == mask_of(0, 1, Component.AVX, Component.CET_U)
        assert (image.layout_source, thread.findings) == ("inferred", ())
        assert image.xstate_bv == 3
        assert "ymm7" in image.registers
        (context,) = contexts(data, thread.tid)
        (fsave,) = open_raw(data[context + 28 : context + 136])
        for name in ("fctrl", "fstat", *(f"st{index}" for index in range(8))):
            assert fsave.image.registers[name] == image.registers[name], name


def test_state_that_windows_cut_off_or_wiped_is_not_taken_for_registers():
    raised, other = open_source(CORPUS / DUMPS["amd"])
    assert [finding.id for finding in raised.findings] == ["SRC012", "SRC013"]
    assert [finding.id for finding in other.findings] == ["SRC004"]
    assert isinstance(raised.image, Image)
    assert "ymm0" not in raised.image.registers
    (wiped,) = open_source(CORPUS / DUMPS["llvm"])
    assert [finding.id for finding in wiped.findings] == ["SRC014", "SRC012", "SRC013"]
    assert len(wiped.image.registers) == 0
    assert wiped.findings[0].found == 0xAAAAAAAA
