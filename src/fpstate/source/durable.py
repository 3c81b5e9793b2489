"""A file replaced as a whole: at any moment, also after a crash, its name stands for the old bytes or the new.

Sources: open(2) on O_TMPFILE, linkat(2), rename(2), fsync(2).
"""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
from pathlib import Path
from typing import Final

from fpstate.errors import SourceError

OWNER_ALONE: Final = 0o600
"""States hold secrets: what is written here can be read by its owner and nobody else."""
_KEPT: Final = 200
_DESCRIPTORS: Final = "/proc/self/fd"
_NO_TMPFILE: Final = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)


def replace_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Put ``data`` under a name, readable by its owner alone, once it is on the disk as a whole.

    A process that is killed on the way leaves the old file, or none. Where the file system has O_TMPFILE, the
    unfinished file has no name at all; at worst a hidden ``.NAME.*`` stays, which is whole too. A symbolic link is
    followed. Raises OSError, which names the file, and SourceError for what is no regular file and so not to be
    replaced.
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        raise SourceError(str(path), "is no regular file, and so cannot be replaced as a whole")
    try:
        _replace(target, data)
    except OSError as error:
        if (
            error.errno is not None
        ):  # which write and fsync raise without a name, and link with names nobody gave
            error.filename, error.filename2 = str(path), None
        raise


def _replace(target: Path, data: bytes) -> None:
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        unnamed = _unnamed(target.parent)
        name = _named(target, unnamed, data) if unnamed is not None else _temporary(target, data)
        try:
            os.rename(name, target)
        except BaseException:
            os.unlink(name)
            raise
        os.fsync(folder)
    finally:
        os.close(folder)


def _hidden(target: Path) -> str:
    """How the hidden name begins: with as much of the target's as leaves room for the rest in 255 bytes."""
    return f".{os.fsdecode(os.fsencode(target.name)[:_KEPT])}."


def _unnamed(folder: Path) -> int | None:
    """Open a file without a name, or None where the file system has none such or nothing could give it one."""
    if not os.path.isdir(_DESCRIPTORS):
        return None
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, OWNER_ALONE)
    except OSError as error:
        if error.errno in _NO_TMPFILE:
            return None
        raise


def _named(target: Path, descriptor: int, data: bytes) -> Path:
    """Write a nameless file, then give it a hidden name; linkat is what makes links of descriptors."""
    try:
        _write(descriptor, data)
        name = target.parent / f"{_hidden(target)}{secrets.token_hex(6)}"
        proc = os.open(_DESCRIPTORS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.link(str(descriptor), name, src_dir_fd=proc, follow_symlinks=True)
        finally:
            os.close(proc)
    finally:
        os.close(descriptor)
    return name


def _temporary(target: Path, data: bytes) -> Path:
    descriptor, name = tempfile.mkstemp(prefix=_hidden(target), dir=target.parent)
    try:
        _write(descriptor, data)
    except BaseException:
        os.unlink(name)
        raise
    finally:
        os.close(descriptor)
    return Path(name)


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)
