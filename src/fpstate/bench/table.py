"""A report as text: the ratios with their limits, and below them what they are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any


def lines(report: dict[str, Any]) -> Iterator[str]:
    """Yield the report's lines for people."""
    machine, settings = report["machine"], report["settings"]
    yield f"{machine['signature']}, {machine['components']}; {machine['kernel']}, Python {machine['python']}"
    yield f"{settings['repeats']} samples of each, in turn, on processor {machine['pinned_to']}; the least / the median"
    yield ""
    yield from columns(ratio_rows(report))
    for title, rows in tables(report):
        yield ""
        yield title
        yield from columns(rows)
    for name, why in report["missing"].items():
        yield f"missing: {name}: {why}"
    yield f"not measured: {', '.join(report['not_measured'])}"


def ratio_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the ratios as rows, under a row of titles."""
    rows: list[tuple[str, ...]] = [("ratio", "measured", "medians", "at most", "met", "what")]
    for name, ratio in report["ratios"].items():
        if ratio["value"] is None:
            rows.append((name, "-", "-", f"{ratio['limit']:.2f}", "-", ratio["missing"]))
        else:
            figures = (f"{ratio['value']:.2f}", f"{ratio['median']:.2f}", f"{ratio['limit']:.2f}")
            case = f" ({ratio['case']})" if ratio["case"] else ""
            rows.append((name, *figures, "yes" if ratio["met"] else "NO", ratio["what"] + case))
    return rows


def tables(report: dict[str, Any]) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """Yield the sections' tables, each with a title; the first row has the columns' titles."""
    if "switch" in report:
        yield "Warm switches in C, ns", _by_case(report["switch"]["classes"], ("class",))
    if "python" in report:
        yield "Switches from Python, ns", _by_case(report["python"]["classes"], ("class",))
        yield "What the call from Python adds, ns", _overheads(report["python"]["call_overhead"])
        yield "Round robin by one call from Python, ns", _by_case(report["python"]["bulk"], ("core",))
    if "many" in report:
        walks = report["many"]["walks"]
        yield "Round robins, ns a switch", _by_case(walks, ("class", "order", "contexts"))
    if "vcpu" in report:
        yield "Round trip into a vCPU and back, ns", _by_case(report["vcpu"]["classes"], ("class",))
    if "memory" in report:
        yield "Resident memory", _memory(report["memory"])
    if "peers" in report:
        rows = [(row["name"], _pair(row), row["keeps"]) for row in report["peers"]["rows"]]
        yield "A switch among its peers, ns", [("switch", "ns", "floating-point state that it keeps"), *rows]


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows with their cells below each other."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _by_case(cases: Iterable[dict[str, Any]], keys: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return a row for each case: what it is, then each way's least and median."""
    cases = list(cases)
    ways = list(dict.fromkeys(way for case in cases for way in case["ns"]))
    rows = [(*keys, *ways)]
    for case in cases:
        names = (f"{case[key]:,}" if isinstance(case[key], int) else case[key] for key in keys)
        rows.append((*names, *(_pair(case["ns"][way]) if way in case["ns"] else "-" for way in ways)))
    return rows


def _overheads(cores: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("core", "added", "at most", "met", "class")]
    for name, added in cores.items():
        met = "yes" if added["met"] else "NO"
        rows.append((name, f"{added['ns']:.1f}", f"{added['limit']:.1f}", met, added["case"]))
    return rows


def _pair(figure: dict[str, float]) -> str:
    return f"{figure['min']:.1f} / {figure['median']:.1f}"


def _memory(memory: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("contexts", "bytes each", "in all")]
    rows += [(row["what"], f"{row['each']:,.0f}", f"{row['total']:,.0f}") for row in memory["rows"]]
    return rows
