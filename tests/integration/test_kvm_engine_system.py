"""What the KVM engine takes of the system it gives back, and where it cannot work it says why."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from kvm_runs import LONG_NS, QUANTUM, check, run_all, turn
from live_processes import PATIENCE, wait_until

from fpstate.command.main import main
from fpstate.engine import availability
from fpstate.engine.kvm import device as device_module
from fpstate.engine.kvm import engine as engine_module
from fpstate.engine.kvm import vcpu as vcpu_module
from fpstate.engine.kvm.abi import IOCTLS
from fpstate.engine.kvm.arena import Arena
from fpstate.engine.kvm.device import Device
from fpstate.engine.kvm.engine import KvmEngine, missing
from fpstate.engine.kvm.session import Session
from fpstate.engine.kvm.ticker import Ticker, tick_signal
from fpstate.engine.kvm.vcpu import Machine
from fpstate.errors import KvmError, PoolExhausted, UnsupportedHere, VsoError
from fpstate.program import BUILTIN, FAULTS
from fpstate.vso.manager import Manager
from fpstate.vso.vcpu import ExitKind

CANARY, SPIN = BUILTIN["canary"], BUILTIN["spin"]
FPSTATE = [sys.executable, "-m", "fpstate"]
MIB = 1 << 20
LOCKED = {"borrow", "give_back", "take", "give"}
"""They hold a lock in a ``with``, which an exception raised by a trace function, unlike a signal's, leaves held."""


def files() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{entry.name} {entry.readlink()}")
        except FileNotFoundError:
            continue
    return found


def kvm_files() -> set[str]:
    return {file for file in files() if "kvm" in file}


# What it takes and gives back


def test_many_engines_leave_no_file_thread_or_memory_behind(kvm):
    kvm()

    def one() -> None:
        engine = KvmEngine(Manager(), timeout=10)
        run_all(engine, [engine.vcpu(CANARY.load(), seed=seed, argument=200) for seed in range(4)])
        engine.close()
        engine.close()

    for _ in range(5):
        one()
    gc.collect()
    before = files(), threading.active_count(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(40):
        one()
    gc.collect()
    assert (files(), threading.active_count()) == before[:2]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before[2] < 16 * 1024  # KiB


def test_an_engine_that_nobody_holds_is_closed(kvm):
    kvm().close()
    before = kvm_files()
    engine = KvmEngine(Manager())
    engine.vcpu(SPIN.load())
    assert len(kvm_files()) > len(before)
    del engine
    gc.collect()
    assert kvm_files() == before


def test_a_closed_engine_says_so(kvm):
    engine = kvm()
    guest = engine.vcpu(SPIN.load(), argument=10)
    queue = engine.queue()
    queue.add(guest)
    engine.close()
    with pytest.raises(VsoError, match="closed"):
        engine.vcpu(SPIN.load())
    with pytest.raises(VsoError, match="closed"):
        queue.run(QUANTUM, 1_000_000)


def test_memory_of_guests_that_ended_goes_back_to_the_system(kvm):
    engine = kvm()
    for _ in range(6):
        guests = [engine.vcpu(SPIN.load(), argument=10, memory_size=MIB) for _ in range(16)]
        run_all(engine, guests)
        assert {guest.exit.kind for guest in guests} == {ExitKind.FINISHED}
    assert engine.arena.bytes_mapped <= 24 * MIB


def test_memory_of_guests_that_follow_each_other_goes_back_to_the_system(kvm):
    engine = kvm()
    for _ in range(40):
        run_all(engine, [engine.vcpu(SPIN.load(), argument=10, memory_size=MIB)])
    assert engine.arena.bytes_mapped <= 16 * MIB
    with Session() as session:
        for _ in range(40):
            session.start(SPIN.load(), argument=10, memory_size=MIB)
        assert session.finish().result is not None
        assert session.arena.bytes_mapped <= 16 * MIB


@pytest.mark.parametrize("room", [5, 6])
def test_a_guest_for_whose_kvm_vcpu_no_file_is_left_is_refused_alone(kvm, room):
    """A KVM vCPU takes two files: its own, and the mapping's."""
    engine = kvm(each=True)
    guests = [engine.vcpu(SPIN.load(), argument=200_000) for _ in range(8)]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(file.split()[0]) for file in files())
    spare = [os.dup(0) for _ in range(highest)]  # so that no number below is free
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(spare) + 1 + room, before[1]))
        run_all(engine, guests)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for number in spare:
            os.close(number)
    refused = [guest for guest in guests if guest.exit.kind is ExitKind.REFUSED]
    assert 0 < len(refused) < len(guests)
    assert all("(EMFILE)" in str(guest.exit) for guest in refused)
    assert {guest.exit.kind for guest in guests if guest not in refused} == {ExitKind.FINISHED}


def test_no_memory_for_a_guest_is_told_and_leaves_nothing(kvm, monkeypatch):
    engine = kvm()

    def fail(arena: Arena, size: int) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with Session() as session:
        monkeypatch.setattr(Arena, "take", fail)
        for make in (engine.vcpu, session.start):
            with pytest.raises(PoolExhausted, match="no memory for a guest of 65536 bytes"):
                make(SPIN.load())
    assert engine.manager.statistics().contexts == 0


def test_an_engine_that_fails_half_made_leaves_nothing(kvm, monkeypatch):
    kvm().close()
    before = kvm_files()

    def fail(machine: Machine, *arguments: object) -> None:
        raise KvmError("KVM_SET_USER_MEMORY_REGION", errno.ENOMEM)

    monkeypatch.setattr(Machine, "map", fail)
    with pytest.raises(KvmError, match=r"KVM_SET_USER_MEMORY_REGION failed: .* \(ENOMEM\)"):
        KvmEngine(Manager())
    gc.collect()
    assert kvm_files() == before


def test_signals_are_as_they_were_after_a_run(kvm):
    engine = kvm()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    run_all(engine, [engine.vcpu(CANARY.load(), seed=1, argument=5000)])
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    assert signal.sigpending() == set()


def test_a_quick_timer_keeps_no_virtual_machine_from_being_made(kvm):
    """KVM_CREATE_VM gives up where a signal is pending; this timer leaves it no time without one."""
    kvm()
    ticks = []
    before = signal.signal(signal.SIGALRM, lambda *arguments: ticks.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
    try:
        for _ in range(20):
            with Device() as device, Machine(device) as machine:
                machine.vcpu()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ticks


def test_an_ioctl_that_a_signal_cut_short_is_done_again_without_signals(kvm, monkeypatch):
    kvm()
    real, masks = device_module.fcntl.ioctl, []

    def once(file: int, number: int, *arguments: object) -> int:
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        if len(masks) == 1:
            raise InterruptedError(errno.EINTR, "")
        return real(file, number, *arguments)

    with Device() as device:
        monkeypatch.setattr(device_module.fcntl, "ioctl", once)
        assert device.capability("KVM_CAP_XSAVE") == 1
    assert signal.SIGALRM not in masks[0]
    assert signal.SIGALRM in masks[1]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == masks[0]


def test_a_tick_before_kvm_run_stops_the_guest_all_the_same(kvm):
    """The tick comes before the guest is entered, every time: it must not run on for ever."""
    engine = kvm(vcpus=1)
    guest = engine.vcpu(FAULTS["endless_loop"].load())
    carrier = engine.carriers.borrow(0)
    carrier.load(guest)
    with Ticker(engine.tick) as ticker:
        for _ in range(200):
            ticker.arm(1)
            while engine.tick not in signal.sigpending():
                pass
            carrier.prepare()
            carrier.run()
            assert carrier.save(guest)[0].why.value == "preempted"
            ticker.forget()
    assert guest.context["rip"] == guest.memory.entry
    assert guest.exit is None


def test_no_tick_is_left_behind(kvm):
    tick = tick_signal()
    for nanoseconds in (1000, 50_000, 10_000_000):
        with Ticker(tick) as ticker:
            ticker.arm(nanoseconds)
            time.sleep(0.0001)
        assert tick not in signal.sigpending()
    time.sleep(0.02)
    assert tick not in signal.sigpending()


# Interrupts


@pytest.mark.parametrize("each", [False, True], ids=["shared", "one each"])
def test_an_interrupt_leaves_guests_that_go_on_to_the_right_result(kvm, each):
    """Python's handler may run between any two steps of the queue: here, after each function of it in turn."""
    engine = kvm(each=each, vcpus=None if each else 1)
    arguments = [60_000, 60_000, 60_000, *([300] * 60)]
    guests = [
        engine.vcpu(CANARY.load(), seed=seed, argument=argument) for seed, argument in enumerate(arguments)
    ]
    queue = engine.queue()
    for guest in guests:
        queue.add(guest)
    interrupted = _interrupt_everywhere(queue)
    while len(queue):
        queue.run(QUANTUM, 20_000_000)
    assert interrupted > 60
    assert [check(guest, seed, arguments[seed]) for seed, guest in enumerate(guests)] == [None] * len(guests)
    assert engine.manager.statistics().contexts == 0


def _interrupt_everywhere(queue) -> int:
    """Raise KeyboardInterrupt at each line of the engine in turn."""
    package = str(Path(engine_module.__file__).parent)
    skipped = {"__exit__", "__enter__", "_drain", "_shared_carrier", *LOCKED}
    interrupted = 0
    for number in range(0, 400, 2):
        left = number

        def trace(frame, event, argument):
            nonlocal left
            inside = frame.f_code.co_filename.startswith(package)
            if event == "line" and inside and frame.f_code.co_name not in skipped:
                left -= 1
                if left == 0:
                    raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            queue.run(QUANTUM, LONG_NS, 3)
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            sys.settrace(None)
    return interrupted


def runs_guests(command: subprocess.Popen) -> bool:
    """Whether a command is past its start: a thread of it is in KVM_RUN, where all signals but the tick are blocked."""
    assert command.poll() is None
    for task in Path(f"/proc/{command.pid}/task").iterdir():
        with contextlib.suppress(OSError):
            (blocked,) = re.findall(r"^SigBlk:\s*(\w+)", (task / "status").read_text(), re.MULTILINE)
            if int(blocked, 16) >> signal.SIGINT - 1 & 1:
                return True
    return False


def test_ctrl_c_ends_the_command_tidily(kvm):
    kvm()
    command = [
        *FPSTATE,
        "run",
        "--engine",
        "kvm",
        "--vcpus",
        "20",
        "--argument",
        "100000000000",
        "--processors",
    ]
    for processors in ("1", str(min(2, len(os.sched_getaffinity(0))))):
        with subprocess.Popen(
            [*command, processors, "spin"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as run:
            try:
                wait_until(lambda: runs_guests(run))
                run.send_signal(signal.SIGINT)
                _, error = run.communicate(timeout=PATIENCE)
            finally:
                run.kill()
        assert run.returncode == 130
        assert b"Traceback" not in error


def test_a_process_that_is_killed_while_guests_run_leaves_none(kvm):
    kvm()
    command = [*FPSTATE, "run", "--engine", "kvm", "--vcpus", "20", "--argument", "100000000000", "spin"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as run:
        wait_until(lambda: runs_guests(run))
        run.kill()
        assert run.wait(PATIENCE) == -signal.SIGKILL
    engine = kvm()
    guest = engine.vcpu(CANARY.load(), seed=3, argument=2000)
    run_all(engine, [guest])
    assert check(guest, 3, 2000) is None


# Where it cannot work


def test_it_is_among_the_engines(kvm):
    kvm()
    assert {item.name: item.works for item in availability()}["kvm"]


def test_no_device_is_told(tmp_path):
    assert missing(str(tmp_path / "kvm")) == f"{tmp_path}/kvm does not exist"


def test_a_device_that_is_no_kvm_is_told():
    assert "is not KVM: KVM_GET_API_VERSION failed" in missing("/dev/null")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_device_that_may_not_be_opened_is_told(monkeypatch, number):
    def refuse(path: str, flags: int) -> int:
        raise PermissionError(number, os.strerror(number), path)

    monkeypatch.setattr(device_module.os, "open", refuse)
    assert missing() == f"/dev/kvm may not be opened ({errno.errorcode[number]})"


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"KVM_GET_API_VERSION": 11}, "KVM's API version is 11, not 12"),
        ({"KVM_CAP_XSAVE": 0}, "KVM_CAP_XSAVE, which this KVM is too old for"),
        ({"KVM_CAP_DEBUGREGS": 0}, "KVM_CAP_DEBUGREGS, which this KVM is too old for"),
        ({"KVM_CAP_IMMEDIATE_EXIT": 0}, "KVM_CAP_IMMEDIATE_EXIT, which this KVM is too old for"),
    ],
)
def test_a_kvm_that_is_too_old_is_told(kvm, monkeypatch, answers, reason):
    kvm()
    _answer(monkeypatch, answers)
    with pytest.raises(UnsupportedHere) as caught:
        Device()
    assert caught.value.missing == reason


def test_no_xsave2_means_4096_bytes_and_the_older_ioctl(kvm, monkeypatch):
    kvm()
    _answer(monkeypatch, {"KVM_CAP_XSAVE2": 0, "KVM_CAP_SYS_ATTRIBUTES": 0})
    engine = kvm()
    guests = [engine.vcpu(CANARY.load(), seed=seed, argument=5000) for seed in range(3)]
    run_all(engine, guests)
    assert [check(guest, seed, 5000) for seed, guest in enumerate(guests)] == [None] * 3
    carrier = engine.carriers.borrow(0)
    assert (carrier.kvm.has_xsave2, carrier.kvm.xsave_size) == (False, 4096)


def test_a_session_refuses_a_kvm_that_would_cut_its_states_short(kvm, monkeypatch):
    kvm()
    monkeypatch.setattr(Device, "xsave_size", property(lambda device: 575))
    with pytest.raises(UnsupportedHere, match="KVM_CAP_XSAVE2: KVM gives 575 bytes"):
        Session()


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EOPNOTSUPP])
def test_virtualization_in_other_hands_is_unsupported_and_told(kvm, monkeypatch, capsys, number):
    kvm()
    real = vcpu_module.ioctl

    def refuse(file: int, name: str, *arguments: object) -> int:
        if name == "KVM_CREATE_VM":
            raise KvmError(name, number)
        return real(file, name, *arguments)

    monkeypatch.setattr(vcpu_module, "ioctl", refuse)
    reason = f"KVM_CREATE_VM failed: {os.strerror(number)} ({errno.errorcode[number]})"
    assert reason in (missing() or "")
    for command in (["run", "--engine", "kvm"], ["kvm", "info"], ["kvm", "reset"]):
        assert main(command) == 3
        assert reason in capsys.readouterr().err


def _answer(monkeypatch, answers: dict[str, int]) -> None:
    real = device_module.ioctl

    def answer(file, name, argument=0):
        if name == "KVM_CHECK_EXTENSION":
            asked = next(key for key, number in device_module.CAPABILITIES.items() if number == argument)
        else:
            asked = name
        return answers[asked] if asked in answers else real(file, name, argument)

    monkeypatch.setattr(device_module, "ioctl", answer)


def test_without_kvm_the_command_answers_3(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(engine_module, "_open", lambda path: Device(str(tmp_path / "kvm")))
    assert main(["run", "--engine", "kvm", "--vcpus", "2"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "not supported here" in captured.err
    assert "does not exist" in captured.err


def test_a_failing_ioctl_is_told_by_its_name(kvm):
    kvm()
    with Device() as device, Machine(device) as machine:
        vcpu = machine.vcpu()
        with pytest.raises(KvmError) as caught:
            vcpu.set_xcr0(2)
        assert (caught.value.ioctl, caught.value.errno) == ("KVM_SET_XCRS", errno.EINVAL)
        with pytest.raises(ValueError, match="4095 bytes given"):
            vcpu.set_xsave(bytearray(4095))
    assert len(set(IOCTLS.values())) == len(IOCTLS)


# The command


def test_run_gives_the_native_report(kvm, native, capsys):
    kvm()
    reports = {}
    for name in ("native", "kvm"):
        assert main(["run", "--json", "--engine", name, "--vcpus", "27"]) == 0
        reports[name] = json.loads(capsys.readouterr().out)
    assert reports["kvm"].keys() == reports["native"].keys()
    assert [reports[name]["engine"] for name in reports] == ["native", "kvm"]
    same = (
        "schema",
        "vcpus",
        "processors",
        "finished",
        "wrong",
        "checked",
        "ends",
        "faults",
    )
    assert [reports["kvm"][field] for field in same] == [reports["native"][field] for field in same]
    assert reports["kvm"]["left_out"].keys() == reports["native"]["left_out"].keys()
    assert (
        min(reports[name]["growths"] for name in reports) > 0
    )  # how many, depends on where guests were preempted
    assert reports["kvm"]["leaked_bytes"] == 0
    assert reports["kvm"]["audit"]["canaries"] == 48


@pytest.mark.parametrize("vcpus", ["1", "2", "each"])
def test_the_number_of_kvm_vcpus_can_be_chosen(kvm, capsys, vcpus):
    kvm()
    assert main(["run", "--json", "--no-audit", "--engine", "kvm", "--kvm-vcpus", vcpus, "--vcpus", "9"]) == 0
    assert json.loads(capsys.readouterr().out)["finished"] == 9


def test_an_option_of_another_engine_is_refused(capsys):
    assert main(["run", "--kvm-vcpus", "2"]) == 2
    assert "--kvm-vcpus is for --engine kvm" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "some"])
def test_a_number_of_kvm_vcpus_that_makes_no_sense_is_refused(capsys, value):
    with pytest.raises(SystemExit):
        main(["run", "--engine", "kvm", "--kvm-vcpus", value])
    assert f"'{value}' is not a whole number above 0" in capsys.readouterr().err


def test_faults_are_named_as_natively(kvm, capsys):
    kvm()
    assert main(["run", "--engine", "kvm", "--no-audit", "--vcpus", "4", "faults/read_null", "spin"]) == 1
    assert "vCPU 0 and 1 more: read_null: SIGSEGV (vector 14) at 0x2, address 0x0" in capsys.readouterr().out


def test_turning_guests_by_hand_is_what_the_scheduler_does(kvm):
    engine = kvm()
    guests = [engine.vcpu(CANARY.load(), seed=seed, argument=20_000) for seed in range(4)]
    while any(guest.exit is None for guest in guests):
        turn(engine, [guest for guest in guests if guest.exit is None], 7)
    assert [check(guest, seed, 20_000) for seed, guest in enumerate(guests)] == [None] * 4
