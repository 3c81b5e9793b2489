"""CPUID records as files hold them, read back into leaves."""

from typing import Any


def leaves_of(record: dict[str, Any]) -> dict[tuple[int, int], tuple[int, int, int, int]]:
    """Turn a record back into CPUID leaves; registers that it leaves out are zeros."""
    vendor = [int.from_bytes(record["vendor"].encode()[at : at + 4], "little") for at in (0, 4, 8)]
    leaves: dict[tuple[int, int], tuple[int, int, int, int]] = {
        (0, 0): (int(record["max_leaf"], 16), vendor[0], vendor[2], vendor[1])
    }
    for key, value in record.items():
        if not key.startswith("leaf_") or key == "leaf_d_subleaves":
            continue
        number = int(key.removeprefix("leaf_"), 16)
        if isinstance(value, list):
            leaves[number, 0] = tuple(int(register, 16) for register in value)
        elif set(value) <= {"eax", "ebx", "ecx", "edx"}:
            leaves[number, 0] = tuple(int(value.get(r, "0"), 16) for r in ("eax", "ebx", "ecx", "edx"))
        else:
            for subleaf, registers in value.items():
                leaves[number, int(subleaf, 16)] = tuple(int(register, 16) for register in registers)
    return leaves
