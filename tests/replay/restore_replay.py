"""Recorded XRSTORs, done again by the model: what it refuses, and what every register then is.

Each is one XRSTOR of an image, legal or not, after a known pattern was loaded; some images end at an unmapped page. The
form is told in data/oracles_intel/README.md. Rules are held against the same files by another replayer.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from replay_report import Report
from sequence_operations import enter

from fpstate.arch import Component, Cpu, Layout
from fpstate.arch.component import COMPACTED_BIT, LEGACY_PLACES, MIN_SIZE
from fpstate.engine.model import Behaviour, Processor, RegisterFile
from fpstate.engine.model.contents import CONTROL_SIZE, LOADED, SLOTS, pending, without_pointers
from fpstate.engine.model.fault import NOT_AVAILABLE, PAGE, PROTECTION
from fpstate.errors import ProcessorFault
from recorded import Case, OracleFile, build

_C = Component
_LISTED = (_C.X87, _C.SSE, _C.AVX, _C.OPMASK, _C.ZMM_HI256, _C.HI16_ZMM, _C.TILECFG, _C.TILEDATA)
_KEY_0 = 3
_GRANTED_AND_USED = 1
_SIGNALS = {PROTECTION: [[11, 128, 13]], PAGE: [[11, 2, 14], [11, 1, 14]], NOT_AVAILABLE: [[4, 1, None]]}


def check_file(file: OracleFile, cpu: Cpu, behaviour: Behaviour | None = None, *, most: int = 1000) -> Report:
    """Replay a file's cases on the model of the processor that they were recorded on.

    Ends after ``most`` disagreements.
    """
    report, processor = Report(), Processor.under_linux(cpu, behaviour)
    if file.permission == _GRANTED_AND_USED:
        processor.xfd = 0
    templates = file.templates()
    processor.xrstor(file.pattern())
    loaded = processor.snapshot()
    for number, case in enumerate(file.cases):
        if len(report.disagreements) >= most:
            break
        report.cases += 1
        if case.get("varies"):
            report.skipped += 1
            continue
        image = bytes(build(case["p"], file.pool, file.size, templates[case["t"]]))[: case["n"]]
        processor.file = loaded.copy()
        for problem in _problems(processor, case, image, loaded):
            report.disagreements.append(f"{file.name}, case {number}: {problem}")
            break
    return report


def _problems(processor: Processor, case: Case, image: bytes, loaded: RegisterFile) -> Iterator[str]:
    memory = image + bytes(case["s"])
    recorded, fault = case["r"].get("f"), None
    try:
        with enter(processor, case["o"]) as wide:
            processor.xrstor(memory, case["m"], address=-len(memory) % 4096, wide=wide)
    except ProcessorFault as raised:
        fault = raised
    if recorded not in (_SIGNALS[fault.vector] if fault else [None]):
        yield f"signal {recorded}, the model says {fault}"
        return
    file, (mxcsr, pkru, *listed) = processor.file, case["r"]["g"]
    if file.mxcsr != mxcsr:
        yield f"MXCSR {mxcsr:#x}, the model says {file.mxcsr:#x}"
    forced = case["r"].get("k", pkru)
    if _C.PKRU not in file.values:
        pass
    elif int.from_bytes(file.values[_C.PKRU][:4], "little") != forced or forced & ~_KEY_0 != pkru:
        yield f"PKRU {forced:#x}, the model says {file.values[_C.PKRU].hex()}"
    if not fault:
        yield from _in_use(processor, case["r"]["x"])
    for name, told, *states in _states(processor, loaded, memory, listed):
        yield from _compare(name, told, *states)


def _states(
    processor: Processor, loaded: RegisterFile, memory: bytes, listed: list[str | int]
) -> Iterator[tuple[str, str | int, bytes, bytes, bytes | None]]:
    """Yield what is listed by its name: what was recorded, what it is, what it was before, what the image has."""
    file, x87 = processor.file, int(_C.X87)
    value = file.values[x87]
    if file.hides_pointers and not pending(value):
        value = without_pointers(value)
    yield (
        "ctl",
        listed[0],
        value[:CONTROL_SIZE],
        loaded.values[x87][:CONTROL_SIZE],
        memory[:CONTROL_SIZE],
    )
    layout = _layout(processor, memory)
    for component, told in zip(_LISTED, listed[1:], strict=True):
        if component not in file.values:
            continue
        held = processor.xfd >> component & 1
        value = file.initial[component] if held else file.values[component]
        given = _given(layout, component, memory)
        if component == x87:
            assert given is not None
            yield "st", told, value[SLOTS:], loaded.values[x87][SLOTS:], LOADED[x87](given)[SLOTS:]
        else:
            yield component.name, told, value, loaded.values[component], given


def _in_use(processor: Processor, recorded: int) -> Iterator[str]:
    foretold = processor.xgetbv(1)
    if missing := processor.file.not_initial() & ~processor.xfd & ~recorded & processor.xcr0:
        yield f"XINUSE {recorded:#x} lacks {missing:#x}"
    if foretold != recorded and not processor.behaviour.tracks_values:
        yield f"XINUSE {recorded:#x}, the model says {foretold:#x}"


def _compare(name: str, told: str | int, value: bytes, before: bytes, given: bytes) -> Iterator[str]:
    """Compare with a digest, with bytes in hexadecimal digits, or with letters: loaded, kept, initial."""
    if isinstance(told, int):
        same = zlib.crc32(value) == told
    elif len(told) > 3:
        same = value.hex() == told
    else:
        initial = bytes.fromhex("7f03").ljust(len(value), b"\0") if name == "ctl" else bytes(len(value))
        states = {"L": given, "K": before, "I": initial}
        same = all(value == states[letter] for letter in told)
    if not same:
        yield f"{name} {told}, the model has {value[:32].hex()}"


def _layout(processor: Processor, memory: bytes) -> Layout:
    """The layout of an image by its own format; zeros follow it."""
    xcomp_bv = int.from_bytes(memory[520:528], "little")
    if len(memory) >= MIN_SIZE and xcomp_bv & COMPACTED_BIT:
        return Layout.compacted(processor.cpu, xcomp_bv & processor.xcr0)
    return Layout.standard(processor.cpu, processor.xcr0)


def _given(layout: Layout, component: int, memory: bytes) -> bytes | None:
    """An image's bytes of a component; None where its format has no place for it."""
    if component in LEGACY_PLACES:
        offset, size = LEGACY_PLACES[component]
    elif component in layout:
        offset, size = layout.offset(component), layout.size_of(component)
    else:
        return None
    return memory[offset : offset + size].ljust(size, b"\0")
