"""CRIU's core images made here, with the same messages: every register read back, damage refused at its byte."""

import builtins
import sys

import pytest

pytest.importorskip("google.protobuf", reason="protobuf is not installed (the extra criu)")

from fpstate.arch import Component, Cpu, Format, Layout, mask_of
from fpstate.arch.component import AMX
from fpstate.errors import SourceError, UnsupportedHere
from fpstate.image import differences
from fpstate.source import criu_schema
from fpstate.source.criu import criu_threads
from fpstate.source.open import open_source
from fpstate.source.stream import MemoryStream
from fpstate.testing import build_image, build_layout, random_image
from fpstate.testing.container import criu_core

ZEN4 = Layout.standard(Cpu.catalog("zen4"))


def read(data, name="core-4711.img"):
    (thread,) = criu_threads(MemoryStream(data, name))
    return thread


def with_legacy(image):
    image.store.activate(Component.X87)
    image.store.activate(Component.SSE)
    return image


def message(change):
    """The bytes of an image whose message was changed."""
    data = criu_core(random_image(ZEN4, 5))
    entry = criu_schema.core_entry().FromString(data[12:])
    change(entry)
    body = entry.SerializeToString()
    return data[:8] + len(body).to_bytes(4, "little") + body


@pytest.mark.parametrize("name", ["zen4", "skylake-sp", "ice-lake-sp", "haswell"])
@pytest.mark.parametrize("common_magic", [True, False])
def test_every_register_comes_back(name, common_magic):
    layout = Layout.standard(Cpu.catalog(name))
    image = with_legacy(random_image(layout, 5))
    thread = read(criu_core(image, comm="cat", common_magic=common_magic), "/dumps/core-4711.img")
    assert (thread.tid, thread.name, thread.machine) == (4711, "cat", "x86-64")
    assert (thread.image.layout_source, thread.findings) == ("format", ())
    assert differences(thread.image, image, exact=True) == []


def test_user_shadow_stacks_come_back():
    layout = build_layout("sapphire-rapids", Format.COMPACTED, 7 | mask_of(Component.CET_U))
    image = build_image(layout, {"u_cet": 1, "pl3_ssp": 0x7FFF0000, "ymm3": 1 << 200}, present=layout.mask)
    thread = read(criu_core(image))
    assert (thread.image.registers["pl3_ssp"], thread.image) == (0x7FFF0000, image)


def test_components_that_are_stored_and_not_in_use_are_initial():
    image = random_image(ZEN4, 5, present=ZEN4.mask)
    thread = read(criu_core(image, xstate_bv=3))
    assert (thread.image.in_use, thread.image.registers["zmm17"]) == (3, 0)
    assert thread.image.registers["xmm3"] == image.registers["xmm3"]


def test_what_criu_does_not_store_is_said():
    image = random_image(Layout.standard(Cpu.catalog("sapphire-rapids")), 5, present=0x602E7)
    thread = read(criu_core(image))
    assert [(each.id, each.component) for each in thread.findings] == [("SRC015", 17), ("SRC015", 18)]
    assert "tmm0" not in thread.image.registers
    left = {each.register for each in differences(thread.image, image)}
    assert left <= {f"tmm{n}" for n in range(8)} | {
        field for field in image.registers if field.startswith(("tile", "palette", "start"))
    }
    assert AMX & thread.image.layout.mask == 0


def test_a_compat_task_is_i386_and_one_without_xsave_has_sse_alone():
    assert read(criu_core(random_image(ZEN4, 5), compat=True)).machine == "i386"
    thread = read(message(lambda entry: entry.thread_info.fpregs.ClearField("xsave")))
    assert [each.id for each in thread.findings] == ["SRC004"]
    assert "ymm0" not in thread.image.registers


def test_a_file_of_another_name_names_no_thread(tmp_path):
    path = tmp_path / "renamed.img"
    path.write_bytes(criu_core(with_legacy(random_image(ZEN4, 5))))
    (thread,) = open_source(path)
    assert thread.tid is None


@pytest.mark.parametrize(
    ("data", "text", "offset"),
    [
        (b"", "magic word should have 4 bytes", 0),
        (b"\x19\x43\x56\x54", "second magic word should have", 4),
        (b"\x19\x43\x56\x54\x47\x38\x05\x56", "not that of a CRIU core image", 4),
        (b"\x47\x38\x05\x55\xff\xff\xff\xff", "claims 4294967295 bytes", 4),
        (b"\x47\x38\x05\x55\x05\0\0\0abcd", "claims 5 bytes", 4),
        (b"\x47\x38\x05\x55\x04\0\0\0\xff\xff\xff\xff", "no core_entry message", 8),
        (b"\x47\x38\x05\x55\0\0\0\0", "machine type 0", 8),
        (message(lambda entry: entry.ClearField("thread_info")), "no floating-point state", 12),
        (message(lambda entry: setattr(entry, "mtype", 3)), "machine type 3", 12),
        (message(lambda entry: setattr(entry.thread_info.fpregs, "cwd", 0x10000)), "more than 16 bits", 12),
        (message(lambda entry: entry.thread_info.fpregs.st_space.append(1)), "33 entries, not 32", 12),
        (message(lambda entry: entry.thread_info.fpregs.xsave.pkru.pop()), "1 entries, not 2", 12),
        (message(lambda entry: entry.thread_info.fpregs.xsave.hi16_zmm.extend([0] * 9)), "137 entries", 12),
    ],
)
def test_damage_is_refused_at_its_byte(data, text, offset):
    with pytest.raises(SourceError, match=text) as caught:
        read(data)
    assert caught.value.offset == offset


def test_a_swapped_field_is_noticed_by_these_comparisons(monkeypatch):
    image = with_legacy(random_image(ZEN4, 5, present=ZEN4.mask))
    data = criu_core(image)
    rows = criu_schema.MESSAGES["xsave"]
    swapped = tuple((name, {6: 5, 5: 6}.get(number, number), *rest) for name, number, *rest in rows)
    monkeypatch.setattr(criu_schema, "MESSAGES", {**criu_schema.MESSAGES, "xsave": swapped})
    criu_schema.core_entry.cache_clear()
    try:
        with pytest.raises(SourceError, match="opmask_reg has 64 entries"):
            read(data)
    finally:
        criu_schema.core_entry.cache_clear()


def test_without_protobuf_the_extra_is_named(monkeypatch):
    data, real = criu_core(random_image(ZEN4, 5)), builtins.__import__

    def without(name, *rest):
        if name.startswith("google"):
            raise ImportError(name)
        return real(name, *rest)

    for name in [name for name in sys.modules if name.startswith("google.protobuf")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    criu_schema.core_entry.cache_clear()
    try:
        with pytest.raises(UnsupportedHere, match="protobuf") as caught:
            read(data)
        assert "fpstate[criu]" in caught.value.help
        assert caught.value.exit_code == 3
    finally:
        monkeypatch.undo()
        criu_schema.core_entry.cache_clear()
