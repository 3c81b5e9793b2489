"""What tests need of the machine: asked for by name, and skipped by the name of what is missing."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from fpstate.errors import UnsupportedHere
from fpstate.program import BUILTIN, Program, include_dir
from fpstate.vso.kernel_permission import read_kernel_permission

Assemble = Callable[..., Program]

GUEST_FLAGS = (
    *("-std=c11", "-O2", "-nostdlib", "-ffreestanding", "-fPIC", "-static-pie", "-fcf-protection=none"),
    *("-fno-stack-protector", "-fno-asynchronous-unwind-tables"),
    *("-Wl,--build-id=none", "-Wl,--hash-style=gnu", "-Wl,-z,noexecstack"),
)
PROLOGUE = '#include "fpstate_guest.h"\n.intel_syntax noprefix\nFPSTATE_ENTRY\n'
EPILOGUE = '\n    ud2\n.section .note.GNU-stack, "", @progbits\n'
_PERMITTED = pytest.StashKey[int | None]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_PERMITTED] = permitted()
    # A shell that starts the tests in the background has SIGINT ignored, here and in all that is started from here.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "soak: long runs with many contexts and preemptions, a part of CI")


def permitted() -> int | None:
    """What this process may use; None where the kernel does not tell."""
    try:
        return read_kernel_permission().host
    except UnsupportedHere:
        return None


@pytest.hookimpl(trylast=True)  # once the test's own changes are undone
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Blame the test that asked for components in this process: Linux takes nothing back, and others build on it."""
    before, after = item.config.stash[_PERMITTED], permitted()
    item.config.stash[_PERMITTED] = after
    if before != after:
        pytest.fail(
            f"the permission of the tests' own process changed from {before or 0:#x} to {after or 0:#x}"
        )


@pytest.fixture(scope="session")
def core() -> ModuleType:
    """The native core, on a processor with XSAVE."""
    core = pytest.importorskip("fpstate._core", reason="the native core (fpstate._core) is not built")
    if not core.features()["xcr0"]:
        pytest.skip("XSAVE is not enabled (CPUID.1:ECX[27], OSXSAVE)")
    return core


@pytest.fixture(scope="session")
def native(core: ModuleType) -> ModuleType:
    """The native core on a machine where it can run guests."""
    from fpstate.engine.native import missing

    if lacking := missing():
        pytest.skip(lacking)
    return core


@pytest.fixture(params=["portable", "fast"])
def each_core(native: ModuleType, request: pytest.FixtureRequest) -> Iterator[str]:
    """Both cores in turn as the one that switches."""
    found = native.features()
    if request.param == "fast" and not (found["xsavec"] and found["xgetbv1"]):
        pytest.skip("XSAVEC with XGETBV(1) (CPUID.(0DH,1):EAX[1] and [2])")
    native.core_choice()
    try:
        earlier = native.core_use(request.param)
    except UnsupportedHere as error:
        pytest.skip(str(error))
    yield request.param
    native.core_use(earlier)


@pytest.fixture(scope="session")
def built() -> None:
    """The built-in guest programs."""
    try:
        BUILTIN["spin"].load()
    except UnsupportedHere as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def gcc() -> str:
    """A C compiler that also assembles and links."""
    found = shutil.which("gcc")
    if not found:
        pytest.skip("gcc is not installed")
    return found


@pytest.fixture(scope="session")
def assemble(gcc: str, tmp_path_factory: pytest.TempPathFactory) -> Assemble:
    """Turn Intel-syntax assembly into a guest program; ``body`` starts at the entry."""
    if not shutil.which("objcopy"):
        pytest.skip("objcopy is not installed")
    built: dict[tuple[str, int], Program] = {}

    def build(body: str, *, features: int = 3, name: str = "test") -> Program:
        if (body, features) not in built:
            folder = tmp_path_factory.mktemp("guest")
            built[body, features] = _build(gcc, folder, body, features, name)
        return built[body, features]

    return build


def _build(gcc: str, folder: Path, body: str, features: int, name: str) -> Program:
    include = include_dir()
    source, elf, flat = folder / f"{name}.S", folder / f"{name}.elf", folder / f"{name}.bin"
    source.write_text(PROLOGUE + body + EPILOGUE)
    link = (f"-I{include}", f"-Wl,-T,{include / 'flat.ld'}")
    subprocess.run([gcc, *GUEST_FLAGS, *link, "-o", elf, source], check=True, capture_output=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".flat", elf, flat], check=True)
    return Program.from_file(flat, features=features, name=name)
