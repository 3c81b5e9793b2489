"""What the pages read and do not make: a core, the same one compressed, and one with tiles."""

from __future__ import annotations

import lzma
from pathlib import Path

from fpstate.arch import Cpu, Layout
from fpstate.image import Image
from fpstate.source.thread import ThreadState
from fpstate.testing.core import linux_notes, register_set, write_core

THREADS = (2183, 2184, 2185)
XCR0 = 0xE7
TILES = {
    **{"palette_id": 1, "tile0_rows": 2, "tile0_colsb": 8, "tile1_rows": 1, "tile1_colsb": 16},
    **{"tmm0": 0x4000000040400000 | 0x3F8000003F000000 << 512, "tmm1": 1 | 1 << 8 * 20},
}
"""Two tiles of 2 x 8 and 1 x 16 bytes; a byte of the second lies outside of its configuration."""
YMM1_AS_U64 = (6726785013084212040, 8462949161198052192, 10199113309311892344, 11935277457425732496)


def write_inputs(folder: Path) -> None:
    """Write ``core``, as Linux on a Zen 4 does, ``core.1234.xz``, and ``tiles.core``, as on an Emerald Rapids."""
    layout = Layout.standard(Cpu.catalog("zen4"), XCR0)
    image = Image.initial(layout)
    image.registers["mxcsr"] = 0x3F80
    image.registers["st0"] = 0x3FFE805A010011111111
    image.registers["ymm1"] = sum(lane << 64 * index for index, lane in enumerate(YMM1_AS_U64))
    notes = linux_notes([(tid, register_set(image)) for tid in THREADS], layout=layout)
    core = write_core(notes)
    (folder / "core").write_bytes(core)
    (folder / "core.1234.xz").write_bytes(lzma.compress(core))
    layout = Layout.standard(Cpu.catalog("emerald-rapids"))
    image = Image.initial(layout)
    image.registers["pkru"] = 0x55555550
    for name, value in TILES.items():
        image.registers[name] = value
    (folder / "tiles.core").write_bytes(write_core(linux_notes([(2183, register_set(image))], layout=layout)))


def states(*changes: dict[str, int]) -> list[ThreadState]:
    """Return a thread for each of ``changes``, with these registers."""
    layout = Layout.standard(Cpu.catalog("zen4"))
    threads = []
    for tid, registers in enumerate(changes, 1):
        image = Image.initial(layout)
        for name, value in registers.items():
            image.registers[name] = value
        threads.append(ThreadState(tid, image))
    return threads
