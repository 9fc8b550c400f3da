"""Small files written so that a crash leaves the old content or the new, never a mixture.

The order is the one that rename(2) and fsync(2) promise something for: write a temporary file in the same folder,
fsync it, rename it over the old one, fsync the folder.
"""

import os
from pathlib import Path

from runtime.faults import CannotAccessFile, FileNotFound


def write_durably(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace `path` by `content`; on return it is on stable storage. Blocks for two fsyncs.

    Two writers at once: one of them wins whole.

    :raises OSError: nothing was changed, and no temporary file is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            written = 0
            while written < len(content):
                written += os.write(descriptor, content[written:])
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_durably(path: Path) -> None:
    """Remove `path` if it is there; on return its absence is on stable storage."""
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable (fsync on a directory, Linux)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bounded(path: Path, max_bytes: int = 1 << 20) -> bytes:
    """The file's content, refused when it is longer than `max_bytes` or not a regular file (symlinks included).

    :raises FileNotFound: there is none.
    :raises CannotAccessFile: it can't be read, isn't a regular file, or is too long.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise FileNotFound(f"There is no file {path.name}.", path=str(path)) from error
    except OSError as error:
        raise CannotAccessFile(f"{path.name} can't be opened: {error.strerror}.", path=str(path)) from error
    with os.fdopen(descriptor, "rb") as file:
        try:
            content = file.read(max_bytes + 1)
        except OSError as error:
            raise CannotAccessFile(f"{path.name} can't be read: {error.strerror}.", path=str(path)) from error
    if len(content) > max_bytes:
        raise CannotAccessFile(f"{path.name} is longer than {max_bytes} bytes.", path=str(path))
    return content
