"""Single restores: XRSTOR, and sigreturn of both tables, each after a known pattern was loaded."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fpstate.arch import Layout
from fpstate.image.subject import FRAME, MAGIC1, MAGIC2, SOFTWARE_AT
from recorded import Case, Patch, build

from .child import PAGE_FAULT, Child, Record, Step
from .host import UNUSED, Host
from .inputs import ALL, TEMPLATES, Inputs
from .perform import TIMES, NewChild, majority
from .registers import register_list

FSAVE = 112
"""Bytes of FSAVE's form before the FXSAVE image in frames of the i386 table."""
FAR = 4096
"""Zeros behind most images, so that no restore reaches the end of memory."""
_BATCH = 64
_SKEWS = (1, 4, 8, 16, 32, 48)
_MAGIC2_SIZE = 4
_TRAILING = 65536


@dataclass(frozen=True)
class Attempt:
    """One restore: an image, where it lies, and what is executed."""

    image: bytes
    trailing: int
    operation: str
    mask: int = 0
    null: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a restore: the record of the instruction, and a standard image of the registers afterwards."""

    record: Record
    registers: bytes


class Restores:
    """Lets a child restore images that end before inaccessible memory, each after the pattern."""

    def __init__(self, child: Child, host: Host, pattern: bytes) -> None:
        self.child = child
        self.host = host
        self.pattern_at = child.place(pattern[: host.size].ljust(host.size, b"\0"))
        child.keep()

    def run(self, attempts: Sequence[Attempt]) -> list[Outcome]:
        """Try each image, in order."""
        child = self.child
        child.release()
        steps: list[Step] = []
        places: list[int] = []
        for attempt in attempts:
            image = child.place(attempt.image)
            at = image_address(child, attempt)
            saved = child.reserve(self.host.size)
            places.append(saved)
            steps += [
                child.step("fill", child.end - _TRAILING, 0, _TRAILING),
                child.step("copy", at, image, len(attempt.image)),
                child.step("fill", saved, 0, self.host.size),
                child.step("xrstor64", self.pattern_at, ALL),
                child.step(attempt.operation, 0 if attempt.null else at, attempt.mask),
                child.step("xsave64", saved, ALL),
            ]
        records = child.run(steps)[4::6]
        return [
            Outcome(
                record.without_vector() if attempt.operation.startswith("sigreturn") else record,
                child.read(at, self.host.size),
            )
            for attempt, record, at in zip(attempts, records, places, strict=True)
        ]


def image_address(child: Child, attempt: Attempt) -> int:
    """Where the child has an image while it is restored."""
    return child.end - attempt.trailing - len(attempt.image)


class _Cases:
    """Cases of one file; ``in_xsave`` is where the XSAVE part of an image begins."""

    def __init__(self, host: Host, inputs: Inputs, permission: int, size: int, *, in_xsave: int = 0) -> None:
        self.host, self.inputs, self.size, self.in_xsave = host, inputs, size, in_xsave
        self.permission = permission
        self.pattern = inputs.pattern(host.xfeatures(permission) & host.xcr0)
        self.templates = [self.template() for _ in range(TEMPLATES)]
        self.bases = [bytes(build(patches, inputs.pool, size)) for patches in self.templates]
        self.source = inputs.source

    def header(self, **more: Any) -> dict[str, Any]:
        return {**more, "permission": self.permission, "pattern": self.pattern, "size": self.size,
                "templates": self.templates}  # fmt: skip

    def template(self) -> list[Patch]:
        return self.inputs.template()

    def one(self) -> tuple[Case, Attempt]:
        raise NotImplementedError

    def image(self) -> tuple[Case, bytes]:
        """A template and what is broken in it."""
        number = self.source.randrange(len(self.bases))
        broken = self.source.random() < 0.6
        patches = self.inputs.mutations(self.bases[number], self.in_xsave) if broken else []
        return {"t": number, "p": patches}, bytes(
            build(patches, self.inputs.pool, self.size, self.bases[number])
        )

    def record(self, count: int, new_child: NewChild) -> Iterator[Case]:
        """Let ``count`` restores run, each three times."""
        pattern = bytes(build(self.pattern, self.inputs.pool, self.host.size))
        batch = 1 if self.permission == UNUSED else _BATCH
        for start in range(0, count, batch):
            made = [self.one() for _ in range(min(batch, count - start))]
            with new_child() as child:
                restores = Restores(child, self.host, pattern)
                times = [restores.run([attempt for _, attempt in made]) for _ in range(TIMES)]
                for (case, attempt), outcomes in zip(made, zip(*times, strict=True), strict=True):
                    outcome, agreed = majority(outcomes)
                    case["r"] = answer(
                        self.host, attempt, outcome, pattern, image_address(child, attempt), self.in_xsave
                    )
                    if not agreed:
                        case["varies"] = 1
                    yield case


def answer(
    host: Host, attempt: Attempt, outcome: Outcome, pattern: bytes, address: int, in_xsave: int = 0
) -> dict[str, Any]:
    """Put what came of a restore into the form of the files."""
    record = outcome.record
    told: dict[str, Any] = {"x": record.in_use}
    if record.fault:
        told["f"] = record.fault
        if record.vector == PAGE_FAULT:
            told["at"] = record.address - address
            told["err"] = record.error
    if record.pkru & 3:
        told["k"] = record.pkru
    told["g"] = register_list(host, outcome.registers, attempt.image[in_xsave:], pattern)
    return told


class XrstorCases(_Cases):
    """One XRSTOR each."""

    def __init__(self, host: Host, inputs: Inputs, permission: int, *, short: bool) -> None:
        super().__init__(host, inputs, permission, host.size)
        self.operations = ["xrstor64"] * 4 + (["xrstor", "xrstor@32"] if short else ["xrstor"])

    def one(self) -> tuple[Case, Attempt]:
        source = self.source
        case, image = self.image()
        chance = source.random()
        trailing = FAR
        if chance < 0.2:
            ends = [place.end for place in self.host.standard.places] + [0, 64, 512, 576, 640]
            length = source.choice(
                (*ends, *ends, 64 * source.randrange(self.size // 64 + 1), source.choice((511, 575, 577)))
            )
            image, trailing = image[: min(length, self.size)], 0
        elif chance < 0.28:
            trailing = FAR + source.choice(_SKEWS)
        attempt = Attempt(image, trailing, source.choice(self.operations), self.inputs.mask())
        return {**case, "n": len(image), "s": trailing, "o": attempt.operation, "m": attempt.mask}, attempt


class SigreturnCases(_Cases):
    """One return from a signal each; ``table`` 64 or 32."""

    def __init__(self, host: Host, inputs: Inputs, permission: int, table: int) -> None:
        self.table = table
        self.frame = Layout.standard(host.cpu, host.xfeatures(permission)).size
        in_xsave = FSAVE if table == 32 else 0
        super().__init__(host, inputs, permission, in_xsave + self.frame + _MAGIC2_SIZE, in_xsave=in_xsave)

    def template(self) -> list[Patch]:
        """A frame; in the i386 table's, FSAVE's form of x87 comes first, and mostly some of it."""
        source, inputs = self.inputs.source, self.inputs
        fsave: list[Patch] = []
        if self.in_xsave and source.random() < 0.7:
            fsave = [
                [0, source.randrange(32768), FSAVE],
                [0, source.choice(("7f03ffff", "7f02ffff", "4000ffff"))],
            ]
        words = FRAME.pack(MAGIC1, self.size, self.host.xfeatures(self.permission), self.frame)
        patches = inputs.template(compacted=0.12)
        patches += [
            [SOFTWARE_AT, words.ljust(48, b"\0").hex()],
            [self.frame, struct.pack("<I", MAGIC2).hex()],
        ]
        return [*fsave, *([patch[0] + self.in_xsave, *patch[1:]] for patch in patches)]

    def one(self) -> tuple[Case, Attempt]:
        source = self.source
        case, image = self.image()
        operation = f"sigreturn{self.table}"
        trailing = FAR + -(len(image) + FAR) % 64
        chance = source.random()
        if chance < 0.005:
            image, trailing = b"", 0
        elif chance < 0.09:
            ends = [place.end + self.in_xsave for place in self.host.standard.places]
            cut = source.choice(
                (*ends, 64, 112, 448, 512, 576, 640, 768, self.size - 4, self.size - 8, self.size - 64)
            )
            image = image[:cut]
            trailing = -len(image) % 64 if source.random() < 0.5 else 0
        elif chance < 0.19:
            trailing += source.choice(_SKEWS)
        attempt = Attempt(image, trailing, operation, null=not image)
        return {**case, "n": len(image), "s": trailing, "o": operation}, attempt


def record_xrstor(
    host: Host, inputs: Inputs, count: int, permission: int, new_child: NewChild, *, short: bool
) -> tuple[dict[str, Any], Iterator[Case]]:
    """Return the header of a file of XRSTOR, and its cases as they come."""
    cases = XrstorCases(host, inputs, permission, short=short)
    return cases.header(kind="xrstor", mode=64), cases.record(count, new_child)


def record_sigreturn(
    host: Host, inputs: Inputs, count: int, permission: int, new_child: NewChild, *, table: int
) -> tuple[dict[str, Any], Iterator[Case]]:
    """Return the header of a file of returns from signals, and its cases as they come."""
    cases = SigreturnCases(host, inputs, permission, table)
    return cases.header(kind="sigreturn", mode=table), cases.record(count, new_child)
