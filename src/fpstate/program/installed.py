"""Where the built guest programs and the C headers lie."""

from __future__ import annotations

from pathlib import Path

import fpstate.program
from fpstate.errors import UnsupportedHere


def _find(relative: str) -> Path:
    # An editable install spreads the package over two folders, the sources and what was built;
    # either may hold programs, and the newer ones belong to these sources.
    paths = [Path(folder) / relative for folder in fpstate.program.__path__]
    found = [path for path in paths if path.is_file()]
    if found:
        return max(found, key=lambda path: path.stat().st_mtime)
    raise UnsupportedHere(
        f"fpstate/program/{relative} (the guest programs are not built)",
        help="Install fpstate from a wheel, or run programs/build.sh in a checkout.",
    )


def flat_file(name: str) -> Path:
    """The flat binary of the built-in program ``name``, as in ``"canary"`` or ``"faults/halt"``.

    Raises UnsupportedHere when it is not built.
    """
    return _find(f"flat/{name}.bin")


def include_dir() -> Path:
    """The folder of ``fpstate_guest.h`` and ``flat.ld``, for a compiler's ``-I``.

    Raises UnsupportedHere when it is not installed.
    """
    return _find("include/fpstate_guest.h").parent


def get_include() -> str:
    """The folder of ``fpstate.h``, for ``include_dirs`` of an extension module or a compiler's ``-I``.

    Raises UnsupportedHere when it is not installed.
    """
    return str(_find("include/fpstate.h").parent)
