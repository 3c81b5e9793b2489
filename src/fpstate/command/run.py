"""``fpstate run``: many vCPUs on few processors, each with its own floating-point and vector state."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from fpstate.arch.component import mask_names, mask_text
from fpstate.arch.cpu import Cpu
from fpstate.command import output
from fpstate.command.component_request import components
from fpstate.command.engine_choice import ENGINES, EngineChoice, chosen, kvm_vcpus, offered, open_engine
from fpstate.command.mix import Job, Mix
from fpstate.command.quantity import count, duration, nanoseconds, quantum, size, word
from fpstate.engine.guest import Guest, GuestEngine
from fpstate.engine.leak import audit
from fpstate.engine.memory import DEFAULT_MEMORY
from fpstate.errors import PoolExhausted
from fpstate.vso.audit import AuditReport
from fpstate.vso.config import FpuConfig
from fpstate.vso.manager import Manager
from fpstate.vso.permission import Kind
from fpstate.vso.scheduler import RunReport, Scheduler
from fpstate.vso.vcpu import ExitKind

SCHEMA = "fpstate-run/1"
LARGEST = "sapphire-rapids"
SHOWN = 10
AUDIT_NS = 60_000_000_000
"""Processor time that each context of the audit may use, at least: ten thousand times what it needs."""
_FEWER = "take fewer vCPUs or less --memory, or raise the limit of mappings (sysctl vm.max_map_count)"


@dataclass(slots=True)
class Outcome:
    """Everything that a run found out."""

    seconds: float
    report: RunReport
    manager: Manager
    audit: AuditReport
    jobs: list[tuple[Job[Any], Guest]]
    wrong: list[str]
    left_out: tuple[tuple[str, str], ...]
    processors: int
    engine: str
    offered: int
    """The components that programs were told they may use; of a modelled processor all, as scripts ask for more."""

    @property
    def ends(self) -> Counter[str]:
        """How many vCPUs ended in which way."""
        return Counter(vcpu.exit.kind.value if vcpu.exit else "unfinished" for _, vcpu in self.jobs)

    @property
    def clean(self) -> bool:
        """Whether every vCPU finished with the right result and nothing leaked, as far as the audit could judge."""
        return not self.wrong and not self.audit.found and self.ends["finished"] == len(self.jobs)

    @property
    def code(self) -> int:
        """The exit code."""
        if not self.clean:
            return 1
        return 3 if self.audit.unjudged else 0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb ``run`` to the command line."""
    parser = subparsers.add_parser(
        "run",
        help="run many vCPUs on few processors, check every result, look for leaks",
        description="Run guest programs on the real FPU: as user-mode vCPUs in this process (trusted code only: a "
        "guest shares the memory of this process), or in a virtual machine (--engine kvm); or scripted contexts on a "
        "processor in software (--engine model). Without PROGRAM: a mix of the built-in ones.",
    )
    parser.add_argument("program", nargs="*", metavar="PROGRAM",
                        help="built-in name, ELF file or flat .bin; with --engine model a script's name")  # fmt: skip
    parser.add_argument("--engine", choices=ENGINES, default="native", help="what runs them (native)")
    parser.add_argument("--kvm-vcpus", type=kvm_vcpus, metavar="N|each",
                        help="KVM vCPUs that the guests share, or one for each (as many as --processors)")  # fmt: skip
    parser.add_argument("--cpu", metavar="NAME", help="processor of --engine model (this one)")
    parser.add_argument("--vcpus", type=count, default=1000, metavar="N", help="how many contexts (1000)")
    parser.add_argument(
        "--quantum", type=quantum, default=100_000, metavar="TIME", help="preempt after (100us)"
    )
    parser.add_argument("--processors", type=count, default=1, metavar="N", help="host threads (1)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="varies the data (1)")
    parser.add_argument("--argument", type=word, metavar="N", help="amount of work for each program")
    parser.add_argument("--timeout", type=nanoseconds, default=10_000_000_000, metavar="TIME",
                        help="processor time that each vCPU may use (10s)")  # fmt: skip
    parser.add_argument(
        "--memory", type=size, default=DEFAULT_MEMORY, metavar="SIZE", help="of each vCPU (64k)"
    )
    parser.add_argument(
        "--guest", action="store_true", help="give the contexts guest VSOs instead of host VSOs"
    )
    parser.add_argument("--request", type=components, action="append", default=[], metavar="COMPONENT[,...]",
                        help="ask the kernel for components that it gives on request: tiledata")  # fmt: skip
    parser.add_argument(
        "--flat", action="store_true", help="PROGRAM files are flat binaries, whatever their name"
    )
    parser.add_argument("--no-audit", action="store_true", help="leave out the leak audit")
    parser.add_argument("--json", action="store_true", help=f"print JSON with the schema {SCHEMA}")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run and report; 1 where a result is wrong, a vCPU did not finish, or anything leaked, 3 where all that is wrong
    is that the audit could not judge each of its contexts.
    """
    outcome = execute(args)
    if args.json:
        output.document(describe(outcome))
    else:
        output.lines(text(outcome))
    return outcome.code


def execute(args: argparse.Namespace) -> Outcome:
    """Run the vCPUs, check their results, then look for leaks on an engine of its own."""
    choice = chosen(args)
    with closing(open_engine(choice, args)) as engine:
        manager = engine.manager
        scheduler = Scheduler(engine, quantum_ns=args.quantum, processors=args.processors)
        mix = choice.mix(engine, args)
        jobs = _start(engine, mix, args)
        started = time.perf_counter()
        with _Progress(len(jobs), quiet=args.json) as (advance, draw):
            report = scheduler.run((vcpu for _, vcpu in jobs), on_exit=lambda vcpu: advance(), on_pause=draw)
        seconds = time.perf_counter() - started
        name = engine.name
        told = manager.config.user_max.features if choice.modelled else offered(engine, args)
    leaks = AuditReport() if args.no_audit else _audit(choice, args)
    return Outcome(
        seconds=seconds,
        report=report,
        manager=manager,
        audit=leaks,
        jobs=jobs,
        wrong=[
            f"vCPU {number}: {problem}"
            for number, (job, vcpu) in enumerate(jobs)
            if (problem := _problem(job, vcpu))
        ],
        left_out=mix.left_out,
        processors=args.processors,
        engine=name,
        offered=told,
    )


def _start(
    engine: GuestEngine[Any, Any], mix: Mix[Any], args: argparse.Namespace
) -> list[tuple[Job[Any], Guest]]:
    """Make the vCPUs. Raises PoolExhausted with the first that there is no memory for."""
    kind = Kind.GUEST if args.guest else None
    jobs: list[tuple[Job[Any], Guest]] = []
    for job in mix.each(args.vcpus, args.seed, args.argument):
        try:
            vcpu = engine.vcpu(
                job.program, seed=job.seed, argument=job.argument, kind=kind, memory_size=args.memory
            )
        except (MemoryError, OSError, PoolExhausted) as error:
            raise PoolExhausted(
                f"no memory for vCPU {len(jobs)} of {args.vcpus}: {error or 'out of memory'}", help=_FEWER
            ) from error
        jobs.append((job, vcpu))
    return jobs


def _audit(choice: EngineChoice, args: argparse.Namespace) -> AuditReport:
    """Audit an engine of its own, whose contexts have time enough: ``--timeout`` is for the programs asked for."""
    patient = argparse.Namespace(**vars(args) | {"timeout": max(args.timeout, AUDIT_NS)})
    with closing(open_engine(choice, patient)) as engine:
        return (choice.audit or audit)(engine)


def describe(outcome: Outcome) -> dict[str, Any]:
    """Return the outcome as JSON-ready data; bytes, and nanoseconds."""
    counts, report = outcome.manager.statistics(), outcome.report
    median, high = _switch_times(report)
    static, largest = _static_sizes(outcome)
    return {
        "schema": SCHEMA,
        "engine": outcome.engine,
        "cpu": outcome.manager.config.cpu.name,
        "components": mask_names(outcome.offered),
        "vcpus": len(outcome.jobs),
        "processors": outcome.processors,
        "finished": outcome.ends["finished"],
        "wrong": len(outcome.wrong),
        "checked": sum(job.builtin is not None and vcpu.block is not None for job, vcpu in outcome.jobs),
        "ends": dict(outcome.ends),
        "faults": sum(count for kind, count in outcome.ends.items() if kind != "finished"),
        "switches": report.switches,
        "preemptions": report.preemptions,
        "yields": report.yields,
        "seconds": round(outcome.seconds, 6),
        "ns_per_switch": {"median": median, "p99": high, "samples": len(report.switch_ns)},
        "growths": counts.growths,
        "parks": counts.parks,
        "state_bytes_peak": counts.bytes_peak,
        "state_bytes_end": counts.bytes_held,
        "static_bytes": static * len(outcome.jobs),
        "largest_static_bytes": largest * len(outcome.jobs),
        "leaked_bytes": outcome.audit.leaked_bytes,
        "audit": {
            "canaries": outcome.audit.canaries,
            "searched_bytes": outcome.audit.searched_bytes,
            "leaks": [str(leak) for leak in outcome.audit.leaks[:SHOWN]],
            "damaged": outcome.audit.damaged[:SHOWN],
            "not_judged": outcome.audit.unjudged[:SHOWN],
            "components": mask_names(outcome.audit.components),
            "not_searched": outcome.audit.unsearched,
        },
        "problems": [*_ends_badly(outcome), *outcome.wrong][:SHOWN],
        "left_out": dict(outcome.left_out),
    }


def text(outcome: Outcome) -> list[str]:
    """Return the summary for people."""
    data = describe(outcome)
    static, largest = _static_sizes(outcome)
    cpu, peak = outcome.manager.config.cpu, data["state_bytes_peak"]
    times = data["ns_per_switch"]
    lines = [
        f"{data['vcpus']} vCPUs on {outcome.processors} processor{'s' * (outcome.processors > 1)}, "
        f"{cpu.vendor} family {cpu.family} model {cpu.model}, {mask_text(outcome.offered)}",
        "",
        f"  engine        {outcome.engine}{f': {cpu.name}, in software' if ENGINES[outcome.engine].modelled else ''}",
        f"  finished      {data['finished']} of {data['vcpus']} in {outcome.seconds:.2f} s, "
        f"{data['faults']} ended by a fault or limit",
        f"  results       {data['checked']} checked, {data['wrong']} wrong",
        f"  switches      {data['switches']}, of which {data['preemptions']} by preemption in guest code",
    ]
    if times["samples"]:
        lines.append(
            f"  one switch    median {duration(times['median'])}, 99th percentile {duration(times['p99'])}"
        )
    lines += [
        f"  state, peak   {peak} bytes: {peak / data['static_bytes']:.2f} of {static} for each, "
        f"{peak / data['largest_static_bytes']:.2f} of Sapphire Rapids' {largest}",
        f"  state, end    {data['state_bytes_end']} bytes",
        f"  growths       {data['growths']}, parks {data['parks']}",
    ]
    if outcome.audit.canaries:
        lines.append(
            f"  leak audit    {data['leaked_bytes']} bytes leaked, {len(outcome.audit.damaged)} contexts damaged "
            f"({outcome.audit.canaries} canaries, {outcome.audit.searched_bytes} bytes searched)"
        )
        lines += _searched(outcome.audit)
    lines += [f"  left out      {name}: {reason}" for name, reason in outcome.left_out]
    problems = [*_ends_badly(outcome), *outcome.wrong, *map(str, outcome.audit.leaks), *outcome.audit.damaged]
    problems += [f"not judged: {who}" for who in outcome.audit.unjudged]
    lines += [f"  ! {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  ! and {len(problems) - SHOWN} more")
    return lines


def _searched(report: AuditReport) -> list[str]:
    """Say what the audit was able to see."""
    lines = [f"  searched for  {mask_text(report.components)}"]
    lines += [f"  not searched  {name}: {reason}" for name, reason in report.unsearched.items()]
    if report.unjudged:
        lines.append(
            f"  not judged    {len(report.unjudged)} contexts of the audit, which says nothing of them"
        )
    return lines


def _problem(job: Job[Any], vcpu: Guest) -> str | None:
    """Say what is wrong with the result of a vCPU that finished."""
    if vcpu.exit is None or vcpu.exit.kind is not ExitKind.FINISHED or vcpu.block is None:
        return None
    return job.check(vcpu.block.result, vcpu.block.features)


def _ends_badly(outcome: Outcome) -> list[str]:
    """Return each way in which vCPUs ended other than by finishing, the most frequent first, with who did."""
    ways: dict[str, list[int]] = {}
    for number, (job, vcpu) in enumerate(outcome.jobs):
        if vcpu.exit is None or vcpu.exit.kind is not ExitKind.FINISHED:
            ways.setdefault(f"{job.program.name}: {vcpu.exit or 'did not end'}", []).append(number)
    return [
        f"vCPU {who[0]}{f' and {len(who) - 1} more' * (len(who) > 1)}: {way}"
        for way, who in sorted(ways.items(), key=lambda item: -len(item[1]))
    ]


def _switch_times(report: RunReport) -> tuple[float | None, float | None]:
    if not report.switch_ns:
        return None, None
    ordered = sorted(report.switch_ns)
    return round(statistics.median(ordered), 1), round(ordered[len(ordered) * 99 // 100], 1)


def _static_sizes(outcome: Outcome) -> tuple[int, int]:
    """Bytes of one context's blob of fixed size: on this processor, and on the largest of the catalog."""
    largest = FpuConfig.from_cpu(Cpu.catalog(LARGEST)).user_max.size
    return outcome.manager.config.user_default.size, largest


class _Progress:
    """A progress bar on a terminal, nothing elsewhere."""

    def __init__(self, total: int, *, quiet: bool) -> None:
        self.total = total
        self.ended = 0
        self.bar: Any = None
        if not quiet and sys.stderr.isatty():
            from rich.progress import Progress

            self.bar = Progress(console=output.console(stderr=True), transient=True)

    def __enter__(self) -> tuple[Callable[[], None], Callable[[], None]]:
        if self.bar:
            self.bar.start()
            self.task = self.bar.add_task("vCPUs finished", total=self.total)
        return self._advance, self._draw

    def __exit__(self, *error: object) -> None:
        if self.bar:
            self.bar.stop()

    def _advance(self) -> None:
        self.ended += 1

    def _draw(self) -> None:
        if self.bar:
            self.bar.update(self.task, completed=self.ended)
