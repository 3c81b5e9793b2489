"""The kinds of files, and an input made: a file of one kind with the options that it is read with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .core import core
from .criu import criu
from .draw import Draw, choices
from .layout import layout
from .minidump import minidump
from .program import program
from .raw import kvm, raw
from .state_file import state_file
from .states import CPUS
from .wrapping import wrapped

_WRAPPED: Final = 16
_NAMES: Final = {"criu": "core-7.img", "layout": "layout.json", "state file": "in.fpvso", "program": "in.elf"}


def compressed(draw: Draw, *, far: bool = False) -> bytes:
    """Any other source, compressed."""
    inner = draw.pick((core, core, minidump, criu, raw, kvm, state_file))
    return wrapped(draw, inner(draw, far=draw.chance(30)))


KINDS: Final[dict[str, Callable[..., bytes]]] = {
    "core": core,
    "minidump": minidump,
    "criu": criu,
    "raw": raw,
    "kvm": kvm,
    "state file": state_file,
    "compressed": compressed,
    "layout": layout,
    "program": program,
}
SHARES: Final = {
    **{"core": 0.25, "minidump": 0.15, "criu": 0.08, "raw": 0.14, "kvm": 0.06},
    **{"state file": 0.12, "compressed": 0.1, "layout": 0.04, "program": 0.06},
}
"""How many of all inputs are of a kind."""


@dataclass(frozen=True, slots=True)
class Made:
    """An input: the file's ``name`` and bytes, and how it is to be read.

    ``cpu`` is None where nobody names its producer; ``to_cpu``, ``to_format`` and ``consumer`` are what it is
    checked, repaired and converted for.
    """

    kind: str
    name: str
    data: bytes
    cpu: str | None = None
    format: str | None = None
    to_cpu: str = "zen4"
    to_format: str = "std"
    consumer: str = "xrstor"
    leftovers: str = "auto"
    lane_type: str = "hex"
    thread: int | None = None
    amx: bool = False
    json: bool = False


def make(kind: str, data: bytes) -> Made:
    """Make the input that some choices stand for."""
    draw = Draw(data)
    draw.wild = draw.pick((1, 1, 3, 8))
    if draw.chance(12):
        draw.repeats = draw.pick((30, 30, 30, 800))
    options = _options(draw, kind)
    made = KINDS[kind](draw)
    if kind not in ("compressed", "layout", "program") and draw.chance(_WRAPPED):
        made = wrapped(draw, made)
    return Made(kind, _NAMES.get(kind, "in.bin"), made, **options)  # type: ignore[arg-type]


def numbered(seed: str, number: int) -> tuple[str, bytes]:
    """Return kind and choices of one input of many, the same for the same seed and number."""
    data = choices(seed, number)
    point = int.from_bytes(data[:4], "little") / (1 << 32)
    for kind, share in SHARES.items():
        point -= share
        if point < 0:
            return kind, data[4:]
    return "core", data[4:]


def _options(draw: Draw, kind: str) -> dict[str, object]:
    formats = ("std", "compacted", "fxsave", "fsave", "sigframe", "kvm-xsave", "kvm-fpu")
    return {
        "cpu": draw.pick((None, None, *CPUS)),
        "format": draw.pick(formats) if kind in ("raw", "kvm") and draw.chance(30) else None,
        "to_cpu": draw.pick(("zen4", "sapphire-rapids", "haswell", "zen2")),
        "to_format": draw.pick(("std", "std", "compacted", "fxsave", "fsave")),
        "consumer": draw.pick(("xrstor", "xrstor", "xrstors", "ptrace", "sigreturn", "kvm")),
        "leftovers": draw.pick(("auto", "auto", "state", "clear", "keep")),
        "lane_type": draw.pick(("hex", "hex", "f64", "f16", "bf16", "i8", "u64")),
        "thread": 1 + draw.below(3) if draw.chance(90) else None,
        "amx": draw.chance(128),
        "json": draw.chance(90),
    }
