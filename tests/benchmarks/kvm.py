"""KVM from Python: its ioctls as a ratio to a C loop of the same, a guest switch as a ratio to the ioctls it needs.

Everything in turn on one vCPU. A switch is of two guests that leave at once, each with every vector component in use:
load one, run it until it leaves, save it. The bare one is a C loop of the same ioctls. Then the bytes that a guest's
VSO holds, beside ``struct kvm_xsave`` and what it grows to with AMX. Needs a KVM, and gcc.

    python tests/benchmarks/kvm.py [--json]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fpstate import Cpu, Image, Layout, Manager, Program
from fpstate.arch.component import COMPONENTS, LEGACY, components_in, mask_text
from fpstate.engine.kvm.abi import IOCTLS, XSAVE_SIZE
from fpstate.engine.kvm.carrier import Carrier
from fpstate.engine.kvm.engine import KvmEngine
from fpstate.engine.kvm.guest import KvmGuest
from fpstate.errors import FpStateError, UnsupportedHere
from fpstate.program import BUILTIN
from fpstate.vso.config import FpuConfig

ROUNDS, REPEATS, SWITCHES = 100, 300, 30
TARGET = 1.10
LEAVE_FOR_EVER = bytes.fromhex("b801000000e7f5ebf7")
"""1: mov $1, %eax; out %eax, $0xF5; jmp 1b"""
LARGEST = "sapphire-rapids"
DATA_REGISTERS = ("st", "xmm", "ymm", "zmm", "k")


def busy_image(cpu: Cpu, mask: int) -> Image:
    """Return an image with something in every register of the components in ``mask``."""
    image = Image.initial(Layout.compacted(cpu, mask | LEGACY))
    for component in components_in(mask):
        for field in COMPONENTS[component].fields:
            if field.name.startswith(DATA_REGISTERS):
                image.registers[field.name] = (1 << 8 * field.size - 2) - 1
    return image


def c_loops() -> ctypes.CDLL:
    """Build and load the C loops. Raises UnsupportedHere without gcc."""
    source = Path(__file__).with_suffix(".c")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kvm.so"
        try:
            subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
        except FileNotFoundError as error:
            raise UnsupportedHere("gcc, for the C loops") from error
        loaded = ctypes.CDLL(str(library))
    loaded.repeat.restype = loaded.switches.restype = ctypes.c_int64
    loaded.repeat.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_int)
    return loaded


def address(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def ratio(python: list[float], c: list[float]) -> dict[str, float]:
    """Return both in nanoseconds, medians, and their ratio: of the medians, and of the fastest."""
    medians = statistics.median(python), statistics.median(c)
    return {
        "python_ns": round(medians[0]),
        "c_ns": round(medians[1]),
        "ratio": round(medians[0] / medians[1], 3),
        "ratio_of_fastest": round(min(python) / min(c), 3),
    }


def ioctls(loops: ctypes.CDLL, carrier: Carrier) -> dict[str, dict[str, float]]:
    """Get and set the state, from Python and from C, in turn."""
    vcpu, buffer = carrier.kvm, bytearray(carrier.image)
    deeds: dict[str, Callable[[], object]] = {
        "KVM_GET_XSAVE2": lambda: vcpu.xsave(buffer),
        "KVM_SET_XSAVE": lambda: vcpu.set_xsave(buffer),
    }
    vcpu.xsave(buffer)
    found = {}
    for name, deed in deeds.items():
        python, c = [], []
        for _ in range(REPEATS):
            start = time.perf_counter_ns()
            for _ in range(ROUNDS):
                deed()
            python.append((time.perf_counter_ns() - start) / ROUNDS)
            c.append(checked(loops.repeat(vcpu.file, IOCTLS[name], address(buffer), ROUNDS), name) / ROUNDS)
        found[name] = ratio(python, c)
    return found


def checked(nanoseconds: int, what: str) -> int:
    if nanoseconds < 0:
        raise FpStateError(f"the C loop of {what} failed")
    return nanoseconds


def switches(loops: ctypes.CDLL, engine: KvmEngine) -> dict[str, float]:
    """Switch between two guests, by the engine and by a C loop, in turn."""
    queue = engine.queue()
    guests = [busy_guest(engine) for _ in range(2)]
    for guest in guests:
        queue.add(guest)
    queue.run_slices(1_000_000, 20)
    carrier = engine.carriers.borrow(1)
    assert carrier is not None
    registers = bytearray(b"".join(guest.context.data for guest in guests))
    images = bytearray()
    for guest in guests:
        carrier.load(guest)
        images += carrier.image
    engine.carriers.give_back(carrier)
    out = bytearray(len(carrier.image))
    run = ctypes.addressof(ctypes.c_char.from_buffer(carrier.kvm.shared))
    python, c = [], []
    for _ in range(REPEATS):
        start = time.perf_counter_ns()
        queue.run(10_000_000, 10_000_000_000, SWITCHES)
        python.append((time.perf_counter_ns() - start) / SWITCHES)
        arguments = (ctypes.c_void_p(address(registers)), ctypes.c_size_t(len(guests[0].context.data)),
                     ctypes.c_void_p(address(images)), ctypes.c_size_t(len(carrier.image)),
                     ctypes.c_void_p(address(out)), SWITCHES)  # fmt: skip
        c.append(
            checked(loops.switches(carrier.kvm.file, ctypes.c_void_p(run), *arguments), "switches") / SWITCHES
        )
    return ratio(python, c)


def busy_guest(engine: KvmEngine) -> KvmGuest:
    """Return a guest that leaves for ever, with something in every component."""
    guest = engine.vcpu(Program.from_bytes(LEAVE_FOR_EVER, format="flat", name="leave for ever"))
    engine.manager.load(guest.vso, busy_image(engine.manager.config.cpu, engine.managed & ~1))
    return guest


def sizes(engine: KvmEngine) -> dict[str, int]:
    """Run built-in programs for some slices and return the bytes that their VSOs hold."""
    found = {}
    for name in ("spin", "sse_nbody", "avx_mandelbrot", "canary"):
        if BUILTIN[name].missing(engine.manager.config.cpu, engine.managed):
            continue
        guest = engine.vcpu(BUILTIN[name].load(), seed=1, argument=10**9)
        queue = engine.queue()
        queue.add(guest)
        queue.run_slices(100_000, 40)
        queue.clear()
        found[name] = guest.vso.size
    return found


def measure() -> dict[str, object]:
    """Run everything."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    loops, manager = c_loops(), Manager(shrink_after=0)
    engine = KvmEngine(manager, vcpus=1)
    carrier = engine.carriers.borrow(1)
    assert carrier is not None
    carrier.load(busy_guest(engine))
    found = ioctls(loops, carrier)
    engine.carriers.give_back(carrier)
    cpu = Cpu.host()
    return {
        "schema": "fpstate-bench-kvm/1",
        "cpu": f"{cpu.vendor} family {cpu.family} model {cpu.model}",
        "components": mask_text(engine.managed),
        "target": TARGET,
        "ioctls": found,
        "switch": switches(loops, engine),
        "vso_bytes": sizes(engine),
        "kvm_xsave_bytes": XSAVE_SIZE,
        "largest_bytes": FpuConfig.from_cpu(Cpu.catalog(LARGEST)).user_max.size,
    }


def main() -> int:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        found = measure()
    except UnsupportedHere as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    print(
        f"{found['cpu']}, {found['components']}; {REPEATS} times {ROUNDS} calls or {SWITCHES} switches, in turn"
    )
    print(f"{'':<28}{'Python ns':>14}{'C ns':>14}{'ratio':>10}{'of fastest':>14}")
    for name, row in {**found["ioctls"], "switch between two guests": found["switch"]}.items():
        print(
            f"{name:<28}{row['python_ns']:>14}{row['c_ns']:>14}{row['ratio']:>10}{row['ratio_of_fastest']:>14}"
        )
    print(f"target for the ioctls: a ratio of at most {TARGET}")
    held = ", ".join(f"{name} {size}" for name, size in found["vso_bytes"].items())
    print(f"bytes that a guest's VSO holds: {held}; struct kvm_xsave has {found['kvm_xsave_bytes']}, "
          f"with AMX {found['largest_bytes']}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
