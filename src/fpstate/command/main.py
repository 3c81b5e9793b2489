"""The command line: ``fpstate VERB``. Each verb is a module, imported when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final

from fpstate.command.output import Parser, message, with_clean_streams
from fpstate.errors import FpStateError

VERBS: Final = (
    *("run", "show", "cpu", "threads", "set", "gdb", "convert", "diff", "check", "kvm", "include", "bench"),
)
"""In the order of the help text; each is a module here with ``add_parser`` and ``run``."""

_EPILOG = """exit codes: 0 done and clean; 1 findings (wrong, leaked, invalid); 2 usage or I/O;
3 unsupported here (processor, kernel, permission); 4 cannot decide"""


@with_clean_streams
def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit code; the console script of the package."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if sys.stdout is None:  # closed by whoever started us
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    try:
        args = _parser(argv).parse_args(argv)
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except FpStateError as error:
        message(f"fpstate: {error}")
        if error.help:
            message(f"  try: {error.help}")
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except OSError as error:
        message(f"fpstate: {error}")
        return 2
    except KeyboardInterrupt:
        return 130


class _Version(argparse.Action):
    """Looks the version up when it is asked for: importlib.metadata takes longer to import than all of argparse."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"fpstate {version('fpstate')}")
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


if __name__ == "__main__":
    sys.exit(main())
