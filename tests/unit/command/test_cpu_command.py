import argparse
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

import fpstate.engine
from fpstate.arch import Cpu
from fpstate.command import cpu as verb
from fpstate.errors import UnknownCpu, UnsupportedHere
from fpstate.vso.kernel_permission import KernelPermission, read_kernel_permission
from fpstate.vso.signal_frame import minsigstksz
from fpstate.vso.switching import CoreChoice

NAMED = [sys.executable, "-c"]
SCRIPT = """
import argparse, sys
from fpstate.command import cpu
parser = argparse.ArgumentParser()
cpu.add_parser(parser.add_subparsers())
args = parser.parse_args(["cpu", "--cpu", "zen4"])
status = args.run(args)
print("rich" in sys.modules, file=sys.stderr)
sys.exit(status)
"""


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    verb.add_parser(parser.add_subparsers())
    args = parser.parse_args(["cpu", *arguments])
    return args.run(args)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Cpu:
    """A host that is a Zen 3 with XCR0 = 7, whose kernel answers as Linux does there."""
    recorded = Cpu.catalog("zen3")
    values = {name: getattr(recorded, name) for name in recorded.__dataclass_fields__}
    cpu = Cpu(**values | {"name": "host", "source": "host", "enabled_xcr0": 7})
    monkeypatch.setattr(Cpu, "host", classmethod(lambda cls: cpu))
    monkeypatch.setattr(verb, "read_kernel_permission", lambda: KernelPermission(7, 7, None, 1776))
    engines = [
        SimpleNamespace(name="native", works=True, reason=""),
        SimpleNamespace(name="kvm", works=False, reason="no /dev/kvm"),
    ]
    monkeypatch.setattr(fpstate.engine, "availability", lambda: engines, raising=False)
    return cpu


def test_json_has_the_sizes_and_both_offsets(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--cpu", "sapphire-rapids", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == "fpstate-cpu/1"
    tiles = next(item for item in report["components"] if item["name"] == "TILEDATA")
    assert (tiles["standard_offset"], tiles["xsavec_offset"], tiles["xsaves_offset"]) == (2816, 2560, 3584)
    assert (tiles["size"], tiles["aligned"], tiles["xfd"], tiles["supervisor"]) == (8192, True, True, False)
    assert report["linux"]["kernel_default"] == {"features": "0x20ee7", "size": 2560}
    assert report["linux"]["init_xfd"] == "0x40000"
    assert report["signal_frame"]["ia32"] == 11952
    assert report["kernel"] is report["engines"] is None


@pytest.mark.parametrize("name", Cpu.catalog_names())
def test_every_processor_of_the_catalog_can_be_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--cpu", name) == 0
    text = capsys.readouterr().out
    assert name in text
    assert "\x1b" not in text
    assert max(len(line) for line in text.splitlines()) < 250


def test_supervisor_components_have_no_standard_offset(capsys: pytest.CaptureFixture[str]) -> None:
    run("--cpu", "zen4")
    (line,) = (line for line in capsys.readouterr().out.splitlines() if " CET_S " in line[:20])
    assert line.split()[:7] == ["12", "CET_S", "S", "24", "-", "-", "2456"]


def test_a_phantom_component_is_marked_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    run("--cpu", "zen2")
    text = capsys.readouterr().out
    assert "unusable" in text
    assert "component_without_feature PKRU" in text


def test_an_unknown_name_is_a_usage_error() -> None:
    with pytest.raises(UnknownCpu) as caught:
        run("--cpu", "pentium")
    assert caught.value.exit_code == 2


def test_the_host_needs_the_native_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fpstate._core", None)
    with pytest.raises(UnsupportedHere) as caught:
        run()
    assert caught.value.exit_code == 3


def test_the_host_shows_kernel_and_engines(host: Cpu, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["xcr0"] == {"supported": "0x207", "usable": "0x207", "enabled": "0x7"}
    assert report["kernel"] == {"supported": "0x7", "host": "0x7", "guest": None, "minsigstksz": 1776}
    assert [engine["name"] for engine in report["engines"]] == ["native", "kvm"]
    assert report["linux"]["user_max"]["size"] == 832
    assert run() == 0
    text = capsys.readouterr().out
    assert "1776 bytes, agrees" in text
    (kvm,) = (line for line in text.splitlines() if line.startswith("engine kvm"))
    assert kvm.endswith("does not work: no /dev/kvm")
    (pkru,) = (line for line in text.splitlines() if " PKRU " in line[:20])
    assert "off" in pkru.split()


def test_a_kernel_that_disagrees_is_pointed_out(
    host: Cpu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verb, "read_kernel_permission", lambda: KernelPermission(7, 7, 7, 2048))
    run()
    assert "2048 bytes, DIFFERS" in capsys.readouterr().out


def test_a_kernel_that_cannot_be_asked_is_said_so(
    host: Cpu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> KernelPermission:
        raise UnsupportedHere("arch_prctl")

    monkeypatch.setattr(verb, "read_kernel_permission", refuse)
    run()
    assert "arch_prctl" in capsys.readouterr().out


def test_without_engines_the_reason_is_shown(
    host: Cpu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(fpstate.engine, "availability")
    run("--json")
    (entry,) = json.loads(capsys.readouterr().out)["engines"]
    assert entry["works"] is False
    assert "availability" in entry["reason"]


def test_a_pipe_gets_plain_text_without_rich() -> None:
    result = subprocess.run([*NAMED, SCRIPT], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "False"
    assert result.stdout.startswith("processor")


def test_a_terminal_gets_a_table_and_no_colour_is_honoured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    assert run("--cpu", "zen2") == 0
    text = capsys.readouterr().out
    assert "PKRU" in text
    assert not any(f"\x1b[3{colour}" in text for colour in range(8))


def test_without_rich_a_terminal_gets_plain_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    for module in [name for name in sys.modules if name.partition(".")[0] == "rich"] + ["rich.box"]:
        monkeypatch.setitem(sys.modules, module, None)
    assert run("--cpu", "zen4") == 0
    assert capsys.readouterr().out.startswith("processor")


def test_this_kernel_answers_within_what_it_supports() -> None:
    try:
        answer = read_kernel_permission()
    except UnsupportedHere as error:
        pytest.skip(str(error))
    if answer.supported is None or answer.host is None:
        pytest.skip("this kernel has no component permissions (Linux 5.16 has)")
    assert answer.supported & 3 == answer.host & 3 == 3
    assert answer.host & ~answer.supported == 0


def test_the_kernel_asks_for_the_frame_that_the_layout_gives() -> None:
    try:
        cpu = Cpu.host()
        answer = read_kernel_permission()
    except UnsupportedHere as error:
        pytest.skip(str(error))
    if answer.minsigstksz is None:
        pytest.skip("this kernel has no AT_MINSIGSTKSZ (Linux 5.14 has)")
    report = verb.describe(cpu)
    size = report["linux"]["user_max"]["size"]
    assert answer.minsigstksz in (minsigstksz(size), minsigstksz(size, ia32=False))


def test_the_host_says_which_core_switches_and_why(host: Cpu, capsys: pytest.CaptureFixture[str]) -> None:
    core = pytest.importorskip("fpstate._core", reason="the native core (fpstate._core) is not built")
    if not core.features()["xcr0"]:
        pytest.skip("XSAVE is not enabled (CPUID.1:ECX[27], OSXSAVE)")
    assert run("--json") == 0
    switching = json.loads(capsys.readouterr().out)["switching"]
    assert switching["core"] in {"portable", "fast"}
    assert switching["reason"]
    assert set(switching) == {"core", "reason", "ratios", "in_use", "self_test"}
    assert switching["self_test"]["mismatches"] == 0
    assert run() == 0
    assert f"switching core     {switching['core']}: {switching['reason']}" in capsys.readouterr().out
    run("--cpu", "zen4", "--json")
    assert json.loads(capsys.readouterr().out)["switching"] is None


def test_what_stays_in_use_is_said_beside_the_figure_that_pays_for_it(
    host: Cpu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = CoreChoice("fast", "it is", 9216, 0, (0.66, 0.7, 0.71), (0xA3, 0xE7, 0xE7))
    monkeypatch.setattr("fpstate.vso.switching.core_choice", lambda: found)
    assert run() == 0
    assert (
        "; time by the portable core's: typical 0.66 (X87 stays in use), all but x87 0.70 (X87 stays in use),"
        " everything 0.71\n" in capsys.readouterr().out
    )
