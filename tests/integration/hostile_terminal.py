"""Names that would do something to a terminal, a terminal to print them on, and a judge of what it was sent."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import tty
from collections.abc import Callable, Iterator
from typing import Final

from fpstate.command.main import main

PAYLOADS: Final = {
    "colour": b"\x1b[5mX",
    "clear": b"\x1b[2J\x1b[H",
    "title": b"\x1b]0;X\x07",
    "C1 set": "\x9b5mX".encode(),
    "C1 byte": b"\x9b5mX",
    "backspace": b"A\x7f\x08\x08B",
    "return": b"ok\rforged",
    "line": b"a\nforged",
    "direction": "\u202eX\u2066".encode(),
    "separators": "\u2028X\x85\u2029".encode(),
    "invisible": "a\u200b\u00ad".encode(),
    "markup": b"[red]\x1b[5mX",
}
"""No longer than the name of a thread may be, 15 bytes."""
_COLOURS = r"\x1b\[(?:(?:[0-4]|2[2-4]|[39]\d|[34]8;5;\d+|[34]8;2;\d+;\d+;\d+)(?:;|(?=m)))*m"
_PROGRESS = r"\x1b\[\?25[lh]|\r?\x1b\[[12]?K|\r?\x1b\[1A\x1b\[2K|\r"
_OF_RICH = re.compile(_COLOURS)
_OF_PROGRESS = re.compile(f"{_COLOURS}|{_PROGRESS}")
_NAMING = """
import ctypes, sys
for line in sys.stdin:
    ctypes.CDLL(None).prctl(15, bytes.fromhex(line), 0, 0, 0)
    print("ready", flush=True)
"""


class NamedProcess:
    """A process whose thread takes any name."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def rename(self, name: bytes) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(name.hex(), file=self._process.stdin, flush=True)
        assert self._process.stdout.readline() == "ready\n"


@contextlib.contextmanager
def named_process() -> Iterator[NamedProcess]:
    with subprocess.Popen(
        [sys.executable, "-c", _NAMING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield NamedProcess(process)
        finally:
            process.kill()


def on_a_terminal(*arguments: str, run: Callable[[list[str]], int] = main) -> tuple[int, bytes]:
    """Run a verb in this process with both streams on a terminal; its exit code and what the terminal was sent."""
    parent, child = os.openpty()
    tty.setraw(child)  # so that it is seen as it was sent
    pieces: list[bytes] = []
    reader = threading.Thread(target=_read, args=(parent, pieces))
    reader.start()
    before = sys.stdout, sys.stderr
    sys.stdout = open(child, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - closed below
    sys.stderr = open(child, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    within = sys.stdout, sys.stderr
    try:
        code = run(list(arguments))
    except SystemExit as ended:  # of argparse
        code = int(ended.code or 0)
    finally:
        sys.stdout, sys.stderr = before
        for stream in within:
            stream.close()
        os.close(child)
        reader.join(60)
        os.close(parent)
    return code, b"".join(pieces)


def _read(terminal: int, pieces: list[bytes]) -> None:
    with contextlib.suppress(OSError):  # how Linux says that the other side is closed
        while piece := os.read(terminal, 65536):
            pieces.append(piece)


def wrong_with(sent: bytes) -> list[str]:
    """What a terminal was sent and should not have been, but for what rich draws with."""
    rich = _OF_PROGRESS if b"\x1b[?25l" in sent else _OF_RICH
    text = rich.sub("", sent.decode("utf-8", "surrogateescape"))
    raw = {letter for letter in text if not letter.isprintable() and letter != "\n"}
    forged = [line for line in text.split("\n") if line.startswith("forged")]
    return [*map(ascii, sorted(raw)), *forged]


def shown(name: bytes) -> str:
    """A piece by which a name, made printable, is known again."""
    text = os.fsdecode(name)
    letter = next(letter for letter in text if not letter.isprintable())
    return letter.encode("unicode_escape").decode()
