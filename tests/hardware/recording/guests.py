"""States that are set in a vCPU which never runs: KVM_SET_XSAVE, KVM_SET_FPU and KVM_SET_XCRS."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

from fpstate.arch import Component, mask_of
from fpstate.arch.component import AMX
from fpstate.engine.kvm.device import Device
from fpstate.engine.kvm.vcpu import KvmVcpu, Machine
from fpstate.errors import KvmError
from fpstate.image.subject import SOFTWARE_AT
from recorded import Case, Patch, build

from .host import Host
from .inputs import TEMPLATES, Inputs
from .regsets import readback

_FPR, _CONTROL, _XMM, _TAIL = slice(0, 128), slice(128, 152), slice(152, 408), slice(408, 416)
_UNTOLD = 512
"""Numbers from which on vCPUs are made that were not told their CPUID."""
_ONE_IN_SIX, _ONE_IN_THIRTY = 6, 30


class Guests:
    """Cases of one file. ``told``: the vCPU was told all the CPUID that KVM supports, else none."""

    def __init__(self, host: Host, inputs: Inputs, device: Device, *, told: bool) -> None:
        self.host, self.inputs, self.told = host, inputs, told
        self.source = inputs.source
        self.device = device
        self.size = device.xsave_size
        self.supported = device.supported_xcr0
        known = host.xcr0 & ~AMX if self.supported is None else host.xcr0 & self.supported
        self.pattern = inputs.pattern(known)
        self.templates = [self._template() for _ in range(TEMPLATES)]
        self.bases = [bytes(build(patches, inputs.pool, self.size)) for patches in self.templates]
        everything = known | mask_of(Component.BNDREGS, Component.BNDCSR)
        singles = [known ^ 1 << n for n in range(10)]
        self.xcr0s = [
            0,
            1,
            2,
            3,
            4,
            5,
            7,
            known,
            everything,
            host.xcr0,
            *singles,
            known | 1 << 11,
            1 << 63 | 7,
        ]

    def header(self) -> dict[str, Any]:
        return {
            "kind": "kvm",
            "cpuid": "supported" if self.told else "none",
            "supported_xcr0": self.supported,
            "pattern": self.pattern,
            "size": self.size,
            "templates": self.templates,
        }

    def record(self, count: int) -> Iterator[Case]:
        """Set ``count`` states, XCR0 last: it stays."""
        pattern = bytes(build(self.pattern, self.inputs.pool, self.size))
        others = count // _ONE_IN_SIX, count // _ONE_IN_THIRTY
        with Machine(self.device) as machine:
            vcpu = machine.vcpu() if self.told else KvmVcpu(machine, _UNTOLD)
            try:
                error = _errno(vcpu.set_xsave, bytearray(pattern))
                shown = bytes(vcpu.xsave())
                yield {"o": "pattern", "r": {"e": error, **readback(self.host, shown, pattern, pattern)}}
                for number in range(count - sum(others) + others[0]):
                    assert not _errno(vcpu.set_xsave, bytearray(pattern))
                    one = self._fpu if number >= count - sum(others) else self._xsave
                    yield one(vcpu, pattern, shown)
                for number in range(others[1]):
                    yield self._xcr0(vcpu, number)
            finally:
                if not self.told:
                    vcpu.close()

    def _xsave(self, vcpu: KvmVcpu, pattern: bytes, shown: bytes) -> Case:
        number = self.source.randrange(len(self.bases))
        base = self.bases[number]
        patches = self.inputs.mutations(base) if self.source.random() < 0.55 else []
        image = build(patches, self.inputs.pool, self.size, base)
        told: dict[str, Any] = {"e": _errno(vcpu.set_xsave, bytearray(image))}
        after = bytes(vcpu.xsave())
        told |= {"u": 1} if after == shown else readback(self.host, after, image, pattern)
        return {"t": number, "p": patches, "o": "set_xsave", "r": told}

    def _fpu(self, vcpu: KvmVcpu, pattern: bytes, shown: bytes) -> Case:
        """struct kvm_fpu: ST0 to ST7, 24 bytes of control, XMM0 to XMM15, MXCSR and padding."""
        source, pool = self.source, self.inputs.pool
        fpr, xmm = source.randrange(len(pool) - 128), source.randrange(len(pool) - 256)
        control = bytearray(source.randbytes(24))
        if source.random() < 0.5:
            control[0:2] = b"\x7f\x03"
        tail = (source.getrandbits(32) if source.random() < 0.5 else 0x1F80).to_bytes(8, "little")
        data = bytearray(pool[fpr : fpr + 128] + control + pool[xmm : xmm + 256] + tail)
        told: dict[str, Any] = {"e": _errno(vcpu.set_fpu, data)}
        got = bytes(vcpu.fpu())
        told["fpu"] = {
            "fpr": zlib.crc32(got[_FPR]),
            "ctl": got[_CONTROL].hex(),
            "xmm": zlib.crc32(got[_XMM]),
            "tail": got[_TAIL].hex(),
        }
        image = bytes(control) + tail + bytes(data[_FPR]) + bytes(data[_XMM])
        told |= readback(self.host, bytes(vcpu.xsave()), image, pattern)
        return {"o": "set_fpu", "fpr": fpr, "ctl": control.hex(), "xmm": xmm, "tail": tail.hex(), "r": told}

    def _xcr0(self, vcpu: KvmVcpu, number: int) -> Case:
        value = self.xcr0s[number] if number < len(self.xcr0s) else self.source.getrandbits(20)
        error = _errno(vcpu.set_xcr0, value)
        return {"o": "set_xcr0", "v": value, "r": {"e": error, "after": vcpu.xcr0()}}

    def _template(self) -> list[Patch]:
        software = (self.host.cpu.enabled_xcr0 or 0).to_bytes(8, "little").hex()
        return [*self.inputs.template(compacted=0.1), [SOFTWARE_AT, software]]


def _errno(call: Any, argument: Any) -> int:
    try:
        call(argument)
    except KvmError as error:
        return error.errno
    return 0


def record_guests(
    host: Host, inputs: Inputs, count: int, device: Device, *, told: bool
) -> tuple[dict[str, Any], Iterator[Case]]:
    """Return the header of a file of vCPU states, and its cases as they come."""
    cases = Guests(host, inputs, device, told=told)
    return cases.header(), cases.record(count)
