"""MXCSR, FCW and FSW: fields by name, readable text, ES and B as a restore computes them."""

import pytest

from fpstate.errors import NumberError
from fpstate.image import ControlWord, FpException, Mxcsr, Precision, Rounding, StatusWord

ALL = FpException(0x3F)


def test_the_initial_mxcsr_masks_everything_and_rounds_to_nearest() -> None:
    mxcsr = Mxcsr(0x1F80)
    assert (mxcsr.masks, mxcsr.exceptions, mxcsr.rounding) == (ALL, FpException(0), Rounding.NEAREST)
    assert (mxcsr.daz, mxcsr.ftz, mxcsr.misaligned_mask) == (False, False, False)


@pytest.mark.parametrize(
    ("field", "value", "bits"),
    [
        ("exceptions", FpException.INVALID | FpException.PRECISION, 0x21),
        ("daz", True, 0x40),
        ("masks", FpException.ZERO_DIVIDE, 0x200),
        ("rounding", Rounding.ZERO, 0x6000),
        ("ftz", True, 0x8000),
        ("misaligned_mask", True, 0x20000),
    ],
)
def test_each_mxcsr_field_is_where_the_manual_has_it(field: str, value: int, bits: int) -> None:
    assert Mxcsr(0).replace(**{field: value}) == Mxcsr(bits)
    assert getattr(Mxcsr(bits), field) == value
    assert Mxcsr(bits).replace(**{field: 0}) == Mxcsr(0)


def test_the_initial_control_word_computes_in_extended_precision() -> None:
    control = ControlWord(0x37F)
    assert (control.masks, control.precision, control.rounding) == (ALL, Precision.EXTENDED, Rounding.NEAREST)
    changed = control.replace(precision=Precision.DOUBLE, rounding=Rounding.UP, infinity=1)
    assert int(changed) == 0x1A7F


def test_the_status_word_tells_its_flags_apart() -> None:
    status = StatusWord(0).replace(top=6, c0=1, c3=1, sf=1)
    assert int(status) == 6 << 11 | 1 << 8 | 1 << 14 | 1 << 6
    assert (status.top, status.c0, status.c1, status.c2, status.c3, status.sf) == (6, 1, 0, 0, 1, 1)


def test_es_and_b_follow_from_flags_and_masks_alone() -> None:
    unmasked, masked = ControlWord(0x37B), ControlWord(0x37F)
    assert int(StatusWord(0x0004).recomputed(unmasked)) == 0x8084
    assert int(StatusWord(0x8084).recomputed(masked)) == 0x0004
    assert int(StatusWord(0x8080).recomputed(unmasked)) == 0


def test_text_names_what_is_set() -> None:
    assert str(Mxcsr(0x1F80)) == "0x00001f80 masks=IDZOUP rounding=nearest"
    assert str(Mxcsr(0xFFC1)) == "0x0000ffc1 exceptions=I masks=IDZOUP rounding=zero flags=DAZ+FTZ"
    assert str(ControlWord(0x27F)) == "0x027f masks=IDZOUP precision=double rounding=nearest"
    assert str(StatusWord(0x8084)) == "0x8084 exceptions=Z top=0 flags=ES+B"


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(NumberError):
        ControlWord(0x10000)
    with pytest.raises(NumberError, match="rounding"):
        Mxcsr(0x1F80).replace(rounding=4)
    with pytest.raises(NumberError) as caught:
        Mxcsr(0x1F80).replace(precision=1)
    assert "rounding" in caught.value.help


def test_values_are_values() -> None:
    assert Mxcsr(0x1F80) == Mxcsr(0x1F80)
    assert len({Mxcsr(1), Mxcsr(1), Mxcsr(2)}) == 2
    assert ControlWord(1) != StatusWord(1)
    assert f"{Mxcsr(0x1F80):}" == str(Mxcsr(0x1F80))
    assert hex(Mxcsr(0x1F80)) == "0x1f80"
