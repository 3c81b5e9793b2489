"""Every register of every thread of real processes, and nothing left stopped or traced."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from live_processes import (
    PATIENCE,
    assert_free,
    compile_target,
    compile_target_32,
    running,
    statuses,
    wait_until,
)

from fpstate import Float80
from fpstate.errors import SourceError, UnsupportedHere
from fpstate.image import Image
from fpstate.source import ptrace
from fpstate.source.process import process_threads, snapshot
from fpstate.source.thread import ThreadState

pytestmark = pytest.mark.usefixtures("core")

READER = """
import sys
from fpstate.source.process import snapshot
pid = int(sys.argv[1])
snapshot(pid)
print("go", flush=True)
while True:
    snapshot(pid)
"""


@pytest.fixture(scope="module")
def target(gcc: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_target(gcc, tmp_path_factory.mktemp("live"))


@pytest.fixture
def counter(tmp_path: Path) -> Path:
    path = tmp_path / "shared"
    path.write_bytes(bytes(4096))
    return path


def counted(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[:8], "little")


def expected(index: int, avx: bool) -> dict[str, int]:
    """What the filling thread of this number has in its registers."""
    width = 32 if avx else 16
    values = {
        f"{'ymm' if avx else 'xmm'}{r}": int.from_bytes(
            bytes((37 * index + 11 * r + 3 * b + 1) & 0xFF for b in range(width)), "little"
        )
        for r in range(16)
    }
    for i in range(8):
        values[f"st{i}"] = Float80.from_float(100 * index + i + 0.5).bits
    return {
        **values,
        "mxcsr": 0x1F80 | index % 4 << 13,
        "fctrl": 0x37F | index % 4 << 10,
        "ftag_abridged": 0xFF,
    }


def wrong(image: Image, index: int) -> list[str]:
    registers = image.registers
    values = expected(index, "ymm0" in registers)
    return [name for name, value in values.items() if registers[name] != value]


def filled(threads: list[ThreadState]) -> dict[int, Image]:
    return {int(each.name.split()[1]): each.image for each in threads if each.name.startswith("fill ")}


def test_every_register_is_right_in_every_thread(target: Path) -> None:
    with running(target, "fill", "20") as process:
        threads = process_threads(process.pid)
        assert threads[0].tid == process.pid
        assert {each.machine for each in threads} == {"x86-64"}
        assert {each.image.layout_source for each in threads} == {"host"}
        images = filled(threads)
        assert sorted(images) == list(range(1, 21))
        assert {index: wrong(image, index) for index, image in images.items() if wrong(image, index)} == {}
        assert_free(process.pid)


def test_a_thread_compared_with_another_one_differs(target: Path) -> None:
    with running(target, "fill", "4") as process:
        images = filled(process_threads(process.pid))
    for index, image in images.items():
        other = index % 4 + 1
        assert {"st0", "st7", "mxcsr", "fctrl"} <= set(wrong(image, other))
        assert sum(name.startswith(("xmm", "ymm")) for name in wrong(image, other)) == 16


def test_a_32_bit_process(gcc: str, tmp_path: Path) -> None:
    target = compile_target_32(gcc, tmp_path)
    if target is None:
        pytest.skip("gcc -m32 does not work here")
    with running(target) as process:
        (thread,) = process_threads(process.pid)
        registers = thread.image.registers
        assert thread.machine == "i386"
        assert registers["mxcsr"] == 0x7F80
        assert registers["st0"] == Float80.from_float(1.5).bits
        for r in range(8):
            assert registers[f"xmm{r}"].to_bytes(16, "little") == bytes(
                11 * r + 3 * b + 1 & 0xFF for b in range(16)
            )
        assert_free(process.pid)


def test_all_threads_stand_still_together_and_for_how_long_is_told(target: Path) -> None:
    with running(target, "sleep", "200") as process:
        start = time.monotonic()
        found = snapshot(process.pid)
        took = time.monotonic() - start
        assert len(found.threads) == 200
        assert 0 < found.longest <= found.stop <= took
        assert_free(process.pid)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_reader_that_is_killed_at_any_moment_leaves_nothing_stopped(
    target: Path, how: signal.Signals
) -> None:
    generator = random.Random(how)
    with running(target, "sleep", "200") as process:
        for _ in range(20 if how == signal.SIGKILL else 5):
            reader = subprocess.Popen(
                [sys.executable, "-c", READER, str(process.pid)],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"go\n"
            time.sleep(generator.uniform(0, 0.03))
            reader.send_signal(how)
            assert reader.wait(PATIENCE) != 0
            reader.stdout.close()
            assert_free(process.pid, "RS")
        assert len(process_threads(process.pid)) == 200


def test_a_reader_that_is_killed_while_it_reads_was_reading(target: Path) -> None:
    """The control for the one above: the moments do fall into the time when threads stand still."""
    with running(target, "sleep", "200") as process:
        reader = subprocess.Popen([sys.executable, "-c", READER, str(process.pid)], stdout=subprocess.PIPE)
        assert reader.stdout is not None
        reader.stdout.readline()
        wait_until(lambda: any(tracer for _, tracer in statuses(process.pid).values()))
        reader.kill()
        reader.wait()
        reader.stdout.close()
        assert_free(process.pid, "RS")


def test_ctrl_c_is_raised_after_the_threads_are_let_go(target: Path) -> None:
    with running(target, "sleep", "200") as process:
        timer = threading.Timer(0.05, signal.raise_signal, [signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - whichever snapshot it meets
            while True:
                snapshot(process.pid)
        timer.join()
        assert_free(process.pid, "RS")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_what_an_edit_raises_is_raised_and_nothing_is_written(
    target: Path, error: type[BaseException]
) -> None:
    def refuse(regset: bytes) -> bytes:
        state, tracer = statuses(process.pid)[process.pid]
        assert state == "t"
        assert tracer
        raise error

    with running(target, "fill", "1") as process:
        (tid,) = (each.tid for each in process_threads(process.pid) if each.name == "fill 1")
        with pytest.raises(error):
            ptrace.edit(process.pid, ptrace.host_layout(), 2, refuse)
        with pytest.raises(ValueError, match="5 bytes"):
            ptrace.edit(tid, ptrace.host_layout(), 2, lambda regset: regset[:5])
        assert_free(process.pid, "RS")
        assert wrong(filled(process_threads(process.pid))[1], 1) == []


def test_a_target_that_dies_meanwhile_is_no_hang_and_can_be_waited_for(target: Path) -> None:
    for delay in (0, 0.002, 0.005, 0.01):
        with running(target, "sleep", "200") as process:
            killer = threading.Timer(delay, process.kill)
            killer.start()
            with pytest.raises(SourceError, match="ended"):  # noqa: PT012 - whichever snapshot it meets
                while True:
                    assert len(snapshot(process.pid).threads) <= 200
            killer.join()
            assert process.wait(PATIENCE) == -signal.SIGKILL


def test_a_wait_for_the_target_by_another_thread_sees_no_stop(target: Path) -> None:
    with running(target, "sleep", "50") as process:
        done = threading.Event()

        def read() -> None:
            while not done.is_set():
                snapshot(process.pid)

        reader = threading.Thread(target=read)
        reader.start()
        polls = [process.poll() for _ in range(20000)]
        done.set()
        reader.join()
        assert set(polls) == {None}


def test_threads_that_come_and_go_do_not_disturb(target: Path, counter: Path) -> None:
    with running(target, "churn", "8", counter) as process:
        for _ in range(30):
            found = snapshot(process.pid)
            assert found.threads[0].tid == process.pid
            assert not found.unread
        before = counted(counter)
        wait_until(lambda: counted(counter) > before)
        assert_free(process.pid)


def test_what_was_stopped_before_stays_stopped_and_can_go_on(target: Path) -> None:
    with running(target, "fill", "3") as process:
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: {state for state, _ in statuses(process.pid).values()} == {"T"})
        images = filled(process_threads(process.pid))
        assert all(wrong(image, index) == [] for index, image in images.items())
        assert_free(process.pid, "T")
        process.send_signal(signal.SIGCONT)
        assert_free(process.pid, "RS")


def test_a_leader_that_has_left_is_passed_over(target: Path) -> None:
    with running(target, "leaderless", "4") as process:
        wait_until(lambda: statuses(process.pid)[process.pid][0] == "Z")
        threads = process_threads(process.pid)
        assert len(threads) == 3
        assert process.pid not in {each.tid for each in threads}
        assert_free(process.pid, "RSZ")


@pytest.mark.parametrize("kill_reader", [False, True])
def test_no_signal_is_lost(target: Path, counter: Path, kill_reader: bool) -> None:
    """Real-time signals queue, so that as many are handled as were sent, also when the reader is killed."""
    with running(target, "count", "4", counter) as process:
        sent = 0
        for _ in range(5 if kill_reader else 1):
            reader = subprocess.Popen(
                [sys.executable, "-c", READER, str(process.pid)], stdout=subprocess.PIPE
            )
            assert reader.stdout is not None
            reader.stdout.readline()
            for _ in range(400):
                process.send_signal(signal.SIGRTMIN)
                sent += 1
                time.sleep(0.0001)
            if kill_reader:
                reader.kill()
            else:
                reader.terminate()
            reader.wait()
            reader.stdout.close()
        wait_until(lambda: counted(counter) >= sent, lambda: f"{counted(counter)} of {sent} signals")
        assert counted(counter) == sent
        assert_free(process.pid)


def test_a_thread_that_cannot_be_stopped_is_given_up_when_its_time_is_up(target: Path) -> None:
    """It never stops: that this comes to an end is the limit's doing."""
    with running(target, "vfork") as process:
        start = time.monotonic()
        found = snapshot(process.pid, limit=1)
        assert time.monotonic() - start >= 1
        assert len(found.threads) == 1
        (unread,) = found.unread
        assert "did not stop in time" in unread.reason
        assert_free(process.pid)
        with pytest.raises(SourceError, match=str(unread.tid)):
            process_threads(process.pid, limit=1)


def test_no_such_process() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(SourceError) as caught:
        process_threads(child.pid)
    assert caught.value.exit_code == 2


def test_a_process_does_not_trace_itself() -> None:
    with pytest.raises(UnsupportedHere, match="itself") as caught:
        process_threads(os.getpid())
    assert caught.value.exit_code == 3


def test_a_process_that_is_traced_already_is_named_with_its_tracer(target: Path) -> None:
    hold = (
        "import os, sys, time\n"
        "from fpstate.source import ptrace\n"
        "def wait(regset):\n"
        "    print('held', flush=True)\n"
        f"    time.sleep({PATIENCE})\n"
        f"ptrace.edit(int(sys.argv[1]), ptrace.host_layout(), {PATIENCE}, wait)\n"
    )
    with running(target, "sleep") as process:
        holder = subprocess.Popen([sys.executable, "-c", hold, str(process.pid)], stdout=subprocess.PIPE)
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UnsupportedHere, match=r"traced already, by .*python"):
            process_threads(process.pid)
        holder.kill()
        holder.wait()
        holder.stdout.close()
        assert_free(process.pid)


def test_another_users_process_is_refused_with_what_to_try(target: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root, to become another user")
    with running(target, "sleep") as process:
        code = (
            "import os, sys\n"
            "from fpstate.source.process import process_threads\n"
            "from fpstate.errors import UnsupportedHere\n"
            "import fpstate._core\n"
            "os.setgid(65534); os.setuid(65534)\n"
            "try: process_threads(int(sys.argv[1]))\n"
            "except UnsupportedHere as error: print(error, error.help); sys.exit(error.exit_code)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(process.pid)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 3, done.stderr
        assert "no permission" in done.stdout
        assert "root" in done.stdout


def test_a_regset_of_another_size_is_refused(target: Path) -> None:
    with running(target, "sleep") as process:
        layout = ptrace.host_layout()
        ((_, regset, _, name),), _, _ = ptrace.snapshot(process.pid, layout, 2)
    assert name == "target"
    assert regset is not None
    assert ptrace.checked_layout(process.pid, regset, layout) == layout
    with pytest.raises(SourceError, match=str(layout.size)):
        ptrace.checked_layout(process.pid, regset[:-8], layout)
    with pytest.raises(SourceError, match=str(layout.size)):
        ptrace.checked_layout(process.pid, regset + bytes(64), layout)
