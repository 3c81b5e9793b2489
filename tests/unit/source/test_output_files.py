"""Output goes to the file that was meant: links of others are not followed, and nothing is harmed on the way."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fpstate.errors import SourceError
from fpstate.source import durable, place
from fpstate.source.durable import make_folder, replace_file, write_file

ALICE, BOB, CAROL = 61001, 61002, 61003
"""Users that no machine has: who owns the folder, the link, and who follows it."""
STICKY, OPEN, CLOSED = 0o1777, 0o777, 0o755

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="root, who can make files of other users")


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder as /tmp is."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(STICKY)
    return folder


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file that nobody means."""
    path = tmp_path / "victim"
    path.write_bytes(b"precious")
    return path


def by_resolving(path: str | os.PathLike[str], data: bytes) -> None:
    """The sabotaged writer: it reads the links itself, and asks nobody whose they are."""
    target = Path(path).resolve()
    new = target.with_name(".new")
    new.write_bytes(data)
    new.replace(target)


def as_user(user: int, folder: Path, name: str, write: Callable[..., None] = replace_file) -> str:
    """Let a user write a name in a folder, in a child; ``done``, or the kind of the error."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        answer = "done"
        try:
            os.chdir(folder)
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            write(name, b"new")
        except Exception as error:
            answer = type(error).__name__
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        answer = file.read().decode()
    os.waitpid(child, 0)
    return answer


def foreign_link(folder: Path, name: str, target: Path | str, owner: int = BOB) -> Path:
    link = folder / name
    link.symlink_to(target)
    os.chown(link, owner, owner, follow_symlinks=False)
    return link


FOLLOWED = "done"
REFUSED = "SourceError"
# fmt: off
RULE = [
    # folder's mode and owner, link's owner, who follows, outcome
    (STICKY, ALICE, BOB,   CAROL, REFUSED),
    (STICKY, ALICE, BOB,   0,     REFUSED),
    (STICKY, 0,     BOB,   CAROL, REFUSED),
    (STICKY, ALICE, 0,     CAROL, REFUSED),
    (STICKY, ALICE, CAROL, CAROL, FOLLOWED),
    (STICKY, ALICE, ALICE, CAROL, FOLLOWED),
    (STICKY, 0,     0,     CAROL, FOLLOWED),
    (STICKY, CAROL, BOB,   CAROL, REFUSED),
    (OPEN,   ALICE, BOB,   CAROL, REFUSED),
    (OPEN,   ALICE, CAROL, CAROL, FOLLOWED),
    (CLOSED, CAROL, BOB,   CAROL, FOLLOWED),
    (0o1775, CAROL, BOB,   CAROL, FOLLOWED),
]
# fmt: on


def outcome(
    tmp_path: Path, mode: int, owner: int, link_owner: int, follower: int, write: Callable[..., None]
) -> str:
    """What becomes of a write through a link, and that the target is new only where it was followed."""
    home, folder = tmp_path / "home", tmp_path / "folder"
    for each in (home, folder):
        each.mkdir()
    tmp_path.chmod(0o711)
    home.chmod(0o777)
    (home / "target").write_bytes(b"old")
    os.chown(folder, owner, owner)
    folder.chmod(mode)
    foreign_link(folder, "link", "../home/target", link_owner)
    answer = as_user(follower, folder, "link", write)
    assert (home / "target").read_bytes() == (b"new" if answer == FOLLOWED else b"old")
    assert (folder / "link").is_symlink()
    assert sorted(os.listdir(home)) == ["target"]
    return answer


@needs_root
@pytest.mark.parametrize(("mode", "owner", "link", "follower", "expected"), RULE)
@pytest.mark.parametrize("write", [replace_file, write_file])
def test_a_link_is_followed_as_protected_symlinks_would(
    tmp_path, write, mode, owner, link, follower, expected
):
    assert outcome(tmp_path, mode, owner, link, follower, write) == expected


@needs_root
@pytest.mark.parametrize(
    ("mode", "owner", "link", "follower"), [row[:4] for row in RULE if row[4] == REFUSED]
)
def test_a_writer_that_resolves_links_itself_is_caught(tmp_path, mode, owner, link, follower):
    assert outcome(tmp_path, mode, owner, link, follower, by_resolving) != REFUSED


@pytest.mark.parametrize(("mode", "owner", "link", "follower", "expected"), RULE)
def test_the_rule_itself(monkeypatch, mode, owner, link, follower, expected):
    """For those who cannot make files of other users."""
    monkeypatch.setattr(os, "geteuid", lambda: follower)
    folder = os.stat_result((stat.S_IFDIR | mode, 0, 0, 0, owner, 0, 0, 0, 0, 0))
    assert place.trusted(link, folder) == (expected == FOLLOWED)


@needs_root
@pytest.mark.parametrize("write", [replace_file, write_file])
def test_the_refusal_names_the_link_its_owner_and_what_to_do(shared, victim, write):
    link = foreign_link(shared, "out", victim)
    with pytest.raises(SourceError, match=f"'out' is a symbolic link of user {BOB}") as caught:
        write(link, b"state")
    assert caught.value.source == str(link)
    assert "folder of your own" in caught.value.help
    assert victim.read_bytes() == b"precious"


@needs_root
@pytest.mark.parametrize(
    "way",
    ["out/victim", "./out/../out/victim", "mine", "out/", "mine/."],
    ids=["a folder", "dots", "by a link of one's own", "slash", "slash behind"],
)
def test_no_link_on_the_way_is_left_out(shared, tmp_path, way):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "victim").write_bytes(b"precious")
    foreign_link(shared, "out", folder)
    (shared / "mine").symlink_to("out/victim")
    with pytest.raises(SourceError, match="'out' is a symbolic link of user"):
        replace_file(f"{shared}/{way}", b"state")
    assert (folder / "victim").read_bytes() == b"precious"
    assert os.listdir(folder) == ["victim"]


@needs_root
def test_a_dangling_link_of_another_makes_nothing(shared, tmp_path):
    foreign_link(shared, "out", tmp_path / "new")
    with pytest.raises(SourceError, match="symbolic link"):
        replace_file(shared / "out", b"state")
    with pytest.raises(SourceError, match="symbolic link"):
        make_folder(shared / "out" / "deep")
    assert not (tmp_path / "new").exists()


@needs_root
def test_a_link_that_is_swapped_meanwhile_is_judged_as_what_it_is_read_as(
    shared, victim, tmp_path, monkeypatch
):
    """The name is opened once: the link that is asked for its owner is the one that is read."""
    (tmp_path / "meant").write_bytes(b"old")
    (shared / "out").symlink_to(tmp_path / "meant")
    real = os.fstat

    def swap(descriptor: int) -> os.stat_result:
        found = real(descriptor)
        if stat.S_ISLNK(found.st_mode):
            (shared / "out").unlink()
            foreign_link(shared, "out", victim)
        return found

    monkeypatch.setattr(place.os, "fstat", swap)
    replace_file(shared / "out", b"new")
    monkeypatch.undo()
    assert (victim.read_bytes(), (tmp_path / "meant").read_bytes()) == (b"precious", b"new")


def test_a_folder_that_is_swapped_meanwhile_is_not_written_to(tmp_path, victim, monkeypatch):
    """Everything happens in the folder that was found, wherever its name leads by then."""
    folder = tmp_path / "folder"
    folder.mkdir()
    real = durable._make

    def swap(*arguments: object) -> None:
        folder.rename(tmp_path / "moved")
        folder.symlink_to(tmp_path)
        real(*arguments)

    monkeypatch.setattr(durable, "_make", swap)
    replace_file(folder / "victim", b"new")
    assert victim.read_bytes() == b"precious"
    assert (tmp_path / "moved" / "victim").read_bytes() == b"new"


@pytest.mark.parametrize("nameless", [True, False], ids=["nameless", "named"])
def test_a_target_that_becomes_a_link_meanwhile_is_replaced(tmp_path, victim, monkeypatch, nameless):
    if not nameless:
        monkeypatch.setattr(durable, "_unnamed", lambda folder, mode: None)
    (tmp_path / "out").write_bytes(b"old")
    real = durable._make

    def swap(*arguments: object) -> None:
        real(*arguments)
        (tmp_path / "out").unlink()
        (tmp_path / "out").symlink_to(victim)

    monkeypatch.setattr(durable, "_make", swap)
    replace_file(tmp_path / "out", b"new")
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "out").is_symlink()
    assert (tmp_path / "out").read_bytes() == b"new"


def test_a_hard_link_keeps_the_old_bytes(tmp_path, victim):
    os.link(victim, tmp_path / "out")
    replace_file(tmp_path / "out", b"new")
    assert victim.read_bytes() == b"precious"
    assert (tmp_path / "out").read_bytes() == b"new"


@needs_root
def test_a_file_that_another_has_put_there_is_replaced_and_not_written_to(shared):
    planted = shared / "out"
    planted.write_bytes(b"")
    planted.chmod(0o666)
    os.chown(planted, BOB, BOB)
    with planted.open("rb") as held:
        replace_file(planted, b"state")
        assert held.read() == b""
    assert (planted.stat().st_uid, stat.S_IMODE(planted.stat().st_mode)) == (os.geteuid(), 0o600)


@needs_root
@pytest.mark.parametrize("owner", [BOB, 0])
def test_a_pipe_of_another_in_a_shared_folder_gets_nothing(shared, owner):
    os.mkfifo(shared / "pipe", 0o666)
    os.chown(shared / "pipe", owner, owner)
    reader = os.open(shared / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    if owner:
        with pytest.raises(SourceError, match=f"of user {BOB}, in a folder that everyone may write"):
            write_file(shared / "pipe", b"state")
    else:
        write_file(shared / "pipe", b"state")
    assert os.read(reader, 100) == (b"" if owner else b"state")
    os.close(reader)


def test_a_pipe_is_written_to_but_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_file(tmp_path / "pipe", bytes(100_000))
    reader.join(60)
    assert got == [bytes(100_000)]
    with pytest.raises(SourceError, match="no regular file"):
        replace_file(tmp_path / "pipe", b"state")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_pipe_that_is_replaced_while_it_is_opened_gets_nothing(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    real = os.open

    def swap(path: str, flags: int, *rest: object, **folder: int) -> int:
        if flags & os.O_WRONLY:
            (tmp_path / "pipe").unlink()
            (tmp_path / "pipe").write_bytes(b"other")
        return real(path, flags, *rest, **folder)

    monkeypatch.setattr(durable.os, "open", swap)
    with pytest.raises(SourceError, match="was replaced while it was opened"):
        write_file(tmp_path / "pipe", b"state")
    assert (tmp_path / "pipe").read_bytes() == b"other"


@pytest.mark.parametrize("write", [replace_file, write_file])
@pytest.mark.parametrize(
    "name", ["folder", "folder/", "folder/.", "folder/..", ".", "/", "socket", "loop", "", "file/", "file/x"]
)
def test_what_is_no_place_for_a_file_is_refused(tmp_path, monkeypatch, write, name):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").write_bytes(b"old")
    Path("loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        before = sorted(os.listdir())
        with pytest.raises((SourceError, OSError)) as caught:
            write(name, b"state")
    assert isinstance(caught.value, SourceError) or caught.value.filename == name
    assert sorted(os.listdir()) == before
    assert Path("file").read_bytes() == b"old"


def test_as_many_links_as_the_kernel_follows(tmp_path):
    (tmp_path / "0").write_bytes(b"old")
    for number in range(1, place.MOST_LINKS + 2):
        (tmp_path / str(number)).symlink_to(str(number - 1))
    replace_file(tmp_path / str(place.MOST_LINKS), b"new")
    assert (tmp_path / "0").read_bytes() == b"new"
    with pytest.raises(OSError) as caught:
        replace_file(tmp_path / str(place.MOST_LINKS + 1), b"newer")
    assert caught.value.errno == errno.ELOOP
    with pytest.raises(OSError) as kernel, open(tmp_path / str(place.MOST_LINKS + 1), "rb"):
        pass
    assert kernel.value.errno == errno.ELOOP


@pytest.mark.parametrize("way", ["link", "there/link", "there/../link", "there/up/there/./link", "absolute"])
def test_links_of_ones_own_are_followed(tmp_path, way):
    (tmp_path / "deep").mkdir()
    (tmp_path / "there").symlink_to("deep")
    (tmp_path / "link").symlink_to("./there/../new")
    (tmp_path / "deep" / "link").symlink_to("../new")
    (tmp_path / "deep" / "up").symlink_to("..")
    (tmp_path / "absolute").symlink_to(tmp_path / "there" / "link")
    replace_file(tmp_path / way, b"state")
    assert (tmp_path / "new").read_bytes() == b"state"
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("process", ["self", str(os.getpid())])
def test_a_path_through_proc_leads_where_the_kernel_says(tmp_path, process):
    """The text of /proc/PID/root and /proc/PID/fd/N is no path to go by: here it names a folder that is gone."""
    (tmp_path / "folder").mkdir()
    descriptor = os.open(tmp_path / "folder", os.O_PATH)
    (tmp_path / "folder").rename(tmp_path / "moved")
    (tmp_path / "folder").mkdir()
    (tmp_path / "decoy").symlink_to(f"/proc/{process}/fd/{descriptor}/out")
    os.rmdir(tmp_path / "folder")
    replace_file(tmp_path / "decoy", b"state")
    assert (tmp_path / "moved" / "out").read_bytes() == b"state"
    os.close(descriptor)


def test_an_open_file_is_written_to_where_it_is(tmp_path):
    with (tmp_path / "out").open("wb") as file:
        os.link(tmp_path / "out", tmp_path / "other")
        write_file(f"/proc/self/fd/{file.fileno()}", b"state")
    assert (tmp_path / "other").read_bytes() == b"state"
    with (tmp_path / "gone").open("w+b") as file:
        (tmp_path / "gone").unlink()
        write_file(f"/dev/fd/{file.fileno()}", b"state")
        assert file.read() == b"state"
    assert sorted(os.listdir(tmp_path)) == ["other", "out"]


def test_a_full_device_is_an_error_that_names_it():
    with pytest.raises(OSError) as caught:
        write_file("/dev/full", b"state")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/dev/full")
    assert str(caught.value) == "[Errno 28] No space left on device: '/dev/full'"


def test_a_terminal_gets_no_state():
    parent, terminal = os.openpty()
    for name in (os.ttyname(terminal), f"/proc/self/fd/{terminal}"):
        with pytest.raises(SourceError, match="is a terminal"):
            write_file(name, b"\x1b[31m")
    os.set_blocking(parent, False)
    with pytest.raises(BlockingIOError):
        os.read(parent, 1)
    os.close(parent)
    os.close(terminal)


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_states_are_for_their_owner_and_figures_as_the_umask_says(tmp_path, umask):
    earlier = os.umask(umask)
    try:
        for nameless in (True, False):
            with pytest.MonkeyPatch.context() as patch:
                if not nameless:
                    patch.setattr(durable, "_unnamed", lambda folder, mode: None)
                for name, options in (("state", {}), ("figure", {"mode": durable.FIGURES})):
                    (tmp_path / name).write_bytes(b"")
                    (tmp_path / name).chmod(0o644)
                    replace_file(tmp_path / name, b"new", **options)
            modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("state", "figure")]
            assert modes == [0o600, 0o666 & ~umask]
    finally:
        os.umask(earlier)


def test_the_temporary_file_is_private_new_and_unpredictable(tmp_path, monkeypatch):
    monkeypatch.setattr(durable, "_unnamed", lambda folder, mode: None)
    seen: list[tuple[str, int, int]] = []
    real = os.open

    def watch(path: str, flags: int, mode: int = 0o777, **folder: int) -> int:
        if flags & os.O_CREAT:
            seen.append((path, flags, mode))
        return real(path, flags, mode, **folder)

    monkeypatch.setattr(durable.os, "open", watch)
    for _ in range(20):
        replace_file(tmp_path / "out", b"state")
    assert len({name for name, _, _ in seen}) == 20
    for name, flags, mode in seen:
        assert flags & os.O_EXCL
        assert flags & os.O_NOFOLLOW
        assert mode == 0o600
        assert len(name.removeprefix(".out.")) >= 16


@pytest.mark.parametrize("nameless", [True, False], ids=["nameless", "named"])
def test_a_file_too_large_leaves_the_old_one(tmp_path, nameless):
    """RLIMIT_FSIZE, really: write(2) fails in the middle."""
    program = f"""
import sys
from fpstate.source import durable
if not {nameless}: durable._unnamed = lambda folder, mode: None
try: durable.replace_file("out", bytes(100_000))
except OSError as error: sys.exit(error.errno)
"""
    (tmp_path / "out").write_bytes(b"old")

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, preexec_fn=limit, timeout=60, check=False
    )
    assert done.returncode == errno.EFBIG
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out", b"old")]


@needs_root
@pytest.mark.parametrize("nameless", [True, False], ids=["nameless", "named"])
def test_a_full_file_system_keeps_the_old_file_and_no_other(tmp_path, nameless):
    """ENOSPC, really: a tmpfs of 64 KiB in a mount namespace of its own."""
    program = f"""
import os, sys
from fpstate.source import durable
if not {nameless}: durable._unnamed = lambda folder, mode: None
durable.replace_file("small/out", b"old")
try: durable.replace_file("small/out", bytes(100_000))
except OSError as error: print(error.errno, error.filename, os.listdir("small"), open("small/out").read())
"""
    mount = 'mount -t tmpfs -o size=64k none small || exit 77; exec "$0" -c "$1"'
    (tmp_path / "small").mkdir()
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, sys.executable, program],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip(f"a mount namespace (CAP_SYS_ADMIN): {done.stderr.strip()}")
    assert done.stdout == f"{errno.ENOSPC} small/out ['out'] old\n"


@pytest.mark.parametrize("when", ["os.write", "os.fsync", "os.link", "os.rename"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("nameless", [True, False], ids=["nameless", "named"])
def test_an_interrupt_leaves_no_temporary_file(tmp_path, monkeypatch, when, after, nameless):
    if not nameless:
        monkeypatch.setattr(durable, "_unnamed", lambda folder, mode: None)
    name = when.removeprefix("os.")
    real = getattr(os, name)

    def interrupted(*arguments: object, **options: object) -> object:
        if after:
            real(*arguments, **options)
        raise KeyboardInterrupt

    (tmp_path / "out").write_bytes(b"old")
    monkeypatch.setattr(durable.os, name, interrupted)
    if when == "os.link" and not nameless:
        replace_file(tmp_path / "out", b"new")  # needs no link
    else:
        with pytest.raises(KeyboardInterrupt):
            replace_file(tmp_path / "out", b"new")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out").read_bytes() in (b"old", b"new")


@needs_root
@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_a_folder_that_may_not_be_written_is_an_error_that_names_the_file(tmp_path, mode):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "out").write_bytes(b"old")
    os.chown(folder, CAROL, CAROL)
    tmp_path.chmod(0o711)
    folder.chmod(mode)
    assert as_user(CAROL, tmp_path, "folder/out") == "PermissionError"
    assert os.listdir(folder) == ["out"]
    assert (folder / "out").read_bytes() == b"old"


@needs_root
def test_a_folder_that_may_be_written_but_not_read_takes_a_file(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    os.chown(folder, CAROL, CAROL)
    tmp_path.chmod(0o711)
    folder.chmod(0o300)
    assert as_user(CAROL, tmp_path, "folder/out") == "done"
    assert os.listdir(folder) == ["out"]


def test_no_descriptor_is_left_open(tmp_path, shared):
    (tmp_path / "link").symlink_to("shared/out")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        replace_file(tmp_path / "link", b"state")
        make_folder(tmp_path / "a" / "b")
        for wrong in (tmp_path, tmp_path / "no" / "such"):
            with pytest.raises((SourceError, OSError)):
                replace_file(wrong, b"state")
    assert len(os.listdir("/proc/self/fd")) == before
