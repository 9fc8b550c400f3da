"""Power on, power off, reset."""

import time
from collections.abc import Awaitable, Callable

from vpxd.agents.vpxa_client import VpxaClient
from vpxd.events.event import EventDraft, EventType
from vpxd.inventory.changes import record_of
from vpxd.inventory.records import Host, Vm
from vpxd.inventory.values import VmState
from vpxd.operations import lookup
from vpxd.operations.parts import Parts
from vpxd.tasks.manager import TaskSpec
from vpxd.tasks.state import TaskRecord
from vpxd.tasks.task import Task

Order = Callable[[VpxaClient, str, str], Awaitable[VmState]]


async def power_on(parts: Parts, key: str, user: str) -> TaskRecord:
    """Starts the VM. :raises VimFault: as the rpc says."""

    async def order(client: VpxaClient, uuid: str, task: str) -> VmState:
        return await client.power_on(uuid, task, _evc_mode(parts, uuid))

    return await _submit(parts, key, user, _Kind("powerOn", EventType.VM_POWERED_ON, "runs on", order))


async def power_off(parts: Parts, key: str, user: str) -> TaskRecord:
    """Ends the guest at once. :raises VimFault: as the rpc says."""

    async def order(client: VpxaClient, uuid: str, task: str) -> VmState:
        return await client.power_off(uuid, task)

    return await _submit(
        parts, key, user, _Kind("powerOff", EventType.VM_POWERED_OFF, "was powered off on", order)
    )


async def reset(parts: Parts, key: str, user: str) -> TaskRecord:
    """Resets the guest. :raises VimFault: as the rpc says."""

    async def order(client: VpxaClient, uuid: str, task: str) -> VmState:
        return await client.reset(uuid, task)

    return await _submit(parts, key, user, _Kind("reset", EventType.VM_RESETTING, "was reset on", order))


def _evc_mode(parts: Parts, uuid: str) -> str:
    """The EVC mode of the cluster that the VM is in now."""
    inventory = parts.store.inventory
    vm = inventory.vm_with_uuid(uuid)
    host = inventory.hosts.get(vm.host) if vm is not None else None
    cluster = inventory.clusters.get(host.cluster) if host is not None else None
    return cluster.evc_mode if cluster is not None else ""


class _Kind:
    """One of the orders: its name in tasks, its event, and the call."""

    def __init__(self, name: str, event: EventType, words: str, order: Order) -> None:
        self.operation = f"VirtualMachine.{name}"
        self.event = event
        self.words = words
        self.order = order


async def _submit(parts: Parts, key: str, user: str, kind: _Kind) -> TaskRecord:
    vm, host = lookup.vm_on_connected_host(parts, key)

    async def work(task: Task) -> str:
        state = await kind.order(parts.agents.connected_client(host), vm.uuid, task.id)
        text = f"{vm.name} {kind.words} {host.name}"
        await take_answer(parts, vm, host, state, EventDraft(kind.event, text, vm.id, vm.name, task.id))
        return vm.id

    spec = TaskSpec(kind.operation, vm.id, vm.name, user, exclusive=(vm.uuid,), shared=(host.id,))
    return await parts.tasks.submit(spec, work)


async def take_answer(parts: Parts, vm: Vm, host: Host, state: VmState, event: EventDraft) -> None:
    """What a host answered becomes the VM's record at once, with the event."""
    async with parts.store.transaction() as transaction:
        present = parts.store.inventory.vms.get(vm.id)
        if present is not None and state.uuid == vm.uuid:
            transaction.put(record_of(vm.id, host.id, state))
        transaction.emit(event)
    if state.uuid == vm.uuid:
        parts.live.learned(host.id, state, time.monotonic())
