"""XRSTOR and sigreturn, replayed: the fault, and every register afterwards, after a fault too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from image_judge import Judge
from register_letters import INITIAL, Source, control_fields

from fpstate.arch.exception import MNEMONICS
from fpstate.image.consumer import Consumer, Target
from fpstate.image.legacy import from_fsave
from fpstate.image.outcome import cleared
from fpstate.image.rules import Verdict
from linux_signal import REFUSED_FRAME, SIGNALS
from recorded import Case

PAGE: Final = 4096
FSAVE_PART: Final = 112
FSAVE_SIZE: Final = 108
_FAULTS: Final = {MNEMONICS[vector]: told for vector, told in SIGNALS.items()} | {"SIGSEGV": (REFUSED_FRAME,)}
"""What is recorded of a refusal, by ``Verdict.answer``."""


class Restored(Judge):
    """XRSTOR and sigreturn: a fault or none, and the registers afterwards."""

    def problem(self, case: Case) -> str:
        answer, operation = case["r"], case["o"]
        start = FSAVE_PART if operation == "sigreturn32" else 0
        whole = self.image(case, case["n"]) + bytes(case["s"])
        address = -(case["s"] + case["n"]) % PAGE
        verdict = self.verdict(case, whole, address)
        self.counts["refused"] += not verdict.accepted
        if problem := self.fault(answer, verdict, len(whole)):
            return problem
        data = whole[start:]
        sources = {"L": self.stated(data, verdict), "K": self.kept, "I": INITIAL}
        raw = self.x87_of(whole, start)
        if start and verdict.loaded & 1:
            sources |= {"F": Source(raw, None)}
        control = control_fields(
            bytes(raw[:24]).ljust(24, b"\0"),
            self.pointers,
            wide=operation in ("xrstor64", "sigreturn64", "sigreturn32"),
            read_wide=not self.mode32,
        )
        return self.afterwards(
            *(answer["g"], answer["x"], answer.get("k"), verdict, sources, control),
            written_32=operation.endswith("@32"),
        )

    @staticmethod
    def x87_of(whole: bytearray, start: int) -> bytes:
        """Return the 160 bytes in which x87 is loaded: those of the FXSAVE image, or the FSAVE part made into them."""
        if start and len(whole) >= FSAVE_SIZE:
            return bytes(from_fsave(whole[:FSAVE_SIZE]).to_bytes()[:160])
        return bytes(whole[start : start + 160])

    def verdict(self, case: Case, data: bytes | bytearray, address: int) -> Verdict:
        raise NotImplementedError

    @staticmethod
    def fault(answer: Mapping[str, Any], verdict: Verdict, length: int) -> str:
        """Compare the signal; a page fault is at the end of memory, ``length`` bytes from the image's start."""
        if verdict.accepted:
            return f"fault {answer['f']}, taken by the rules" if "f" in answer else ""
        if answer.get("f") not in _FAULTS[verdict.answer]:
            return (
                f"fault {answer.get('f')}, not {verdict.answer} by {[each.id for each in verdict.refusals]}"
            )
        if verdict.answer == "#PF" and answer["at"] < length:
            return f"#PF at byte {answer['at']} of {length}"
        return ""


class Xrstor(Restored):
    """One XRSTOR each, with a mask."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._asked: dict[int, Target] = {}

    def verdict(self, case: Case, data: bytes | bytearray, address: int) -> Verdict:
        mask = case["m"] & self.target.xcr0
        if mask not in self._asked:
            self._asked[mask] = self.target.with_(requested=mask)
        return self.foretell(data, Consumer.XRSTOR, self._asked[mask], address=address)


class Sigreturn(Restored):
    """rt_sigreturn, and sigreturn of the i386 table; an image of no bytes stands for a frame without one."""

    def verdict(self, case: Case, data: bytes | bytearray, address: int) -> Verdict:
        consumer = Consumer.SIGRETURN32 if case["o"] == "sigreturn32" else Consumer.SIGRETURN
        if not case["n"]:
            return cleared(self.target, consumer)
        return self.foretell(data, consumer, self.target, address=address)
