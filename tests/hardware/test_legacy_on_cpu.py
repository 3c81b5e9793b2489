"""FSAVE and FXSAVE images, against the ones that this processor stores."""

import ctypes
import random
import subprocess
from collections.abc import Callable

import pytest

from fpstate.image import Image
from fpstate.image.legacy import FXSAVE_LAYOUT, from_fsave, from_fxsave, fsave_selectors, to_fsave, to_fxsave

ROUNDS = 10_000
CONTROLS = (0x037F, 0x037B, 0x0F40, 0x1F7F, 0x027F)
"""With and without masks, in each rounding mode; bit 6 always reads 1."""
EXPONENTS = (0, 0, 1, 0x3FFF, 0x7FFE, 0x7FFF, 0x8000, 0xFFFF)
SIGNIFICANDS = (0, 0, 1, (1 << 63) - 1, 1 << 63, 3 << 62, (1 << 64) - 1)
SOURCE = r"""
/* Loads an FXSAVE image, stores it back as FXSAVE64 does and then as FNSAVE does. The caller's x87 and SSE
   state comes back. */
void store_both(const void *image, void *fxsave, void *fsave)
{
    unsigned char before[512] __attribute__((aligned(16)));
    __asm__ volatile("fxsave64 %0\n\tfxrstor64 (%2)\n\tfxsave64 (%3)\n\tfnsave (%4)\n\tfxrstor64 %1"
                     : "=m"(before)
                     : "m"(before), "r"(image), "r"(fxsave), "r"(fsave)
                     : "memory");
}

/* Loads an FSAVE image by FRSTOR and stores it as FXSAVE64 does. */
void load_fsave(const void *fsave, void *fxsave)
{
    unsigned char before[512] __attribute__((aligned(16)));
    __asm__ volatile("fxsave64 %0\n\tfrstor (%2)\n\tfxsave64 (%3)\n\tfxrstor64 %1"
                     : "=m"(before)
                     : "m"(before), "r"(fsave), "r"(fxsave)
                     : "memory");
}
"""
Stored = tuple[bytes, bytes]


@pytest.fixture(scope="module")
def library(core, gcc, tmp_path_factory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("oracle")
    (folder / "oracle.c").write_text(SOURCE)
    path = folder / "oracle.so"
    subprocess.run([gcc, "-O2", "-shared", "-fPIC", "-o", path, folder / "oracle.c"], check=True)
    return ctypes.CDLL(str(path))


@pytest.fixture(scope="module")
def store_both(library) -> Callable[[bytes], Stored]:
    """What FXSAVE64 and FNSAVE store after an FXSAVE image was loaded."""
    memory = (ctypes.c_char * 2048)()
    start = -(-ctypes.addressof(memory) // 64) * 64
    places = [ctypes.c_void_p(start + 512 * index) for index in range(3)]

    def store(image: bytes) -> Stored:
        ctypes.memmove(start, image, 512)
        library.store_both(*places)
        assert len(memory) == 2048  # kept alive by this closure
        return ctypes.string_at(start + 512, 512), ctypes.string_at(start + 1024, 108)

    return store


def random_state(source: random.Random) -> Image:
    """Any tags, TOP, flags and contents, under control words that mask some exceptions or all."""
    image = Image.initial(FXSAVE_LAYOUT)
    image.store.activate(0)
    registers = image.registers
    registers["fctrl"] = source.choice(CONTROLS)
    registers["fstat"] = source.randrange(8) << 11 | source.choice((0, 0, source.getrandbits(16) & 0xC7FF))
    registers["fop"] = source.getrandbits(11)
    registers["fip"], registers["fdp"] = source.getrandbits(47), source.getrandbits(32)
    for index in range(8):
        exponent = source.choice((*EXPONENTS, source.getrandbits(16)))
        registers[f"st{index}"] = exponent << 64 | source.choice((*SIGNIFICANDS, source.getrandbits(64)))
    registers["ftag_abridged"] = source.choice((0, 0xFF, source.getrandbits(8), source.getrandbits(8)))
    return image


def as_written(stored: Image, data: bytes) -> bytes:
    """The FSAVE form of what FXSAVE stored, with the selectors that only FNSAVE states."""
    cs, ds = fsave_selectors(data)
    return to_fsave(stored, cs=cs, ds=ds)


def pending(image: Image) -> bool:
    return image.registers.status_word.pending(image.registers.control_word)


def without_pointers(data: bytes) -> bytes:
    """An FSAVE image with zeros for FIP, FCS, FOP, FDP and FDS."""
    return data[:12] + bytes(16) + data[28:]


def test_the_fsave_image_is_that_of_fnsave(store_both) -> None:
    """Byte for byte, full tag word and pointers included.

    FXSAVE on AMD stores the pointers as zeros while no exception is pending; FNSAVE stores them all the same. Where
    the kernel switches tasks between the load and FNSAVE they are lost with it, since it saves as FXSAVE does.
    """
    source = random.Random(0x87)
    lost = 0
    for _ in range(ROUNDS):
        image = random_state(source)
        fxsave, fsave = store_both(to_fxsave(image))
        written = as_written(image, fsave)
        if written != fsave and not pending(image):
            lost += 1
            written, fsave = without_pointers(written), without_pointers(fsave)
        assert written == fsave
        assert from_fxsave(fxsave) == image
        assert from_fsave(fsave).registers["ftag"] == image.registers["ftag"]
    assert lost < ROUNDS // 100


def test_fnsave_images_are_read_and_written_back_alike(store_both) -> None:
    source = random.Random(0x88)
    for _ in range(ROUNDS // 10):
        fxsave, fsave = store_both(to_fxsave(random_state(source)))
        read = from_fsave(fsave)
        assert as_written(read, fsave) == fsave
        x87 = from_fxsave(fxsave).registers
        for name in read.registers.names():
            if name.rstrip("0123456789") in ("st", "mm", "fctrl", "fstat", "ftag", "ftag_abridged"):
                assert read.registers[name] == x87[name]


def test_frstor_loads_what_is_read(library, store_both) -> None:
    source = random.Random(0x89)
    memory = (ctypes.c_char * 1024)()
    start = -(-ctypes.addressof(memory) // 64) * 64
    for _ in range(ROUNDS // 10):
        data = to_fsave(random_state(source))
        library.load_fsave(data, ctypes.c_void_p(start))
        loaded = from_fxsave(ctypes.string_at(start, 512))
        assert loaded.registers["ftag"] == from_fsave(data).registers["ftag"]
        for name in ("fctrl", "fstat", *(f"st{index}" for index in range(8))):
            assert loaded.registers.canonical(name) == from_fsave(data).registers.canonical(name)


def test_slots_in_register_order_would_be_noticed(store_both) -> None:
    """The negative control: values by physical register, as the tags are, are not what FNSAVE stores."""
    source, wrong = random.Random(0x8A), 0
    for _ in range(200):
        image = random_state(source)
        _, fsave = store_both(to_fxsave(image))
        top = image.registers.status_word.top
        ours = as_written(image, fsave)
        slots = [ours[28 + 10 * index : 38 + 10 * index] for index in range(8)]
        turned = b"".join(slots[(index - top) & 7] for index in range(8))
        wrong += turned != fsave[28:]
    assert wrong > 100
