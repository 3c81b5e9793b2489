"""The engines under small limits of the system: they finish, or say by name what they lack."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from live_processes import compile_target, running

from fpstate.engine.kvm.engine import missing as missing_for_kvm
from fpstate.engine.native import NativeEngine
from fpstate.errors import TimerRefused, VsoError
from fpstate.program import BUILTIN
from fpstate.vso.manager import Manager
from fpstate.vso.scheduler import Scheduler

LONG = os.environ.get("FPSTATE_LONG") == "1"
FPSTATE = f"{sys.executable} -m fpstate"
RUN = f"{FPSTATE} run --no-audit --vcpus 10"
KVM = f"{FPSTATE} run --engine kvm --no-audit --vcpus 10"


def shell(script: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"ulimit -c 0; {script}"], capture_output=True, text=True, timeout=120, check=False, **options
    )  # fmt: skip


@pytest.fixture
def kvm_here() -> None:
    if absent := missing_for_kvm():
        pytest.skip(absent)


# Threads and timers


def test_more_threads_than_one_block_of_places_run_guests_at_once(native):
    """300 carriers, all alive until the last has run its guest."""
    ends: Counter[str] = Counter()
    barrier = threading.Barrier(300)
    engine = NativeEngine(Manager(), timeout=60)

    def work(seed: int) -> None:
        vcpu = engine.vcpu(BUILTIN["canary"].load(), seed=seed, argument=20)
        try:
            Scheduler(engine).run([vcpu])
            assert vcpu.block is not None
            wrong = BUILTIN["canary"].check(vcpu.block.result, seed, 20, vcpu.block.features)
            ends[wrong or str(vcpu.exit)] += 1
        except BaseException as error:
            ends[repr(error)] += 1
        barrier.wait()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends == {"finished": 300}


def test_ticks_and_faults_find_a_carrier_of_a_later_block(native, assemble):
    """The handler looks for it by its stack: 256 threads hold the first block meanwhile."""
    engine, fault = NativeEngine(Manager(), timeout=60), assemble("ud2")
    over = threading.Event()
    ready = threading.Barrier(261)
    ends: list[str] = []

    def hold() -> None:
        Scheduler(engine).run([engine.vcpu(BUILTIN["spin"].load(), argument=1)])
        ready.wait()
        over.wait()

    holders = [threading.Thread(target=hold) for _ in range(260)]
    for thread in holders:
        thread.start()
    ready.wait()

    def late() -> None:
        long = engine.vcpu(BUILTIN["canary"].load(), seed=3, argument=20_000)
        faulty = engine.vcpu(fault)
        Scheduler(engine, quantum_ns=100_000).run([long, faulty])
        assert long.block is not None
        ends.append(BUILTIN["canary"].check(long.block.result, 3, 20_000, long.block.features) or "right")
        ends.append(str(faulty.exit))
        ends.append("preempted" if long.preemptions else "never preempted")

    last = threading.Thread(target=late)
    last.start()
    last.join()
    over.set()
    for thread in holders:
        thread.join()
    assert ends[0] == "right"
    assert "SIGILL" in ends[1]
    assert ends[2] == "preempted"


@pytest.mark.parametrize("engine", ["native", "kvm"])
def test_without_a_timer_the_error_names_it_and_the_limit(native, request, engine):
    if engine == "kvm":
        request.getfixturevalue("kvm_here")
    done = shell(f"ulimit -i 0; {KVM if engine == 'kvm' else RUN}")
    assert done.returncode == 2
    assert "timer_create: Resource temporarily unavailable (EAGAIN)" in done.stderr
    assert "ulimit -i" in done.stderr
    assert done.stdout == ""


def test_in_python_it_is_an_error_of_its_own(native):
    script = (
        "from fpstate import Manager, NativeEngine, Scheduler\n"
        "from fpstate.errors import TimerRefused\n"
        "from fpstate.program import BUILTIN\n"
        "manager = Manager()\n"
        "engine = NativeEngine(manager)\n"
        "a, b = manager.create(), manager.create()\n"
        "for use in (lambda: Scheduler(engine).run([engine.vcpu(BUILTIN['spin'].load())]),\n"
        "            lambda: manager.switch(a, b)):\n"
        "    try:\n"
        "        use()\n"
        "    except TimerRefused as error:\n"
        "        print(error.errno, error.exit_code)\n"
    )
    done = shell(f'ulimit -i 0; "{sys.executable}" -c "$SCRIPT"', env=os.environ | {"SCRIPT": script})
    assert (done.stdout, done.stderr) == ("11 2\n11 2\n", "")


def test_the_error_can_be_pickled():
    import pickle

    error = pickle.loads(pickle.dumps(TimerRefused(11)))
    assert (error.errno, "ulimit -i" in str(error)) == (11, True)


def test_a_spill_area_in_which_nothing_lies_is_not_loaded(native):
    """Zeros would make MXCSR 0, and the next inexact result SIGFPE: so in a thread of its own, and a process."""
    script = (
        "import threading\n"
        "from fpstate import _core\n"
        "from fpstate.errors import VsoError\n"
        "def refused():\n"
        "    try:\n"
        "        _core.load_spilled()\n"
        "    except VsoError as error:\n"
        "        print(1 / 3 > 0, error)\n"
        "refused()\n"
        "_, spilled = _core.save_state(None, 0)\n"
        "assert spilled\n"
        "_core.load_spilled()\n"
        "thread = threading.Thread(target=refused)\n"
        "thread.start()\n"
        "thread.join()\n"
        "_core.unspill(bytearray(), ())\n"
        "refused()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == 3 * "True no state lies in this thread's spill area: nothing was saved there\n"
    native.unspill(bytearray(), ())
    with pytest.raises(VsoError, match="nothing was saved"):
        native.load_spilled()


# Clocks

CLOCKS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *time)
{
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, time);
    const char *wrong = getenv("WRONG_CLOCK");
    if (wrong && clock == atoi(wrong) && !result)
        time->tv_sec /= 2;
    return result;
}
"""


SLOW_EDIT = """
import sys, time
from pathlib import Path
from fpstate.errors import FpStateError
from fpstate.source.rewrite import rewrite
pid, pauses = int(sys.argv[1]), int(sys.argv[2])
def change(registers):
    for _ in range(pauses):
        if "TracerPid:\\t0\\n" in Path(f"/proc/{pid}/status").read_text():
            break
        time.sleep(0.01)
    registers["mxcsr"] = 0x9F80
try:
    rewrite(pid, change, limit=60)
    print("written")
except FpStateError as error:
    print(error)
"""
"""Changes a register after so many pauses, or once the process is let go."""


@pytest.mark.parametrize(
    ("clock", "pauses", "said"),
    [(0, 30, "written"), (1, 6000, "did not stop in time")],
    ids=["realtime", "monotonic, the control"],
)
def test_no_deadline_of_the_tracer_goes_by_the_time_of_day(core, gcc, tmp_path, clock, pauses, said):
    """A clock that is far behind the kernel's makes a deadline that has passed, where it is asked for one."""
    source, library = tmp_path / "clocks.c", tmp_path / "clocks.so"
    source.write_text(CLOCKS)
    subprocess.run([gcc, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    shared = tmp_path / "shared"
    shared.write_bytes(bytes(4096))
    with running(compile_target(gcc, tmp_path), "report", "1", shared) as process:
        done = subprocess.run(
            [sys.executable, "-c", SLOW_EDIT, str(process.pid), str(pauses)],
            capture_output=True, text=True, timeout=120, check=False,
            env=os.environ | {"LD_PRELOAD": str(library), "WRONG_CLOCK": str(clock)},
        )  # fmt: skip
    assert said in done.stdout, done.stderr


# Limits of a process, and what a system may lack

ROWS = {
    "memory, 60 MB": "ulimit -v 60000; {run} --vcpus 500",
    "memory, 150 MB": "ulimit -v 150000; {run} --vcpus 500",
    "memory, 300 MB": "ulimit -v 300000; {run} --vcpus 500",
    "too many vCPUs for it": "ulimit -v 300000; {run} --vcpus 1000000000 spin",
    "guests of a terabyte": "{run} --vcpus 2 --memory 1T spin",
    "guests of a byte": "{run} --vcpus 2 --memory 1 spin",
    "an argument of 2^64": "{run} --vcpus 2 --argument 18446744073709551616",
    "4 files": "ulimit -n 4; {run}",
    "8 files": "ulimit -n 8; {run}",
    "8 files, KVM": "ulimit -n 8; {kvm} --kvm-vcpus each",
    "200 MB, KVM": "ulimit -v 200000; {kvm} --vcpus 100",
    "1 process": "ulimit -u 1; {run} --processors 4",
    "files of no bytes": "ulimit -f 0; {run}",
    "a stack of 256 KiB": "ulimit -s 256; {run}",
    "no locked memory": "ulimit -l 0; {run}",
    "no home": "HOME=/proc {run}",
    "no environment": "env -i {run}",
    "all signals blocked": '{python} -c "import os, signal; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65));'
    " os.execvp('bash', ['bash', '-c', '{run}'])\"",
    "real-time signals ignored": '{python} -c "import os, signal;'
    " [signal.signal(number, signal.SIG_IGN) for number in range(35, 65)];"
    " os.execvp('bash', ['bash', '-c', '{run}'])\"",
}
FEW = tuple(ROWS)[3::5]
NAMESPACES = {
    "a user namespace": "unshare -r {run}",
    "a user namespace, KVM": "unshare -r {kvm}",
    "no /proc": "unshare -m bash -c 'mount -t tmpfs none /proc && {run}'",
    "no /dev": "unshare -m bash -c 'mount -t tmpfs none /dev && {kvm}'",
    "a process namespace": "unshare -pf --mount-proc {run}",
}


def judged(script: str) -> None:
    """Finished, or refused with a reason: an exit code of ours, no traceback, and no signal."""
    done = shell(script.format(run=RUN, kvm=KVM, python=sys.executable))
    started = (
        "Fatal Python error" not in done.stderr and "import" not in done.stderr.rpartition("\n  File")[2]
    )
    if done.returncode == 1 and not started:
        return  # Python itself could not start: nothing of ours ran
    assert done.returncode in (0, 1, 2, 3), done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    if done.returncode == 0:
        assert "finished" in done.stdout
    else:
        assert done.stderr or "! " in done.stdout


@pytest.mark.parametrize("row", ROWS if LONG else FEW)
def test_under_a_limit_a_run_finishes_or_says_why(native, row):
    if "KVM" in row and (absent := missing_for_kvm()):
        pytest.skip(absent)
    judged(ROWS[row])


@pytest.mark.parametrize("row", NAMESPACES if LONG else ("no /proc", "a process namespace"))
def test_in_a_namespace_too(native, row):
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("namespaces that may be made (unshare)")
    if os.geteuid() and "user" not in row:
        pytest.skip("root, who may mount")
    judged(NAMESPACES[row])


def test_a_state_file_that_does_not_fit_leaves_nothing(kvm_here, tmp_path: Path):
    path = tmp_path / "canary.fpvso"
    done = shell(f"ulimit -f 0; {FPSTATE} kvm save canary --to {path}")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
