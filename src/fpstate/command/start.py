"""The first lines of the command: from here on an interrupt ends it with 130, and none is lost.

Modules are imported while this runs, so that it imports nothing that the interpreter does not have at its start.
"""

import _signal  # type: ignore[import-not-found]
import os
import sys

_SIGINT = _signal.SIGINT
_INTERRUPTED = 130
_SOON = 0.001
"""Seconds after which an interrupt that was lost is raised again."""


def start() -> int:
    """Run the command and return its exit code; the console script of the package.

    While modules are imported there is nothing to clean up, and an exception may be swallowed: an interrupt ends the
    process there and then. A verb that runs gets KeyboardInterrupt; one that comes where Python can only report it (in
    a destructor, a callback of the import system) is raised again. SIGINT that is ignored stays so.
    """
    if _signal.getsignal(_SIGINT) is not _signal.default_int_handler:
        from fpstate.command.main import main

        return main()
    _signal.signal(_SIGINT, _leave)
    from fpstate.command.main import main

    try:
        code = main(before_run=_raise_from_now_on)
    except KeyboardInterrupt:
        code = _INTERRUPTED
    finally:
        _signal.signal(_SIGINT, _leave)
    return code


def _leave(*_: object) -> None:
    os._exit(_INTERRUPTED)


def _raise_from_now_on() -> None:
    shown = sys.unraisablehook

    def raise_again(lost: "sys.UnraisableHookArgs") -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            _signal.setitimer(_signal.ITIMER_REAL, _SOON)  # this function's own exceptions are reported, too
        else:
            shown(lost)

    sys.unraisablehook = raise_again
    _signal.signal(_signal.SIGALRM, _signal.default_int_handler)
    _signal.signal(_SIGINT, _signal.default_int_handler)
