"""``fpstate convert``: a state for another processor or in another format, and what that loses."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any, Final

from fpstate.arch import Cpu, Layout
from fpstate.arch.component import component_name
from fpstate.command import output
from fpstate.command.quantity import bitmap
from fpstate.command.state_file import processor, read_state, write_private
from fpstate.errors import ConversionLoss, LayoutError
from fpstate.image import Image
from fpstate.image.convert import Change, Converted, Loss, convert
from fpstate.image.legacy import FSAVE_LAYOUT, FXSAVE_LAYOUT, FXSAVE_SIZE, to_fsave
from fpstate.source.raw_format import FORMATS, IMAGES

SCHEMA: Final = "fpstate-convert/1"
_LEGACY_LAYOUTS: Final = {"fxsave": FXSAVE_LAYOUT, "fsave": FSAVE_LAYOUT}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb ``convert`` to the command line."""
    parser = subparsers.add_parser(
        "convert",
        help="rewrite a state for another processor or in another format",
        description="Registers keep their values. What the target cannot hold is refused (exit code 1) unless it is"
        " initial or named by --drop. The output holds registers, which may be secret: it is made readable by its"
        " owner alone.",
    )
    parser.add_argument("input", metavar="IN", help="raw bytes, - for standard input, a core or a PID")
    parser.add_argument("output", metavar="OUT", help="the file to write, or - for standard output")
    parser.add_argument("--cpu", metavar="NAME", help="both --from-cpu and --to-cpu")
    parser.add_argument(
        "--from-cpu", metavar="NAME", help="the processor that made the state: of the catalog, or host"
    )
    parser.add_argument(
        "--from-format", choices=FORMATS, help="of raw bytes; told from length and header if not given"
    )
    parser.add_argument("--thread", metavar="TID", type=int, help="which thread of a core or process")
    parser.add_argument(
        "--to-cpu", metavar="NAME", help="the processor to write for; as --from-cpu if not given"
    )
    parser.add_argument("--to-format", choices=IMAGES, default="std", help="std if not given")
    parser.add_argument(
        "--to-mask",
        metavar="MASK",
        type=bitmap,
        help="the components to lay out; all of the processor's if not given",
    )
    parser.add_argument(
        *("--drop", "-d"), metavar="NAME,...", action="append", default=[],
        help="components or registers that may be lost, such as pkru or mxcsr; repeatable",
    )  # fmt: skip
    parser.add_argument("--no-values", action="store_true", help="leave values out of the record of losses")
    parser.add_argument(
        "--json", action="store_true", help=f"print the record as JSON with the schema {SCHEMA}"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the converted state; 1 where that would lose something that was not named."""
    from_cpu, to_cpu = (
        processor(args.from_cpu or args.cpu),
        processor(args.to_cpu or args.cpu or args.from_cpu),
    )
    image = read_state(args.input, cpu=from_cpu, format=args.from_format, thread=args.thread)
    layout = _target(args.to_format, to_cpu, args.to_mask, image)
    dropped = [name for names in args.drop for name in names.split(",") if name]
    refused: ConversionLoss | None = None
    try:
        converted: Converted | None = convert(
            image,
            layout,
            drop=dropped,
            mxcsr_mask=None if to_cpu is None else to_cpu.mxcsr_mask,
            narrow_pointers=args.to_format == "fsave",
        )
    except ConversionLoss as error:
        converted, refused = None, error
    if converted is not None:
        write_private(args.output, encode(converted.image, args.to_format))
    losses = converted.losses if converted is not None else refused.losses if refused is not None else ()
    changes = converted.changes if converted is not None else ()
    if args.json:
        report = describe(args, layout, losses, changes, written=converted is not None)
        output.document(report, file=sys.stderr if args.output == "-" else sys.stdout)
    else:
        for line in lines(losses, changes, values=not args.no_values, lost=converted is not None):
            output.message(f"fpstate: {line}")
        if refused is not None:
            output.message(f"  try: {refused.help.replace(': ', ' with --drop ', 1)}")
    return 0 if converted is not None else 1


def encode(image: Image, format: str) -> bytes:
    """Return an image in its target's layout as the bytes of a format."""
    if format == "fsave":
        return to_fsave(image)
    return image.to_bytes()[:FXSAVE_SIZE] if format == "fxsave" else image.to_bytes()


def describe(
    args: argparse.Namespace,
    layout: Layout,
    losses: tuple[Loss, ...],
    changes: tuple[Change, ...],
    *,
    written: bool,
) -> dict[str, Any]:
    """Return the record as JSON-ready data; values are hexadecimal strings, null with ``--no-values``."""
    shown = _hidden if args.no_values else hex
    return {
        "schema": SCHEMA,
        "input": args.input,
        "output": args.output,
        "written": written,
        "format": args.to_format,
        "layout": layout.to_dict(),
        "losses": [
            {
                "component": component_name(loss.component),
                "reason": loss.reason,
                "registers": [
                    {"name": each.name, "value": shown(each.value), "becomes": shown(each.becomes)}
                    for each in loss.registers
                ],
            }
            for loss in losses
        ],
        "changes": [
            {"what": each.what, "before": hex(each.before), "after": hex(each.after), "reason": each.reason}
            for each in changes
        ],
    }


def lines(
    losses: tuple[Loss, ...], changes: tuple[Change, ...], *, values: bool, lost: bool
) -> Iterator[str]:
    """Yield the record as text."""
    for loss in losses:
        yield f"{'lost' if lost else 'would be lost'}: {component_name(loss.component)}: {loss.reason}"
        for each in loss.registers:
            yield f"  {each.name}" + (f" = {each.value:#x}, becomes {each.becomes:#x}" if values else "")
    for change in changes:
        yield f"note: {change}"


def _hidden(_: int) -> None:
    return None


def _target(format: str, cpu: Cpu | None, mask: int | None, image: Image) -> Layout:
    if format in _LEGACY_LAYOUTS:
        return _LEGACY_LAYOUTS[format]
    if cpu is None:
        raise LayoutError(
            f"the target's processor is not known, and {format} depends on it",
            help="--to-cpu NAME, or --to-cpu host",
        )
    if format == "std":
        return Layout.standard(cpu, mask)
    supervisor = image.layout.mask & cpu.supervisor_mask
    return Layout.compacted(cpu, cpu.user_mask | supervisor if mask is None else mask)
