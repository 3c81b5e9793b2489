"""``fpstate kvm selftest``: everything that is claimed of guest states, on this machine, in a few seconds."""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fpstate.arch import Cpu, Layout
from fpstate.arch.component import mask_text
from fpstate.command import output
from fpstate.command.kvm_load import load_file
from fpstate.command.kvm_reset import dirty_from_inside
from fpstate.engine.kvm.abi import REGISTERS, REGS
from fpstate.engine.kvm.inside import seen_inside
from fpstate.engine.kvm.prediction import Outcome, outcome_of
from fpstate.engine.kvm.reset import RFLAGS, reset, survivors
from fpstate.engine.kvm.sampling import Sampler
from fpstate.engine.kvm.session import Session
from fpstate.engine.kvm.transfer import load, save
from fpstate.errors import FpStateError, KvmError, SourceError
from fpstate.image import Image
from fpstate.image.consumer import Consumer
from fpstate.image.rules import check, predict
from fpstate.program.builtin import BUILTIN
from fpstate.source.checkpoint import SavedState
from fpstate.source.guest_state import GuestState
from fpstate.source.state_file import decode, encode, write_state
from fpstate.testing import mangle, random_image

SCHEMA: Final = "fpstate-kvm-selftest/1"
_STATES: Final = 200
_PAYLOADS: Final = 1000
_FLIPS: Final = 500
_POINTS: Final = 2
_XSTATE_BV: Final = slice(512, 520)
_SABOTAGES: Final = (
    ("x87 and general registers only", ~1, "mm0"),
    ("XMM left", 1 << 1, "mm0"),
    ("mask registers left", 1 << 5, "k0"),
)
"""Resets with a fault: what each is, the components that it leaves, and how the name of a register ends that tells."""


class CheckFailed(Exception):  # noqa: N818 - an outcome, not an error of ours
    """What a check found to be otherwise."""


@dataclass(frozen=True, slots=True)
class Result:
    """One check: its name, whether it held, and what was found."""

    name: str
    held: bool
    detail: str
    seconds: float


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``selftest``."""
    parser = subparsers.add_parser(
        "selftest", help="check all of it on this machine in a few seconds, controls included"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="varies the states (1)")
    parser.add_argument("--json", action="store_true", help=f"print JSON with the schema {SCHEMA}")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print one line for each check; exit code 1 where one does not hold. Raises UnsupportedHere."""
    with Session() as session:
        results = [_timed(name, check, session, args.seed) for name, check in CHECKS]
    if args.json:
        rows = [
            {"name": each.name, "held": each.held, "detail": each.detail, "seconds": round(each.seconds, 3)}
            for each in results
        ]
        output.document({"schema": SCHEMA, "checks": rows})
    else:
        for each in results:
            output.lines([f"{'ok    ' if each.held else 'FAILED'}  {each.name}: {each.detail}"])
    output.message(f"{sum(each.seconds for each in results):.1f} s")
    return int(not all(each.held for each in results))


def _timed(name: str, check: Check, session: Session, seed: int) -> Result:
    started = time.perf_counter()
    try:
        detail, held = check(session, random.Random(seed)), True
    except (CheckFailed, FpStateError) as error:
        detail, held = str(error), False
    return Result(name, held, detail, time.perf_counter() - started)


def _random_state(session: Session, source: random.Random) -> GuestState:
    there = session.destination
    kind = Layout.compacted if source.random() < 0.5 and there.cpu.has("XSAVEC") else Layout.standard
    layout = kind(there.cpu, there.full_xcr0)
    image = random_image(layout, source.getrandbits(32), mxcsr_mask=there.cpu.mxcsr_mask)
    return GuestState(image, there.full_xcr0, there.cpu)


def loads(session: Session, source: random.Random) -> str:
    """Random states are loaded, and what is read back is equal."""
    for _ in range(_STATES):
        state = _random_state(session, source)
        load(session.vcpu, state, destination=session.destination)
        if save(session.vcpu, destination=session.destination).image != state.image:
            raise CheckFailed("a state was loaded and is another one")
    return f"{_STATES} random states read back equal"


def verdicts(session: Session, source: random.Random) -> str:
    """Mutated payloads get the answer that the rules foretell, and refused ones change nothing."""
    there, target = session.destination, session.destination.target()
    counts: Counter[Outcome] = Counter()
    for _ in range(_PAYLOADS):
        image = random_image(there.layout, source.getrandbits(32), mxcsr_mask=there.cpu.mxcsr_mask)
        data = bytearray(image.to_bytes().ljust(there.xsave_size, b"\0"))
        mangle(data, source)
        verdict = predict(data, Consumer.KVM, target)
        counts[outcome_of(verdict, check(data, Consumer.KVM, target))] += 1
        before = session.vcpu.xsave()
        try:
            session.vcpu.set_xsave(data)
            taken = True
        except KvmError:
            taken = False
        after = session.vcpu.xsave()
        if taken != verdict.accepted or (not taken and before != after):
            raise CheckFailed(f"foretold: {verdict}; the kernel {'took' if taken else 'refused'} it")
        if taken and after[24:28] != (verdict.reported_mxcsr or 0).to_bytes(4, "little"):
            raise CheckFailed(f"foretold: MXCSR {verdict.reported_mxcsr:#x}; read back {after[24:28].hex()}")
    listed = ", ".join(f"{counts[each]} {each.value}" for each in Outcome)
    return f"{_PAYLOADS} mutated payloads as foretold ({listed})"


def resets(session: Session, source: random.Random) -> str:
    """What a guest dirtied is initial behind a reset, for the host and for a guest."""
    dirty_from_inside(session, seed=source.getrandbits(16))
    before = survivors(session.vcpu, destination=session.destination)
    reset(session.vcpu, destination=session.destination)
    if left := seen_inside(session):
        raise CheckFailed("a guest still sees " + ", ".join(each.name for each in left))
    return f"{len(before)} dirty registers, none left for the host or for a guest"


def sabotaged_resets(session: Session, source: random.Random) -> str:
    """Resets with a fault are caught, by the host and by a guest, and the register is named."""
    caught = []
    for name, kept, ending in _SABOTAGES:
        if kept > 0 and not kept & session.destination.full_xcr0:
            continue
        dirty_from_inside(session, seed=source.getrandbits(16))
        forget(session, kept)
        outside = [each.name for each in survivors(session.vcpu, destination=session.destination)]
        inside = [each.name for each in seen_inside(session)]
        for side, found in (("host", outside), ("guest", inside)):
            if not any(register.endswith(ending) for register in found):
                raise CheckFailed(f"{name}: the {side} did not notice, it found {found}")
        caught.append(f"{name} ({len(inside)} registers)")
    return "caught by name: " + ", ".join(caught)


def forget(session: Session, kept: int) -> None:
    """Reset as one should not: general registers, and every component but those in ``kept``."""
    layout = session.destination.layout
    data = session.vcpu.xsave()
    stated = Image(data[: layout.size], layout).xstate_bv & kept
    data[_XSTATE_BV] = stated.to_bytes(8, "little")
    session.vcpu.set_xsave(data)
    session.vcpu.set_regs(bytearray(REGS.pack(*(RFLAGS if name == "rflags" else 0 for name in REGISTERS))))


def goes_on(session: Session, source: random.Random) -> str:
    """Programs stopped at random points, through files, go on to the right results."""
    done = 0
    cpu, usable = Cpu.host(), session.destination.full_xcr0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.fpvso"
        for builtin in BUILTIN.values():
            if builtin.missing(cpu, usable):
                continue
            sampler = Sampler(session, builtin.load(), argument=builtin.default_argument, seed=1)
            for _ in range(_POINTS):
                write_state(path, sampler.sample(source.getrandbits(16), source))
                loaded = load_file(session, str(path), limit=10.0)
                if loaded.exit_code:
                    raise CheckFailed(f"{builtin.name}: {loaded.error or loaded.result}")
                done += 1
    return f"{done} states of programs on {mask_text(usable)} went on to the right result"


def refusals(session: Session, source: random.Random) -> str:
    """Damaged files are refused, each of them."""
    data = encode(SavedState(_random_state(session, source)))
    for _ in range(_FLIPS):
        flipped = bytearray(data)
        flipped[source.randrange(len(data))] ^= 1 << source.randrange(8)
        for damaged in (bytes(flipped), data[: source.randrange(len(data))]):
            try:
                decode(damaged)
            except SourceError:
                continue
            raise CheckFailed("a damaged file was read")
    return f"{2 * _FLIPS} damaged files refused"


Check = Callable[[Session, random.Random], str]
CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    ("load", loads),
    ("verdict", verdicts),
    ("reset", resets),
    ("control", sabotaged_resets),
    ("go on", goes_on),
    ("files", refusals),
)
