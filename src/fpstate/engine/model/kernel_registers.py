"""A modelled processor's registers as Linux saves and restores them: at CPL 0, by the instructions that it takes.

Sources: Linux ``os_xsave``, ``os_xrstor``, ``restore_fpregs_from_fpstate`` and ``xfd_update_state`` in
``arch/x86/kernel/fpu``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from fpstate.arch.component import LEGACY, Component, mask_of
from fpstate.engine.model.behaviour import Behaviour, Pointers
from fpstate.engine.model.control import IA32_XFD, IA32_XFD_ERR, IA32_XSS
from fpstate.engine.model.processor import Processor
from fpstate.image import Image
from fpstate.image.control import MXCSR_INIT
from fpstate.vso.config import FpuConfig

PKRU: Final = int(Component.PKRU)
_X87: Final = mask_of(Component.X87)
_SSE: Final = mask_of(Component.SSE)
_UINTR: Final = mask_of(Component.UINTR)


class KernelRegisters:
    """The registers of one processor under Linux; a ``fpstate.vso.LiveRegisters``.

    ``processor`` runs at CPL 3, as its contexts do, but for the time of each call. It saves by XSAVES, XSAVEC,
    XSAVE or FXSAVE, whichever is the first that it has, and never by XSAVEOPT. ``xfd_writes`` counts WRMSRs:
    the MSR is written only where its value changes, and always before a restore.
    """

    def __init__(self, config: FpuConfig, behaviour: Behaviour | None = None) -> None:
        self.config = config
        self.processor = Processor.under_linux(config.cpu, behaviour)
        self.xfd_writes = 0
        self.enable(config.xcr0, config.xss)

    @property
    def xfd(self) -> int:
        """IA32_XFD; 0 where there is none."""
        return self.processor.xfd

    @xfd.setter
    def xfd(self, value: int) -> None:
        if self.config.cpu.has("XFD") and value != self.processor.xfd:
            with self.kernel_mode() as processor:
                processor.wrmsr(IA32_XFD, value)
            self.xfd_writes += 1

    @property
    def in_use(self) -> int:
        """XINUSE, with SSE for an MXCSR other than 1F80H; what IA32_XFD holds back counts as initial."""
        file = self.processor.file
        mxcsr = _SSE if file.mxcsr != MXCSR_INIT else 0
        return (file.in_use | mxcsr) & ~self.processor.xfd

    @property
    def pkru(self) -> int:
        """PKRU, as RDPKRU gives it; 0 where there is none."""
        return int.from_bytes(self.processor.file.values.get(PKRU, b"")[:4], "little")

    @pkru.setter
    def pkru(self, value: int) -> None:
        if self.processor.xcr0 >> PKRU & 1:
            size = len(self.processor.file.values[PKRU])
            self.processor.file.put(PKRU, value.to_bytes(size, "little"))

    def save(self, rfbm: int) -> Image:
        """Return the registers of ``rfbm`` in the format of the kernel's images."""
        cpu = self.config.cpu
        with self.kernel_mode() as processor:
            rfbm &= processor.xcr0 | processor.xss
            layout = self.config.kernel_layout(rfbm if cpu.has("XSAVE") else LEGACY)
            image = Image.initial(layout, "vso")
            area = image.store.view
            if cpu.has("XSAVES"):
                processor.xsaves(area, rfbm)
            elif cpu.has("XSAVEC"):
                processor.xsavec(area, rfbm)
            elif cpu.has("XSAVE"):
                processor.xsave(area, rfbm)
            else:
                processor.fxsave(area[:512])
                area[512:520] = LEGACY.to_bytes(8, "little")
        return image

    def restore(self, image: Image, rfbm: int) -> None:
        """Load ``rfbm``, initialising what the image lacks. Raises ProcessorFault.

        Processors that keep an earlier context's x87 pointers where no exception is pending have them cleared
        first (Linux: ``X86_BUG_FXSAVE_LEAK``). XRSTORS refuses user interrupts while UINV is not 0 (SDM vol. 1,
        13.5.11), and so the kernel writes 0 before.
        """
        cpu, area = self.config.cpu, image.store.view
        with self.kernel_mode() as processor:
            if rfbm & _UINTR & processor.xss and processor.read("uintr_uinv"):
                processor.write("uintr_uinv", 0)
            if rfbm & _X87 and processor.behaviour.pointers is Pointers.UNTOUCHED:
                processor.fninit()
            if not cpu.has("XSAVE"):
                processor.fxrstor(area[:512])
            elif cpu.has("XSAVES"):
                processor.xrstors(area, rfbm)
            elif cpu.has("XSAVEC"):
                processor.xrstor(area, rfbm)
            else:  # the standard format has fixed places, and an elastic buffer may end before the last
                processor.xrstor(bytes(area).ljust(self.config.user_max.size, b"\0"), rfbm)

    def reload(self) -> None:
        """Do what a way through the kernel does that loads the same state again: XRSTOR_INFO is another's, and PKRU
        was written, which puts it in use where writes count (measured on Emerald Rapids).
        """
        self.processor.file.info = None
        self.pkru = self.pkru

    def take_xfd_error(self) -> int:
        """Read IA32_XFD_ERR and clear it, as a handler of #NM must (``handle_xfd_event``)."""
        with self.kernel_mode() as processor:
            error = processor.xfd_err
            if error:
                processor.wrmsr(IA32_XFD_ERR, 0)
        return error

    def enable(self, xcr0: int, xss: int) -> None:
        """Write XCR0 and IA32_XSS where they change, as KVM does on the way into a guest and back."""
        with self.kernel_mode() as processor:
            if xcr0 != processor.xcr0:
                processor.xsetbv(0, xcr0)
            if xss != processor.xss:
                processor.wrmsr(IA32_XSS, xss)

    @contextmanager
    def kernel_mode(self) -> Iterator[Processor]:
        """Run at CPL 0."""
        before, self.processor.cpl = self.processor.cpl, 0
        try:
            yield self.processor
        finally:
            self.processor.cpl = before
