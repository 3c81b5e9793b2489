"""Every output file: replaced as a whole, so that at any moment, also after a crash, it has the old bytes or the new.

What is written first has no name, or a hidden and unpredictable one beside the target, and is then renamed onto it,
all of this in a folder that is held open (``place``). So a hard link to the old file keeps the old bytes: rename(2)
changes what one name stands for, and writes to no file that others may hold. Whoever has the old file open reads the
old bytes. What is put under the target's name meanwhile, a link too, is replaced and not followed.

Sources: open(2) on O_TMPFILE and O_EXCL, linkat(2), rename(2), fsync(2).
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from fpstate.errors import SourceError
from fpstate.source.place import Place, place_of, trusted

OWNER_ALONE: Final = 0o600
"""States hold secrets: what is written here can be read by its owner and nobody else, whatever the old file's mode."""
FIGURES: Final = 0o666
"""For what holds no states: less what the umask takes away."""
_KEPT: Final = 200
_DESCRIPTORS: Final = "/proc/self/fd"
_NO_TMPFILE: Final = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)


def replace_file(path: str | os.PathLike[str], data: bytes, *, mode: int = OWNER_ALONE) -> None:
    """Put ``data`` under a name, once it is on the disk as a whole; the file is a new one with this ``mode``.

    A process that is killed on the way leaves the old file, or none. Where the file system has O_TMPFILE, the
    unfinished file has no name at all; at worst a hidden ``.NAME.*`` stays, which is whole too. Raises OSError,
    which names the file, and SourceError for what is no regular file and so not to be replaced, and for a symbolic
    link of another user in a folder that everyone may write. Other links are followed.
    """
    with _naming(path), place_of(path) as place:
        if not place.replaceable:
            raise SourceError(str(path), "is no regular file, and so cannot be replaced as a whole")
        _replace(place, data, mode)


def write_file(path: str | os.PathLike[str], data: bytes, *, mode: int = OWNER_ALONE) -> None:
    """As ``replace_file``, but a pipe, a device or an open file (``/dev/stdout``) is written to as it is.

    Raises SourceError also for a terminal, and for a pipe of another user in a folder that everyone may write.
    """
    with _naming(path), place_of(path) as place:
        if place.replaceable:
            _replace(place, data, mode)
        else:
            _write_as_it_is(str(path), place, data)


def make_folder(path: str | os.PathLike[str]) -> None:
    """Make a folder, and those above it, unless they are there. Raises as ``replace_file`` does."""
    with _naming(path), place_of(os.path.join(path, "."), make_folders=True):
        pass


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let errors name the file as it was given: write and fsync name none, the others names that nobody gave."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _replace(place: Place, data: bytes, mode: int) -> None:
    hidden = f"{_hidden(place.name)}{secrets.token_hex(8)}"
    try:
        _make(place.folder, hidden, data, mode)
        os.rename(hidden, place.name, src_dir_fd=place.folder, dst_dir_fd=place.folder)
    except FileExistsError:  # the hidden name: another's file, which stays
        raise
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(hidden, dir_fd=place.folder)
        raise
    _sync(place.folder)


def _hidden(name: str) -> str:
    """How the hidden name begins: with as much of the target's as leaves room for the rest in 255 bytes."""
    return f".{os.fsdecode(os.fsencode(name)[:_KEPT])}."


def _make(folder: int, name: str, data: bytes, mode: int) -> None:
    """Write a new file, which has no name before it is whole where that can be."""
    unnamed = _unnamed(folder, mode)
    if unnamed is None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, mode, dir_fd=folder)
    else:
        descriptor = unnamed
    try:
        _write(descriptor, data)
        os.fsync(descriptor)
        if unnamed is not None:
            _link(unnamed, folder, name)
    finally:
        os.close(descriptor)


def _unnamed(folder: int, mode: int) -> int | None:
    """Open a file without a name, or None where the file system has none such or nothing could give it one."""
    if not os.path.isdir(_DESCRIPTORS):
        return None
    try:
        return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=folder)
    except OSError as error:
        if error.errno in _NO_TMPFILE:
            return None
        raise


def _link(descriptor: int, folder: int, name: str) -> None:
    """Give a nameless file a name; linkat is what makes links of descriptors."""
    proc = os.open(_DESCRIPTORS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(str(descriptor), name, src_dir_fd=proc, dst_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(proc)


def _sync(folder: int) -> None:
    """Have the new name on the disk too; a folder that may be written but not read cannot be asked for that."""
    try:
        readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    except PermissionError:
        return
    try:
        os.fsync(readable)
    finally:
        os.close(readable)


def _write_as_it_is(path: str, place: Place, data: bytes) -> None:
    assert place.status is not None
    if not place.descriptor_link and not trusted(place.status.st_uid, os.fstat(place.folder)):
        raise SourceError(
            path,
            f"is no regular file but one of user {place.status.st_uid}, in a folder that everyone may write:"
            " it could be read there",
            help="name a file in a folder of your own",
        )
    flags = os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC
    flags |= os.O_TRUNC if place.descriptor_link else os.O_NOFOLLOW
    descriptor = os.open(place.name, flags, dir_fd=place.folder)
    try:
        if _identity(os.fstat(descriptor)) != _identity(place.status):
            raise SourceError(path, "was replaced while it was opened", help="try again")
        if os.isatty(descriptor):
            raise terminal_refused(path)
        _write(descriptor, data)
    finally:
        os.close(descriptor)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """What tells a file from the one that took its name: inode numbers are given again, so kind and owner count."""
    return status.st_dev, status.st_ino, stat.S_IFMT(status.st_mode), status.st_uid


def terminal_refused(name: str) -> SourceError:
    """Return the error for a state that would go to a terminal, where its bytes could be commands."""
    return SourceError(name, "is a terminal, and a state is no text", help="name a file, or pipe it on")


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
