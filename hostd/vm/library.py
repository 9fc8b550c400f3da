"""Create, register, reconfigure, unregister and destroy: what makes VMs come to this host and leave it."""

import asyncio
import contextlib
import uuid as uuid_module
from pathlib import Path

import structlog

from hostd.datastore.mount import Datastores
from hostd.host.facts import HostFacts, machine_order
from hostd.vm import configuration
from hostd.vm import home as home_files
from hostd.vm.config_lock import ConfigLocks, Holder
from hostd.vm.home import Home
from hostd.vm.machine import Machine
from hostd.vm.power import place_of
from hostd.vm.registry import VmRegistry
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
        self, registry: VmRegistry, locks: ConfigLocks, datastores: Datastores, host: HostFacts
    ) -> None:
        self._registry = registry
        self._locks = locks
        self._datastores = datastores
        self._host = host

    async def create(self, wanted: vm_config_pb2.VmConfig, datastore: str, task: str) -> Machine:
        """Make the VM's home folder "[datastore] <name>" and register it. On any fault nothing is left.

        Without a uuid, machine type or CPU model it gets a new one, this host's newest and qemu64.

        :raises InvalidVmConfig: :raises DuplicateName: :raises InaccessibleDatastore: :raises FileAlreadyExists:
        :raises FileNotFound: kernel or initrd. :raises NoDiskSpace: :raises TaskInProgress:
        """
        config = self._with_defaults(wanted)
        configuration.validate(config)
        vmx_path = _path_on(datastore, f"{config.name}/{config.name}.vmx")
        with self._locks.held(config.uuid, Holder("createVm", task)):
            self._registry.require_free(config, vmx_path)
            home = await asyncio.to_thread(self._create_files, config, vmx_path)
            machine = Machine(config, vmx_path)
            try:
                await self._registry.add(machine)
            except VimFault:
                await asyncio.to_thread(home_files.destroy, home)
                raise
        _log.info("vm_created", vm_uuid=machine.uuid, vm=machine.name, home=str(vmx_path))
        return machine

    async def register(self, path_text: str, task: str) -> Machine:
        """Register the VM of a .vmx file and make this host its owner.

        :raises InvalidDatastorePath: :raises InaccessibleDatastore: :raises FileNotFound: :raises InvalidVmConfig:
        :raises DuplicateName: :raises FileLocked: another host owns it and runs it. :raises TaskInProgress:
        """
        vmx_path = DatastorePath.parse(path_text)
        home, config = await asyncio.to_thread(self._read, vmx_path)
        with self._locks.held(config.uuid, Holder("registerVm", task)):
            self._registry.require_free(config, vmx_path)
            record = await asyncio.to_thread(home_files.claim, home, config.uuid, self._host.uuid)
            machine = Machine(config, vmx_path)
            await self._registry.add(machine)
        _log.info("vm_registered", vm_uuid=machine.uuid, vm=machine.name, owner_epoch=record.epoch)
        return machine

    async def reconfigure(self, vm_uuid: str, wanted: vm_config_pb2.VmConfig, task: str) -> Machine:
        """Replace the configuration of a powered-off VM; uuid and name stay. The change version rises by one.

        :raises ManagedObjectNotFound: :raises TaskInProgress: :raises InvalidPowerState: :raises InvalidVmConfig:
        :raises ConcurrentAccess: `change_version` isn't the present one.
        :raises FileLocked: another host owns the VM.
        """
        machine = self._registry.get(vm_uuid)
        with self._locks.held(vm_uuid, Holder("reconfigureVm", task)):
            _require_off(machine)
            config = vm_config_pb2.VmConfig()
            config.CopyFrom(wanted)
            config.change_version = wanted.change_version + 1
            configuration.validate(config)
            for field in ("uuid", "name"):
                if getattr(config, field) != getattr(machine.config, field):
                    raise InvalidVmConfig(f"The VM's {field} can't be changed.", field)
            await asyncio.to_thread(self._reconfigure_file, machine, config, wanted.change_version)
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
        """Delete a powered-off VM with its files, then forget it.

        :raises ManagedObjectNotFound: :raises TaskInProgress: :raises InvalidPowerState:
        :raises FileLocked: another host owns it, or something runs it: nothing was deleted.
        :raises InaccessibleDatastore: nothing was deleted. :raises CannotAccessFile: some files may be deleted.
        """
        machine = self._registry.get(vm_uuid)
        with self._locks.held(vm_uuid, Holder("destroyVm", task)):
            _require_off(machine)
            await asyncio.to_thread(self._destroy_files, machine)
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

    def _create_files(self, config: vm_config_pb2.VmConfig, vmx_path: DatastorePath) -> Home:
        folder = self._datastores.resolve(vmx_path.parent)
        home = Home(folder, config.name)
        home_files.create(home, config, self._host.uuid)
        with contextlib.ExitStack() as undo:
            undo.callback(home_files.destroy, home)
            place_of(config, vmx_path, self._datastores, self._host)  # kernel and initrd are there
            undo.pop_all()
        return home

    def _read(self, vmx_path: DatastorePath) -> tuple[Home, vm_config_pb2.VmConfig]:
        folder = self._datastores.resolve_home(vmx_path)
        home = Home(folder, vmx_path.stem)
        try:
            return home, home_files.read_config(home)
        except FileNotFound as error:
            raise FileNotFound(f"There is no file {vmx_path}.", path=str(vmx_path)) from error

    def _reconfigure_file(
        self, machine: Machine, config: vm_config_pb2.VmConfig, expected_version: int
    ) -> None:
        home, present = self._read(machine.vmx_path)
        home_files.require_owner(home, machine.uuid, self._host.uuid)
        if present.change_version != expected_version:
            message = (
                f"The configuration has change version {present.change_version}, not {expected_version}."
            )
            raise ConcurrentAccess(message, kind="VirtualMachine", key=machine.uuid)
        home_files.write_config(home, config)

    def _destroy_files(self, machine: Machine) -> None:
        folder = self._datastores.resolve_home(machine.vmx_path)
        home = Home(folder, machine.vmx_path.stem)
        record = home_files.read_owner(home)
        if record is not None and record.owner_host_uuid != self._host.uuid:
            message = "Another host owns the VM: unregister it here instead."
            raise FileLocked(message, path=str(home.owner_path), owner=record.owner_host_uuid)
        if run_lock.is_held(home.run_lock_path):
            message = "Something runs the VM: its run lock is held."
            raise FileLocked(message, path=str(home.run_lock_path))
        home_files.destroy(home)


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
