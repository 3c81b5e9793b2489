"""``fpstate show``: what it prints, what it keeps to itself, and how it answers."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fpstate.arch import Component, Cpu, Layout
from fpstate.command.main import main
from fpstate.command.register_report import decimal
from fpstate.image import Float80
from fpstate.testing import build_image
from fpstate.testing.core import linux_notes, register_set, write_core

SECRET = 0x5EC2E7_5EC2E7_5EC2E7
ONE, PI = 0x3FFF << 64 | 1 << 63, 0x4000_C90FDAA2_2168C235


@pytest.fixture
def core(tmp_path):
    """A core of two threads on Sapphire Rapids: one with a state in every component, one initial."""
    layout = Layout.standard(Cpu.catalog("sapphire-rapids"))
    first = build_image(
        layout,
        {
            **{"st0": PI, "st1": ONE, "fctrl": 0x27F, "mxcsr": 0x9FC0, "zmm1": SECRET << 200},
            **{"ymm2": 0x3F800000, "zmm31": 3, "k1": 0x8101, "pkru": 0x55555554},
            **{"palette_id": 1, "tmm3": 7 << 8000},
        },
    )
    path = tmp_path / "spr.core"
    states = [(100, register_set(first)), (101, register_set(build_image(layout, present=3)))]
    path.write_bytes(write_core(linux_notes(states, layout=layout)))
    return str(path)


def show(capsys, *arguments):
    code = main(["show", *arguments])
    return code, capsys.readouterr().out


def document(capsys, *arguments):
    code, out = show(capsys, "--json", *arguments)
    return code, json.loads(out)


def test_json_states_exact_registers_under_their_debuggers_names(core, capsys):
    code, report = document(capsys, core)
    first, second = report["threads"]
    assert (code, report["schema"], report["source"]) == (0, "fpstate-show/1", core)
    assert (first["tid"], first["layout_source"], first["machine"]) == (100, "note", "x86-64")
    assert (first["xcr0"], first["xstate_bv"], first["in_use"]) == ("0x602e7", "0x602e7", "0x602e7")
    registers = {name: int(value, 16) for name, value in first["registers"].items()}
    assert (registers["st0"], registers["st1"], registers["zmm1"]) == (PI, ONE, SECRET << 200)
    assert registers["ymm1"] == (SECRET << 200) & (1 << 256) - 1
    assert (registers["tmm3"], registers["k1"], registers["pkru"]) == (7 << 8000, 0x8101, 0x55555554)
    assert registers["ftag"] == 0xFFF0
    assert re.fullmatch("0x[0-9a-f]{20}", first["registers"]["st0"])
    assert re.fullmatch("0x[0-9a-f]{128}", first["registers"]["zmm1"])
    assert "zmm3" not in registers
    assert "fstat" not in registers
    assert second["registers"] == {"mxcsr_mask": "0x0000ffff"}
    assert first["findings"] == []


def test_json_decodes_words_numbers_and_keys(core, capsys):
    _, report = document(capsys, core)
    decoded = report["threads"][0]["decoded"]
    assert decoded["mxcsr"] == {
        **{"exceptions": "", "daz": True, "masks": "IDZOUP", "rounding": "nearest", "ftz": True},
        "misaligned_mask": False,
    }
    assert decoded["fctrl"]["precision"] == "double"
    assert decoded["ftag"]["st0"] == "valid"
    assert decoded["ftag"]["st2"] == "empty"
    assert decoded["st0"] == {
        **{"class": "normal", "value": "0x1.921fb54442d1846ap+1", "decimal": "3.14159265358979323851"},
    }
    assert decoded["pkru"]["0"] == "read-write"
    assert decoded["pkru"]["1"] == "no access"
    assert "zmm1" not in decoded


def test_all_adds_the_registers_that_are_initial(core, capsys):
    _, report = document(capsys, core, "--all")
    second = report["threads"][1]["registers"]
    assert {
        "st7",
        "fctrl",
        "fstat",
        "ftag",
        "fop",
        "fioff",
        "mxcsr",
        "zmm31",
        "xmm0",
        "ymm15",
        "tmm7",
    } <= set(second)
    assert (second["fctrl"], second["ftag"], second["mxcsr"]) == ("0x037f", "0xffff", "0x00001f80")


@pytest.mark.parametrize(
    "arguments", [[], ["--json"], ["--json", "--all"], ["--register", "zmm1", "--as", "u8"]]
)
def test_no_values_names_registers_and_leaves_everything_that_they_hold_out(core, capsys, arguments):
    assert show(capsys, core, *arguments)[1] != show(capsys, core, "--no-values", *arguments)[1]
    _, out = show(capsys, core, "--no-values", *arguments)
    assert "zmm1" in out
    digits = re.sub("[^0-9a-f]", "", out.lower())
    for value in (SECRET, PI, 0x9FC0, 0x55555554):
        assert f"{value:x}" not in digits
    if "--json" in arguments:
        assert set(json.loads(out)["threads"][0]["registers"].values()) == {None}
        assert json.loads(out)["threads"][0]["decoded"] == {}


def test_threads_and_registers_are_chosen_by_name(core, capsys):
    _, report = document(capsys, core, "--thread", "101", "--register", "zmm1", "--register", "fcw")
    (thread,) = report["threads"]
    assert thread["tid"] == 101
    assert {name: int(value, 16) for name, value in thread["registers"].items()} == {
        "zmm1": 0,
        "fctrl": 0x37F,
    }


@pytest.mark.parametrize(
    ("lane_type", "first"),
    [("f32", 1.0), ("f64", 5.263544247e-315), ("u32", 0x3F800000), ("i8", 0), ("bf16", 0.0), ("f16", 0.0)],
)
def test_vectors_are_shown_in_the_lanes_that_are_asked_for(core, capsys, lane_type, first):
    _, report = document(capsys, core, "--register", "ymm2", "--as", lane_type)
    lanes = report["threads"][0]["decoded"]["ymm2"]
    assert lanes[0] == first
    _, text = show(capsys, core, "--register", "ymm2", "--as", lane_type)
    assert f"ymm2  {first!r} " in text


def test_lanes_without_a_number_in_json_are_text(tmp_path, capsys):
    image = build_image(Layout.standard(Cpu.catalog("zen1")), {"xmm0": 0x7FC00000_7F800000_FF800000})
    path = tmp_path / "c"
    path.write_bytes(write_core(linux_notes([(1, register_set(image))])))
    _, report = document(capsys, str(path), "--as", "f32")
    assert report["threads"][0]["decoded"]["xmm0"][:3] == ["-inf", "inf", "nan"]


def test_text_says_where_the_layout_was_learnt_and_decodes_the_words(core, capsys):
    code, out = show(capsys, core)
    assert code == 0
    assert "thread 100  x86-64, 11008 bytes, layout_source note" in out
    assert "in use: X87|SSE|OPMASK|ZMM_HI256|HI16_ZMM|PKRU|TILECFG|TILEDATA" in out.replace("AVX|", "")
    assert re.search(r"st0 .*0x4000c90fdaa22168c235  normal 0x1.921fb54442d1846ap\+1 \(3.14159", out)
    assert re.search(r"mxcsr .*0x00009fc0  .*daz masks=IDZOUP rounding=nearest ftz", out)
    assert re.search(r"ftag .*st0 valid, st1 valid", out)
    assert "key 1 no access" in out
    assert "no register to show" in out.split("thread 101")[1]


@pytest.mark.parametrize("piped", [False, True])
def test_standard_input_is_a_source(core, piped):
    command = [sys.executable, "-m", "fpstate", "show", "-"]
    with open(core, "rb") as file:
        given = {"input": file.read()} if piped else {"stdin": file}
        answer = subprocess.run(command, capture_output=True, check=True, **given)
    assert b"thread 101" in answer.stdout


def test_a_core_without_its_layout_says_inferred_and_one_that_fits_two_is_refused(tmp_path, capsys):
    image = build_image(Layout.standard(Cpu.catalog("zen4")), {"k1": 1})
    path = tmp_path / "core"
    path.write_bytes(write_core(linux_notes([(1, register_set(image))])))
    assert "layout_source inferred" in show(capsys, str(path))[1]
    assert "layout_source given" in show(capsys, str(path), "--cpu", "zen5")[1]
    image = build_image(image.layout, {"xmm1": 1})
    path.write_bytes(write_core(linux_notes([(1, register_set(image, xcr0=0))])))
    assert main(["show", str(path)]) == 4
    error = capsys.readouterr().err
    assert "2 known layouts have 2440 bytes" in error
    assert "zen3" in error
    assert "zen4" in error


def test_what_was_lost_is_an_answer_of_one_and_asking_for_it_is_refused(tmp_path, capsys):
    layout = Layout.standard(Cpu.catalog("knights-landing"))
    image = build_image(layout, {"ymm1": 5, "k1": 5}, present=layout.mask)
    path = tmp_path / "core"
    path.write_bytes(write_core(linux_notes([(1, register_set(image, mxcsr_mask=0))])))
    code, report = document(capsys, str(path))
    assert code == 1
    assert "k1" not in report["threads"][0]["registers"]
    assert {f["component"] for f in report["threads"][0]["findings"]} >= {Component.OPMASK.name}
    assert main(["show", str(path), "--register", "zmm20"]) == 2
    assert "zmm16-zmm31" in capsys.readouterr().err
    code, report = document(capsys, str(path), "--cpu", "knights-landing")
    assert (code, int(report["threads"][0]["registers"]["k1"], 16)) == (0, 5)


@pytest.mark.parametrize(("offset", "value"), [(513, 0x80), (527, 0x80)])
def test_a_thread_whose_header_is_wrong_is_a_finding_and_the_others_are_shown(core, capsys, offset, value):
    data = bytearray(Path(core).read_bytes())
    at = data.find(b"LINUX\0\0\0") + 8
    data[at + offset] |= value
    Path(core).write_bytes(data)
    code, report = document(capsys, core, "--all")
    broken, whole = report["threads"]
    assert code == 1
    assert (broken["findings"][0]["id"], broken["registers"], broken["in_use"]) == ("SRC005", {}, None)
    assert broken["findings"][0]["offset"] in (512, 520)
    assert whole["findings"] == []
    assert "error SRC005 at byte" in show(capsys, core)[1]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 2, "nowhere"),
        (["{core}", "--thread", "5"], 2, "no thread 5"),
        (["{core}", "--register", "zmm32"], 2, "no such register"),
        (["{core}", "--register", "bnd0"], 2, "no room for BNDREGS"),
        (["{core}", "--cpu", "z80"], 2, "unknown processor 'z80'"),
    ],
)
def test_what_cannot_be_shown_is_refused_with_a_reason(core, capsys, arguments, code, message):
    assert main(["show", *(argument.format(core=core) for argument in arguments)]) == code
    assert message in capsys.readouterr().err


def test_i386_shows_the_registers_that_it_can_name_and_any_that_holds_something(tmp_path, capsys):
    image = build_image(Layout.standard(Cpu.catalog("zen4")), {"zmm9": 1})
    path = tmp_path / "core"
    path.write_bytes(write_core(linux_notes([(1, register_set(image))], "i386"), "i386"))
    _, report = document(capsys, str(path), "--all")
    vectors = {name for name in report["threads"][0]["registers"] if re.match("[xyz]mm", name)}
    assert vectors == {f"{kind}mm{index}" for kind in "xyz" for index in (*range(8), 9)} - set()


@pytest.mark.parametrize(
    ("bits", "digits"),
    [
        (0x3FFF << 64 | 1 << 63, "1"),
        (0xBFFE << 64 | 1 << 63, "-0.5"),
        (1 << 79, "-0"),
        (0x7FFE << 64 | (1 << 64) - 1, "1.18973149535723176502E+4932"),
        (1, "3.64519953188247460253E-4951"),
        (0x7FFF << 64 | 1 << 63, "inf"),
        (0xFFFF << 64 | 3 << 62, "nan"),
    ],
)
def test_x87_numbers_are_stated_to_the_last_digit_whatever_their_size(bits, digits):
    assert decimal(Float80(bits)) == digits


def test_neighbours_differ_in_their_digits():
    for bits in (PI, ONE, 0x7FFE << 64 | (1 << 64) - 2, 1 << 63 | 1 << 64):
        assert decimal(Float80(bits)) != decimal(Float80(bits + 1))


def test_the_headline_says_what_the_layout_was_inferred_from(tmp_path, capsys):
    layout = Layout.standard(Cpu.catalog("zen4"))
    data = bytearray(build_image(layout, {"k1": 1}).to_bytes())
    path = tmp_path / "raw"
    path.write_bytes(data)
    assert "inferred: INFERRED from size and header, as no XCR0 is stated" in show(capsys, str(path))[1]
    assert "given: as the command line says" in show(capsys, str(path), "--cpu", "zen4")[1]
    data[464:472] = layout.mask.to_bytes(8, "little")
    path.write_bytes(data)
    assert "inferred: INFERRED from XCR0 and size" in show(capsys, str(path))[1]


def test_the_mask_in_a_buffer_of_kvm_is_not_taken_for_xcr0(tmp_path, capsys):
    layout = Layout.standard(Cpu.catalog("haswell"))
    data = bytearray(build_image(layout, {"ymm1": 1 << 200}).to_bytes().ljust(4096, b"\0"))
    data[464:472] = layout.mask.to_bytes(8, "little")
    path = tmp_path / "raw"
    path.write_bytes(data)
    assert "inferred: INFERRED from the host's mask" in show(capsys, str(path))[1]


@pytest.mark.parametrize(
    "text", [b"{\xff}", b"[" * 100_000, b'{"places":[],"format":"standard","mask":"0","size":1e999}']
)
def test_a_layout_that_is_no_text_or_no_json_is_refused(text, tmp_path, capsys):
    state, layout = tmp_path / "state.bin", tmp_path / "layout.json"
    state.write_bytes(bytes(576))
    layout.write_bytes(text)
    assert main(["show", str(state), "--layout", str(layout)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("fpstate: ")
