"""Every verb that writes a file leaves alone what another user's link leads to."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fpstate.arch import Cpu, Layout
from fpstate.bench import page
from fpstate.command.main import main
from fpstate.engine.kvm.engine import missing
from fpstate.errors import SourceError
from fpstate.source import place
from fpstate.testing import build_image

BOB = 61002

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root, who can make links of other users")


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a state, and one that everyone may write with links of another user in it."""
    image = build_image(Layout.standard(Cpu.catalog("zen4")), {"zmm17": 17, "pkru": 0x5554})
    (tmp_path / "state.bin").write_bytes(image.to_bytes())
    (tmp_path / "victim").write_text(f"{page.BEGIN}{page.END}precious")
    (tmp_path / "victims").mkdir()
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    for name, target in (("link", "../victim"), ("links", "../victims")):
        (shared / name).symlink_to(target)
        os.chown(shared / name, BOB, BOB, follow_symlinks=False)
    (tmp_path / "report.json").write_text("{}")
    monkeypatch.setattr(page, "markdown", lambda report: ["figures"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bench_page(out: str) -> int:
    """``python -m fpstate.bench.page``; returns 2 where it was refused."""
    try:
        page.renew(Path(out), Path("report.json"))
    except SourceError as error:
        return error.exit_code
    return 0


VERBS: dict[str, Callable[[str], int]] = {
    "convert": lambda out: main(["convert", "state.bin", out, "--cpu", "zen4"]),
    "check --fix": lambda out: main(["check", "state.bin", "--cpu", "zen4", "--fix", out]),
    "bench --plot": lambda out: main(["bench", "--quick", "--repeats", "1", "--plot", out, "switch"]),
    "bench page": bench_page,
}


@pytest.mark.parametrize("out", ["shared/link", "./shared/../shared/link"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_link_of_another_is_refused(given, verb, out):
    before = (given / "victim").read_bytes()
    assert VERBS[verb](out) == 2
    assert (given / "victim").read_bytes() == before
    assert stat.S_ISLNK((given / "shared" / "link").lstat().st_mode)
    assert sorted(os.listdir(given / "shared")) == ["link", "links"]


def test_the_error_says_whose_link_it_is(given, capfd):
    assert VERBS["convert"]("shared/link") == 2
    error = capfd.readouterr().err
    assert error.startswith(f"fpstate: shared/link: 'link' is a symbolic link of user {BOB}, in a folder")
    assert "\n  try: " in error


@pytest.mark.parametrize("verb", ["convert", "check --fix", "bench page"])
def test_without_the_rule_the_link_is_followed(given, monkeypatch, verb):
    before = (given / "victim").read_bytes()
    monkeypatch.setattr(place, "trusted", lambda owner, folder: True)
    VERBS[verb]("shared/link")
    assert (given / "victim").read_bytes() != before


@pytest.mark.parametrize("count", ["1", "2"])
def test_states_of_guests_do_not_go_through_a_link(given, count):
    """``kvm save``: a file in another's folder, or folders that would be made there."""
    if lacking := missing():
        pytest.skip(lacking)
    for to in ("shared/link", "shared/links/", "shared/links/new/", "shared/links/a.fpvso"):
        assert main(["kvm", "save", "spin", "--count", count, "--to", to]) == 2
    assert os.listdir(given / "victims") == []
    assert "precious" in (given / "victim").read_text()
