"""Standard input read by the event loop, so that Ctrl-C ends the wait at once.

A thread in read() couldn't be interrupted: the interpreter would wait for it at its end.
"""

import asyncio
import os


async def readable(fd: int) -> None:
    """Returns when a read of `fd` wouldn't block; at once for a file, which never does."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    try:
        loop.add_reader(fd, wake)
    except PermissionError:  # epoll takes no files
        return
    try:
        await ready
    finally:
        loop.remove_reader(fd)


async def read_all(fd: int, most_bytes: int) -> bytes:
    """What comes from `fd` until its end, or until it is more than `most_bytes`. :raises OSError: as read(2)."""
    data = b""
    while len(data) <= most_bytes:
        await readable(fd)
        piece = os.read(fd, 65536)
        if not piece:
            break
        data += piece
    return data
