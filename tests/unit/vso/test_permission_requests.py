"""What arch_prctl answers is told by errors of ours, for hosts and for guests."""

import ctypes
import errno
from collections.abc import Callable

import pytest

from fpstate.errors import (
    PermissionDenied,
    PermissionFrozen,
    PermissionRequestError,
    StackTooSmall,
    UnknownComponent,
    UnsupportedComponent,
)
from fpstate.vso import kernel_permission
from fpstate.vso.kernel_permission import request_from_kernel
from fpstate.vso.permission import Kind


class Libc:
    """A kernel that gives one answer to every request."""

    def __init__(self, answer: int) -> None:
        self.answer = answer
        self.asked: list[tuple[int, ...]] = []

    def syscall(self, *arguments: ctypes.c_long) -> int:
        self.asked.append(tuple(argument.value for argument in arguments))
        ctypes.set_errno(self.answer)
        return -1 if self.answer else 0

    def getauxval(self, kind: ctypes.c_ulong) -> int:
        return 11952


@pytest.fixture
def kernel(monkeypatch) -> Callable[[int], Libc]:
    def answering(number: int) -> Libc:
        libc = Libc(number)
        monkeypatch.setattr(kernel_permission, "_libc", lambda: libc)
        return libc

    return answering


@pytest.mark.parametrize(("kind", "operation"), [(Kind.HOST, 0x1023), (Kind.GUEST, 0x1025)])
def test_each_component_is_asked_for_by_number(kernel, kind, operation):
    libc = kernel(0)
    request_from_kernel(1 << 18 | 1 << 17, kind)
    assert libc.asked == [(158, operation, 17), (158, operation, 18)]


def test_nothing_is_asked_for_an_empty_mask(kernel):
    libc = kernel(errno.EINVAL)
    request_from_kernel(0, Kind.GUEST)
    assert libc.asked == []


@pytest.mark.parametrize(
    ("answer", "refusal", "name"),
    [
        (errno.EINVAL, UnknownComponent, "EINVAL"),
        (errno.EOPNOTSUPP, UnsupportedComponent, "EOPNOTSUPP"),
        (errno.EBUSY, PermissionFrozen, "EBUSY"),
        (errno.ENOSPC, StackTooSmall, "ENOSPC"),
        (errno.EPERM, PermissionDenied, "EPERM"),
        (errno.ENOMEM, PermissionDenied, "ENOMEM"),
    ],
)
def test_refusals_are_errors_of_ours(kernel, answer, refusal, name):
    kernel(answer)
    with pytest.raises(PermissionRequestError, match=f"TILEDATA.*{name}") as caught:
        request_from_kernel(1 << 18, Kind.GUEST)
    assert type(caught.value) is refusal
    assert caught.value.component == 18
    assert caught.value.errno_name == refusal.errno_name
