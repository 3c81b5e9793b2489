"""Change the registers of one live thread: written as a whole or not at all, read back and compared.

What the kernel takes and the processor drops is refused before it is written: the kernel reads such a state back
as it was set, while the thread runs with another.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from fpstate.arch import Component, Cpu
from fpstate.errors import RegisterError, SourceError
from fpstate.image import Difference, Image, Registers, differences
from fpstate.image.tile import CONFIGURATION_SIZE, TILES, restore_defect, use_defects
from fpstate.source import ptrace
from fpstate.source.lethal import dangers, unmasked

_TILES: Final = tuple(f"tmm{tile}" for tile in range(TILES))


class ReadBackError(SourceError):
    """The kernel took a state, but what it gives back differs in ``differences`` (a: written, b: read back)."""

    exit_code = 1

    def __init__(self, tid: int, found: list[Difference]) -> None:
        shown = "; ".join(f"{each.register} {each.a:#x} became {each.b:#x}" for each in found)
        super().__init__(f"thread {tid}", f"written, but read back otherwise: {shown}")
        self.differences = found


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A thread's image before and after; ``stop`` is the seconds that it stood still.

    ``notes`` say what of the written state the thread cannot use as it is.
    """

    tid: int
    before: Image
    after: Image
    stop: float
    notes: tuple[str, ...] = ()


def rewrite(
    tid: int, change: Callable[[Registers], None], *, limit: float = ptrace.LIMIT, force: bool = False
) -> Rewrite:
    """Stop one thread of another process, let ``change`` assign its registers, write them back, and let it go.

    The thread stands still while ``change`` runs, for ``limit`` seconds and one more at most. Whatever ``change``
    raises is raised here, and nothing was written. Raises SourceError where the kernel refuses the
    state, RegisterError for reserved MXCSR bits, for a TILECFG that the processor would make initial and, unless
    ``force``, for values that are bound to end the thread (``lethal.dangers``), ReadBackError, UnsupportedHere where
    tracing is forbidden.
    """
    expected, mxcsr_mask = ptrace.host_layout(), Cpu.host().mxcsr_mask
    images: list[tuple[Image, Image]] = []

    def edited(regset: bytes) -> bytes:
        layout = ptrace.checked_layout(tid, regset, expected)
        old, new = Image(regset, layout, "host"), Image(bytearray(regset), layout, "host")
        change(new.registers)
        _check_mxcsr(new.registers["mxcsr"], mxcsr_mask)
        _check_tilecfg(old.registers, new.registers)
        if not force:
            _check_survival(old.registers, new.registers)
        # With SSE absent the kernel keeps MXCSR in the image but the processor loads 1F80H (XRSTORS ignores
        # RFBM[2] for it), or, on kernels without XSAVES, keeps the one from before: so state it always.
        new.store.activate(Component.SSE)
        images.append((old, new))
        return new.to_bytes()

    try:
        before, after, stop = ptrace.edit(tid, expected, limit, edited)
    except SourceError as error:
        if images and _needs_room_for_tiles(*images[0]) and _errno(error) == errno.EINVAL:
            raise _no_room_for_tiles(tid, *images[0]) from error
        raise
    if after is None:
        raise SourceError(f"thread {tid}", "nothing was written")
    (old, new), layout = images[0], images[0][1].layout
    result = Rewrite(
        tid, Image(before, layout, "host"), Image(after, layout, "host"), stop, tuple(_notes(old, new))
    )
    if found := differences(new, result.after, exact=True):
        raise ReadBackError(tid, found)
    return result


def _check_mxcsr(mxcsr: int, mask: int) -> None:
    if mxcsr & ~mask:
        raise RegisterError(
            "mxcsr",
            f"{mxcsr:#x} sets bits {mxcsr & ~mask:#x}, which are reserved: LDMXCSR and the kernel refuse them",
            help=f"this processor's MXCSR_MASK is {mask:#x} (SDM Vol.1 11.6.6)",
        )


def _check_tilecfg(old: Registers, new: Registers) -> None:
    """Refuse a new configuration that no restore loads; what was there already is not this change's fault."""
    if "tilecfg" not in new or new["tilecfg"] == old["tilecfg"]:
        return
    defect = restore_defect(_configuration(new))
    if defect is not None:
        where = "" if defect.tile is None else f", of tmm{defect.tile}"
        raise RegisterError(
            "tilecfg",
            f"byte {defect.offset}{where}, is {defect.found:#x}: {defect.text}. The kernel would take it and read it"
            " back, and the thread would run with TILECFG initial: restores do not fault (SDM Vol. 2, LDTILECFG)",
            help=f"byte {defect.offset} may be {defect.expected:#x}; palette 1 has 8 tiles of up to 16 rows of"
            " 64 bytes, and 0 ends the configuration (tilecfg=0)",
        )


def _check_survival(old: Registers, new: Registers) -> None:
    for danger in dangers(old, new):
        raise RegisterError(
            danger.split()[0],
            danger.partition(" ")[2],
            help="nothing was written; --force (rewrite(..., force=True)) writes it all the same",
        )


def _configuration(registers: Registers) -> bytes:
    return registers["tilecfg"].to_bytes(CONFIGURATION_SIZE, "little")


def _needs_room_for_tiles(old: Image, new: Image) -> bool:
    """Tell whether a change states TILEDATA for a thread that had none in use, and perhaps has no room for it."""
    return bool(new.xstate_bv & ~old.xstate_bv & 1 << Component.TILEDATA)


def _no_room_for_tiles(tid: int, old: Image, new: Image) -> SourceError:
    names = [name for name in _TILES if new.registers[name] != old.registers[name]]
    return SourceError(
        f"thread {tid}",
        f"the kernel refuses TILEDATA ({', '.join(names) or 'tmm0-tmm7'}) with EINVAL, and left the old state in"
        " place: this thread has no room for it. Either its process has not asked for the permission, or the thread"
        " has not used a tile since; another process cannot tell which",
        help="in the process, arch_prctl(ARCH_REQ_XCOMP_PERM, 18), then LDTILECFG and TILEZERO in this thread;"
        " TILECFG alone can be set without either",
    )


def _errno(error: SourceError) -> int | None:
    return getattr(error.__cause__, "errno", None)


def _notes(old: Image, new: Image) -> Iterator[str]:
    """Yield what the thread cannot use of what was written."""
    before, after = old.registers, new.registers
    yield from dangers(before, after)
    yield from unmasked(before, after)
    if "tilecfg" not in after:
        return
    written = [name for name in _TILES if after.get(name) != before.get(name)]
    if written and after["tilecfg"] == 0:
        yield (
            f"{', '.join(written)}: TILECFG is initial, so tile instructions raise #UD until LDTILECFG,"
            " which makes all tiles zero"
        )
    if after["tilecfg"] != before["tilecfg"]:
        for defect in use_defects(_configuration(after)):
            yield f"tilecfg: {defect.text}: TILELOADD and TILESTORED of tmm{defect.tile} raise #UD"
