import errno
from pathlib import Path

import pytest

from fpstate.errors import SourceError, UnsupportedHere
from fpstate.source import process, ptrace


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.ESRCH, SourceError, "no such process"),
        (errno.ETIMEDOUT, SourceError, "did not stop in time"),
        (errno.EPERM, UnsupportedHere, "no permission"),
        (errno.ENODEV, UnsupportedHere, "XSAVE"),
        (errno.EINVAL, SourceError, "EINVAL"),
        (errno.EIO, SourceError, "Input/output"),
    ],
)
def test_each_refusal_says_what_and_has_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, code: int, kind: type, words: str
) -> None:
    monkeypatch.setattr(ptrace, "_status", lambda pid: {"TracerPid": "0", "VmSize": "1 kB", "State": "S"})
    error = ptrace.refusal(7, code)
    assert isinstance(error, kind)
    assert words in str(error)


def test_yama_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scope = tmp_path / "ptrace_scope"
    scope.write_text("1\n")
    monkeypatch.setattr(ptrace, "_YAMA", scope)
    monkeypatch.setattr(ptrace, "_status", lambda pid: {})
    assert "ptrace_scope=1" in ptrace.refusal(7, errno.EPERM).help


@pytest.mark.parametrize(
    ("ident", "machine"),
    [
        (b"\x7fELF\x02" + bytes(11) + b"\x03\0\x3e\0", "x86-64"),
        (b"\x7fELF\x01" + bytes(11) + b"\x02\0\x03\0", "i386"),
        (b"\x7fELF\x01" + bytes(11) + b"\x02\0\x3e\0", "x32"),
        (b"#!/bin/sh", "x86-64"),
    ],
)
def test_the_program_says_what_the_machine_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ident: bytes, machine: str
) -> None:
    file = tmp_path / "exe"
    file.write_bytes(ident)
    monkeypatch.setattr(process, "Path", lambda path: file)
    assert process.machine_of(7) == machine


def test_of_no_process_nothing_is_known() -> None:
    assert process.machine_of(1 << 22) == "x86-64"
    assert process.thread_ids(1 << 22) == ()


def test_without_the_core_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "fpstate._core", None)
    with pytest.raises(UnsupportedHere, match="native core"):
        process.process_threads(1)
