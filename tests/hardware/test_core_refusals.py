"""A restore that is refused says by which exception, where and why; what is known before is not tried."""

from __future__ import annotations

import ctypes
import mmap
import signal
from collections.abc import Callable, Iterator

import pytest

from fpstate.arch import Component, Cpu, Format, Layout, mask_of
from fpstate.arch.component import component_name
from fpstate.arch.exception import dynamic_components, restore_fault
from fpstate.errors import ImageError, RestoreFault
from fpstate.image import Image

PAGE = 4096
PROT_NONE = 0
BEFORE_THE_HOLE = 640
"""Bytes of an image before the missing page: AVX lies from 576 to 831. In the standard format the processor may look
at the last byte of all first.
"""
AVX = mask_of(Component.AVX)
XSTATE_BV = 512


@pytest.fixture
def image(core) -> Image:
    mask = core.features()["managed_mask"]
    if not mask & AVX:
        pytest.skip("AVX is not enabled (XCR0[2])")
    image = Image.initial(Layout.standard(Cpu.host(), mask))
    image.registers["ymm3"] = 1 << 200
    return image


@pytest.fixture
def with_a_hole(core) -> Iterator[Callable[[bytes], memoryview]]:
    """with_a_hole(image) -> its bytes in memory of which the second page cannot be read."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    pages = 2 + core.features()["area_size"] // PAGE
    memory = mmap.mmap(-1, pages * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))

    def place(image: bytes) -> memoryview:
        view = memoryview(memory)[PAGE - BEFORE_THE_HOLE :]
        view[: len(image)] = image
        assert libc.mprotect(start + PAGE, PAGE, PROT_NONE) == 0
        return view

    yield place
    assert libc.mprotect(start, pages * PAGE, mmap.PROT_READ | mmap.PROT_WRITE) == 0


def test_memory_that_is_missing_is_a_page_fault_with_its_byte(core, image, with_a_hole):
    with pytest.raises(RestoreFault, match="#PF: byte") as caught:
        core.load_state(with_a_hole(image.to_bytes()))
    error, place = caught.value, image.layout.place(caught.value.component)
    assert (error.vector, error.mnemonic) == (14, "#PF")
    assert place.offset <= error.offset < place.end
    assert error.component == Component.AVX or error.offset == image.layout.size - 1
    assert BEFORE_THE_HOLE <= error.offset < BEFORE_THE_HOLE + PAGE
    assert f"byte {error.offset} " in str(error)
    assert f"{component_name(error.component)} lies there" in str(error)
    assert error.help


def test_a_guest_s_missing_memory_is_told_to_the_engine(native, image, with_a_hole):
    view = with_a_hole(image.to_bytes())
    memory, vcpu, queue = native.Memory(PAGE), native.Vcpu(), native.Queue(compact=False)
    vcpu.code_start, vcpu.code_end = memory.address, memory.address + PAGE
    vcpu.rip = memory.address
    vcpu.attach(view, mask_of(Component.X87, Component.SSE, Component.AVX))
    queue.add(vcpu)
    assert queue.run(100_000, 1_000_000_000) is vcpu
    assert vcpu.exit_kind == native.EXIT_REFUSED
    number, si_code, trap, _, address = vcpu.fault
    offset = address - ctypes.addressof(ctypes.c_char.from_buffer(view))
    assert (number, trap) == (signal.SIGSEGV, 14)
    assert BEFORE_THE_HOLE <= offset < BEFORE_THE_HOLE + PAGE
    assert restore_fault(number, si_code, offset, AVX, 0).component in image.layout


SPOILT = {
    "XSTATE_BV": (512 + 7, b"\x40", "XSTATE_BV 0x4000000000000006 at byte 512"),
    "XCOMP_BV": (520, b"\1", "XCOMP_BV 0x1 at byte 520"),
    "a reserved byte": (530, b"\3", "0x3 at byte 530"),
    "MXCSR": (24, b"\xff\xff\xff\xff", "MXCSR 0xffffffff at byte 24"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_refused_exchange_says_why(core, image, name):
    at, data, why = SPOILT[name]
    image.registers["xmm0"] = 1
    image.store.view[at : at + len(data)] = data
    with pytest.raises(RestoreFault, match=r"^XRSTOR raised #GP: ") as caught:
        core.exchange(image.to_bytes(), core.features()["managed_mask"])
    assert (caught.value.vector, caught.value.mnemonic, caught.value.component) == (13, "#GP", None)
    assert why in str(caught.value)
    assert caught.value.offset <= at < caught.value.offset + 8


@pytest.mark.parametrize("name", SPOILT)
def test_a_check_says_where_what_and_what_may_be(core, image, name):
    at, data, why = SPOILT[name]
    slab = core.Slab(-(-core.features()["area_size"] // 64) * 64, 1)
    view = memoryview(slab)
    image.registers["xmm0"] = 1
    image.store.view[at : at + len(data)] = data
    view[: len(image.to_bytes())] = image.to_bytes()
    for use in (core.check_image, core.load_state, core.Context().load):
        with pytest.raises(ImageError) as caught:
            use(view)
        assert why in str(caught.value)
        assert caught.value.offset <= at < caught.value.offset + 8
        assert caught.value.found != caught.value.expected
        assert caught.value.component is None


def test_a_legal_image_passes_the_check(core, image):
    assert core.check_image(image.to_bytes()) is None


def test_what_the_kernel_holds_back_is_what_cpuid_names(core):
    """And what it permits: all of what it enabled but for that, as long as nobody asks."""
    found = core.features()
    assert found["dynamic_mask"] == dynamic_components(Cpu.host()) & found["managed_mask"]
    if found["permission"] is not None:
        assert found["xcr0"] & ~found["permission"] & ~found["dynamic_mask"] == 0


@pytest.mark.parametrize("form", list(Format))
def test_tiles_are_refused_before_they_are_tried_where_they_are_not_permitted(core, form):
    found = core.features()
    if not found["dynamic_mask"]:
        pytest.skip("a component that IA32_XFD can hold back (CPUID.(0DH,i):ECX[2])")
    if found["permission"] is None or not found["dynamic_mask"] & ~found["permission"]:
        pytest.skip("a process without permission for it: this one has it")
    layout = (Layout.standard if form is Format.STANDARD else Layout.compacted)(
        Cpu.host(), found["managed_mask"]
    )
    image = Image.initial(layout)
    image.store.view[XSTATE_BV : XSTATE_BV + 8] = found["managed_mask"].to_bytes(8, "little")
    with pytest.raises(ImageError, match="no permission for TILEDATA") as before:
        core.Context().load(image.to_bytes())
    assert before.value.component == Component.TILEDATA
    with pytest.raises(RestoreFault, match="#NM: no permission for TILEDATA") as tried:
        core.exchange(image.to_bytes(), found["managed_mask"])
    assert (tried.value.mnemonic, tried.value.component) == ("#NM", Component.TILEDATA)
