"""One kind without a guide: numbered inputs of a seed, one after another.

python tests/fuzz/unguided.py KIND WORK FINDS --seed=S [-runs=N] [-max_total_time=S]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from grammar.draw import choices
from session import Session


def main() -> None:
    """Try numbers until the bounds that were given end it."""
    kind, work, finds, *options = sys.argv[1:]
    given = dict(option.lstrip("-").split("=", 1) for option in options)
    runs, seconds = int(given.get("runs", -1)), float(given.get("max_total_time", 0))
    Path(work).mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    with Session(kind, Path(finds), Path(work)) as session:
        number = 0
        while number != runs and (not seconds or time.monotonic() < end):
            session.attempt(choices(f"{given.get('seed', '1')} {kind}", number), number)
            number += 1


if __name__ == "__main__":
    main()
