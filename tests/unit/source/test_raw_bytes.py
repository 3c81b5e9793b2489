"""Raw images of every processor of the catalog: read back whole where the layout is known, else refused by name."""

import json

import pytest

from fpstate.arch import Cpu, Format, Layout
from fpstate.command.main import main
from fpstate.errors import AmbiguousLayout, SourceError
from fpstate.image import differences
from fpstate.image.legacy import to_fsave, to_fxsave
from fpstate.source.inference import KNOWN, layout_of
from fpstate.source.open import open_source
from fpstate.source.raw import LONGEST, format_of, open_raw
from fpstate.source.raw_format import FORMATS
from fpstate.testing import build_image, build_layout, random_image
from fpstate.testing.container import kvm_fpu, kvm_xsave, signal_frame
from fpstate.testing.core import register_set

ZEN4 = Cpu.catalog("zen4")
POISON = b"\xcc"


@pytest.mark.parametrize("name", Cpu.catalog_names())
@pytest.mark.parametrize("format", Format)
def test_a_named_processor_settles_the_layout(name, format):
    cpu = Cpu.catalog(name)
    mask = cpu.xcr0 if format is Format.STANDARD else cpu.user_mask | cpu.supervisor_mask
    image = random_image(build_layout(cpu, format, mask), 7, leftovers=POISON)
    (state,) = open_raw(image.to_bytes(), cpu=cpu)
    assert (state.image.layout, state.image.layout_source) == (image.layout, "given")
    assert differences(state.image, image, exact=True) == []
    assert (state.tid, state.xcr0, state.findings) == (None, None, ())


@pytest.mark.parametrize("name", Cpu.catalog_names())
def test_a_register_set_states_xcr0_and_is_inferred(name):
    cpu = Cpu.catalog(name)
    image = random_image(Layout.standard(cpu, cpu.xcr0), 7)
    (state,) = open_raw(register_set(image))
    assert (state.image.layout_source, state.xcr0) == ("inferred", cpu.xcr0)
    assert differences(state.image, image, exact=True) == []


def candidates(size):
    """The distinct known layouts of all of a processor's components that have this size."""
    layouts = {layout_of(known.places, known.xcr0) for known in KNOWN}
    return [layout for layout in layouts if layout.size == size]


@pytest.mark.parametrize("name", Cpu.catalog_names())
def test_without_any_hint_what_fits_several_processors_is_never_taken(name):
    cpu = Cpu.catalog(name)
    image = random_image(Layout.standard(cpu, cpu.xcr0), 7, present=3)
    if len(candidates(image.layout.size)) == 1:
        assert differences(open_raw(image.to_bytes())[0].image, image, exact=True) == []
    else:
        with pytest.raises(AmbiguousLayout) as caught:
            open_raw(image.to_bytes())
        assert name in caught.value.candidates


@pytest.mark.parametrize("name", ["zen4", "skylake-sp", "sapphire-rapids", "lunar-lake", "zen2"])
def test_a_compacted_header_on_which_all_processors_agree_needs_no_name(name):
    image = random_image(build_layout(name, Format.COMPACTED), 7)
    (state,) = open_raw(image.to_bytes())
    assert state.image.layout_source == "inferred"
    assert differences(state.image, image, exact=True) == []


def test_software_bytes_that_no_processor_has_for_xcr0_do_not_count():
    image = random_image(Layout.standard(Cpu.catalog("haswell")), 3, leftovers=POISON)
    (state,) = open_raw(image.to_bytes())
    assert (state.image == image, state.xcr0) == (True, None)


def test_more_bytes_than_the_image_are_a_finding_and_fewer_an_error():
    image = random_image(build_layout(ZEN4, Format.COMPACTED, 7), 3)
    (state,) = open_raw(image.to_bytes() + POISON * 9, cpu=ZEN4)
    assert state.image == image
    assert [(each.id, each.offset) for each in state.findings] == [("SRC006", image.layout.size)]
    with pytest.raises(SourceError, match=r"831 bytes, but .* compacted needs 832") as caught:
        open_raw(image.to_bytes()[:-1], cpu=ZEN4)
    assert caught.value.offset == 831


@pytest.mark.parametrize("length", [0, 1, 107, 109, 511, 513, 575])
def test_what_is_too_short_is_refused_with_its_length(length):
    with pytest.raises(SourceError, match=f"{length} bytes are no state") as caught:
        open_raw(bytes(length), name="x.bin")
    assert (caught.value.source, caught.value.offset) == ("x.bin", length)


def test_every_format_is_told_from_what_it_is():
    image = random_image(Layout.standard(ZEN4), 5)
    made = {
        "std": image.to_bytes(),
        "compacted": random_image(build_layout(ZEN4, Format.COMPACTED), 5).to_bytes(),
        "fxsave": to_fxsave(image),
        "fsave": to_fsave(image),
        "sigframe": signal_frame(image),
        "kvm-xsave": kvm_xsave(image),
        "kvm-fpu": kvm_fpu(image),
    }
    assert set(made) == set(FORMATS)
    for format, data in made.items():
        assert format_of(data) == format
        (told,), (stated,) = open_raw(data, cpu=ZEN4), open_raw(data, cpu=ZEN4, format=format)
        assert told.image == stated.image
        for name in ("st0", "st7", "fctrl"):
            assert told.image.registers[name] == stated.image.registers[name]


def test_a_page_of_xsave_is_not_taken_for_a_buffer_of_kvm():
    image = random_image(Layout.standard(ZEN4), 5, leftovers=POISON)
    data = image.to_bytes().ljust(4096, b"\0")
    assert format_of(data) == "std"
    (state,) = open_raw(data, cpu=ZEN4)
    assert state.image == image


def test_a_layout_that_is_given_is_used_whatever_the_processor():
    image = random_image(Layout.standard(ZEN4), 5)
    (state,) = open_raw(image.to_bytes(), layout=image.layout)
    assert (state.image == image, state.image.layout_source) == (True, "given")
    with pytest.raises(SourceError, match="the layout is compacted, the bytes are std"):
        open_raw(image.to_bytes(), layout=build_layout(ZEN4, Format.COMPACTED))
    with pytest.raises(SourceError, match="needs 2440"):
        open_raw(image.to_bytes()[:-8], layout=image.layout)


def test_the_wrong_layout_is_noticed_by_these_comparisons():
    image = random_image(Layout.standard(ZEN4), 5, present=0x2E7)
    (state,) = open_raw(image.to_bytes().ljust(2696, b"\0"), cpu=Cpu.catalog("ice-lake-sp"))
    assert {"k1", "zmm5", "pkru"} <= {each.register for each in differences(state.image, image)}


def test_a_format_that_does_not_exist_is_refused():
    with pytest.raises(SourceError, match="'xsave' is no format"):
        open_raw(bytes(576), format="xsave")


def test_more_than_a_mebibyte_is_no_single_state(tmp_path):
    path = tmp_path / "x"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(SourceError, match="no single state") as caught:
        open_source(path)
    assert caught.value.offset == LONGEST


def test_show_takes_processor_format_and_layout(tmp_path, capsys):
    image = build_image(Layout.standard(Cpu.catalog("ice-lake-sp")), {"zmm17": 17, "k1": 1})
    path, layout = tmp_path / "x.bin", tmp_path / "layout.json"
    path.write_bytes(image.to_bytes())
    assert main(["show", str(path)]) == 4
    assert "candidates" in capsys.readouterr().err
    layout.write_text(json.dumps({"layout": image.layout.to_dict()}))
    for arguments in (
        ["--cpu", "tiger-lake"],
        ["--layout", str(layout)],
        ["--cpu", "ice-lake-sp", "--format", "std"],
    ):
        assert main(["show", str(path), "--json", *arguments]) == 0
        (thread,) = json.loads(capsys.readouterr().out)["threads"]
        assert thread["layout_source"] == "given"
        assert int(thread["registers"]["zmm17"], 16) == 17


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000, '{"layout": 3}', '{"format": "std"}'])
def test_show_refuses_what_is_no_layout(text, tmp_path, capsys):
    path, layout = tmp_path / "x.bin", tmp_path / "layout.json"
    path.write_bytes(bytes(576))
    layout.write_text(text)
    assert main(["show", str(path), "--layout", str(layout)]) == 2
    assert capsys.readouterr().err.startswith("fpstate: ")


def test_convert_and_diff_read_frames_and_kvms_buffers(tmp_path, capsys):
    image = random_image(Layout.standard(ZEN4), 5)
    frame, buffer, out = tmp_path / "frame", tmp_path / "kvm", tmp_path / "out"
    frame.write_bytes(signal_frame(image))
    buffer.write_bytes(kvm_xsave(image))
    assert main(["diff", str(frame), str(buffer), "--cpu", "zen4"]) == 0
    assert main(["convert", str(buffer), str(out), "--cpu", "zen4", "--from-format", "kvm-xsave"]) == 0
    assert open_raw(out.read_bytes(), cpu=ZEN4)[0].image == image
