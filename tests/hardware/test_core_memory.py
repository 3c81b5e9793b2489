"""Guest memory: guard pages around it, protection inside it, bounds at every access."""

import ctypes
from pathlib import Path
from types import ModuleType

import pytest

PAGE = 4096


def mapping_of(address: int) -> tuple[str, int, int]:
    """Rights, start and end of the mapping that holds an address, as /proc/self/maps shows it."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, rights = line.split()[:2]
        start, end = (int(part, 16) for part in span.split("-"))
        if start <= address < end:
            return rights[:3], start, end
    return "", 0, 0


def test_fresh_memory_is_zeroed_and_lies_between_guard_pages(core: ModuleType) -> None:
    memory = core.Memory(3 * PAGE)
    assert memory.size == 3 * PAGE
    assert memory.address % PAGE == 0
    assert memory.read(0, 3 * PAGE) == bytes(3 * PAGE)
    assert mapping_of(memory.address)[0] == "rw-"
    assert mapping_of(memory.address - 1)[0] == "---"
    assert mapping_of(memory.address + memory.size)[0] == "---"


def test_memory_is_given_back_to_the_system(core: ModuleType) -> None:
    memory = core.Memory(PAGE)
    address = memory.address
    ctypes.memset(address, 0x5A, PAGE)
    assert memory.read(0, 4) == b"ZZZZ"
    del memory
    rights, _, _ = mapping_of(address)
    assert rights != "rw-" or ctypes.string_at(address, 4) != b"ZZZZ"


def test_what_is_written_is_read(core: ModuleType) -> None:
    memory = core.Memory(2 * PAGE)
    memory.write(PAGE - 2, b"abcd")
    assert memory.read(PAGE - 3, 6) == b"\0abcd\0"
    memory.write(2 * PAGE, b"")
    assert memory.read(2 * PAGE, 0) == b""


@pytest.mark.parametrize(
    ("offset", "length"),
    [(-1, 1), (0, PAGE + 1), (PAGE, 1), (PAGE - 1, 2), (1, -1), ((1 << 63) - 1, 1), (1, (1 << 63) - 1)],
)
def test_nothing_outside_the_memory_is_touched(core: ModuleType, offset: int, length: int) -> None:
    memory = core.Memory(PAGE)
    with pytest.raises(ValueError, match="outside"):
        memory.read(offset, length)
    with pytest.raises(ValueError, match="outside"):
        memory.protect(offset, length, True, False)
    if 0 <= length <= PAGE + 1:
        with pytest.raises(ValueError, match="outside"):
            memory.write(offset, bytes(length))


def test_protection_is_that_of_whole_pages(core: ModuleType) -> None:
    memory = core.Memory(3 * PAGE)
    memory.protect(PAGE, PAGE, False, True)
    assert mapping_of(memory.address)[0] == "rw-"
    assert mapping_of(memory.address + PAGE)[0] == "r-x"
    assert mapping_of(memory.address + 2 * PAGE)[0] == "rw-"
    for offset, length in ((1, PAGE), (0, 5)):
        with pytest.raises(ValueError, match="multiples"):
            memory.protect(offset, length, True, True)


def test_a_page_that_is_not_writable_is_not_written(core: ModuleType) -> None:
    memory = core.Memory(3 * PAGE)
    memory.protect(PAGE, PAGE, False, False)
    for offset in (PAGE, PAGE - 1, 2 * PAGE - 1):
        with pytest.raises(ValueError, match="page 1"):
            memory.write(offset, b"ab")
    assert memory.read(0, 3 * PAGE) == bytes(3 * PAGE)
    memory.protect(PAGE, PAGE, True, False)
    memory.write(PAGE, b"ab")
    assert memory.read(PAGE, 2) == b"ab"


@pytest.mark.parametrize("size", [0, -PAGE, 1, PAGE + 1, (1 << 63) - 1])
def test_impossible_sizes_are_refused(core: ModuleType, size: int) -> None:
    with pytest.raises(ValueError, match="4096"):
        core.Memory(size)


def test_a_memory_larger_than_the_address_space_is_an_error(core: ModuleType) -> None:
    with pytest.raises(OSError):
        core.Memory(1 << 50)
