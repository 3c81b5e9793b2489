"""``fpstate cpu``: what a processor's state components are, and what may be used of them."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from fpstate.arch import COMPONENTS, Cpu, Layout
from fpstate.arch.component import LEGACY_PLACES, component_name, components_in, mask_text
from fpstate.command import output
from fpstate.errors import FpStateError
from fpstate.vso.config import FpuConfig, StateConfig
from fpstate.vso.kernel_permission import KernelPermission, read_kernel_permission
from fpstate.vso.signal_frame import minsigstksz

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA = "fpstate-cpu/1"
_INSTRUCTIONS = ("XSAVE", "OSXSAVE", "XSAVEOPT", "XSAVEC", "XGETBV1", "XSAVES", "XFD")
_CONFIGS = ("kernel_max", "kernel_default", "guest_default", "user_max", "user_default")
_COLUMNS = ("#", "component", "", "size", "standard", "XSAVEC", "XSAVES", "flags", "what")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb ``cpu`` to the command line."""
    parser = subparsers.add_parser("cpu", help="show a processor's state components, sizes and permissions")
    parser.add_argument("--cpu", metavar="NAME", help="a processor of the catalog instead of this one")
    parser.add_argument("--json", action="store_true", help=f"print JSON with the schema {SCHEMA}")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report; raises UnknownCpu for a name, and UnsupportedHere where the host cannot be asked."""
    report = describe(Cpu.catalog(args.cpu) if args.cpu else Cpu.host())
    if args.json:
        output.document(report)
    elif not (sys.stdout.isatty() and _draw(report)):
        output.lines(_plain(report))
    return 0


def describe(cpu: Cpu) -> dict[str, Any]:
    """Return everything that the verb shows, as JSON-ready data; bitmaps are hexadecimal strings."""
    config = FpuConfig.from_cpu(cpu)
    is_host = cpu.source == "host"
    return {
        "schema": SCHEMA,
        "cpu": {
            **{name: getattr(cpu, name) for name in ("name", "source", "provenance", "vendor", "family")},
            **{"model": cpu.model, "stepping": cpu.stepping, "mxcsr_mask": hex(cpu.mxcsr_mask)},
        },
        "xcr0": {"supported": hex(cpu.xcr0), "usable": hex(cpu.user_mask), "enabled": _hex(cpu.enabled_xcr0)},
        "xss": {"supported": hex(cpu.xss), "usable": hex(cpu.supervisor_mask)},
        "instructions": {name: cpu.has(name) for name in _INSTRUCTIONS},
        "components": list(_components(cpu)),
        "linux": {
            **{name: _config(getattr(config, name)) for name in _CONFIGS},
            "legacy_features": hex(config.legacy_features),
            "independent_features": hex(config.independent_features),
            "init_xfd": hex(config.init_xfd),
            "format": "compacted" if config.compacted else "standard",
        },
        "signal_frame": {
            "ia32": minsigstksz(config.user_max.size),
            "no_ia32": minsigstksz(config.user_max.size, ia32=False),
        },
        "kernel": _kernel() if is_host else None,
        "engines": _engines() if is_host else None,
        "switching": _switching() if is_host else None,
        "contradictions": [
            {
                **{"code": finding.code, "found": finding.found, "expected": finding.expected},
                "component": None if finding.component is None else component_name(finding.component),
            }
            for finding in cpu.contradictions()
        ],
    }


def _components(cpu: Cpu) -> Iterator[dict[str, Any]]:
    """Describe each component that CPUID enumerates; offsets are of images with all usable components."""
    usable = cpu.user_mask | cpu.supervisor_mask
    layouts = {
        "standard_offset": Layout.standard(cpu),
        "xsavec_offset": Layout.compacted(cpu) if cpu.has("XSAVEC") else None,
        "xsaves_offset": Layout.compacted(cpu, usable) if cpu.has("XSAVES") else None,
    }
    for number in components_in(cpu.xcr0 | cpu.xss):
        info, geometry = COMPONENTS.get(number), cpu.geometry.get(number)
        legacy_size = LEGACY_PLACES[number][1] if number in LEGACY_PLACES else 0
        yield {
            "number": number,
            "name": component_name(number),
            "title": info.title if info else "unknown",
            "supervisor": bool(cpu.xss >> number & 1),
            "size": geometry.size if geometry else legacy_size,
            **{
                name: layout.offset(number) if layout is not None and number in layout else None
                for name, layout in layouts.items()
            },
            "aligned": geometry is not None and geometry.aligned,
            "xfd": geometry is not None and geometry.xfd,
            "usable": bool(usable >> number & 1),
            "enabled": None if cpu.enabled_xcr0 is None else bool(cpu.enabled_xcr0 >> number & 1),
        }


def _config(config: StateConfig) -> dict[str, Any]:
    return {"features": hex(config.features), "size": config.size}


def _hex(mask: int | None) -> str | None:
    return None if mask is None else hex(mask)


def _kernel() -> dict[str, Any]:
    try:
        answer: KernelPermission = read_kernel_permission()
    except (FpStateError, OSError) as error:
        return {"error": str(error)}
    masks = {name: _hex(getattr(answer, name)) for name in ("supported", "host", "guest")}
    return {**masks, "minsigstksz": answer.minsigstksz}


def _engines() -> list[dict[str, Any]]:
    try:
        from fpstate.engine import availability
    except ImportError as error:
        return [{"name": "engines", "works": False, "reason": str(error)}]
    return [{"name": item.name, "works": item.works, "reason": item.reason} for item in availability()]


def _switching() -> dict[str, Any] | None:
    """Say which core switches contexts; raises SettingError and UnsupportedHere for what FPSTATE_CORE says."""
    from fpstate.vso.switching import CLASSES, core_choice

    try:
        choice = core_choice()
    except ImportError:  # the native core is not built; the engines say so
        return None
    absent = (None,) * len(CLASSES)
    ratios = dict(zip(CLASSES, choice.ratios or absent, strict=True))
    settled = dict(zip(CLASSES, map(_hex, choice.settled or absent), strict=True))
    return {
        **{"core": choice.name, "reason": choice.reason, "ratios": ratios, "in_use": settled},
        "self_test": {"pairs": choice.pairs, "mismatches": choice.mismatches},
    }


def _facts(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    cpu, linux, frame = report["cpu"], report["linux"], report["signal_frame"]
    yield "processor", f"{cpu['name']} ({cpu['provenance']})"
    yield (
        "signature",
        f"{cpu['vendor']} family {cpu['family']} model {cpu['model']} stepping {cpu['stepping']}",
    )
    for register in ("xcr0", "xss"):
        for state, mask in report[register].items():
            yield f"{register.upper()} {state}", "not known" if mask is None else _mask(mask)
    yield (
        "instructions",
        " ".join(name for name, present in report["instructions"].items() if present) or "none",
    )
    yield "MXCSR mask", cpu["mxcsr_mask"]
    for name in _CONFIGS:
        yield name.replace("_", " "), f"{linux[name]['size']:6} bytes  {_mask(linux[name]['features'])}"
    yield "kernel format", linux["format"]
    yield "on request", _mask(linux["init_xfd"])
    yield "signal stack", f"{frame['ia32']} bytes at least, {frame['no_ia32']} without 32-bit emulation"
    yield from _host_facts(report)
    for finding in report["contradictions"]:
        where = f" {finding['component']}" if finding["component"] else ""
        values = f"found {finding['found']:#x}, expected {finding['expected']:#x}"
        yield "contradiction", f"{finding['code']}{where}: {values}"


def _host_facts(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    kernel, frame = report["kernel"], report["signal_frame"]
    if kernel is not None and "error" in kernel:
        yield "this kernel", kernel["error"]
    elif kernel is not None:
        for name in ("supported", "host", "guest"):
            yield f"kernel: {name}", "not answered" if kernel[name] is None else _mask(kernel[name])
        stated = kernel["minsigstksz"]
        agrees = "agrees" if stated in (frame["ia32"], frame["no_ia32"]) else "DIFFERS from the layout"
        yield "AT_MINSIGSTKSZ", "not stated" if stated is None else f"{stated} bytes, {agrees}"
    if report["switching"]:
        yield "switching core", _core_text(report["switching"])
    for engine in report["engines"] or ():
        yield f"engine {engine['name']}", "works" if engine["works"] else f"does not work: {engine['reason']}"


def _core_text(switching: dict[str, Any]) -> str:
    test = switching["self_test"]
    tried = f"; {test['pairs'] - test['mismatches']} of {test['pairs']} pairs right" if test["pairs"] else ""
    ratios = ", ".join(_ratio_text(switching, name) for name, value in switching["ratios"].items() if value)
    measured = f"; time by the portable core's: {ratios}" if ratios else ""
    return f"{switching['core']}: {switching['reason']}{tried}{measured}"


def _ratio_text(switching: dict[str, Any], name: str) -> str:
    from fpstate.vso.switching import CLASSES

    stays = int(switching["in_use"][name], 16) & ~CLASSES[name]
    return f"{name} {switching['ratios'][name]:.2f}" + (
        f" ({mask_text(stays)} stays in use)" if stays else ""
    )


def _mask(text: str) -> str:
    return f"{text} {mask_text(int(text, 16))}"


def _rows(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for item in report["components"]:
        offsets = (item[name] for name in ("standard_offset", "xsavec_offset", "xsaves_offset"))
        flags = [name for name in ("aligned", "xfd") if item[name]]
        flags += [] if item["usable"] else ["unusable"]
        flags += ["off"] if item["enabled"] is False and not item["supervisor"] else []
        yield (
            *(str(item["number"]), item["name"], "S" if item["supervisor"] else "U", str(item["size"])),
            *("-" if offset is None else str(offset) for offset in offsets),
            *(",".join(flags), item["title"]),
        )


def _plain(report: dict[str, Any]) -> Iterator[str]:
    facts = list(_facts(report))
    width = max(len(label) for label, _ in facts)
    yield from (f"{label:{width}}  {value}" for label, value in facts)
    yield ""
    table = [_COLUMNS, *_rows(report)]
    widths = [max(len(row[column]) for row in table) for column in range(len(_COLUMNS))]
    for row in table:
        cells = (
            cell.rjust(widths[column]) if column in (0, 3, 4, 5, 6) else cell.ljust(widths[column])
            for column, cell in enumerate(row)
        )
        yield "  ".join(cells).rstrip()


def _draw(report: dict[str, Any]) -> bool:
    """Draw on the terminal with rich, which honours NO_COLOR; False where rich is not there."""
    try:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
    except ImportError:
        return False
    console = output.console()
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    for label, value in _facts(report):
        facts.add_row(label, value)
    table = Table(*_COLUMNS, box=SIMPLE_HEAD, pad_edge=False)
    for row in _rows(report):
        table.add_row(*row, style="dim" if "unusable" in row[7] or "off" in row[7] else None)
    for column in (0, 3, 4, 5, 6):
        table.columns[column].justify = "right"
    console.print(facts, table)
    return True
