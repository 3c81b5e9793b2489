"""The model in the place of the recorder's child: a machine with AMX, XFD and PKRU to record where there is none.

It shows that the recorder asks and writes down what it should, not that the model is right.
"""

from __future__ import annotations

from typing import Final

from recording.child import Record, Step
from recording.host import UNUSED, USED, Host
from recording.memory import BASE, Memory

from fpstate.arch import Component, mask_of
from fpstate.engine.model import Place, Processor
from fpstate.engine.model.fault import NOT_AVAILABLE, PAGE
from fpstate.errors import ProcessorFault
from linux_signal import signal_of

_SIZE: Final = 16 << 20
_START: Final = 4096
_KEY_0: Final = 3
_AREA: Final = 12288
_TILE: Final = 1024
_OPCODES: Final = {"fldt": 0x32F, "fstp": 0x5D8}
_STUBS: Final = {"fldt": 0x401000, "fstp": 0x401010}
_OF_SIGNALS: Final = mask_of(Component.X87, Component.SSE, Component.PKRU)
_PKRU: Final = mask_of(Component.PKRU)
_MOVES: Final = {
    "movups": ("move_xmm", 16),
    "vmovups128": ("move_vector", 16),
    "vmovups256": ("move_vector", 32),
    "vmovups512": ("move_vector", 64),
    "kmovq": ("kmov", 8),
    "movq": ("move_mmx", 8),
    "tileloadd": ("tileloadd", _TILE),
}
_ON_AREAS: Final = ("xsave", "xsavec", "xsaveopt", "xsaves", "xrstor", "xrstors", "fxsave", "fxrstor")


class _Names(dict[str, "int | str"]):
    """Stubs have their name for an address, but for those of which the address is saved."""

    def __missing__(self, name: str) -> str:
        return name


class ModelChild(Memory):
    """Has the methods of ``recording.child.Child`` that the recorder uses."""

    def __init__(self, host: Host, permission: int) -> None:
        super().__init__(bytearray(_SIZE), _START)
        self.processor = Processor.under_linux(host.cpu)
        self.stubs = _Names(_STUBS)
        self._grants = permission == UNUSED
        if permission == USED:
            self.processor.xfd = 0

    def __enter__(self) -> ModelChild:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is open."""

    def step(self, stub: str, first: int = 0, second: int = 0, third: int = 0) -> Step:
        return stub, first, second, third  # type: ignore[return-value]

    def run(self, steps: list[Step]) -> list[Record]:
        return [self._record(*step) for step in steps]

    def _record(self, stub: str, first: int, second: int, third: int) -> Record:
        value, (signal, code, vector), address = 0, (0, 0, 0), 0
        try:
            value = self._granting(stub, first, second, third) or 0
        except ProcessorFault as fault:
            signal, code, vector = self._signal(fault)
            address = self.end if fault.vector == PAGE else 0
        processor = self.processor
        in_use, pkru = processor.xgetbv(1), processor.rdpkru()
        if pkru & _KEY_0:
            processor.wrpkru(pkru & ~_KEY_0)
        return Record(value, in_use, pkru, address, 0, signal, code, vector)

    def _signal(self, fault: ProcessorFault) -> list[int]:
        """What Linux makes of an exception; it saves the registers in a frame and loads them again."""
        file = self.processor.file
        file.info = None
        loaded, file.in_use = file.in_use | _OF_SIGNALS, 0
        file.in_use = loaded
        return [number or 0 for number in signal_of(fault, self.processor)]

    def _granting(self, stub: str, first: int, second: int, third: int) -> int | None:
        """Perform a step, twice where Linux gives tiles on their first use."""
        try:
            return self._perform(stub, first, second, third)
        except ProcessorFault as fault:
            if fault.vector != NOT_AVAILABLE or not self._grants:
                raise
        self.processor.xfd = 0
        self.processor.file.info = None
        self.processor.file.in_use = self.processor.file.in_use | _PKRU
        return self._perform(stub, first, second, third)

    def _perform(self, stub: str, first: int, second: int, third: int) -> int | None:
        processor, at = self.processor, first - BASE
        memory = memoryview(self.memory)[max(at, 0) :]
        name, _, index = stub.partition(".")
        method = name.removesuffix("@32").removesuffix("64")
        if name == "copy":
            memory[:third] = self.read(second, third)
        elif name == "fill":
            memory[:third] = bytes(third)
        elif method in _ON_AREAS:
            requested = () if method.startswith("fx") else (second,)
            processor.long_mode = not name.endswith("@32")
            try:
                wide = name.endswith("64")
                getattr(processor, method)(memory[:_AREA], *requested, address=first, wide=wide)
            finally:
                processor.long_mode = True
        elif name in _MOVES:
            move, size = _MOVES[name]
            getattr(processor, move)(int(index), bytes(memory[:size]))
        elif name in ("fldt", "fstp"):
            place = Place(_STUBS[name], first, _OPCODES[name])
            processor.fld80(bytes(memory[:10]), place=place) if name == "fldt" else processor.fstp0(
                place=place
            )
        else:
            return self._plain(name, index, memory, second, third)
        return None

    def _plain(self, name: str, index: str, memory: memoryview, second: int, third: int) -> int | None:
        processor, file = self.processor, self.processor.file
        reads = {
            "xgetbv": lambda: processor.xgetbv(third),
            "rdpkru": processor.rdpkru,
            "stmxcsr": lambda: file.mxcsr,
            "fnstcw": lambda: int.from_bytes(file.values[0][0:2], "little"),
            "fnstsw": lambda: int.from_bytes(file.values[0][2:4], "little"),
        }
        does = {
            "wrpkru": lambda: processor.wrpkru(second),
            "fldcw": lambda: processor.fldcw(int.from_bytes(memory[:2], "little")),
            "ldmxcsr": lambda: processor.ldmxcsr(int.from_bytes(memory[:4], "little")),
            "ldtilecfg": lambda: processor.ldtilecfg(bytes(memory[:64])),
            "sttilecfg": lambda: processor.sttilecfg(memory),
            "tilestored": lambda: processor.tilestored(int(index), memory),
            "tilezero": lambda: processor.tilezero(int(index)),
            "vpxor": lambda: processor.zero_vector(int(index)),
        }
        if name in reads:
            return reads[name]()
        does.get(name, getattr(processor, name, None))()
        return None
