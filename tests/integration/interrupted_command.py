"""Run the command, and send this process SIGINT at one chosen moment: an import, or a call.

    python interrupted_command.py import|call N ENTRY LOG ARGUMENT...

N counts from 0 and from the command's first lines on (``fpstate.command.start``); -1 sends nothing. ENTRY is ``start``,
or ``main``: without those lines. LOG gets the number of moments, or ``sent``.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, ModuleType

kind, number, entry, log = sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
count = 0
begun = False


def moment() -> None:
    global count
    if count == number:
        log.write_text("sent")
        os.kill(os.getpid(), signal.SIGINT)
    count += 1


class Counter:
    """Finds no module, and counts those that are looked for."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if begun and kind == "import":
            moment()


def profile(frame: FrameType, event: str, argument: object) -> None:
    if event == "call":
        moment()


sys.meta_path.insert(0, Counter)  # type: ignore[arg-type]
sys.argv = ["fpstate", *sys.argv[5:]]
if entry == "start":
    from fpstate.command.start import start

    begun = True
    if kind == "call":
        sys.setprofile(profile)
    code = start()
else:
    begun = True
    from fpstate.command.main import main

    code = main()
sys.setprofile(None)
if number < 0:
    log.write_text(str(count))
sys.exit(code)
