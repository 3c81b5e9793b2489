"""What the replays of XRSTOR, sigreturn, ptrace and KVM share: images, the state before, the comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from register_letters import COMPONENTS, CONTROL, REACH_32, Pointers, Source, control_fields, holds

from fpstate.arch import Component, Layout, mask_of
from fpstate.arch.component import COMPACTED_BIT
from fpstate.image.consumer import Target
from fpstate.image.rules import Verdict
from recorded import Case, OracleFile, build

Foretell = Callable[..., Verdict]

_PKRU: Final = mask_of(Component.PKRU)
_ACCESS_OF_KEY_0: Final = 3


class Judge:
    """What the files have in common: templates, the pattern, the comparison of register lists."""

    def __init__(
        self, file: OracleFile, machine: Mapping[str, Any], target: Target, foretell: Foretell
    ) -> None:
        self.target, self.foretell = target, foretell
        self.pointers = Pointers.of(dict(machine))
        self.size, self.pool = file.size, file.pool
        self.templates = file.templates()
        self.mode32 = file.header.get("mode") == 32
        pattern = file.pattern()
        self.pattern = pattern
        self.kept = Source(pattern, target.standard)
        self.kept_xstate_bv = int.from_bytes(pattern[512:520], "little")
        self.kept_mxcsr = int.from_bytes(pattern[24:28], "little")
        kept_pkru = Source(pattern, target.standard).read(Component.PKRU)
        self.kept_pkru = int.from_bytes(kept_pkru[:4], "little") if kept_pkru else 0
        self.kept_control = control_fields(pattern[:24], self.pointers, wide=True, read_wide=not self.mode32)
        self.counts: Counter[str] = Counter()

    def problem(self, case: Case) -> str:
        """Say what is not as foretold; empty where all is."""
        raise NotImplementedError

    def image(self, case: Case, length: int) -> bytearray:
        """Return a case's image, cut to a length."""
        return build(case["p"], self.pool, length, self.templates[case["t"]])

    def stated(self, data: bytes | bytearray, verdict: Verdict) -> Source:
        """Return what ``L`` stands for: the image's bytes where its own format has them."""
        return Source(data, self.layout(data, verdict))

    @staticmethod
    def fates(loaded: int, kept: int, sources: Mapping[str, Source]) -> Callable[[int], str]:
        """Return a function that gives the letter of a component; F: x87 from a source of its own."""

        def fate(component: int) -> str:
            if loaded >> component & 1:
                return "F" if "F" in sources and component == Component.X87 else "L"
            return "K" if kept >> component & 1 else "I"

        return fate

    def afterwards(
        self,
        listed: list[Any],
        xinuse: int,
        opened: int | None,
        verdict: Verdict,
        sources: Mapping[str, Source],
        control: bytes,
        *,
        written_32: bool = False,
    ) -> str:
        """Compare everything that the program itself finds in its registers; ``opened``: see ``pkru``."""
        return (
            self.word("MXCSR", listed[0], verdict.mxcsr, self.kept_mxcsr)
            or self.pkru(listed[1], opened, verdict)
            or self.registers(
                listed[2:],
                self.fates(verdict.loaded, verdict.kept, sources),
                sources,
                control,
                reading_32=self.mode32,
                written_32=written_32,
            )
            or self.in_use(xinuse, listed[2:])
        )

    def layout(self, data: bytes | bytearray, verdict: Verdict) -> Layout | None:
        """Return the layout that an image's own format gives, within XCR0."""
        xcomp_bv = int.from_bytes(data[520:528], "little")
        if not xcomp_bv & COMPACTED_BIT:
            return self.target.standard
        return self.target.compacted(xcomp_bv & (COMPACTED_BIT | self.target.xcr0))

    def registers(
        self,
        answers: list[Any],
        fates: Callable[[int], str],
        sources: Mapping[str, Source],
        control: bytes | None,
        *,
        reading_32: bool = False,
        written_32: bool = False,
    ) -> str:
        """Compare a register list: the x87 control fields, then each component by its fate."""
        if fates(Component.X87) in "LF" and control is not None:
            if not holds(answers[0], control, sources, CONTROL):
                return f"x87 control is {answers[0]}, not {control.hex()}"
        elif fates(Component.X87) == "K" and answers[0] == self.kept_control.hex():
            pass  # what the processor drops of the pattern is not there to be kept
        elif problem := self._differs(answers[0], CONTROL, fates(Component.X87), sources):
            return problem
        for component, answer in zip(COMPONENTS, answers[1:], strict=True):
            if component > 1 and component not in self.target.standard:
                continue
            fate = fates(component)
            reach = REACH_32.get(component)
            if written_32 and reach is not None and fate != "K":
                if problem := self._part_differs(answer, component, fate, sources, reach):
                    return problem
            elif reading_32 and reach is not None:
                if reach and (problem := self._differs(answer, component, fate, sources, reach)):
                    return problem
            elif problem := self._differs(answer, component, fate, sources):
                return problem
        return ""

    @staticmethod
    def _differs(
        answer: int | str, component: int, fate: str, sources: Mapping[str, Source], reach: int | None = None
    ) -> str:
        if isinstance(answer, str) and fate in answer:
            return ""
        expected = sources[fate].read(component)
        if expected is not None and holds(answer, expected[:reach], sources, component):
            return ""
        return f"component {component} is {answer}, not {fate}"

    @staticmethod
    def _part_differs(
        answer: int | str, component: int, fate: str, sources: Mapping[str, Source], reach: int
    ) -> str:
        """Compare where registers 0 to 7 were written and the others kept."""
        new, old = sources[fate].read(component), sources["K"].read(component)
        if (
            new is not None
            and old is not None
            and holds(answer, new[:reach] + old[reach:], sources, component)
        ):
            return ""
        return f"component {component} is {answer}, not {fate} in its first {reach} bytes"

    def word(self, name: str, found: int, stated: int | None, kept: int) -> str:
        """Compare MXCSR or PKRU; None stands for what was there before."""
        expected = kept if stated is None else stated
        return "" if found == expected else f"{name} is {found:#x}, not {expected:#x}"

    def pkru(self, found: int, opened: int | None, verdict: Verdict) -> str:
        """Compare PKRU as it was, and as the program that read the registers left it: key 0 open."""
        if not self.target.xcr0 & _PKRU:
            return ""
        before = found if opened is None else opened
        problem = self.word("PKRU", before, verdict.pkru, self.kept_pkru)
        if not problem and found != before & ~_ACCESS_OF_KEY_0:
            return f"PKRU {before:#x} became {found:#x}"
        return problem

    def in_use(self, xinuse: int, answers: list[Any]) -> str:
        """XGETBV(1) has a bit for everything that is not initial."""
        for component, answer in zip(COMPONENTS, answers[1:], strict=True):
            if not (isinstance(answer, str) and "I" in answer) and not xinuse >> component & 1:
                return f"component {component} is not initial, and XINUSE is {xinuse:#x}"
        return ""
