"""The guest block: what host and program tell each other, mirrored from ``fpstate_guest.h``."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from fpstate.arch.component import Component
from fpstate.errors import ProgramError
from fpstate.image.consumer import INIT_PKRU

MAGIC: Final = 0
SEED: Final = 8
FEATURES: Final = 16
ARGUMENT: Final = 24
INPUT_SIZE: Final = 32
RESULT_SIZE: Final = 40
STATUS: Final = 48
RESERVED: Final = 56
INPUT: Final = 64
RESULT: Final = 2048
BLOCK_SIZE: Final = 4096
BLOCK_ALIGNMENT: Final = 64

INPUT_MAXIMUM: Final = RESULT - INPUT
RESULT_MAXIMUM: Final = BLOCK_SIZE - RESULT
STACK_MINIMUM: Final = 4096

MAGIC_VALUE: Final = 0x0000_0001_5453_5046
"""``FPST`` and version 1, little endian."""

FINISHED: Final = 0
YIELD: Final = 1
FAILED: Final = 256
PORT: Final = 0xF5
EXIT_SLOT: Final = 0
OUT_INSTRUCTION: Final = bytes((0xE7, PORT))
"""``out %eax, $0xF5``, on which a program traps to leave."""

ENTRY_RFLAGS: Final = 0x202
ENTRY_RSP_MODULO: Final = 8
"""``rsp % 16`` at entry: the slot of a return address lies on the stack, and holds 0."""

X87: Final = 1 << Component.X87
SSE: Final = 1 << Component.SSE
AVX: Final = 1 << Component.AVX
OPMASK: Final = 1 << Component.OPMASK
ZMM_HI256: Final = 1 << Component.ZMM_HI256
HI16_ZMM: Final = 1 << Component.HI16_ZMM
AVX512: Final = OPMASK | ZMM_HI256 | HI16_ZMM
PKRU: Final = 1 << Component.PKRU
TILECFG: Final = 1 << Component.TILECFG
TILEDATA: Final = 1 << Component.TILEDATA
AMX: Final = TILECFG | TILEDATA
KNOWN_FEATURES: Final = X87 | SSE | AVX | AVX512 | PKRU | AMX

ENTRY_PKRU: Final = INIT_PKRU
"""A program's PKRU at entry, as Linux gives it to a new program (``init_pkru_value``): key 0 alone is open."""

_HEADER = struct.Struct("<8Q")
_WORD = 1 << 64


@dataclass(frozen=True, slots=True)
class Block:
    """The fields of a guest block; ``result`` is what the program wrote, none before it has run."""

    seed: int = 0
    argument: int = 0
    features: int = X87 | SSE
    input: bytes = b""
    result: bytes = b""
    status: int = 0

    def to_bytes(self) -> bytes:
        """The block as a host places it before the program starts, ``BLOCK_SIZE`` bytes.

        Raises ProgramError when the input does not fit.
        """
        if len(self.input) > INPUT_MAXIMUM:
            raise ProgramError(
                "input",
                f"{len(self.input)} bytes do not fit the input area of {INPUT_MAXIMUM}",
                help="Give less input, or let the program make its data from the seed.",
            )
        header = _HEADER.pack(
            MAGIC_VALUE,
            self.seed % _WORD,
            self.features,
            self.argument % _WORD,
            len(self.input),
            len(self.result),
            self.status,
            0,
        )
        return header + self.input.ljust(INPUT_MAXIMUM, b"\0") + self.result.ljust(RESULT_MAXIMUM, b"\0")

    @classmethod
    def from_bytes(cls, data: bytes, *, program: str = "program") -> Block:
        """Read a block back after a run; ``program`` names it in errors.

        Raises ProgramError when the program overwrote the block's header or claims more than fits.
        """
        magic, seed, features, argument, input_size, result_size, status, _ = _HEADER.unpack_from(data)
        if magic != MAGIC_VALUE:
            raise ProgramError(
                program,
                f"the guest block begins with {magic:#x} instead of {MAGIC_VALUE:#x}",
                help="The program wrote over the header of its block.",
            )
        for what, size, maximum in (
            ("result", result_size, RESULT_MAXIMUM),
            ("input", input_size, INPUT_MAXIMUM),
        ):
            if size > maximum:
                raise ProgramError(
                    program,
                    f"claims {size} bytes of {what}; the area holds {maximum}",
                    help=f"The program must leave at most {maximum} in {what}_size of the guest block.",
                )
        return cls(
            seed=seed,
            argument=argument,
            features=features,
            input=bytes(data[INPUT : INPUT + input_size]),
            result=bytes(data[RESULT : RESULT + result_size]),
            status=status,
        )
