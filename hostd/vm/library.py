"""Create, register, reconfigure, unregister and destroy: what makes VMs come to this host and leave it."""

import asyncio
import contextlib
import threading
import uuid as uuid_module
from pathlib import Path

import structlog

from hostd.datastore.interruptible import interruptible
from hostd.datastore.mount import Datastores
from hostd.host.facts import HostFacts, machine_order
from hostd.vm import configuration
from hostd.vm import home as home_files
from hostd.vm.config_lock import ConfigLocks, Holder
from hostd.vm.files_in_use import FilesInUse
from hostd.vm.home import Home
from hostd.vm.machine import Machine
from hostd.vm.power import place_of
from hostd.vm.registry import VmRegistry
from hostd.vm.vm_disks import DiskPlan, VmDisks
from proto.vim.v1 import vm_config_pb2
from runtime.faults import (
    ConcurrentAccess,
    FileLocked,
    FileNotFound,
    InvalidArgument,
    InvalidDatastorePath,
    InvalidPowerState,
    InvalidVmConfig,
    VimFault,
)
from runtime.ondisk import run_lock
from runtime.ondisk.datastore_path import DatastorePath

_log = structlog.get_logger(__name__)
_DEFAULT_CPU_MODEL = "qemu64"


class VmLibrary:
    """The VMs' configurations and files."""

    def __init__(
        self,
        registry: VmRegistry,
        locks: ConfigLocks,
        datastores: Datastores,
        host: HostFacts,
        files: FilesInUse,
    ) -> None:
        self._registry = registry
        self._locks = locks
        self._datastores = datastores
        self._host = host
        self._files = files
        self._disks = VmDisks(datastores, files)

    async def create(self, wanted: vm_config_pb2.VmConfig, datastore: str, task: str) -> Machine:
        """Make the VM's home folder "[datastore] <name>" and its disks, and register it. On any fault nothing is left.

        Without a uuid, machine type or CPU model it gets a new one, this host's newest and qemu64; what its disks and
        NICs leave open is filled in (vm/device_defaults.py). A disk whose path is a disk's is attached as it is.

        :raises InvalidVmConfig: :raises DuplicateName: :raises InaccessibleDatastore: :raises FileAlreadyExists:
        :raises FileNotFound: kernel, initrd, or a disk. :raises NoDiskSpace: :raises TaskInProgress:
        :raises ResourceInUse: a disk is another VM's. :raises InvalidDiskFormat: of a disk that is there.
        """
        config = self._with_defaults(wanted)
        configuration.validate_name(config.name)
        vmx_path = _path_on(datastore, f"{config.name}/{config.name}.vmx")
        plan = await asyncio.to_thread(self._disks.plan, config, vmx_path.parent, self._macs())
        config = plan.config
        configuration.validate(config)
        with (
            self._locks.held(config.uuid, Holder("createVm", task)),
            self._files.claimed([vmx_path, *plan.new_paths], f"{config.name}, which is being made"),
        ):
            self._registry.require_free(config, vmx_path)
            self._disks.require_unregistered(plan.new_paths, config.uuid)
            undo = contextlib.ExitStack()
            machine = Machine(config, vmx_path)
            try:
                await interruptible(lambda stop: self._create_files(plan, vmx_path, undo, stop))
            except BaseException:
                await asyncio.shield(asyncio.to_thread(undo.close))
                raise
            try:
                await self._registry.add(machine)
            except VimFault:
                await asyncio.to_thread(undo.close)
                raise
        _log.info(
            "vm_created", vm_uuid=machine.uuid, vm=machine.name, home=str(vmx_path), disks=len(config.disks)
        )
        return machine

    async def register(self, path_text: str, task: str) -> Machine:
        """Register the VM of a .vmx file and make this host its owner.

        :raises InvalidDatastorePath: :raises InaccessibleDatastore: :raises FileNotFound: :raises InvalidVmConfig:
        :raises DuplicateName: :raises FileLocked: another host owns it and runs it. :raises TaskInProgress:
        :raises ResourceInUse: a disk is another VM's. :raises InvalidDiskFormat: a disk can't be used.
        """
        vmx_path = DatastorePath.parse(path_text)
        home, config = await asyncio.to_thread(self._read, vmx_path)
        disks = [disk.path for disk in await asyncio.to_thread(self._disks.inspect_all, config)]
        with (
            self._locks.held(config.uuid, Holder("registerVm", task)),
            self._files.claimed([vmx_path, *disks], f"{config.name}, which is being registered"),
        ):
            self._registry.require_free(config, vmx_path)
            self._disks.require_unregistered(disks, config.uuid)
            record = await asyncio.to_thread(home_files.claim, home, config.uuid, self._host.uuid)
            machine = Machine(config, vmx_path)
            await self._registry.add(machine)
        _log.info("vm_registered", vm_uuid=machine.uuid, vm=machine.name, owner_epoch=record.epoch)
        return machine

    async def reconfigure(self, vm_uuid: str, wanted: vm_config_pb2.VmConfig, task: str) -> Machine:
        """Replace the configuration of a powered-off VM; uuid and name stay. The change version rises by one.

        Disks: one that comes is attached or made, one that goes keeps its files, one that stays may grow.

        :raises ManagedObjectNotFound: :raises TaskInProgress: :raises InvalidPowerState: :raises InvalidVmConfig:
        :raises ConcurrentAccess: `change_version` isn't the present one.
        :raises FileLocked: another host owns the VM, or something has a disk open.
        :raises FileNotFound: :raises NoDiskSpace: :raises ResourceInUse: :raises InvalidDiskFormat: of a disk.
        On any fault all is as before.
        """
        machine = self._registry.get(vm_uuid)
        with self._locks.held(vm_uuid, Holder("reconfigureVm", task)):
            _require_off(machine)
            home = machine.vmx_path.parent
            plan = await asyncio.to_thread(self._disks.plan, wanted, home, self._macs(), machine.config)
            config = plan.config
            config.change_version = wanted.change_version + 1
            configuration.validate(config)
            for field in ("uuid", "name"):
                if getattr(config, field) != getattr(machine.config, field):
                    raise InvalidVmConfig(f"The VM's {field} can't be changed.", field)
            with self._files.claimed(plan.new_paths, f"{config.name}, which is being reconfigured"):
                self._disks.require_unregistered(plan.new_paths, vm_uuid)
                await interruptible(
                    lambda stop: self._reconfigure_files(machine, plan, wanted.change_version, stop)
                )
                machine.config = config
            await self._registry.save()
        _log.info("vm_reconfigured", vm_uuid=vm_uuid, vm=machine.name, change_version=config.change_version)
        return machine

    async def unregister(self, vm_uuid: str, task: str) -> None:
        """Forget a powered-off VM; its files and owner record stay.

        :raises ManagedObjectNotFound: :raises TaskInProgress: :raises InvalidPowerState:
        """
        machine = self._registry.get(vm_uuid)
        with self._locks.held(vm_uuid, Holder("unregisterVm", task)):
            _require_off(machine)
            await self._registry.remove(machine)
        _log.info("vm_unregistered", vm_uuid=vm_uuid, vm=machine.name)

    async def destroy(self, vm_uuid: str, task: str) -> None:
        """Delete a powered-off VM with its files and disks, then forget it. Disks that another VM has as well stay.

        :raises ManagedObjectNotFound: :raises TaskInProgress: :raises InvalidPowerState:
        :raises FileLocked: another host owns it, or something runs it: nothing was deleted.
        :raises InaccessibleDatastore: nothing was deleted. :raises CannotAccessFile: some files may be deleted.
        """
        machine = self._registry.get(vm_uuid)
        with self._locks.held(vm_uuid, Holder("destroyVm", task)):
            _require_off(machine)
            disks = self._disks.deletable(machine)
            await asyncio.to_thread(self._destroy_files, machine, disks)
            await self._registry.remove(machine)
        _log.info("vm_destroyed", vm_uuid=vm_uuid, vm=machine.name)

    def reload(self, machine: Machine) -> None:
        """Read a registered VM's .vmx file again, at hostd's start; blocks. What is wrong becomes its `failure`."""
        try:
            _, config = self._read(machine.vmx_path)
            if config.uuid != machine.uuid:
                raise InvalidVmConfig(
                    "The .vmx file says another uuid than the VM was registered with.", "vc.uuid"
                )
        except VimFault as fault:
            machine.failure = f"The configuration can't be read: {fault}"
            _log.error(
                "vm_configuration_unreadable", vm_uuid=machine.uuid, vm=machine.name, reason=str(fault)
            )
        else:
            machine.config = config

    def _with_defaults(self, wanted: vm_config_pb2.VmConfig) -> vm_config_pb2.VmConfig:
        config = vm_config_pb2.VmConfig()
        config.CopyFrom(wanted)
        config.uuid = config.uuid or str(uuid_module.uuid4())
        newest = max(self._host.machine_types, key=machine_order, default="")
        config.machine_type = config.machine_type or newest
        config.cpu_model = config.cpu_model or _DEFAULT_CPU_MODEL
        config.change_version = max(config.change_version, 1)
        return config

    def _macs(self) -> set[str]:
        return {nic.mac for machine in self._registry.all() for nic in machine.config.nics}

    def _create_files(
        self, plan: DiskPlan, vmx_path: DatastorePath, undo: contextlib.ExitStack, stop: threading.Event
    ) -> None:
        home = Home(self._datastores.resolve(vmx_path.parent), plan.config.name)
        undo.callback(self._disks.refresh, plan.config, vmx_path.parent)
        home_files.create(home, plan.config, self._host.uuid)
        undo.callback(home_files.destroy, home)
        self._disks.apply(plan, undo, stop)
        place_of(plan.config, vmx_path, self._datastores, self._host)  # kernel, initrd and disks are there
        self._disks.refresh(plan.config, vmx_path.parent)

    def _read(self, vmx_path: DatastorePath) -> tuple[Home, vm_config_pb2.VmConfig]:
        folder = self._datastores.resolve_home(vmx_path)
        home = Home(folder, vmx_path.stem)
        try:
            return home, home_files.read_config(home)
        except FileNotFound as error:
            raise FileNotFound(f"There is no file {vmx_path}.", path=str(vmx_path)) from error

    def _reconfigure_files(
        self, machine: Machine, plan: DiskPlan, expected_version: int, stop: threading.Event
    ) -> None:
        home, present = self._read(machine.vmx_path)
        home_files.require_owner(home, machine.uuid, self._host.uuid)
        if present.change_version != expected_version:
            message = (
                f"The configuration has change version {present.change_version}, not {expected_version}."
            )
            raise ConcurrentAccess(message, kind="VirtualMachine", key=machine.uuid)
        with contextlib.ExitStack() as undo:
            self._disks.apply(plan, undo, stop)
            home_files.write_config(home, plan.config)
            undo.pop_all()
        self._disks.refresh(plan.config, machine.vmx_path.parent)

    def _destroy_files(self, machine: Machine, disks: list[vm_config_pb2.VirtualDisk]) -> None:
        folder = self._datastores.resolve_home(machine.vmx_path)
        home = Home(folder, machine.vmx_path.stem)
        record = home_files.read_owner(home)
        if record is not None and record.owner_host_uuid != self._host.uuid:
            message = "Another host owns the VM: unregister it here instead."
            raise FileLocked(message, path=str(home.owner_path), owner=record.owner_host_uuid)
        if run_lock.is_held(home.run_lock_path):
            message = "Something runs the VM: its run lock is held."
            raise FileLocked(message, path=str(home.run_lock_path))
        self._disks.require_deletable(disks)
        self._disks.delete(disks)
        home_files.destroy(home)
        self._disks.refresh(machine.config, machine.vmx_path.parent)


def console_file(machine: Machine, port: str, datastores: Datastores) -> Path:
    """The file that holds what the guest wrote to a serial port; blocks.

    :raises InvalidArgument: there is no such port.
    :raises InaccessibleDatastore: the home folder can't be reached.
    """
    names = {
        "": home_files.CONSOLE_LOG,
        "console": home_files.CONSOLE_LOG,
        "heartbeat": home_files.HEARTBEAT_LOG,
    }
    if port not in names:
        raise InvalidArgument('The ports are "console" and "heartbeat".', "port")
    return datastores.resolve_home(machine.vmx_path) / names[port]


def _require_off(machine: Machine) -> None:
    if machine.active:
        raise InvalidPowerState("The VM is powered on.", state="poweredOn", required="poweredOff")


def _path_on(datastore: str, relative: str) -> DatastorePath:
    try:
        return DatastorePath(datastore, relative)
    except InvalidDatastorePath as error:
        raise InvalidArgument("The datastore's name can't be one.", "datastore") from error
