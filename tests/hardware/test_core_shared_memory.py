"""Images in memory that others write to: what is loaded is what was checked, and an error is one of ours."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import watched
from oracle import ENVIRONMENT, SANITIZED, share

from c_table import Control, table_of
from fpstate.arch import Component, Cpu, Layout, mask_of
from fpstate.errors import FpStateError
from fpstate.image import Image

PAGE = 4096
LEGACY = 3
XSTATE_BV, XCOMP_BV, RESERVED, MXCSR = 512, 520, 536, 24
SPOILT = {
    "XSTATE_BV": (XSTATE_BV, LEGACY | 1 << 62),
    "a component without a place": (XSTATE_BV, LEGACY | 1 << 17 | 1 << 61),
    "XCOMP_BV": (XCOMP_BV, 1 << 63 | 1 << 62),
    "a reserved word": (RESERVED, 0x0101010101010101),
    "MXCSR": (MXCSR, 0xFFFF0000),
}
"""Where somebody writes an illegal word, and which."""
LOADS = 30_000
MOST_LOOKS = 24
OURS = ("ImageError", "RestoreFault")


@pytest.fixture
def shared(core: ModuleType) -> mmap.mmap:
    """Memory shared with children, which begins with a legal image of x87 and SSE in the form of this processor."""
    memory = mmap.mmap(-1, 4 * PAGE)
    memory[: len(legal_image(core))] = legal_image(core)
    return memory


def legal_image(core: ModuleType) -> bytes:
    found = core.features()
    layout = (Layout.compacted if found["xsavec"] else Layout.standard)(Cpu.host(), found["managed_mask"])
    image = Image.initial(layout)
    image.registers["xmm3"] = 3 << 100
    return image.to_bytes()[:XSTATE_BV] + LEGACY.to_bytes(8, "little") + image.to_bytes()[XSTATE_BV + 8 :]


def view_of(memory: mmap.mmap, core: ModuleType) -> memoryview:
    return memoryview(memory)[: len(legal_image(core))]


def state_load(core: ModuleType, memory: mmap.mmap) -> str:
    core.load_state(view_of(memory, core))
    core.load_state(None)
    return "loaded"


def context_load(core: ModuleType, memory: mmap.mmap) -> str:
    core.Context().load(view_of(memory, core))
    return "loaded"


def check(core: ModuleType, memory: mmap.mmap) -> str:
    core.check_image(view_of(memory, core))
    return "loaded"


USES = {"load_state": state_load, "Context.load": context_load, "check_image": check}


def spoil_after(memory: mmap.mmap, at: int, bad: int, number: int) -> Callable[[int], None]:
    def change(looks: int) -> None:
        if looks == number:
            memory[at : at + 8] = bad.to_bytes(8, "little")

    return change


def outcomes(memory: mmap.mmap, at: int, bad: int, child: Callable[[], str]) -> dict[int, watched.Outcome]:
    """How ``child`` ends where the word is spoilt after its first look, its second, and so on; 0: before."""
    found: dict[int, watched.Outcome] = {}
    good = memory[at : at + 8]
    for number in range(MOST_LOOKS):
        memory[at : at + 8] = bad.to_bytes(8, "little") if number == 0 else good
        try:
            found[number] = watched.run(
                child, watched.address_of(memory) + at, spoil_after(memory, at, bad, number)
            )
        except watched.MissingError as lacking:
            pytest.skip(str(lacking))
        if found[number].looks < number:
            return found
    raise AssertionError(f"looked more than {MOST_LOOKS} times")


@pytest.mark.parametrize("word", SPOILT)
@pytest.mark.parametrize("use", USES)
def test_a_word_that_is_changed_between_two_looks_at_it_is_loaded_as_it_was_checked(
    core, each_core, shared, use, word
):
    at, bad = SPOILT[word]
    found = outcomes(shared, at, bad, lambda: USES[use](core, shared))
    assert [each.signal for each in found.values()] == [0] * len(found)
    assert found[0].said.startswith("ImageError")
    assert found[max(found)].said == "loaded", "it was not changed at all: there was no such look"
    assert all(each.said == "loaded" or each.said.startswith("ImageError") for each in found.values())


def test_a_load_that_checks_in_place_would_be_killed(core, gcc, shared, tmp_path):
    """The negative control: the same change, and a load as it must not be."""
    library = tmp_path / "in_place.so"
    source = Path(__file__).with_name("in_place.c")
    subprocess.run(
        [gcc, "-O2", "-mgeneral-regs-only", "-shared", "-fPIC", "-o", library, source],
        check=True,
        env=ENVIRONMENT,
    )
    load = ctypes.CDLL(str(library)).load_in_place
    load.argtypes = [ctypes.c_void_p]
    shared[XCOMP_BV : XCOMP_BV + 8] = bytes(8)
    start = watched.address_of(shared)
    for at, bad in (SPOILT["XSTATE_BV"], SPOILT["MXCSR"]):
        found = outcomes(shared, at, bad, lambda: "loaded" if load(start) == 0 else "refused")
        assert found[0].said == "refused"
        assert signal.SIGSEGV in {each.signal for each in found.values()}
        shared[at : at + 8] = (LEGACY if at == XSTATE_BV else 0x1F80).to_bytes(8, "little")


def test_control_words_are_loaded_as_they_were_checked(core, shared):
    table = table_of(core)
    wanted = Control.from_buffer(shared, 2 * PAGE)
    wanted.mxcsr, wanted.fcw = 0x1F80, 0x037F

    def child() -> str:
        code = table.switch_control(Control(), wanted)
        return "loaded" if code == 0 else f"refused with {code}"

    found = outcomes(shared, 2 * PAGE, 0x037F_FFFF_0000, child)
    assert [each.signal for each in found.values()] == [0] * len(found)
    assert (found[0].said, found[max(found)].said) == ("refused with 22", "loaded")
    assert {each.said for each in found.values()} == {"refused with 22", "loaded"}


@pytest.mark.parametrize("word", SPOILT)
def test_a_guest_s_image_that_is_changed_while_it_is_entered_is_loaded_or_refused(
    native, each_core, shared, word
):
    """A guest's state is loaded where it lies, under the guard: no other process reaches the pool's memory."""
    at, bad = SPOILT[word]
    code = mmap.mmap(-1, PAGE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code[:6] = bytes.fromhex("31c0 e7f5 0f0b")  # xor eax, eax; out 0xf5, eax; ud2

    def child() -> str:
        vcpu, queue = native.Vcpu(), native.Queue(compact=native.features()["xsavec"], timing=False)
        vcpu.rip = vcpu.code_start = watched.address_of(code)
        vcpu.code_end = vcpu.code_start + 6
        vcpu.attach(memoryview(shared)[: 3 * PAGE], native.features()["managed_mask"])
        queue.add(vcpu)
        queue.run(10**9, 10**9)
        return {native.EXIT_PORT: "loaded", native.EXIT_REFUSED: "refused"}.get(
            vcpu.exit_kind, f"exit {vcpu.exit_kind}"
        )

    found = outcomes(shared, at, bad, child)
    assert [each.signal for each in found.values()] == [0] * len(found)
    assert {each.said for each in found.values()} <= {"loaded", "refused"}
    assert found[0].said == "refused"


# Another process, all the time


def flip(memory: mmap.mmap, at: int, words: tuple[int, int]) -> int:
    """Start a process that writes two words in turn until it is killed, or its parent ends."""
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        good, bad = (word.to_bytes(8, "little") for word in words)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for _ in range(1000):
                memory[at : at + 8] = good
                memory[at : at + 8] = bad
        os._exit(0)
    return pid


@pytest.mark.parametrize("word", ["XSTATE_BV", "MXCSR", "a reserved word"])
def test_another_process_that_changes_the_header_all_the_time_brings_nothing_but_our_errors(
    core, each_core, shared, word
):
    """So many loads, or as many as fit into the time that is there."""
    at, bad = SPOILT[word]
    view, count = view_of(shared, core), share(LOADS)
    good = int.from_bytes(shared[at : at + 8], "little")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        other = flip(shared, at, (good, bad))
        found: Counter[str] = Counter()
        deadline = time.monotonic() + 30
        for number in range(count):
            if number % 1000 == 0 and time.monotonic() > deadline:
                break
            try:
                core.load_state(view)
                found["loaded"] += 1
            except FpStateError as error:
                found[type(error).__name__] += 1
        os.kill(other, signal.SIGKILL)
        os.write(writer, " ".join(sorted(found)).encode())
        os._exit(0)
    os.close(writer)
    _, status = os.waitpid(pid, 0)
    said = os.read(reader, 4096).decode().split()
    os.close(reader)
    assert (os.WIFSIGNALED(status), os.waitstatus_to_exitcode(status)) == (False, 0)
    assert said
    assert set(said) <= {"loaded", "ImageError"}


# Memory that is taken away


@pytest.mark.parametrize("use", ["load_state", "Context.load"])
def test_memory_that_another_process_takes_away_is_an_error_of_ours(core, each_core, use):
    """A file that is cut short under its mapping: every access is SIGBUS."""
    file = os.memfd_create("image")
    try:
        os.ftruncate(file, 4 * PAGE)
        memory = mmap.mmap(file, 4 * PAGE)
        memory[: len(legal_image(core))] = legal_image(core)
        assert USES[use](core, memory) == "loaded"
        os.ftruncate(file, 0)
        with pytest.raises(FpStateError, match="byte 0 of the image is not in memory"):
            USES[use](core, memory)
    finally:
        os.close(file)


# What stays behind

LEFT = """
import ctypes, mmap, os, signal, sys
from fpstate import _core
from fpstate.vso.kernel_permission import request_from_kernel
found = _core.features()
if found["dynamic_mask"]:
    request_from_kernel(found["dynamic_mask"])
area = -(-found["area_size"] // 64) * 64
slab = _core.Slab(area, 1)
view = memoryview(slab)[:area]
start = ctypes.addressof(ctypes.c_char.from_buffer(slab))

def place(fill):
    for at, size in PLACES:
        with open("/dev/urandom", "rb", 0) as source:
            source.readinto(view[at:at + size]) if fill else view[at:at + size].__setitem__(slice(None), bytes(size))
    view[0:2], view[24:28] = b"\\x7f\\x03", b"\\x80\\x1f\\0\\0"
    view[512:528] = HEADER

def use():
    if sys.argv[1] == "load_state":
        _core.load_state(view)
        _core.load_state(None)
    elif sys.argv[1] == "Context.load":
        context.load(view)
        context.wipe()
    else:
        kept.append(bytes(view))

context, kept = _core.Context(), []
place(True)
use()
place(True)
print(start, flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
use()
place(False)
os.kill(os.getpid(), signal.SIGSTOP)
"""


def memory_of(pid: int, needle: bytes) -> list[str]:
    """Where 16 bytes lie in what a stopped process can write to."""
    places = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            span, rights, *rest = line.split()
            start, end = (int(part, 16) for part in span.split("-"))
            if "rw" in rights and "[v" not in line:
                memory.seek(start)
                at = memory.read(end - start).find(needle)
                if at >= 0:
                    places.append(f"{start + at:#x} {rest[-1]}")
    return places


@pytest.mark.parametrize(("use", "left"), [("load_state", False), ("Context.load", False), ("a copy", True)])
def test_nothing_of_a_copy_stays_behind(core, use, left):
    """Each component's bytes are looked for in all memory of the process; a copy that was kept is found."""
    if SANITIZED:
        pytest.skip("memory that can be searched: AddressSanitizer maps 14 TiB")
    found, cpu = core.features(), Cpu.host()
    layout = (Layout.compacted if found["xsavec"] else Layout.standard)(cpu, found["managed_mask"])
    random = found["managed_mask"] & ~mask_of(Component.X87, Component.SSE, Component.TILECFG)
    places = [(160, 256)] + [
        (place.offset, place.size) for place in layout.places if random >> place.component & 1
    ]
    present = random | mask_of(Component.SSE)
    header = present.to_bytes(8, "little") + layout.xcomp_bv.to_bytes(8, "little")
    script = f"PLACES, HEADER = {places!r}, {header!r}\n" + LEFT
    child = subprocess.Popen(
        [sys.executable, "-c", script, use], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        assert child.stdout is not None
        start = int(child.stdout.readline())
        stopped(child.pid)
        with open(f"/proc/{child.pid}/mem", "rb", 0) as memory:
            needles = {}
            for at, size in places:
                memory.seek(start + at + size // 2 & ~15)
                needles[at] = memory.read(16)
        assert all(any(needle) for needle in needles.values())
        os.kill(child.pid, signal.SIGCONT)
        stopped(child.pid)
        found_at = {at: memory_of(child.pid, needle) for at, needle in needles.items()}
    finally:
        child.kill()
        child.communicate()
    assert {at: bool(where) for at, where in found_at.items()} == dict.fromkeys(needles, left), found_at


def stopped(pid: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WUNTRACED | os.WNOHANG)
        if found:
            assert os.WIFSTOPPED(status), f"ended with {status}"
            return
        time.sleep(0.002)
    raise AssertionError("the child did not stop")
