"""A processor in software: its registers, its control registers, and the instructions that save and restore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Self

from fpstate.arch.component import mask_of
from fpstate.arch.cpu import Cpu
from fpstate.engine.model import amx, control, enumeration, instruction, name, restore, save, x87
from fpstate.engine.model.area import Area
from fpstate.engine.model.behaviour import Behaviour
from fpstate.engine.model.machine import ALL, Machine
from fpstate.engine.model.register_file import RegisterFile
from fpstate.engine.model.supervisor import check_contents
from fpstate.engine.model.x87 import Place
from fpstate.errors import ImageError
from fpstate.image import Image
from fpstate.vso.config import FpuConfig

_NOWHERE: Final = Place()


class Processor(Machine):
    """A software FPU for any ``Cpu``: what it does not have cannot be used here either.

    Saves write to, and restores read from, a bytearray or memoryview that starts at the area's first byte.
    ``address`` is the linear address that the area is taken to have: it decides about alignment and about the
    modified optimisation; without one the area is aligned and never recognised. ``requested`` is EDX:EAX.
    ``wide`` is REX.W, the forms with ``64`` in their names.

    Raises ProcessorFault with the vector and the reason, as the instruction raises an exception; the
    registers then are what they were, but for what ``Behaviour.partial_restore`` says. What the model takes
    from which manual: docs/model.md.
    """

    @classmethod
    def under_linux(cls, cpu: Cpu, behaviour: Behaviour | None = None) -> Self:
        """Return a processor as Linux sets it up: XCR0, IA32_XSS and IA32_XFD, at CPL 3."""
        config = FpuConfig.from_cpu(cpu)
        processor = cls(cpu, behaviour)
        processor.xcr0, processor.xss, processor.xfd = config.xcr0, config.xss, config.init_xfd
        processor.cpl = 3
        return processor

    # Saving

    def fxsave(self, area: Area, *, address: int | None = None, wide: bool = True) -> None:
        """FXSAVE: x87, MXCSR and SSE into 512 bytes."""
        self._available()
        save.fxsave(self, area, address, wide)

    def xsave(
        self, area: Area, requested: int = ALL, *, address: int | None = None, wide: bool = True
    ) -> None:
        """XSAVE: standard format; other bits of XSTATE_BV, XCOMP_BV and bytes 528 to 575 stay."""
        self.need("XSAVE")
        save.xsave(self, area, requested & self.xcr0, address, wide)

    def xsaveopt(
        self, area: Area, requested: int = ALL, *, address: int | None = None, wide: bool = True
    ) -> None:
        """XSAVEOPT: as XSAVE, without what is initial and what was not modified since it was restored from here."""
        self.need("XSAVEOPT")
        save.xsaveopt(self, area, requested & self.xcr0, address, wide)

    def xsavec(
        self, area: Area, requested: int = ALL, *, address: int | None = None, wide: bool = True
    ) -> None:
        """XSAVEC: compacted format, without what is initial; bytes 528 to 575 stay."""
        self.need("XSAVEC")
        save.xsavec(self, area, requested & self.xcr0, address, wide)

    def xsaves(
        self, area: Area, requested: int = ALL, *, address: int | None = None, wide: bool = True
    ) -> None:
        """XSAVES: as XSAVEC, supervisor components too, and as XSAVEOPT; CPL 0."""
        self.need("XSAVES")
        save.xsaves(self, area, requested & (self.xcr0 | self.xss), address, wide)

    # Restoring

    def fxrstor(self, area: Area | bytes, *, address: int | None = None, wide: bool = True) -> None:
        """FXRSTOR: x87, MXCSR and SSE from 512 bytes."""
        self._available()
        restore.fxrstor(self, area, address, wide)

    def xrstor(
        self, area: Area | bytes, requested: int = ALL, *, address: int | None = None, wide: bool = True
    ) -> None:
        """XRSTOR: either format; what is requested and absent becomes initial."""
        self.need("XSAVE")
        restore.xrstor(self, area, requested & self.xcr0, address, wide)

    def xrstors(
        self, area: Area | bytes, requested: int = ALL, *, address: int | None = None, wide: bool = True
    ) -> None:
        """XRSTORS: compacted format, supervisor components too; CPL 0."""
        self.need("XSAVES")
        restore.xrstors(self, area, requested & (self.xcr0 | self.xss), address, wide)

    # Control registers

    def xgetbv(self, index: int) -> int:
        """XGETBV: XCR0 for 0, what is in use of it for 1."""
        return control.xgetbv(self, index)

    def xsetbv(self, index: int, value: int) -> None:
        """XSETBV: writes XCR0; CPL 0."""
        control.xsetbv(self, index, value)

    def rdmsr(self, msr: int) -> int:
        """RDMSR of IA32_XSS (DA0H), IA32_XFD (1C4H) or IA32_XFD_ERR (1C5H); CPL 0."""
        return control.rdmsr(self, msr)

    def wrmsr(self, msr: int, value: int) -> None:
        """WRMSR of the same; CPL 0."""
        control.wrmsr(self, msr, value)

    def cpuid_0d(self, subleaf: int) -> tuple[int, int, int, int]:
        """CPUID leaf 0DH: EAX, EBX, ECX, EDX; the sizes in EBX are those of what is enabled now."""
        return enumeration.leaf_0d(self, subleaf)

    # Registers

    def read(self, register: str) -> int:
        """Return a register by its name in ``fpstate.image``, whatever the mode; raises RegisterError."""
        return name.read(self.file, self.cpu, register)

    def write(self, register: str, value: int) -> None:
        """Write a register as an instruction that needs its components: may raise #UD, #NM or #GP.

        ``st0`` to ``st7``, ``mm0`` to ``mm7`` and ``ftag`` change the tags as ``fpstate.Registers`` does.
        """
        self.write_all({register: value})

    def write_all(self, registers: Mapping[str, int]) -> None:
        """Write several registers at once: all of them, or none where one is refused.

        Raises #GP for an MXCSR that LDMXCSR, a configuration that LDTILECFG, and for CET and PASID values that WRMSR
        does not take, and for shapes of tiles without a palette, which no register keeps.
        """
        mask = 0
        for register in registers:
            mask |= name.components_of(register)
        self.use(mask)
        image = name.image_of(self.file, self.cpu, mask)
        for register, value in registers.items():
            image.registers[register] = value
        instruction.check_mxcsr(self, image.registers["mxcsr"])
        for place in image.layout.places:
            data = bytes(image.store.view[place.offset : place.end])
            check_contents(place.component, data)
            if place.component == amx.TILECFG:
                amx.check_contents(data)
        name.take(self.file, image)

    def image(self, mask: int | None = None) -> Image:
        """Return the registers of these components (default: XCR0 and IA32_XSS) as an image, whatever the mode.

        All of them are present, SSE always is; the processor and its tracking stay as they are.
        """
        return name.image_of(self.file, self.cpu, self.xcr0 | self.xss if mask is None else mask)

    def assume_in_use(self, mask: int) -> None:
        """Take this for XINUSE, in which a processor is free but for one thing: what is not initial is in use.

        Raises ImageError where ``mask`` lacks such a component.
        """
        if missing := self.file.not_initial() & ~mask:
            raise ImageError(
                f"XINUSE {mask:#x} lacks components that are not initial: {missing:#x}",
                found=mask,
                expected=mask | missing,
            )
        self.file.in_use = mask

    def snapshot(self) -> RegisterFile:
        """Return a copy of the registers, to be put back by assigning it to ``file``."""
        return self.file.copy()

    # Instructions on registers

    def fninit(self) -> None:
        """FNINIT."""
        x87.fninit(self)

    def fnclex(self) -> None:
        """FNCLEX."""
        x87.fnclex(self)

    def fldcw(self, control_word: int) -> None:
        """FLDCW; #MF while an unmasked exception is pending."""
        x87.fldcw(self, control_word)

    def emms(self) -> None:
        """EMMS; #MF likewise."""
        x87.emms(self)

    def ldmxcsr(self, mxcsr: int) -> None:
        """LDMXCSR; #GP for reserved bits."""
        instruction.ldmxcsr(self, mxcsr)

    def move_mmx(self, index: int, data: bytes) -> None:
        """MOVQ of 8 bytes to MM(index); #MF while an unmasked exception is pending."""
        x87.move_mmx(self, index, data)

    def fld80(self, data: bytes, *, place: Place = _NOWHERE) -> None:
        """FLD of 10 bytes; #MF likewise. ``place`` has what FIP, FDP and FOP may then tell."""
        x87.fld80(self, data, place)

    def fstp0(self, *, place: Place = _NOWHERE) -> None:
        """FSTP ST(0), which pops; #MF likewise."""
        x87.fstp0(self, place)

    def move_xmm(self, index: int, data: bytes) -> None:
        """MOVUPS of 16 bytes: the upper bits stay."""
        instruction.move_xmm(self, index, data)

    def move_vector(self, index: int, data: bytes) -> None:
        """VMOVUPS of 16, 32 or 64 bytes: the upper bits become zeros."""
        instruction.move_vector(self, index, data)

    def zero_vector(self, index: int) -> None:
        """VPXOR of a register with itself: zeros, in all of its bits."""
        instruction.zero_vector(self, index)

    def kmov(self, index: int, data: bytes) -> None:
        """KMOVQ of 8 bytes."""
        instruction.kmov(self, index, data)

    def vzeroupper(self) -> None:
        """VZEROUPPER."""
        instruction.vzeroupper(self)

    def vzeroall(self) -> None:
        """VZEROALL."""
        instruction.vzeroall(self)

    def ldtilecfg(self, data: bytes) -> None:
        """LDTILECFG with 64 bytes; #GP for what is no configuration."""
        amx.ldtilecfg(self, data)

    def sttilecfg(self, area: Area) -> None:
        """STTILECFG into the first 64 bytes."""
        amx.sttilecfg(self, area)

    def tilezero(self, tile: int) -> None:
        """TILEZERO; #UD for a tile that is not configured."""
        amx.tilezero(self, tile)

    def tileloadd(self, tile: int, data: bytes, *, stride: int = 64) -> None:
        """TILELOADD from memory that ``data`` is; #UD likewise, and for what start_row and widths do not allow."""
        amx.tileloadd(self, tile, data, stride)

    def tilestored(self, tile: int, area: Area, *, stride: int = 64) -> None:
        """TILESTORED into memory that ``area`` is; #UD likewise."""
        amx.tilestored(self, tile, area, stride)

    def wrpkru(self, value: int) -> None:
        """WRPKRU with ECX and EDX 0; #UD without protection keys."""
        instruction.wrpkru(self, value)

    def rdpkru(self) -> int:
        """RDPKRU with ECX 0; #UD likewise."""
        return instruction.rdpkru(self)

    def tilerelease(self) -> None:
        """TILERELEASE."""
        amx.tilerelease(self)

    def _available(self) -> None:
        """FXSAVE and FXRSTOR need no OSXSAVE; #NM for CR0.TS."""
        self.use(mask_of(0, 1))
