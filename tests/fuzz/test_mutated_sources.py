"""Minidumps, CRIU images and raw bytes made to do harm: read or refused at a byte, soon and in little memory."""

import os
import random
import time
import tracemalloc

import pytest

pytest.importorskip("google.protobuf", reason="protobuf is not installed (the extra criu)")

from targets import CORPUS, CPUS, TARGETS, attempt, corpus, mutate

from fpstate.errors import SourceError
from fpstate.source.criu import criu_threads
from fpstate.source.minidump import minidump_threads
from fpstate.source.raw import raw_threads

MUTATIONS = 200_000 if os.environ.get("FPSTATE_LONG") else 20_000
SHARES = {"core": 0.1, "minidump": 0.4, "criu": 0.2, "raw": 0.3}
SECONDS_PER_INPUT = 1.0
DECODED = 16
"""One in so many is decoded: that is what takes the time."""
MEMORY = 4 << 20


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_itself_is_read(target):
    assert (CORPUS / target).is_dir()
    assert {attempt(target, data) for data in corpus(target)} == {"read"}


@pytest.mark.parametrize("target", TARGETS)
def test_mutated_inputs_are_read_or_refused_soon(target):
    seed = f"fpstate {target}"
    source, originals = random.Random(seed), corpus(target)
    outcomes = {"read": 0, "refused": 0, "ambiguous": 0}
    slowest = 0.0
    count = round(MUTATIONS * SHARES[target])
    for number in range(count):
        data, cpu = mutate(source.choice(originals), source), source.choice(CPUS)
        before = time.thread_time()
        try:
            outcomes[attempt(target, data, cpu=cpu, decode=number % DECODED == 0)] += 1
        except Exception as error:
            raise AssertionError(f"mutation {number} of seed {seed!r} with {cpu}") from error
        slowest = max(slowest, time.thread_time() - before)
    assert sum(outcomes.values()) == count
    assert slowest < SECONDS_PER_INPUT
    assert outcomes["read"] > count // 20
    assert outcomes["refused"] > count // 20


@pytest.mark.parametrize("target", TARGETS)
def test_mutated_inputs_take_little_memory(target):
    source, originals = random.Random(f"memory {target}"), corpus(target)
    tracemalloc.start()
    try:
        for _ in range(60):
            data = mutate(source.choice(originals), source)
            tracemalloc.reset_peak()
            start = tracemalloc.get_traced_memory()[0]
            attempt(target, data, cpu="zen4")
            assert tracemalloc.get_traced_memory()[1] - start < MEMORY
    finally:
        tracemalloc.stop()


def test_a_failure_of_another_kind_is_not_swallowed(monkeypatch):
    monkeypatch.setitem(TARGETS, "raw", lambda data, cpu: data[1 << 30])
    with pytest.raises(IndexError):
        attempt("raw", b"")


def test_an_error_that_does_not_say_where_is_not_accepted(monkeypatch):
    def placeless(data, cpu):
        raise SourceError("fuzz", "somewhere")

    monkeypatch.setitem(TARGETS, "raw", placeless)
    with pytest.raises(AssertionError):
        attempt("raw", b"")


class Endless:
    """A file of 8 EiB that begins with some bytes and goes on with zeros; what is asked of it is counted."""

    name, size = "endless", 1 << 63

    def __init__(self, data):
        self.data, self.asked = data, 0

    def read_at(self, offset, size):
        self.asked += size
        assert self.asked < 4 << 20
        return self.data[offset : offset + size].ljust(size, b"\0")


def claims():
    """Beginnings that claim 4 GiB of something that the file has."""
    dump = bytearray(corpus("minidump")[0])
    at = int.from_bytes(dump[12:16], "little")
    entries = {int.from_bytes(dump[e : e + 4], "little"): e for e in range(at, at + 36, 12)}
    threads = int.from_bytes(dump[entries[3] + 8 :][:4], "little")
    for offset in (8, entries[3] + 4, threads, threads + 44):
        yield minidump_threads, dump[:offset] + b"\xf0\xff\xff\xff" + dump[offset + 4 :]
    image = corpus("criu")[0]
    yield criu_threads, image[:8] + b"\xf0\xff\xff\xff" + image[12:]
    yield raw_threads, corpus("raw")[0]


@pytest.mark.parametrize("number", range(6))
def test_claims_of_4_gib_are_refused_without_reading_them(number):
    read, data = list(claims())[number]
    stream = Endless(bytes(data))
    try:
        read(stream)
    except SourceError as error:
        refused = error
    else:
        refused = None
    # A thread list that says how long it is, and has as many threads as it had, is read as before.
    assert refused is not None or number == 1
    assert stream.asked < 4 << 20
