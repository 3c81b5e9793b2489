"""Processes to look at, and what must be true of them afterwards."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

FOLDER = Path(__file__).with_name("live")
PATIENCE = 120
"""Seconds after which something that should happen at once does not happen any more, on however busy a machine."""


def compile_target(gcc: str, folder: Path) -> Path:
    """The program of many modes; see target.c."""
    target = folder / "target"
    subprocess.run([gcc, "-O2", "-pthread", "-o", target, FOLDER / "target.c"], check=True)
    return target


def compile_target_32(gcc: str, folder: Path) -> Path | None:
    """The 32-bit program, or None where this compiler makes none."""
    target = folder / "target32"
    flags = (
        "-m32",
        "-O1",
        "-msse2",
        "-ffreestanding",
        "-nostdlib",
        "-static",
        "-fno-pic",
        "-fno-stack-protector",
    )
    done = subprocess.run(
        [gcc, *flags, "-o", target, FOLDER / "target32.c"], capture_output=True, check=False
    )
    return None if done.returncode else target


@contextlib.contextmanager
def running(*command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has said that it is ready; it is killed at the end."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def statuses(pid: int) -> dict[int, tuple[str, int]]:
    """State letter and TracerPid of each thread."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            fields = dict(
                line.split(":", 1) for line in (task / "status").read_text().splitlines() if ":" in line
            )
            found[int(task.name)] = fields["State"].strip()[0], int(fields["TracerPid"])
    return found


def assert_free(pid: int, states: str = "RSD") -> None:
    """Every thread runs or sleeps (or is as ``states`` allows) and nobody traces it, now or soon."""

    def held() -> dict[int, tuple[str, int]]:
        return {tid: each for tid, each in statuses(pid).items() if each[0] not in states or each[1]}

    wait_until(lambda: not held(), lambda: f"left stopped or traced: {held()}")


def wait_until(
    condition: Callable[[], bool], problem: Callable[[], str] = lambda: "it does not happen"
) -> None:
    """Look until a condition holds; what is wrong is said where it never does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, problem()
        time.sleep(0.001)
