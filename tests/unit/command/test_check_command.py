"""fpstate check: verdicts, exit codes, JSON, and the image that --fix writes."""

import io
import json
import os
import stat
import subprocess
import sys

import pytest

from fpstate.arch import Component, Cpu, Format, Layout
from fpstate.command.main import main
from fpstate.image.consumer import Consumer, Target
from fpstate.image.rules import predict
from fpstate.testing import build_image
from fpstate.testing.case import clean_case
from fpstate.testing.mutate import broken_case


@pytest.fixture
def file(tmp_path):
    def write(data) -> str:
        path = tmp_path / "image.bin"
        path.write_bytes(bytes(data))
        return str(path)

    return write


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["check", *arguments])
    return code, capsys.readouterr().out


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict]:
    code, out = check(capsys, *arguments, "--json")
    return code, json.loads(out)


@pytest.mark.parametrize("consumer", Consumer)
def test_a_clean_image_is_loaded_and_the_exit_code_is_0(capsys, file, consumer):
    case = clean_case(consumer, "tiger-lake")
    code, out = check(capsys, file(case.data), "--for", consumer.value, "--cpu", "tiger-lake", "--strict")
    assert code == 0
    assert out.splitlines()[1].split()[-1] == "loaded"
    assert len(out.splitlines()) == 2


def test_a_refused_image_says_what_where_why_and_what_to_try(capsys, file):
    case = clean_case(Consumer.XRSTOR, "zen3")
    case.put(520, 1 << 63 | 7)
    code, out = check(capsys, file(case.data), "--for", "ptrace", "--cpu", "zen3")
    assert code == 1
    assert "rejected (EINVAL)" in out
    assert "XS013 error at byte 520: the image is compacted" in out
    assert "validate_user_xstate_header" in out
    assert "try: convert the image to the standard format" in out


def test_without_a_consumer_each_has_its_verdict(capsys, file):
    case = clean_case(Consumer.XRSTOR, "zen3")
    code, data = report(capsys, file(case.data), "--cpu", "zen3")
    verdicts = {answer["consumer"]: answer["verdict"] for answer in data["images"][0]["verdicts"]}
    assert verdicts == {
        "xrstor": "loaded",
        "xrstors": "rejected",
        "sigreturn": "loaded with loss of AVX|PKRU",
        "ptrace": "loaded",
        "kvm": "loaded",
    }
    assert code == 0  # XRSTORS takes another format: that is no fault of this image
    case.put(24, 1 << 20, 4)
    code, data = report(capsys, file(case.data), "--cpu", "zen3")
    assert code == 1
    assert not any(answer["accepted"] for answer in data["images"][0]["verdicts"])


def test_json_has_ids_values_and_masks(capsys, file):
    case = broken_case("XS017", Consumer.PTRACE)
    code, data = report(capsys, file(case.data), "--for", "ptrace", "--cpu", "sapphire-rapids", "--amx")
    assert code == 1
    assert data["schema"] == "fpstate-check/1"
    assert data["target"]["user_xfeatures"] == "0x602e7"
    (answer,) = data["images"][0]["verdicts"]
    assert (answer["verdict"], answer["answer"], answer["loaded"]) == ("rejected", "EINVAL", [])
    (finding,) = answer["findings"]
    assert (finding["id"], finding["severity"], finding["offset"]) == ("XS017", "error", 24)
    assert int(finding["found"], 16) ^ int(finding["expected"], 16) == 1 << 16
    assert (finding["component"], finding["register"]) == ("SSE", "mxcsr")


def test_values_of_findings_and_repairs_are_hexadecimal_in_json(capsys, file, tmp_path):
    case = clean_case(Consumer.PTRACE, "zen3")
    case.put(24, 0x13F80, 4)
    case.put(512, 1)
    arguments = (file(case.data), "--for", "ptrace", "--cpu", "zen3", "--leftovers", "keep")
    _, data = report(capsys, *arguments, "--fix", str(tmp_path / "fixed.bin"))
    findings = {each["id"]: each for each in data["images"][0]["verdicts"][0]["findings"]}
    assert (findings["XS027"]["found"], findings["XS027"]["expected"]) == ("0x13f80", "0x1f80")
    repairs = {each["rule"]: each for each in data["fix"]["repairs"]}
    assert (repairs["XS017"]["before"], repairs["XS017"]["after"]) == ("0x13f80", "0x3f80")
    assert (repairs["XS027"]["before"], repairs["XS027"]["after"]) == ("0x1", "0x3")
    assert (repairs["XS102"]["before"], repairs["XS102"]["component"]) == (None, "SSE")


def test_warnings_count_with_strict_only(capsys, file):
    case = broken_case("XS105", Consumer.XRSTOR)
    arguments = (file(case.data), "--for", "xrstor", "--cpu", "sapphire-rapids", "--amx")
    assert check(capsys, *arguments)[0] == 0
    assert check(capsys, *arguments, "--strict")[0] == 1


def test_fix_writes_a_private_image_that_is_taken_and_lists_the_changes(capsys, file, tmp_path):
    case = clean_case(Consumer.PTRACE, "zen3")
    case.put(24, 0x11F80, 4)
    case.put(528, 9)
    out = tmp_path / "fixed.bin"
    code, text = check(capsys, file(case.data), "--for", "ptrace", "--cpu", "zen3", "--fix", str(out))
    assert code == 1
    assert "XS017 at byte 24: reserved bits of MXCSR cleared: 0x11f80 becomes 0x1f80" in text
    assert "XS015 at byte 528: reserved header bytes cleared" in text
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert predict(out.read_bytes(), Consumer.PTRACE, case.target).accepted
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert check(capsys, str(out), "--for", "ptrace", "--cpu", "zen3")[0] == 0


def test_fix_states_forgotten_data_or_clears_it(capsys, file, tmp_path):
    image = build_image(Layout.standard(Cpu.catalog("zen3")), {"ymm3": 1 << 200, "pkru": 4})
    image.store.view[512:520] = bytes(8)
    source, out = file(image.to_bytes()), tmp_path / "fixed.bin"
    _, data = report(capsys, source, "--cpu", "zen3", "--fix", str(out))
    assert [repair["rule"] for repair in data["fix"]["repairs"]] == ["XS101", "XS101"]
    assert int.from_bytes(out.read_bytes()[512:520], "little") == 1 << Component.AVX | 1 << Component.PKRU
    check(capsys, source, "--cpu", "zen3", "--fix", str(out), "--leftovers", "clear")
    assert not any(out.read_bytes()[576:])


def test_fix_to_standard_output_leaves_it_to_the_bytes(file):
    case = clean_case(Consumer.KVM, "zen3")
    case.put(560, 1)
    run = subprocess.run(
        [
            *(sys.executable, "-m", "fpstate", "check", file(case.data)),
            *("--for", "kvm", "--cpu", "zen3", "--fix", "-"),
        ],
        capture_output=True,
        check=False,
    )
    assert run.returncode == 1
    assert run.stdout == bytes(clean_case(Consumer.KVM, "zen3").data)
    assert b"XS016 at byte 528" in run.stderr


def test_an_image_is_read_from_standard_input(capsys, monkeypatch):
    data = bytes(clean_case(Consumer.XRSTOR, "zen3").data)
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
        assert check(capsys, "-", "--for", "xrstor", "--cpu", "zen3")[0] == 0


def test_another_producers_layout_is_told_apart(capsys, file):
    data = clean_case(Consumer.XRSTOR, "zen4").data.ljust(2696, b"\0")
    arguments = (file(data), "--for", "xrstor", "--cpu", "ice-lake-sp")
    _, told = report(capsys, *arguments, "--from-cpu", "zen4")
    answer = told["images"][0]["verdicts"][0]
    assert answer["lost"] == ["OPMASK", "ZMM_HI256", "HI16_ZMM", "PKRU"]
    assert {finding["id"] for finding in answer["findings"]} >= {"XS032"}


def test_the_mask_of_xrstor_can_be_given(capsys, file):
    data = clean_case(Consumer.XRSTOR, "haswell").data
    source = file(data)
    assert check(capsys, source, "--for", "xrstor", "--cpu", "zen3")[0] == 1
    assert check(capsys, source, "--for", "xrstor", "--cpu", "zen3", "--mask", "0x7")[0] == 0


def test_a_wrong_format_and_wrong_names_are_usage_errors(capsys, file, tmp_path):
    source = file(clean_case(Consumer.XRSTOR, "zen3", Format.COMPACTED).data)
    assert main(["check", source, "--cpu", "zen3", "--format", "std"]) == 2
    assert "says compacted, not std" in capsys.readouterr().err
    assert main(["check", source, "--cpu", "zen3", "--format", "compacted", "--for", "xrstor"]) == 0
    assert main(["check", source, "--cpu", "nonsense"]) == 2
    assert main(["check", str(tmp_path / "missing"), "--cpu", "zen3"]) == 2
    for arguments in (["--for", "nobody"], ["--mask", "many"]):
        with pytest.raises(SystemExit) as exit:
            main(["check", source, *arguments])
        assert exit.value.code == 2
    assert "'many' is no bitmap such as 0x2e7" in capsys.readouterr().err


def test_what_cannot_be_fixed_writes_nothing(capsys, file, tmp_path):
    case = broken_case("XS009", Consumer.XRSTOR)
    out = tmp_path / "fixed.bin"
    assert main(["check", file(case.data), "--cpu", "sapphire-rapids", "--fix", str(out)]) == 2
    assert "does not say the size" in capsys.readouterr().err
    assert not out.exists()


def test_this_process_is_checked_where_it_can_be_read(capsys):
    from fpstate.errors import UnsupportedHere

    try:
        Cpu.host()
    except UnsupportedHere as error:
        pytest.skip(str(error))
    script = "print(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline()
        code = main(["check", str(child.pid), "--for", "ptrace"])
        captured = capsys.readouterr()
        if code in (2, 3) and captured.err:
            pytest.skip(f"reading a child's state: {captured.err.strip()}")
        assert code == 0
        assert "loaded" in captured.out
        assert Target.from_cpu(Cpu.host()).standard.size == int(captured.out.split()[1])
    finally:
        child.kill()
        child.communicate()
