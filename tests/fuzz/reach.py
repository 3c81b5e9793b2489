"""How much of a kind's readers some choices reach: lines of functions that ran, of all that they have.

python tests/fuzz/reach.py KIND FOLDER
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

from grammar.kinds import make
from judge import Judge
from trial import Trial

READERS: Final = {
    "core": ("source.core", "source.note", "source.register_set", "source.writer", "source.inference"),
    "minidump": ("source.minidump", "source.minidump_file", "source.windows_context"),
    "criu": ("source.criu",),
    "raw": ("source.raw", "source.sigframe", "source.known_layout"),
    "kvm": ("source.kvm_buffer", "source.known_layout"),
    "state file": ("source.state_file", "source.guest_state", "source.saved_guest"),
    "compressed": ("source.inflate", "source.stream"),
    "layout": ("arch.layout",),
    "program": ("program.elf", "program.dynamic", "program.relocatable", "program.load"),
}
_MOST: Final = 250


def reach(kind: str, folder: Path) -> tuple[int, int]:
    """Return how many lines of a kind's readers the choices in a folder reach, and how many there are."""
    wanted = {line for name in READERS[kind] for line in _lines(name)}
    files = {file for file, _ in wanted}
    seen: set[tuple[str, int]] = set()

    def each_line(frame: FrameType, event: str, _: Any) -> Any:
        seen.add((frame.f_code.co_filename, frame.f_lineno))
        return each_line

    def each_call(frame: FrameType, event: str, _: Any) -> Any:
        return each_line if frame.f_code.co_filename in files else None

    paths = sorted(folder.absolute().iterdir())
    with Judge() as judge, Trial(judge) as trial:
        for path in paths[:: max(1, len(paths) // _MOST)]:
            made = make(kind, path.read_bytes())
            sys.settrace(each_call)
            try:
                trial.run(made)
            finally:
                sys.settrace(None)
    return len(seen & wanted), len(wanted)


def _lines(name: str) -> Iterator[tuple[str, int]]:
    """Yield the lines of a module that run when its functions do."""
    module = importlib.import_module(f"fpstate.{name}")
    path = str(module.__file__)
    code = compile(Path(path).read_text("utf-8"), path, "exec")
    functions = [each for each in code.co_consts if isinstance(each, CodeType)]
    while functions:
        function = functions.pop()
        inner = [each for each in function.co_consts if isinstance(each, CodeType)]
        functions += inner
        if function.co_flags & 2:  # CO_NEWLOCALS: a function's body, not a class's
            first = function.co_firstlineno
            yield from (
                (path, line) for _, _, line in function.co_lines() if line is not None and line != first
            )


if __name__ == "__main__":
    print(*reach(sys.argv[1], Path(sys.argv[2])))
