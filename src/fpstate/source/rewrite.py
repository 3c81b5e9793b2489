"""Change the registers of one live thread: written as a whole or not at all, read back and compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fpstate.arch import Component, Cpu
from fpstate.errors import RegisterError, SourceError
from fpstate.image import Difference, Image, Registers, differences
from fpstate.source import ptrace


class ReadBackError(SourceError):
    """The kernel took a state, but what it gives back differs in ``differences`` (a: written, b: read back)."""

    exit_code = 1

    def __init__(self, tid: int, found: list[Difference]) -> None:
        shown = "; ".join(f"{each.register} {each.a:#x} became {each.b:#x}" for each in found)
        super().__init__(f"thread {tid}", f"written, but read back otherwise: {shown}")
        self.differences = found


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A thread's image before and after; ``stop`` is the seconds that it stood still."""

    tid: int
    before: Image
    after: Image
    stop: float


def rewrite(tid: int, change: Callable[[Registers], None], *, limit: float = ptrace.LIMIT) -> Rewrite:
    """Stop one thread of another process, let ``change`` assign its registers, write them back, and let it go.

    The thread stands still while ``change`` runs, for ``limit`` seconds and one more at most. Whatever ``change``
    raises is raised here, and nothing was written. Raises SourceError where the kernel refuses the
    state, RegisterError for reserved MXCSR bits, ReadBackError, UnsupportedHere where tracing is forbidden.
    """
    expected, mxcsr_mask = ptrace.host_layout(), Cpu.host().mxcsr_mask
    written: list[Image] = []

    def edited(regset: bytes) -> bytes:
        layout = ptrace.checked_layout(tid, regset, expected)
        image = Image(bytearray(regset), layout, "host")
        change(image.registers)
        _check_mxcsr(image.registers["mxcsr"], mxcsr_mask)
        # With SSE absent the kernel keeps MXCSR in the image but the processor loads 1F80H (XRSTORS ignores
        # RFBM[2] for it), or, on kernels without XSAVES, keeps the one from before: so state it always.
        image.store.activate(Component.SSE)
        written.append(image)
        return image.to_bytes()

    before, after, stop = ptrace.edit(tid, expected, limit, edited)
    if after is None:
        raise SourceError(f"thread {tid}", "nothing was written")
    layout = written[0].layout
    result = Rewrite(tid, Image(before, layout, "host"), Image(after, layout, "host"), stop)
    if found := differences(written[0], result.after, exact=True):
        raise ReadBackError(tid, found)
    return result


def _check_mxcsr(mxcsr: int, mask: int) -> None:
    if mxcsr & ~mask:
        raise RegisterError(
            "mxcsr",
            f"{mxcsr:#x} sets bits {mxcsr & ~mask:#x}, which are reserved: LDMXCSR and the kernel refuse them",
            help=f"this processor's MXCSR_MASK is {mask:#x} (SDM Vol.1 11.6.6)",
        )
