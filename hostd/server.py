"""hostd put together: its parts made once, an earlier hostd's VMs found again, then served until it's told to stop.

Stopping ends no vmx and no guest: they are found again at the next start.
"""

import asyncio
import fcntl
import os
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import structlog

from hostd.config import Config
from hostd.datastore.files import DatastoreFiles
from hostd.datastore.image_import import ImageImport
from hostd.datastore.mount import Datastores, MountRules
from hostd.datastore.qemu_img import QemuImg
from hostd.datastore.virtual_disk import VirtualDisks
from hostd.host.capability import CapabilityError, load_or_probe
from hostd.host.changes import Changes
from hostd.host.cpu_features import limited_to
from hostd.host.facts import HostFacts
from hostd.host.identity import load_or_make_host_uuid
from hostd.host.telemetry import Telemetry
from hostd.network.switch_process import SwitchProcess
from hostd.owned_tasks import OwnedTasks
from hostd.services.hostd_service import HostdCalls, HostdServicer
from hostd.services.picture import HostPicture
from hostd.services.storage_service import StorageCalls, StorageServicer
from hostd.vm.config_lock import ConfigLocks
from hostd.vm.files_in_use import FilesInUse
from hostd.vm.library import VmLibrary
from hostd.vm.power import Power
from hostd.vm.registry import VmRegistry
from hostd.vm.supervisor import Supervisor
from hostd.vm.vmx_process import VmxProcesses
from hostd.vmotion.admission import Admission
from hostd.vmotion.destination import DestinationMigrations
from hostd.vmotion.ends import HostParts
from hostd.vmotion.journal import Journal
from hostd.vmotion.recovery import recover
from hostd.vmotion.relocation import Relocations
from hostd.vmotion.source import SourceMigrations
from proto.host.v1 import storage_pb2_grpc
from proto.hostd.v1 import service_pb2_grpc
from runtime.daemon.settings import SettingsError
from runtime.faults import ResourceInUse
from runtime.rpc.server import unix_server

_log = structlog.get_logger(__name__)
_STOP_GRACE_S = 1.0
_UNINSTALLED_VERSION = "0.1.0"


async def serve(config: Config, stop: asyncio.Event) -> None:
    """Run hostd until `stop` is set.

    :raises ResourceInUse: another hostd has this state directory or socket.
    :raises CannotAccessFile: its own files can't be read: it doesn't start by guessing.
    :raises SettingsError: QEMU can't be run.
    """
    config.state_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    config.run_directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = _lock_state(config.state_directory)
    tasks = OwnedTasks()
    try:
        calls, storage, telemetry = await _assemble(config, tasks)
        await recover(calls.parts, calls.source, calls.destination, calls.relocation)
        servicer = HostdServicer(calls)
        server = unix_server(config.socket_path, f"hostd@{config.host_name}")
        service_pb2_grpc.add_HostdServicer_to_server(servicer, server.grpc)
        storage_pb2_grpc.add_HostStorageServicer_to_server(StorageServicer(storage), server.grpc)
        await server.start()
        tasks.start(telemetry.sample_vms(), "telemetry of VMs")
        tasks.start(telemetry.refresh_datastores(), "telemetry of datastores")
        _log.info("serving", socket=str(config.socket_path), vms=len(calls.parts.registry.all()))
        await stop.wait()
        await server.stop(_STOP_GRACE_S)
        await servicer.finish()
    finally:
        await tasks.close()
        os.close(lock)


async def _assemble(config: Config, tasks: OwnedTasks) -> tuple[HostdCalls, StorageCalls, Telemetry]:
    host = await asyncio.to_thread(_host_facts, config)
    changes = Changes()
    locks = ConfigLocks(changes.ring)
    registry = VmRegistry(config.state_directory / "registry.json", changes.ring)
    admission = Admission(config.memory_bytes, config.vcpu_capacity)
    datastores = Datastores(config.datastores, config.host_name, _mount_rules(config))
    journal = Journal(config.state_directory / "migrations")
    datastores.load()
    await asyncio.to_thread(datastores.refresh)
    registry.load()
    journal.load()
    files = FilesInUse(registry, datastores)
    library = VmLibrary(registry, locks, datastores, host, files)
    for machine in registry.all():
        await asyncio.to_thread(library.reload, machine)
    processes = VmxProcesses(config.vmx_settings(host.uuid, host.capability.accelerator))
    switch = SwitchProcess(config.switch_settings(), tasks)
    await switch.take_up()
    supervisor = Supervisor(processes, admission, tasks, changes, switch)
    parts = HostParts(host, registry, locks, supervisor, admission, datastores, journal, tasks)
    calls = HostdCalls(
        parts=parts,
        picture=HostPicture(host, registry, locks, admission, datastores, changes),
        library=library,
        power=Power(registry, locks, supervisor, admission, datastores, host),
        source=SourceMigrations(parts),
        destination=DestinationMigrations(parts),
        relocation=Relocations(parts),
    )
    disks = VirtualDisks(datastores)
    storage = StorageCalls(
        datastores=datastores,
        in_use=files,
        files=DatastoreFiles(datastores, disks, host.uuid),
        disks=disks,
        images=ImageImport(datastores, disks, QemuImg(config.qemu_img_binary)),
        changes=changes,
    )
    return calls, storage, Telemetry(registry, locks, datastores, changes)


def _mount_rules(config: Config) -> MountRules:
    """Mounts are hostd's own; no datastore may show the daemons' keys and state, or their sockets."""
    closed = (config.state_directory.parent, config.run_directory)
    return MountRules(config.state_directory / "datastores.json", closed)


def _host_facts(config: Config) -> HostFacts:
    """Who and what this host is; blocks.

    :raises SettingsError: the QEMU that was named can't be used, or the machine can't pretend to be what it should.
    """
    try:
        capability = load_or_probe(
            config.qemu_binary, config.accelerator, config.state_directory / "capability.json"
        )
    except CapabilityError as error:
        raise SettingsError("HOST_QEMU", f"can't be used: {error}") from error
    if config.cpu_generation:
        try:
            capability = replace(capability, cpu=limited_to(capability.cpu, config.cpu_generation))
        except ValueError as error:
            raise SettingsError("HOST_CPU_GENERATION", str(error)) from error
    return HostFacts(
        uuid=load_or_make_host_uuid(config.state_directory / "host.json"),
        name=config.host_name,
        management_address=config.management_address,
        vmotion_address=config.vmotion_address,
        memory_bytes=config.memory_bytes,
        cpu_cores=config.cpu_cores,
        vcpu_capacity=config.vcpu_capacity,
        version=_version(),
        capability=capability,
        networks=config.networks,
    )


def _lock_state(directory: Path) -> int:
    """Two hostds on one state would each believe in their own counters: the second doesn't start."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        message = f"Another hostd uses {directory}."
        raise ResourceInUse(message, kind="directory", name=str(directory)) from error
    return descriptor


def _version() -> str:
    try:
        return metadata.version("vpx")
    except metadata.PackageNotFoundError:
        return _UNINSTALLED_VERSION
