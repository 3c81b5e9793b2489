"""Recorded answers to images, held against the rules: XRSTOR, sigreturn, ptrace and KVM.

``check_file(file, machine)`` foretells every case of a file and tells what came out differently. ``file`` is an
``OracleFile`` of any machine, ``machine`` its machine.json; nothing here belongs to one processor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from copy_judge import Kvm, Ptrace
from image_judge import Foretell, Judge
from replay_report import MANY, Report, replayed
from restore_judge import Sigreturn, Xrstor

from fpstate.arch.component import USER_DYNAMIC
from fpstate.image.consumer import Target
from fpstate.image.rules import predict
from recorded import OracleFile, cpu_of

_JUDGES: Final[Mapping[str, type[Judge]]] = {
    "xrstor": Xrstor,
    "sigreturn": Sigreturn,
    "ptrace": Ptrace,
    "kvm": Kvm,
}


def target_of(header: Mapping[str, Any], machine: Mapping[str, Any]) -> Target:
    """Return the target that a file's answers belong to."""
    permission = header.get("permission", 0)
    target = Target.from_cpu(
        cpu_of(dict(machine)),
        permitted=USER_DYNAMIC if permission else 0,
        used=0 if permission == 2 else USER_DYNAMIC,
    )
    return target.with_(guest_xcr0=0) if header.get("cpuid") == "none" else target


def check_file(
    file: OracleFile,
    machine: Mapping[str, Any],
    *,
    target: Target | None = None,
    foretell: Foretell = predict,
    most: int = MANY,
) -> Report:
    """Foretell every case of a file, and compare; ``target`` and ``foretell`` may be changed to see what is noticed."""
    judge = _JUDGES[file.kind](file, machine, target or target_of(file.header, machine), foretell)
    report = replayed(file, judge.problem, most=most)
    report.counts = judge.counts
    return report
