import sys
from types import ModuleType

import pytest

from fpstate.arch import Cpu, Layout
from fpstate.arch.host import host_cpu
from fpstate.errors import UnsupportedHere

LEAVES = {
    (0, 0): (0xD, 0x68747541, 0x444D4163, 0x69746E65),
    (1, 0): (0x00A10F11, 0, 1 << 26 | 1 << 27 | 1 << 28, 1 | 1 << 24 | 1 << 25),
    (0xD, 0): (7, 832, 832, 0),
    (0xD, 1): (0xF, 832, 0, 0),
    (0xD, 2): (256, 576, 0, 0),
    (0x80000000, 0): (0x80000008, 0, 0, 0),
    (0x80000008, 0): (0, 4, 0, 0),
}


class FakeCore(ModuleType):
    def __init__(self, leaves: dict[tuple[int, int], tuple[int, int, int, int]]) -> None:
        super().__init__("fpstate._core")
        self.leaves = leaves

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        highest = self.leaves[0 if leaf < 1 << 31 else 0x80000000, 0][0]
        assert leaf <= highest or leaf == 0x80000000, "what lies above the highest leaf means nothing"
        return self.leaves.get((leaf, subleaf), (0, 0, 0, 0))

    def xgetbv(self, index: int) -> int:
        assert index == 0
        assert self.leaves[1, 0][2] & 1 << 27, "XGETBV faults without OSXSAVE"
        return 7

    def mxcsr_mask(self) -> int:
        return 0x2FFFF


def test_the_host_is_read_through_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fpstate._core", FakeCore(LEAVES))
    cpu = Cpu.host()
    assert (cpu.source, cpu.vendor, cpu.xcr0, cpu.enabled_xcr0) == ("host", "AuthenticAMD", 7, 7)
    assert cpu.mxcsr_mask == 0x2FFFF
    assert cpu.has("RSTRFPERRPTRS")


def test_without_osxsave_xgetbv_is_not_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = LEAVES | {(1, 0): (0x00A10F11, 0, 1 << 26, 1)}
    monkeypatch.setitem(sys.modules, "fpstate._core", FakeCore(leaves))
    assert host_cpu().enabled_xcr0 is None


def test_without_the_core_the_host_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fpstate._core", None)
    with pytest.raises(UnsupportedHere, match="native core"):
        Cpu.host()


def test_this_processor_states_the_sizes_that_the_layout_gives() -> None:
    try:
        cpu = Cpu.host()
    except UnsupportedHere as error:
        pytest.skip(str(error))
    if cpu.enabled_xcr0 is None:
        pytest.skip("the operating system has not enabled XSAVE")
    assert Layout.standard(cpu, cpu.xcr0).size == cpu.standard_size
    assert Layout.standard(cpu, cpu.enabled_xcr0).size == cpu.enabled_size
    assert cpu.enabled_xcr0 & ~cpu.xcr0 == 0
