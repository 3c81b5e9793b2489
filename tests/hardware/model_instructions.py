"""The instructions of random sequences, as the model does them: tables by kind."""

from __future__ import annotations

from collections.abc import Callable

from model_sequences import Kind

from fpstate.engine.model import Processor

Perform = Callable[[Processor, memoryview | bytearray, int, int], None]


def _outside_64_bit_mode(perform: Perform) -> Perform:
    def performed(processor: Processor, area: memoryview | bytearray, mask: int, address: int) -> None:
        processor.long_mode = False
        try:
            perform(processor, area, mask, address)
        finally:
            processor.long_mode = True

    return performed


SAVES_BY_KIND: dict[int, Perform] = {
    Kind.FXSAVE: lambda p, area, mask, address: p.fxsave(area, address=address, wide=False),
    Kind.FXSAVE64: lambda p, area, mask, address: p.fxsave(area, address=address),
    Kind.XSAVE: lambda p, area, mask, address: p.xsave(area, mask, address=address, wide=False),
    Kind.XSAVE64: lambda p, area, mask, address: p.xsave(area, mask, address=address),
    Kind.XSAVEC: lambda p, area, mask, address: p.xsavec(area, mask, address=address, wide=False),
    Kind.XSAVEC64: lambda p, area, mask, address: p.xsavec(area, mask, address=address),
    Kind.XSAVEOPT: lambda p, area, mask, address: p.xsaveopt(area, mask, address=address, wide=False),
    Kind.XSAVEOPT64: lambda p, area, mask, address: p.xsaveopt(area, mask, address=address),
    Kind.XSAVES64: lambda p, area, mask, address: p.xsaves(area, mask, address=address),
}
RESTORES: dict[int, Perform] = {
    Kind.FXRSTOR: lambda p, area, mask, address: p.fxrstor(area, address=address, wide=False),
    Kind.FXRSTOR64: lambda p, area, mask, address: p.fxrstor(area, address=address),
    Kind.XRSTOR: lambda p, area, mask, address: p.xrstor(area, mask, address=address, wide=False),
    Kind.XRSTOR64: lambda p, area, mask, address: p.xrstor(area, mask, address=address),
    Kind.XRSTORS64: lambda p, area, mask, address: p.xrstors(area, mask, address=address),
}
for _kind, _perform in (
    (Kind.FXSAVE32, SAVES_BY_KIND[Kind.FXSAVE]),
    (Kind.XSAVE32, SAVES_BY_KIND[Kind.XSAVE]),
    (Kind.XSAVEC32, SAVES_BY_KIND[Kind.XSAVEC]),
    (Kind.XSAVEOPT32, SAVES_BY_KIND[Kind.XSAVEOPT]),
):
    SAVES_BY_KIND[_kind] = _outside_64_bit_mode(_perform)
for _kind, _perform in (
    (Kind.FXRSTOR32, RESTORES[Kind.FXRSTOR]),
    (Kind.XRSTOR32, RESTORES[Kind.XRSTOR]),
):
    RESTORES[_kind] = _outside_64_bit_mode(_perform)
MOVES = {
    Kind.XMM: (Processor.move_xmm, 16),
    Kind.VXMM: (Processor.move_vector, 16),
    Kind.VYMM: (Processor.move_vector, 32),
    Kind.VZMM: (Processor.move_vector, 64),
    Kind.KMOV: (Processor.kmov, 8),
    Kind.MMX: (Processor.move_mmx, 8),
}
PLAIN = {
    Kind.VZEROUPPER: Processor.vzeroupper,
    Kind.VZEROALL: Processor.vzeroall,
    Kind.FNINIT: Processor.fninit,
    Kind.FNCLEX: Processor.fnclex,
    Kind.EMMS: Processor.emms,
    Kind.TILERELEASE: Processor.tilerelease,
}
