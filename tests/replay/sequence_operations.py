"""The operations of recorded sequences, done by the model: what data/oracles_intel/README.md lists, by their names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from fpstate.engine.model import Place, Processor
from recorded import Case, OracleFile

_STRIDE = 1 << 16
_TILE_BYTES = 1024
_OPCODES = {"fldt": 0x32F, "fstp": 0x5D8}
"""FOP of FLD m80 with RDI as its address, and of FSTP ST(0)."""
_CODE, _DATA = 0x33, 0x2B
"""CS and DS of the programs that recorded."""

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
        self._pool_at = 0

    def start(self, case: Case) -> None:
        """Begin a sequence: everything initial, and its three areas."""
        self.processor.file = self._fresh.copy()
        self.areas = [bytearray(self._templates[number]) for number in case["t"]]
        self._pool_at = case.get("at", 0)

    def perform(self, operation: Operation) -> int | None:
        """Do one operation, and return what it reads; raises ProcessorFault as the model does."""
        return PERFORM[operation[0]](self, operation)

    def _area(self, operation: Operation) -> memoryview:
        return memoryview(self.areas[operation[1]])[operation[3] :]

    def _on_area(self, operation: Operation) -> None:
        name = operation[0]
        method = name.removesuffix("@32").removesuffix("64")
        address = _STRIDE * (operation[1] + 1) + operation[3]
        requested = () if method.startswith("fx") else (operation[2],)
        perform = getattr(self.processor, method)
        with enter(self.processor, name) as wide:
            perform(self._area(operation), *requested, address=address, wide=wide)

    def _plain(self, operation: Operation, *, method: str) -> int | None:
        result: int | None = getattr(self.processor, method)(*operation[1:])
        return result

    def _move(self, operation: Operation, *, method: str, size: int) -> None:
        start = operation[2]
        getattr(self.processor, method)(operation[1], self._pool[start : start + size])

    def _x87(self, operation: Operation) -> None:
        name = operation[0]
        fdp = self._pool_at + operation[1] if name == "fldt" else 0
        place = Place(self._fip[name], fdp, _OPCODES[name], _CODE, _DATA)
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


@contextmanager
def enter(processor: Processor, name: str) -> Iterator[bool]:
    """Be in the mode that an instruction's name asks for, and say whether it has REX.W."""
    processor.long_mode = not name.endswith("@32")
    try:
        yield name.endswith("64")
    finally:
        processor.long_mode = True


_BOTH_MODES = ("fxsave", "xsave", "xsavec", "xsaveopt", "fxrstor", "xrstor")
_ON_AREAS = {name + form for name in _BOTH_MODES for form in ("", "64", "@32")} | {"xsaves64", "xrstors64"}
SAVES = frozenset(name for name in _ON_AREAS if "save" in name)
PERFORM: dict[str, Callable[[Operations, Operation], int | None]] = {
    **dict.fromkeys(_ON_AREAS, Operations._on_area),
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
"""How each operation is done, by its name in the recordings."""
