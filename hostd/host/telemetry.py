"""How the VMs do: memory and CPU use of each, asked of its vmx once a second.

A VM that is being migrated isn't asked: its vmx may be in the stun, where each millisecond counts. Its last figures
stand until the migration has ended.
"""

import asyncio

import structlog

from hostd.datastore.mount import Datastores
from hostd.host.changes import Changes
from hostd.vm.config_lock import EMIGRATING, IMMIGRATING, ConfigLocks
from hostd.vm.machine import Machine
from hostd.vm.registry import VmRegistry
from runtime.faults import VimFault

_log = structlog.get_logger(__name__)
SAMPLE_INTERVAL_S = 1.0
DATASTORE_INTERVAL_S = 10.0
_ANSWER_TIMEOUT_S = 2.0


def cpu_percent(before_cpu_s: float, after_cpu_s: float, wall_s: float) -> float:
    """Percent of one core; 0 where it can't be told (no time passed, another process's counter)."""
    if wall_s <= 0 or after_cpu_s < before_cpu_s:
        return 0.0
    return 100.0 * (after_cpu_s - before_cpu_s) / wall_s


class Telemetry:
    """Samples for as long as its tasks run."""

    def __init__(
        self, registry: VmRegistry, locks: ConfigLocks, datastores: Datastores, changes: Changes
    ) -> None:
        self._registry = registry
        self._locks = locks
        self._datastores = datastores
        self._changes = changes
        self._counters: dict[str, tuple[int, float, float]] = {}  # by uuid: QEMU's pid, its CPU seconds, when

    async def sample_vms(self) -> None:
        """Every second, for ever."""
        while True:
            machines = [machine for machine in self._registry.all() if self._may_ask(machine)]
            async with asyncio.TaskGroup() as group:
                for machine in machines:
                    group.create_task(self._sample(machine))
            known = {machine.uuid for machine in machines}
            self._counters = {uuid: kept for uuid, kept in self._counters.items() if uuid in known}
            await asyncio.sleep(SAMPLE_INTERVAL_S)

    async def refresh_datastores(self) -> None:
        """Every ten seconds, for ever: space changes without an event, and mounts come and go."""
        while True:
            await asyncio.sleep(DATASTORE_INTERVAL_S)
            before = [(datastore.name, datastore.accessible) for datastore in self._datastores.all()]
            await asyncio.to_thread(self._datastores.refresh)
            if before != [(datastore.name, datastore.accessible) for datastore in self._datastores.all()]:
                self._changes.ring()

    def _may_ask(self, machine: Machine) -> bool:
        holder = self._locks.holder(machine.uuid)
        migrating = holder is not None and holder.operation in (EMIGRATING, IMMIGRATING)
        alive = machine.vmx is not None and machine.vmx.process.alive
        return alive and not machine.ending and not migrating

    async def _sample(self, machine: Machine) -> None:
        vmx = machine.vmx
        if vmx is None:
            return
        try:
            state = await vmx.client.get_state(_ANSWER_TIMEOUT_S)
        except VimFault as fault:
            if vmx.process.alive:
                _log.warning("telemetry_missing", vm_uuid=machine.uuid, reason=str(fault))
            return
        if machine.vmx is not vmx:
            return
        now = asyncio.get_running_loop().time()
        pid, cpu_s, at = self._counters.get(machine.uuid, (0, 0.0, now))
        machine.cpu_percent = (
            cpu_percent(cpu_s, state.cpu_seconds, now - at) if pid == state.qemu_pid else 0.0
        )
        self._counters[machine.uuid] = (state.qemu_pid, state.cpu_seconds, now)
        for field in (
            "memory_used_bytes",
            "uptime_s",
            "cpu_seconds",
        ):  # states come from WatchState, in order
            setattr(machine.state, field, getattr(state, field))
