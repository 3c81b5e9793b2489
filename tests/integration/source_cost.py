"""What reading a source costs a process of its own: its peak memory, held against the promise of docs/sources.md.

The child bounds itself: the address space and the processor time that the kernel gives it are far above what is
promised, and end a reader that has no bounds, before the machine suffers. Neither is what is judged.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from fpstate.source.budget import MEMORY, MEMORY_SHARE

ADDRESSES = 3 << 30
SECONDS = 120

_CHILD = (
    f"ADDRESSES, SECONDS = {ADDRESSES}, {SECONDS}"
    + r"""
import contextlib, io, json, os, resource, sys
mode, answer, *arguments = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
exec(os.environ.get("SABOTAGE", ""))
message = ""
if mode == "verb":
    from fpstate.command.main import main
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        code = main(arguments)
    message = error.getvalue()
else:
    from fpstate.errors import FpStateError
    try:
        if mode == "list":
            from fpstate.source.open import open_source
            kept = open_source(arguments[0])
        elif mode == "each":
            from fpstate.source.open import each_thread
            for kept in each_thread(arguments[0]):
                pass
        elif mode == "saved":
            from fpstate import read_state
            kept = read_state(arguments[0])
        else:
            from fpstate import Program
            kept = Program.from_file(arguments[0])
        code = 0
    except FpStateError as error:
        code, message = error.exit_code, str(error)
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))
with open(answer, "w") as file:
    json.dump({"code": code, "message": message, "peak": peak << 10}, file)
"""
)


@dataclass(frozen=True)
class Cost:
    """How it ended: exit code, what was said, the most memory in bytes, and how much text was printed."""

    code: int
    message: str
    peak: int
    printed: int


def cost(path: Path, *arguments: str, mode: str = "verb", sabotage: str = "", stdin: object = None) -> Cost:
    """Read a source in a process of its own; ``sabotage`` is code that it runs first."""
    answer, printed = path.with_name("answer.json"), path.with_name("printed.txt")
    answer.unlink(missing_ok=True)
    command = [sys.executable, "-c", _CHILD, mode, str(answer), *(arguments or (str(path),))]
    with printed.open("wb") as out:
        done = subprocess.run(
            command, stdout=out, stderr=subprocess.PIPE, stdin=stdin, env={"SABOTAGE": sabotage}, check=False
        )
    if not answer.exists():
        raise AssertionError(
            f"it had no answer, and ended with {done.returncode}: {done.stderr.decode()[-500:]}"
        )
    found = json.loads(answer.read_text())
    return Cost(found["code"], found["message"], found["peak"], printed.stat().st_size)


def promised(path: Path) -> int:
    """The bytes of memory that reading a file may take."""
    return MEMORY + MEMORY_SHARE * path.stat().st_blocks * 512 if path.is_file() else MEMORY
