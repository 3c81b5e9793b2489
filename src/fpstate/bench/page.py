"""The measured part of a page of the documentation, made of a report: ``python -m fpstate.bench.page JSON PAGE``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from fpstate.source.durable import FIGURES, replace_file

from .table import ratio_rows, tables

BEGIN: Final = "<!-- measured: begin, by make performance -->"
END: Final = "<!-- measured: end -->"


def markdown(report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines: the machine, the ratios, and the tables that they come from."""
    yield from _machine(report)
    yield ""
    yield "### Ratios"
    yield ""
    yield from _table(
        [(f"`{row[0]}`" if at else row[0], *row[1:]) for at, row in enumerate(ratio_rows(report))]
    )
    for title, rows in tables(report):
        yield ""
        yield f"### {title}"
        yield ""
        yield from _table(rows)
    yield ""
    missing = [f"{name}: {why}" for name, why in report["missing"].items()]
    yield f"Missing: {'; '.join(missing) or 'nothing'}. Not measured: {', '.join(report['not_measured'])}."


def replaced(page: str, report: dict[str, Any]) -> str:
    """Return the page with what stands between its two marks made anew. Raises ValueError where it lacks them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN} or {END}")
    return "\n".join((before + begin, "", *markdown(report), "", end + after))


def renew(page: Path, report: Path) -> None:
    """Write the page anew, with a report in JSON. Raises ValueError, OSError, and SourceError as output files do."""
    text = replaced(page.read_text("utf-8"), json.loads(report.read_text("utf-8")))
    replace_file(page, text.encode(), mode=FIGURES)


def _machine(report: dict[str, Any]) -> Iterator[str]:
    machine, settings = report["machine"], report["settings"]
    kind = "a virtual machine" if machine["virtual_machine"] else "no virtual machine"
    stolen = machine["stolen_ms"]
    yield f"{machine['processor']}: {machine['signature']}, {kind}; {machine['components'].replace('|', ', ')}."
    yield (
        f"{machine['kernel']}, {machine['c_library']}, {machine['compiler']}, {machine['python']}. Frequency governor: "
        f"{machine['governor'] or 'not shown'}. Transparent huge pages: {machine['huge_pages']}."
    )
    yield (
        f"{settings['repeats']} samples of each, in turn, on processor {machine['pinned_to']}, one of "
        f"{machine['processors']}. Load before: {machine['load'][0]}; taken by the hypervisor: {stolen} ms."
    )


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    head, *body = rows
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from (f"| {' | '.join(row)} |" for row in body)


if __name__ == "__main__":
    renew(Path(sys.argv[2]), Path(sys.argv[1]))
