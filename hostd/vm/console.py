"""Reads what a guest wrote to a serial port: a file in its home folder that QEMU appends to.

The file is on the VM's datastore, so following it goes on across a migration: the destination's QEMU appends to the
same file. There's no event that reports another host's writes on every kind of shared file system (inotify(7)
doesn't), so the file's size is looked at every 50 ms.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from runtime.faults import CannotAccessFile, FileNotFound

_INTERVAL_S = 0.05
_CHUNK_BYTES = 64 * 1024


async def read_console(path: Path, tail_bytes: int, *, follow: bool) -> AsyncIterator[bytes]:
    """The file's bytes in pieces, from its last `tail_bytes` on (0: from its beginning); following never ends.

    A file that becomes shorter or is replaced (the VM was powered on anew) is read on from its new beginning.

    :raises FileNotFound: there is no such file, and it isn't followed: a VM that never ran has none.
    :raises CannotAccessFile: it can't be read.
    """
    offset, inode = -1, 0
    while True:
        try:
            data, offset, inode = await asyncio.to_thread(_read_piece, path, offset, inode, tail_bytes)
        except FileNotFound:
            if not follow:
                raise
            data, offset, inode = b"", 0, 0
        if data:
            yield data
        elif not follow:
            return
        else:
            await asyncio.sleep(_INTERVAL_S)


def _read_piece(path: Path, offset: int, inode: int, tail_bytes: int) -> tuple[bytes, int, int]:
    """The next piece from `offset` (-1: where the tail begins) with the offset behind it and the file's inode."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise FileNotFound(f"There is no file {path.name} yet.", path=path.name) from error
    except OSError as error:
        raise CannotAccessFile(f"{path.name} can't be opened: {error.strerror}.", path=path.name) from error
    try:
        status = os.fstat(descriptor)
        if offset < 0:
            offset = max(status.st_size - tail_bytes, 0) if tail_bytes else 0
        elif offset > status.st_size or (inode and inode != status.st_ino):
            offset = 0
        data = os.pread(descriptor, _CHUNK_BYTES, offset)
    except OSError as error:
        raise CannotAccessFile(f"{path.name} can't be read: {error.strerror}.", path=path.name) from error
    finally:
        os.close(descriptor)
    return data, offset + len(data), status.st_ino
