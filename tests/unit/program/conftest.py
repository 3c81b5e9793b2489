"""Runs guest programs in a process of their own, on this processor."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from fpstate.program import Program, include_dir
from fpstate.program.block import TILEDATA

PATIENCE = 240
"""Seconds after which a program hangs, on however busy a machine."""

HERE = Path(__file__).parent
XCR0_OF_FLAGS = (("avx", 0x4), ("avx512f", 0xE0), ("ospke", 0x200), ("amx_tile", 0x60000))


@dataclass(frozen=True)
class Run:
    """How one run of a program ended."""

    operation: int | None
    signal: str | None
    yields: int
    block: int
    rsp: int
    status: int
    result: bytes


def cpu_flags() -> frozenset[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


@pytest.fixture(scope="session")
def features() -> int:
    """The components that this processor has, of those that programs use."""
    mask = 0x3
    for flag, bits in XCR0_OF_FLAGS:
        if flag in cpu_flags():
            mask |= bits
    return mask


@pytest.fixture(scope="session")
def in_software() -> None:
    """For what only an emulator can do to tiles and PKRU between two instructions, or before the first."""
    if found := {"amx_tile", "ospke"} & cpu_flags():
        pytest.skip(f"tiles and PKRU in software; this processor has {', '.join(sorted(found))}")


@pytest.fixture(scope="session")
def guest_host(tmp_path_factory: pytest.TempPathFactory, built: None) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to compile the host with")
    program = tmp_path_factory.mktemp("guest_host") / "guest_host"
    command = ["gcc", "-O1", "-mno-red-zone", "-Wall", "-Wextra", "-Werror", "-fcf-protection=none"]
    sources = [str(HERE / "guest_host.c"), str(HERE / "tile_emulator.c")]
    subprocess.run([*command, f"-I{include_dir()}", *sources, "-o", str(program)], check=True)
    return program


@pytest.fixture
def run(guest_host: Path, tmp_path: Path, features: int) -> Callable[..., Run]:
    """run(program, seed, argument, *options, features=, milliseconds=) -> Run; milliseconds of processor time."""

    def run_program(
        program: Program,
        seed: int = 1,
        argument: int = 1,
        *options: str,
        features: int = features,
        milliseconds: int = 20_000,
    ) -> Run:
        image = tmp_path / "image"
        image.write_bytes(program.memory())
        arguments = [str(guest_host), str(image), str(seed), str(argument), str(features)]
        finished = subprocess.run(
            [*arguments, "-e", str(program.entry), *(["-t"] if features & TILEDATA else []), *options],
            env={"GUEST_HOST_MILLISECONDS": str(milliseconds)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        values = dict(line.partition(" ")[::2] for line in finished.stdout.splitlines())
        number = int(values["signal"])
        operation = int(values["operation"])
        return Run(
            operation=None if operation < 0 else operation,
            signal=signal.Signals(number).name if number else None,
            yields=int(values["yields"]),
            block=int(values["block"], 0),
            rsp=int(values["rsp"], 0),
            status=int(values["status"]),
            result=bytes.fromhex(values.get("result", "")),
        )

    return run_program


@pytest.fixture
def needs_flags() -> Callable[[tuple[str, ...]], bool]:
    """Skips the test where an instruction set is lacking that the host does not have in software.

    Returns whether it has one there, which takes some hundred times as long.
    """

    def check(flags: tuple[str, ...]) -> bool:
        missing = [flag for flag in flags if flag not in cpu_flags() and not flag.startswith("amx")]
        if missing:
            pytest.skip(f"this processor has no {', '.join(missing)}")
        return bool(set(flags) - cpu_flags())

    return check
