"""CPUID records of other people's processors, taken from the folder that FPSTATE_CORPUS names."""

import json
from typing import Any

import pytest
from cpuid_record import leaves_of

from fpstate.arch.cpu import Cpu
from recorded import of_others


@pytest.fixture(scope="session")
def recorded() -> list[tuple[dict[str, Any], Cpu]]:
    """Every record with leaf 0DH, beside the Cpu that is read from it."""
    path = of_others("cpuid_leaf_d.json")
    if not path.exists():
        pytest.skip(f"{path} does not exist: no recorded CPUID leaves to check against")
    records = json.loads(path.read_text())["records"]
    return [
        (record, Cpu.from_cpuid(leaves_of(record), name=record["id"]))
        for record in records
        if "leaf_d" in record
    ]
