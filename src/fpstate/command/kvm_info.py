"""``fpstate kvm info``: what this kernel's KVM can do for guest states."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, Final

from fpstate.arch import Cpu
from fpstate.arch.component import USER_DYNAMIC, mask_text
from fpstate.command import output
from fpstate.engine.kvm.abi import API_VERSION, CAPABILITIES
from fpstate.engine.kvm.destination import SUPERVISOR_MSRS, XFD, XFD_ERR, XSS, Destination
from fpstate.engine.kvm.device import Device
from fpstate.engine.kvm.vcpu import Machine
from fpstate.vso.config import FpuConfig
from fpstate.vso.kernel_permission import read_kernel_permission

SCHEMA: Final = "fpstate-kvm-info/1"
_MSRS: Final = {"IA32_XSS": XSS, "IA32_XFD": XFD, "IA32_XFD_ERR": XFD_ERR} | {
    name.upper(): number for name, number in SUPERVISOR_MSRS.items()
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``info``."""
    parser = subparsers.add_parser("info", help="show capabilities, components, permission and sizes")
    parser.add_argument("--json", action="store_true", help=f"print JSON with the schema {SCHEMA}")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report; raises UnsupportedHere without a usable /dev/kvm."""
    report = describe()
    if args.json:
        output.document(report)
    else:
        output.lines(_text(report))
    return 0


def describe() -> dict[str, Any]:
    """Ask /dev/kvm and a vCPU that never runs; bitmaps are hexadecimal strings, sizes bytes."""
    cpu = Cpu.host()
    permission = read_kernel_permission()  # asked first: the first vCPU freezes it
    with Device() as device, Machine(device) as machine:
        vcpu = machine.vcpu()
        there = Destination.of(vcpu, cpu=cpu, supported_xcr0=device.supported_xcr0)
        config = FpuConfig.from_cpu(cpu)
        return {
            "schema": SCHEMA,
            "device": device.path,
            "api_version": API_VERSION,
            "capabilities": {name: device.capability(name) for name in CAPABILITIES},
            "xcr0": {
                "host": hex(config.user_max.features),
                "supported": _hex(device.supported_xcr0),
                "guest_cpuid": hex(there.guest_xcr0),
                "fresh": hex(vcpu.xcr0()),
            },
            "xss": {"host": hex(config.xss), "guest_cpuid": hex(there.guest_xss)},
            "msrs": {name: number in vcpu.msrs([number]) for name, number in _MSRS.items()},
            "permission": {
                "supported": _hex(permission.supported),
                "host": _hex(permission.host),
                "guest": _hex(permission.guest),
                "dynamic": hex(config.user_max.features & USER_DYNAMIC),
            },
            "sizes": {
                "capability": device.capability("KVM_CAP_XSAVE2"),
                "buffer": vcpu.xsave_size,
                "image": there.layout.size,
                "guest_default": config.guest_default.size,
            },
        }


def _hex(value: int | None) -> str | None:
    return None if value is None else hex(value)


def _text(report: dict[str, Any]) -> Iterator[str]:
    capabilities, sizes = report["capabilities"], report["sizes"]
    yield f"{report['device']}: API version {report['api_version']}"
    yield "  capabilities    " + ", ".join(
        f"{name.removeprefix('KVM_CAP_')}={value}" for name, value in capabilities.items()
    )
    for register in ("xcr0", "xss"):
        for where, mask in report[register].items():
            yield f"  {register.upper() + ' ' + where.replace('_', ' '):18}{_mask(mask)}"
    yield "  MSRs              " + (
        " ".join(name for name, there in report["msrs"].items() if there) or "none"
    )
    for whose in ("host", "guest"):
        yield f"  permission {whose:7}{_mask(report['permission'][whose])}"
    dynamic = int(report["permission"]["dynamic"], 16)
    yield "  on request        " + (
        mask_text(dynamic) if dynamic else "nothing: this processor has no such component"
    )
    capability = sizes["capability"] or "0, which means 4096"
    yield f"  KVM_CAP_XSAVE2    {capability}; a buffer has {sizes['buffer']} bytes, an image {sizes['image']}"
    yield f"  kernel's buffer   {sizes['guest_default']} bytes for each vCPU"


def _mask(mask: str | None) -> str:
    return "not known to this kernel" if mask is None else f"{mask} {mask_text(int(mask, 16))}"
