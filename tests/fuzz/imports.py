"""Everything that a source is read with, imported at once: what a search is to see has to be seen being imported."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

_SOURCE: Final = Path(__file__).parents[2] / "src"
_CORE: Final = "fpstate._core"
_PACKAGES: Final = ("arch", "image", "source", "program", "command")
_FOLLOWED: Final = ("rules", "rule", "lint", "refusal", "convert", "sanitise", "legacy", "show", "check")
_LEFT_OUT: Final = (
    "fpstate.command.gdb",
    "fpstate.command.bench",
    "fpstate.command.kvm",
    "fpstate.command.run",
)


def unfollowed() -> list[str]:
    """Modules whose code is not worth following: what registers are made of, and how they are shown, takes the time."""
    found = []
    for package in ("image", "command"):
        folder = _SOURCE / "fpstate" / package
        found += [
            f"fpstate.{package}.{path.stem}" for path in folder.glob("*.py") if path.stem not in _FOLLOWED
        ]
    return found


def import_all() -> None:
    """Import the modules of the packages above."""
    for package in _PACKAGES:
        module = importlib.import_module(f"fpstate.{package}")
        for found in pkgutil.walk_packages(module.__path__, f"{module.__name__}."):
            if not found.name.startswith(_LEFT_OUT):
                importlib.import_module(found.name)


class _Core(MetaPathFinder):
    """Finds the native core where the installed package has it: in the source there is a folder of that name."""

    def __init__(self, finders: list[Any]) -> None:
        self._finders = finders

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return what the installed package's finder says of the core, and nothing of others."""
        if name != _CORE:
            return None
        return next((spec for each in self._finders if (spec := each.find_spec(name, path, target))), None)


@contextmanager
def from_source() -> Iterator[None]:
    """Import the package from its source files; the finder of an editable install loads modules past atheris."""
    editable = [each for each in sys.meta_path if type(each).__module__.startswith("_editable")]
    for each in editable:
        sys.meta_path.remove(each)
    if editable:
        sys.meta_path.insert(0, _Core(editable))
        sys.path.insert(0, str(_SOURCE))
    yield
    sys.meta_path += editable
