"""``fpstate kvm save``: guests stopped at random points of their runs, each whole in one file."""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Iterator
from pathlib import Path

from fpstate.arch import Cpu
from fpstate.command import output
from fpstate.command.mix import choose
from fpstate.command.quantity import count, size, word
from fpstate.engine.kvm.sampling import Sampler
from fpstate.engine.kvm.session import Session
from fpstate.engine.memory import DEFAULT_MEMORY
from fpstate.program.builtin import BUILTIN
from fpstate.source.checkpoint import SavedState
from fpstate.source.durable import make_folder
from fpstate.source.state_file import SUFFIX, write_state


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``save``."""
    parser = subparsers.add_parser(
        "save",
        help="run programs, stop each at a random point, and write it to a file",
        description="Runs guest programs on a KVM vCPU, stops each at a random point of its run, and writes its whole"
        " state with registers and memory, so that fpstate kvm load goes on with it, here or elsewhere.",
    )
    parser.add_argument(
        "program",
        nargs="*",
        metavar="PROGRAM",
        help="built-in name, ELF file or flat .bin; all built-in ones if not given",
    )
    parser.add_argument("--to", required=True, metavar="PATH", help="a file, or a folder for many")
    parser.add_argument("--count", type=count, metavar="N", help="how many states (one of each program)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="varies data and points (1)")
    parser.add_argument("--argument", type=word, metavar="N", help="amount of work for each program")
    parser.add_argument(
        "--memory", type=size, default=DEFAULT_MEMORY, metavar="SIZE", help="of a guest (64k)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the states; each file is whole or not there. Raises UnsupportedHere, ProgramError, VsoError, OSError."""
    written = total = 0
    with Session() as session:
        for path, seed, saved in samples(session, args):
            write_state(path, saved)
            written += 1
            total += path.stat().st_size
            output.lines([f"{path}  {session.name}  seed {seed}"])
    output.message(f"{written} state{'s' * (written != 1)}, {total} bytes")
    return 0


def samples(session: Session, args: argparse.Namespace) -> Iterator[tuple[Path, int, SavedState]]:
    """Yield where each state goes, the seed of its data, and the state."""
    usable = session.destination.full_xcr0
    names = args.program or [
        name for name, builtin in BUILTIN.items() if not builtin.missing(Cpu.host(), usable)
    ]
    mix = choose(names, Cpu.host(), usable, format=None)
    jobs = mix.jobs(args.count or len(mix.programs), args.seed, args.argument)
    source = random.Random(args.seed)
    samplers: dict[str, Sampler] = {}
    folder = Path(args.to)
    if len(jobs) > 1 or folder.is_dir() or args.to.endswith(os.sep):
        make_folder(folder)
        paths = [
            folder / f"{Path(job.program.name).name}-{number:04}{SUFFIX}" for number, job in enumerate(jobs)
        ]
    else:
        paths = [folder]
    for path, job in zip(paths, jobs, strict=True):
        if job.program.name not in samplers:
            samplers[job.program.name] = Sampler(
                session, job.program, argument=job.argument, seed=job.seed, memory_size=args.memory
            )
        yield path, job.seed, samplers[job.program.name].sample(job.seed, source)
