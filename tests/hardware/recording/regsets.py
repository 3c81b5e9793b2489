"""Regsets that are set by ptrace: what it answers, what it reads back, what the process then runs with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fpstate.image.subject import SOFTWARE_AT
from recorded import Case, Patch, build

from .host import Host
from .images import FSAVE
from .inputs import TEMPLATES, Inputs
from .registers import pkru_of, register_list
from .traced import NT_PRFPREG, NT_PRXFPREG, Traced

NewTraced = Callable[[], Traced]
_LEGACY = 512
_I387 = 108
"""Bytes of struct user_i387_ia32_struct, the i386 form of NT_PRFPREG."""
_NOTES = {"prfpreg": NT_PRFPREG, "prxfpreg": NT_PRXFPREG}
_ODD = slice(464, 576)


def readback(host: Host, data: bytes, image: bytes | bytearray, pattern: bytes) -> dict[str, Any]:
    """What a readback in the standard format shows, as ``b``, and as ``odd`` bytes that are mostly the same."""
    told: dict[str, Any] = {
        "b": [int.from_bytes(data[512:520], "little"), *register_list(host, data, image, pattern)]
    }
    usual = (host.cpu.enabled_xcr0 or 0).to_bytes(8, "little")
    if data[SOFTWARE_AT : SOFTWARE_AT + 8] != usual or any(data[520:576]):
        told["odd"] = data[_ODD].hex()
    return told


class Regsets:
    """Cases of one file. ``kind`` is ``ptrace`` (NT_X86_XSTATE) or ``fpregs``."""

    def __init__(self, host: Host, inputs: Inputs, permission: int, mode: int, kind: str) -> None:
        self.host, self.inputs, self.permission, self.mode = host, inputs, permission, mode
        self.source = inputs.source
        self.size = host.standard.size
        self.operations = ["xstate"]
        if kind == "fpregs":
            self.operations = ["setfpregs", "prfpreg"] + ["prxfpreg"] * (mode == 32)
        self.pattern = inputs.pattern(host.xfeatures(permission) & host.xcr0)
        self.templates = [self._template() for _ in range(TEMPLATES)]
        self.bases = [bytes(build(patches, inputs.pool, self.size)) for patches in self.templates]

    def header(self) -> dict[str, Any]:
        return {"kind": "ptrace", "permission": self.permission, "mode": self.mode, "pattern": self.pattern,
                "size": self.size, "templates": self.templates}  # fmt: skip

    def record(self, count: int, new_traced: NewTraced) -> Iterator[Case]:
        """Set ``count`` regsets, each after the pattern."""
        pattern = bytes(build(self.pattern, self.inputs.pool, self.size))
        with new_traced() as traced:
            assert traced.set(pattern) == 0
            shown = traced.get()
            for _ in range(count):
                case, data, compared = self._one()
                assert traced.set(pattern) == 0
                case["r"] = self._answer(traced, case["o"], data, compared, pattern, shown)
                yield case

    def _answer(
        self, traced: Traced, operation: str, data: bytes, compared: bytes, pattern: bytes, shown: bytes
    ) -> dict[str, Any]:
        if operation == "setfpregs":
            error = traced.set_fpregs(data)
        else:
            error = traced.set(data, *([_NOTES[operation]] if operation in _NOTES else []))
        told: dict[str, Any] = {"e": error}
        got = traced.get()
        if got == shown:
            return {**told, "u": 1}
        told |= readback(self.host, got, compared, pattern)
        seen = traced.run()
        listed = register_list(self.host, seen.registers, compared, pattern, short=self.mode == 32)
        told["v"] = [seen.in_use, seen.pkru if self.host.has_pkru else pkru_of(self.host, got), *listed]
        return told

    def _one(self) -> tuple[Case, bytes, bytes]:
        """A case, the bytes that are set, and the image that they are compared with."""
        source = self.source
        number = source.randrange(len(self.bases))
        base = self.bases[number]
        patches = self.inputs.mutations(base) if source.random() < 0.55 else []
        operation = source.choice(self.operations)
        length = self._length(operation)
        image = bytes(build(patches, self.inputs.pool, self.size, base))
        data = image[:length].ljust(length, b"\xee")
        compared = b"" if operation == "prfpreg" and self.mode == 32 else image[:length]
        return {"t": number, "p": patches, "n": length, "o": operation}, data, compared

    def _length(self, operation: str) -> int:
        source = self.source
        if operation == "setfpregs":
            return _LEGACY
        full = (
            self.size
            if operation == "xstate"
            else _I387
            if operation == "prfpreg" and self.mode == 32
            else _LEGACY
        )
        if source.random() > 0.1:
            return full
        return source.choice(
            (
                0,
                8,
                full - 8,
                full - 4,
                full - 1,
                full + 1,
                full + 4,
                full + 8,
                full + 64,
                511,
                576,
                FSAVE,
                832,
            )
        )

    def _template(self) -> list[Patch]:
        software = (self.host.cpu.enabled_xcr0 or 0).to_bytes(8, "little").hex()
        return [*self.inputs.template(compacted=0.1), [SOFTWARE_AT, software]]


def record_regsets(
    host: Host, inputs: Inputs, count: int, permission: int, new_traced: NewTraced, *, mode: int, kind: str
) -> tuple[dict[str, Any], Iterator[Case]]:
    """Return the header of a file of regsets, and its cases as they come."""
    cases = Regsets(host, inputs, permission, mode, kind)
    return cases.header(), cases.record(count, new_traced)
