"""Making choices smaller while they still show the same: shorter first, then plainer."""

from __future__ import annotations

from collections.abc import Callable


def smaller(data: bytes, shows: Callable[[bytes], bool], *, tries: int) -> bytes:
    """Return choices that still show it: cut at the end, parts left out, bytes made 0; at most ``tries`` tries."""
    left = tries

    def good(candidate: bytes) -> bool:
        nonlocal left
        left -= 1
        return left >= 0 and shows(candidate)

    data = _cut(data, good)
    size = max(len(data) // 2, 1)
    while size and left > 0:
        at = 0
        while at < len(data) and left > 0:
            shorter = data[:at] + data[at + size :]
            if good(shorter):
                data = shorter
                continue
            plainer = data[:at] + bytes(len(data[at : at + size])) + data[at + size :]
            if plainer != data and good(plainer):
                data = plainer
            at += size
        size //= 2
    return data.rstrip(b"\0")


def _cut(data: bytes, good: Callable[[bytes], bool]) -> bytes:
    """Return the shortest beginning that still shows it, by halves: past the end every choice is the plain one."""
    low, high = 0, len(data)
    while low < high:
        middle = (low + high) // 2
        if good(data[:middle]):
            high = middle
        else:
            low = middle + 1
    return data[:high]
