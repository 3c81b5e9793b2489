"""Forks a process that writes states to a folder until it is killed, once for each line on standard input."""

from __future__ import annotations

import os
import sys
from itertools import count
from pathlib import Path

from fpstate.arch import Cpu, Layout
from fpstate.source.checkpoint import Checkpoint, GeneralRegisters, Piece, SavedState
from fpstate.source.guest_state import GuestState
from fpstate.source.state_file import SUFFIX, encode, write_state
from fpstate.testing import random_image

NAMES, VERSIONS = 4, 8


def version(number: int) -> SavedState:
    """The state of this number, always the same."""
    cpu = Cpu.catalog("zen4")
    image = random_image(Layout.standard(cpu), number)
    memory = (Piece(0x40_0000, bytes([number + 1]) * 65536),)
    registers = GeneralRegisters((number,) * 16)
    checkpoint = Checkpoint("spin", number, 0, 3, 0x40_0000, 65536, 0, 0, registers, memory)
    return SavedState(GuestState(image, cpu.user_mask, cpu), checkpoint)


def main(folder: Path, *, in_place: bool) -> None:
    states = [version(number) for number in range(VERSIONS)]
    encoded = [encode(state) for state in states]
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            for turn in count(os.getpid()):  # each writer begins with another name
                path = folder / f"{turn % NAMES}{SUFFIX}"
                if in_place:
                    path.write_bytes(encoded[turn % VERSIONS])
                else:
                    write_state(path, states[turn % VERSIONS])
        print(child, flush=True)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), in_place=sys.argv[2:] == ["in-place"])
