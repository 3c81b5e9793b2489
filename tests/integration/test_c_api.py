"""The C interface: fibers in C, an extension module and ctypes switch by it, and what does not fit is refused."""

from __future__ import annotations

import ctypes
import errno
import importlib.machinery
import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
from concurrent.futures import ThreadPoolExecutor
from enum import IntFlag
from functools import cache
from pathlib import Path

import pytest

import fpstate
from c_table import Control, Storage, Table, address_of_table, created, created_in, table_of
from fpstate.arch import Cpu

ROOT = Path(__file__).parents[2]
FIBERS, SOURCES = ROOT / "examples" / "fibers", Path(__file__).parent / "c_api"
SWITCHES = 50_000
FORKS = 200
FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror", "-pedantic", "-shared", "-fPIC", "-Wl,-z,now")
WITHOUT_VECTORS = "-mgeneral-regs-only"
UPWARD = Control(mxcsr=0x5F80, fcw=0x0B7F)
FE_TONEAREST, FE_UPWARD = 0, 0x800
AVX512BW_EBX7 = 1 << 30


class Wrong(IntFlag):
    ST = 1
    FCW = 2
    MXCSR = 4
    XMM = 8
    YMM_HIGH = 16
    OPMASK = 32
    ZMM_HIGH = 64
    ZMM_16_31 = 128


class Switched(ctypes.Structure):
    _fields_ = (
        ("switches", ctypes.c_uint64),
        ("mismatches", ctypes.c_uint64),
        ("wrong", ctypes.c_uint64),
        ("error", ctypes.c_int),
    )


class Controlled(ctypes.Structure):
    _fields_ = (("switches", ctypes.c_uint64), ("mismatches", ctypes.c_uint64))


@pytest.fixture(scope="session")
def table(core):
    return table_of(core)


@pytest.fixture(scope="session")
def compilers(gcc):
    """How each language is compiled: (compiler, standard)."""
    found = {"C": (gcc, "-std=c11")}
    if cxx := shutil.which("g++"):
        found["C++"] = (cxx, "-std=c++17")
    return found


@pytest.fixture(scope="session")
def build(compilers, tmp_path_factory):
    """Compile sources into a shared library and load it."""

    @cache
    def compiled(language, *arguments, name="library"):
        if language not in compilers:
            pytest.skip("g++ is not installed")
        output = tmp_path_factory.mktemp("c_api") / f"{name}.so"
        headers = f"-I{fpstate.get_include()}", f"-I{FIBERS}"
        command = [*compilers[language], *FLAGS, *headers, *map(str, arguments), "-o", output]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return output

    return compiled


@pytest.fixture(params=["C", "C++"])
def patterns(build, request):
    return ctypes.CDLL(build(request.param, WITHOUT_VECTORS, SOURCES / "patterns.c", FIBERS / "fibers.c"))


@pytest.fixture(params=["C", "C++"])
def controls(build, request):
    return ctypes.CDLL(build(request.param, SOURCES / "controls.c", FIBERS / "fibers.c"))


@pytest.fixture(params=["portable", "fast"])
def each_core(core, request):
    try:
        before = core.core_use(request.param)
    except fpstate.errors.UnsupportedHere as error:
        pytest.skip(str(error))
    yield request.param
    core.core_use(before)


def width() -> int:
    """Which registers there are to look at: 0 legacy, 1 AVX, 2 AVX-512 with 64-bit opmasks."""
    from fpstate import _core

    xcr0 = Cpu.host().enabled_xcr0
    if xcr0 & 0xE6 == 0xE6 and _core.cpuid(7)[1] & AVX512BW_EBX7:
        return 2
    return int(xcr0 & 6 == 6)


def ask(function, core, *numbers, report=Switched):
    """Call check_...(table, numbers..., &report)."""
    answer = report()
    arguments = [ctypes.c_uint64(number) for number in numbers]
    assert function(ctypes.c_void_p(address_of_table(core)), *arguments, ctypes.byref(answer)) == 0
    assert not getattr(answer, "error", 0)
    return answer


# Fibers


@pytest.mark.parametrize("park", [False, True], ids=["", "parked now and then"])
def test_every_register_of_each_fiber_is_as_it_was_left(core, patterns, each_core, table, park):
    assert table.core().decode() == each_core
    answer = ask(patterns.check_switches, core, width(), 1, SWITCHES, park)
    assert answer.switches > SWITCHES
    assert (answer.mismatches, Wrong(answer.wrong)) == (0, Wrong(0))


def test_what_is_saved_stays_and_comes_back(core, patterns, each_core):
    answer = ask(patterns.check_save_and_restore, core, width(), 2, SWITCHES // 10, 0)
    assert (answer.mismatches, Wrong(answer.wrong)) == (0, Wrong(0))


def test_a_restore_that_does_nothing_is_caught(core, patterns):
    assert ask(patterns.check_save_and_restore, core, width(), 2, 1000, 1).mismatches > 900


@pytest.mark.parametrize("forgotten", [Wrong.OPMASK, Wrong.MXCSR, Wrong.FCW], ids=lambda what: what.name)
def test_a_switch_that_forgets_something_is_caught(core, patterns, forgotten):
    if forgotten == Wrong.OPMASK and width() < 2:
        pytest.skip("AVX-512 with 64-bit opmasks (CPUID.7:EBX[30], XCR0[7:5])")
    answer = ask(patterns.check_sabotaged, core, forgotten, width(), 3, 1000)
    assert answer.mismatches > 100
    assert answer.wrong == forgotten


def test_threads_switch_at_the_same_time_without_the_gil(core, build, each_core):
    library = ctypes.CDLL(build("C", WITHOUT_VECTORS, SOURCES / "patterns.c", FIBERS / "fibers.c"))
    with ThreadPoolExecutor(4) as pool:
        seeds = range(10, 18)
        found = list(
            pool.map(lambda seed: ask(library.check_switches, core, width(), seed, SWITCHES // 4, 1), seeds)
        )
    assert [answer.mismatches for answer in found] == [0] * 8


def test_a_fork_while_other_threads_take_memory_leaves_a_child_that_can(core, build):
    library = ctypes.CDLL(build("C", "-pthread", SOURCES / "forks.c"))
    assert library.forks_survived(ctypes.c_void_p(address_of_table(core)), FORKS) == FORKS


def test_control_words_are_kept_for_each_fiber(core, controls):
    answer = ask(controls.check_controls, core, 0, SWITCHES, report=Controlled)
    assert answer.switches > SWITCHES
    assert answer.mismatches == 0


def test_a_control_switch_that_does_nothing_is_caught(core, controls):
    assert ask(controls.check_controls, core, 1, 1000, report=Controlled).mismatches > 500


def test_x87_status_is_not_kept_apart_by_a_control_switch(core, controls):
    """The documented hazard: an inexact result of one fiber is an exception in one that unmasks it."""
    assert controls.x87_status_travels(ctypes.c_void_p(address_of_table(core))) == 1


def test_reserved_bits_in_mxcsr_are_refused_and_nothing_changes(core, controls):
    assert controls.accepts_reserved_bits(ctypes.c_void_p(address_of_table(core))) == 0


def test_the_example_rounds_as_each_fiber_says(core, build):
    switcher = build("C", WITHOUT_VECTORS, FIBERS / "fibers.c", name="libfibers")
    library = ctypes.CDLL(build("C", FIBERS / "thirds.c", switcher))
    results = (ctypes.c_double * 9)()
    assert library.thirds(ctypes.c_void_p(address_of_table(core)), results) == 0
    third, nearest_two_thirds = 1 / 3, 2 / 3
    assert tuple(results[0:3]) == (third, nearest_two_thirds, 1)
    assert tuple(results[3:6]) == (third, nearest_two_thirds, 1)
    assert tuple(results[6:9]) == (math.nextafter(third, 1), math.nextafter(nearest_two_thirds, 1), 1)


# The header


@pytest.mark.parametrize("language", ["C", "C++"])
@pytest.mark.parametrize("python", [False, True], ids=["alone", "with Python.h"])
def test_the_header_compiles_without_a_warning(build, tmp_path, language, python):
    source = tmp_path / "header.c"
    source.write_text(
        ("#define FPSTATE_WITH_PYTHON\n" if python else "")
        + '#include "fpstate.h"\n#include "fpstate.h"\n'
        + "const fpstate_api *given(const fpstate_api *api);\n"
        + "const fpstate_api *given(const fpstate_api *api) { return fpstate_api_fits(api) ? api : 0; }\n"
    )
    build(language, source, f"-isystem{sysconfig.get_path('include')}")


def test_the_header_needs_none_of_pythons(build, tmp_path):
    source = tmp_path / "header.c"
    source.write_text('#include "fpstate.h"\n#ifdef Py_PYTHON_H\n#error Python.h\n#endif\n')
    build("C", source)


def test_get_include_is_where_both_headers_are():
    folder = Path(fpstate.get_include())
    assert (folder / "fpstate.h").is_file()
    assert (folder / "fpstate_guest.h").is_file()
    assert (folder / "fpstate.h").read_text() == (ROOT / "programs" / "include" / "fpstate.h").read_text()


def test_the_table_is_as_large_as_the_header_says(table):
    assert (table.version, table.size) == (1, ctypes.sizeof(Table))


def test_the_members_are_those_of_the_header_and_all_documented():
    header = (ROOT / "programs" / "include" / "fpstate.h").read_text()
    (struct,) = re.findall(r"typedef struct fpstate_api \{(.*?)\} fpstate_api;", header, re.DOTALL)
    declared = re.findall(r"uint32_t (\w+);|\(\*(\w+)\)\(", struct)
    page = (ROOT / "docs" / "c-api.md").read_text()
    documented = re.findall(
        r"^\| `(\w+)` \|", page.partition("## The table")[2].partition("## Rules")[0], re.MULTILINE
    )
    members = [name for name, *_ in Table._fields_]
    assert members == ["".join(names) for names in declared] == documented


def test_a_capsule_of_another_name_is_not_taken(core):
    with pytest.raises(ValueError, match="incorrect name"):
        address_of_table(core, b"fpstate._core.another")


# Versions


@pytest.fixture(scope="session")
def fits(build, tmp_path_factory):
    source = tmp_path_factory.mktemp("fits") / "fits.c"
    source.write_text(
        '#include "fpstate.h"\nint fits(const fpstate_api *api);\n'
        "int fits(const fpstate_api *api) { return fpstate_api_fits(api); }\n"
    )
    return ctypes.CDLL(build("C", source)).fits


@pytest.mark.parametrize(
    ("version", "size", "expected"),
    [(0, 0, 1), (0, 64, 1), (0, -1, 0), (0, -8, 0), (1, 0, 0), (1, 64, 0), (-1, 0, 0)],
)
def test_a_longer_table_fits_and_a_shorter_one_or_another_version_does_not(
    core, fits, version, size, expected
):
    other = Table.from_buffer_copy(table_of(core))
    other.version += version
    other.size += size
    assert fits(ctypes.byref(other)) == expected


def test_no_table_does_not_fit(fits):
    assert fits(None) == 0


def extension(path: Path):
    loader = importlib.machinery.ExtensionFileLoader("isolated", str(path))
    specification = importlib.util.spec_from_file_location("isolated", path, loader=loader)
    module = importlib.util.module_from_spec(specification)
    loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def build_extension(build):
    python = f"-isystem{sysconfig.get_path('include')}"

    def built(*arguments):
        return build("C", *arguments, python, ROOT / "examples" / "extension" / "isolated.c", name="isolated")

    return built


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("FPSTATE_API_VERSION 1u", "FPSTATE_API_VERSION 2u"),
        ("(*park)(fpstate_context *context);", "(*later)(void); int (*park)(fpstate_context *context);"),
    ],
    ids=["another version", "a member that the library lacks"],
)
def test_a_module_built_for_another_edition_is_refused(build_extension, tmp_path, text, other):
    header = (Path(fpstate.get_include()) / "fpstate.h").read_text()
    assert header.count(text) == 1
    (tmp_path / "fpstate.h").write_text(header.replace(text, other))
    with pytest.raises(ImportError, match=r"has version 1 and \d+ bytes; this module was built for version"):
        extension(build_extension(f"-iquote{tmp_path}", "-DOTHER_EDITION"))


# The extension module


@pytest.fixture
def isolated(core, build_extension):
    return extension(build_extension())


def test_the_extension_module_calls_in_a_state_of_its_own(isolated, each_core):
    libm = ctypes.CDLL("libm.so.6")
    assert isolated.core() == each_core

    def inside():
        before = libm.fegetround()
        libm.fesetround(FE_UPWARD)
        return before, libm.fegetround()

    assert isolated.isolated(inside) == (FE_TONEAREST, FE_UPWARD)
    assert libm.fegetround() == FE_TONEAREST


def test_without_the_module_the_rounding_would_stay():
    """The negative control of the test above."""
    libm = ctypes.CDLL("libm.so.6")
    libm.fesetround(FE_UPWARD)
    try:
        assert libm.fegetround() == FE_UPWARD
    finally:
        libm.fesetround(FE_TONEAREST)


def test_exceptions_pass_through_the_extension_module(isolated):
    with pytest.raises(ZeroDivisionError):
        isolated.isolated(lambda: 1 // 0)


# The functions


def test_wrong_arguments_are_refused_by_number(table):
    context, control = created(table), Control(mxcsr=0x1F80, fcw=0x37F)
    storage = Storage(table)
    pointer = ctypes.byref(ctypes.c_void_p())
    refused = {
        "create": table.create(None),
        "save": table.save(None),
        "restore": table.restore(None),
        "park": table.park(None),
        "switch from": table.switch_state(None, context),
        "switch to": table.switch_state(context, None),
        "control from": table.switch_control(None, control),
        "control to": table.switch_control(control, None),
        "not a context": table.save(storage.address),
        "no storage": table.create_in(None, storage.size, pointer),
        "no place for the context": table.create_in(storage.address, storage.size, None),
        "too small": table.create_in(storage.address, storage.size - 1, pointer),
        "not aligned": table.create_in(storage.address + 8, storage.size, pointer),
    }
    table.prefetch(None)
    table.destroy(None)
    table.destroy(context)
    assert set(refused.values()) == {errno.EINVAL}


def test_a_context_in_storage_ends_where_it_says_and_leaves_nothing(table):
    storage = Storage(table, guard=4096)
    storage.fill(0xA5)
    context, home = created_in(table, storage), created(table)
    assert context.value == storage.address
    assert table.save(context) == 0
    assert any(storage.bytes())
    table.switch_state(home, context)
    table.switch_state(context, home)
    assert table.park(context) == 0
    table.destroy(context)
    table.destroy(home)
    assert not any(storage.bytes())
    assert storage.behind() == b"\xa5" * 4096
    assert table.save(context) == errno.EINVAL


def test_the_size_is_that_of_the_processors_largest_image_and_a_line(core, table):
    assert table.context_alignment() == 64
    assert table.context_size() % 64 == 0
    assert 0 <= table.context_size() - 64 - core.features()["area_size"] < 64


def test_a_state_may_be_saved_by_one_thread_and_restored_by_another(table):
    """Control words outlive ctypes' own calls, so they show whose state it is."""
    libm, context, found = ctypes.CDLL("libm.so.6"), created(table), []

    def leave():
        libm.fesetround(FE_UPWARD)
        table.save(context)

    def take():
        found.append(libm.fegetround())
        table.restore(context)
        found.append(libm.fegetround())

    for work in (leave, take):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    table.destroy(context)
    assert found == [FE_TONEAREST, FE_UPWARD]
    assert libm.fegetround() == FE_TONEAREST


def test_a_new_context_is_in_the_initial_state(table):
    libm, home = ctypes.CDLL("libm.so.6"), created(table)
    storage = Storage(table)
    for fresh in (created(table), created_in(table, storage)):
        libm.fesetround(FE_UPWARD)
        table.switch_state(home, fresh)
        inside = libm.fegetround()
        table.switch_state(fresh, home)
        outside = libm.fegetround()
        libm.fesetround(FE_TONEAREST)
        table.destroy(fresh)
        assert (inside, outside) == (FE_TONEAREST, FE_UPWARD)
    table.destroy(home)


def test_a_context_may_be_switched_to_itself(table):
    libm, storage = ctypes.CDLL("libm.so.6"), Storage(table)
    for context in (created(table), created_in(table, storage)):
        libm.fesetround(FE_UPWARD)
        assert table.switch_state(context, context) == 0
        kept = libm.fegetround()
        libm.fesetround(FE_TONEAREST)
        table.destroy(context)
        assert kept == FE_UPWARD


WITHOUT_MEMORY = """
import ctypes, errno, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from c_table import Storage, created, created_in, table_of
from fpstate import _core

ctypes.CDLL("libm.so.6").fesetround(0x800)  # then MXCSR is in use, and every state needs memory
table = table_of(_core)
one, other = (created_in(table, Storage(table)) for _ in range(2))
contexts = [created(table) for _ in range(50_000)]
mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped, resource.RLIM_INFINITY))
saved = 0
while saved < len(contexts) and not (error := table.save(contexts[saved])):
    saved += 1
in_place = {table.switch_state(one, other) or table.switch_state(other, one) for _ in range(1000)}
without = table.switch_state(contexts[saved], one)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
afterwards = table.save(contexts[saved])
print(error == errno.ENOMEM, without == errno.ENOMEM, in_place == {0}, afterwards == 0)
"""


def test_where_there_is_no_memory_contexts_in_storage_go_on_and_the_others_say_so():
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_MEMORY, str(ROOT / "tests")],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.stdout.split() == ["True"] * 4, result.stderr


def test_control_words_alone_change_the_rounding(table):
    before, one, three = Control(), 1.0, 3.0
    table.switch_control(before, UPWARD)
    upward = one / three
    table.switch_control(Control(), before)
    assert upward == math.nextafter(one / three, 1)


def test_the_core_and_the_reason_for_it_can_be_asked(core, table):
    assert table.core().decode() in ("portable", "fast")
    assert table.core_reason().decode() == core.core_choice()["reason"]


def test_a_core_that_cannot_be_is_refused_with_its_reason(core):
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from c_table import table_of; from fpstate import _core; import ctypes\n"
        "table = table_of(_core); context = ctypes.c_void_p()\n"
        "print(table.core(), table.create(ctypes.byref(context)), context.value, table.core_reason().decode())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(ROOT / "tests")],
        env={**os.environ, "FPSTATE_CORE": "fastest"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.stdout.startswith(f"None {errno.EINVAL} None "), result.stderr
    assert "FPSTATE_CORE" in result.stdout
    assert "fastest" in result.stdout
