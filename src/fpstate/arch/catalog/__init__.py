"""Recorded processors, and models of announced ones, as CPUID leaves in ``processors.json``.

Each entry names the dump it was taken from, or says that it is a model. Registers are hexadecimal, in the
order EAX, EBX, ECX, EDX; only the leaves that describe state components are kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Final

from fpstate.arch.cpu import Cpu, Leaves
from fpstate.errors import UnknownCpu

ALIASES: Final[Mapping[str, str]] = MappingProxyType(
    {
        **{"naples": "zen1", "rome": "zen2", "milan": "zen3", "genoa": "zen4", "turin": "zen5"},
        **{"cascade-lake": "cascade-lake-sp", "ice-lake": "ice-lake-sp"},
    }
)
"""Other names under which processors of the catalog are known: AMD's server processors by their code names."""


def names() -> tuple[str, ...]:
    """Return the names of all processors in the catalog, sorted."""
    return tuple(sorted(_entries()))


@cache
def load(name: str) -> Cpu:
    """Return one processor of the catalog, by its name or an alias; raises UnknownCpu, which lists the names."""
    if name in ALIASES:
        return load(ALIASES[name])
    entry = _entries().get(name)
    if entry is None:
        raise UnknownCpu(name, list(names()))
    leaves: Leaves = {_key(text): _registers(values) for text, values in entry["leaves"].items()}
    return Cpu.from_cpuid(leaves, name=name, source=entry["source"], provenance=entry["provenance"])


@cache
def _entries() -> dict[str, dict[str, Any]]:
    text = files(__package__).joinpath("processors.json").read_text(encoding="utf-8")
    entries: dict[str, dict[str, Any]] = json.loads(text)
    return entries


def _key(text: str) -> tuple[int, int]:
    leaf, _, subleaf = text.partition(".")
    return int(leaf, 16), int(subleaf or "0", 16)


def _registers(text: str) -> tuple[int, int, int, int]:
    eax, ebx, ecx, edx = (int(value, 16) for value in text.split())
    return eax, ebx, ecx, edx
