"""Every public name is exported once, can be imported, is seen alike by type checkers, and says what it is."""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import types
from pathlib import Path

import pytest

import fpstate

ROOMS = ("fpstate", *(f"fpstate.{room}" for room in ("arch", "image", "program", "vso")))
ROOT = Path(fpstate.__file__).parent


def tree_of(room: str) -> ast.Module:
    module = importlib.import_module(room)
    assert module.__file__ is not None
    return ast.parse(Path(module.__file__).read_text())


def imported(body: list[ast.stmt]) -> dict[str, str]:
    """Name to the module that it comes from, for ``from fpstate... import ...``."""
    return {
        alias.asname or alias.name: node.module or ""
        for node in body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if (node.module or "").startswith("fpstate")
    }


def for_type_checkers(tree: ast.Module) -> dict[str, str]:
    found: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            found |= imported(node.body)
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_names_are_listed_once_and_none_is_private(room):
    names = importlib.import_module(room).__all__
    assert len(names) == len(set(names))
    assert not [name for name in names if name.startswith("_")]


@pytest.mark.parametrize("room", ROOMS)
def test_every_name_can_be_imported_and_star_gives_just_these(room):
    module = importlib.import_module(room)
    namespace: dict[str, object] = {}
    exec(f"from {room} import *", namespace)
    namespace.pop("__builtins__")
    assert set(namespace) == set(module.__all__)
    assert all(getattr(module, name) is value for name, value in namespace.items())
    assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize("room", ROOMS)
def test_type_checkers_see_what_is_there_at_run_time(room):
    module, tree = importlib.import_module(room), tree_of(room)
    late, early = for_type_checkers(tree), imported(tree.body)
    assert not set(late) & set(early)
    assert set(late) | set(early) == set(module.__all__)
    for name, home in (late | early).items():
        source = importlib.import_module(home)
        expected = (
            getattr(source, name) if hasattr(source, name) else importlib.import_module(f"{home}.{name}")
        )
        assert getattr(module, name) is expected


def test_names_found_late_are_those_for_type_checkers_with_the_same_homes():
    assert for_type_checkers(tree_of("fpstate")) == fpstate._LATER


def test_a_name_that_does_not_exist_raises_attribute_error():
    with pytest.raises(AttributeError, match="module 'fpstate' has no attribute 'Vsos'"):
        _ = fpstate.Vsos
    assert not hasattr(fpstate, "NativeQueue")


def documented() -> list[tuple[str, object]]:
    found: dict[str, object] = {}
    for room in ROOMS:
        module = importlib.import_module(room)
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, type | types.FunctionType | types.ModuleType):
                found[f"{room}.{name}"] = value
    for name, value in vars(fpstate.errors).items():
        if isinstance(value, type) and value.__module__ == "fpstate.errors":
            found[f"fpstate.errors.{name}"] = value
    return sorted(found.items())


@pytest.mark.parametrize(
    ("name", "value"), documented(), ids=lambda item: item if isinstance(item, str) else ""
)
def test_every_public_class_function_and_module_says_what_it_is(name, value):
    text = inspect.getdoc(value)
    assert text
    assert text.strip()
    if isinstance(value, type):
        inherited = {inspect.getdoc(base) for base in value.__mro__[1:]}
        assert text not in inherited
        for attribute, member in public_methods(value):
            assert inspect.getdoc(member), f"{name}.{attribute}"


def public_methods(kind: type) -> list[tuple[str, object]]:
    if issubclass(kind, enum.Enum):
        return []
    return [
        (name, member)
        for name, member in vars(kind).items()
        if not name.startswith("_")
        and isinstance(member, types.FunctionType | property | classmethod | staticmethod)
    ]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_the_same_name_means_the_same_in_every_room():
    homes: dict[str, dict[int, str]] = {}
    for room in ROOMS:
        module = importlib.import_module(room)
        for name in module.__all__:
            homes.setdefault(name, {})[id(getattr(module, name))] = room
    different = {name: list(rooms.values()) for name, rooms in homes.items() if len(rooms) > 1}
    # fpstate.Kind is that of contexts; a number's kind is fpstate.image.Kind.
    assert set(different) <= {"Kind"}


def test_types_are_shipped():
    assert (ROOT / "py.typed").exists()
    assert (ROOT / "_core.pyi").exists()
