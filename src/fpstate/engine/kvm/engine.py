"""The KVM engine: guests in a virtual machine, each with memory of its own, on few KVM vCPUs or one for each.

A guest cannot reach the host's memory or another guest's: it runs at CPL 3 on page tables that map its own memory and
two read-only pages. It leaves by a port write; exceptions are caught by handlers that it cannot reach.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator

from fpstate.arch.component import (
    AMX,
    LEGACY,
    USER_DYNAMIC,
    USER_SUPPORTED,
    mask_text,
    xcr0_complete,
)
from fpstate.engine.kvm.arena import Arena
from fpstate.engine.kvm.carrier import CarrierPool
from fpstate.engine.kvm.context import PKE
from fpstate.engine.kvm.cpuid import cr4_bits, leaf, protection_keys
from fpstate.engine.kvm.device import Device
from fpstate.engine.kvm.exchange import PKRU, Exchange
from fpstate.engine.kvm.guest import KvmGuest
from fpstate.engine.kvm.queue import KvmQueue
from fpstate.engine.kvm.small_guest import pkru_inside, xcr0_inside
from fpstate.engine.kvm.space import GuestSpace
from fpstate.engine.kvm.supervisor import SHARED_SIZE, shared_pages
from fpstate.engine.kvm.ticker import blocked_in_guests, tick_signal
from fpstate.engine.kvm.tile_denial import denial, needs_tiles
from fpstate.engine.kvm.tile_watch import TileWatch
from fpstate.engine.kvm.vcpu import Machine
from fpstate.engine.memory import DEFAULT_MEMORY
from fpstate.errors import FpStateError, UnsupportedHere, VsoError
from fpstate.program.block import Block
from fpstate.program.load import Program
from fpstate.vso.kernel_permission import request_from_kernel
from fpstate.vso.manager import Manager
from fpstate.vso.permission import Kind
from fpstate.vso.vso import Vso


def missing(path: str | None = None) -> str | None:
    """Return what this machine lacks for the engine, or None where it works."""
    try:
        with _open(path) as device, Machine(device):
            _supported_xcr0(device, device.supported_cpuid())
    except UnsupportedHere as error:
        return error.missing
    except FpStateError as error:
        return str(error)
    return None


class KvmEngine:
    """Makes guests and run queues for one manager, in one virtual machine; close it in the end.

    ``vcpus``: how many KVM vCPUs the guests share (default: one for each processor), or ``each`` gives each its own.
    ``timeout``: the processor time in seconds that each guest may use (None: no limit), of its host thread in KVM_RUN
    (CLOCK_THREAD_CPUTIME_ID), at most two quanta a slice. Raises UnsupportedHere with what this machine lacks, or where
    the manager lays states out as another processor than this one does.
    """

    name = "kvm"
    kind = Kind.GUEST

    def __init__(
        self, manager: Manager, *, timeout: float | None = None, vcpus: int | None = None, each: bool = False
    ) -> None:
        self.manager = manager
        self.each = each
        self.limit_ns = max(1, int(timeout * 1e9)) if timeout else 0
        self.tick = tick_signal()
        request_from_kernel(manager.permissions.mask(self.kind) & USER_DYNAMIC, self.kind)
        device = _open(None)
        closing: weakref.finalize[[], KvmEngine] = weakref.finalize(self, device.close)
        cpuid = device.supported_cpuid()
        supported = _supported_xcr0(device, cpuid)
        self.exchange = self._exchange(supported & manager.config.cpu.user_mask, device.xsave_size)
        self.managed = self.exchange.mask & ~PKRU
        self._withheld = self._withholds()
        self._cr4 = cr4_bits(cpuid) | (protection_keys(cpuid) if self.exchange.mask & PKRU else 0)
        machine = Machine(device)
        self.arena = Arena(machine)
        closing.detach()
        self._finalizer: weakref.finalize[..., KvmEngine] = weakref.finalize(
            self, _close, device, machine, self.arena
        )
        self._shared = self.arena.take(SHARED_SIZE)
        self._shared.write(0, shared_pages())
        most = device.capability("KVM_CAP_MAX_VCPUS") or device.capability("KVM_CAP_NR_VCPUS") or 4
        limit = most if each else min(vcpus or len(os.sched_getaffinity(0)), most)
        blocked = blocked_in_guests(self.tick)
        self.carriers = CarrierPool(machine, cpuid, self.exchange, blocked, limit)
        self.keeps_residents = True
        """Whether a state stays as it is in a KVM vCPU on which no other guest ran."""
        if self._withheld:
            self.keeps_residents = not (xcr0_inside(self) or 0) & self._withheld
        self._keys = 0
        if self.exchange.mask & PKRU and (self._cr4 & PKE or pkru_inside(self) is not None):
            self._keys = PKRU

    def _withholds(self) -> int:
        """Return what of AMX the processor has, and guests of this KVM do not."""
        return self.manager.config.user_max.features & AMX & ~self.managed

    def _exchange(self, mask: int, size: int) -> Exchange:
        return Exchange(self.manager, mask, size)

    def vcpu(
        self,
        program: Program,
        *,
        seed: int = 0,
        argument: int = 0,
        input: bytes = b"",
        kind: Kind | None = None,
        permitted: int | None = None,
        memory_size: int = DEFAULT_MEMORY,
    ) -> KvmGuest:
        """Return a new guest that will run a program from its start, with a new VSO.

        A program that needs tiles which the processor has, and guests of this KVM do not, makes a guest that is denied
        before it is entered. Raises ProgramError when the program does not fit its memory, UnsupportedHere when this
        machine lacks what it needs, PoolExhausted when there is no memory for it, and what ``Manager.create`` raises.
        """
        self.check_open()
        lacking = program.features & ~self.managed & ~self._withheld
        if lacking:
            raise UnsupportedHere(f"{program.name} needs {mask_text(lacking)}")
        vso = self.manager.create(kind or self.kind, permitted=permitted)
        block = Block(seed=seed, argument=argument, features=self.offered(vso.permitted), input=input)
        guest = self._guest(vso, program, block, memory_size)
        if self._withheld and needs_tiles(program):
            guest.decide(denial(self.manager, program.name, self.managed))
        elif self._withheld and not self.keeps_residents:
            guest.watch = TileWatch.of(program)
        return guest

    def small_guest(self, program: Program) -> KvmGuest:
        """Return a guest with the legacy components alone, to find out what it finds."""
        return self._guest(self.manager.create(self.kind, permitted=LEGACY), program, Block(), DEFAULT_MEMORY)

    def offered(self, permitted: int) -> int:
        """Return the components that a program is told it may use, of a VSO with these permitted."""
        return permitted & (self._xcr0(permitted) | self._keys) & USER_SUPPORTED

    def queue(self) -> KvmQueue:
        """Return an empty queue for one host thread."""
        return KvmQueue(self)

    def xcr0_for(self, vso: Vso) -> int:
        """Return the XCR0 that a guest gets: what it may use. Whether it is enforced is up to KVM."""
        return self._xcr0(vso.permitted)

    def check_open(self) -> None:
        """Raise VsoError after ``close``."""
        if not self._finalizer.alive:
            raise VsoError("this engine was closed", help="make another KvmEngine")

    def _xcr0(self, permitted: int) -> int:
        return xcr0_complete(permitted & self.managed | LEGACY)

    def _guest(self, vso: Vso, program: Program, block: Block, memory_size: int) -> KvmGuest:
        try:
            space = GuestSpace.place(self.arena, self._shared, program, block, memory_size)
            return KvmGuest(self, vso, program, space, self._cr4)
        except BaseException:
            self.manager.free(vso)
            raise

    def scratch(self) -> Iterator[tuple[str, bytearray]]:
        """Yield the images of the KVM vCPUs that carry no guest."""
        for image in self.carriers.free_images():
            yield "an exchange image", image

    def close(self) -> None:
        """Close the virtual machine and its memory; may be called again. No queue may be running."""
        self._finalizer()


def _open(path: str | None) -> Device:
    return Device(path) if path else Device()


def _close(device: Device, machine: Machine, arena: Arena) -> None:
    machine.close()
    arena.close()
    device.close()


def _supported_xcr0(device: Device, cpuid: bytearray) -> int:
    """Return what guests may have in XCR0: from CPUID where KVM does not tell. Raises UnsupportedHere without XSAVE."""
    eax, _, _, edx = leaf(cpuid, 0xD, 0)
    if not eax:
        raise UnsupportedHere("XSAVE in guests (KVM_GET_SUPPORTED_CPUID, leaf 0DH)")
    told = device.supported_xcr0
    return eax | edx << 32 if told is None else told
