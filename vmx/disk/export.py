"""A disk that is no raw extent, opened for reading by the bulk copy: an NBD export of it, read by NbdSource.

    running guest   QEMU's own node, below the mirror's filter, exported read-only by QEMU's NBD server
    no guest        a qemu-storage-daemon of our own over the image, ended when the block is left

QEMU has one NBD server for all exports; nothing else in it may use that.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import structlog

from vmx.disk.bulk import RawSource
from vmx.disk.child import Child
from vmx.disk.contract import DiskLayout
from vmx.disk.nbd_client import NbdSource
from vmx.guest.errors import QmpConnectionLost, QmpFailure
from vmx.guest.qmp import QmpConnection
from vmx.threads import in_thread, to_the_end

__all__ = ["image_export", "node_exports", "open_source"]

_DEADLINE_S: Final = 30.0

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def node_exports(qmp: QmpConnection, nodes: Sequence[str], run_dir: Path) -> AsyncIterator[Path]:
    """Exports nodes of a running QEMU, each under its own name; the socket to find them at. No nodes: no server.

    :raises QmpFailure: QEMU refused; nothing is exported. A QEMU that is gone at the end is no error.
    """
    path = run_dir / "export.sock"
    if not nodes:
        yield path
        return
    address = {"type": "unix", "data": {"path": str(path)}}
    await asyncio.to_thread(path.unlink, missing_ok=True)
    try:
        await qmp.execute("nbd-server-start", {"addr": address}, deadline_s=_DEADLINE_S)
        for node in nodes:
            export = {
                "type": "nbd",
                "id": f"export-{node}",
                "node-name": node,
                "name": node,
                "writable": False,
            }
            await qmp.execute("block-export-add", export, deadline_s=_DEADLINE_S)
        yield path
    finally:
        await to_the_end(_stop_exports(qmp, path))


async def _stop_exports(qmp: QmpConnection, path: Path) -> None:
    try:
        # Ends the exports too, and waits until their nodes are free.
        await qmp.execute("nbd-server-stop", deadline_s=_DEADLINE_S)
    except QmpConnectionLost:
        pass  # they are gone with QEMU
    except QmpFailure as error:
        _log.warning("disk_export_left", reason=str(error))
    finally:
        await asyncio.to_thread(path.unlink, missing_ok=True)


@asynccontextmanager
async def image_export(image: Path, export: str, run_dir: Path) -> AsyncIterator[Path]:
    """Exports a qcow2 image that no guest uses, read-only; the socket to find `export` at.

    :raises NbdClosed: the storage daemon can't be started, or can't open the image.
    """
    path = run_dir / "image.sock"
    node = {
        "driver": "qcow2",
        "node-name": "image",
        "read-only": True,
        "backing": None,
        "file": {"driver": "file", "filename": str(image), "locking": "on"},
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        os.chmod(path, 0o600)
        # It listens before the daemon has started: a client waits instead of asking again and again.
        listener.listen(8)
        arguments = ["--blockdev", json.dumps(node)]
        arguments += ["--nbd-server", f"addr.type=fd,addr.str={listener.fileno()}"]
        arguments += ["--export", f"type=nbd,id=image,node-name=image,name={export},writable=off"]
        daemon = Child(["qemu-storage-daemon", *arguments], [listener.fileno()])
        try:
            await in_thread(daemon.start)
        except BaseException:
            await to_the_end(_end(daemon, path))
            raise
    try:
        yield path
    finally:
        await to_the_end(_end(daemon, path))


async def _end(daemon: Child, path: Path) -> None:
    await in_thread(daemon.end)
    await asyncio.to_thread(path.unlink, missing_ok=True)


def open_source(
    layout: DiskLayout, path: Path, node_name: str, exports: Path | None
) -> RawSource | NbdSource:
    """A disk for the bulk copy to read: its raw extent at `path`, or its export `node_name` at the socket `exports`.

    Blocks. :raises DiskError: it can't be opened.
    """
    if layout.format.is_raw:
        return RawSource(path, layout.capacity_bytes)
    assert exports is not None, "an image is read by an export"
    return NbdSource(exports, node_name, layout.capacity_bytes)
