"""Budgets: what is charged, what is refused, and how much work a reader does for what a file holds."""

from __future__ import annotations

import gzip
import lzma
import struct
import subprocess
import sys
from contextlib import closing

import pytest

from fpstate.arch import Cpu, Layout
from fpstate.errors import BudgetExceeded, SourceError
from fpstate.source import budget as budgets
from fpstate.source import inflate, minidump_file, note
from fpstate.source import stream as stream_module
from fpstate.source.budget import ALLOWANCES, INFLATED, KEPT, NOTES, WINDOW, Allowance, Budget, stored_size
from fpstate.source.core import core_states, core_threads
from fpstate.source.inference import KNOWN, layout_of
from fpstate.source.minidump import minidump_states
from fpstate.source.open import each_thread, open_source, threads_of
from fpstate.source.reader import READERS, longest
from fpstate.source.stream import FileStream, InflatedStream, MemoryStream, open_stream
from fpstate.testing import random_image
from fpstate.testing.container import DumpedThread, minidump, windows_context
from fpstate.testing.core import linux_notes, register_set, write_core

HASWELL = Layout.standard(Cpu.catalog("haswell"))
MIB = 1 << 20


def core_of(segments, body):
    """An ELF core with note segments at these (offset, size) of its body."""
    start = 64 + 56 * len(segments)
    head = b"\x7fELF\2\1\1" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0)
    rows = (struct.pack("<IIQQQQQQ", 4, 0, start + at, 0, 0, size, 0, 4) for at, size in segments)
    return head + b"".join(rows) + body


def unit(tid, seed=1):
    return b"".join(
        each.to_bytes() for each in linux_notes([(tid, register_set(random_image(HASWELL, seed)))])
    )


def alternating(count, far=6 * MIB, near=2 * MIB):
    """Threads far away and near in turn."""
    one = unit(1)
    body = bytearray(far + count * len(one))
    segments = []
    for number in range(count):
        for half, at in enumerate((far, near)):
            start = at + number * len(one)
            body[start : start + len(one)] = unit(2 * number + half)
            segments.append((start, len(one)))
    return core_of(segments, bytes(body))


class Counting(MemoryStream):
    """A stream that counts the bytes that it gives."""

    def __init__(self, data, name="counted"):
        super().__init__(data, name)
        self.given = 0

    def read_at(self, offset, size):
        data = super().read_at(offset, size)
        self.given += len(data)
        return data


# What a budget is


def test_an_allowance_grows_with_the_file_up_to_its_bound():
    allowance = Allowance("x", 10, "bytes", "why", "help", share=3, most=100)
    assert [allowance.of(stored) for stored in (0, 5, 30, 1 << 40)] == [10, 25, 100, 100]


def test_what_is_charged_adds_up_and_is_refused_by_name_with_both_values():
    budget = Budget("a.core")
    budget.charge(NOTES, NOTES.fixed)
    with pytest.raises(BudgetExceeded, match=r"more than 524288 notes: 524289 \(budget: notes\)") as caught:
        budget.charge(NOTES, offset=77, lead="it has ")
    error = caught.value
    assert isinstance(error, SourceError)
    assert (error.budget, error.found, error.allowed, error.offset) == ("notes", 524289, 524288, 77)
    assert (error.source, error.help, error.exit_code) == ("a.core", NOTES.help, 2)


def test_every_budget_has_a_name_of_its_own_a_reason_and_something_to_try():
    assert len({allowance.name for allowance in ALLOWANCES}) == len(ALLOWANCES)
    assert all(allowance.why and allowance.help and allowance.unit for allowance in ALLOWANCES)
    declared = {id(each) for each in vars(budgets).values() if isinstance(each, Allowance)}
    assert declared == {id(each) for each in ALLOWANCES}


def test_no_known_layout_comes_near_the_largest_register_set_that_is_read():
    largest = max(layout_of(known.places, known.xcr0).size for known in KNOWN)
    assert largest == 11008
    assert 4 * largest < budgets.DESCRIPTION.fixed


def test_budgets_of_memory_leave_room_for_the_interpreter_within_the_promise():
    script = "import fpstate.command.main, fpstate.command.show, fpstate.source.core\n"
    script += (
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM:')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (int(done.stdout) << 10) + WINDOW.fixed + budgets.BATCH.fixed < budgets.MEMORY
    assert (int(done.stdout) << 10) + KEPT.fixed + WINDOW.fixed < budgets.MEMORY
    assert max(WINDOW.share, KEPT.share) <= budgets.MEMORY_SHARE


def test_n_is_what_is_stored(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.write(b"x" * 8192)
        file.truncate(1 << 30)
    with path.open("rb") as file:
        stream = FileStream(file, "sparse")
        assert stream.size == 1 << 30
        assert stored_size(stream) < MIB
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(bytes(8 * MIB)))
    with closing(open_stream(str(packed))) as stream:
        assert stored_size(stream) < 64 << 10
    assert stored_size(MemoryStream(b"12345", "x")) == 5


# What work is done


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress], ids=["gzip", "xz"])
def test_a_compressed_core_is_inflated_twice_at_most_whatever_the_order_of_its_segments(tmp_path, compress):
    data = alternating(40)
    path = tmp_path / "core"
    path.write_bytes(compress(data))
    with closing(open_stream(str(path))) as stream:
        assert isinstance(stream, InflatedStream)
        assert len(list(core_states(stream))) == 80
        assert stream.budget.spent[INFLATED.name] <= 2 * len(data) + MIB


def test_a_reader_that_takes_segments_as_they_come_is_caught_by_this_count(tmp_path, monkeypatch):
    monkeypatch.setattr(note, "sorted", list, raising=False)
    data = alternating(40)
    path = tmp_path / "core"
    path.write_bytes(gzip.compress(data))
    with closing(open_stream(str(path))) as stream:
        assert len(list(core_states(stream))) == 80
        assert stream.budget.spent[INFLATED.name] > 20 * len(data)


def test_going_back_and_forth_in_a_compressed_file_ends(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(gzip.compress(bytes(8 * MIB)))
    with path.open("rb") as file:
        stream = InflatedStream(FileStream(file, "data"), "gzip", limit=8 * MIB)
        with pytest.raises(BudgetExceeded, match="again and again") as caught:
            [stream.read_at(at, 1) for at in (7 * MIB, 2 * MIB) * 100]
        assert caught.value.budget == "bytes inflated in all"
        assert caught.value.found < 34 * MIB


def test_contexts_are_inflated_once_for_each_batch(tmp_path):
    images = [random_image(HASWELL, seed) for seed in range(3)]
    count = 3000
    threads = [DumpedThread(number, windows_context(images[number % 3])) for number in range(count)]
    data = minidump(threads)
    path = tmp_path / "x.dmp"
    path.write_bytes(gzip.compress(data, 1))
    with closing(open_stream(str(path))) as stream:
        assert [state.tid for state in minidump_states(stream)] == list(range(count))
        # The list stands at the end, and is read before the contexts.
        assert stream.budget.spent[INFLATED.name] <= 3 * len(data)


@pytest.mark.parametrize("count", [100, 400])
def test_reading_a_core_takes_its_bytes_and_a_constant_more(count):
    body = b"".join(unit(number) for number in range(count))
    stream = Counting(core_of([(0, len(body))], body))
    assert len(core_threads(stream)) == count
    assert stream.given <= stream.size + 256


def test_overlapping_segments_are_refused_after_1_mib_of_overlap():
    body = b"".join(unit(number) for number in range(50))
    stream = Counting(core_of([(0, len(body))] * 400, body))
    with pytest.raises(BudgetExceeded, match="note segments overlap") as caught:
        core_threads(stream)
    assert caught.value.budget == "bytes that are named more than once"
    assert stream.given < stream.size + 2 * MIB


def test_segments_that_share_a_little_are_read():
    body = unit(1) + unit(2)
    threads = core_threads(MemoryStream(core_of([(0, len(body)), (len(unit(1)), len(unit(2)))], body), "x"))
    assert [thread.tid for thread in threads] == [1, 2, 2]


def test_members_cost_what_they_hold(tmp_path, monkeypatch):
    data = gzip.compress(b"") * 2000 + gzip.compress(b"end")
    fed = []
    take = inflate._Input.take
    monkeypatch.setattr(inflate._Input, "take", lambda self, size: fed.append(take(self, size)) or fed[-1])
    path = tmp_path / "members"
    path.write_bytes(data)

    def total():
        fed.clear()
        with closing(open_stream(str(path))) as stream:
            assert stream.read_at(0, 10) == b"end"
        return sum(map(len, fed))

    assert total() < 40 * len(data)
    monkeypatch.setattr(inflate, "_FIRST", inflate._INPUT)
    assert total() > 400 * len(data)


@pytest.mark.parametrize("codec", ["xz", "zstd"])
def test_a_large_dictionary_is_given_as_long_as_little_of_it_is_filled(tmp_path, codec):
    def packed(size):
        if codec == "xz":
            filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 96 * MIB}]
            return lzma.compress(bytes(size), filters=filters)
        zstandard = pytest.importorskip("zstandard", reason="no zstd library is installed")
        wide = zstandard.ZstdCompressionParameters(window_log=27, compression_level=1)
        return zstandard.ZstdCompressor(compression_params=wide).compress(bytes(size))

    path = tmp_path / "wide"
    path.write_bytes(packed(160 * MIB))
    with closing(open_stream(str(path))) as stream:
        assert stream.read_at(20 * MIB, 10) == bytes(10)
        with pytest.raises(BudgetExceeded, match="its decoder needs memory") as caught:
            stream.read_at(159 * MIB, 10)
    assert caught.value.budget == WINDOW.name


def test_a_dictionary_that_grows_on_the_way_is_given_it_and_nothing_is_lost(tmp_path):
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 96 * MIB}]
    first, second = bytes(range(256)) * 4096, b"second member" * 50_000
    path = tmp_path / "grows"
    path.write_bytes(lzma.compress(first, preset=0) + lzma.compress(second, filters=filters))
    with closing(open_stream(str(path))) as stream:
        data = first + second
        assert stream.read_at(len(first) - 5, 20) == data[len(first) - 5 :][:20]
        assert stream.read_at(0, 1 << 30) == data


def test_a_dictionary_for_which_there_is_no_memory_is_refused_as_too_large(tmp_path, monkeypatch):
    def none_left(*_):
        raise MemoryError

    monkeypatch.setattr(inflate, "_decoder", none_left)
    path = tmp_path / "data"
    path.write_bytes(lzma.compress(b"x"))
    with closing(open_stream(str(path))) as stream, pytest.raises(BudgetExceeded, match="needs memory"):
        stream.read_at(0, 1)


# What a minidump may share


def test_contexts_of_one_batch_that_threads_share_are_read_once(monkeypatch):
    context = windows_context(random_image(HASWELL, 3))
    data = bytearray(minidump([DumpedThread(number, context) for number in range(4)]))
    rows = data.rindex(struct.pack("<I", 4) + struct.pack("<I", 0)) + 4
    first = data[rows + 44 : rows + 48]
    for number in range(4):
        data[rows + 48 * number + 44 : rows + 48 * number + 48] = first
    states = list(minidump_states(MemoryStream(bytes(data), "x")))
    assert len({id(state.image) for state in states}) == 1
    monkeypatch.setattr(minidump_file, "SHARED", Allowance("shared", 100, "bytes", "", ""))
    with pytest.raises(BudgetExceeded, match="threads share contexts"):
        list(minidump_states(MemoryStream(bytes(data), "x")))


# One thread after the other


def test_threads_can_be_gone_through_twice_and_errors_come_where_they_are(tmp_path):
    path = tmp_path / "core"
    path.write_bytes(lzma.compress(core_of([(0, len(unit(1)) * 2)], unit(1) + unit(2))))
    with threads_of(path) as threads:
        assert [thread.tid for thread in threads] == [thread.tid for thread in threads] == [1, 2]
    assert [thread.image for thread in each_thread(path)] == [thread.image for thread in open_source(path)]
    notes = linux_notes([(1, register_set(random_image(HASWELL, 1))), (2, bytes(100))])
    path.write_bytes(write_core(notes))
    threads = each_thread(path)
    assert next(threads).tid == 1
    with pytest.raises(SourceError, match="100 bytes"):
        next(threads)


def test_how_a_source_begins_says_how_long_it_may_be():
    assert longest(b"\0" * 64) == MIB
    assert longest(b"\x7fELF") == longest(b"\x1f\x8b") == 2 << 30
    assert longest(b"\x7fELF", raw=True) == MIB
    assert longest(b"\x1f\x8b", raw=True) == 2 * MIB
    assert all(reader.longest <= 2 << 30 for reader in READERS)


@pytest.mark.parametrize(
    ("beginning", "message"),
    [
        (b"\x7fELF" + b"y\n" * 40, "ELF class 121"),
        (b"\x7fELF\2\1\1" + bytes(60), "type 0, not a core"),
        (b"MDMP" + b"y\n" * 40, "version 0xa79"),
    ],
)
def test_a_pipe_that_begins_as_a_core_and_is_none_is_refused_before_it_is_copied(beginning, message):
    class Pipe:
        """A device that gives its beginning, and no more."""

        def read(self, size):
            assert size == 64
            return beginning[:size]

        def close(self):
            pass

    with pytest.raises(SourceError, match=message):
        stream_module._copied(Pipe(), "pipe", raw=False)
