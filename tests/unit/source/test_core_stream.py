"""Streams: compressed or not, by offset, with bounds."""

import bz2
import gzip
import importlib.util
import lzma
import os
import random
import sys
import types

import pytest

from fpstate.errors import SourceError, UnsupportedHere
from fpstate.source import inflate as inflate_module
from fpstate.source.open import open_source, reader_of
from fpstate.source.stream import FileStream, InflatedStream, MemoryStream, inflated, open_stream

DATA = random.Random(1).randbytes(1 << 18) + bytes(3 << 20) + random.Random(2).randbytes(1 << 18)
CODECS = {"xz": lzma.compress, "gzip": gzip.compress, "bzip2": bz2.compress}


@pytest.fixture
def on_disk(tmp_path):
    opened = []

    def write(data, limit=None):
        path = tmp_path / "data"
        path.write_bytes(data)
        file = path.open("rb")
        opened.append(file)
        stream = FileStream(file, str(path))
        return inflated(stream) if limit is None else inflated(stream, limit)

    yield write
    for file in opened:
        file.close()


@pytest.mark.parametrize("compress", [bytes, *CODECS.values()], ids=["plain", *CODECS])
def test_any_part_can_be_read_in_any_order(on_disk, compress):
    stream = on_disk(compress(DATA))
    source = random.Random(3)
    for offset in (0, 100, 3 << 20, 70000, len(DATA) - 5, len(DATA), len(DATA) + 9, 2 << 20, 1):
        size = source.randrange(1, 300_000)
        assert stream.read_at(offset, size) == DATA[offset : offset + size]
    assert stream.read_at(5, 0) == b""
    assert stream.read_at(5, -1) == b""


@pytest.mark.parametrize("name", CODECS)
def test_members_one_behind_the_other_are_one_file(on_disk, name):
    stream = on_disk(CODECS[name](DATA[:1000]) + CODECS[name](b"") + CODECS[name](DATA[1000:5000]))
    assert stream.read_at(0, 10_000) == DATA[:5000]
    assert stream.size == 5000


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("cut", [1, 7, 100])
def test_data_that_is_cut_short_or_damaged_is_refused(on_disk, name, cut):
    packed = CODECS[name](DATA[:100_000])
    with pytest.raises(SourceError, match=name):
        on_disk(packed[:-cut]).read_at(0, 200_000)
    broken = bytearray(packed)
    broken[len(broken) // 2] ^= 0x55
    broken[len(broken) // 2 + 1] ^= 0xAA
    with pytest.raises(SourceError, match=name):
        on_disk(bytes(broken)).read_at(0, 200_000)


@pytest.mark.parametrize("name", CODECS)
def test_inflating_stops_at_the_limit(on_disk, name):
    stream = on_disk(CODECS[name](bytes(64 << 20)), limit=4 << 20)
    assert stream.read_at(1 << 20, 10) == bytes(10)
    with pytest.raises(SourceError, match="inflates to more than 4194304") as caught:
        stream.read_at(60 << 20, 10)
    assert caught.value.offset == 4 << 20


def test_an_xz_file_that_wants_a_huge_dictionary_is_refused(on_disk):
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    packed = bytearray(lzma.compress(b"x" * 100, filters=filters))
    # The dictionary's size is the property byte of LZMA2 in the block header, whose CRC32 follows.
    at = packed.index(b"\x21\x01")
    packed[at + 2] = 40
    import zlib

    start = 12
    size = (packed[start] + 1) * 4
    packed[start + size - 4 : start + size] = zlib.crc32(packed[start : start + size - 4]).to_bytes(
        4, "little"
    )
    with pytest.raises(SourceError, match=r"[Mm]emory"):
        on_disk(bytes(packed)).read_at(0, 10)


def test_zstd_without_a_library_is_named(on_disk, monkeypatch):
    monkeypatch.setattr(inflate_module, "_ZSTD_MODULES", ("no_such_zstd",))
    with pytest.raises(UnsupportedHere, match="zstd") as caught:
        on_disk(b"\x28\xb5\x2f\xfd" + bytes(100)).read_at(0, 4)
    assert "fpstate[zstd]" in caught.value.help


@pytest.mark.skipif(
    not any(map(importlib.util.find_spec, ("zstandard", "compression"))),
    reason="no zstd library is installed",
)
def test_zstd_is_read_where_a_library_is_installed(on_disk):
    library = inflate_module._zstd_library()
    compress = library.compress
    assert on_disk(compress(DATA)).read_at(3 << 20, 1000) == DATA[3 << 20 :][:1000]
    assert len(on_disk(compress(DATA)[:500]).read_at(0, len(DATA))) < len(DATA)  # the libraries tell no end
    with pytest.raises(SourceError, match="damaged zstd data"):
        on_disk(compress(DATA)[:4] + b"\xff" * 100).read_at(0, len(DATA))
    with pytest.raises(SourceError, match="inflates to more than"):
        on_disk(compress(bytes(64 << 20)), limit=1 << 20).read_at(8 << 20, 1)


def test_the_beginning_is_kept_and_reading_backwards_starts_over(on_disk):
    stream = on_disk(lzma.compress(DATA))
    assert isinstance(stream, InflatedStream)
    stream.read_at(3 << 20, 10)
    before = stream._start
    assert stream.read_at(10, 10) == DATA[10:20]
    assert stream._start == before
    assert stream.read_at(2 << 20, 10) == DATA[2 << 20 :][:10]
    assert stream._start < before


@pytest.mark.parametrize("member", [100, 4096, 100_000])
def test_what_was_read_last_is_kept_wherever_members_end(on_disk, member):
    data = random.Random(3).randbytes(3 << 20)
    pieces = (data[at : at + member] for at in range(0, len(data), member))
    stream = on_disk(b"".join(gzip.compress(piece, 1) for piece in pieces))
    assert isinstance(stream, InflatedStream)
    passes = count_passes(stream)
    for at in range(2 << 20, (2 << 20) + 400_000, 5000):
        assert stream.read_at(at, 20_000) == data[at : at + 20_000]
        assert stream.read_at(at - 40_000, 10) == data[at - 40_000 :][:10]
    assert passes() == 0


def count_passes(stream):
    restarts = []
    intact = stream._restart

    def restart():
        restarts.append(stream._start)
        intact()

    stream._restart = restart
    return lambda: len(restarts)


def test_a_pipe_is_copied_to_a_file_without_a_name(tmp_path, monkeypatch):
    read_end, write_end = os.pipe()
    os.write(write_end, b"MDMP and more")
    os.close(write_end)
    pipe = os.fdopen(read_end, "rb")
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=pipe))
    stream = open_stream("-")
    assert (stream.name, stream.size, stream.read_at(5, 3)) == ("standard input", 13, b"and")
    stream.close()
    pipe.close()


@pytest.mark.parametrize(
    ("beginning", "title"),
    [
        (b"\x7fELF\2\1", "an ELF core"),
        (b"MDMP\x93\xa7", "a minidump"),
        (b"\x19\x43\x56\x54\x47\x38\x05\x55", "a CRIU core image"),
        (b"\x7f\x03\x00\x00", "raw bytes"),
        (b"", "raw bytes"),
    ],
)
def test_files_are_told_by_how_they_begin(beginning, title):
    assert reader_of(MemoryStream(beginning, "x")).title == title


def test_a_format_whose_module_is_not_there_is_named(monkeypatch):
    stream = MemoryStream(b"MDMP", "x.dmp")
    reader = reader_of(stream)
    monkeypatch.setitem(sys.modules, reader.module, None)
    with pytest.raises(UnsupportedHere, match=r"a minidump: fpstate\.source\.minidump"):
        reader.threads(stream, None)


def test_a_number_is_a_process_and_a_path_of_digits_a_file(tmp_path, monkeypatch):
    from fpstate.source import process

    monkeypatch.setattr(process, "process_threads", lambda pid: [pid])
    assert open_source("4711") == [4711]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "4711").write_bytes(b"\x7fELF")
    with pytest.raises(SourceError, match="ELF identification"):
        open_source("./4711")
    with pytest.raises(FileNotFoundError):
        open_source(tmp_path / "4712")
    with pytest.raises(IsADirectoryError):
        open_source(tmp_path)
