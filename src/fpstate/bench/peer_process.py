"""Peers in C and C++: compiled when they are asked for, each a process that takes a sample for each line it is sent."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

from fpstate.errors import UnsupportedHere


@dataclass(frozen=True)
class NativePeer:
    """A source file, what it is compiled with, and what its switch keeps of the floating-point state."""

    name: str
    source: str
    keeps: str
    libraries: tuple[str, ...] = field(default=())
    package: str = ""


NATIVE_PEERS: Final = (
    NativePeer(
        *("boost.context", "boost_context.cpp", "MXCSR, FCW"),
        libraries=("-lboost_context",),
        package="Boost.Context (Debian: libboost-context-dev)",
    ),
    NativePeer("swapcontext", "swapcontext.c", "x87 environment, MXCSR; a system call"),
    NativePeer("sched_yield, two threads", "sched_yield.c", "all, by the kernel", ("-pthread",)),
    NativePeer("futex, two threads", "futex.c", "all, by the kernel", ("-pthread",)),
)


@contextlib.contextmanager
def workshop() -> Iterator[Path]:
    """A folder for what is compiled, gone in the end."""
    with tempfile.TemporaryDirectory(prefix="fpstate-bench-") as folder:
        yield Path(folder)


def build(peer: NativePeer, folder: Path) -> Path:
    """Compile a peer; raises UnsupportedHere with the compiler's first error."""
    compiler = "g++" if peer.source.endswith(".cpp") else "gcc"
    found = shutil.which(compiler)
    if found is None:
        raise UnsupportedHere(f"no {compiler} to compile it with")
    program = folder / Path(peer.source).stem
    with as_file(files(__package__) / "peer") as sources:
        command = [found, "-O2", "-I", str(sources), str(sources / peer.source), "-o", str(program)]
        done = subprocess.run([*command, *peer.libraries], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnsupportedHere(
            f"needs {peer.package}" if peer.package else f"{compiler} fails: {done.stderr[:200]}"
        )
    return program


class PeerProcess:
    """A running peer. It takes a sample when asked, and does nothing in between."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def sample(self) -> float:
        """Return the nanoseconds of one switch. Raises UnsupportedHere where the peer has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write("sample\n")
            return float(self._process.stdout.readline())
        except (OSError, ValueError):
            raise UnsupportedHere(f"it ended with code {self._process.poll()}") from None

    def close(self) -> None:
        """End the process; one whose threads go on for ever is killed."""
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe and pipe.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
