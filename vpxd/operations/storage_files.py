"""The files of datastores: looked at, made, deleted, and passed through between a client and a host."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from proto.host.v1 import operations_pb2, storage_pb2
from runtime.faults import InvalidArgument, ResourceInUse, TimedOut
from vpxd.agents.storage_client import SILENCE_S
from vpxd.operations import storage_place
from vpxd.operations.parts import Parts
from vpxd.storage.files_in_use import in_the_way, used_on

MAX_FILE_BYTES = 1 << 62


@dataclass(frozen=True)
class Upload:
    """Where a client's file goes. `size_bytes`: exactly so many follow."""

    path: str
    host: str
    size_bytes: int


async def browse(parts: Parts, path: str, host_key: str) -> storage_pb2.BrowseFolderResponse:
    """The files of a folder. :raises VimFault: as the rpc says."""
    where = storage_place.place(parts, path, host_key)
    return await storage_place.storage_of(parts, where).browse(str(where.path))


async def make_folder(parts: Parts, path: str, host_key: str) -> operations_pb2.EmptyResponse:
    """Makes a folder with its parents. :raises VimFault: as the rpc says."""
    where = storage_place.place(parts, path, host_key)
    _require_below_root(where)
    return await storage_place.storage_of(parts, where).make_folder(str(where.path))


async def delete(parts: Parts, path: str, host_key: str, *, recursive: bool) -> operations_pb2.EmptyResponse:
    """Deletes what is no VM's, on whichever host that VM is. :raises VimFault: as the rpc says."""
    where = storage_place.place(parts, path, host_key)
    _require_below_root(where)
    used = used_on(
        parts.store.inventory.vms.values(),
        where.datastore.uuid,
        lambda vm, name: storage_place.uuid_of(parts, vm, name),
    )
    hit = in_the_way(used, where.path.relative)
    if hit is not None:
        raise ResourceInUse(
            f"{where.path} is {hit.vm.name}'s ({hit.relative}): delete the VM instead",
            kind="vm",
            name=hit.vm.name,
        )
    return await storage_place.storage_of(parts, where).delete(str(where.path), recursive=recursive)


async def download(
    parts: Parts, path: str, host_key: str, offset: int
) -> AsyncGenerator[storage_pb2.ReadFileResponse, None]:
    """A file's bytes, piece by piece as the caller takes them. :raises VimFault: as the rpc says."""
    if offset > MAX_FILE_BYTES:
        raise InvalidArgument("no file is that long", argument="offset")
    where = storage_place.place(parts, path, host_key)
    pieces = storage_place.storage_of(parts, where).read(str(where.path), offset)
    async with aclosing(pieces):
        async for piece in pieces:
            yield piece


async def upload(parts: Parts, target: Upload, pieces: AsyncIterator[bytes]) -> str:
    """Writes a new file of the client's pieces; answers its sha256. :raises VimFault: as the rpc says."""
    if target.size_bytes > MAX_FILE_BYTES:
        raise InvalidArgument("no file is that long", argument="size_bytes")
    where = storage_place.place(parts, target.path, target.host)
    _require_below_root(where)
    storage = storage_place.storage_of(parts, where)
    return await storage.write(str(where.path), target.size_bytes, _in_time(pieces))


async def _in_time(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The pieces, unless the client falls silent. :raises TimedOut: it did."""
    while True:
        try:
            async with asyncio.timeout(SILENCE_S):
                piece = await anext(pieces, None)
        except TimeoutError as error:
            text = f"the client sent nothing for {SILENCE_S:g} s"
            raise TimedOut(text, operation="UploadFile", timeout_s=SILENCE_S) from error
        if piece is None:
            return
        yield piece


def _require_below_root(where: storage_place.Place) -> None:
    """:raises InvalidArgument: the path is the datastore itself."""
    if not where.path.relative:
        raise InvalidArgument(f"{where.path} names a datastore and no file in it", argument="path")
