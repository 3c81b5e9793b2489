"""What the oracle tests share: mutated images, and what a verdict says of registers."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from recording.host import NONE, USED, Host

from fpstate.arch import Component, Cpu, Layout, mask_of
from fpstate.arch.component import LEGACY_PLACES, USER_DYNAMIC, components_in
from fpstate.image.consumer import Target
from fpstate.image.control import ControlWord, StatusWord
from fpstate.image.initial import initial_bytes
from fpstate.image.rule import Rule
from fpstate.image.rules import RULES, Verdict
from fpstate.image.tile import CONFIGURATION_SIZE
from fpstate.testing import random_image
from fpstate.testing.chance import mangle, tile_configuration

LONG = os.environ.get("FPSTATE_LONG") == "1"
SANITIZED = os.environ.get("FPSTATE_SANITIZED") == "1"
SHARE = int(os.environ.get("FPSTATE_SHARE", "20" if SANITIZED else "1"))
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
BASES = 60
BROKEN_TILES = 0.5
MXCSR_AT = 24
PKRU = mask_of(Component.PKRU)
PKRU_SIZE = 4
"""Bytes of PKRU's eight that are saved and restored."""


def share(count: int, *, long: int = 10) -> int:
    """How many images to try: this many in CI, ``long`` times as many where FPSTATE_LONG=1, one in FPSTATE_SHARE
    where that is set, fewer under ASan.
    """
    return count * long if LONG else count // SHARE


def host_target(permission: int = NONE) -> Target:
    """This processor under Linux, as a target; with ``USED`` permission for tiles, which were used."""
    return Target.from_cpu(Cpu.host(), permitted=USER_DYNAMIC if permission == USED else 0)


def count_for(count: int, permission: int) -> int:
    """How many images to try: where tiles can be had, most of them in a task that has tiles."""
    return share(count if permission == USED or not Host.here().has_tiles else count // 10)


def without(rule: str) -> Mapping[str, Rule]:
    """The rules but one: the sabotage that an oracle must notice."""
    assert rule in RULES
    return {id: each for id, each in RULES.items() if id != rule}


def mutants(
    target: Target,
    seed: int,
    count: int,
    shape: Callable[[bytes], bytes] = bytes,
    *,
    without: int = PKRU,
) -> Iterator[tuple[bytearray, random.Random]]:
    """Yield mutated images in each format that this processor has, and the source of chance.

    They are as long as standard images, and then put into ``shape``. Where they have TILECFG, it is now and then
    broken. PKRU is left out by default: who loads it at random must bear to be locked out of its memory.
    """
    source = random.Random(seed)
    mask = target.user_xfeatures
    layouts = [target.standard]
    if target.compaction:
        layouts.append(Layout.compacted(target.cpu, mask))
    bases = []
    for number in range(BASES):
        for layout in layouts:
            present = source.getrandbits(20) & mask & ~without
            image = random_image(layout, seed + number, present=present, mxcsr_mask=target.mxcsr_mask)
            data = bytearray(image.to_bytes().ljust(target.standard.size, b"\0"))
            if Component.TILECFG in layout and source.random() < BROKEN_TILES:
                start = layout.offset(Component.TILECFG)
                data[start : start + CONFIGURATION_SIZE] = tile_configuration(source)
            bases.append(bytes(shape(bytes(data))))
    for _ in range(count):
        data = bytearray(source.choice(bases))
        mangle(data, source)
        yield data, source


def registers(area: bytes | bytearray | memoryview, component: int, layout: Layout) -> bytes:
    """Return what tells one state of a component from another; x87 as a restore would make it."""
    start, size = LEGACY_PLACES.get(component) or (layout.offset(component), layout.size_of(component))
    return comparable(component, bytes(area[start : start + size]))


def comparable(component: int, data: bytes) -> bytes:
    if component == Component.PKRU:
        return data[:PKRU_SIZE]
    if component != Component.X87:
        return data
    control, status = struct.unpack_from("<HH", data)
    status = int(StatusWord(status).recomputed(ControlWord(control)))
    stack = b"".join(data[start : start + 10] for start in range(32, 160, 16))
    return struct.pack("<HHB", control, status, data[4]) + stack


def initial(component: int, layout: Layout) -> bytes:
    size = LEGACY_PLACES[component][1] if component in LEGACY_PLACES else layout.size_of(component)
    return comparable(component, initial_bytes(component, 0, size))


def disagreement(
    data: bytes | bytearray,
    verdict: Verdict,
    target: Target,
    saved: bytes | memoryview,
    *,
    pattern: bytes | None = None,
    visible: int | None = None,
) -> str:
    """Say where registers, saved in the standard format, are not what the verdict says; empty where they are.

    Verdicts on what is refused say it too. ``pattern`` is what was in them before; without it what is kept is not
    looked at. ``visible`` bounds what the saved bytes hold.
    """
    compacted = len(data) > 527 and data[527] & 0x80 and not verdict.fx_only
    here = target.compacted(int.from_bytes(data[520:528], "little")) if compacted else None
    here = here or target.standard  # of a header that states what is not there nothing is loaded
    known = target.standard.mask if visible is None else visible
    for component in components_in(known & (verdict.loaded | verdict.initialised | verdict.kept)):
        if verdict.loaded >> component & 1:
            expected, what = registers(data, component, here), "loaded"
        elif verdict.initialised >> component & 1:
            expected, what = initial(component, target.standard), "initialised"
        elif pattern is not None:
            expected, what = registers(pattern, component, target.standard), "kept"
        else:
            continue
        if registers(saved, component, target.standard) != expected:
            return f"component {component} is not {what}"
    return ""


def wrong_words(verdict: Verdict, target: Target, saved: bytes, pattern: bytes) -> str:
    """Say which of MXCSR and PKRU are not what the verdict says; where it says nothing they are the pattern's."""
    expected = mxcsr_of(pattern) if verdict.mxcsr is None else verdict.mxcsr
    if mxcsr_of(saved) != expected:
        return f"MXCSR is {mxcsr_of(saved):#x}, not {expected:#x}"
    if Component.PKRU not in target.standard:
        return ""
    before, found = (
        int.from_bytes(registers(area, Component.PKRU, target.standard), "little")
        for area in (pattern, saved)
    )
    expected = before if verdict.pkru is None else verdict.pkru
    return "" if found == expected else f"PKRU is {found:#x}, not {expected:#x}"


def as_reported(verdict: Verdict) -> Verdict:
    """Return the verdict on what reads back, which may be more than what got into the registers."""
    return replace(verdict, loaded=verdict.reported, initialised=verdict.initialised & ~verdict.reported)


def mxcsr_of(area: bytes | bytearray | memoryview) -> int:
    value: int = struct.unpack_from("<I", area, MXCSR_AT)[0]
    return value


@dataclass
class Tally:
    """How often what was foretold came true, and the first few times that it did not."""

    counts: dict[str, int] = field(default_factory=dict)
    disagreements: list[str] = field(default_factory=list)

    def add(self, verdict: Verdict, problem: str, data: bytes | bytearray) -> None:
        self.counts[str(verdict)] = self.counts.get(str(verdict), 0) + 1
        if problem:
            header = struct.unpack_from("<QQ", data, 512)
            ids = " ".join(finding.id for finding in verdict.refusals)
            self.disagreements.append(
                f"{problem}: foretold {verdict} {ids}; XSTATE_BV {header[0]:#x} XCOMP_BV {header[1]:#x}"
                f" MXCSR {mxcsr_of(data):#x} software bytes {bytes(data[464:484]).hex()}"
            )

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def assert_agreement(self, wanted: int) -> None:
        assert not self.disagreements, f"{len(self.disagreements)} of {self.total}: {self.disagreements[:3]}"
        assert self.total == wanted
        assert self.counts["rejected"] > wanted // 20
        assert self.total - self.counts["rejected"] > wanted // 20
