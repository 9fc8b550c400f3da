"""Files between this machine and a datastore: in pieces, with a bar on a terminal, whole or not at all."""

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import BinaryIO

from proto.host.v1 import storage_pb2
from proto.vpxd.v1 import storage_pb2 as api
from vpxd.cli.client import VpxdClient
from vpxd.cli.errors import CliError, UsageError
from vpxd.cli.session import Session

PIECE_BYTES = 1024 * 1024
LEAST_S = 60.0
SLOWEST_BYTES_PER_S = (
    1024 * 1024
)  # a deadline is for what hangs: a line as slow as this one still isn't given up
Advance = Callable[[int], None]


async def upload(
    session: Session, client: VpxdClient, source: Path, target: api.UploadFileRequest
) -> storage_pb2.WriteFileResponse:
    """Writes a local file to `target.path`.

    :raises UsageError: the local file can't be opened. :raises CliError: it can't be read to its end.
    :raises VimFault: the datastore's fault; nothing is left there.
    """
    try:
        opened = source.open("rb")
    except OSError as error:
        raise UsageError(f"{source} can't be read: {error.strerror}.") from error
    with opened:
        size_bytes = os.fstat(opened.fileno()).st_size
        target.size_bytes = size_bytes
        with _progress(session, f"upload {source.name}", size_bytes) as advance:
            messages = _Messages(opened, target, advance)
            timeout_s = session.options.timeout_s or LEAST_S + size_bytes / SLOWEST_BYTES_PER_S
            try:
                return await client.upload(client.storage.UploadFile, messages.all(), timeout_s)
            finally:
                if messages.failure is not None:
                    raise CliError(f"{source} can't be read: {messages.failure.strerror}.")


async def download(
    session: Session, client: VpxdClient, request: api.DatastoreFileRequest, target: Path
) -> int:
    """Writes a datastore's file to a local one, which appears when it is whole; answers its size in bytes.

    :raises CliError: it can't be written, or came incomplete. :raises VimFault: the datastore's fault.
    """
    try:
        fd, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
    except OSError as error:
        raise CliError(f"{target} can't be written: {error.strerror}.") from error
    part = Path(name)
    try:
        with os.fdopen(fd, "wb") as opened:
            written = await _receive(session, client, request, opened)
        await asyncio.to_thread(_finish, part, target)
    except OSError as error:
        raise CliError(f"{target} can't be written: {error.strerror}.") from error
    finally:
        await asyncio.to_thread(part.unlink, missing_ok=True)
    return written


def _finish(part: Path, target: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    part.chmod(0o666 & ~mask)
    part.replace(target)


async def _receive(
    session: Session, client: VpxdClient, request: api.DatastoreFileRequest, opened: BinaryIO
) -> int:
    written, size_bytes = 0, None
    timeout = () if session.options.timeout_s is None else (session.options.timeout_s,)
    pieces = client.stream(client.storage.DownloadFile, request, *timeout)
    with _progress(session, f"download {request.path}", 0) as advance:
        async with aclosing(pieces):
            async for piece in pieces:
                if size_bytes is None:
                    size_bytes = piece.size_bytes
                    advance(-size_bytes)
                await asyncio.to_thread(opened.write, piece.data)
                written += len(piece.data)
                advance(len(piece.data))
    if written != (size_bytes or 0):
        raise CliError(f"{request.path} came incomplete: {written} of {size_bytes} bytes.", "try again.")
    return written


class _Messages:
    """An upload's messages. gRPC pulls them; what goes wrong in reading is kept for the caller."""

    def __init__(self, opened: BinaryIO, first: api.UploadFileRequest, advance: Advance) -> None:
        self._opened = opened
        self._first = first
        self._advance = advance
        self.failure: OSError | None = None

    async def all(self) -> AsyncGenerator[api.UploadFileRequest, None]:
        """The first message, then one for each piece. A stream that ends too early is refused by its size."""
        yield self._first
        left_bytes = self._first.size_bytes
        while left_bytes:
            try:
                data = await asyncio.to_thread(self._opened.read, min(PIECE_BYTES, left_bytes))
            except OSError as error:
                self.failure = error
                return
            if not data:
                self.failure = OSError(0, "it has become shorter")
                return
            left_bytes -= len(data)
            yield api.UploadFileRequest(data=data)
            self._advance(len(data))


@contextmanager
def _progress(session: Session, text: str, total_bytes: int) -> Iterator[Advance]:
    """A bar on a terminal. Advancing by less than 0 sets the total, where it is learned on the way."""
    if not session.interactive:
        yield lambda _count: None
        return
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from vpxd.cli.console_text import plain

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(True), TransferSpeedColumn())
    with Progress(*columns, console=session.stderr, transient=True) as bar:
        row = bar.add_task(escape(plain(text)), total=total_bytes or None)

        def advance(count: int) -> None:
            if count < 0:
                bar.update(row, total=-count)
            else:
                bar.advance(row, count)

        yield advance
