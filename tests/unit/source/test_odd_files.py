"""Files that are no sources, or change while they are read: each an error of ours, or of the system's."""

import os
import struct

import pytest

from fpstate.arch import Cpu, Layout
from fpstate.errors import BudgetExceeded, SourceError
from fpstate.source.open import each_thread, open_source
from fpstate.testing import random_image
from fpstate.testing.core import linux_notes, register_set, write_core

STATE = register_set(random_image(Layout.standard(Cpu.catalog("haswell")), 1))
CORE = write_core(linux_notes([(number, STATE) for number in range(1, 50)]))
NEAR_2_64 = ((1 << 64) - 1, (1 << 64) - 8, (1 << 64) - 4096, 1 << 63, (1 << 63) - 1, 1 << 40)


def patched(offset, value, size=8):
    return CORE[:offset] + value.to_bytes(size, "little") + CORE[offset + size :]


def refused(path):
    with pytest.raises(SourceError) as caught:
        open_source(path)
    assert caught.value.offset is None or caught.value.offset >= 0
    return caught.value


@pytest.mark.parametrize("value", NEAR_2_64)
@pytest.mark.parametrize("field", [32, 40, 72, 96], ids=["headers", "sections", "segment", "size"])
def test_offsets_near_2_64_are_refused_at_their_byte(tmp_path, value, field):
    data = bytearray(patched(field, value))
    if field == 40:
        struct.pack_into("<H", data, 56, 0xFFFF)  # PN_XNUM: the number of program headers is in section 0
    path = tmp_path / "core"
    path.write_bytes(data)
    assert refused(path).offset is not None


@pytest.mark.parametrize("count", [0, 1 << 20, (1 << 20) + 1, (1 << 32) - 1])
def test_counts_in_section_0_are_held_against_the_file(tmp_path, count):
    data = bytearray(CORE) + struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, count, 0, 0)
    struct.pack_into("<H", data, 56, 0xFFFF)
    struct.pack_into("<Q", data, 40, len(CORE))
    path = tmp_path / "core"
    path.write_bytes(data)
    error = refused(path)
    assert isinstance(error, BudgetExceeded) == (count > 1 << 20)


def test_folders_and_links_that_lead_nowhere_are_errors_of_the_system(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path in (tmp_path, loop, tmp_path / "none"):
        with pytest.raises(OSError):
            open_source(path)


@pytest.mark.parametrize("path", ["/proc/self/mem", "/proc/self/pagemap", "/dev/null", "/proc/self/maps"])
def test_files_of_the_kernel_without_a_size_are_refused(path):
    if not os.path.exists(path):
        pytest.skip(f"{path} is not there")
    refused(path)


def test_cores_of_other_byte_orders_are_refused(tmp_path):
    path = tmp_path / "core"
    path.write_bytes(patched(5, 2, 1))
    assert refused(path).offset == 5


@pytest.mark.parametrize("restored", [False, True])
def test_a_file_that_is_cut_while_it_is_read_is_refused_and_one_that_comes_back_is_read(tmp_path, restored):
    path = tmp_path / "core"
    path.write_bytes(CORE)
    threads = each_thread(path)
    assert next(threads).tid == 1
    path.write_bytes(CORE[: len(CORE) // 2])
    if restored:
        path.write_bytes(CORE)
        assert len(list(threads)) == 48
        return
    with pytest.raises(SourceError, match="are there"):
        list(threads)
