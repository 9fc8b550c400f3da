"""Takes a host's reports into the inventory: planned by the pure `changes`, written in one transaction."""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import structlog

from runtime.faults import InvalidState
from vpxd.events.event import EventDraft, EventType
from vpxd.inventory.changes import Known, Plan, plan
from vpxd.inventory.ids import Kind
from vpxd.inventory.live import LiveState
from vpxd.inventory.records import Host, Vm
from vpxd.inventory.store import InventoryStore, Transaction
from vpxd.inventory.values import HostReport
from vpxd.inventory.vm_lock import EntityLocks

_log = structlog.get_logger(__name__)


class Intake:
    """The one way by which hosts' words come into the inventory."""

    def __init__(
        self,
        store: InventoryStore,
        live: LiveState,
        locks: EntityLocks,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._live = live
        self._locks = locks
        self._monotonic = monotonic

    def require_same_host(self, host_id: str, report: HostReport) -> None:
        """:raises InvalidState: it isn't the host that was added: another uuid under the same name and address."""
        host = self._store.inventory.hosts.get(host_id)
        if host is not None and report.info is not None and report.info.uuid != host.info.uuid:
            raise InvalidState(
                f"{host.name} says that it is another host ({report.info.uuid} instead of {host.info.uuid})",
                state="changed",
                required=host.info.uuid,
            )

    async def take_in(self, host_id: str, report: HostReport) -> None:
        """Takes one report in; the host counts as connected from then on."""
        host = self._store.inventory.hosts.get(host_id)
        if host is None:
            return  # removed meanwhile
        self._live.heard(host_id, report, datetime.now(UTC), self._monotonic())
        if self._plan(host).empty:
            return
        async with self._store.transaction() as transaction:
            # Planned anew: what a task has written while this one waited for its turn must stand.
            present = self._store.inventory.hosts.get(host_id)
            if present is not None:
                await self._write(present, self._plan(present), transaction)

    def _plan(self, host: Host) -> Plan:
        inventory = self._store.inventory
        live = self._live.host(host.id)
        held = {uuid for uuid in live.vms if self._locks.holder(uuid) is not None}
        held |= {vm.uuid for vm in inventory.vms_on(host.id) if self._locks.holder(vm.uuid) is not None}
        known = Known(
            host=host,
            vms=inventory.vms,
            datastores=inventory.datastores,
            live={other: self._live.host(other) for other in inventory.hosts},
            untouchable=frozenset(held) | self._live.settling(self._monotonic()),
            networks=inventory.networks,
        )
        return plan(known, live.info or host.info, live.vms)

    async def _write(self, host: Host, planned: Plan, transaction: Transaction) -> None:
        if planned.host is not None:
            transaction.put(planned.host)
        for datastore in planned.new_datastores:
            transaction.put(replace(datastore, id=await transaction.new_id(Kind.DATASTORE)))
        for datastore in planned.changed_datastores:
            transaction.put(datastore)
        for network in planned.new_networks:
            transaction.put(replace(network, id=await transaction.new_id(Kind.NETWORK)))
        for network in planned.changed_networks:
            transaction.put(network)
        for vm in planned.new_vms:
            registered = replace(vm, id=await transaction.new_id(Kind.VM))
            transaction.put(registered)
            transaction.emit(_registered(host, registered))
            _log.info("vm_found", vm=registered.id, name=vm.name, host=host.name)
        for vm in planned.changed_vms:
            transaction.put(vm)
        transaction.emit(*planned.events)


def _registered(host: Host, vm: Vm) -> EventDraft:
    return EventDraft(EventType.VM_REGISTERED, f"{vm.name} was found on {host.name}", vm.id, vm.name)
