"""Many images in one buffer: views that copy nothing, and native moves that do what ``convert`` does."""

import random
import sys

import pytest

from fpstate.arch import Component, Cpu, Format, Layout, mask_of
from fpstate.errors import ImageError, LayoutError, RegisterError, UnsupportedHere
from fpstate.image import Image
from fpstate.image.convert import convert
from fpstate.source.bulk import Bulk
from fpstate.source.gather import compact, compact_size, converted, vectors
from fpstate.testing import build_image, build_layout, random_image

ZEN4 = Cpu.catalog("zen4")
LAYOUT = Layout.standard(ZEN4)
NAMES = ("zen4", "sapphire-rapids", "diamond-rapids-model", "skylake-sp", "zen2", "haswell")
COUNT = 40

pytest.importorskip("fpstate._core", reason="the native core (fpstate._core) is not built")


def many(layout: Layout, count: int = COUNT, *, stride: int = 0, seed: int = 1) -> Bulk:
    """Images of random classes with leftovers everywhere, some of them with an MXCSR that AVX alone carries."""
    stride = stride or layout.size
    data, source = bytearray(b"\xa5" * (count * stride)), random.Random(seed)
    for index in range(count):
        image = random_image(layout, source.randrange(1 << 30), leftovers=b"\xa5")
        if source.random() < 0.3 and layout.format is Format.STANDARD and Component.AVX in layout:
            image = build_image(layout, {"ymm3h": 5}, leftovers=b"\xa5")
            image.store.view[24:28] = source.choice((0x1F80, 0x1FA0)).to_bytes(4, "little")
        data[index * stride : index * stride + layout.size] = image.to_bytes()
    return Bulk(data, layout, stride=stride)


def test_images_are_views() -> None:
    bulk = many(LAYOUT, stride=4096)
    assert len(bulk) == COUNT
    bulk[3].registers["xmm0"] = 0x1234
    assert bulk.view[3 * 4096 + 160 : 3 * 4096 + 162] == b"\x34\x12"
    assert bulk[-COUNT].to_bytes() == bulk[0].to_bytes()
    assert [image.to_bytes() for image in bulk] == [bulk[index].to_bytes() for index in range(COUNT)]
    assert [image.to_bytes() for image in bulk[2:9:3]] == [bulk[index].to_bytes() for index in (2, 5, 8)]
    assert len(bulk[50:]) == 0


@pytest.mark.parametrize("index", [COUNT, -COUNT - 1, 10**12])
def test_there_is_no_image_behind_the_last(index: int) -> None:
    with pytest.raises(IndexError):
        many(LAYOUT)[index]


def test_images_cannot_reach_beyond_the_buffer_or_into_each_other() -> None:
    with pytest.raises(ImageError) as caught:
        Bulk(bytes(LAYOUT.size * 2 - 1), LAYOUT, count=2)
    assert (caught.value.found, caught.value.expected) == (LAYOUT.size * 2 - 1, LAYOUT.size * 2)
    with pytest.raises(ImageError):
        Bulk(bytes(9999), LAYOUT, stride=LAYOUT.size - 1)
    with pytest.raises(ImageError):
        Bulk(bytes(9999), LAYOUT, count=-1)
    assert len(Bulk(bytes(LAYOUT.size - 1), LAYOUT)) == 0
    assert len(Bulk(bytes(4096 + LAYOUT.size), LAYOUT, stride=4096)) == 2


def test_columns_are_views() -> None:
    bulk = many(LAYOUT)
    column = bulk.column("mxcsr")
    assert list(column) == [int.from_bytes(image.store.view[24:28], "little") for image in bulk]
    column[7] = 0x1FBF
    assert bulk.view[7 * bulk.stride + 24] == 0xBF
    assert list(bulk.column("xstate_bv")) == [image.xstate_bv for image in bulk]
    assert list(bulk.column("k3")) == [
        int.from_bytes(image.store.view[832 + 24 : 832 + 32], "little") for image in bulk
    ]
    assert len(bulk[:0].column("mxcsr")) == 0


@pytest.mark.parametrize("name", ["zmm0", "xmm1", "st0", "ftag", "r16"])
def test_what_is_no_column_is_refused(name: str) -> None:
    with pytest.raises(RegisterError):
        many(LAYOUT).column(name)


def test_numpy_shows_the_same_bytes() -> None:
    numpy = pytest.importorskip("numpy")
    bulk = many(LAYOUT, stride=2500)
    array = bulk.numpy()
    assert array.shape == (COUNT,)
    assert list(array["mxcsr"]) == [int.from_bytes(image.store.view[24:28], "little") for image in bulk]
    place = LAYOUT.offset(Component.HI16_ZMM)
    for index, image in enumerate(bulk):
        assert array["zmm_16_31"][index].tobytes() == image.store.view[place : place + 1024]
        assert array["xmm"][index, 3].tobytes() == image.store.view[208:224]
    array["pkru"][2] = 77
    assert bulk[2].store.view[2432] == 77
    assert numpy.shares_memory(array, numpy.frombuffer(bulk.view, "u1"))


def test_without_numpy_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(UnsupportedHere, match="NumPy"):
        many(LAYOUT).numpy()


@pytest.mark.parametrize("stream", [False, True, None])
@pytest.mark.parametrize(
    ("name", "prefix", "shape"), [("zen4", "zmm", (32, 64)), ("haswell", "ymm", (16, 32))]
)
def test_vectors_are_those_of_the_images(
    name: str, prefix: str, shape: tuple[int, int], stream: bool | None
) -> None:
    bulk = many(build_layout(name))
    found = vectors(bulk, stream=stream)
    assert found.shape == (COUNT, *shape)
    flat = found.cast("B")
    for index, image in enumerate(bulk):
        for register in range(shape[0]):
            at = (index * shape[0] + register) * shape[1]
            value = int.from_bytes(flat[at : at + shape[1]], "little")
            assert value == image.registers[f"{prefix}{register}"], (index, register)


def test_vectors_of_sse_alone_and_of_compacted_images() -> None:
    legacy = many(Layout.standard(ZEN4, 3))
    assert vectors(legacy).shape == (COUNT, 16, 16)
    compacted = many(build_layout("sapphire-rapids", Format.COMPACTED))
    flat = vectors(compacted).cast("B")
    for index, image in enumerate(compacted):
        start = index * 2048 + 20 * 64
        assert int.from_bytes(flat[start : start + 64], "little") == image.registers["zmm20"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_compacting_many_is_converting_each(name: str, stream: bool) -> None:
    cpu = Cpu.catalog(name)
    bulk = many(Layout.standard(cpu, cpu.xcr0), stride=-(-Layout.standard(cpu, cpu.xcr0).size // 64) * 64 + 8)
    seen = []
    for group in compact(bulk, cpu, stream=stream):
        for index, image in zip(group.indices, group.images, strict=True):
            assert image.to_bytes() == convert(bulk[index], group.images.layout).image.to_bytes()
            assert image.xcomp_bv == group.images.layout.xcomp_bv
            assert image.xstate_bv == group.images.layout.mask
            seen.append(index)
        assert list(group.indices) == sorted(group.indices)
    assert sorted(seen) == list(range(COUNT))
    assert len(compact(bulk, cpu)) > 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_converting_many_is_converting_each(name: str, stream: bool) -> None:
    cpu = Cpu.catalog(name)
    layouts = Layout.standard(cpu, cpu.xcr0), Layout.compacted(cpu, cpu.xcr0)
    for source, target in (layouts, layouts[::-1], (layouts[0], layouts[0])):
        bulk = many(source)
        for image, result in zip(bulk, converted(bulk, target, stream=stream), strict=True):
            assert result.to_bytes() == convert(image, target).image.to_bytes()


def test_intel_to_amd_at_once() -> None:
    bulk = many(Layout.standard(Cpu.catalog("ice-lake-sp")))
    for image, result in zip(bulk, converted(bulk, LAYOUT), strict=True):
        assert result == image


def test_what_does_not_fit_is_refused() -> None:
    bulk = many(LAYOUT)
    with pytest.raises(LayoutError, match="OPMASK"):
        converted(bulk, Layout.standard(Cpu.catalog("haswell")))
    with pytest.raises(LayoutError):
        compact(bulk, Cpu.catalog("haswell"))


def test_an_illegal_header_is_named() -> None:
    bulk = many(LAYOUT)
    bulk.view[5 * bulk.stride + 520] = 1
    for run in (lambda: vectors(bulk), lambda: compact(bulk, ZEN4), lambda: converted(bulk, LAYOUT)):
        with pytest.raises(ImageError, match="image 5") as caught:
            run()
        assert caught.value.offset == 5 * bulk.stride + 520
    bulk.view[5 * bulk.stride + 520] = 0
    bulk.view[9 * bulk.stride + 513] |= 0x40
    with pytest.raises(ImageError, match="image 9"):
        vectors(bulk)


def test_room_that_is_given_is_used_and_checked() -> None:
    bulk = many(LAYOUT)
    out = bytearray(COUNT * 2048 + 5)
    out[-5:] = b"guard"
    vectors(bulk, out)
    assert out[-5:] == b"guard"
    assert bytes(out[: COUNT * 2048]) == vectors(bulk).tobytes()
    for small in (bytearray(COUNT * 2048 - 1), bytes(COUNT * 2048)):
        with pytest.raises(ImageError):
            vectors(bulk, small)
    size = compact_size(bulk, ZEN4)
    packed = bytearray(size)
    groups = compact(bulk, ZEN4, packed)
    assert sum(len(group.images) * group.images.stride for group in groups) == size
    groups[0].images.view[0] ^= 0xFF
    assert packed[0] == groups[0].images.view[0]


def test_nothing_at_all_is_fine() -> None:
    bulk = Bulk(b"", LAYOUT)
    assert len(vectors(bulk)) == 0
    assert compact(bulk, ZEN4) == []
    assert len(converted(bulk, LAYOUT)) == 0


def test_leftovers_never_get_out() -> None:
    """0xA5 is everywhere that no state is; none of it may get into what is made of the images."""
    data = bytearray(b"\xa5" * (COUNT * 2496))
    for index in range(COUNT):
        image = build_image(LAYOUT, {"ymm1h": 1}, present=mask_of(Component.OPMASK), leftovers=b"\xa5")
        image.store.view[24:32] = (0x1F80).to_bytes(8, "little")
        data[index * 2496 : index * 2496 + LAYOUT.size] = image.to_bytes()
    bulk = Bulk(data, LAYOUT, stride=2496)
    for stream in (False, True):
        assert 0xA5 not in vectors(bulk, stream=stream).tobytes()
        assert 0xA5 not in converted(bulk, LAYOUT, stream=stream).view.tobytes()
        for group in compact(bulk, ZEN4, stream=stream):
            assert 0xA5 not in group.images.view.tobytes()


def test_a_move_that_forgets_the_classes_would_be_noticed() -> None:
    """The negative control: taking every component as present is not what images say."""
    bulk = many(LAYOUT)
    naive = [image.store.view[160:176].tobytes() for image in bulk]
    good = [int(image.registers["xmm0"]).to_bytes(16, "little") for image in bulk]
    assert naive != good


def test_the_core_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import fpstate

    monkeypatch.delattr(fpstate, "_core", raising=False)
    monkeypatch.setitem(sys.modules, "fpstate._core", None)
    with pytest.raises(UnsupportedHere):
        vectors(many(LAYOUT))
    assert isinstance(many(LAYOUT)[0], Image)
