"""States are left out of core dumps of the process that holds them, unless it was told otherwise."""

from __future__ import annotations

import mmap
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import dumped_process
import pytest
from dumped_process import CANARY_SEED, KINDS, pattern

from fpstate.program.expected.canary import canary_pattern, vector_kind

STAYS = {"Python object"}
"""What no setting keeps out."""


@pytest.fixture(scope="module")
def dumps() -> None:
    """A kernel that writes the core of a process into its folder."""
    kernel = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if "/" in kernel or kernel.startswith("|") or not kernel:
        pytest.skip(f"cores in the process's own folder: kernel.core_pattern is {kernel!r}")
    if resource.getrlimit(resource.RLIMIT_CORE)[1] != resource.RLIM_INFINITY:
        pytest.skip("cores of any size (ulimit -H -c)")


def core_with(folder: Path, setting: str | None) -> set[str]:
    """Let a process die with a state of each kind, and return those that are in its core."""
    environment = {name: value for name, value in os.environ.items() if name != "FPSTATE_DUMP_STATES"}
    if setting is not None:
        environment["FPSTATE_DUMP_STATES"] = setting
    done = subprocess.run(
        [sys.executable, dumped_process.__file__, *KINDS],
        cwd=folder, env=environment, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGABRT, done.stderr.decode()
    (core,) = folder.glob("core*")
    with core.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = {kind for kind in KINDS if any(data.find(each) >= 0 for each in traces(kind))}
    core.unlink()
    return found


def traces(kind: str) -> list[bytes]:
    """Bytes that are nowhere else: a whole register each."""
    if kind == "guest":
        name, size, _ = vector_kind(0)
        registers = canary_pattern(CANARY_SEED, 0)
        return [registers[f"{name}{index}"].to_bytes(size, "little")[:16] for index in (3, 7, 11)]
    whole = pattern(list(KINDS).index(kind))
    return [whole[at : at + 16] for at in range(0, len(whole), 16)]


@pytest.mark.usefixtures("native", "dumps")
def test_states_are_not_in_a_core(tmp_path):
    assert core_with(tmp_path, None) == STAYS


@pytest.mark.usefixtures("native", "dumps")
def test_states_are_in_a_core_where_that_was_asked_for(tmp_path):
    assert core_with(tmp_path, "1") == set(KINDS)


FLAGS = """
import sys
from fpstate import _core
slab, memory = _core.Slab(4096, 2000), _core.Memory(1 << 16)
for address in (slab.address, slab.address + 4096 * 1999, memory.address, memory.address + 65535):
    print(hex(address))
print(open("/proc/self/smaps").read())
"""


def flags_of(text: str, address: int) -> list[str]:
    """VmFlags of the mapping that has an address; see proc(5)."""
    for start, end, flags in re.findall(
        r"^(\w+)-(\w+) .*?^VmFlags: ([a-z ]+)$", text, re.MULTILINE | re.DOTALL
    ):
        if int(start, 16) <= address < int(end, 16):
            return flags.split()
    raise AssertionError(f"{address:#x} is not mapped")


@pytest.mark.usefixtures("core")
@pytest.mark.parametrize(("setting", "kept"), [("", True), ("0", True), ("1", False), ("yes", False)])
def test_the_kernel_has_them_marked(setting, kept):
    done = subprocess.run(
        [sys.executable, "-c", FLAGS], capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "FPSTATE_DUMP_STATES": setting},
    )  # fmt: skip
    *addresses, text = done.stdout.split("\n", 4)
    assert "VmFlags" in text
    assert [("dd" in flags_of(text, int(address, 16))) for address in addresses] == [kept] * 4


CARRIER = """
import os, re, threading, time
from fpstate import Manager, NativeEngine, Scheduler, _core
from fpstate.program import BUILTIN
from fpstate.vso.kernel_permission import read_kernel_permission

def kept():
    text = open("/proc/self/smaps").read()
    return sum(int(size) for size, flags in re.findall(r"^Size: +([0-9]+) kB$.*?^VmFlags:([a-z ]+)$", text, re.M | re.S)
               if "dd" in flags.split())

def run():
    Scheduler(engine).run([vcpu])
    ran.set()
    looked.wait(60)

engine = NativeEngine(Manager(), timeout=60)
vcpu = engine.vcpu(BUILTIN["spin"].load(), argument=1)
ran, looked = threading.Event(), threading.Event()
thread = threading.Thread(target=run)
thread.start()
ran.wait(60)
there = kept()
looked.set()
thread.join()
while len(os.listdir("/proc/self/task")) > 1:  # it gives back what it has after Python has let it go
    time.sleep(0.01)
found = there - kept()
pages = lambda size: (size + 4095) // 4096 * 4
print(found, pages((read_kernel_permission().minsigstksz or 0) + 65536) + 4 + pages(_core.features()["area_size"]))
"""


@pytest.mark.usefixtures("native")
def test_a_thread_that_runs_guests_has_its_signal_stack_and_spill_area_marked():
    """In KiB: what goes with such a thread was marked to the page."""
    environment = {name: value for name, value in os.environ.items() if name != "FPSTATE_DUMP_STATES"}
    done = subprocess.run(
        [sys.executable, "-c", CARRIER],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=environment,
    )
    found, expected = map(int, done.stdout.split())
    assert found == expected > 0
