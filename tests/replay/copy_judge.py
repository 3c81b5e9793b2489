"""ptrace and KVM, replayed: the errno, what reads back, and what the running task itself sees."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, Final

from image_judge import Judge
from register_letters import INITIAL, Source, control_fields

from fpstate.arch import Component, mask_of
from fpstate.arch.component import LEGACY, xcr0_problem
from fpstate.image.consumer import Consumer
from fpstate.image.legacy import from_fsave
from fpstate.image.rules import Verdict
from recorded import Case

_ERRNOS: Final = {"": 0, "EINVAL": 22, "EFAULT": 14}
_PKRU: Final = mask_of(Component.PKRU)


class Copied(Judge):
    """What the kernel copies: an errno, what reads back, and what the task itself sees."""

    def errno(self, answer: Mapping[str, Any], verdict: Verdict) -> str:
        """Compare what the call returned; what it refuses leaves everything as it was."""
        self.counts["refused"] += not verdict.accepted
        if answer["e"] != _ERRNOS[verdict.answer]:
            return (
                f"errno {answer['e']}, not {verdict.answer or 0} by {[each.id for each in verdict.refusals]}"
            )
        return "" if verdict.accepted or answer.get("u") else "the readback changed although it was refused"

    def readback(
        self,
        listed: list[Any],
        verdict: Verdict,
        sources: Mapping[str, Source],
        control: bytes | None,
        pkru: int,
    ) -> str:
        """Compare XSTATE_BV and the registers that GETREGSET or GET_XSAVE gave."""
        shown = self.shown(verdict)
        xstate_bv = verdict.reported | verdict.kept & shown & self.kept_xstate_bv
        fates = self.fates(verdict.reported, verdict.kept & shown, sources)
        if listed[0] != xstate_bv:
            return f"XSTATE_BV reads back as {listed[0]:#x}, not {xstate_bv:#x}"
        return (
            self.word("MXCSR, read back,", listed[1], verdict.reported_mxcsr, self.kept_mxcsr)
            or self.word("PKRU, read back,", listed[2], pkru, self.kept_pkru)
            or self.registers(listed[3:], fates, sources, control)
        )

    def shown(self, verdict: Verdict) -> int:
        """Return which of the components that were kept are read back."""
        return verdict.kept


class Ptrace(Copied):
    """PTRACE_SETREGSET and PTRACE_SETFPREGS, read back, and seen in the running task."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._consumers = {
            "xstate": Consumer.PTRACE,
            "setfpregs": Consumer.FPREGS,
            "prfpreg": Consumer.FSAVE if self.mode32 else Consumer.FPREGS,
            "prxfpreg": Consumer.PRXFPREG,
        }

    def problem(self, case: Case) -> str:
        answer, consumer = case["r"], self._consumers[case["o"]]
        data = self.image(case, min(case["n"], self.size)).ljust(case["n"], b"\xee")
        verdict = self.foretell(data, consumer, self.target)
        if (problem := self.errno(answer, verdict)) or not verdict.accepted:
            return problem
        if "odd" in answer:
            return f"bytes 464 to 575 read back as {answer['odd']}"
        sources = {"L": self.stated(data.ljust(576, b"\0"), verdict), "K": self.kept, "I": INITIAL}
        raw = data
        if consumer is Consumer.FSAVE:
            raw = bytearray(from_fsave(data[:108]).to_bytes()[:160])
            sources |= {"L": Source(bytes(self.size), self.target.standard), "F": Source(raw, None)}
        as_written = bytes(raw[:24]).ljust(24, b"\0")
        pkru = self.kept_pkru if verdict.pkru is None else verdict.pkru
        if problem := self.readback(
            answer["b"], verdict, sources, as_written if "F" in sources else None, pkru
        ):
            return problem
        xinuse, real_pkru, *listed = answer["v"]
        control = control_fields(as_written, self.pointers, wide=True, read_wide=not self.mode32)
        return self.afterwards(listed, xinuse, real_pkru, verdict, sources, control)


class Kvm(Copied):
    """KVM_SET_XSAVE, KVM_SET_FPU and KVM_SET_XCRS, read back."""

    _xcr0 = mask_of(Component.X87)

    def problem(self, case: Case) -> str:
        return getattr(self, f"_{case['o']}")(case, case["r"])  # type: ignore[no-any-return]

    def _pattern(self, case: Case, answer: Mapping[str, Any]) -> str:
        verdict = self.foretell(self.pattern, Consumer.KVM, self.target)
        sources = {"L": self.kept, "K": self.kept, "I": INITIAL}
        return self.errno(answer, verdict) or self.readback(
            answer["b"], verdict, sources, None, self._shown_pkru(verdict)
        )

    def _set_xsave(self, case: Case, answer: Mapping[str, Any]) -> str:
        data = self.image(case, self.size)
        verdict = self.foretell(data, Consumer.KVM, self.target)
        if (problem := self.errno(answer, verdict)) or not verdict.accepted:
            return problem
        if "odd" in answer:
            return f"bytes 464 to 575 read back as {answer['odd']}"
        sources = {"L": self.stated(data, verdict), "K": self.kept, "I": INITIAL}
        return self.readback(answer["b"], verdict, sources, None, self._shown_pkru(verdict))

    def shown(self, verdict: Verdict) -> int:
        """What the guest's CPUID has; a PKRU that KVM_SET_XSAVE kept is seen once the guest has run again."""
        visible = self.target.guest_xcr0 | LEGACY
        return visible & ~_PKRU if verdict.consumer is Consumer.KVM else visible

    def _shown_pkru(self, verdict: Verdict) -> int:
        if verdict.consumer is Consumer.KVM_FPU:
            return self.kept_pkru if self.shown(verdict) & _PKRU else 0
        return verdict.pkru or 0 if verdict.reported & _PKRU else 0

    def _set_xcr0(self, case: Case, answer: Mapping[str, Any]) -> str:
        problem = xcr0_problem(case["v"], self.target.guest_xcr0 | mask_of(Component.X87))
        self.counts["refused"] += bool(problem)
        self._xcr0 = self._xcr0 if problem else case["v"]
        if answer["e"] != (_ERRNOS["EINVAL"] if problem else 0):
            return f"errno {answer['e']} for XCR0 {case['v']:#x}: {problem or 'it is legal'}"
        return "" if answer["after"] == self._xcr0 else f"XCR0 is {answer['after']:#x}, not {self._xcr0:#x}"

    def _set_fpu(self, case: Case, answer: Mapping[str, Any]) -> str:
        control = bytes.fromhex(case["ctl"])
        control = control[:5] + b"\0" + control[6:]
        stack, xmm = (self.pool[case[name] :][:size] for name, size in (("fpr", 128), ("xmm", 256)))
        tail = bytes.fromhex(case["tail"])
        verdict = self.foretell(stack + control + xmm + tail, Consumer.KVM_FPU, self.target)
        if problem := self.errno(answer, verdict):
            return problem
        image = control + bytes(8) + stack + xmm
        sources = {"L": Source(image, None), "K": self.kept, "I": INITIAL}
        return self.readback(
            answer["b"], verdict, sources, control, self._shown_pkru(verdict)
        ) or self._get_fpu(answer["fpu"], control, stack, xmm)

    @staticmethod
    def _get_fpu(answer: Mapping[str, Any], control: bytes, stack: bytes, xmm: bytes) -> str:
        """KVM_GET_FPU gives back what was set, with zeros for MXCSR."""
        expected = {
            "fpr": zlib.crc32(stack),
            "ctl": control.hex(),
            "xmm": zlib.crc32(xmm),
            "tail": bytes(8).hex(),
        }
        return "" if answer == expected else f"KVM_GET_FPU gives {answer}, not {expected}"
