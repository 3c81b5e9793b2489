"""Tiles and their configuration as ``fpstate show`` presents them: by row, as far as they are configured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fpstate.arch import Cpu, Layout
from fpstate.command.main import main
from fpstate.image import Image
from fpstate.testing import build_image
from fpstate.testing.core import linux_notes, register_set, write_core
from patterns import tile_configuration, tile_data
from recorded import OWN

Capture = pytest.CaptureFixture[str]
SMALL = 4096
REGSETS = OWN / "generated_intel/ptrace"
LAYOUT = Layout.standard(Cpu.catalog("emerald-rapids"))
FULL = int.from_bytes(tile_configuration(0), "little")


def document(capsys: Capture, *arguments: str | Path) -> dict[str, Any]:
    assert main(["show", "--json", *map(str, arguments)]) == 0
    (thread,) = json.loads(capsys.readouterr().out)["threads"]
    return dict(thread)


def text(capsys: Capture, *arguments: str | Path) -> str:
    assert main(["show", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def core_of(tmp_path: Path, **registers: int) -> Path:
    path = tmp_path / "tiles.core"
    path.write_bytes(
        write_core(linux_notes([(1, register_set(build_image(LAYOUT, registers)))], layout=LAYOUT))
    )
    return path


@pytest.mark.parametrize(("thread", "mode"), [(0, 0), (1, SMALL)])
def test_every_row_of_every_tile_of_a_recorded_thread_is_shown(
    thread: int, mode: int, capsys: Capture
) -> None:
    decoded = document(capsys, REGSETS / f"x64_amx_2t.t{thread}.xstate.bin")["decoded"]
    assert decoded["tilecfg"]["palette_id"] == 1
    assert decoded["tilecfg"]["problem"] is None
    rows_seen = 0
    for number in range(8):
        rows, width = (16 - number, 64 - 4 * number) if mode else (16, 64)
        shown = decoded[f"tmm{number}"]
        assert decoded["tilecfg"]["tiles"][number] == {"rows": rows, "colsb": width}
        assert (shown["configured"], shown["rows"], shown["colsb"], shown["outside"]) == (
            True,
            rows,
            width,
            0,
        )
        data = tile_data(thread, number, mode)
        wanted = [int.from_bytes(data[64 * row :][:width], "little") for row in range(rows)]
        assert [int(row, 16) for row in shown["data"]] == wanted
        assert {len(row) for row in shown["data"]} == {2 + 2 * width}
        rows_seen += len(wanted)
    assert rows_seen == (100 if mode else 128)


def test_text_has_the_shapes_and_one_line_a_row(capsys: Capture) -> None:
    shown = text(capsys, REGSETS / "x64_amx_2t.t1.xstate.bin", "--register", "tilecfg", "--register", "tmm7")
    assert "palette 1, tmm0 16 rows of 64 bytes, tmm1 15 rows of 60 bytes" in shown
    assert "tmm7     9 rows of 36 bytes\n" in shown
    assert [line.split()[1] for line in shown.splitlines() if line.startswith("   row ")] == list("012345678")
    assert "_85807b76716c6762_5d58534e49443f3a_35302b26211c1712" in shown
    assert "palette 1, tmm0-tmm7 16 rows of 64 bytes" in text(
        capsys, REGSETS / "x64_amxmixed_6t.t2.xstate.bin"
    )


def test_rows_come_as_lanes_where_lanes_fill_them(tmp_path: Path, capsys: Capture) -> None:
    value = 1 | 8 << 8 * 16 | 1 << 8 * 48 | 3 << 8 * 18 | 1 << 8 * 49  # tmm0 a row of 8 bytes, tmm1 one of 3
    path = core_of(tmp_path, tilecfg=value, tmm0=0x40000000_3F800000, tmm1=0x030201)
    decoded = document(capsys, path, "--as", "f32")["decoded"]
    assert decoded["tmm0"]["data"] == [[1.0, 2.0]]
    assert decoded["tmm1"]["data"] == ["0x030201"], "three bytes are no float"
    assert " row 0  1.0 2.0\n" in text(capsys, path, "--as", "f32", "--register", "tmm0")


def test_what_lies_outside_the_configuration_is_counted_and_shown_on_request(
    tmp_path: Path, capsys: Capture
) -> None:
    value = int.from_bytes(tile_configuration(SMALL), "little")
    path = core_of(tmp_path, tilecfg=value, tmm7=1 | 0xAB << 8 * 36 | 0xCD << 8 * 1023)
    shown = document(capsys, path)["decoded"]["tmm7"]
    assert (shown["rows"], shown["colsb"], shown["outside"]) == (9, 36, 2)
    assert "tmm7     9 rows of 36 bytes; outside of it 2 not zero" in text(capsys, path)
    shown = document(capsys, path, "--all")["decoded"]["tmm7"]
    assert (shown["rows"], shown["colsb"], shown["outside"], len(shown["data"])) == (16, 64, 0, 16)
    assert shown["data"][15].startswith("0xcd")


@pytest.mark.parametrize(
    ("tilecfg", "problem"),
    [
        (2, "there is no palette 2"),
        (FULL & ~0xFF, "palette 0 has no configuration, and byte 16 is 0x40"),
        (FULL | 17 << 8 * 51, "tile 3 has 17 rows of 64 bytes"),
        (FULL | 1 << 8 * 2, "reserved byte 2 is 0x01: reserved bytes are not zero"),
    ],
)
def test_a_configuration_that_no_restore_loads_is_said_to_be_illegal(
    tilecfg: int, problem: str, tmp_path: Path, capsys: Capture
) -> None:
    path = core_of(tmp_path, tilecfg=tilecfg, tmm0=5)
    decoded = document(capsys, path)["decoded"]
    assert decoded["tilecfg"]["problem"] == problem
    assert (decoded["tmm0"]["configured"], decoded["tmm0"]["rows"], decoded["tmm0"]["colsb"]) == (
        False,
        16,
        64,
    )
    shown = text(capsys, path)
    assert f"ILLEGAL, a restore makes it initial: {problem}" in shown
    assert "tmm0     no configuration; all rows" in shown


def test_a_legal_configuration_is_not_said_to_be_illegal(tmp_path: Path, capsys: Capture) -> None:
    for tilecfg in (FULL, FULL | 255 << 8):
        assert document(capsys, core_of(tmp_path, tilecfg=tilecfg))["decoded"]["tilecfg"]["problem"] is None
    assert "palette 1, start_row 255, tmm0-tmm7 16 rows of 64 bytes" in text(capsys, tmp_path / "tiles.core")


def test_tiles_without_a_configuration_are_shown_whole(tmp_path: Path, capsys: Capture) -> None:
    path = core_of(tmp_path, tmm5=7 << 8 * 1020)
    assert document(capsys, path)["decoded"]["tmm5"]["data"][15] == f"0x{7:08x}" + "0" * 120
    assert "tmm5     no configuration; all rows" in text(capsys, path)


def test_without_values_no_row_is_printed(capsys: Capture) -> None:
    shown = text(capsys, REGSETS / "x64_amx_2t.t0.xstate.bin", "--no-values")
    assert "tmm0" in shown
    assert "row" not in shown
    assert document(capsys, REGSETS / "x64_amx_2t.t0.xstate.bin", "--no-values")["decoded"] == {}


def test_keys_are_decoded(capsys: Capture) -> None:
    decoded = document(capsys, REGSETS / "x64_amx_2t.t1.xstate.bin")["decoded"]["pkru"]
    assert [decoded[str(key)] for key in range(4)] == ["read-write", "no access", "read-only", "no access"]


def test_two_states_differ_in_the_rows_in_which_their_tiles_do(tmp_path: Path, capsys: Capture) -> None:
    path = REGSETS / "x64_amx_2t.t0.xstate.bin"
    other = tmp_path / "other.bin"
    image = Image(bytearray(path.read_bytes()), LAYOUT)
    image.registers["tmm3"] ^= 1 << 8 * (64 * 5 + 63)
    image.registers["tile4_rows"] = 3
    other.write_bytes(image.to_bytes())
    assert main(["diff", str(path), str(other)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["tilecfg", "a:", "b:", "tmm3", "row"]
    assert "a: palette 1, tmm0-tmm7 16 rows of 64 bytes" in lines[1]
    assert "tmm4 3 rows of 64 bytes" in lines[2]
    row = int.from_bytes(tile_data(0, 3, 0)[320:384], "little")
    assert lines[4].split() == ["row", "5:", f"{row:#0130x}", "|", f"{row ^ 1 << 504:#0130x}"]
    assert main(["diff", str(path), str(other), "--json"]) == 1
    found = {each["register"]: each for each in json.loads(capsys.readouterr().out)["differences"]}
    assert found["tilecfg"]["decoded"]["b"].startswith("palette 1, tmm0-tmm3 16 rows")
    assert int(found["tmm3"]["a"], 16) ^ int(found["tmm3"]["b"], 16) == 1 << 8 * (64 * 5 + 63)
