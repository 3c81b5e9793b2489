"""Who may touch the native core, which import-linter does not see."""

import ast
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
