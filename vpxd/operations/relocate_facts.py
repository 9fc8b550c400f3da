"""What only hosts can say of a relocation's files, asked before its checks: what disks take, and which names are taken.

It is asked with one deadline for all. What isn't answered stays unknown: the checks then leave it to the destination,
which looks again before it makes anything.
"""

import asyncio
from collections.abc import Sequence

import structlog

from proto.host.v1 import storage_pb2
from runtime.faults import FileNotFound, VimFault
from vpxd.compatibility.relocate import Question
from vpxd.inventory.live import datastore_of
from vpxd.inventory.records import Host
from vpxd.inventory.values import DiskFormat
from vpxd.operations.parts import Parts
from vpxd.relocation.resolve import resolve

_log = structlog.get_logger(__name__)
DEADLINE_S = 4.0
_SPARSE = frozenset({DiskFormat.THIN, DiskFormat.QCOW2})


async def ask(parts: Parts, question: Question, hosts: Sequence[Host]) -> None:
    """Lets `parts.facts` learn it for this VM, for moves to any of these hosts. Never fails."""
    facts, vm = parts.facts, question.vm
    usage: dict[int, int] = {}
    files: set[tuple[str, str]] = set()
    if question.spec.changes_storage:
        try:
            async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
                source = parts.store.inventory.hosts.get(vm.host)
                for disk in vm.config.disks:
                    if source is not None and disk.format in _SPARSE:
                        group.create_task(_usage(parts, source, disk.key, disk.path, usage))
                for uuid, (host, folder) in _folders(parts, question, hosts).items():
                    group.create_task(_files(parts, host, uuid, folder, files))
        except TimeoutError:
            _log.info("relocation_facts_incomplete", vm=vm.id, deadline_s=DEADLINE_S)
    facts.learn_disk_usage(vm, usage)
    facts.learn_files(vm, files)


def _folders(parts: Parts, question: Question, hosts: Sequence[Host]) -> dict[str, tuple[Host, str]]:
    """The folder of the moved files on each destination datastore, by its uuid, and a host that can list it."""
    facts, vm = parts.facts, question.vm
    source = parts.store.inventory.hosts.get(vm.host)
    here = facts.host(source) if source is not None else None
    found: dict[str, tuple[Host, str]] = {}
    for host in hosts:
        if not parts.live.host(host.id).connected:
            continue
        to = resolve(facts.vm(vm), question.spec, here, facts.host(host), facts.datastore_uuids())
        for place in to.places:
            if place.moved and place.uuid:
                found.setdefault(place.uuid, (host, f"[{place.name}] {vm.name}"))
    return found


async def _usage(parts: Parts, host: Host, key: int, path: str, usage: dict[int, int]) -> None:
    try:
        answer = await parts.agents.connected_storage(host).inspect_disk(path)
    except VimFault as fault:
        _log.info("disk_usage_unknown", path=path, host=host.name, reason=fault.message)
        return
    usage[key] = answer.allocated_bytes


async def _files(parts: Parts, host: Host, uuid: str, folder: str, files: set[tuple[str, str]]) -> None:
    try:
        answer = await parts.agents.connected_storage(host).browse(folder)
    except FileNotFound:
        return  # no folder, no files
    except VimFault as fault:
        _log.info(
            "folder_unknown",
            folder=folder,
            datastore=datastore_of(folder),
            host=host.name,
            reason=fault.message,
        )
        return
    relative = folder.partition("]")[2].strip()
    files |= {
        (uuid, f"{relative}/{file.name}")
        for file in answer.files
        if file.type != storage_pb2.FILE_TYPE_FOLDER
    }
