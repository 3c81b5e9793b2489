"""State files hold what was written; whatever else is in a file is refused, and nothing of it is loaded."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import hashlib
import os
import random
import stat
import struct
from pathlib import Path

import pytest

from fpstate.arch import Component, Cpu, Layout, mask_of
from fpstate.engine.kvm.destination import Destination
from fpstate.engine.kvm.prediction import predict_load
from fpstate.errors import SourceError
from fpstate.source.checkpoint import Checkpoint, GeneralRegisters, SavedState, pieces_of
from fpstate.source.durable import replace_file
from fpstate.source.guest_state import GuestState, PkruPolicy
from fpstate.source.open import READERS, open_source
from fpstate.source.state_file import LONGEST, MAGIC, decode, encode, read_state, state_files, write_state
from fpstate.testing import random_image

SPR = Cpu.catalog("sapphire-rapids")
CET = mask_of(Component.CET_U, Component.CET_S)


def saved(seed: int = 1, *, checkpoint: bool = True) -> SavedState:
    layout = Layout.compacted(SPR, SPR.user_mask | CET)
    state = GuestState(random_image(layout, seed), SPR.user_mask, SPR, xss=CET, pkru=PkruPolicy.KEEP)
    if not checkpoint:
        return SavedState(state)
    memory = bytes(4096) + bytes(range(256)) * 32 + bytes(8192) + b"end".ljust(4096, b"\0")
    registers = GeneralRegisters(tuple(range(16)), 0x40_1000, 0x202, 1, 2)
    return SavedState(
        state,
        Checkpoint(
            program="canary",
            seed=seed,
            argument=5,
            features=3,
            memory_start=0x40_0000,
            memory_size=len(memory),
            base=0x40_1000,
            block=0x40_2000,
            registers=registers,
            memory=pieces_of(0x40_0000, memory),
        ),
    )


def resealed(data: bytes) -> bytes:
    """The file with a checksum that fits, as from a writer with a fault."""
    return data[:-32] + hashlib.sha256(data[:-32]).digest()


@pytest.mark.parametrize("checkpoint", [True, False], ids=["with a checkpoint", "alone"])
@pytest.mark.parametrize("seed", range(10))
def test_what_is_written_is_read(seed, checkpoint, tmp_path):
    written = saved(seed, checkpoint=checkpoint)
    write_state(tmp_path / "a.fpvso", written)
    read = read_state(tmp_path / "a.fpvso")
    assert read.checkpoint == written.checkpoint
    assert read.state.image.to_bytes() == written.state.image.to_bytes()
    assert read.state.image.layout == written.state.image.layout
    read.state.check()
    for name in ("xcr0", "xss", "xfd", "xfd_err", "pkru"):
        assert getattr(read.state, name) == getattr(written.state, name)
    assert (read.state.cpu.geometry, read.state.cpu.features) == (SPR.geometry, SPR.features)
    assert encode(read) == encode(written)


def test_memory_comes_back_with_its_zeros():
    checkpoint = saved().checkpoint
    assert checkpoint is not None
    assert len(checkpoint.memory) == 2
    memory = checkpoint.memory_bytes()
    assert len(memory) == checkpoint.memory_size
    assert memory[4096:8192] == bytes(range(256)) * 16
    assert not any(memory[:4096])


def test_a_state_can_be_read_by_its_owner_alone(tmp_path):
    write_state(tmp_path / "a.fpvso", saved())
    assert stat.S_IMODE((tmp_path / "a.fpvso").stat().st_mode) == 0o600


def test_every_shorter_file_is_refused():
    data = encode(saved())
    for length in (*range(200), *range(200, len(data), 97), len(data) - 1):
        with pytest.raises(SourceError, match=r"cut short|begins with"):
            decode(data[:length])


def test_a_longer_file_is_refused():
    with pytest.raises(SourceError, match="longer than it says"):
        decode(encode(saved()) + b"\0")


def test_every_flipped_bit_is_noticed():
    data = encode(saved(checkpoint=False))
    source = random.Random(1)
    for _ in range(2000):
        flipped = bytearray(data)
        flipped[source.randrange(len(data))] ^= 1 << source.randrange(8)
        with pytest.raises(SourceError):
            decode(bytes(flipped))


def test_a_flipped_bit_is_told_by_the_checksum():
    data = bytearray(encode(saved()))
    data[1000] ^= 1
    with pytest.raises(SourceError, match="SHA-256") as caught:
        decode(bytes(data), "guest.fpvso")
    assert caught.value.source == "guest.fpvso"
    assert caught.value.offset == len(data) - 32


@pytest.mark.parametrize("data", [b"", b"\x7fELF" + bytes(200), bytes(4096), b"text\n" * 100])
def test_a_foreign_file_is_refused(data):
    with pytest.raises(SourceError, match="no guest state"):
        decode(data)


def test_a_later_version_is_refused_by_its_number():
    data = bytearray(encode(saved()))
    data[8:12] = struct.pack("<I", 2)
    with pytest.raises(SourceError, match="version 2, and this fpstate reads version 1"):
        decode(resealed(bytes(data)))


def test_an_unknown_section_is_refused_if_it_must_be_known_and_passed_over_if_not():
    data = encode(saved())
    for flags, refused in ((1, True), (0, False)):
        section = struct.pack("<4sIQ", b"NEW ", flags, 5) + b"hello".ljust(8, b"\0")
        count = struct.unpack_from("<I", data, 12)[0] + 1
        size = len(data) + len(section)
        header = struct.pack("<8sIIQQ", MAGIC, 1, count, size, 0)
        longer = resealed(header + data[32:-32] + section + bytes(32))
        if refused:
            with pytest.raises(SourceError, match="section 'NEW '"):
                decode(longer)
        else:
            assert encode(decode(longer)) == data


NUMBERS = (0, 1, 63, 64, 511, 576, 0x7F, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, (1 << 64) - 1, 1 << 63)


def test_sections_that_lie_about_themselves_are_refused_or_found_out_whatever_the_checksum_says():
    """Whoever can compute a SHA-256 can write any section: what is read all the same can be checked and foretold."""
    there = Destination(SPR, SPR.user_mask, SPR.user_mask, CET, 11008, ("xss", "xfd", "xfd_err"))
    data, source = encode(saved()), random.Random(2)
    outcomes = {"refused": 0, "flawed": 0, "whole": 0}
    for _ in range(3000):
        mutated = bytearray(data)
        for _ in range(source.choice((1, 1, 2, 4))):
            at, size = (
                source.randrange(32, source.choice((300, 1500, len(data) - 40))),
                source.choice((1, 2, 4, 8)),
            )
            number = source.choice((*NUMBERS, source.getrandbits(64))) & (1 << 8 * size) - 1
            mutated[at : at + size] = number.to_bytes(size, "little")
        try:
            state = decode(resealed(bytes(mutated))).state
        except SourceError:
            outcomes["refused"] += 1
            continue
        outcomes["flawed" if state.findings() else "whole"] += 1
        predict_load(state, there)
    assert min(outcomes.values()) > 100


def test_a_component_that_cannot_exist_is_refused_at_once():
    data = bytearray(encode(saved()))
    at = data.index(b"IMAG") + 16 + 16
    data[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    with pytest.raises(SourceError, match="component 4294967295 does not exist"):
        decode(resealed(bytes(data)))


@pytest.mark.parametrize("tag", [b"CPU ", b"CTRL", b"IMAG", b"REGS", b"PROG"])
def test_a_section_that_is_missing_or_there_twice_is_refused(tag):
    data = encode(saved())
    at = 32
    while data[at : at + 4] != tag:
        at += 16 + -(-struct.unpack_from("<Q", data, at + 8)[0] // 8) * 8
    end = at + 16 + -(-struct.unpack_from("<Q", data, at + 8)[0] // 8) * 8
    count = struct.unpack_from("<I", data, 12)[0]
    for number, body in (
        (count - 1, data[32:at] + data[end:-32]),
        (count + 1, data[32:end] + data[at:-32]),
    ):
        header = struct.pack("<8sIIQQ", MAGIC, 1, number, 32 + len(body) + 32, 0)
        with pytest.raises(SourceError, match=f"sections '{tag.decode()}'"):
            decode(resealed(header + body + bytes(32)))


def test_a_file_that_is_no_state_is_not_read_further_than_its_beginning(tmp_path):
    with open(tmp_path / "big.fpvso", "wb") as file:
        file.truncate((1 << 28) + 1)
    with pytest.raises(SourceError, match="it begins with 0000000000000000"):
        read_state(tmp_path / "big.fpvso")


def test_a_source_without_end_is_refused_by_its_first_bytes():
    with pytest.raises(SourceError, match=r"it begins with|bytes copied"):
        read_state("/dev/zero")


def test_a_state_that_is_compressed_is_read(tmp_path):
    state = saved(checkpoint=True)
    (tmp_path / "a.gz").write_bytes(gzip.compress(encode(state)))
    assert encode(read_state(tmp_path / "a.gz")) == encode(state)


def test_what_could_not_be_read_again_is_not_written(tmp_path, monkeypatch):
    state = saved(checkpoint=True)
    much = dataclasses.replace(state.checkpoint, memory_size=LONGEST + 4096)
    with pytest.raises(
        SourceError, match=f"{LONGEST + 4096} bytes of memory, and files have at most {LONGEST}"
    ):
        write_state(tmp_path / "a", SavedState(state.state, much))
    most = dataclasses.replace(state.checkpoint, memory_size=LONGEST)
    write_state(tmp_path / "a", SavedState(state.state, most))
    assert read_state(tmp_path / "a").checkpoint.memory_size == LONGEST
    size = len(encode(SavedState(state.state)))
    monkeypatch.setattr("fpstate.source.state_file.LONGEST", size - 1)
    with pytest.raises(SourceError, match=f"{size} bytes of state"):
        write_state(tmp_path / "b", SavedState(state.state))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_lists_its_states_and_no_hidden_file(tmp_path):
    for name in ("b.fpvso", "a.fpvso", ".a.fpvso.1234", "other"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in state_files(tmp_path)] == ["a.fpvso", "b.fpvso"]


def test_an_old_file_stays_where_the_new_one_cannot_be_written(tmp_path, monkeypatch):
    replace_file(tmp_path / "a", b"old")
    monkeypatch.setattr("os.rename", lambda *names, **folders: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        replace_file(tmp_path / "a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_file_systems_without_nameless_files_do_too(tmp_path, monkeypatch):
    monkeypatch.setattr("fpstate.source.durable._unnamed", lambda folder, mode: None)
    replace_file(tmp_path / "a", b"old")
    replace_file(tmp_path / "a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    replace_file(tmp_path / "a", b"old")
    real = os.write

    def write(descriptor, data):
        if len(data) < 3000:
            raise OSError(errno.ENOSPC, "no space left")
        return real(descriptor, data[:1000])

    monkeypatch.setattr("os.write", write)
    with pytest.raises(OSError, match="no space"):
        replace_file(tmp_path / "a", bytes(5000))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.parametrize("nameless", [True, False], ids=["nameless", "named"])
def test_an_error_names_the_file_that_was_to_be_written(tmp_path, monkeypatch, nameless):
    """write(2) and fsync(2) raise errors without a name."""
    if not nameless:
        monkeypatch.setattr("fpstate.source.durable._DESCRIPTORS", str(tmp_path / "no proc"))

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr("os.write", full)
    with pytest.raises(OSError, match="no space") as caught:
        replace_file(tmp_path / "a", b"new")
    assert caught.value.filename == str(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("nameless", [True, False], ids=["nameless", "named"])
@pytest.mark.parametrize("name", ["x" * 255, "\u00e9" * 127])
def test_the_longest_name_can_be_written(tmp_path, monkeypatch, name, nameless):
    if not nameless:
        monkeypatch.setattr("fpstate.source.durable._DESCRIPTORS", str(tmp_path / "no proc"))
    replace_file(tmp_path / name, b"old")
    replace_file(tmp_path / name, b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"new")]


def test_a_device_or_a_folder_is_not_replaced(tmp_path):
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(SourceError, match="no regular file"):
            write_state(path, saved())
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_link_stays_one(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    replace_file(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_state_file_is_a_source_like_any_other(tmp_path):
    written = saved(3)
    write_state(tmp_path / "a.fpvso", written)
    (thread,) = open_source(tmp_path / "a.fpvso")
    assert thread.image.registers.in_use() == written.state.image.registers.in_use()
    assert (thread.xcr0, thread.image.layout_source) == (written.state.xcr0, "note")
    assert thread.name == written.checkpoint.program
    assert thread.findings == ()


def test_a_source_that_is_a_state_file_says_what_is_not_whole(tmp_path):
    state = dataclasses.replace(saved(3).state, xcr0=5)
    write_state(tmp_path / "a.fpvso", SavedState(state))
    (thread,) = open_source(tmp_path / "a.fpvso")
    assert "GS001" in {finding.id for finding in thread.findings}
    data = bytearray((tmp_path / "a.fpvso").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.fpvso").write_bytes(data)
    with pytest.raises(SourceError, match="damaged"):
        open_source(tmp_path / "a.fpvso")


def test_sources_know_how_state_files_begin():
    assert [reader.title for reader in READERS if reader.beginnings == (MAGIC,)] == ["a guest state"]
