"""Every error that fpstate raises: what, where, why, and what to try.

Each class carries its data as attributes, a ``help`` text with what to try, and the exit code that
the command line answers with. Exit codes: 1 findings, 2 usage or I/O, 3 unsupported here, 4 cannot decide.
"""

from __future__ import annotations

import errno as _errno
import os
from typing import Any, ClassVar


class FpStateError(Exception):
    """Base of all errors of fpstate; ``str()`` is the message, ``help`` what to try."""

    exit_code: ClassVar[int] = 2
    help: str = ""

    def __init__(self, message: str, *, help: str | None = None) -> None:
        super().__init__(message)
        if help is not None:
            self.help = help

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle what was made, for the arguments of the classes differ and make the message."""
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[FpStateError], arguments: tuple[Any, ...], attributes: dict[str, Any]) -> FpStateError:
    """Return an error that was pickled or is to be copied, as it was."""
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(attributes)
    return error


class UnsupportedHere(FpStateError):
    """This processor, kernel or build lacks something; ``missing`` names it."""

    exit_code = 3

    def __init__(self, missing: str, *, help: str | None = None) -> None:
        super().__init__(f"not supported here: {missing}", help=help)
        self.missing = missing


class SettingError(FpStateError):
    """An environment variable holds what it cannot."""


class UnknownCpu(FpStateError):
    """No processor of that name in the catalog."""

    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(f"unknown processor {name!r}", help="known: " + ", ".join(known))
        self.name = name
        self.known = known


class CpuidError(FpStateError):
    """CPUID leaves contradict themselves or lack what a layout needs."""


class LayoutError(FpStateError):
    """A layout cannot be made, or does not hold what was asked of it."""


class AmbiguousLayout(LayoutError):
    """Several known layouts fit the bytes; ``candidates`` names processors of each."""

    exit_code = 4

    def __init__(self, message: str, candidates: list[str]) -> None:
        super().__init__(message, help="name the producer with --cpu; candidates: " + ", ".join(candidates))
        self.candidates = candidates


class SourceError(FpStateError):
    """A file or process that yields no state; ``source`` names it, ``offset`` is where it went wrong, if anywhere."""

    def __init__(
        self, source: str, message: str, *, offset: int | None = None, help: str | None = None
    ) -> None:
        where = "" if offset is None else f" at byte {offset}"
        super().__init__(f"{source}{where}: {message}", help=help)
        self.source = source
        self.offset = offset


class BudgetExceeded(SourceError):
    """Reading a source would cost more than it may: ``budget`` names what, ``found`` and ``allowed`` say how much."""

    def __init__(
        self,
        source: str,
        message: str,
        *,
        budget: str,
        found: int,
        allowed: int,
        offset: int | None = None,
        help: str | None = None,
    ) -> None:
        super().__init__(source, message, offset=offset, help=help)
        self.budget = budget
        self.found = found
        self.allowed = allowed


class ImageError(FpStateError):
    """Bytes that are no legal image; ``offset`` is where, ``found`` and ``expected`` what.

    ``component``: the one that is the matter, where it is one, such as one that this process has no permission for.
    """

    def __init__(
        self,
        message: str,
        *,
        offset: int | None = None,
        found: int | None = None,
        expected: int | None = None,
        component: int | None = None,
        help: str | None = None,
    ) -> None:
        super().__init__(message, help=help)
        self.offset = offset
        self.found = found
        self.expected = expected
        self.component = component


class ConversionLoss(FpStateError):
    """A target cannot hold registers that are not initial; ``losses`` has a ``fpstate.image.convert.Loss`` each.

    Not raised for what is initial, nor for what was named as what may be lost.
    """

    exit_code = 1

    def __init__(self, message: str, losses: tuple[Any, ...], *, help: str | None = None) -> None:
        super().__init__(message, help=help)
        self.losses = losses


class IncompleteState(FpStateError):
    """A guest state that lacks what its image refers to, or contradicts itself; ``findings`` says in what."""

    exit_code = 1

    def __init__(self, message: str, findings: tuple[Any, ...], *, help: str | None = None) -> None:
        super().__init__(message, help=help)
        self.findings = findings


class LoadRefused(FpStateError):
    """A state was not loaded, and the vCPU not touched; ``prediction`` says what the kernel would have done."""

    exit_code = 1

    def __init__(self, message: str, prediction: Any, *, help: str | None = None) -> None:  # noqa: ANN401
        super().__init__(message, help=help)
        self.prediction = prediction


class LoadMismatch(FpStateError):
    """The kernel took a state, and what it gives back differs; ``report`` says in which registers."""

    exit_code = 1

    def __init__(self, message: str, report: Any, *, help: str | None = None) -> None:  # noqa: ANN401
        super().__init__(message, help=help)
        self.report = report


class ResetIncomplete(FpStateError):
    """A reset left registers that are not initial; ``survivors`` has one entry for each, by name."""

    exit_code = 1

    def __init__(self, message: str, survivors: tuple[Any, ...], *, help: str | None = None) -> None:
        super().__init__(message, help=help)
        self.survivors = survivors


class RegisterError(FpStateError):
    """A register that does not exist here, or a value that does not fit it."""

    def __init__(self, register: str, message: str, *, help: str | None = None) -> None:
        super().__init__(f"{register}: {message}", help=help)
        self.register = register


class NumberError(FpStateError, ValueError):
    """A number that its format or its bit field does not hold, or bits that stand for no number."""


class RestoreFault(FpStateError):
    """XRSTOR raised an exception: the image was not loaded, and the register file was reset to its initial state.

    ``vector`` and ``mnemonic`` say which: 13, ``#GP``: the processor refuses the image, for the byte at ``offset``.
    14, ``#PF``: a byte of it, at ``offset``, is not in memory. 7, ``#NM``: it states a ``component`` that this process
    has no permission for. ``offset`` and ``component`` are None where they are not known.
    """

    def __init__(
        self,
        message: str,
        *,
        vector: int = 0,
        mnemonic: str = "",
        offset: int | None = None,
        component: int | None = None,
        help: str | None = None,
    ) -> None:
        super().__init__(message, help=help)
        self.vector = vector
        self.mnemonic = mnemonic
        self.offset = offset
        self.component = component


class ProcessorFault(FpStateError):
    """A modelled processor raised an exception: ``vector`` is its number, ``mnemonic`` its name (``#GP``).

    ``rule`` is the id in docs/rules.md of what was broken, empty where that is no matter of an image; ``source``
    is where the manual says so.
    """

    exit_code = 1

    def __init__(self, vector: int, mnemonic: str, reason: str, *, rule: str = "", source: str = "") -> None:
        where = f" ({rule})" if rule else ""
        super().__init__(f"{mnemonic}{where}: {reason}", help=f"see {source}" if source else None)
        self.vector = vector
        self.mnemonic = mnemonic
        self.reason = reason
        self.rule = rule
        self.source = source


class PermissionRequestError(FpStateError):
    """A request for a component failed as ``arch_prctl`` would fail; ``errno_name`` is the kernel's answer."""

    errno_name: ClassVar[str] = ""

    def __init__(self, component: int, message: str, *, help: str | None = None) -> None:
        super().__init__(message, help=help)
        self.component = component


class UnknownComponent(PermissionRequestError):
    """No component has this number (EINVAL)."""

    errno_name = "EINVAL"


class UnsupportedComponent(PermissionRequestError):
    """The component exists but cannot be asked for here (EOPNOTSUPP)."""

    errno_name = "EOPNOTSUPP"


class PermissionDenied(PermissionRequestError):
    """A context used, or asked for, a component that it is not permitted (EPERM)."""

    errno_name = "EPERM"
    exit_code = 1


class PermissionFrozen(PermissionRequestError):
    """Guest permission froze when the first guest VSO was made (EBUSY)."""

    errno_name = "EBUSY"


class StackTooSmall(PermissionRequestError):
    """An alternate signal stack of ``size`` bytes cannot hold the frame, which needs ``needed`` (ENOSPC)."""

    errno_name = "ENOSPC"

    def __init__(
        self, component: int, message: str, *, size: int, needed: int, help: str | None = None
    ) -> None:
        super().__init__(component, message, help=help)
        self.size = size
        self.needed = needed


class GuestOnlyComponent(PermissionRequestError):
    """A guest-only supervisor component was found in, or asked for, a host VSO."""

    errno_name = "EINVAL"
    exit_code = 1


class GuestOnlyComponentWarning(RuntimeWarning):
    """Guest-only supervisor state turned up outside a guest."""


class VsoError(FpStateError):
    """A VSO was used against its contract: freed twice, used after it was freed, foreign to its manager."""


class PoolExhausted(FpStateError):
    """No memory for another buffer; nothing was lost, the VSO keeps what it had."""


class KvmError(FpStateError):
    """An ioctl of KVM failed: ``ioctl`` names it, ``errno`` is the kernel's answer."""

    def __init__(self, ioctl: str, errno: int, *, help: str | None = None) -> None:
        name = _errno.errorcode.get(errno, str(errno))
        super().__init__(f"{ioctl} failed: {os.strerror(errno)} ({name})", help=help)
        self.ioctl = ioctl
        self.errno = errno


class ProgramError(FpStateError):
    """A file that is no guest program that can be run; ``path`` and the reason."""

    def __init__(self, path: str, message: str, *, help: str | None = None) -> None:
        super().__init__(f"{path}: {message}", help=help)
        self.path = path
