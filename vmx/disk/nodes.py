"""QEMU's block nodes of a disk: how they are named, which one the guest uses, and letting go of them.

    disk-2000        the node that the device was started with, over file-2000
    disk-2000-1      the one after the first live move of the disk, over file-2000-1; and so on
    mirror-2000-1    job and filter node of the mirror that leads there, while it lasts

Commands: QEMU's QMP reference (block-core).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import structlog

from vmx.disk.errors import DiskSpecError
from vmx.guest.errors import QmpBadReply, QmpError
from vmx.guest.qmp import QmpConnection

__all__ = ["clear_leftovers", "delete_node", "node_names", "node_of_disk", "next_generation"]

_OURS = re.compile(r"(disk|file|mirror)-([0-9]{1,9})(?:-([0-9]{1,9}))?")

_log = structlog.get_logger(__name__)


async def node_names(qmp: QmpConnection) -> set[str]:
    """The names of all block nodes. :raises QmpFailure:"""
    nodes = await _query_list(qmp, "query-named-block-nodes", {"flat": True})
    return {str(node.get("node-name")) for node in nodes}


async def node_of_disk(qmp: QmpConnection, key: int) -> str:
    """The node that the guest's disk `key` stands on; while it is mirrored, the mirror's filter.

    :raises DiskSpecError: the guest has no such disk. :raises QmpFailure:
    """
    for device in await _query_list(qmp, "query-block", {}):
        inserted = device.get("inserted")
        if f"/disk-{key}-device/" in str(device.get("qdev")) and isinstance(inserted, dict):
            return str(inserted.get("node-name"))
    raise DiskSpecError("key", f"the guest has no disk {key}")


async def next_generation(qmp: QmpConnection, key: int) -> int:
    """The first number that no node of the disk carries yet, nor any before it. :raises QmpFailure:"""
    used = [0]
    for name in await node_names(qmp):
        match = _OURS.fullmatch(name)
        if match and int(match[2]) == key and match[3]:
            used.append(int(match[3]))
    return max(used) + 1


async def delete_node(qmp: QmpConnection, name: str) -> None:
    """Deletes a disk's format node and the file node below it; those that are not there are no error.

    :raises QmpError: one is still in use. :raises QmpFailure:
    """
    for node in (name, name.replace("disk-", "file-", 1)):
        # A file node that was made together with the node above it goes with it.
        if node in await node_names(qmp):
            await qmp.execute("blockdev-del", {"node-name": node})


async def clear_leftovers(qmp: QmpConnection) -> None:
    """After a vmx that died in the middle of a move: ends its mirrors and exports, deletes its unused nodes.

    The guest goes on with the disks that it has. What can't be cleared is logged: it does no harm to the guest.

    :raises QmpFailure: QEMU does not answer.
    """
    for export in await _query_list(qmp, "query-block-exports", {}):
        await _try(qmp, "block-export-del", {"id": export.get("id"), "mode": "hard"})
    jobs = [str(job.get("id")) for job in await _query_list(qmp, "query-jobs", {})]
    with qmp.subscribe("JOB_STATUS_CHANGE") as events:
        for job in [job for job in jobs if _OURS.fullmatch(job)]:
            if await _try(qmp, "block-job-cancel", {"device": job, "force": True}):
                ended = {"id": job, "status": "null"}
                await events.until(lambda event, ended=ended: event.data == ended)  # type: ignore[misc]
    used = set()
    for device in await _query_list(qmp, "query-block", {}):
        inserted = device.get("inserted")
        if isinstance(inserted, dict):
            used.add(str(inserted.get("node-name")))
    # Of every node the disk's first: its file goes with it, and files that stay are those that were left alone.
    for name in sorted(await node_names(qmp) - used):
        match = _OURS.fullmatch(name)
        if match and match[1] != "mirror" and name.replace("file-", "disk-", 1) not in used:
            try:
                await delete_node(qmp, name)
            except QmpError as error:
                _log.warning("disk_node_left", node=name, reason=error.desc)


async def _try(qmp: QmpConnection, command: str, arguments: Mapping[str, object]) -> bool:
    try:
        await qmp.execute(command, arguments)
    except QmpError as error:
        _log.warning("disk_leftover_not_cleared", command=command, reason=error.desc)
        return False
    return True


async def _query_list(
    qmp: QmpConnection, command: str, arguments: Mapping[str, object]
) -> list[dict[str, object]]:
    reply = await qmp.execute(command, arguments)
    if not isinstance(reply, list) or not all(isinstance(item, dict) for item in reply):
        raise QmpBadReply(command, f"not a list of objects: {reply!r:.100}")
    return reply
