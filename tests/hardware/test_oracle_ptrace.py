"""What the rules foretell of PTRACE_SETREGSET, what it answers, and what the task then runs with."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest
from oracle import (
    AREA,
    ENVIRONMENT,
    Tally,
    compile_restorer,
    disagreement,
    host_target,
    mutants,
    mxcsr_of,
    share,
    without,
)

from fpstate.image.consumer import Consumer, Target
from fpstate.image.rule import Rule
from fpstate.image.rules import RULES, Verdict, predict
from fpstate.testing.case import clean_case

COUNT = 10_000
GETREGSET, SETREGSET, SEIZE, CONT = 0x4204, 0x4205, 0x4206, 7
NT_X86_XSTATE = 0x202
EXITKILL = 1 << 20
SEEN_BY_PTRACE = ("XS004", "XS005", "XS010", "XS012", "XS013", "XS015", "XS016", "XS017")


class Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Traced:
    """A stopped child of which the registers are set, and which then runs to its next stop and shows them."""

    def __init__(self, program: Path, file: Path) -> None:
        file.write_bytes(bytes(AREA))
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
        self._libc.ptrace.restype = ctypes.c_long
        self._buffer = ctypes.create_string_buffer(2 * AREA)
        self._child = subprocess.Popen([program, "traced", file], stdin=subprocess.PIPE, env=ENVIRONMENT)
        with file.open("r+b") as shared:
            self._live = mmap.mmap(shared.fileno(), AREA)
        if error := self._ptrace(SEIZE, 0, EXITKILL):
            self.close()
            pytest.skip(f"PTRACE_SEIZE of a child: {os.strerror(error)}")
        assert self._child.stdin is not None
        self._child.stdin.write(b"!")
        self._child.stdin.flush()
        self._wait()

    def set(self, data: bytes | bytearray) -> int:
        """Set the regset and return errno."""
        self._buffer[: len(data)] = bytes(data)
        vector = Vector(ctypes.addressof(self._buffer), len(data))
        return self._ptrace(SETREGSET, NT_X86_XSTATE, ctypes.addressof(vector))

    def get(self) -> bytes:
        """Return the regset."""
        vector = Vector(ctypes.addressof(self._buffer), AREA)
        error = self._ptrace(GETREGSET, NT_X86_XSTATE, ctypes.addressof(vector))
        assert not error, os.strerror(error)
        return self._buffer[: vector.length]

    def run(self) -> bytes:
        """Let the task run and return the registers that it runs with, saved by itself."""
        assert not self._ptrace(CONT, 0, 0)
        self._wait()
        return self._live[:]

    def close(self) -> None:
        """End the child."""
        self._child.kill()
        self._child.wait(timeout=10)
        if self._child.stdin is not None:
            self._child.stdin.close()
        self._live.close()

    def _wait(self) -> None:
        _, status = os.waitpid(self._child.pid, 0)
        assert os.WIFSTOPPED(status), f"the traced child ended: {status:#x}"
        assert os.WSTOPSIG(status) == signal.SIGTRAP

    def _ptrace(self, request: int, address: int, data: int) -> int:
        return ctypes.get_errno() if self._libc.ptrace(request, self._child.pid, address, data) < 0 else 0


@pytest.fixture(scope="module")
def target(core: ModuleType) -> Target:
    return host_target()


@pytest.fixture(scope="module")
def traced(gcc: str, tmp_path_factory, target: Target) -> Iterator[Traced]:
    folder = tmp_path_factory.mktemp("traced")
    child = Traced(compile_restorer(gcc, folder), folder / "registers")
    yield child
    child.close()


def written(
    traced: Traced, target: Target, seed: int, count: int, rules: Mapping[str, Rule] = RULES
) -> Tally:
    """Write ``count`` mutated regsets, some of another length; read each back, and let the task run on it."""
    tally = Tally()
    before = traced.get()
    for data, source in mutants(target, seed, count):
        if source.random() < 0.2:
            length = source.choice(
                (0, 8, 511, 576, len(data) - 8, len(data) - 1, len(data) + 1, len(data) + 64)
            )
            data = data.ljust(length, b"\xee")[:length]
        verdict = predict(data, Consumer.PTRACE, target, rules=rules)
        padded = data.ljust(target.standard.size, b"\0")
        tally.add(verdict, _judge(traced, data, padded, verdict, target, before), padded)
        before = traced.get()
    return tally


def _judge(traced: Traced, data, padded, verdict: Verdict, target: Target, before: bytes) -> str:
    error = traced.set(data)
    if error or not verdict.accepted:
        if not error or errno.errorcode[error] != verdict.answer:
            return f"ptrace answers {error}, not {verdict.answer}"
        return "" if traced.get() == before else "a refused image changed the task"
    answer = traced.get()
    if mxcsr_of(answer) != verdict.reported_mxcsr:
        return f"MXCSR reads back {mxcsr_of(answer):#x}, not {verdict.reported_mxcsr:#x}"
    if int.from_bytes(answer[512:520], "little") != verdict.loaded:
        return "XSTATE_BV reads back changed"
    live = traced.run()
    if verdict.mxcsr is not None and mxcsr_of(live) != verdict.mxcsr:
        return f"MXCSR is {mxcsr_of(live):#x} where the task runs, not {verdict.mxcsr:#x}"
    return disagreement(padded, verdict, target, answer) or disagreement(padded, verdict, target, live)


def test_setregset_does_what_the_rules_foretell(traced, target):
    """10,000 regsets in CI, 100,000 with FPSTATE_LONG=1; each is read back, and looked at in the running task."""
    count = share(COUNT)
    tally = written(traced, target, 21, count)
    tally.assert_agreement(count)
    assert any("with loss of MXCSR" in verdict for verdict in tally.counts)


@pytest.mark.parametrize("rule", SEEN_BY_PTRACE)
def test_a_missing_rule_is_noticed(traced, target, rule):
    assert written(traced, target, 22, 3000, without(rule)).disagreements


def test_another_kernel_is_noticed(traced, target):
    """The negative control for MXCSR: a kernel that restores the other format gives the task another one."""
    other = target.with_(compacted_restore=not target.compacted_restore)
    assert written(traced, other, 23, 2000).disagreements


def test_mxcsr_without_sse_reads_back_and_is_lost(traced, target):
    if not target.user_xfeatures & 4 or not target.compacted_restore:
        pytest.skip("AVX, and a kernel that restores compacted images (XSAVEC)")
    data = clean_case(Consumer.PTRACE, target.cpu, permitted=0).data
    data[512] = 4
    data[24:28] = (0x1F81).to_bytes(4, "little")
    verdict = predict(data, Consumer.PTRACE, target)
    assert str(verdict) == "loaded with loss of MXCSR"
    assert traced.set(data) == 0
    assert mxcsr_of(traced.get()) == verdict.reported_mxcsr == 0x1F81
    assert mxcsr_of(traced.run()) == verdict.mxcsr == 0x1F80
