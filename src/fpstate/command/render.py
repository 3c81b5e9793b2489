"""The report of ``fpstate show`` as text: plain on a pipe, drawn with rich on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final

from fpstate.arch.component import mask_text
from fpstate.command import tile_report
from fpstate.command.held_output import HeldOutput
from fpstate.command.register_report import Wanted

_GROUP: Final = 16
_LAYOUT_SOURCES: Final = {
    "note": "stated by the source",
    "given": "as the command line says",
    "host": "this processor's",
    "format": "fixed by the format",
}
_HOST_MASK: Final = "SRC010"


def render(threads: Iterable[dict[str, Any]], wanted: Wanted, out: HeldOutput) -> None:
    """Print one thread after the other, to ``out`` or on a terminal."""
    if sys.stdout.isatty() and _draw(threads, wanted):
        return
    gap = ""
    for thread in threads:
        out.write(gap + "".join(f"{line}\n" for line in _plain(thread, wanted)))
        gap = "\n"


def headline(thread: dict[str, Any]) -> str:
    """Return who it is and where its layout was learnt."""
    tid = "?" if thread["tid"] is None else thread["tid"]
    name = f" {thread['name']}" if thread["name"] else ""
    source = thread["layout_source"]
    learnt = _inferred(thread) if source == "inferred" else _LAYOUT_SOURCES.get(source)
    layout = f"layout_source {source}" + (f": {learnt}" if learnt else "")
    return f"thread {tid}{name}  {thread['machine']}, {thread['size']} bytes, {layout}"


def _inferred(thread: dict[str, Any]) -> str:
    if thread["xcr0"] is not None:
        return "INFERRED from XCR0 and size"
    if any(finding["id"] == _HOST_MASK and finding["found"] != "0x0" for finding in thread["findings"]):
        return "INFERRED from the host's mask"
    return "INFERRED from size and header, as no XCR0 is stated"


def facts(thread: dict[str, Any]) -> str:
    """Return the bitmaps in words."""
    masks = (("XCR0", thread["xcr0"]), ("XSTATE_BV", thread["xstate_bv"]))
    parts = [f"{name} {value}" for name, value in masks if value is not None]
    used = "not known" if thread["in_use"] is None else mask_text(int(thread["in_use"], 16))
    return ", ".join([*parts, f"in use: {used}"])


def rows(thread: dict[str, Any], wanted: Wanted) -> Iterator[tuple[str, str, str]]:
    """Yield name, bits and meaning of each register."""
    for name, bits in thread["registers"].items():
        meaning = thread["decoded"].get(name)
        if not wanted.values:
            yield name, "(left out)", ""
        elif tile_report.is_tile(name) and meaning is not None:
            yield from _tile(name, meaning)
        elif isinstance(meaning, list):
            yield name, " ".join(_lane(lane) for lane in meaning), ""
        else:
            yield name, grouped(bits), _words(name, meaning)


def _tile(name: str, meaning: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield a tile's shape, then its rows."""
    yield name, tile_report.tile_words(meaning), ""
    for index, row in enumerate(meaning["data"]):
        bits = _aligned(row) if isinstance(row, str) else " ".join(_lane(lane) for lane in row)
        yield f" row {index}", bits, ""


def grouped(bits: str) -> str:
    """Return a hexadecimal number without its leading zero groups, an underscore between each 64 bits."""
    digits = bits.removeprefix("0x")
    if len(digits) <= _GROUP + 4:
        return bits
    return _aligned(digits.lstrip("0") or "0")


def _aligned(bits: str) -> str:
    """Return a hexadecimal number with all its digits, an underscore between each 64 bits: rows stand in columns."""
    digits = bits.removeprefix("0x")
    first = len(digits) % _GROUP
    groups = [digits[:first]] if first else []
    return "0x" + "_".join([*groups, *(digits[at : at + _GROUP] for at in range(first, len(digits), _GROUP))])


def finding_line(finding: dict[str, Any]) -> str:
    """Return a finding in one line."""
    where = "" if finding["offset"] is None else f" at byte {finding['offset']}"
    return f"{finding['severity']} {finding['id']}{where}: {finding['message']}"


def _lane(lane: int | float | str) -> str:
    return lane if isinstance(lane, str) else f"{lane!r}"


def _words(name: str, meaning: Any) -> str:  # noqa: ANN401 - what describe() made of a register
    if meaning is None:
        return ""
    if name.startswith("st"):
        return f"{meaning['class']} {meaning['value']} ({meaning['decimal']})"
    if name == "pkru":
        restricted = [f"key {key} {access}" for key, access in meaning.items() if access != "read-write"]
        return ", ".join(restricted) or "every key read-write"
    if name == "tilecfg":
        return tile_report.configuration_words(meaning)
    if name == "ftag":
        held = [f"{register} {tag}" for register, tag in meaning.items() if tag != "empty"]
        return ", ".join(held) or "all empty"
    return " ".join(_field(key, value) for key, value in meaning.items() if value not in (False, ""))


def _field(name: str, value: Any) -> str:  # noqa: ANN401
    return name if value is True else f"{name}={value}"


def _plain(thread: dict[str, Any], wanted: Wanted) -> Iterator[str]:
    yield headline(thread)
    yield f"  {facts(thread)}"
    yield from (f"  {finding_line(finding)}" for finding in thread["findings"])
    table = list(rows(thread, wanted))
    if not table:
        yield "  no register to show: those known are all initial"
    width = max((len(name) for name, _, _ in table), default=0)
    for name, bits, meaning in table:
        yield f"  {name:{width}}  {bits}  {meaning}".rstrip()


def _draw(threads: Iterable[dict[str, Any]], wanted: Wanted) -> bool:
    """Draw on the terminal with rich, which honours NO_COLOR; False where rich is not there."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        return False
    console = Console(highlight=False, markup=False, emoji=False)
    colours = {"error": "bold red", "warning": "yellow", "note": "dim"}
    for thread in threads:
        console.print(headline(thread), style="bold")
        console.print(f"  {facts(thread)}")
        for finding in thread["findings"]:
            console.print(f"  {finding_line(finding)}", style=colours[finding["severity"]])
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2))
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="fold")
        table.add_column(overflow="fold", style="dim")
        for row in rows(thread, wanted):
            table.add_row(*row)
        if table.row_count:
            console.print(table)
        else:
            console.print("  no register to show: those known are all initial")
        console.print()
    return True
