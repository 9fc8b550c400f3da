"""Files that appear whole and durable or not at all, and never over another.

A new file has no name until it is published (open(2), O_TMPFILE): whatever ends its writer before, a kill included,
leaves nothing. Where a file system can't do that (NFS) it has a hidden name, removed when the writer ends in order.
Publishing is linkat(2), which fails where the name is taken.
"""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.faults import CannotAccessFile, FileAlreadyExists, FileNotFound, NoDiskSpace
from runtime.ondisk.datastore_path import DatastorePath
from runtime.ondisk.durable import sync_folder

_NO_TMPFILE = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL})
_ZEROS = bytes(4 << 20)
_RESERVE_STEP_BYTES = 1 << 30


class Interrupted(Exception):
    """Whoever wanted the work has left; what was begun is undone."""


class NewFile:
    """One open file without a name; all methods block. Used as `with NewFile(folder) as file`."""

    def __init__(self, folder: Path) -> None:
        """:raises OSError: the folder can't be written."""
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._temporary = ""
        try:
            self.descriptor = self._opened(folder)
        except OSError:
            os.close(self._folder)
            raise

    def __enter__(self) -> "NewFile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._temporary:
            os.unlink(self._temporary, dir_fd=self._folder)
        os.close(self.descriptor)
        os.close(self._folder)

    def write(self, content: bytes | memoryview) -> None:
        """All of it, at the present place. :raises OSError:"""
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(self.descriptor, rest) :]

    def write_or_skip(self, content: bytes) -> None:
        """As `write`, but zeros stay a hole; `set_size` at the end. :raises OSError:"""
        if len(content) <= len(_ZEROS) and content == _ZEROS[: len(content)]:
            os.lseek(self.descriptor, len(content), os.SEEK_CUR)
        else:
            self.write(content)

    def set_size(self, size_bytes: int) -> None:
        """Cut or extend it by a hole. :raises OSError:"""
        os.ftruncate(self.descriptor, size_bytes)

    def publish(self, name: str) -> None:
        """Make it durable and give it its name in its folder.

        :raises FileExistsError: the name is taken; nothing changed. :raises OSError:
        """
        os.fsync(self.descriptor)
        source = self._temporary or f"/proc/self/fd/{self.descriptor}"
        # With a folder's descriptor this is linkat(2), which follows the link that /proc has for the file.
        os.link(
            source,
            name,
            src_dir_fd=self._folder,
            dst_dir_fd=self._folder,
            follow_symlinks=not self._temporary,
        )
        os.fsync(self._folder)

    def _opened(self, folder: Path) -> int:
        try:
            return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
        self._temporary = f".{os.urandom(8).hex()}.tmp"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return os.open(self._temporary, flags, 0o600, dir_fd=self._folder)


def reserve(descriptor: int, start: int, end: int, stop: threading.Event) -> None:
    """Take a file's blocks between two offsets. :raises OSError: :raises Interrupted: `stop` was set."""
    for offset in range(start, end, _RESERVE_STEP_BYTES):
        _check(stop)
        os.posix_fallocate(descriptor, offset, min(_RESERVE_STEP_BYTES, end - offset))


def write_zeros(descriptor: int, start: int, end: int, stop: threading.Event) -> None:
    """Really write zeros between two offsets. :raises OSError: :raises Interrupted: `stop` was set."""
    offset = start
    while offset < end:
        _check(stop)
        offset += os.pwrite(descriptor, _ZEROS[: end - offset], offset)


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise Interrupted


@contextmanager
def file_faults(path: DatastorePath, needed_bytes: int = 0, folder: Path | None = None) -> Iterator[None]:
    """Errors of the system inside the block as faults about `path`; `folder` is where the free space is told of.

    :raises NoDiskSpace: :raises FileAlreadyExists: :raises FileNotFound: :raises CannotAccessFile:
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = free_bytes(folder) if folder is not None else 0
            message = f"Datastore {path.datastore} has no space for {path}."
            raise NoDiskSpace(message, path.datastore, needed_bytes, free) from error
        if isinstance(error, FileExistsError):
            raise FileAlreadyExists(f"There is a file {path} already.", path=str(path)) from error
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise FileNotFound(f"There is no file or folder {path}.", path=str(path)) from error
        message = f"{path} can't be used: {error.strerror}."
        raise CannotAccessFile(message, path=str(path)) from error


def free_bytes(folder: Path) -> int:
    """What is free for us on the folder's file system. :raises OSError:"""
    space = os.statvfs(folder)
    return space.f_bavail * space.f_frsize


def remove(path: Path) -> None:
    """Remove a file if it's there, durably. :raises OSError:"""
    path.unlink(missing_ok=True)
    sync_folder(path.parent)
