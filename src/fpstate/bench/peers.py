"""Other switches, the bare instructions and the library's own, one after another, many times."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from fpstate.errors import UnsupportedHere

from .peer_process import NATIVE_PEERS, PeerProcess, build, workshop
from .runtime_peer import RUNTIME_PEERS
from .sample import Samples, in_turn

FULL: Final = "all user state"


@dataclass(frozen=True)
class Way:
    """A switch that is measured beside the peers: its name, what it keeps, and what takes a sample of it."""

    name: str
    keeps: str
    sample: Callable[[], float]


def compare(ours: list[Way], repeats: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return a row for each peer and each of ``ours``, the fastest first, and why others are missing."""
    missing: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        ways = [*ours, *_native(stack, missing), *_runtime(missing)]
        taken = in_turn({way.name: way.sample for way in ways}, repeats)
    rows = [_row(way, taken[way.name]) for way in ways]
    return sorted(rows, key=lambda row: float(row["min"])), missing


def _row(way: Way, samples: Samples) -> dict[str, Any]:
    return {"name": way.name, "keeps": way.keeps, "unit": "ns", **samples.as_json()}


def _native(stack: contextlib.ExitStack, missing: dict[str, str]) -> list[Way]:
    folder, found = stack.enter_context(workshop()), []
    for peer in NATIVE_PEERS:
        try:
            process = PeerProcess(build(peer, folder))
            stack.callback(process.close)
            process.sample()
        except UnsupportedHere as reason:
            missing[peer.name] = reason.missing
        else:
            found.append(Way(peer.name, peer.keeps, process.sample))
    return found


def _runtime(missing: dict[str, str]) -> list[Way]:
    found = []
    for peer in RUNTIME_PEERS:
        try:
            found.append(Way(peer.name, peer.keeps, peer.make()))
        except UnsupportedHere as reason:
            missing[peer.name] = reason.missing
    return found
