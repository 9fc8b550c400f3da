"""The VMs that are registered on this host: durable in one file, which is replaced whole at each change.

The file keeps each VM's configuration as it was last known: the .vmx file on the datastore is the truth, but a guest
that runs must be counted also while its datastore can't be read.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog
from google.protobuf import json_format

from hostd.vm import configuration
from hostd.vm.machine import Machine
from proto.vim.v1 import vm_config_pb2
from runtime.faults import CannotAccessFile, DuplicateName, FileNotFound, ManagedObjectNotFound, VimFault
from runtime.ondisk.datastore_path import DatastorePath
from runtime.ondisk.durable import read_bounded, write_durably

_MAX_BYTES = 64 << 20
_log = structlog.get_logger(__name__)


class VmRegistry:
    """Registered VMs by uuid. `changed` is called after each change."""

    def __init__(self, path: Path, changed: Callable[[], None]) -> None:
        self._path = path
        self._changed = changed
        self._machines: dict[str, Machine] = {}
        self._saving = asyncio.Lock()

    def all(self) -> list[Machine]:
        """All of them, in the order of their registration."""
        return list(self._machines.values())

    def find(self, vm_uuid: str) -> Machine | None:
        """The VM of this uuid, if it is registered."""
        return self._machines.get(vm_uuid)

    def get(self, vm_uuid: str) -> Machine:
        """The VM of this uuid.

        :raises ManagedObjectNotFound: it isn't registered here.
        """
        machine = self._machines.get(vm_uuid)
        if machine is None:
            message = "The VM isn't registered on this host."
            raise ManagedObjectNotFound(message, kind="VirtualMachine", key=vm_uuid[:64])
        return machine

    def require_free(self, config: vm_config_pb2.VmConfig, vmx_path: DatastorePath) -> None:
        """Check that neither uuid nor name nor file is another registered VM's.

        :raises DuplicateName: it is.
        """
        for machine in self._machines.values():
            if machine.uuid == config.uuid:
                message = f"A VM with this uuid is registered on this host: {machine.name}."
                raise DuplicateName(message, kind="VirtualMachine", name=config.uuid)
            if machine.name == config.name or machine.vmx_path == vmx_path:
                message = f"A VM named {config.name} is registered on this host."
                raise DuplicateName(message, kind="VirtualMachine", name=config.name)

    async def add(self, machine: Machine) -> None:
        """Register it; durable on return.

        :raises DuplicateName: as `require_free`.
        :raises CannotAccessFile: it can't be made durable; it isn't registered.
        """
        self.require_free(machine.config, machine.vmx_path)
        self._machines[machine.uuid] = machine
        try:
            await self.save()
        except CannotAccessFile:
            del self._machines[machine.uuid]
            raise

    async def adopt(self, machine: Machine) -> None:
        """Register a VM whose guest runs here: it is registered whatever else is true; durable on return.

        :raises CannotAccessFile: it can't be made durable; it's registered all the same.
        """
        self._machines[machine.uuid] = machine
        await self.save()

    async def remove(self, machine: Machine) -> None:
        """Forget it; durable on return. Its files aren't touched.

        :raises CannotAccessFile: that can't be made durable; it stays.
        """
        self._machines.pop(machine.uuid, None)
        try:
            await self.save()
        except CannotAccessFile:
            self._machines[machine.uuid] = machine
            raise

    async def save(self) -> None:
        """Make the present state durable, after a change of a VM's configuration.

        :raises CannotAccessFile: the file can't be written.
        """
        async with self._saving:
            content = json.dumps(
                {"vms": [_to_json(machine) for machine in self._machines.values()]}, indent=1
            )
            try:
                await asyncio.to_thread(write_durably, self._path, content.encode())
            except OSError as error:
                message = f"The VM registry can't be written: {error.strerror}."
                raise CannotAccessFile(message, path=str(self._path)) from error
        self._changed()

    def load(self) -> None:
        """Read the file at the start; blocks.

        :raises CannotAccessFile: it's there but isn't a registry: nothing is guessed, hostd doesn't start with it.
        """
        try:
            content = read_bounded(self._path, _MAX_BYTES)
        except FileNotFound:
            return
        try:
            for entry in json.loads(content)["vms"]:
                machine = _from_json(entry)
                self._machines[machine.uuid] = machine
        except (ValueError, KeyError, TypeError, json_format.ParseError, VimFault) as error:
            raise CannotAccessFile("The VM registry isn't valid.", path=str(self._path)) from error
        _log.info("registry_loaded", vms=len(self._machines))


def _to_json(machine: Machine) -> dict[str, object]:
    return {"vmx_path": str(machine.vmx_path), "config": json_format.MessageToDict(machine.config)}


def _from_json(entry: Mapping[str, Any]) -> Machine:
    config = vm_config_pb2.VmConfig()
    json_format.ParseDict(entry["config"], config)
    configuration.validate(config)
    return Machine(config, DatastorePath.parse(str(entry["vmx_path"])))
