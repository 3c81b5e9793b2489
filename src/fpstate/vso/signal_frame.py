"""How large a signal frame gets, and with it the stacks that signals are taken on.

Source: Linux ``get_sigframe_size`` in ``arch/x86/kernel/signal.c``, ``fpu__get_fpstate_size`` in
``arch/x86/kernel/fpu/signal.c``.
"""

from __future__ import annotations

_RT_SIGFRAME = 440
_SIGFRAME_IA32 = 736
_FREGS_STATE = 112
_MAGIC2 = 4
_XSAVE_PADDING = 63
_FRAME_PADDING = 15
_FRAME_ALIGNMENT = 16


def sigframe_size(user_size: int, ia32: bool = True) -> int:
    """Return the most bytes that a signal frame takes with ``user_size`` bytes of standard-format state.

    ``ia32``: the kernel also runs 32-bit programs, whose frame is the larger one.
    Source: ``init_sigframe_size`` and ``fpu__get_fpstate_size``; not yet rounded to 16.
    """
    frame, legacy = (_SIGFRAME_IA32, _FREGS_STATE) if ia32 else (_RT_SIGFRAME, 0)
    return frame + _FRAME_PADDING + user_size + _MAGIC2 + legacy + _XSAVE_PADDING


def minsigstksz(user_max_size: int, ia32: bool = True) -> int:
    """Return AT_MINSIGSTKSZ in bytes for the largest standard-format state, dynamic components included."""
    return -(-sigframe_size(user_max_size, ia32) // _FRAME_ALIGNMENT) * _FRAME_ALIGNMENT


def altstack_floor(user_max_size: int, user_size: int, ia32: bool = True) -> int:
    """Return the bytes that an alternate signal stack has to exceed with ``user_size`` bytes of state permitted.

    The kernel takes its whole buffer, magic word included, off AT_MINSIGSTKSZ and adds the state alone.
    Source: ``sigaltstack_size_valid``.
    """
    buffer = user_max_size + _MAGIC2 + (_FREGS_STATE if ia32 else 0)
    return minsigstksz(user_max_size, ia32) - buffer + user_size
