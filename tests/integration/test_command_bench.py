"""``fpstate bench``: everything is measured beside its peers, stated in one schema, and what is missing is named."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fpstate.arch import Cpu
from fpstate.bench.page import BEGIN, END, replaced
from fpstate.bench.quantity import QUANTITIES, SECTIONS
from fpstate.bench.table import lines
from fpstate.command.main import main

HIDE = "import sys; sys.modules['greenlet'] = sys.modules['gevent'] = None; "
RUN = "from fpstate.command.main import main; sys.exit(main(sys.argv[1:]))"
SVG = "{http://www.w3.org/2000/svg}"


def bench(*arguments: str, path: str | None = None, hide: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the verb in a process of its own, which pins itself to a processor."""
    environment = {**os.environ, **({} if path is None else {"PATH": path})}
    script = (HIDE if hide else "import sys; ") + RUN
    command = [sys.executable, "-c", script, "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def measured(native, tmp_path_factory) -> tuple[dict, str]:
    """A quick run of everything: its report and its picture."""
    if not native.features()["xsavec"]:
        pytest.skip("XSAVEC (CPUID.(0DH,1):EAX[1])")
    picture = tmp_path_factory.mktemp("bench") / "bench.svg"
    done = bench("--quick", "--json", "--plot", str(picture))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), picture.read_text(encoding="utf-8")


def test_the_report_has_a_schema_and_says_what_was_measured_where(measured):
    report, _ = measured
    assert report["schema"] == "fpstate-bench/2"
    assert report["settings"]["quick"] is True
    assert report["sections"] == list(SECTIONS)
    assert set(SECTIONS) <= set(report)
    for fact in (
        "signature",
        "kernel",
        "python",
        "virtual_machine",
        "governor",
        "load",
        "pinned_to",
        "stolen_ms",
    ):
        assert fact in report["machine"]
    maker = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}.get(Cpu.host().vendor)
    assert f"{maker} processors" not in report["not_measured"]
    assert report["not_measured"]


def test_every_ratio_is_there_with_its_limit_and_both_sides(measured):
    ratios = measured[0]["ratios"]
    assert list(ratios) == [quantity.name for quantity in QUANTITIES]
    for quantity in QUANTITIES:
        stated = ratios[quantity.name]
        assert stated["limit"] == quantity.limit
        assert stated["command"].startswith("fpstate bench ")
        if stated["value"] is None:
            assert stated["missing"]
            continue
        assert stated["value"] == pytest.approx(stated["ours"]["min"] / stated["theirs"]["min"], rel=0.01)
        assert stated["met"] is (stated["value"] <= stated["limit"])
        assert stated["ours"]["min"] <= stated["ours"]["median"]


def test_what_needs_no_peer_is_measured(measured):
    ratios = measured[0]["ratios"]
    for name in (
        "switch.portable",
        "python.switch.portable",
        "python.bulk",
        "vcpu.portable",
        "memory.million",
    ):
        assert ratios[name]["value"] > 0


def test_every_round_robin_has_its_baseline_and_the_floor_of_reading(measured):
    walks = measured[0]["many"]["walks"]
    assert {walk["order"] for walk in walks} == {"sequential", "random"}
    for walk in walks:
        assert {"XSAVEC+XRSTOR", "read the lines", "portable"} <= set(walk["ns"])
        assert walk["lines"] * 64 <= walk["slot_bytes"]
        assert walk["ns"]["read the lines"]["min"] < walk["ns"]["XSAVEC+XRSTOR"]["min"]


def test_fewer_bytes_are_resident_for_parked_contexts_than_for_static_blobs(measured):
    rows = {row["what"]: row["each"] for row in measured[0]["memory"]["rows"]}
    assert 0 < rows["contexts, parked"] < rows["static blobs"]
    assert 576 < rows["static blobs"] < 16384


def test_the_picture_is_well_formed_and_has_a_bar_for_each_ratio(measured):
    report, picture = measured
    root = ElementTree.fromstring(picture)
    assert root.tag == f"{SVG}svg"
    texts = {element.text for element in root.iter(f"{SVG}text")}
    assert {name for name, ratio in report["ratios"].items() if ratio["value"] is not None} <= texts
    assert {row["name"] for row in report["peers"]["rows"]} <= texts


def test_the_page_is_made_of_the_report_and_made_anew_the_same(measured):
    report, _ = measured
    page = f"# Before\n\n{BEGIN}\nold figures\n{END}\n\nbehind\n"
    made = replaced(page, report)
    assert made.startswith("# Before\n")
    assert made.endswith("\nbehind\n")
    assert "old figures" not in made
    assert all(f"| `{name}` |" in made for name in report["ratios"])
    assert replaced(made, report) == made
    with pytest.raises(ValueError, match="lacks"):
        replaced("a page without marks", report)


def test_the_text_has_every_ratio_and_table(measured):
    report, _ = measured
    text = "\n".join(lines(report))
    assert all(name in text for name in report["ratios"])
    for title in ("Warm switches", "Switches from Python", "Round robins", "Resident memory", "peers"):
        assert title in text


def test_peers_that_are_not_here_are_named_and_left_out(native, tmp_path):
    if not native.features()["xsavec"]:
        pytest.skip("XSAVEC (CPUID.(0DH,1):EAX[1])")
    done = bench("peers", "python", "--quick", "--json", path=str(tmp_path), hide=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    peers = {row["name"] for row in report["peers"]["rows"]}
    for name in ("swapcontext", "boost.context", "futex, two threads", "greenlet", "gevent.sleep(0)"):
        assert name not in peers
        assert report["missing"][name]
    assert "asyncio.sleep(0)" in peers
    assert report["ratios"]["greenlet.fast"]["value"] is None
    assert "greenlet" in report["ratios"]["greenlet.fast"]["missing"]
    assert report["ratios"]["memory.million"]["missing"] == "section memory was not asked for"


@pytest.fixture
def little_memory(native, monkeypatch):
    """So much that a thousand contexts with slots do not fit, and a few thousand without do."""
    if not native.features()["xsavec"]:
        pytest.skip("XSAVEC (CPUID.(0DH,1):EAX[1])")
    monkeypatch.setattr("fpstate.bench.room.available", lambda: 5_000_000)


def test_with_little_memory_there_are_fewer_contexts_and_it_is_said(little_memory, capsys):
    assert main(["bench", "many", "memory", "--quick", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {walk["contexts"] for walk in report["many"]["walks"]} == {1, 16}
    assert "1,000 contexts need" in report["missing"]["round robins over 1,000 contexts"]
    assert 0 < report["memory"]["contexts"] < 20_000
    assert report["ratios"]["memory.million"]["case"] == f"{report['memory']['contexts']:,}"
    assert "20,000 contexts need" in report["missing"]["some of the contexts"]


def test_a_process_that_fills_memory_and_ends_is_told_of(little_memory, monkeypatch, capsys):
    monkeypatch.setattr("sys.executable", "/bin/false")
    assert main(["bench", "memory", "--quick"]) == 3
    assert "static blobs end with code 1" in capsys.readouterr().err


def test_the_processor_and_the_core_are_as_they_were_afterwards(native, little_memory, capsys):
    before = os.sched_getaffinity(0), native.core_choice()["core"]
    assert main(["bench", "switch", "--quick"]) == 0
    assert (os.sched_getaffinity(0), native.core_choice()["core"]) == before


def test_an_interrupt_leaves_no_process_and_no_folder(measured, tmp_path):
    command = [sys.executable, "-c", "import sys; " + RUN, "bench", "peers", "--repeats", "100000"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    started = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 240
        while len(peers := children(started.pid)) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(started.pid, signal.SIGINT)
        _, said = started.communicate(timeout=240)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
    assert (started.returncode, "Traceback" in said) == (130, False)
    assert list(tmp_path.iterdir()) == []
    assert len(peers) >= 3
    assert [peer for peer in peers if state_of(peer) not in ("gone", "Z")] == []


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def state_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def test_a_picture_in_the_place_of_a_folder_is_refused_before_anything_is_measured(tmp_path, capsys):
    assert main(["bench", "switch", "--quick", "--plot", str(tmp_path)]) == 2
    assert "bench: switch" not in capsys.readouterr().err


def test_a_name_that_is_not_known_is_refused_with_those_that_are(capsys):
    assert main(["bench", "speed"]) == 2
    assert "switch, python, many, vcpu, memory, peers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("times_the_limit", "gate", "code"), [(1.4, True, 0), (1.6, True, 1), (1.6, False, 0)]
)
def test_a_ratio_far_above_its_limit_is_a_finding_where_that_is_asked_for(
    measured, monkeypatch, capsys, times_the_limit, gate, code
):
    report = copy.deepcopy(measured[0])
    for ratio in report["ratios"].values():
        ratio["value"] = ratio["limit"] / 2
    report["ratios"]["vcpu.fast"]["value"] = times_the_limit * report["ratios"]["vcpu.fast"]["limit"]
    monkeypatch.setattr("fpstate.bench.report.measure", lambda *_: report)
    assert main(["bench", "--json", *(["--gate"] if gate else [])]) == code
    captured = capsys.readouterr()
    assert json.loads(captured.out) == report
    assert ("vcpu.fast" in captured.err) is bool(code)


def test_less_than_one_sample_is_refused(capsys):
    assert main(["bench", "--repeats", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err


def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_measured(capsys):
    assert main(["bench", "switch", "--quick", "--plot", "/nowhere/at/all.svg"]) == 2
    said = capsys.readouterr().err
    assert "/nowhere/at/all.svg" in said
    assert "bench: switch" not in said


def test_without_the_core_the_verb_says_what_is_missing(tmp_path: Path):
    script = "import sys; sys.modules['fpstate._core'] = None; " + RUN
    command = [sys.executable, "-c", script, "bench", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "native core" in done.stderr
