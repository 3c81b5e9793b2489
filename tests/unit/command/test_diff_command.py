"""``fpstate diff`` compares registers, whatever the layouts."""

import json
from pathlib import Path

import pytest

from fpstate.arch import Cpu, Format, Layout
from fpstate.command.main import main
from fpstate.image.convert import convert
from fpstate.image.legacy import to_fxsave
from fpstate.testing import build_image, build_layout, random_image

ZEN4 = Layout.standard(Cpu.catalog("zen4"))
SPR_COMPACTED = build_layout("sapphire-rapids", Format.COMPACTED)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "a.bin", tmp_path / "b.bin"


def test_the_same_registers_in_other_bytes(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = files
    image = random_image(ZEN4, 1)
    a.write_bytes(image.to_bytes())
    b.write_bytes(convert(image, SPR_COMPACTED).image.to_bytes())
    assert main(["diff", str(a), str(b), "--cpu", "zen4", "--cpu", "sapphire-rapids"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no register differs" in captured.err


def test_each_difference_with_both_values_and_fields(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = files
    a.write_bytes(build_image(ZEN4, {"mxcsr": 0x1FA0, "zmm3": 1 << 130, "fctrl": 0x27F}).to_bytes())
    b.write_bytes(build_image(ZEN4, {"mxcsr": 0x5F80}).to_bytes())
    assert main(["diff", str(a), str(b), "--cpu", "zen4"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == ["fctrl", "mxcsr", "zmm3"]
    assert "zmm3   0x400000000000000000000000000000000 | 0x0  (AVX)" in lines
    assert "mxcsr  0x1fa0 | 0x5f80  (SSE)" in lines
    assert any(line.strip() == "b: 0x00005f80 masks=IDZOUP rounding=up" for line in lines)
    assert any("precision=double" in line for line in lines)


def test_json_and_no_values(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    a, b = files
    a.write_bytes(build_image(ZEN4, {"mxcsr": 0x1FA0}).to_bytes())
    b.write_bytes(build_image(ZEN4).to_bytes())
    assert main(["diff", str(a), str(b), "--cpu", "zen4", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["schema"], report["equal"]) == ("fpstate-diff/1", False)
    (found,) = report["differences"]
    assert (found["register"], found["a"], found["b"]) == ("mxcsr", "0x1fa0", "0x1f80")
    assert found["components"] == ["SSE"]
    assert "exceptions=P" in found["decoded"]["a"]
    assert main(["diff", str(a), str(b), "--cpu", "zen4", "--json", "--no-values"]) == 1
    (found,) = json.loads(capsys.readouterr().out)["differences"]
    assert found == {"register": "mxcsr", "components": ["SSE"], "a": None, "b": None, "decoded": None}
    assert main(["diff", str(a), str(b), "--cpu", "zen4", "--no-values"]) == 1
    assert capsys.readouterr().out == "mxcsr  SSE\n"


def test_pointers_count_only_when_they_are_state_or_asked_for(files: tuple[Path, Path]) -> None:
    a, b = files
    a.write_bytes(build_image(ZEN4, {"fip": 5, "st0": 1}).to_bytes())
    b.write_bytes(build_image(ZEN4, {"fip": 6, "st0": 1}).to_bytes())
    arguments = ["diff", str(a), str(b), "--cpu", "zen4"]
    assert main(arguments) == 0
    assert main([*arguments, "--exact"]) == 1
    pending = {"fctrl": 0x37B, "fstat": 4, "st0": 1}
    a.write_bytes(build_image(ZEN4, {"fip": 5, **pending}).to_bytes())
    b.write_bytes(build_image(ZEN4, {"fip": 6, **pending}).to_bytes())
    assert main(arguments) == 1


def test_formats_are_told_from_the_bytes(files: tuple[Path, Path]) -> None:
    a, b = files
    image = build_image(ZEN4, {"xmm1": 5, "st1": 7})
    a.write_bytes(image.to_bytes())
    b.write_bytes(to_fxsave(image))
    assert main(["diff", str(a), str(b), "--cpu", "zen4"]) == 0
    assert main(["diff", str(a), str(b), "--cpu", "zen4", "--format", "std", "--format", "fxsave"]) == 0


def test_a_compacted_header_that_all_processors_lay_out_alike_needs_no_name(files: tuple[Path, Path]) -> None:
    a, b = files
    image = build_image(Layout.compacted(Cpu.catalog("zen4"), 0xE7), {"zmm20": 5})
    a.write_bytes(image.to_bytes())
    b.write_bytes(image.to_bytes())
    assert main(["diff", str(a), str(b)]) == 0


def test_one_standard_input_is_not_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "-", "-"]) == 2
    assert "one state, not two" in capsys.readouterr().err


def test_three_processors_for_two_states(files: tuple[Path, Path]) -> None:
    a, b = files
    for path in files:
        path.write_bytes(build_image(ZEN4).to_bytes())
    assert main(["diff", str(a), str(b), *(["--cpu", "zen4"] * 3)]) == 2
