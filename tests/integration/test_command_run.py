"""``fpstate run``: what it reports, and what becomes of guests that go wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial

import pytest

from fpstate.arch import Cpu, Layout
from fpstate.command import engine_choice
from fpstate.command import run as verb
from fpstate.command.main import main
from fpstate.command.mix import choose
from fpstate.engine.native import NativeEngine
from fpstate.program import BUILTIN
from fpstate.vso.config import FpuConfig
from fpstate.vso.manager import Manager

FPSTATE = [sys.executable, "-m", "fpstate"]
LEGACY, AVX = 0x3, 0x4
FIELDS = {
    *(
        "schema",
        "engine",
        "cpu",
        "components",
        "vcpus",
        "processors",
        "finished",
        "wrong",
        "checked",
        "ends",
        "faults",
        "switches",
    ),
    *("preemptions", "yields", "seconds", "ns_per_switch", "growths", "parks", "state_bytes_peak"),
    *("state_bytes_end", "static_bytes", "largest_static_bytes", "leaked_bytes", "audit", "problems"),
    "left_out",
}

pytestmark = pytest.mark.usefixtures("native")


@pytest.fixture
def fpstate(capsys):
    """fpstate(*arguments) -> (exit code, report), in this process; no leak audit, whatever is asked."""

    def run(*arguments: str):
        code = main(["run", "--json", "--no-audit", *arguments])
        return code, json.loads(capsys.readouterr().out)

    return run


@pytest.fixture(scope="module")
def default_run(native):
    """The run that a stranger starts first, as JSON, in a process of its own."""
    return subprocess.run([*FPSTATE, "run", "--json"], capture_output=True, text=True, timeout=240)


# What it reports


def test_the_default_mix_finishes_right_and_leaks_nothing(default_run):
    report = json.loads(default_run.stdout)
    assert default_run.returncode == 0
    assert (report["schema"], report["vcpus"], report["finished"]) == ("fpstate-run/1", 1000, 1000)
    assert (report["wrong"], report["checked"], report["faults"]) == (0, 1000, 0)
    assert report["leaked_bytes"] == 0
    assert report["audit"]["leaks"] == report["audit"]["damaged"] == report["problems"] == []


@pytest.mark.parametrize("setting", ["portable", "fast"])
def test_canaries_and_the_leak_audit_come_out_clean_with_either_core(setting):
    done = subprocess.run(
        [*FPSTATE, "run", "--json", "canary", "--vcpus", "400"],
        env=os.environ | {"FPSTATE_CORE": setting},
        capture_output=True,
        text=True,
        timeout=240,
    )
    if done.returncode == 3 and setting == "fast":
        pytest.skip(done.stderr)
    report = json.loads(done.stdout)
    assert (done.returncode, report["finished"], report["wrong"]) == (0, 400, 0)
    assert report["preemptions"] > 100
    assert report["leaked_bytes"] == 0
    assert report["audit"]["leaks"] == report["audit"]["damaged"] == report["problems"] == []


def test_json_is_all_there_is(default_run):
    report = json.loads(default_run.stdout)
    assert set(report) == FIELDS
    told = {"canaries", "searched_bytes", "leaks", "damaged", "not_judged", "components", "not_searched"}
    assert set(report["audit"]) == told
    assert default_run.stderr == ""
    assert default_run.stdout.startswith("{\n")
    assert default_run.stdout.endswith("}\n")


def test_there_were_preemptions_and_their_switches_were_timed(default_run):
    report = json.loads(default_run.stdout)
    assert report["switches"] >= report["preemptions"] >= 1000
    assert 10 < report["ns_per_switch"]["median"] < report["ns_per_switch"]["p99"] < 1e8
    assert report["ns_per_switch"]["samples"] > 1000


def test_state_peaks_below_static_blobs_and_ends_at_nothing(default_run):
    report = json.loads(default_run.stdout)
    config = FpuConfig.from_cpu(Cpu.host())
    largest = FpuConfig.from_cpu(Cpu.catalog("sapphire-rapids"))
    assert report["static_bytes"] == 1000 * config.user_default.size
    assert report["largest_static_bytes"] == 1000 * largest.user_max.size == 1000 * 11008
    assert 0 < report["state_bytes_peak"] < report["static_bytes"]
    assert report["state_bytes_end"] == 0


def test_what_this_processor_cannot_run_is_left_out_with_the_reason(default_run, native):
    usable = native.features()["managed_mask"]
    lacking = {name for name, builtin in BUILTIN.items() if builtin.required & ~usable}
    left_out = json.loads(default_run.stdout)["left_out"]
    assert lacking <= set(left_out)
    assert all(reason.startswith("needs ") for reason in left_out.values())


def test_people_get_the_same_in_words(capsys):
    assert main(["run", "--vcpus", "12", "canary", "spin"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("12 vCPUs on 1 processor, ")
    assert re.search(r"finished +12 of 12 in [\d.]+ s, 0 ended by a fault or limit", text)
    assert re.search(r"results +12 checked, 0 wrong", text)
    assert re.search(r"leak audit +0 bytes leaked, 0 contexts damaged \(48 canaries, \d+ bytes", text)
    assert "!" not in text


# What can be chosen


def test_two_processors_share_the_work(fpstate):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("a second processor")
    code, report = fpstate("--vcpus", "40", "--processors", "2")
    assert (code, report["processors"], report["finished"], report["wrong"]) == (0, 2, 40, 0)


def test_guests_get_guest_state(fpstate):
    code, report = fpstate("--vcpus", "14", "--guest")
    assert (code, report["finished"], report["wrong"]) == (0, 14, 0)


def test_the_seed_changes_the_data_of_every_program(native):
    mix = choose(["sse_nbody", "canary"], Cpu.host(), native.features()["managed_mask"], format=None)
    first, second = mix.jobs(4, 1, None), mix.jobs(4, 100, None)
    assert all(one.seed != other.seed for one, other in zip(first, second, strict=True))
    answers = {
        job.builtin.expected(job.seed, 10) for job in (*first, *second) if job.builtin.name == "sse_nbody"
    }
    assert len(answers) == 4


def test_another_seed_is_computed_right_too(fpstate):
    code, report = fpstate("--vcpus", "14", "--seed", "987654321")
    assert (code, report["checked"], report["wrong"]) == (0, 14, 0)


def test_more_work_takes_more_slices(fpstate):
    _, little = fpstate("--vcpus", "2", "--argument", "1000", "spin")
    _, much = fpstate("--vcpus", "2", "--argument", "3000000", "spin")
    assert much["preemptions"] > little["preemptions"]


def test_every_canary_has_a_pattern_of_its_own(native):
    mix = choose(["canary"], Cpu.host(), native.features()["managed_mask"], format=None)
    assert len({job.seed for job in mix.jobs(100, 1, None)}) == 100


# What it checks


def test_a_wrong_result_is_found_and_its_vcpu_named(fpstate, monkeypatch):
    right = verb.Job.check
    monkeypatch.setattr(
        verb.Job,
        "check",
        lambda job, result, features: right(job, bytes([result[0] ^ 1]) + result[1:], features),
    )
    code, report = fpstate("--vcpus", "2", "spin")
    assert (code, report["wrong"], report["finished"]) == (1, 2, 2)
    assert report["problems"][0].startswith("vCPU 0: spin: ")
    assert report["problems"][1].startswith("vCPU 1: spin: ")


def test_a_leak_is_answered_with_1(capsys, monkeypatch):
    class SkipsAbsentComponents(NativeEngine):
        def restore_mask(self, vso):
            return vso.xfeatures | LEGACY

    if not Manager().config.user_default.features & ~LEGACY:
        pytest.skip("a component beyond x87 and SSE, to leak")
    real = verb.audit
    monkeypatch.setattr(verb, "audit", lambda engine: real(SkipsAbsentComponents(Manager(), timeout=10)))
    assert main(["run", "--json", "--vcpus", "2", "spin"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["finished"] == 2
    assert report["leaked_bytes"] > 0 or report["audit"]["damaged"]


# Guests that go wrong


@pytest.mark.parametrize(
    ("fault", "how"),
    [
        ("divide_by_zero", r"SIGFPE \(vector 0\) at 0x[0-9a-f]+"),
        ("undefined_instruction", r"SIGILL \(vector 6\) at 0x0"),
        ("read_null", r"SIGSEGV \(vector 14\) at 0x[0-9a-f]+, address 0x0"),
        ("bad_stack", r"SIGSEGV \(vector 14\)"),
        ("endless_loop", "used up its processor time"),
        ("yield_for_ever", "used up its processor time"),
        ("failed", "failed with code 0x123"),
        ("oversized_result", "claims 18446744073709551615 bytes of result"),
    ],
)
def test_a_guest_that_goes_wrong_is_named_and_the_others_finish(fpstate, fault, how):
    code, report = fpstate(
        "--vcpus", "8", "--timeout", "100ms", "--argument", "1000", f"faults/{fault}", "canary"
    )
    assert code == 1
    assert (report["finished"], report["faults"], report["checked"], report["wrong"]) == (4, 4, 4, 0)
    (problem,) = report["problems"]
    assert re.match(rf"vCPU 0 and 3 more: {fault}: .*{how}", problem)
    assert report["state_bytes_end"] == 0


def test_a_guest_that_uses_what_it_may_not_is_named_and_the_others_finish(fpstate, monkeypatch, native):
    if not native.features()["managed_mask"] & AVX:
        pytest.skip("AVX is not enabled (XCR0[2])")
    monkeypatch.setattr(engine_choice, "Manager", partial(Manager, policy=LEGACY))
    code, report = fpstate("--vcpus", "6", "spin", "avx_mandelbrot")
    assert code == 1
    assert report["ends"] == {"finished": 3, "denied": 3}
    assert report["wrong"] == 0
    (problem,) = report["problems"]
    assert problem == (
        "vCPU 1 and 2 more: avx_mandelbrot: denied: AVX was used, and only X87|SSE is permitted"
    )


def test_a_thousand_guests_that_go_wrong_leave_the_process_well(fpstate):
    """The endless ones are few, and have so long that no other runs out of time where the machine is busy."""
    faults = ("divide_by_zero", "undefined_instruction", "read_null", "bad_stack")
    programs = [f"faults/{fault}" for fault in (*(faults * 6), "endless_loop")]
    code, report = fpstate("--vcpus", "1000", "--timeout", "50ms", *programs)
    assert code == 1
    assert report["ends"] == {"fault": 960, "expired": 40}
    assert len(report["problems"]) == 5
    assert report["state_bytes_end"] == 0
    code, report = fpstate("--vcpus", "10", "canary")
    assert (code, report["finished"], report["wrong"]) == (0, 10, 0)


# What it refuses


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--vcpus", "0"], "'0' is not a whole number above 0"),
        (["--vcpus", "many"], "'many' is not a whole number above 0"),
        (["--quantum", "5us"], "shorter than 20 us"),
        (["--timeout", "20"], "'20' is not a time such as"),
        (["--memory", "0"], "'0' is not a size such as"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(arguments, what, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["run", *arguments])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert what in captured.err


def test_more_processors_than_there_are_is_refused(capsys):
    number = len(os.sched_getaffinity(0)) + 1
    assert main(["run", "--processors", str(number)]) == 2
    captured = capsys.readouterr()
    assert f"{number} processors asked for, {number - 1} may be used" in captured.err
    assert f"try: use 1 to {number - 1}" in captured.err


def test_memory_that_does_not_hold_the_program_is_refused(capsys):
    assert main(["run", "--memory", "4k", "spin"]) == 2
    captured = capsys.readouterr()
    assert "spin" in captured.err
    assert "memory" in captured.err


def test_memory_that_runs_out_is_said_so_with_the_vcpu_that_got_none(capsys, monkeypatch):
    made = []
    vcpu = NativeEngine.vcpu

    def limited(engine, *arguments, **named):
        if len(made) == 3:
            raise OSError(12, "Cannot allocate memory")
        made.append(vcpu(engine, *arguments, **named))
        return made[-1]

    monkeypatch.setattr(NativeEngine, "vcpu", limited)
    assert main(["run", "--vcpus", "5", "spin"]) == 2
    captured = capsys.readouterr()
    assert "no memory for vCPU 3 of 5" in captured.err
    assert "try: take fewer vCPUs" in captured.err


def test_a_program_for_another_processor_is_unsupported_here(native, capsys):
    if not BUILTIN["avx512_matmul"].required & ~native.features()["managed_mask"]:
        pytest.skip("a processor without AVX-512")
    assert main(["run", "avx512_matmul"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "not supported here: avx512_matmul needs " in captured.err
    assert "try: see: fpstate cpu" in captured.err


# State memory, by what a context uses


def test_contexts_that_use_no_state_hold_none(fpstate):
    _, report = fpstate("--vcpus", "20", "spin")
    assert (report["state_bytes_peak"], report["growths"]) == (0, 0)


def test_contexts_that_use_sse_hold_the_legacy_region_and_the_header(fpstate):
    _, report = fpstate("--vcpus", "20", "sse_nbody")
    assert report["state_bytes_peak"] == 20 * 576
    assert report["growths"] == 20


def test_contexts_that_use_avx_hold_that_too(fpstate, native):
    if not native.features()["managed_mask"] & AVX:
        pytest.skip("AVX is not enabled (XCR0[2])")
    size = FpuConfig.from_cpu(Cpu.host()).kernel_size(LEGACY | AVX)
    _, report = fpstate("--vcpus", "20", "avx_mandelbrot")
    assert report["state_bytes_peak"] == 20 * -(-size // 64) * 64


def ratio_of_the_default_mix(config: FpuConfig) -> float:
    """Peak bytes of the default mix over static blobs, were every context at its most at once."""
    usable, static = config.user_default.features, config.user_default.size
    mix = [
        builtin for builtin in BUILTIN.values() if not builtin.required & ~usable and builtin.name != "probe"
    ]

    def held(builtin) -> int:
        mask = usable & 0xE7 if builtin.name == "canary" else builtin.required
        return config.kernel_size(mask | LEGACY) if mask else 0

    return sum(map(held, mix)) / (len(mix) * static)


def test_with_avx512_sse_costs_a_quarter_of_a_static_blob_and_the_mix_less_than_six_tenths():
    zen4 = Cpu.catalog("zen4")
    blob = Layout.standard(zen4, 0xE7).size
    assert blob == 2432
    assert FpuConfig.from_cpu(zen4).kernel_size(LEGACY) <= 0.25 * blob
    assert ratio_of_the_default_mix(FpuConfig.from_cpu(zen4)) <= 0.60


def test_without_avx512_the_legacy_region_is_most_of_the_blob():
    config = FpuConfig.from_cpu(Cpu.catalog("haswell"))
    assert config.user_default.size == 832
    assert config.kernel_size(LEGACY) / config.user_default.size == pytest.approx(0.69, abs=0.005)
    assert ratio_of_the_default_mix(config) == pytest.approx(0.68, abs=0.005)


def test_the_estimate_is_what_a_run_measures(default_run):
    report = json.loads(default_run.stdout)
    estimate = ratio_of_the_default_mix(FpuConfig.from_cpu(Cpu.host()))
    assert report["state_bytes_peak"] / report["static_bytes"] == pytest.approx(estimate, abs=0.06)
