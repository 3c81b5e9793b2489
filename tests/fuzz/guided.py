"""One kind under atheris: choices that reach new code are kept and built upon.

python tests/fuzz/guided.py KIND WORK FINDS [libFuzzer's options]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import atheris
from imports import from_source, import_all, unfollowed

with atheris.instrument_imports(include=["fpstate"], exclude=unfollowed()), from_source():
    import_all()

from grammar.draw import choices
from session import Session

CORPUS: Final = "corpus"
_FIRST: Final = 48
_LONGEST: Final = 2048
_HANG: Final = 900


def main() -> None:
    """Search until libFuzzer's bounds end it, which ends the process."""
    kind, work, finds, *options = sys.argv[1:]
    corpus = Path(work).absolute() / CORPUS
    corpus.mkdir(parents=True, exist_ok=True)
    for number in range(_FIRST):
        (corpus / f"{number:03}").write_bytes(choices(f"first {kind}", number))
    with Session(kind, Path(finds), Path(work)) as session:
        # Memory and time are the judge's; these only end a process that does not come back from C.
        bounds = (f"-max_len={_LONGEST}", "-len_control=0", "-rss_limit_mb=0", f"-timeout={_HANG}")
        prefix = f"-artifact_prefix={work}/"
        atheris.Setup(
            [sys.argv[0], *bounds, prefix, *options, str(corpus)], lambda data: _attempt(session, data)
        )
        atheris.Fuzz()


def _attempt(session: Session, data: bytes) -> None:
    session.attempt(data)


if __name__ == "__main__":
    main()
