"""The full tag word that images compute, against the one that FNSAVE makes."""

import ctypes
import random
import subprocess
from collections.abc import Callable

import pytest

from fpstate.arch import Cpu, Format, Layout
from fpstate.arch.layout import Place
from fpstate.image import Image

LEGACY_LAYOUT = Layout.from_places(Format.STANDARD, [Place(0, 0, 160), Place(1, 160, 256)])
ROUNDS = 5000
EXPONENTS = (0, 0, 1, 0x3FFF, 0x7FFE, 0x7FFF, 0x7FFF, 0x8000, 0xFFFF)
SIGNIFICANDS = (0, 0, 1, (1 << 63) - 1, 1 << 63, 1 << 63, 3 << 62, (1 << 64) - 1)
SOURCE = r"""
/* Loads an FXSAVE image and stores the x87 state as FNSAVE does; the caller's control words come back. */
void tags_of(const void *image, void *environment)
{
    unsigned char before[512] __attribute__((aligned(16)));
    __asm__ volatile("fxsave64 %0\n\tfxrstor64 (%2)\n\tfnsave (%3)\n\tfxrstor64 %1"
                     : "=m"(before)
                     : "m"(before), "r"(image), "r"(environment)
                     : "memory");
}
"""


@pytest.fixture(scope="module")
def fnsave_tags(core, gcc, tmp_path_factory) -> Callable[[Image], int]:
    """The tag word that this processor stores for an image's x87 state."""
    folder = tmp_path_factory.mktemp("oracle")
    (folder / "oracle.c").write_text(SOURCE)
    library = folder / "oracle.so"
    subprocess.run([gcc, "-O2", "-shared", "-fPIC", "-o", library, folder / "oracle.c"], check=True)
    function = ctypes.CDLL(str(library)).tags_of
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    memory = (ctypes.c_char * 1024)()
    start = -(-ctypes.addressof(memory) // 64) * 64

    def tags(image: Image) -> int:
        assert len(memory) == 1024  # kept alive by this closure
        ctypes.memmove(start, image.to_bytes(), 512)
        environment = (ctypes.c_uint8 * 108)()
        function(start, environment)
        return int.from_bytes(bytes(environment[8:10]), "little")

    return tags


def _random_x87(source: random.Random) -> Image:
    image = Image.initial(LEGACY_LAYOUT)
    view = image.store.view
    view[2:4] = (source.randrange(8) << 11).to_bytes(2, "little")
    view[4] = source.choice((0, 0xFF, source.getrandbits(8)))
    for start in range(32, 160, 16):
        exponent = source.choice((*EXPONENTS, source.getrandbits(16)))
        significand = source.choice((*SIGNIFICANDS, source.getrandbits(64)))
        view[start : start + 10] = (exponent << 64 | significand).to_bytes(10, "little")
    view[512] = 0b11
    return image


def test_the_full_tag_word_is_that_of_fnsave(fnsave_tags) -> None:
    source = random.Random(87)
    for _ in range(ROUNDS):
        image = _random_x87(source)
        assert image.registers["ftag"] == fnsave_tags(image)


def test_tags_by_stack_position_are_not_those_of_fnsave(fnsave_tags) -> None:
    """The negative control: tags that ignore TOP, as several debuggers compute them, differ."""
    source, wrong = random.Random(87), 0
    for _ in range(ROUNDS):
        image = _random_x87(source)
        twin = image.copy()
        twin.store.view[3] &= 0xC7
        wrong += twin.registers["ftag"] != fnsave_tags(image)
    assert wrong > ROUNDS // 2


def test_a_control_word_compares_as_the_processor_reads_it_back(core):
    layout = Layout.standard(Cpu.host())
    for bits in (*(1 << bit for bit in range(16)), 0, 0x037F, 0xFFFF):
        stated = Image.initial(layout)
        stated.registers["fctrl"] = bits
        data = core.exchange(stated.to_bytes(), core.features()["managed_mask"])
        saved = Image(bytearray(data[: layout.size]), layout)
        assert saved.registers["fctrl"] == stated.registers.canonical("fctrl")
        assert saved == stated
