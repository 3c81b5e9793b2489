"""A processor's registers as one image, with XFD: the least that a switch can work on."""

from __future__ import annotations

from fpstate.arch import Layout
from fpstate.arch.component import components_in
from fpstate.errors import RestoreFault
from fpstate.image import Image
from fpstate.image.convert import convert
from fpstate.vso.config import FpuConfig


class ImageRegisters:
    """Loads and saves as XRSTORS and XSAVES do: disabled components fault on a load and save as initial."""

    def __init__(self, config: FpuConfig) -> None:
        self.config = config
        self.image = Image.initial(Layout.compacted(config.cpu, config.kernel_max.features))
        self.xfd = 0
        self.restores: list[int] = []

    @property
    def in_use(self) -> int:
        return self.image.in_use

    def save(self, rfbm: int) -> Image:
        held = self._only(self.image, rfbm & ~self.xfd)
        return convert(held, self.config.kernel_layout(rfbm), drop=components_in(~rfbm & (1 << 62) - 1)).image

    def restore(self, image: Image, rfbm: int) -> None:
        self.restores.append(rfbm)
        if image.xstate_bv & rfbm & self.xfd:
            raise RestoreFault(f"#NM: XSTATE_BV {image.xstate_bv:#x}, IA32_XFD {self.xfd:#x}")
        kept = self._only(self.image, ~rfbm)
        loaded = convert(self._only(image, rfbm), kept.layout).image
        for name, value in (kept.registers.in_use() | loaded.registers.in_use()).items():
            loaded.registers[name] = value
        self.image = loaded

    def _only(self, image: Image, components: int) -> Image:
        copy = image.copy()
        copy.store.view[512:520] = (image.xstate_bv & components).to_bytes(8, "little")
        return copy
