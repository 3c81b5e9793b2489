"""The operations of recorded sequences, done by the model: what data/oracles_intel/README.md lists, by their names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from fpstate.engine.model import Place, Processor
from recorded import Case, OracleFile

_STRIDE = 1 << 16
_TILE_BYTES = 1024
_OPCODES = {"fldt": 0x32F, "fstp": 0x5D8}
"""FOP of FLD m80 with RDI as its address, and of FSTP ST(0)."""

Operation = list[Any]


class Operations:
    """A processor and three areas of memory, on which operations are done one by one."""

    def __init__(self, file: OracleFile, processor: Processor) -> None:
        self.processor = processor
        self.areas: list[bytearray] = []
        self._fresh = processor.snapshot()
        self._templates = file.templates()
        self._pool = file.pool
        self._fip = file.header.get("fip", {})
        self._selectors = file.header.get("selectors", (0, 0))
        self._pool_at = 0

    def start(self, case: Case) -> None:
        """Begin a sequence: everything initial, and its three areas."""
        self.processor.file = self._fresh.copy()
        self.areas = [bytearray(self._templates[number]) for number in case["t"]]
        self._pool_at = case.get("at", 0)

    def perform(self, operation: Operation) -> int | None:
        """Do one operation, and return what it reads; raises ProcessorFault as the model does."""
        return _PERFORM[operation[0]](self, operation)

    def _area(self, operation: Operation) -> memoryview:
        return memoryview(self.areas[operation[1]])[operation[3] :]

    def _on_area(self, operation: Operation, *, method: str, wide: bool, short: bool) -> None:
        processor = self.processor
        perform = getattr(processor, method)
        address = _STRIDE * (operation[1] + 1) + operation[3]
        requested = () if method.startswith("fx") else (operation[2],)
        processor.long_mode = not short
        try:
            perform(self._area(operation), *requested, address=address, wide=wide)
        finally:
            processor.long_mode = True

    def _plain(self, operation: Operation, *, method: str) -> int | None:
        result: int | None = getattr(self.processor, method)(*operation[1:])
        return result

    def _move(self, operation: Operation, *, method: str, size: int) -> None:
        start = operation[2]
        getattr(self.processor, method)(operation[1], self._pool[start : start + size])

    def _x87(self, operation: Operation) -> None:
        name = operation[0]
        fdp = self._pool_at + operation[1] if name == "fldt" else 0
        place = Place(self._fip[name], fdp, _OPCODES[name], *self._selectors)
        if name == "fldt":
            self.processor.fld80(self._pool[operation[1] : operation[1] + 10], place=place)
        else:
            self.processor.fstp0(place=place)

    def _ldtilecfg(self, operation: Operation) -> None:
        self.processor.ldtilecfg(bytes.fromhex(operation[1]))

    def _sttilecfg(self, operation: Operation) -> None:
        self.processor.sttilecfg(memoryview(self.areas[operation[1]])[operation[2] :])

    def _tileloadd(self, operation: Operation) -> None:
        self.processor.tileloadd(operation[1], self._pool[operation[2] :][:_TILE_BYTES])

    def _tilestored(self, operation: Operation) -> None:
        self.processor.tilestored(operation[1], memoryview(self.areas[operation[2]])[operation[3] :])

    def _xgetbv(self, operation: Operation) -> int | None:
        return self.processor.xgetbv(operation[1])

    def _read(self, operation: Operation) -> int:
        file = self.processor.file
        x87 = file.values[0]
        return {
            "stmxcsr": file.mxcsr,
            "fnstcw": int.from_bytes(x87[0:2], "little"),
            "fnstsw": int.from_bytes(x87[2:4], "little"),
        }[operation[0]]

    def _edit(self, operation: Operation) -> None:
        data = bytes.fromhex(operation[3])
        self.areas[operation[1]][operation[2] : operation[2] + len(data)] = data

    def _copy(self, operation: Operation) -> None:
        _, number, offset, start, length = operation
        self.areas[number][offset : offset + length] = self._pool[start : start + length]


def _area_instructions(names: str) -> dict[str, Callable[[Operations, Operation], None]]:
    forms = {}
    for name in names.split():
        method = name.removesuffix("64")
        forms[name] = partial(Operations._on_area, method=method, wide=name.endswith("64"), short=False)
        forms[f"{method}@32"] = partial(Operations._on_area, method=method, wide=False, short=True)
    return forms


SAVES = _area_instructions("fxsave fxsave64 xsave xsave64 xsavec xsavec64 xsaveopt xsaveopt64 xsaves64")
_PERFORM: dict[str, Callable[[Operations, Operation], int | None]] = {
    **SAVES,
    **_area_instructions("fxrstor fxrstor64 xrstor xrstor64 xrstors64"),
    **{
        name: partial(Operations._plain, method=name)
        for name in (
            *("vzeroupper", "vzeroall", "fninit", "fnclex", "emms", "tilerelease", "tilezero", "rdpkru"),
            *("wrpkru", "fldcw", "ldmxcsr"),
        )
    },
    "vpxor": partial(Operations._plain, method="zero_vector"),
    "movups": partial(Operations._move, method="move_xmm", size=16),
    "vmovups128": partial(Operations._move, method="move_vector", size=16),
    "vmovups256": partial(Operations._move, method="move_vector", size=32),
    "vmovups512": partial(Operations._move, method="move_vector", size=64),
    "kmovq": partial(Operations._move, method="kmov", size=8),
    "movq": partial(Operations._move, method="move_mmx", size=8),
    "fldt": Operations._x87,
    "fstp": Operations._x87,
    "ldtilecfg": Operations._ldtilecfg,
    "sttilecfg": Operations._sttilecfg,
    "tileloadd": Operations._tileloadd,
    "tilestored": Operations._tilestored,
    "xgetbv": Operations._xgetbv,
    **dict.fromkeys(("stmxcsr", "fnstcw", "fnstsw"), Operations._read),
    "edit": Operations._edit,
    "copy": Operations._copy,
}
