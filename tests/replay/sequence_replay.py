"""Recorded sequences of instructions, done again by the model: what it foretells must be what the processor did.

What a processor may choose is taken over from the recording, after it was found to be legal, and counted:

* XINUSE[i] may be 1 while component i is initial.
* XSAVEOPT may write what it could have left out.

All else must be equal: results, exceptions, and every byte of an area after each save. The form of the recordings,
and what Linux did to the registers between two instructions, is told in data/oracles_intel/README.md.
"""

from __future__ import annotations

import zlib
from collections import Counter
from typing import Any

from replay_report import MANY, Machine, Report, processor_of, replayed
from sequence_operations import SAVES, Operation, Operations

from fpstate.arch import Component, Cpu, mask_of
from fpstate.arch.component import components_in
from fpstate.engine.model import Behaviour, Processor
from fpstate.engine.model.fault import NOT_AVAILABLE
from fpstate.engine.model.register_file import REACHED
from fpstate.errors import ProcessorFault
from fpstate.image.control import MXCSR_INIT
from linux_signal import pass_through_a_frame, signal_of
from recorded import Case, OracleFile

GRANTED_AND_USED, GRANTED = 1, 2
"""``OracleFile.permission``."""

_PKRU = int(Component.PKRU)
_SSE = mask_of(Component.SSE)
_KEY_0 = 3

Answer = dict[str, Any]


class DisagreementError(Exception):
    """The model says something else than the recording."""


def check_file(
    file: OracleFile, machine: Machine, behaviour: Behaviour | None = None, *, most: int = MANY
) -> Report:
    """Replay a file's sequences on the model of the processor that they were recorded on."""
    replay = _Replay(file, processor_of(machine), behaviour)
    report = replayed(file, replay.problem, most=most)
    report.counts = replay.counts
    return report


class _Replay:
    """One file's machine, and the sequence that it is in."""

    def __init__(self, file: OracleFile, cpu: Cpu, behaviour: Behaviour | None) -> None:
        self.counts: Counter[str] = Counter()
        self.processor = Processor.under_linux(cpu, behaviour)
        self._operations = Operations(file, self.processor)
        self._held_back = 0 if file.permission == GRANTED_AND_USED else self.processor.xfd
        self._grants = file.permission == GRANTED
        self._enabled = self.processor.xcr0
        self._in_use = 0

    def problem(self, case: Case) -> str:
        """Replay one sequence from the initial state; say what is not as recorded, or nothing."""
        self._operations.start(case)
        self.processor.xfd = self._held_back
        self._in_use = 0
        for step, (operation, answer) in enumerate(zip(case["o"], case["r"], strict=True)):
            self.counts[operation[0]] += 1
            try:
                self._step(operation, answer or {})
            except DisagreementError as disagreement:
                return f"step {step}, {operation}: {disagreement}"
        return ""

    def _step(self, operation: Operation, answer: Answer) -> None:
        signal, value = None, None
        before = bytes(self._operations.areas[operation[1]]) if operation[0] in SAVES else b""
        try:
            value = self._perform(operation)
        except ProcessorFault as fault:
            signal = signal_of(fault, self.processor)
        recorded = answer.get("f")
        if signal != recorded:
            raise DisagreementError(f"signal {recorded}, the model says {signal}")
        if recorded:
            pass_through_a_frame(self.processor)
        elif before:
            came = answer.get("x", self._in_use) & ~self.processor.xgetbv(1)
            self._compare_save(operation, answer["s"], before, came)
        if answer.get("v") != value:
            raise DisagreementError(f"value {answer.get('v')}, the model says {value}")
        self._open_key_0(answer.get("k"))
        self._follow_in_use(answer.get("x", self._in_use))

    def _perform(self, operation: Operation) -> int | None:
        """Do an operation, a second time where Linux gives it tiles on their first use."""
        try:
            return self._operations.perform(operation)
        except ProcessorFault as fault:
            processor = self.processor
            if fault.vector != NOT_AVAILABLE or not self._grants:
                raise
            processor.xfd = 0
            processor.file.lower |= 1 << _PKRU
            processor.file.info = None
            return self._operations.perform(operation)

    def _open_key_0(self, recorded: int | None) -> None:
        """What the recording program did after each operation, so that its own memory stayed open to it."""
        processor = self.processor
        if not self._enabled >> _PKRU & 1:
            return
        pkru = processor.rdpkru()
        if recorded != (pkru if pkru & _KEY_0 else None):
            raise DisagreementError(f"PKRU {recorded}, the model says {pkru:#x}")
        if pkru & _KEY_0:
            processor.wrpkru(pkru & ~_KEY_0)

    def _follow_in_use(self, recorded: int) -> None:
        processor, counts = self.processor, self.counts
        self._in_use = recorded
        foretold = processor.xgetbv(1)
        counts["in-use bits"] += self._enabled.bit_count()
        if recorded == foretold:
            return
        file = processor.file
        needed = file.not_initial() & self._enabled & ~processor.xfd
        needed |= _SSE if file.mxcsr != MXCSR_INIT else 0
        if missing := needed & ~recorded:
            raise DisagreementError(f"XINUSE {recorded:#x} lacks {missing:#x}, which is not initial")
        self._count_chosen(recorded ^ foretold, recorded)
        file.in_use = recorded

    def _count_chosen(self, bits: int, recorded: int) -> None:
        self.counts["in-use bits chosen otherwise"] += bits.bit_count()
        for bit in components_in(bits):
            self.counts[f"in-use bit {bit} chosen {recorded >> bit & 1}"] += 1

    def _compare_save(self, operation: Operation, answer: Answer, before: bytes, came: int) -> None:
        area = self._operations.areas[operation[1]]
        if self._is(area, answer, before):
            return
        foretold = bytes(area)
        if "xsaveopt" in operation[0]:
            self._write_what_was_written(operation, answer, before)
        if not self._is(area, answer, before) and self._follow_header(
            operation, answer, before, foretold, came
        ):
            area[:] = before
            self._perform(operation)
        if not self._is(area, answer, before):
            raise DisagreementError(_difference(foretold, answer, before))

    def _write_what_was_written(self, operation: Operation, answer: Answer, before: bytes) -> None:
        """Where the model left a component out that the processor wrote, write it too."""
        file, area = self.processor.file, self._operations.areas[operation[1]]
        optimised, area[:] = bytes(area), before
        info, file.info = file.info, None
        self._perform(operation)
        file.info = info
        whole, area[:] = bytes(area), optimised
        for start, end in self._spans(answer, before, operation[3]):
            area[start:end] = whole[start:end]
        self.counts["optimisation not taken"] += 1

    def _spans(self, answer: Answer, before: bytes, skew: int) -> list[tuple[int, int]]:
        spans, _ = self.processor.places.standard(self._enabled)
        places = {str(span.component): (span.start + skew, span.end + skew) for span in spans}
        places |= {"0": (32 + skew, 160 + skew), "1": (160 + skew, 416 + skew)}
        found = [places[component] for component in answer.get("c", ())]
        controls = bytes.fromhex(answer["l"])[:24] if "l" in answer else before[skew : 24 + skew]
        return found if controls == before[skew : 24 + skew] else [*found, (skew, 24 + skew)]

    def _follow_header(
        self, operation: Operation, answer: Answer, before: bytes, area: bytes, came: int
    ) -> bool:
        """Take bits of XINUSE over from the header, where XGETBV did not show them before.

        An MXCSR other than 1F80H hides bit 1, outside 64-bit mode saves show the lower registers' bits alone, and a
        switch of tasks just before the save may have set bits: ``came``.
        """
        file = self.processor.file
        recorded = answer["h"][0] if "h" in answer else _word(before, 512)
        bits = recorded ^ _word(area, 512)
        lower_alone = operation[0].endswith("@32") and not self.processor.behaviour.upper_in_use
        hidden = (_SSE if file.mxcsr != MXCSR_INIT else 0) | (mask_of(*REACHED) if lower_alone else 0)
        hidden |= came
        if not bits or bits & ~hidden or self._needed(lower_alone=lower_alone) & bits & ~recorded:
            return False
        if lower_alone:
            file.lower ^= bits
        else:
            file.in_use ^= bits
        self._count_chosen(bits, recorded)
        return True

    def _needed(self, *, lower_alone: bool) -> int:
        """The components that are not initial, or whose lower registers are not."""
        file = self.processor.file
        if not lower_alone:
            return file.not_initial()
        return mask_of(*(c for c, end in REACHED.items() if file.values[c][:end] != file.initial[c][:end]))

    @staticmethod
    def _is(area: bytearray, answer: Answer, before: bytes) -> bool:
        if "u" in answer:
            return area == before
        return zlib.crc32(area) == answer["a"]


def _word(area: bytes | bytearray, at: int) -> int:
    return int.from_bytes(area[at : at + 8], "little")


def _difference(area: bytes, answer: Answer, before: bytes) -> str:
    """Say in what a save differs, as far as the recording tells."""
    recorded = bytearray(before)
    for offset, digits in answer.get("d", ()):
        piece = bytes.fromhex(digits)
        recorded[offset : offset + len(piece)] = piece
    at = next((at for at in range(len(area)) if area[at] != recorded[at]), None)
    if "d" in answer and at is not None:
        return f"byte {at}: {recorded[at : at + 16].hex()}, the model has {area[at : at + 16].hex()}"
    return f"{answer}, the model has {_word(area, 512):#x}, {_word(area, 520):#x}, {area[:32].hex()}"
