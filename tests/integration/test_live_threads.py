"""fpstate threads: the odd ones out of real processes."""

import json
from pathlib import Path

import pytest
from live_processes import assert_free, compile_target, running

from fpstate.command.main import main
from fpstate.source.process import process_threads
from recorded import OWN

pytestmark = pytest.mark.usefixtures("core")


@pytest.fixture(scope="module")
def target(gcc: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_target(gcc, tmp_path_factory.mktemp("live"))


def test_threads_that_are_alike_are_no_finding(target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(target, "sleep", "5") as process:
        assert main(["threads", str(process.pid)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1].startswith("5 threads, all alike; layout from: host; stood still for ")
        assert not any(line.startswith("*") for line in lines)


def test_the_odd_one_is_marked_and_explained(target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(target, "sleep", "5") as process:
        tid = process_threads(process.pid)[3].tid
        main(["set", str(process.pid), "--thread", str(tid), "mxcsr=0xffc0"])
        capsys.readouterr()
        assert main(["threads", str(process.pid)]) == 1
        (marked,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("*"))
        assert marked.split()[1] == str(tid)
        assert "ftz=on, not off" in marked
        assert "rounding=zero, not nearest" in marked
        assert main(["threads", str(process.pid), "--json"]) == 1
        report = json.loads(capsys.readouterr().out)
        assert report["schema"] == "fpstate-threads/1"
        assert [each["tid"] for each in report["threads"] if each["odd"]] == [tid]
        assert report["odd"] == 1
        assert_free(process.pid)


def test_exception_flags_make_no_thread_odd(target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(target, "sleep", "3") as process:
        main(["set", str(process.pid), "mxcsr=0x1fbf"])
        assert main(["threads", str(process.pid)]) == 0
        assert "0x1fbf" in capsys.readouterr().out


def test_a_thread_that_does_not_stop_is_named(target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(target, "vfork") as process:
        assert main(["threads", str(process.pid), "--limit", "1s"]) == 1
        captured = capsys.readouterr()
        assert "1 thread, all alike" in captured.out
        assert "did not stop in time" in captured.err


def test_exit_codes_of_what_cannot_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["threads", "4194304"]) == 2
    assert "no such process" in capsys.readouterr().err


def test_the_threads_of_a_core_are_compared_too(capsys: pytest.CaptureFixture[str]) -> None:
    core = OWN / "generated" / "cores" / "x64_avx_2t_quit.kernel.core.xz"
    assert main(["threads", str(core)]) == 1
    text = capsys.readouterr().out
    assert "mxcsr: rounding=down, not nearest; fctrl: precision=double, not extended" in text
    assert "2 threads, 1 odd; layout from: note" in text
