"""What ``fpstate set`` makes of regsets of a processor with AMX: a kernel in software takes and gives them back.

The regsets are recorded ones. What the kernel takes is what the rules foretell, which its recorded answers confirm
(tests/unit/image/test_rules_recorded.py).
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from fpstate.arch import Component, Cpu, Layout
from fpstate.arch.component import USER_DYNAMIC
from fpstate.command.main import main
from fpstate.errors import RegisterError, SourceError
from fpstate.image import Image
from fpstate.image.consumer import Consumer, Target
from fpstate.image.rules import predict
from fpstate.source import ptrace
from fpstate.source import rewrite as module
from fpstate.source.rewrite import rewrite
from patterns import SMALL, tile_configuration
from recorded import OWN

CPU = replace(Cpu.catalog("emerald-rapids"), enabled_xcr0=0x602E7)
LAYOUT = Layout.standard(CPU, 0x602E7)
CONFIGURATION = int.from_bytes(tile_configuration(0), "little")
TILEDATA = 1 << Component.TILEDATA


@dataclass
class Kernel:
    """A thread that stands still, and what a kernel makes of a regset that is set: EINVAL, or the same read back."""

    regset: bytes
    used_tiles: bool
    written: list[bytes] = field(default_factory=list)

    def edit(
        self, tid: int, layout: Layout, limit: float, change: Callable[[bytes], bytes | None]
    ) -> tuple[bytes, bytes | None, float]:
        """As ``ptrace.edit``."""
        before, wanted = self.regset, change(self.regset)
        if wanted is not None:
            target = Target.from_cpu(CPU, permitted=USER_DYNAMIC if self.used_tiles else 0)
            if not predict(wanted, Consumer.PTRACE, target).accepted:
                cause = OSError(errno.EINVAL, os.strerror(errno.EINVAL))
                raise ptrace.refusal(tid, errno.EINVAL) from cause
            self.regset = self._read_back(wanted)
            self.written.append(wanted)
        return before, self.regset, 0.0

    def _read_back(self, data: bytes) -> bytes:
        image = Image(bytearray(data), LAYOUT)
        for place in LAYOUT.places:
            if not image.xstate_bv >> place.component & 1 and place.component > 1:
                image.store.view[place.offset : place.end] = bytes(place.size)
        return image.to_bytes()

    @property
    def image(self) -> Image:
        return Image(self.regset, LAYOUT)


@pytest.fixture
def kernel_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Kernel]:
    """Let ``rewrite`` talk to a kernel that has a recorded thread; it believes to be on that processor."""

    def make(name: str, *, used_tiles: bool) -> Kernel:
        kernel = Kernel((OWN / "generated_intel/ptrace" / f"{name}.xstate.bin").read_bytes(), used_tiles)
        monkeypatch.setattr(ptrace, "edit", kernel.edit)
        monkeypatch.setattr(ptrace, "host_layout", lambda: LAYOUT)
        monkeypatch.setattr(module.Cpu, "host", lambda: CPU)
        return kernel

    return make


def assigned(**registers: int) -> Callable[[object], None]:
    def change(found: object) -> None:
        for name, value in registers.items():
            found[name] = value  # type: ignore[index]

    return change


ILLEGAL = {
    "palette 2": (CONFIGURATION + 1, 0, 2, None),
    "a configuration without a palette": (CONFIGURATION - 1, 16, 64, None),
    "17 rows": (CONFIGURATION + (1 << 8 * 53), 53, 17, 5),
    "65 bytes a row": (CONFIGURATION + (1 << 8 * 20), 20, 65, 2),
    "rows without bytes": (CONFIGURATION - (64 << 8 * 30), 55, 16, 7),
    "bytes without rows": (CONFIGURATION - (16 << 8 * 48), 16, 64, 0),
    "a reserved byte": (CONFIGURATION | 1 << 8 * 63, 63, 1, None),
}
"""Value of TILECFG, and the byte that is at fault, what it holds, and the tile that it is of."""


@pytest.mark.parametrize("case", ILLEGAL)
@pytest.mark.parametrize("used_tiles", [True, False])
def test_a_configuration_that_the_processor_would_drop_is_refused_and_nothing_is_written(
    case: str, used_tiles: bool, kernel_of: Callable[..., Kernel]
) -> None:
    kernel = kernel_of("x64_amxmixed_6t.t2", used_tiles=used_tiles)
    value, byte, found, tile = ILLEGAL[case]
    with pytest.raises(RegisterError) as caught:
        rewrite(1, assigned(xmm3=7, tilecfg=value))
    message = str(caught.value)
    assert caught.value.register == "tilecfg"
    assert f"byte {byte}" in message
    assert f"is {found:#x}" in message
    assert tile is None or f"of tmm{tile}" in message
    assert "read it back" in message
    assert kernel.written == []


@pytest.mark.parametrize("case", ILLEGAL)
def test_the_kernel_alone_would_have_confirmed_it(case: str, kernel_of: Callable[..., Kernel]) -> None:
    """The control: without the check the write is taken, and what is read back is what was written."""
    kernel = kernel_of("x64_amxmixed_6t.t2", used_tiles=True)
    value = ILLEGAL[case][0]

    def change(regset: bytes) -> bytes:
        image = Image(bytearray(regset), LAYOUT)
        image.registers["tilecfg"] = value
        return image.to_bytes()

    _, after, _ = ptrace.edit(1, LAYOUT, 1, change)
    assert after is not None
    assert Image(after, LAYOUT).registers["tilecfg"] == value == kernel.image.registers["tilecfg"]


@pytest.mark.parametrize("used_tiles", [True, False])
@pytest.mark.parametrize("value", [CONFIGURATION, int.from_bytes(tile_configuration(SMALL), "little"), 0])
def test_a_legal_configuration_is_written_with_permission_and_without(
    value: int, used_tiles: bool, kernel_of: Callable[..., Kernel]
) -> None:
    kernel = kernel_of("x64_init_1t.t0", used_tiles=used_tiles)
    done = rewrite(1, assigned(tilecfg=value))
    assert done.after.registers["tilecfg"] == value == kernel.image.registers["tilecfg"]
    assert done.notes == ()


def test_single_fields_are_held_to_the_same_rule(kernel_of: Callable[..., Kernel]) -> None:
    kernel = kernel_of("x64_amx_2t.t0", used_tiles=True)
    with pytest.raises(RegisterError, match="byte 51, of tmm3, is 0x11"):
        rewrite(1, assigned(tile3_rows=17))
    assert kernel.written == []
    assert rewrite(1, assigned(tile3_rows=3)).after.registers["tile3_rows"] == 3


def test_an_illegal_configuration_that_was_there_does_not_forbid_other_changes(
    kernel_of: Callable[..., Kernel],
) -> None:
    kernel = kernel_of("x64_amx_2t.t0", used_tiles=True)
    image = Image(bytearray(kernel.regset), LAYOUT)
    image.registers["palette_id"] = 9
    kernel.regset = image.to_bytes()
    assert rewrite(1, assigned(mxcsr=0x9FC0)).after.registers["mxcsr"] == 0x9FC0


@pytest.mark.parametrize("name", ["x64_init_1t.t0", "x64_permunused_1t.t0", "x64_amxmixed_6t.t2"])
def test_tiles_of_a_thread_without_room_are_refused_by_component_permission_and_use(
    name: str, kernel_of: Callable[..., Kernel]
) -> None:
    """No permission; permission and no use; TILECFG alone."""
    kernel = kernel_of(name, used_tiles=False)
    with pytest.raises(SourceError, match=r"TILEDATA \(tmm3, tmm5\) with EINVAL") as caught:
        rewrite(7, assigned(tmm3=1, tmm5=2))
    assert caught.value.source == "thread 7"
    assert "permission" in str(caught.value)
    assert "ARCH_REQ_XCOMP_PERM, 18" in str(caught.value.help)
    assert kernel.written == []


def test_another_refusal_is_not_blamed_on_tiles(
    kernel_of: Callable[..., Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel_of("x64_init_1t.t0", used_tiles=False)
    monkeypatch.setattr(module, "_check_mxcsr", lambda mxcsr, mask: None)
    with pytest.raises(SourceError, match="the kernel refuses this state"):
        rewrite(7, assigned(mxcsr=0x21F80))


@pytest.mark.parametrize("name", ["x64_amx_2t.t0", "x64_amxmixed_6t.t3", "x64_amxmixed_6t.t4"])
def test_tiles_of_a_thread_that_used_them_are_written(name: str, kernel_of: Callable[..., Kernel]) -> None:
    """In use, released, and in use with zeros."""
    kernel = kernel_of(name, used_tiles=True)
    value = int.from_bytes(os.urandom(1024), "little")
    done = rewrite(1, assigned(tilecfg=CONFIGURATION, tmm6=value))
    assert done.after.registers["tmm6"] == value == kernel.image.registers["tmm6"]
    assert kernel.image.xstate_bv & TILEDATA
    assert done.notes == ()


def test_tiles_without_a_configuration_are_written_and_foretold_to_be_of_no_use(
    kernel_of: Callable[..., Kernel],
) -> None:
    kernel_of("x64_amxmixed_6t.t3", used_tiles=True)
    (note,) = rewrite(1, assigned(tmm2=1)).notes
    assert note.startswith("tmm2: TILECFG is initial")
    assert "LDTILECFG, which makes all tiles zero" in note


def test_rows_that_loads_do_not_take_are_foretold(kernel_of: Callable[..., Kernel]) -> None:
    kernel_of("x64_amx_2t.t0", used_tiles=True)
    notes = rewrite(1, assigned(tile1_colsb=3)).notes
    assert len(notes) == 1
    assert "TILELOADD and TILESTORED of tmm1 raise #UD" in notes[0]


def test_the_command_says_so_in_text_and_json(
    kernel_of: Callable[..., Kernel], capsys: pytest.CaptureFixture[str]
) -> None:
    kernel_of("x64_amxmixed_6t.t3", used_tiles=True)
    pid = str(os.getpid())
    assert main(["set", pid, f"tmm1={5 << 8 * 64:#x}"]) == 0
    captured = capsys.readouterr()
    assert "fpstate: note: tmm1: TILECFG is initial" in captured.err
    assert captured.out == f"tmm1 row 1   0x{0:0128x} -> 0x{5:0128x}\n"
    assert main(["set", pid, f"tmm1={5 << 8 * 64:#x}"]) == 0
    assert capsys.readouterr().out == "tmm1     is what it was\n"
    assert main(["set", pid, "tmm1=6", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"][0].startswith("tmm1: TILECFG is initial")
    assert main(["set", pid, f"tilecfg={CONFIGURATION + 1:#x}"]) == 2
    assert "byte 0, is 0x2: there is no palette 2" in capsys.readouterr().err
    assert main(["set", pid, f"pkru={0x55555550:#x}", f"tilecfg={CONFIGURATION:#x}"]) == 0
