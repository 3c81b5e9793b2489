"""``fpstate check``: who would take an image, what each would lose of it, and why not."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, Final, NamedTuple, get_args

from fpstate.arch import Cpu, Layout
from fpstate.arch.component import COMPACTED_BIT, USER_DYNAMIC, component_name, mask_names
from fpstate.command.finding_report import finding_data, hexadecimal
from fpstate.command.held_output import HeldOutput, write_json
from fpstate.command.quantity import bitmap
from fpstate.command.state_file import write_private
from fpstate.errors import ImageError, SourceError
from fpstate.image.consumer import WHOLE_IMAGE, Consumer, Target
from fpstate.image.finding import Finding, Severity
from fpstate.image.repair import Leftovers, Repair
from fpstate.image.rules import Verdict, check, predict
from fpstate.image.sanitise import Sanitised, sanitise
from fpstate.source.open import READERS, open_source, reader_of
from fpstate.source.stream import open_stream
from fpstate.source.thread import ThreadState
from fpstate.source.tile_use import TileUse, of_bytes, of_thread

SCHEMA: Final = "fpstate-check/1"
_OTHER_FORMAT: Final = frozenset({"XS013", "XS014"})
_XCOMP_BV: Final = slice(520, 528)
_LONGEST: Final = 1 << 20
_GUESTS: Final = frozenset({Consumer.KVM, Consumer.KVM_FPU})


class Given(NamedTuple):
    """An image to check: the producer's layout where it is known, and what it shows of its thread's use of tiles."""

    name: str
    data: bytes
    layout: Layout | None
    use: TileUse


@dataclass(frozen=True, slots=True)
class Examined:
    """One image, and what one consumer after the other would do with it on ``target``.

    ``use`` is what the image shows of TILEDATA; None where that was said, or does not matter on the target.
    """

    name: str
    data: bytes
    layout: Layout | None
    answers: tuple[tuple[Verdict, list[Finding]], ...]
    target: Target
    use: TileUse | None = None

    def counting(self, *, every: bool) -> Iterator[Finding]:
        """Yield the findings that the exit code is for: without ``every``, not those of who takes another format."""
        for _, findings in self.answers:
            if every or not _OTHER_FORMAT & {finding.id for finding in findings}:
                yield from findings


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb ``check`` to the command line."""
    parser = subparsers.add_parser(
        "check",
        help="say who would refuse an image, or lose part of it, and why",
        description="Holds an image to the rules of whoever loads it, and to lints. Exit code 1: one of them refuses"
        " it (without --for, those that take its format); with --strict, also where something would be lost.",
    )
    parser.add_argument("image", metavar="IMAGE", help="raw bytes, - for standard input, a core or a PID")
    parser.add_argument(
        "--for", dest="consumer", choices=[each.value for each in Consumer], help="one consumer alone"
    )
    parser.add_argument(
        "--cpu", metavar="NAME", help="the processor that is to load it: of the catalog, or host"
    )
    parser.add_argument(
        "--from-cpu", metavar="NAME", help="the processor that made it; as --cpu if not given"
    )
    parser.add_argument(
        "--format", choices=("std", "compacted"), help="of raw bytes; what the header says if not given"
    )
    parser.add_argument("--thread", metavar="TID", type=int, help="which thread of a core or process")
    parser.add_argument(
        "--mask",
        metavar="MASK",
        type=bitmap,
        help="what XRSTOR is asked for (EDX:EAX); everything if not given",
    )
    parser.add_argument(
        "--amx", action=argparse.BooleanOptionalAction, default=None,
        help="the task was given TILEDATA, which Linux gives on request only, and used it; told from a thread's state"
        " or a signal frame if not given",
    )  # fmt: skip
    parser.add_argument(
        "--fix",
        metavar="OUT",
        help="write an image that is taken, by XRSTOR or as --for says, and list each change",
    )
    parser.add_argument(
        "--leftovers", choices=get_args(Leftovers), default="auto",
        help="with --fix: state, clear or keep data in components that are not stated; auto states it, but clears"
        " it in signal frames and compacted images",
    )  # fmt: skip
    parser.add_argument("--strict", action="store_true", help="warnings count as findings too")
    parser.add_argument("--json", action="store_true", help=f"print JSON with the schema {SCHEMA}")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the verdicts; raises OSError, SourceError, UnknownCpu, LayoutError, ImageError for a wrong --format."""
    target = _target(args, USER_DYNAMIC if args.amx else 0)
    consumers = [Consumer(args.consumer)] if args.consumer else list(WHOLE_IMAGE)
    fixed: Sanitised | None = None
    images: Iterable[Examined] = (_examined(args, given, consumers, target) for given in _images(args))
    if args.fix:
        images = [_only(args, images)]
        fixed = _fix(args, images[0], target)
    bad = {Severity.ERROR, Severity.WARNING} if args.strict else {Severity.ERROR}
    reported = _Counted(images, bad, every=bool(args.consumer))
    with HeldOutput(sys.stderr if args.fix == "-" else sys.stdout) as out:
        if args.json:
            write_json(
                out,
                _head(target),
                "images",
                map(_image_report, reported),
                tail=lambda: {"fix": _fix_report(fixed)},
                indent=2,
            )
        else:
            for image in reported:
                out.write("".join(f"{line}\n" for line in _text(image)))
            if fixed is not None:
                out.write("".join(f"{line}\n" for line in _changes(args.fix, fixed)))
    return int(reported.found)


class _Counted:
    """Images one by one; ``found`` says afterwards whether one has a finding of those severities."""

    def __init__(self, images: Iterable[Examined], severities: set[Severity], *, every: bool) -> None:
        self.found = False
        self._images, self._severities, self._every = images, severities, every

    def __iter__(self) -> Iterator[Examined]:
        for image in self._images:
            findings = image.counting(every=self._every)
            self.found |= any(finding.severity in self._severities for finding in findings)
            yield image


def _only(args: argparse.Namespace, images: Iterable[Examined]) -> Examined:
    """Return the one image that there is; raises SourceError for more."""
    first, *others = islice(images, 2)
    if others:
        count = 2 + sum(1 for _ in images)
        raise SourceError(
            args.image, f"{count} threads, and --fix writes one image", help="name one: --thread"
        )
    return first


def _target(args: argparse.Namespace, permitted: int) -> Target:
    target = Target.from_cpu(_processor(args.cpu), permitted=permitted)
    return target if args.mask is None else target.with_(requested=args.mask)


def _examined(args: argparse.Namespace, given: Given, consumers: list[Consumer], target: Target) -> Examined:
    """Examine an image for the thread that it is of, as far as it shows; without AMX on the target nothing matters."""
    use = given.use if args.amx is None and target.xcr0 & USER_DYNAMIC else None
    own = target if use is None else _target(args, use.components)
    return replace(examine(given.name, given.data, given.layout, consumers, own, target), use=use)


def examine(
    name: str,
    data: bytes,
    layout: Layout | None,
    consumers: list[Consumer],
    target: Target,
    guest: Target | None = None,
) -> Examined:
    """Return what each consumer would say; ``layout`` is the producer's where it is known.

    ``guest`` is the target of those that load a guest's state: a process asks for its guests' components apart.
    """
    answers = []
    for consumer in consumers:
        on = guest if guest is not None and consumer in _GUESTS else target
        answers.append((predict(data, consumer, on, layout=layout), check(data, consumer, on, layout=layout)))
    return Examined(name, data, layout, tuple(answers), target)


def _processor(name: str | None) -> Cpu:
    return Cpu.host() if name in (None, "host") else Cpu.catalog(str(name))


def _images(args: argparse.Namespace) -> Iterator[Given]:
    """Yield each image: raw bytes as they stand, or those of threads."""
    maker = _processor(args.from_cpu) if args.from_cpu else None
    if args.image.isascii() and args.image.isdigit():
        yield from _of_threads(args, open_source(args.image))
        return
    with closing(open_stream(args.image)) as stream:
        reader = reader_of(stream)
        if reader is not READERS[-1]:
            yield from _of_threads(args, reader.states(stream, maker))
            return
        data = stream.read_at(0, _LONGEST + 1)
    if len(data) > _LONGEST:
        raise SourceError(args.image, f"more than {_LONGEST} bytes are no single image")
    _expect_format(data, args.format)
    yield Given(args.image, data, _layout(data, maker), of_bytes(data))


def _of_threads(args: argparse.Namespace, threads: Iterable[ThreadState]) -> Iterator[Given]:
    none = True
    for thread in threads:
        if args.thread not in (None, thread.tid):
            continue
        none = False
        name = args.image if thread.tid is None else f"{args.image}:{thread.tid}"
        yield Given(name, thread.image.to_bytes(), thread.image.layout, of_thread(thread.image.xstate_bv))
    if none:
        raise SourceError(
            args.image, "no such thread" if args.thread is not None else "no thread with a state"
        )


def _expect_format(data: bytes, expected: str | None) -> None:
    found = "compacted" if int.from_bytes(data[_XCOMP_BV], "little") & COMPACTED_BIT else "std"
    if expected not in (None, found):
        raise ImageError(
            f"XCOMP_BV at byte {_XCOMP_BV.start} says {found}, not {expected}: whoever loads it goes by that",
            offset=_XCOMP_BV.start,
            found=int.from_bytes(data[_XCOMP_BV], "little"),
            help="leave --format out to check the image as it is",
        )


def _layout(data: bytes, maker: Cpu | None) -> Layout | None:
    if maker is None:
        return None
    made_by = Target.from_cpu(maker)
    xcomp_bv = int.from_bytes(data[_XCOMP_BV], "little")
    return made_by.compacted(xcomp_bv) if xcomp_bv & COMPACTED_BIT else made_by.standard


def _fix(args: argparse.Namespace, image: Examined, guest: Target) -> Sanitised:
    consumer = Consumer(args.consumer) if args.consumer else Consumer.XRSTOR
    target = guest if consumer in _GUESTS else image.target
    done = sanitise(image.data, consumer, target, layout=image.layout, leftovers=args.leftovers)
    write_private(args.fix, done.data)
    return done


def _text(image: Examined) -> Iterator[str]:
    yield f"{image.name}: {len(image.data)} bytes"
    if image.use is not None and image.use.reason:
        other = " (--no-amx: it is not)" if image.use.components else " (--amx: it is)"
        yield f"  TILEDATA: {image.use.reason}" + ("" if image.use.known else other)
    shared = _shared(image)
    width = max(len(verdict.consumer.title) for verdict, _ in image.answers)
    for verdict, findings in image.answers:
        yield f"  {verdict.consumer.title:{width}}  {_verdict_text(verdict)}"
        yield from (
            line for finding in findings if finding not in shared for line in _lines(finding, "      ")
        )
    if shared:
        yield "  whoever loads it:" if len(image.answers) > 1 else ""
    yield from (line for finding in shared for line in _lines(finding, "      "))


def _shared(image: Examined) -> list[Finding]:
    """Return the findings that every consumer shares, where there is more than one."""
    if len(image.answers) < 2:
        return []
    first, *others = (findings for _, findings in image.answers)
    return [finding for finding in first if all(finding in findings for findings in others)]


def _verdict_text(verdict: Verdict) -> str:
    if not verdict.accepted:
        return f"{verdict} ({verdict.answer})"
    lessened = verdict.fx_only and verdict.consumer in WHOLE_IMAGE
    return f"{verdict} (as an FXSAVE image)" if lessened else str(verdict)


def _lines(finding: Finding, indent: str) -> Iterator[str]:
    where = "" if finding.offset is None else f" at byte {finding.offset}"
    yield f"{indent}{finding.id} {finding.severity.value}{where}: {finding.message} [{finding.source}]"
    if finding.help:
        yield f"{indent}  try: {finding.help}"


def _changes(target: str, done: Sanitised) -> Iterator[str]:
    yield f"{target}: {len(done.data)} bytes written, {len(done.repairs)} changes"
    for repair in done.repairs:
        values = "" if repair.before is None else f": {repair.before:#x} becomes {repair.after:#x}"
        where = "" if repair.offset is None else f" at byte {repair.offset}"
        yield f"  {repair.rule}{where}: {repair.message}{values}"


def _head(target: Target) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "target": {
            "cpu": target.cpu.name,
            **{name: hex(getattr(target, name)) for name in ("xcr0", "xss", "user_xfeatures", "mxcsr_mask")},
        },
    }


def _image_report(image: Examined) -> dict[str, Any]:
    return {
        "name": image.name,
        "bytes": len(image.data),
        "user_xfeatures": hex(image.target.user_xfeatures),
        "tiledata": _tile_use(image.use),
        "verdicts": [_answer(verdict, findings) for verdict, findings in image.answers],
    }


def _fix_report(fixed: Sanitised | None) -> dict[str, Any] | None:
    return None if fixed is None else {"bytes": len(fixed.data), "repairs": _repairs(fixed.repairs)}


def _tile_use(use: TileUse | None) -> dict[str, Any] | None:
    if use is None or not use.reason:
        return None
    return {"used": bool(use.components), "known": use.known, "reason": use.reason}


def _answer(verdict: Verdict, findings: list[Finding]) -> dict[str, Any]:
    return {
        "consumer": verdict.consumer.value,
        "verdict": str(verdict),
        "accepted": verdict.accepted,
        "answer": verdict.answer or None,
        "fx_only": verdict.fx_only,
        **{
            name: list(mask_names(getattr(verdict, name)))
            for name in ("loaded", "initialised", "kept", "lost", "reported")
        },
        "mxcsr": None if verdict.mxcsr is None else hex(verdict.mxcsr),
        "mxcsr_lost": verdict.mxcsr_lost,
        "reported_mxcsr": None if verdict.reported_mxcsr is None else hex(verdict.reported_mxcsr),
        "pkru": None if verdict.pkru is None else hex(verdict.pkru),
        "findings": [finding_data(finding) for finding in findings],
    }


def _repairs(repairs: tuple[Repair, ...]) -> list[dict[str, Any]]:
    return [
        asdict(repair)
        | {
            "before": hexadecimal(repair.before),
            "after": hexadecimal(repair.after),
            "component": None if repair.component is None else component_name(repair.component),
        }
        for repair in repairs
    ]
