"""What the oracle tests share: mutated images, what a verdict says of registers, and a child that restores."""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fpstate.arch import Component, Cpu, Layout, mask_of
from fpstate.arch.component import LEGACY_PLACES, components_in
from fpstate.image.consumer import Target
from fpstate.image.control import ControlWord, StatusWord
from fpstate.image.initial import initial_bytes
from fpstate.image.rule import Rule
from fpstate.image.rules import RULES, Verdict
from fpstate.testing import random_image
from fpstate.testing.chance import mangle

LONG = os.environ.get("FPSTATE_LONG") == "1"
SANITIZED = os.environ.get("FPSTATE_SANITIZED") == "1"
SHARE = int(os.environ.get("FPSTATE_SHARE", "20" if SANITIZED else "1"))
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
BASES = 60
MXCSR_AT = 24
AREA = 12288  # in restorer.c too: room for every user component there is, tiles included


def share(count: int, *, long: int = 10) -> int:
    """How many images to try: this many in CI, ``long`` times as many where FPSTATE_LONG=1, one in FPSTATE_SHARE
    where that is set, fewer under ASan.
    """
    return count * long if LONG else count // SHARE


def host_target() -> Target:
    """This processor under Linux, as a target."""
    return Target.from_cpu(Cpu.host())


def without(rule: str) -> Mapping[str, Rule]:
    """The rules but one: the sabotage that an oracle must notice."""
    assert rule in RULES
    return {id: each for id, each in RULES.items() if id != rule}


def mutants(
    target: Target, seed: int, count: int, shape: Callable[[bytes], bytes] = bytes
) -> Iterator[tuple[bytearray, random.Random]]:
    """Yield mutated images in each format that this processor has, and the source of chance.

    They are as long as standard images, and then put into ``shape``. PKRU is left out: a test that loads it at
    random locks itself out of its memory.
    """
    source = random.Random(seed)
    mask = target.user_xfeatures
    layouts = [target.standard]
    if target.compaction:
        layouts.append(Layout.compacted(target.cpu, mask))
    bases = []
    for number in range(BASES):
        for layout in layouts:
            present = source.getrandbits(20) & mask & ~mask_of(Component.PKRU)
            image = random_image(layout, seed + number, present=present, mxcsr_mask=target.mxcsr_mask)
            bases.append(bytes(shape(image.to_bytes().ljust(target.standard.size, b"\0"))))
    for _ in range(count):
        data = bytearray(source.choice(bases))
        mangle(data, source)
        yield data, source


def registers(area: bytes | bytearray | memoryview, component: int, layout: Layout) -> bytes:
    """Return what tells one state of a component from another; x87 as a restore would make it."""
    start, size = LEGACY_PLACES.get(component) or (layout.offset(component), layout.size_of(component))
    return comparable(component, bytes(area[start : start + size]))


def comparable(component: int, data: bytes) -> bytes:
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

    ``pattern`` is what was in them before; without it what is kept is not looked at. ``visible`` bounds what
    the saved bytes hold.
    """
    compacted = data[527] & 0x80 and not verdict.fx_only
    here = target.compacted(int.from_bytes(data[520:528], "little")) if compacted else target.standard
    assert here is not None
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


def compile_restorer(gcc: str, folder: Path) -> Path:
    """Compile restorer.c and return the program."""
    program = folder / "restorer"
    source = Path(__file__).with_name("restorer.c")
    subprocess.run(
        [gcc, "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, source], check=True, env=ENVIRONMENT
    )
    return program


class Restorer:
    """The child of restorer.c: it restores one image after the other and tells what came of it."""

    PATTERN, XRSTOR, SIGRETURN, NO_FRAME = range(4)

    def __init__(self, program: Path, pattern: bytes) -> None:
        self.pattern = pattern
        self._child = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=ENVIRONMENT
        )
        self._send(self.PATTERN, pattern, 0, 0)

    def ask(
        self,
        kind: int,
        data: bytes | bytearray,
        *,
        mask: int = (1 << 64) - 1,
        offset: int = 0,
        at_end: bool = False,
    ) -> tuple[int, int, bytes]:
        """Return signal (0: none), its code and the registers afterwards.

        ``offset`` is added to an address of 64 bytes' alignment. ``at_end``: memory ends with the image, whose
        length then decides about its alignment.
        """
        slack = 0 if at_end else (-len(data) - offset) % 64 + 8192
        self._send(kind, data, mask, slack)
        answer = self._read(8 + AREA)
        signal, code = struct.unpack_from("<Ii", answer)
        return signal, code, answer[8:]

    def close(self) -> None:
        """End the child."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        self._child.stdout.close()
        self._child.wait(timeout=10)

    def _send(self, kind: int, data: bytes | bytearray, mask: int, slack: int) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(struct.pack("<IIIIQ", kind, len(data), slack, 0, mask) + data)

    def _read(self, size: int) -> bytes:
        assert self._child.stdout is not None
        parts = []
        while size:
            part = self._child.stdout.read(size)
            assert part, f"the restoring child ended: {self._child.wait(timeout=10)}"
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
