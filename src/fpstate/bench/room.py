"""How much memory a measurement may take: what the machine has left, or the control group this process is in."""

from __future__ import annotations

from pathlib import Path
from typing import Final

SHARE: Final = 0.8
"""Of what is left, so much may be taken."""
OWN_BYTES: Final = 256
"""More than the library and Python hold for a context beside its state."""
_MEMINFO: Final = Path("/proc/meminfo")
_GROUP: Final = Path("/proc/self/cgroup")
_GROUPS: Final = Path("/sys/fs/cgroup")


def available(meminfo: Path = _MEMINFO, group: Path = _GROUP, groups: Path = _GROUPS) -> int | None:
    """Return bytes: MemAvailable, or less where a control group (version 2) above this process allows less."""
    left = [
        bytes_left
        for bytes_left in (_machine(meminfo), *_group_limits(group, groups))
        if bytes_left is not None
    ]
    return min(left, default=None)


def contexts_that_fit(wanted: int, bytes_each: int) -> int:
    """Return how many contexts of so many bytes may be made: as many as wanted, or as fit."""
    left = available()
    return wanted if left is None else min(wanted, int(left * SHARE) // bytes_each)


def shortage(wanted: int, bytes_each: int) -> str:
    """Say what is lacking where they do not all fit."""
    return f"{wanted:,} contexts need {wanted * bytes_each:,} bytes, {available() or 0:,} are available"


def _machine(meminfo: Path) -> int | None:
    for line in _lines(meminfo):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _group_limits(group: Path, groups: Path) -> list[int]:
    paths = [line.partition("::")[2].strip("/") for line in _lines(group) if line.startswith("0::")]
    folders = [
        folder
        for path in paths
        for folder in (groups / path, *(groups / path).parents)
        if folder != groups.parent
    ]
    limits = []
    for folder in folders:
        most, used = _lines(folder / "memory.max"), _lines(folder / "memory.current")
        if most and used and most[0].isdigit():
            limits.append(max(0, int(most[0]) - int(used[0])))
    return limits


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
