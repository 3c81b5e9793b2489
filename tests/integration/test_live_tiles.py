"""Processes with tiles, on a machine with AMX: what their threads show, and what they let be set."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from live_processes import assert_free, compile_target, running

from fpstate.arch.component import AMX
from fpstate.command.main import main
from fpstate.image import Image
from fpstate.source import ptrace
from fpstate.source.process import process_threads

pytestmark = pytest.mark.usefixtures("core", "amx")

NO_PERMISSION, PERMISSION, IN_USE = 0, 1, 2


@pytest.fixture(scope="module")
def target(gcc: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_target(gcc, tmp_path_factory.mktemp("live"))


@pytest.fixture
def amx() -> None:
    if AMX & ~ptrace.host_layout().mask:
        pytest.skip("AMX is not enabled (XCR0[18:17])")


CONFIGURATION = 1 | 64 << 8 * 16 | 1 << 8 * 48
"""Palette 1, tmm0 with one row of 64 bytes."""


@contextlib.contextmanager
def tile_reporter(target: Path, path: Path, how: int) -> Iterator[tuple[int, Callable[[], bytes]]]:
    """A process that stores TILECFG, and tmm0's row at 128: without permission, with, and with tiles in use."""
    path.write_bytes(bytes(4096))
    with running(target, "tiles", str(how), path) as process:

        def rounds() -> int:
            return int.from_bytes(path.read_bytes()[64:72], "little")

        def read() -> bytes:
            seen = rounds()
            while rounds() < seen + 2:
                time.sleep(0.001)
            return path.read_bytes()

        yield process.pid, read
        assert_free(process.pid)


@pytest.mark.parametrize("how", [NO_PERMISSION, PERMISSION])
def test_tiles_need_permission_and_use(
    target: Path, tmp_path: Path, how: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with tile_reporter(target, tmp_path / "shared", how) as (pid, _):
        before = process_threads(pid)[0].image
        assert main(["set", str(pid), "xmm8=1", "tmm0=1"]) == 2
        message = capsys.readouterr().err
        assert "TILEDATA (tmm0) with EINVAL" in message
        assert "ARCH_REQ_XCOMP_PERM" in message
        assert process_threads(pid)[0].image == before


@pytest.mark.parametrize("how", [NO_PERMISSION, PERMISSION, IN_USE])
def test_a_configuration_arrives_and_one_that_would_not_is_refused(
    target: Path, tmp_path: Path, how: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with tile_reporter(target, tmp_path / "shared", how) as (pid, read):
        assert main(["set", str(pid), f"tilecfg={CONFIGURATION:#x}"]) == 0
        assert int.from_bytes(read()[:64], "little") == CONFIGURATION
        for illegal in (CONFIGURATION + 1, CONFIGURATION - 1, CONFIGURATION | 1 << 8 * 2):
            assert main(["set", str(pid), f"tilecfg={illegal:#x}"]) == 2
            assert int.from_bytes(read()[:64], "little") == CONFIGURATION
        assert capsys.readouterr().err.count("would run with TILECFG initial") == 3


def test_an_illegal_configuration_is_read_back_while_the_process_has_none(
    target: Path, tmp_path: Path
) -> None:
    """The control: what ``set`` refuses the kernel confirms, and the register is initial."""
    with tile_reporter(target, tmp_path / "shared", NO_PERMISSION) as (pid, read):

        def change(regset: bytes) -> bytes:
            image = Image(bytearray(regset), ptrace.host_layout())
            image.registers["tilecfg"] = CONFIGURATION + 1
            return image.to_bytes()

        _, after, _ = ptrace.edit(pid, ptrace.host_layout(), 2, change)
        assert after is not None
        assert Image(after, ptrace.host_layout()).registers["tilecfg"] == CONFIGURATION + 1
        assert read()[:64] == bytes(64)


def test_the_running_process_has_the_row_of_a_tile(target: Path, tmp_path: Path) -> None:
    with tile_reporter(target, tmp_path / "shared", IN_USE) as (pid, read):
        row = bytes(range(64))
        assert main(["set", str(pid), f"tmm0={int.from_bytes(row, 'little'):#x}"]) == 0
        assert read()[128:192] == row


@pytest.mark.parametrize("how", [NO_PERMISSION, PERMISSION, IN_USE])
def test_a_thread_shows_its_permission_by_use(
    target: Path, tmp_path: Path, how: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with tile_reporter(target, tmp_path / "shared", how) as (pid, _):
        main(["check", str(pid), "--for", "ptrace", "--json"])
        (image,) = json.loads(capsys.readouterr().out)["images"]
        assert image["tiledata"]["used"] == image["tiledata"]["known"] == (how == IN_USE)
        assert image["verdicts"][0]["accepted"]


def test_the_tile_of_a_live_thread_is_shown_as_it_is_configured(
    target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tile_reporter(target, tmp_path / "shared", IN_USE) as (pid, read):
        assert main(["set", str(pid), "tmm0=0x0102"]) == 0
        assert main(["show", str(pid)]) == 0
        shown = capsys.readouterr().out
        assert "palette 1, tmm0 1 row of 64 bytes, tmm1-tmm7 not configured" in shown
        assert read()[128:130] == b"\x02\x01"
