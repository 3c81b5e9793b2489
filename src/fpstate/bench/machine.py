"""The machine that was measured: a ratio is worth little without it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fpstate import _core
from fpstate.arch import Cpu
from fpstate.arch.component import mask_text


def describe(processor: int) -> dict[str, Any]:
    """Return processor, kernel, compiler, Python, frequency governor, virtual machine, huge pages and load."""
    cpu = Cpu.host()
    return {
        "processor": _cpuinfo("model name"),
        "signature": f"{cpu.vendor} family {cpu.family} model {cpu.model} stepping {cpu.stepping}",
        "components": mask_text(_core.features()["managed_mask"]),
        "virtual_machine": "hypervisor" in _cpuinfo("flags").split(),
        "governor": _read(f"/sys/devices/system/cpu/cpu{processor}/cpufreq/scaling_governor"),
        "processors": os.cpu_count(),
        "pinned_to": processor,
        "kernel": f"{platform.system()} {platform.release()}",
        "c_library": " ".join(platform.libc_ver()),
        "compiler": compiler("gcc"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "huge_pages": _chosen(_read("/sys/kernel/mm/transparent_hugepage/enabled")),
        "load": [round(load, 2) for load in os.getloadavg()],
    }


@contextmanager
def pinned() -> Iterator[int]:
    """Keep this thread, and what it starts, on the last processor that it may use, and say which; free it again."""
    allowed = os.sched_getaffinity(0)
    processor = max(allowed)
    os.sched_setaffinity(0, {processor})
    try:
        yield processor
    finally:
        os.sched_setaffinity(0, allowed)


def stolen_ms(processor: int) -> int | None:
    """Return how long the hypervisor has kept this processor from the machine, since it started."""
    for line in (_read("/proc/stat") or "").splitlines():
        fields = line.split()
        if fields and fields[0] == f"cpu{processor}" and len(fields) > 8:
            return int(fields[8]) * 1000 // os.sysconf("SC_CLK_TCK")
    return None


def compiler(name: str) -> str | None:
    """Return the version line of a compiler, or None where it is not installed."""
    found = shutil.which(name)
    if found is None:
        return None
    answer = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    return answer.stdout.partition("\n")[0] or None


def _cpuinfo(field: str) -> str:
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return "not stated"


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _chosen(choices: str | None) -> str | None:
    """Return the one in brackets, as in ``always [madvise] never``."""
    return choices.partition("[")[2].partition("]")[0] if choices else None
