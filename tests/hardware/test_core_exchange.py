"""States that go through the registers of this processor come out as they went in."""

import ctypes
import random
import struct
from collections.abc import Callable
from types import ModuleType

import pytest

from fpstate.arch import Cpu, Format, Layout
from fpstate.errors import ImageError, RestoreFault
from fpstate.image import Image, differences

ROUNDS = 3000
XSTATE_BV, XCOMP_BV, RESERVED = 512, 520, 528


@pytest.fixture(params=[Format.STANDARD, Format.COMPACTED], ids=["standard", "compacted"])
def source_format(core: ModuleType, request: pytest.FixtureRequest) -> Format:
    if request.param is Format.COMPACTED and not core.features()["xsavec"]:
        pytest.skip("XSAVEC (CPUID.(0DH,1):EAX[1])")
    return request.param


@pytest.fixture(params=[Format.STANDARD, Format.COMPACTED], ids=["xsave", "xsavec"])
def save_format(core: ModuleType, request: pytest.FixtureRequest) -> Format:
    if request.param is Format.COMPACTED and not core.features()["xsavec"]:
        pytest.skip("XSAVEC (CPUID.(0DH,1):EAX[1])")
    return request.param


@pytest.fixture
def through_registers(core: ModuleType) -> Callable[[bytes, Format], Image]:
    """Load bytes with XRSTOR and save the registers in a format."""
    cpu, mask = Cpu.host(), core.features()["managed_mask"]
    layouts = {Format.STANDARD: Layout.standard(cpu, mask), Format.COMPACTED: Layout.compacted(cpu, mask)}

    def pass_through(data: bytes, format: Format) -> Image:
        saved = bytearray(core.exchange(data, mask, format is Format.COMPACTED))
        if format is Format.STANDARD:
            # XSAVE counts XMM alone in XSTATE_BV[1], and writes MXCSR all the same
            saved[XSTATE_BV] |= struct.unpack_from("<I", saved, 24)[0] != 0x1F80 and 2
        return Image(bytes(saved[: layouts[format].size]), layouts[format])

    return pass_through


def test_random_states_survive_the_registers(random_image, through_registers, source_format, save_format):
    source = random.Random(f"{source_format}{save_format}")
    for _ in range(ROUNDS):
        image = random_image(source, source_format)
        after = through_registers(image.to_bytes(), save_format)
        assert not differences(image, after)
        assert image == after


def test_a_flipped_bit_is_a_difference(random_image, through_registers, source_format, save_format, any_bits):
    """The negative control: the comparison above sees each single bit of a register."""
    source = random.Random(9)
    names = Image.initial(Layout.standard(Cpu.host(), any_bits)).registers.names(widest=True)
    for _ in range(300):
        image = random_image(source, source_format)
        name = source.choice(names)
        if name in {"fop", "fip", "fdp", "fstat", "ftag", "mxcsr_mask", "mxcsr", "fctrl"}:
            continue
        twin = image.copy()
        bit = 1 << source.randrange(8 * image.registers.size_of(name))
        twin.registers[name] ^= bit
        after = through_registers(twin.to_bytes(), save_format)
        assert image != after
        found = {difference.register for difference in differences(image, after)}
        assert name in found
        assert found <= {name, "ftag", "ftag_abridged"}


def test_what_is_absent_is_initial_whatever_its_bytes_say(random_image, through_registers, source_format):
    source = random.Random(4)
    image = random_image(source, source_format)
    data = bytearray(image.to_bytes())
    data[XSTATE_BV:XCOMP_BV] = bytes(8)
    data[24:28] = (0x1F80).to_bytes(4, "little")
    assert through_registers(bytes(data), Format.STANDARD).in_use == 0


def test_the_reserved_bits_of_fcw_come_back_as_the_processor_has_them(through_registers, core):
    image = Image.initial(Layout.standard(Cpu.host(), core.features()["managed_mask"]))
    for written, read in ((0, 0x40), (0xFFFF, 0x1F7F), (0x037F, 0x037F)):
        image.registers["fctrl"] = written
        assert through_registers(image.to_bytes(), Format.STANDARD).registers["fctrl"] == read


def _control_words() -> tuple[int, int]:
    """MXCSR and FCW of this thread, by way of fegetenv (glibc's fenv_t on x86-64)."""
    environment = (ctypes.c_uint32 * 8)()
    assert ctypes.CDLL("libm.so.6").fegetenv(environment) == 0
    return environment[7], environment[0] & 0xFFFF


def test_the_control_words_of_the_thread_stay(core, random_image, source_format):
    libm = ctypes.CDLL("libm.so.6")
    before = _control_words()
    assert libm.fesetround(0xC00) == 0
    try:
        chopped = _control_words()
        assert chopped != before
        source = random.Random(3)
        for _ in range(50):
            core.exchange(random_image(source, source_format).to_bytes(), core.features()["managed_mask"])
            assert _control_words() == chopped
    finally:
        libm.fesetround(0)
    assert 0.1 + 0.2 == 0.30000000000000004


def _first_disabled(mask: int) -> int:
    return next(1 << number for number in range(63) if not mask >> number & 1)


def _poke(offset: int, value: bytes) -> Callable[[bytearray], None]:
    def poke(data: bytearray) -> None:
        data[offset : offset + len(value)] = value

    return poke


STANDARD_POISON = {
    "XSTATE_BV outside XCR0": lambda data, mask: _poke(
        XSTATE_BV, _first_disabled(mask).to_bytes(8, "little")
    ),
    "XSTATE_BV bit 63": lambda data, mask: _poke(XSTATE_BV, (1 << 63).to_bytes(8, "little")),
    "XCOMP_BV without bit 63": lambda data, mask: _poke(XCOMP_BV, (1).to_bytes(8, "little")),
    "reserved bytes 16-23 of the header": lambda data, mask: _poke(RESERVED, b"\1"),
}
COMPACTED_POISON = {
    "XSTATE_BV outside XCOMP_BV": lambda data, mask: _poke(
        XSTATE_BV, _first_disabled(mask).to_bytes(8, "little")
    ),
    "XCOMP_BV outside XCR0": lambda data, mask: _poke(
        XCOMP_BV, (1 << 63 | mask | _first_disabled(mask)).to_bytes(8, "little")
    ),
    "reserved bytes 16-23 of the header": lambda data, mask: _poke(RESERVED, b"\1"),
    "reserved bytes 56-63 of the header": lambda data, mask: _poke(575, b"\x80"),
}
POISON = [
    *((Format.STANDARD, name, make) for name, make in STANDARD_POISON.items()),
    *((Format.COMPACTED, name, make) for name, make in COMPACTED_POISON.items()),
]


@pytest.mark.parametrize(("form", "name", "make"), POISON, ids=[f"{p[0].value}: {p[1]}" for p in POISON])
def test_an_illegal_header_is_refused_and_the_process_lives(
    core, random_image, through_registers, form, name, make
):
    if form is Format.COMPACTED and not core.features()["xsavec"]:
        pytest.skip("XSAVEC (CPUID.(0DH,1):EAX[1])")
    image = random_image(random.Random(name), form)
    data, before = bytearray(image.to_bytes()), _control_words()
    assert through_registers(bytes(data), Format.STANDARD) == image
    make(data, core.features()["xcr0"])(data)
    for _ in range(3):
        with pytest.raises(RestoreFault, match="XRSTOR"):
            core.exchange(bytes(data), core.features()["managed_mask"])
    assert _control_words() == before
    assert through_registers(image.to_bytes(), Format.STANDARD) == image


def test_each_reserved_bit_of_mxcsr_is_refused(core, through_registers):
    image = Image.initial(Layout.standard(Cpu.host(), core.features()["managed_mask"]))
    image.registers["xmm0"] = 1
    for bit in range(32):
        data = bytearray(image.to_bytes())
        data[24:28] = (0x1F80 ^ 1 << bit).to_bytes(4, "little")
        if core.mxcsr_mask() >> bit & 1:
            assert through_registers(bytes(data), Format.STANDARD).registers["mxcsr"] == 0x1F80 ^ 1 << bit
        else:
            with pytest.raises(RestoreFault):
                core.exchange(bytes(data), core.features()["managed_mask"])


def test_what_xrstor_left_behind_reaches_nobody(core, random_image, through_registers, statable):
    """After a refused restore the registers are initial, not half of the refused image.

    What is in use before is what the C library uses itself, as it does again on the way back.
    """
    before = core.xgetbv(1) if core.features()["xgetbv1"] else 0
    image = random_image(random.Random(8), Format.STANDARD)
    image.store.view[XSTATE_BV:XCOMP_BV] = statable.to_bytes(8, "little")
    data = bytearray(image.to_bytes())
    data[24:28] = b"\xff\xff\xff\xff"
    with pytest.raises(RestoreFault, match="MXCSR 0xffffffff at byte 24"):
        core.exchange(bytes(data), core.features()["managed_mask"])
    if core.features()["xgetbv1"]:
        assert core.xgetbv(1) & ~before & ~0b11 == 0


def test_an_image_longer_than_any_is_refused(core):
    with pytest.raises(ImageError, match="longer"):
        core.exchange(bytes(1 << 20), core.features()["managed_mask"])


def test_a_short_image_is_read_as_if_zeros_followed(core, through_registers):
    assert through_registers(bytes(576), Format.STANDARD).registers["mxcsr"] == 0
    with pytest.raises(RestoreFault):
        core.exchange(bytes(24) + b"\xff" * 4, core.features()["managed_mask"])


def test_compact_saves_are_refused_where_there_is_no_xsavec(core):
    from fpstate.errors import UnsupportedHere

    if core.features()["xsavec"]:
        pytest.skip("a processor without XSAVEC")
    with pytest.raises(UnsupportedHere, match="XSAVEC"):
        core.exchange(bytes(576), core.features()["managed_mask"], True)
