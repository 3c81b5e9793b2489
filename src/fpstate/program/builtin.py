"""The built-in guest programs: what each is, what it needs, and what it must answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType, ModuleType
from typing import Final

from fpstate.arch.component import mask_text
from fpstate.arch.cpu import Cpu
from fpstate.program.block import AMX, AVX, AVX512, PKRU, SSE, X87
from fpstate.program.expected import (
    amx_matmul,
    avx512_matmul,
    avx_mandelbrot,
    canary,
    opmask_sieve,
    probe,
    rounding_sum,
    spin,
    sse_nbody,
    x87_pi,
)
from fpstate.program.installed import flat_file
from fpstate.program.load import Program

Answer = Callable[[int, int, int], bytes]
Explain = Callable[[bytes, int, int, int], str | None]
Field = tuple[str, int, int]

_BASE = X87 | SSE
_OFFERED = AVX | AVX512 | PKRU | AMX


@dataclass(frozen=True)
class Builtin:
    """One built-in program. ``required`` is a mask of components, as in XCR0; ``optional`` are those that it uses
    where the guest block offers them.

    ``cpu_flags`` are the names, as in /proc/cpuinfo, of the instruction sets it uses beyond SSE2;
    ``default_argument`` makes a run of one to three milliseconds at 3 GHz.
    """

    name: str
    description: str
    required: int
    cpu_flags: tuple[str, ...]
    default_argument: int
    fields: tuple[Field, ...] = field(repr=False)
    answer: Answer = field(repr=False)
    explain: Explain | None = field(default=None, repr=False)
    ignored: tuple[tuple[int, int], ...] = field(default=(), repr=False)
    optional: int = 0

    def load(self) -> Program:
        """The program itself; raises UnsupportedHere when it is not built."""
        return _load(self.name)

    def missing(self, cpu: Cpu, usable: int) -> str | None:
        """What ``cpu`` lacks for it, with the components in ``usable``; None where it can run."""
        components = self.required & ~usable
        if components:
            return mask_text(components)
        flags = [flag for flag in self.cpu_flags if not cpu.has(flag.upper())]
        return ", ".join(flags) or None

    def expected(self, seed: int, argument: int | None = None, features: int = _BASE) -> bytes:
        """The exact result of a run; ``argument`` None stands for the default amount of work."""
        if argument is None:
            argument = self.default_argument
        return _expected(self.name, seed, argument, features)

    def check(
        self, result: bytes, seed: int, argument: int | None = None, features: int = _BASE
    ) -> str | None:
        """None for the right result, else a sentence that says what differs."""
        if argument is None:
            argument = self.default_argument
        expected = self.expected(seed, argument, features)
        found = self._comparable(result)
        expected = self._comparable(expected)
        if found == expected:
            return None
        if self.explain is not None:
            reason = self.explain(result, seed, argument, features)
            if reason is not None:
                return f"{self.name}: {reason}"
        return f"{self.name}: {_first_difference(found, expected, self.fields)}"

    def _comparable(self, result: bytes) -> bytes:
        copy = bytearray(result)
        for offset, size in self.ignored:
            copy[offset : offset + size] = bytes(len(copy[offset : offset + size]))
        return bytes(copy)


def _first_difference(found: bytes, expected: bytes, fields: tuple[Field, ...]) -> str:
    for name, offset, size in fields:
        mine, right = found[offset : offset + size], expected[offset : offset + size]
        if mine != right:
            return f"{name} is {_hex(mine)} instead of {_hex(right)}"
    if len(found) != len(expected):
        return f"the result has {len(found)} bytes instead of {len(expected)}"
    return "the result differs between its fields"


def _hex(little_endian: bytes) -> str:
    return f"{int.from_bytes(little_endian, 'little'):#x}" if little_endian else "missing"


@lru_cache(maxsize=32)
def _load(name: str) -> Program:
    builtin = BUILTIN[name]
    return Program.from_file(flat_file(name), features=builtin.required, optional=builtin.optional, name=name)


@lru_cache(maxsize=1024)
def _expected(name: str, seed: int, argument: int, features: int) -> bytes:
    return BUILTIN[name].answer(seed, argument, features)


def _builtin(
    module: ModuleType,
    description: str,
    required: int,
    default_argument: int,
    cpu_flags: tuple[str, ...] = (),
    optional: int = 0,
) -> Builtin:
    return Builtin(
        name=module.__name__.rpartition(".")[2],
        description=description,
        required=required,
        cpu_flags=cpu_flags,
        default_argument=default_argument,
        fields=module.FIELDS,
        answer=module.answer,
        explain=getattr(module, "explain", None),
        ignored=getattr(module, "IGNORED", ()),
        optional=optional,
    )


_TABLE = (
    _builtin(x87_pi, "pi to 64 bits on a full x87 stack", _BASE, 20_000),
    _builtin(sse_nbody, "three bodies in SSE2 doubles", _BASE, 100),
    _builtin(avx_mandelbrot, "Mandelbrot counts in AVX doubles", _BASE | AVX, 150, ("avx",)),
    _builtin(avx512_matmul, "a matrix product in ZMM registers", _BASE | AVX | AVX512, 5_000, ("avx512f",)),
    _builtin(
        opmask_sieve,
        "primes sieved in opmask registers",
        _BASE | AVX | AVX512,
        400,
        ("avx512f", "avx512bw", "popcnt"),
    ),
    _builtin(
        amx_matmul, "a matrix product in tiles, which stay in use", AMX, 80_000, ("amx_tile", "amx_int8")
    ),
    _builtin(rounding_sum, "sums under every rounding control of MXCSR and FCW", _BASE, 500),
    _builtin(canary, "a canary in every register, compared all the time", _BASE, 20_000, optional=_OFFERED),
    _builtin(spin, "xorshift in the general registers, no floating point", 0, 300_000),
    _builtin(probe, "stores every register of a fresh context", _BASE, 0, optional=_OFFERED),
)

BUILTIN: Final[Mapping[str, Builtin]] = MappingProxyType({builtin.name: builtin for builtin in _TABLE})
"""Every built-in program by name."""
