"""What is not a guest's goes where it went before: host faults, sent signals, handlers, signal stacks."""

import ctypes
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
from engine_runs import QUANTUM
from live_processes import wait_until

from fpstate.engine.native import NativeEngine
from fpstate.program import BUILTIN, FAULTS
from fpstate.vso.manager import Manager
from fpstate.vso.vcpu import ExitKind

FAULT_SIGNALS = (signal.SIGSEGV, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP, signal.SIGBUS)
SA_RESTORER = 0x04000000
"""What glibc adds to every action that it sets."""
PROLOGUE = """
    import ctypes, faulthandler, os, signal, sys, threading, time
    from fpstate.engine.native import NativeEngine
    from fpstate.program import BUILTIN, FAULTS
    from fpstate.vso.manager import Manager

    engine = NativeEngine(Manager())
    queue = engine.queue()

    def run(name, argument=0, seconds=100.0):
        vcpu = engine.vcpu({**BUILTIN, **FAULTS}[name].load(), argument=argument)
        queue.add(vcpu)
        queue.run(100_000, int(seconds * 1e9))
        return vcpu

    def run_until(happened):
        vcpu = run("spin", 10**12, seconds=0.3)
        while not happened():
            queue.run(100_000, 300_000_000)
        return vcpu
"""


@pytest.fixture
def script(native):
    """Run Python code in a process of its own that has an engine and a queue."""

    def run(body: str) -> subprocess.CompletedProcess[str]:
        code = textwrap.dedent(PROLOGUE) + textwrap.dedent(body)
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False
        )

    return run


class StackT(ctypes.Structure):
    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack() -> tuple[int | None, int, int]:
    """The alternate signal stack of this thread."""
    stack = StackT()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    return stack.sp, stack.flags, stack.size


def actions() -> list[tuple[bytes, int]]:
    """Handler with the kernel's part of the mask, and flags, of each signal that the core takes over."""
    libc, found = ctypes.CDLL(None), []
    for number in FAULT_SIGNALS:
        action = ctypes.create_string_buffer(152)
        assert libc.sigaction(int(number), None, action) == 0
        flags = int.from_bytes(action.raw[136:140], "little") & ~SA_RESTORER
        found.append((action.raw[:16], flags))
    return found


def test_a_host_fault_beside_a_running_guest_reaches_faulthandler(script) -> None:
    ended = script(
        """
        faulthandler.enable()
        def host_fault():
            time.sleep(0.2)
            ctypes.string_at(0)
        threading.Thread(target=host_fault).start()
        run("spin", 10**12)
        """
    )
    assert ended.returncode == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in ended.stderr
    assert "in host_fault" in ended.stderr


def test_without_faulthandler_a_host_fault_ends_the_process_as_ever(script) -> None:
    ended = script(
        """
        def host_fault():
            time.sleep(0.2)
            ctypes.string_at(0)
        threading.Thread(target=host_fault).start()
        run("spin", 10**12)
        """
    )
    assert ended.returncode == -signal.SIGSEGV


def test_a_host_fault_after_runs_reaches_faulthandler(script) -> None:
    ended = script(
        """
        faulthandler.enable()
        assert run("read_null").exit.signal == "SIGSEGV"
        ctypes.string_at(0)
        """
    )
    assert ended.returncode == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in ended.stderr


def test_guests_that_fault_do_not_reach_faulthandler(script) -> None:
    ended = script(
        """
        faulthandler.enable()
        print(*(run(name).exit.signal for name in ("read_null", "undefined_instruction", "divide_by_zero")))
        """
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.split() == ["SIGSEGV", "SIGILL", "SIGFPE"]


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGFPE", "SIGTRAP"])
def test_a_sent_signal_without_a_handler_ends_the_process(script, name: str) -> None:
    ended = script(
        f"""
        threading.Timer(0.2, os.kill, (os.getpid(), signal.{name})).start()
        run("spin", 10**12)
        """
    )
    assert ended.returncode == -getattr(signal, name)


@pytest.mark.parametrize("name", ["SIGFPE", "SIGSEGV", "SIGBUS"])
def test_a_handler_of_before_gets_a_signal_that_is_sent_during_a_run(script, name: str) -> None:
    ended = script(
        f"""
        met = []
        signal.signal(signal.{name}, lambda number, frame: met.append(number))
        threading.Timer(0.1, signal.pthread_kill, (threading.get_ident(), signal.{name})).start()
        vcpu = run_until(lambda: met)
        assert (vcpu.exit, met) == (None, [signal.{name}]), (vcpu.exit, met)
        os.kill(os.getpid(), signal.{name})
        assert len(met) == 2
        queue.clear()
        assert run("spin", 1000).exit.kind.value == "finished"
        """
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_handler_in_c_gets_its_signal_with_its_arguments(script) -> None:
    ended = script(
        """
        class Action(ctypes.Structure):
            _fields_ = (("handler", ctypes.c_void_p), ("mask", ctypes.c_ulong * 16), ("flags", ctypes.c_int),
                        ("restorer", ctypes.c_void_p))
        libc = ctypes.CDLL(None)
        met = (ctypes.c_int * 1)()
        action, SA_SIGINFO = Action(), 4
        # A C function that is safe in a handler, of the right shape: ffs does nothing, and returns.
        action.handler = ctypes.cast(libc.ffs, ctypes.c_void_p).value
        action.flags = SA_SIGINFO
        assert libc.sigaction(signal.SIGFPE, ctypes.byref(action), None) == 0
        timer = threading.Timer(0.1, signal.pthread_kill, (threading.get_ident(), signal.SIGFPE))
        timer.start()
        assert run_until(lambda: not timer.is_alive()).exit is None
        after = Action()
        assert libc.sigaction(signal.SIGFPE, None, ctypes.byref(after)) == 0
        assert (after.handler, after.flags & SA_SIGINFO) == (action.handler, SA_SIGINFO)
        """
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_an_ignored_signal_stays_ignored(script) -> None:
    ended = script(
        """
        signal.signal(signal.SIGFPE, signal.SIG_IGN)
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGFPE))
        timer.start()
        assert run_until(lambda: not timer.is_alive()).exit is None
        assert signal.getsignal(signal.SIGFPE) is signal.SIG_IGN
        """
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_after_a_run_all_is_as_before(native) -> None:
    before = actions(), signal_stack(), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    engine = NativeEngine(Manager())
    for program in (BUILTIN["spin"].load(), FAULTS["read_null"].load(), FAULTS["bad_stack"].load()):
        queue = engine.queue()
        queue.add(engine.vcpu(program, argument=1000))
        assert queue.run(QUANTUM, 10**9).exit is not None
    assert (actions(), signal_stack(), signal.pthread_sigmask(signal.SIG_BLOCK, ())) == before


def test_a_signal_stack_of_the_thread_s_own_comes_back(native) -> None:
    memory = ctypes.create_string_buffer(1 << 16)
    own, nothing = StackT(ctypes.addressof(memory), 0, 1 << 16), StackT(None, 2, 0)
    libc, found = ctypes.CDLL(None), []

    def work() -> None:
        assert libc.sigaltstack(ctypes.byref(own), None) == 0
        engine = NativeEngine(Manager())
        queue = engine.queue()
        queue.add(engine.vcpu(FAULTS["read_null"].load()))
        queue.run(QUANTUM, 10**9)
        found.append(signal_stack())
        libc.sigaltstack(ctypes.byref(nothing), None)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(own.sp, 0, own.size)]


def test_while_a_guest_runs_the_core_s_handlers_are_in_place(native) -> None:
    """The control of the two tests above: during a run the actions do differ."""
    engine, before = NativeEngine(Manager()), actions()
    thread = threading.Thread(target=wait_until, args=(lambda: actions() != before,))
    queue = engine.queue()
    queue.add(engine.vcpu(BUILTIN["spin"].load(), argument=10**12))
    thread.start()
    while thread.is_alive():
        queue.run(QUANTUM, 300_000_000)
    assert actions() == before


def test_faults_meet_the_guest_of_their_own_thread(native) -> None:
    """Two threads run guests that fault; each end belongs to the vCPU that went wrong."""
    engine, wrong = NativeEngine(Manager()), []

    def work(name: str) -> None:
        queue = engine.queue()
        for _ in range(200):
            queue.add(engine.vcpu(FAULTS[name].load()))
            vcpu = queue.run(QUANTUM, 10**9)
            if (vcpu.exit.kind, vcpu.exit.signal) != (ExitKind.FAULT, FAULTS[name].signal):
                wrong.append(vcpu.exit)

    threads = [
        threading.Thread(target=work, args=(name,)) for name in ("halt", "divide_by_zero", "breakpoint")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
