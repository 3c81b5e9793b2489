import math
import random

import pytest

from fpstate import Cpu, Image, Layout
from fpstate.adapters import from_gdb, from_libdebug, from_unicorn, to_gdb, to_libdebug, to_unicorn
from fpstate.errors import RegisterError
from fpstate.image import Float80

PROCESSORS = ("haswell", "zen4", "skylake-sp", "sapphire-rapids")


def busy(cpu: str, seed: int = 1) -> Image:
    """Every register that has bits of its own, with bits of its own."""
    generator = random.Random(seed)
    image = Image.initial(Layout.standard(Cpu.catalog(cpu)))
    registers = image.registers
    registers["fstat"] = 3 << 11
    for name in registers.names(widest=True):
        if name.startswith(("st", "xmm", "ymm", "zmm", "k", "pkru", "bnd")):
            registers[name] = generator.getrandbits(8 * registers.size_of(name))
    registers["mxcsr"], registers["fctrl"] = 0x9F80, 0x27F
    registers["fip"], registers["fdp"], registers["fop"] = 0x123456789A, 0xBA9876543210, 0x555
    registers["ftag_abridged"] = 0x5A
    return image


@pytest.mark.parametrize("cpu", PROCESSORS)
def test_gdb_names_carry_every_register_there_and_back(cpu: str) -> None:
    image = busy(cpu)
    copy = Image.initial(image.layout)
    from_gdb(to_gdb(image), copy)
    assert copy.canonical(exact=True) == image.canonical(exact=True)


@pytest.mark.parametrize("cpu", PROCESSORS)
def test_the_order_of_the_names_does_not_matter(cpu: str) -> None:
    image = busy(cpu)
    copy = Image.initial(image.layout)
    from_gdb(dict(reversed(to_gdb(image).items())), copy)
    assert copy.canonical(exact=True) == image.canonical(exact=True)


@pytest.mark.parametrize("cpu", ["haswell", "zen4"])
def test_unicorn_names_carry_every_register_there_and_back(cpu: str) -> None:
    layout = Layout.standard(Cpu.catalog(cpu), Cpu.catalog(cpu).user_mask & 0xE7)
    image = Image.initial(layout)
    from_gdb({name: value for name, value in to_gdb(busy(cpu)).items() if name != "pkru"}, image)
    copy = Image.initial(layout)
    from_unicorn(to_unicorn(image), copy)
    assert copy.canonical(exact=True) == image.canonical(exact=True)


def test_unicorn_numbers_x87_registers_physically() -> None:
    image = Image.initial(Layout.standard(Cpu.catalog("haswell")))
    image.registers["fstat"] = 5 << 11
    image.registers["st0"] = Float80.parse("1.5").bits
    assert to_unicorn(image)["UC_X86_REG_FP5"] == (0xC000000000000000, 0x3FFF)
    assert to_unicorn(image)["UC_X86_REG_FPTAG"] == 0xFFFF & ~(3 << 10)


def test_libdebug_names_carry_vectors_and_what_floats_hold() -> None:
    image = Image.initial(Layout.standard(Cpu.catalog("zen4")))
    registers = image.registers
    for index, value in enumerate((1.5, -0.0, math.inf, 2.0**-1074)):
        registers[f"st{index}"] = Float80.from_float(value).bits
    registers["zmm31"] = (1 << 512) - 3
    copy = Image.initial(image.layout)
    from_libdebug(to_libdebug(image), copy)
    assert [copy.registers[f"st{index}"] for index in range(4)] == [
        registers[f"st{index}"] for index in range(4)
    ]
    assert copy.registers["zmm31"] == registers["zmm31"]


def test_libdebug_floats_that_would_lose_bits_are_refused() -> None:
    image = Image.initial(Layout.standard(Cpu.catalog("haswell")))
    image.registers["st0"] = Float80.parse("0x1.921fb54442d1846ap+1").bits
    with pytest.raises(RegisterError, match="st0"):
        to_libdebug(image)
    assert to_libdebug(image, lossy=True)["st0"] == math.pi


@pytest.mark.parametrize(
    ("write", "name"), [(from_gdb, "xmm99"), (from_unicorn, "UC_X86_REG_XMM99"), (from_libdebug, "mxcsr")]
)
def test_unknown_names_are_refused(write, name) -> None:
    with pytest.raises(RegisterError) as caught:
        write({name: 0}, Image.initial(Layout.standard(Cpu.catalog("zen4"))))
    assert caught.value.register == name


def test_a_refusal_changes_nothing() -> None:
    image = Image.initial(Layout.standard(Cpu.catalog("haswell")))
    before = image.to_bytes()
    with pytest.raises(RegisterError):
        from_gdb({"xmm1": 5, "zmm1": 7}, image)
    with pytest.raises(RegisterError, match="contradicts"):
        from_gdb({"xmm1": 5, "ymm1": 7}, image)
    assert image.to_bytes() == before


@pytest.mark.parametrize("value", [5, (1 << 64, 0), (0, 1 << 16)])
def test_unicorn_x87_registers_are_pairs(value) -> None:
    with pytest.raises(RegisterError):
        from_unicorn({"UC_X86_REG_FP0": value}, Image.initial(Layout.standard(Cpu.catalog("haswell"))))
