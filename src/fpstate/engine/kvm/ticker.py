"""The tick that stops a guest: one timer for each host thread, whose signal only KVM_RUN lets in.

All signals are blocked while a thread runs guests. KVM_SET_SIGNAL_MASK lets the tick's in while KVM_RUN runs (api.rst
4.21), so that a tick which came before keeps the guest from running at all: none is lost.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from types import TracebackType

from fpstate.errors import TimerRefused

_CLOCK_MONOTONIC, _SIGEV_THREAD_ID = 1, 4
_SECOND = 1_000_000_000
_EVERY = frozenset(range(1, signal.NSIG))
_BLOCKABLE = signal.valid_signals()
"""All but the two that the C library keeps for itself."""


def drain(tick: int) -> None:
    """Forget the ticks that came to the calling thread, which blocks them."""
    while signal.sigtimedwait((tick,), 0) is not None:
        pass


class _SignalEvent(ctypes.Structure):
    """struct sigevent with SIGEV_THREAD_ID (include/uapi/asm-generic/siginfo.h)."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("number", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("thread", ctypes.c_int),
        ("padding", ctypes.c_int * 11),
    )


def tick_signal() -> int:
    """Return the real-time signal for ticks: the lowest that this program does not handle in Python."""
    usable = (n for n in range(signal.SIGRTMIN + 1, signal.SIGRTMAX) if signal.getsignal(n) is signal.SIG_DFL)
    return next(usable, int(signal.SIGRTMAX))


def blocked_in_guests(tick: int) -> frozenset[int]:
    """Return the signals that KVM_RUN keeps out: all but the tick."""
    return _EVERY - {tick}


class Ticker:
    """The calling thread's timer, while in a ``with``. Raises TimerRefused where the kernel gives none."""

    def __init__(self, tick: int) -> None:
        self.tick = tick
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = ctypes.c_void_p()
        self._time = (ctypes.c_long * 4)()
        self._before: set[int] | None = None
        self._made = False

    def __enter__(self) -> Ticker:
        event = _SignalEvent(None, self.tick, _SIGEV_THREAD_ID, threading.get_native_id())
        self._before = set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKABLE)
            if self._libc.timer_create(_CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._timer)):
                raise TimerRefused(ctypes.get_errno())
            self._made = True
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._made:
            self._made = False
            self._libc.timer_delete(self._timer)
        self._drain()
        if self._before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def arm(self, nanoseconds: int) -> None:
        """Tick once, so many nanoseconds from now, and not when it was to be before."""
        self._time[2], self._time[3] = divmod(max(1, nanoseconds), _SECOND)
        if self._libc.timer_settime(self._timer, 0, self._time, None):
            raise OSError(ctypes.get_errno(), "timer_settime failed")

    def forget(self) -> None:
        """Forget a tick that came. One still to come may be left: at worst it stops the next guest too early."""
        self._drain()

    def _drain(self) -> None:
        drain(self.tick)
