"""Where an output file goes: the real folder, held open, and a name in it that is no link.

A path is walked one name at a time, as the kernel does, each name looked up in the folder that was found before and
never anew from the start. So what was checked is what is used, whatever others do to the path meanwhile.

Sources: Linux, Documentation/admin-guide/sysctl/fs.rst, protected_symlinks and protected_fifos; fs/namei.c
``may_follow_link`` and ``may_create_in_sticky``; openat(2), readlinkat(2), proc(5).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from fpstate.errors import SourceError

MOST_LINKS: Final = 40
"""Symbolic links on one way; the kernel's MAXSYMLINKS."""
_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Place:
    """``name`` in ``folder``, an open descriptor; ``status`` is None where nothing has that name.

    ``descriptor_link``: the name is a link of /proc to an open file, which alone says what is meant; ``status`` is
    that of the file.
    """

    folder: int
    name: str
    status: os.stat_result | None
    descriptor_link: bool = False

    @property
    def replaceable(self) -> bool:
        """Whether a regular file is there, or nothing."""
        return not self.descriptor_link and (self.status is None or stat.S_ISREG(self.status.st_mode))


@contextmanager
def place_of(path: str | os.PathLike[str], *, make_folders: bool = False) -> Iterator[Place]:
    """Find where a path leads; ``make_folders`` makes those that are missing.

    Raises OSError, and SourceError for a symbolic link of another user in a folder that everyone may write.
    """
    way = _Way(os.fspath(path), make_folders)
    try:
        yield way.place()
    finally:
        os.close(way.folder)


def trusted(owner: int, folder: os.stat_result) -> bool:
    """Whether what ``owner`` has put into a folder may be followed, or opened in place of a file of ours.

    The kernel's rule for sticky folders that everyone may write, whatever its setting, and for those without the
    sticky bit too: there others may do the same and more.
    """
    return not folder.st_mode & stat.S_IWOTH or owner in (os.geteuid(), folder.st_uid)


class _Way:
    """A path on the way to its place: the folder that it has reached, and the names that are left, last first."""

    def __init__(self, path: str, make_folders: bool) -> None:
        self.path = path
        self.make_folders = make_folders
        self.rest = _names(path)
        self.links = 0
        self.folder = _start(path)

    def place(self) -> Place:
        """Walk to the end."""
        while True:
            name = self.rest.pop()
            entry = self._look(name)
            if entry is None:
                return Place(self.folder, name, None)
            try:
                found = self._step(name, entry)
            finally:
                os.close(entry)
            if found is not None:
                return found

    def _look(self, name: str) -> int | None:
        """Open a name as what it is, a link too; None where nothing has the last one."""
        try:
            return os.open(name, _LOOK, dir_fd=self.folder)
        except FileNotFoundError:
            if not self.rest:
                return None
            if not self.make_folders:
                raise
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=self.folder)
        return os.open(name, _LOOK, dir_fd=self.folder)

    def _step(self, name: str, entry: int) -> Place | None:
        status = os.fstat(entry)
        if stat.S_ISLNK(status.st_mode):
            return self._follow(name, os.readlink("", dir_fd=entry), status)
        if not self.rest:
            return Place(self.folder, name, status)
        self._enter(os.dup(entry))
        return None

    def _follow(self, name: str, text: str, link: os.stat_result) -> Place | None:
        self._check(name, link)
        if not _of_proc(link, text):
            self.rest += _names(text)
            if text.startswith("/"):
                self._enter(_start(text))
            return None
        if not self.rest:
            return Place(self.folder, name, os.stat(name, dir_fd=self.folder), descriptor_link=True)
        self._enter(os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=self.folder))
        return None

    def _check(self, name: str, link: os.stat_result) -> None:
        self.links += 1
        if self.links > MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if not trusted(link.st_uid, os.fstat(self.folder)):
            raise SourceError(
                self.path,
                f"{name!r} is a symbolic link of user {link.st_uid}, in a folder that everyone may write:"
                " output does not follow it",
                help="name the file that is meant, in a folder of your own",
            )

    def _enter(self, descriptor: int) -> None:
        """Go on from another folder; what is none is refused when the next name is looked up in it (ENOTDIR)."""
        os.close(self.folder)
        self.folder = descriptor


def _start(path: str) -> int:
    return os.open("/" if path.startswith("/") else ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _names(path: str) -> list[str]:
    """Split a path, last name first; one that ends with a slash, or names nothing, ends at ``.``."""
    if not path:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    names = [name for name in path.split("/") if name not in ("", ".")]
    if not names or path.endswith(("/", "/.")):
        names.append(".")
    return names[::-1]


def _of_proc(link: os.stat_result, text: str) -> bool:
    """Whether a link is one of /proc that leads to an open file or folder; its text is then no path to go by.

    ``/proc/PID/root`` says ``/``, whatever file system it is of, and a descriptor's says ``pipe:[4711]``.
    """
    try:
        proc = os.stat("/proc").st_dev
    except OSError:
        return False
    return link.st_dev == proc and (text.startswith("/") or ":" in text)
