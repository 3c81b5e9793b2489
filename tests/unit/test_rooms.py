"""Who may touch the native core, which import-linter does not see; and who may write files."""

import ast
import re
from pathlib import Path

import pytest

import fpstate

ROOT = Path(fpstate.__file__).parent
ALLOWED = ("bench/", "engine/", "vso/", "source/", "arch/host.py")


def imports_the_core(source: str) -> bool:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        else:
            continue
        if any(name and name.startswith("fpstate._core") for name in names):
            return True
    return False


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_bench_engine_vso_source_and_arch_host_import_the_native_core(path):
    if not str(path.relative_to(ROOT)).startswith(ALLOWED):
        assert not imports_the_core(path.read_text())


def test_an_import_of_the_core_is_seen_in_each_form():
    assert imports_the_core("from fpstate import _core")
    assert imports_the_core("from fpstate._core import Slab")
    assert imports_the_core("def f():\n    import fpstate._core")
    assert not imports_the_core("from fpstate import errors")


WRITERS = {
    "source/durable.py": "every output file",
    "source/place.py": "looks, and makes folders",
    "source/stream.py": "copies of pipes, which have no name",
    "engine/kvm/device.py": "opens /dev/kvm",
    "command/streams.py": "opens /dev/null",
}


def writes_files(source: str) -> bool:
    """Whether it opens, makes, replaces or removes files other than to read them."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = (
            node.func.value.id
            if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)
            else ""
        )
        if name in (
            "write_text",
            "write_bytes",
            "mkstemp",
            "mkdir",
            "makedirs",
            "savefig",
            "symlink_to",
            "unlink",
        ):
            return True
        if owner == "os" and name in ("open", "rename", "replace", "link", "symlink", "remove"):
            return True
        modes = [*node.args[:2], *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
        texts = [
            part.value for part in modes if isinstance(part, ast.Constant) and isinstance(part.value, str)
        ]
        if name in ("open", "fdopen") and any(
            re.fullmatch(r"[rwaxbt+]*[wax+][rwaxbt+]*", text) for text in texts
        ):
            return True
    return False


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_output_files_go_through_one_writer(path):
    assert str(path.relative_to(ROOT)) in WRITERS or not writes_files(path.read_text())


@pytest.mark.parametrize(
    "line",
    [
        'Path(name).write_text("")',
        'args.plot.write_bytes(b"")',
        'open(name, "w")',
        'open(name, mode="ab")',
        'Path(name).open("x")',
        "os.open(name, os.O_WRONLY)",
        "os.rename(a, b)",
        "folder.mkdir()",
    ],
)
def test_a_writer_of_its_own_is_seen(line):
    assert writes_files(line)


def test_a_reader_is_none():
    assert not writes_files('open(name, "rb"); Path(name).open(); open(name, encoding="utf-8")')


PRINTERS = {"command/output.py", "command/main.py", "bench/memory.py"}
"""The one way out; the version; a child process of the benchmark, which speaks to its parent."""


def prints(source: str) -> bool:
    """Whether it writes to a standard stream by itself."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            return True
        if isinstance(node, ast.Attribute) and node.attr in ("write", "writelines"):
            owner = ast.unparse(node.value)
            if owner in ("sys.stdout", "sys.stderr"):
                return True
        if isinstance(node, ast.ImportFrom) and node.module == "rich.console":
            return True
    return False


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_text_goes_out_through_one_door(path):
    assert str(path.relative_to(ROOT)) in PRINTERS or not prints(path.read_text())


def test_a_way_out_of_its_own_is_seen():
    assert prints("print(name)")
    assert prints("def f():\n    sys.stderr.write(name)")
    assert prints("from rich.console import Console")
    assert not prints("output.lines([name]); file.write(name)")
