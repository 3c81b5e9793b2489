"""Writes the fixed corpora anew, from the builders; the files are kept, so that a find can be told from a change.

python tests/fuzz/make_corpus.py
"""

from __future__ import annotations

from collections.abc import Iterator

from targets import CORPUS, TARGETS

from fpstate.arch import Cpu, Format, Layout
from fpstate.image.legacy import FXSAVE_LAYOUT, to_fsave, to_fxsave
from fpstate.source.raw_format import FORMATS
from fpstate.testing import build_layout, random_image
from fpstate.testing.container import (
    DumpedThread,
    criu_core,
    kvm_fpu,
    kvm_xsave,
    minidump,
    signal_frame,
    windows_context,
    xstate_config,
)
from fpstate.testing.core import CoreNote, linux_notes, register_set, write_core

AVX = random_image(Layout.standard(Cpu.catalog("haswell")), 2, present=7)
AVX512 = random_image(Layout.standard(Cpu.catalog("zen4")), 3, present=0x2E7)
COMPACTED = random_image(build_layout("tiger-lake", Format.COMPACTED), 4)


def cores() -> Iterator[bytes]:
    """Cores with and without a stated layout, of 64 and 32 bits, and of NetBSD."""
    for machine in ("x86-64", "i386"):
        states = [(7, register_set(AVX512)), (8, register_set(AVX512))]
        yield write_core(linux_notes(states, machine, layout=AVX512.layout, hwcap=1), machine)
        yield write_core(linux_notes([(7, register_set(AVX, mxcsr_mask=0))], machine), machine)
    yield write_core([linux_notes([(9, b"")])[0], CoreNote("CORE", 2, to_fxsave(AVX))])
    yield write_core(
        [CoreNote("NetBSD-CORE@1", 35, bytes(108)), CoreNote("NetBSD-CORE@1", 43, bytes(2384))], "i386"
    )


def minidumps() -> Iterator[bytes]:
    """Minidumps of both machines and formats, with and without a stated layout, and one of an exception."""
    for machine in ("x86-64", "i386"):
        for image in (AVX512, COMPACTED):
            context = windows_context(image, machine)
            yield minidump([DumpedThread(1, context)], machine, config=xstate_config(image))
        yield minidump([DumpedThread(1, windows_context(AVX, machine))], machine)
        plain = windows_context(random_image(FXSAVE_LAYOUT, 1, present=3), machine)
        yield minidump([DumpedThread(1, plain), DumpedThread(2, plain, plain)], machine)


def raw_images() -> Iterator[bytes]:
    """One of each format, with the byte behind it that names the format."""
    made = {
        "std": register_set(AVX512),
        "compacted": COMPACTED.to_bytes(),
        "fxsave": to_fxsave(AVX),
        "fsave": to_fsave(AVX),
        "sigframe": signal_frame(AVX512),
        "kvm-xsave": kvm_xsave(AVX),
        "kvm-fpu": kvm_fpu(AVX),
    }
    yield from (data + bytes([FORMATS.index(format)]) for format, data in made.items())
    yield signal_frame(AVX, machine="i386") + bytes([len(FORMATS)])


MADE = {
    "core": cores,
    "minidump": minidumps,
    "criu": lambda: (criu_core(image) for image in (AVX, AVX512, COMPACTED)),
    "raw": raw_images,
}

if __name__ == "__main__":
    assert MADE.keys() == TARGETS.keys()
    for target, make in MADE.items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(make()):
            (folder / f"{number:02}").write_bytes(data)
