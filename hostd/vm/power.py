"""Power on, power off, reset. Each holds the VM's configuration lock while it works."""

import asyncio
from contextlib import AsyncExitStack

import structlog

from hostd.datastore.mount import Datastores
from hostd.host.facts import HostFacts
from hostd.host.process import ProcessHandle, children_of
from hostd.vm import guest_cpu
from hostd.vm import home as home_files
from hostd.vm.config_lock import ConfigLocks, Holder
from hostd.vm.home import Home
from hostd.vm.machine import AttachedVmx, Machine
from hostd.vm.registry import VmRegistry
from hostd.vm.supervisor import Supervisor
from hostd.vm.vm_disks import disk_places
from hostd.vmotion.admission import Admission
from proto.vim.v1 import vm_config_pb2
from proto.vmx.v1 import service_pb2
from runtime.faults import (
    InvalidPowerState,
    InvalidState,
    TaskInProgress,
    TimedOut,
    VimFault,
    VirtualHardwareVersionNotSupported,
)
from runtime.ondisk.datastore_path import DatastorePath

_log = structlog.get_logger(__name__)
_OFF_TIMEOUT_S = 20.0
_ABANDON_S = 3.0
_KILL_S = 5.0


def place_of(
    config: vm_config_pb2.VmConfig, vmx_path: DatastorePath, datastores: Datastores, host: HostFacts
) -> service_pb2.VmPlace:
    """Where the VM's files are on this host, for its vmx; blocks.

    :raises InaccessibleDatastore: :raises InvalidDatastorePath: :raises FileNotFound: of the home, the kernel, the
        initrd or a disk.
    :raises InvalidVmConfig: :raises InvalidDiskFormat: a disk isn't as the configuration says, or can't be used.
    """
    place = service_pb2.VmPlace(host_uuid=host.uuid, host_name=host.name)
    place.home_directory = str(datastores.resolve_home(vmx_path))
    if config.boot.kernel:
        place.kernel_path = str(datastores.resolve_file(DatastorePath.parse(config.boot.kernel)))
    if config.boot.initrd:
        place.initrd_path = str(datastores.resolve_file(DatastorePath.parse(config.boot.initrd)))
    place.disks.extend(disk_places(config, datastores))
    place.nics.extend(host.networks.places(config))
    return place


class Power:
    """Power operations on registered VMs."""

    def __init__(
        self,
        registry: VmRegistry,
        locks: ConfigLocks,
        supervisor: Supervisor,
        admission: Admission,
        datastores: Datastores,
        host: HostFacts,
    ) -> None:
        self._registry = registry
        self._locks = locks
        self._supervisor = supervisor
        self._admission = admission
        self._datastores = datastores
        self._host = host

    async def power_on(self, vm_uuid: str, task: str, evc_baseline: str = "") -> Machine:
        """Start the VM; returns when its guest runs. On any fault it's off and nothing is reserved.

        Its CPU is fixed here, until its end: by its own EVC mode, else by its cluster's, `evc_baseline`, else by its
        model and what this host has.

        :raises ManagedObjectNotFound: :raises TaskInProgress: :raises InvalidPowerState: it's on already.
        :raises InsufficientMemoryResources: :raises InsufficientCpuResources: admission refused it.
        :raises FileLocked: the owner record names another host, or the run lock is held.
        :raises VirtualHardwareVersionNotSupported: this host's QEMU hasn't its machine type.
        :raises EvcAdmissionFailed: its own EVC mode is above the cluster's.
        :raises FeatureRequirementsNotMet: this host lacks a feature of its CPU.
        :raises GuestStartFailed: vmx or QEMU didn't come up.
        """
        machine = self._registry.get(vm_uuid)
        with self._locks.held(vm_uuid, Holder("powerOn", task)):
            if machine.active:
                raise InvalidPowerState("The VM is powered on.", state="poweredOn", required="poweredOff")
            config, place = await asyncio.to_thread(self._prepare, machine, evc_baseline)
            machine.config = config
            async with AsyncExitStack() as undo:
                undo.push_async_callback(self._forget_guest_cpu, machine)
                self._admission.reserve(machine.reservation)
                undo.callback(self._admission.release, vm_uuid)
                vmx = await self._supervisor.start(machine)
                undo.push_async_callback(abandon, machine, vmx)
                await vmx.client.power_on(config, place)
                await self._supervisor.settled(machine)
                undo.pop_all()
        return machine

    async def power_off(self, vm_uuid: str, task: str) -> Machine:
        """End the guest at once; returns when nothing of the VM runs.

        A vmx that doesn't do it is no excuse: its guest and then itself are killed, the guest being known by its
        pid and start time.

        :raises ManagedObjectNotFound: :raises TaskInProgress: :raises InvalidPowerState: it's off already.
        :raises TimedOut: something of it doesn't end.
        """
        machine = self._registry.get(vm_uuid)
        with self._locks.held(vm_uuid, Holder("powerOff", task)):
            if not machine.active:
                raise InvalidPowerState("The VM is powered off.", state="poweredOff", required="poweredOn")
            machine.ending = True
            if machine.vmx is not None:
                await self._end_through_vmx(machine, machine.vmx)
            elif machine.unmanaged is not None:
                machine.unmanaged.kill()
            try:
                async with asyncio.timeout(_OFF_TIMEOUT_S):
                    await machine.idle.wait()
            except TimeoutError as error:
                message = f"The VM's processes didn't end within {_OFF_TIMEOUT_S:.0f} s."
                raise TimedOut(message, operation="powerOff", timeout_s=_OFF_TIMEOUT_S) from error
            await self._forget_guest_cpu(machine)
        return machine

    async def reset(self, vm_uuid: str, task: str) -> Machine:
        """Reset the guest.

        :raises ManagedObjectNotFound: :raises TaskInProgress: :raises InvalidPowerState: it isn't powered on.
        :raises InvalidState: the guest runs without a vmx.
        """
        machine = self._registry.get(vm_uuid)
        with self._locks.held(vm_uuid, Holder("reset", task)):
            if not machine.powered_on:
                raise InvalidPowerState("The VM is powered off.", state="poweredOff", required="poweredOn")
            if machine.vmx is None:
                message = "The guest runs without a vmx process: it can only be powered off."
                raise InvalidState(message, state="unmanaged", required="managed")
            await machine.vmx.client.reset()
        return machine

    async def _forget_guest_cpu(self, machine: Machine) -> None:
        """The guest has ended, and its CPU with it. In a file that can't be written it stays, and means nothing."""
        try:
            home = await asyncio.to_thread(self._home, machine)
            config = await asyncio.to_thread(guest_cpu.forget, home, machine.uuid, self._host.uuid)
        except VimFault as fault:
            _log.warning("guest_cpu_not_cleared", vm_uuid=machine.uuid, reason=str(fault))
            return
        machine.config = config

    def _home(self, machine: Machine) -> Home:
        return Home(self._datastores.resolve_home(machine.vmx_path), machine.vmx_path.stem)

    def _prepare(
        self, machine: Machine, evc_baseline: str
    ) -> tuple[vm_config_pb2.VmConfig, service_pb2.VmPlace]:
        """What is read from the datastore before a start, and the CPU that is written there; blocks."""
        home = self._home(machine)
        config = home_files.read_config(home)
        home_files.require_owner(home, machine.uuid, self._host.uuid)
        if config.uuid != machine.uuid:
            message = "The .vmx file says another uuid than the VM was registered with."
            raise InvalidState(message, state=config.uuid, required=machine.uuid)
        require_machine_type(config, self._host)
        place = place_of(config, machine.vmx_path, self._datastores, self._host)
        guest_cpu.fix(home, config, self._host, evc_baseline)
        return config, place

    async def _end_through_vmx(self, machine: Machine, vmx: AttachedVmx) -> None:
        try:
            await vmx.client.power_off()
        except TaskInProgress:
            machine.ending = False
            raise
        except VimFault as fault:
            _log.error("vmx_power_off_failed", vm_uuid=machine.uuid, reason=str(fault))
            await force_off(machine, vmx)
        else:
            await end_or_kill(vmx.process, after_s=5.0)


async def abandon(machine: Machine, vmx: AttachedVmx) -> None:
    """End a vmx whose guest didn't come up, and what there is of its guest; returns when nothing of the VM runs."""
    machine.ending = True
    machine.observer = None
    try:
        await vmx.client.power_off()
        await end_or_kill(vmx.process, after_s=_ABANDON_S)
    except VimFault:  # it has ended, doesn't answer, or won't because of a migration
        await force_off(machine, vmx)
    await machine.idle.wait()


async def force_off(machine: Machine, vmx: AttachedVmx) -> None:
    """Kill the guest and then its vmx: for who has the right to end the guest where vmx doesn't do it.

    The guest is the one that vmx told of; one that it hasn't told of yet is among its children.
    """
    guests = set(children_of(vmx.process.process.pid)) if vmx.process.alive else set()
    guests |= {machine.guest} if machine.guest is not None else set()
    for process in guests:
        guest = ProcessHandle.open(process)
        if guest is not None:
            _log.warning("guest_killed", vm_uuid=machine.uuid, pid=process.pid)
            guest.kill()
            await guest.wait(timeout_s=_KILL_S)
            guest.close()
    vmx.process.kill()


async def end_or_kill(process: ProcessHandle, after_s: float) -> None:
    """The process gets `after_s` to end by itself and is then killed."""
    if not await process.wait(timeout_s=after_s):
        _log.error("vmx_killed", pid=process.process.pid)
        process.kill()


def require_machine_type(config: vm_config_pb2.VmConfig, host: HostFacts) -> None:
    """:raises VirtualHardwareVersionNotSupported: this host's QEMU doesn't know the VM's machine type."""
    if config.machine_type not in host.machine_types:
        message = f"{host.name} can't run the machine type {config.machine_type}."
        raise VirtualHardwareVersionNotSupported(message, machine_type=config.machine_type, host=host.name)
