"""hostd's start: find every vmx and guest of an earlier hostd again, and resolve every unfinished migration.

    1  open migrations    by journal, owner record and what lives (source.recover, destination.recover)
    2  registered VMs     vmx lives: attached; only its guest lives: unmanaged; nothing: off
    3  anything else      left alone and logged

Nothing that runs a guest is ended here.
"""

import contextlib

import structlog

from hostd.vm.machine import Machine
from hostd.vm.power import end_or_kill
from hostd.vmotion.destination import DestinationMigrations
from hostd.vmotion.ends import HostParts
from hostd.vmotion.journal import Role
from hostd.vmotion.relocation import Relocations
from hostd.vmotion.source import SourceMigrations
from proto.vim.v1 import host_pb2
from runtime.faults import VimFault

_log = structlog.get_logger(__name__)


async def recover(
    parts: HostParts,
    source: SourceMigrations,
    destination: DestinationMigrations,
    relocation: Relocations,
) -> None:
    """All of it, once, before hostd serves. Never raises for what it finds."""
    processes = parts.supervisor.processes
    taken = set()
    for migration in parts.journal.open_migrations():
        uuid = migration.spec.vm.uuid
        taken.add(uuid)
        vmx = processes.find(uuid)
        guest = processes.find_guest(uuid) if vmx is None else None
        _log.info(
            "migration_found",
            migration_id=migration.id,
            role=migration.role.value,
            stage=migration.stage.value,
            vmx_alive=vmx is not None,
            guest_alive=guest is not None,
        )
        ends: dict[Role, SourceMigrations | DestinationMigrations | Relocations] = {
            Role.SOURCE: source,
            Role.DESTINATION: destination,
            Role.RELOCATION: relocation,
        }
        try:
            await ends[migration.role].recover(migration, vmx, guest)
        except VimFault as fault:
            _log.error("migration_recovery_failed", migration_id=migration.id, reason=str(fault))
    for machine in parts.registry.all():
        if machine.uuid not in taken:
            await _adopt(parts, machine)
    known = {processes.run_directory(uuid) for uuid in taken}
    known |= {processes.run_directory(machine.uuid) for machine in parts.registry.all()}
    for directory in processes.found_directories():
        if directory not in known:
            _log.error("vmx_orphan", run_directory=str(directory))


async def _adopt(parts: HostParts, machine: Machine) -> None:
    vmx = parts.supervisor.processes.find(machine.uuid)
    if vmx is None:
        guest = parts.supervisor.processes.find_guest(machine.uuid)
        if guest is not None:
            parts.admission.adopt(machine.reservation)
            parts.supervisor.attach_unmanaged(machine, guest)
        return
    parts.admission.adopt(machine.reservation)
    attached = parts.supervisor.attach(machine, vmx)
    try:
        state = await attached.client.get_state()
    except VimFault as fault:
        _log.error("vmx_found_silent", vm_uuid=machine.uuid, reason=str(fault))
        return
    _log.info(
        "vmx_found", vm_uuid=machine.uuid, vm=machine.name, pid=vmx.process.pid, guest_pid=state.qemu_pid
    )
    if state.execution_state == host_pb2.EXECUTION_STATE_OFF:  # started, but its PowerOn never came
        machine.ending = True
        with contextlib.suppress(VimFault):
            await attached.client.power_off()
        await end_or_kill(vmx, after_s=5.0)
        return
    await parts.supervisor.settled(machine)
