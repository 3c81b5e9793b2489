"""What a guest itself finds in its registers: the other side of every claim about a reset."""

from __future__ import annotations

from typing import Final

from fpstate.engine.kvm.reset import Survivor
from fpstate.engine.kvm.session import Session
from fpstate.program.builtin import BUILTIN
from fpstate.program.expected.probe import arguments, parse_probe

_PLACED: Final = frozenset({"rsp", "rdi"})


def seen_inside(session: Session) -> list[Survivor]:
    """Run a program that stores every register, and return those in which it does not find the initial value.

    The vCPU's floating-point registers and XCR0 stay as they are until the program looks; its general registers
    are those of an entry. Afterwards x87 is initial, and the program is the session's guest. Raises what
    ``Session.finish`` raises.
    """
    probe = BUILTIN["probe"]
    found: dict[str, Survivor] = {}
    features = session.features
    for choice in arguments(features):
        session.start(probe.load(), argument=choice, clean=False)
        result = session.finish().result
        expected = parse_probe(probe.expected(0, choice, features), features)
        for name, value in parse_probe(result, features).items():
            if value != expected[name] and name not in _PLACED:
                found.setdefault(name, Survivor(name, "seen by the guest", value, expected[name]))
    return list(found.values())
