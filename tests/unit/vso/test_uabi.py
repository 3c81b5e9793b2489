"""Exports take PKRU from its copy and MXCSR from what carries it, whatever else lies in the kernel's image."""

from fpstate.arch import Component, Cpu, Layout, mask_of
from fpstate.image import Image
from fpstate.vso.config import FpuConfig
from fpstate.vso.uabi import export_uabi, merge_uabi

CONFIG = FpuConfig.from_cpu(Cpu.catalog("sapphire-rapids"))
USER = CONFIG.user_default.features
X87, SSE, AVX, PKRU, CET_S = (
    mask_of(n) for n in (Component.X87, Component.SSE, Component.AVX, Component.PKRU, Component.CET_S)
)


def kernel_image(values: dict[str, int]) -> Image:
    image = Image.initial(CONFIG.kernel_layout(CONFIG.guest_default.features))
    for name, value in values.items():
        image.registers[name] = value
    return image


def exported(image: Image, pkru: int = 0) -> Image:
    return Image(export_uabi(image, CONFIG, USER, pkru), Layout.standard(CONFIG.cpu, USER))


def test_pkru_comes_from_its_copy_and_never_from_the_image() -> None:
    image = kernel_image({"pkru": 0x44, "xmm1": 5})
    assert image.xstate_bv & PKRU
    assert exported(image, 0x30).registers["pkru"] == 0x30
    open_to_all = exported(image, 0)
    assert open_to_all.xstate_bv == SSE | PKRU
    assert not any(open_to_all.store.view[2688:2696])


def test_mxcsr_comes_from_the_image_where_sse_or_avx_is_there() -> None:
    for name, expected in (("st0", 0x1F80), ("k1", 0x1F80), ("xmm1", 0x1FA0), ("ymm1h", 0x1FA0)):
        image = kernel_image({name: 5})
        image.store.view[24:28] = (0x1FA0).to_bytes(4, "little")
        stated = export_uabi(image, CONFIG, USER, 0)[24:28]
        assert int.from_bytes(stated, "little") == expected, name


def test_leftovers_of_absent_components_are_not_exported() -> None:
    image = kernel_image({"xmm1": 5})
    place = image.layout.place(Component.HI16_ZMM)
    image.store.view[place.offset : place.end] = bytes([0xAA]) * place.size
    assert b"\xaa" not in export_uabi(image, CONFIG, USER, 0)


def test_a_merge_takes_supervisor_components_from_the_one_and_all_else_from_the_other() -> None:
    kept = kernel_image({"pl0_ssp": 0x1000, "xmm1": 1})
    incoming = exported(kernel_image({"zmm20": 7}), pkru=0x30)
    merged = merge_uabi(incoming, kept, CONFIG.kernel_layout(CONFIG.guest_default.features & ~PKRU))
    assert merged.registers.in_use() == {"pl0_ssp": 0x1000, "zmm20": 7}
