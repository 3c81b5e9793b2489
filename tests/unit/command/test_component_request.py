"""``--request``: what may be asked for, and what is said where it may not."""

from __future__ import annotations

import argparse
import errno

import pytest

from fpstate.arch import Component, Cpu
from fpstate.command import component_request, engine_choice
from fpstate.command.main import main
from fpstate.command.mix import choose
from fpstate.errors import UnsupportedComponent, UnsupportedHere
from fpstate.program import BUILTIN
from fpstate.vso import kernel_permission
from fpstate.vso.manager import Manager
from fpstate.vso.permission import Kind

TILEDATA = 1 << Component.TILEDATA


def test_names_are_read_in_any_case_and_lists():
    assert component_request.components("TileData") == [Component.TILEDATA]
    assert component_request.components("tiledata, avx") == [Component.TILEDATA, Component.AVX]


@pytest.mark.parametrize("text", ["", "tiles", "18", "tiledata,"])
def test_no_other_name_is_taken(text):
    with pytest.raises(argparse.ArgumentTypeError, match="given on request: tiledata"):
        component_request.components(text)


@pytest.mark.parametrize("kind", list(Kind))
def test_what_was_asked_for_is_permitted(kind):
    manager = Manager(Cpu.catalog("emerald-rapids"))
    component_request.request(manager, [Component.TILEDATA], kind)
    assert [bool(manager.permissions.mask(each) & TILEDATA) for each in (kind, *set(Kind) - {kind})] == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("cpu", "missing"),
    [
        ("zen4", "AMX (CPUID.(07H,0):EDX[24]) and IA32_XFD (CPUID.(0DH,1):EAX[4])"),
        ("tiger-lake", "AMX (CPUID.(07H,0):EDX[24]) and IA32_XFD (CPUID.(0DH,1):EAX[4])"),
    ],
)
def test_a_processor_without_it_is_told_what_it_lacks(cpu, missing):
    with pytest.raises(UnsupportedHere) as caught:
        component_request.request(Manager(Cpu.catalog(cpu)), [Component.TILEDATA], Kind.HOST)
    assert caught.value.missing == f"TILEDATA needs {missing}"
    assert caught.value.exit_code == 3


def test_what_is_there_without_asking_cannot_be_asked_for():
    with pytest.raises(UnsupportedComponent, match="AVX cannot be asked for: it is no dynamic component"):
        component_request.request(Manager(Cpu.catalog("emerald-rapids")), [Component.AVX], Kind.HOST)


def test_scripts_of_the_model_ask_for_themselves(capsys):
    assert main(["run", "--engine", "model", "--cpu", "emerald-rapids", "--request", "tiledata"]) == 2
    assert "--request is not for --engine model" in capsys.readouterr().err


@pytest.fixture
def with_tiles(native, monkeypatch):
    """A manager that takes this processor for one with tiles, and a kernel that answers as told."""

    def answer(number: int):
        def refuse(mask, kind=Kind.HOST):
            if mask:
                raise kernel_permission._refusal(Component.TILEDATA, number)

        monkeypatch.setattr(engine_choice, "request_from_kernel", refuse)
        monkeypatch.setattr(engine_choice, "Manager", lambda cpu: Manager(Cpu.catalog("emerald-rapids")))

    return answer


@pytest.mark.parametrize(
    ("number", "text", "advice"),
    [
        (errno.ENOSPC, "ENOSPC, the alternate signal stack of some thread is too small", "AT_MINSIGSTKSZ"),
        (errno.EBUSY, "EBUSY, a vCPU was made already in this process or its parent", "before the first"),
        (errno.EPERM, "EPERM", ""),
    ],
)
def test_what_the_kernel_refuses_is_told_with_what_to_try(with_tiles, capsys, number, text, advice):
    with_tiles(number)
    assert main(["run", "--vcpus", "1", "--request", "tiledata", "spin"]) != 0
    said = capsys.readouterr().err
    assert text in said
    assert advice in said


# The mix of a run


def mixed(cpu: str, usable: int, requestable: int, startable: int = 0) -> tuple[set[str], dict[str, str]]:
    mix = choose(
        [], Cpu.catalog(cpu), usable, requestable=requestable, startable=startable | requestable, format=None
    )
    return {program.name for program, _ in mix.programs}, dict(mix.left_out)


def test_tiles_are_in_the_default_mix_where_they_were_requested(built):
    names, left_out = mixed("emerald-rapids", 0x602E7, 0x602E7)
    assert "amx_matmul" in names
    assert left_out == {}


def test_they_are_left_out_where_they_were_not_and_it_is_said_how_to_get_them(built):
    names, left_out = mixed("emerald-rapids", 0x202E7, 0x602E7)
    assert "amx_matmul" not in names
    assert left_out == {"amx_matmul": "needs TILEDATA (--request tiledata)"}


def test_where_the_processor_lacks_them_no_request_is_named(built):
    _, left_out = mixed("zen4", 0xE7, 0xE7)
    assert left_out == {"amx_matmul": "needs TILECFG|TILEDATA"}


def test_where_guests_of_a_kvm_lack_what_the_processor_has_no_request_is_named(built):
    _, left_out = mixed("emerald-rapids", 0xE7, 0xE7, 0x600E7)
    assert left_out == {"amx_matmul": "needs TILECFG|TILEDATA"}


def test_whoever_names_a_program_that_may_be_denied_gets_it(built):
    cpu = Cpu.catalog("emerald-rapids")
    mix = choose(["amx_matmul"], cpu, 0x2E7, startable=0x602E7, format=None)
    assert [program.features for program, _ in mix.programs] == [BUILTIN["amx_matmul"].required]
    with pytest.raises(UnsupportedHere, match=r"amx_matmul needs TILECFG\|TILEDATA"):
        choose(["amx_matmul"], cpu, 0x2E7, format=None)
