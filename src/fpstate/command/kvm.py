"""``fpstate kvm``: guest states of real vCPUs: looked at, saved, loaded, reset."""

from __future__ import annotations

import argparse
import importlib
from typing import Final

ACTIONS: Final = ("info", "save", "load", "reset", "selftest")
"""In the order of the help text; each is a module ``kvm_ACTION`` beside this one."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb ``kvm`` and its actions to the command line."""
    parser = subparsers.add_parser(
        "kvm",
        help="save, load and reset the states of KVM guests, and show what KVM can do",
        description="Whole states of KVM vCPUs: image, XCR0, IA32_XSS, IA32_XFD and the layout's origin in one file."
        " Without a usable /dev/kvm: exit code 3 and the reason.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for action in ACTIONS:
        importlib.import_module(f"fpstate.command.kvm_{action}").add_parser(actions)
