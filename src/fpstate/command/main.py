"""The command line: ``fpstate VERB``. Each verb is a module, imported when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Final

from fpstate.command.output import Parser, lines, message, with_clean_streams
from fpstate.command.streams import abandon, standard_streams
from fpstate.errors import FpStateError

VERBS: Final = (
    *("run", "show", "cpu", "threads", "set", "gdb", "convert", "diff", "check", "kvm", "include", "bench"),
)
"""In the order of the help text; each is a module here with ``add_parser`` and ``run``."""

_EPILOG = """exit codes: 0 done and clean; 1 findings (wrong, leaked, invalid); 2 usage or I/O;
3 unsupported here (processor, kernel, permission); 4 cannot decide"""


def main(argv: Sequence[str] | None = None, *, before_run: Callable[[], None] | None = None) -> int:
    """Run a verb and return the exit code. ``before_run`` is called once its modules are imported."""
    with standard_streams():
        return _run(sys.argv[1:] if argv is None else list(argv), before_run)


@with_clean_streams
def _run(argv: list[str], before_run: Callable[[], None] | None) -> int:
    try:
        args = _parser(argv).parse_args(argv)
        if before_run:
            before_run()
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except FpStateError as error:
        message(f"fpstate: {error}")
        if error.help:
            message(f"  try: {error.help}")
        return error.exit_code
    except BrokenPipeError:
        abandon(sys.stdout)
        return 2
    except OSError as error:
        message(f"fpstate: {error}")
        abandon(sys.stdout)
        return 2
    except MemoryError:
        message("fpstate: out of memory")
        return 2
    except KeyboardInterrupt:
        return 130


class _Version(argparse.Action):
    """Looks the version up when it is asked for: importlib.metadata takes longer to import than all of argparse."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        lines([f"fpstate {version('fpstate')}"])
        sys.stdout.flush()
        parser.exit()


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = Parser(
        prog="fpstate",
        description="Floating-point and vector state as an object: sized, saved, switched, isolated, looked into.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    subparsers = parser.add_subparsers(metavar="VERB", required=True)
    asked = [verb for verb in VERBS if verb in argv[:1]]
    for verb in asked or VERBS:
        importlib.import_module(f"fpstate.command.{verb}").add_parser(subparsers)
    return parser
