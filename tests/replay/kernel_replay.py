"""Recorded ptrace requests and signal frames, done again by the kernel model: Linux and the processor in software.

The form is told in data/oracles_intel/README.md. ``image_replay`` holds the rules against the same files.
"""

from __future__ import annotations

from typing import Any

from model_registers import difference, is_in_use, pkru_of, restored, saved
from register_letters import INITIAL, Source
from replay_report import MANY, Machine, Report, processor_of, replayed
from sequence_operations import enter

from fpstate.arch import Component, Cpu, Layout
from fpstate.arch.component import MIN_SIZE
from fpstate.engine.model.kernel import Kernel
from fpstate.engine.model.ptrace import get_regset, set_regset
from fpstate.engine.model.signals import deliver_signal, sigreturn
from fpstate.errors import ImageError
from linux_signal import REFUSED_FRAME
from recorded import Case, OracleFile, build

OPERATIONS = ("xstate", "sigreturn64")
"""What the kernel model knows; the older requests and 32-bit frames it does not."""

_GRANTED_AND_USED = 1
_CONFIGURATION = b"\1" + bytes(15) + b"\4" + bytes(31) + b"\1" + bytes(15)
_EFAULT, _EINVAL = 14, 22
_KEY_0 = 3
_PAGE_SIZE = 4096


def check_file(file: OracleFile, machine: Machine, *, most: int = MANY) -> Report:
    """Replay a file's cases of ``OPERATIONS`` on the model of the machine that they were recorded on."""
    return replayed(file, _Replay(file, processor_of(machine)).problem, most=most, operations=OPERATIONS)


class _Replay:
    """A machine with one task, which has the permission that the file's cases had."""

    def __init__(self, file: OracleFile, cpu: Cpu) -> None:
        self.kernel = Kernel(cpu)
        (self.core,) = self.kernel.cores
        self.task = self.kernel.spawn()
        self._file, self._templates, self._pattern = file, file.templates(), file.pattern()
        self._short = file.header.get("mode") == 32
        self.kernel.switch(self.core, self.task)
        if file.permission:
            self.kernel.request(self.task, Component.TILEDATA)
        if file.permission == _GRANTED_AND_USED:
            self.kernel.run(self.core, lambda cpu: (cpu.ldtilecfg(_CONFIGURATION), cpu.tilezero(0)))
            self.core.processor.tilerelease()
        self._layout = Layout.standard(cpu, self.core.processor.xcr0)
        self._pattern = self._pattern[: self._layout.size].ljust(self._layout.size, b"\0")
        self._set(self._pattern)
        self._kept_regset = get_regset(self.kernel, self.task)
        self._run()
        self._loaded = self.core.processor.snapshot()
        self._has_pattern = False
        self._kept = Source(saved(self.core.processor), self._layout)

    def problem(self, case: Case) -> str:
        """Say what the model does otherwise than the machine did; empty where nothing is."""
        return self._ptrace(case) if case["o"] == "xstate" else self._sigreturn(case)

    def _set(self, data: bytes) -> None:
        self.kernel.switch(self.core, None)
        set_regset(self.kernel, self.task, data)

    def _run(self) -> None:
        self.kernel.switch(self.core, self.task)

    def _ptrace(self, case: Case) -> str:
        if not self._has_pattern:
            self._set(self._pattern)
        answer, length = case["r"], min(case["n"], self._file.size)
        data = bytes(build(case["p"], self._file.pool, length, self._templates[case["t"]]))
        errno = 0
        try:
            self._set(data.ljust(case["n"], b"\xee"))
        except ImageError as refusal:
            errno = _EFAULT if str(refusal).startswith("XS005") else _EINVAL
        if errno != answer["e"]:
            return f"errno {answer['e']}, the model says {errno}"
        regset = get_regset(self.kernel, self.task)
        self._has_pattern = bool(errno)
        if answer.get("u"):
            return "" if regset == self._kept_regset else "the readback changed"
        sources = {"L": Source(data.ljust(MIN_SIZE, b"\0"), self._layout), "K": self._kept, "I": INITIAL}
        return self._readback(regset, answer["b"], sources) or self._seen(answer["v"], sources)

    def _readback(self, regset: bytes, listed: list[Any], sources: dict[str, Source]) -> str:
        found = [
            int.from_bytes(regset[512:520], "little"),
            int.from_bytes(regset[24:28], "little"),
            pkru_of(regset, self._layout),
        ]
        if found != listed[:3]:
            return f"XSTATE_BV, MXCSR, PKRU read back as {listed[:3]}, the model says {found}"
        problem = difference(regset, self._layout, listed[3:], sources)
        return f"read back: {problem}" if problem else ""

    def _seen(self, listed: list[Any], sources: dict[str, Source]) -> str:
        """What the task itself finds when it runs on."""
        self._run()
        processor = self.core.processor
        area = saved(processor, "xsave@32" if self._short else "xsave64")
        with enter(processor, "xgetbv@32" if self._short else "xgetbv64"):
            in_use = processor.xgetbv(1)
        pkru = pkru_of(area, self._layout)
        if is_in_use(processor, in_use, listed[0], switched=True):
            in_use = listed[0]
        found = [in_use, pkru, processor.file.mxcsr, pkru & ~_KEY_0]
        if found != listed[:4]:
            return f"XINUSE, PKRU, MXCSR, PKRU are {listed[:4]}, the model says {found}"
        return difference(area, self._layout, listed[4:], sources, short=self._short)

    def _sigreturn(self, case: Case) -> str:
        answer, processor = case["r"], self.core.processor
        image = build(case["p"], self._file.pool, self._file.size, self._templates[case["t"]])
        memory = bytes(image[: case["n"]]) + bytes(case["s"])
        deliver_signal(self.kernel, self.core)
        processor.file = self._loaded.copy()
        refused = None
        try:
            frame, address = memory if case["n"] else b"", -len(memory) % _PAGE_SIZE
            sigreturn(self.kernel, self.core, frame, address=address, handled=True)
        except ImageError as refusal:
            refused = refusal
        if answer.get("f") != (REFUSED_FRAME if refused else None):
            return f"signal {answer.get('f')}, the model says {refused}"
        return restored(processor, answer, memory, self._kept, refused=refused is not None)
