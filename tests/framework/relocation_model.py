"""What hosts refuse of a resolved relocation: an executable model for tests, no part of the product.

It is written from the fault lists of the hosts' protocol alone (Hostd.PrepareDestination, StartSource, StartRelocation,
RegisterVm and vmx's), independently of vpxd's checks, and opens every file by its path as a host does.
"""

from runtime import faults
from tests.framework.relocation_worlds import World
from vpxd.inventory.values import DiskFormat, HostInfo, HostUsage, VmConfig
from vpxd.relocation.relocation import Relocation

_THICK = (DiskFormat.THICK_LAZY_ZEROED, DiskFormat.THICK_EAGER_ZEROED)
Refusal = type[faults.VimFault]


def refusal(world: World, host_id: str, wanted: Relocation, live: bool) -> Refusal | None:
    """The fault with which the source or the destination would refuse the resolved relocation."""
    source, source_usage, source_answers = world.host(world.vm.host)
    destination, usage, answers = world.host(host_id)
    if not (source_answers and answers):
        return faults.HostNotConnected
    moves = bool(wanted.moved_disks) or wanted.moves_home
    if host_id == world.vm.host:
        if not moves:
            return faults.InvalidArgument
        if [nic.network for nic in wanted.destination_vm.nics] != [
            nic.network for nic in world.vm.config.nics
        ]:
            return faults.NotSupported
        return _files(world, source, source, wanted, live)
    if live or moves:
        refused = _vmotion(source, destination)
        if refused:
            return refused
    if live:
        refused = _machine(source, destination, world.vm.config) or _admission(
            destination, usage, world.vm.config
        )
        if refused:
            return refused
        if world.high_priority and (
            source_usage.vcpus_reserved >= source.vcpu_capacity
            or usage.vcpus_reserved + world.vm.config.vcpus >= destination.vcpu_capacity
        ):
            return faults.InsufficientCpuResources
        for nic in wanted.destination_vm.nics:
            if nic.connected and nic.network not in {group.name for group in destination.port_groups}:
                return faults.CannotAccessNetwork
    return _files(world, source, destination, wanted, live)


def _vmotion(source: HostInfo, destination: HostInfo) -> Refusal | None:
    if not source.vmotion_address or not destination.vmotion_address:
        return faults.VMotionNotConfigured
    here, there = source.capability, destination.capability
    speaks = set(range(here.stream_version_min, here.stream_version_max + 1))
    if not speaks & set(range(there.stream_version_min, there.stream_version_max + 1)):
        return faults.VMotionProtocolIncompatible
    return None


def _machine(source: HostInfo, destination: HostInfo, vm: VmConfig) -> Refusal | None:
    there = destination.capability
    if vm.machine_type not in there.machine_types:
        return faults.VirtualHardwareVersionNotSupported
    if vm.cpu_model not in there.cpu_models or there.accelerator != source.capability.accelerator:
        return faults.FeatureRequirementsNotMet
    if vm.guest_cpu is not None and not set(vm.guest_cpu.features) <= set(there.cpu_features):
        return faults.FeatureRequirementsNotMet
    stores = {store.name: store for store in destination.datastores if store.accessible}
    if vm.boot.kernel and _store(vm.boot.kernel) not in stores:
        return faults.InaccessibleDatastore
    return None


def _admission(destination: HostInfo, usage: HostUsage, vm: VmConfig) -> Refusal | None:
    if usage.memory_reserved_bytes + vm.ram_bytes > destination.memory_bytes:
        return faults.InsufficientMemoryResources
    if usage.vcpus_reserved + vm.vcpus > destination.vcpu_capacity:
        return faults.InsufficientCpuResources
    return None


def _files(
    world: World, source: HostInfo, destination: HostInfo, wanted: Relocation, live: bool
) -> Refusal | None:
    """Opens every file by its path on each host, as hostd does, and writes those that move."""
    here = {store.name: store for store in source.datastores if store.accessible}
    there = {store.name: store for store in destination.datastores if store.accessible}
    free = {store.uuid: store.free_bytes for store in destination.datastores}
    exist = _existing(world)
    before = {disk.key: disk for disk in world.vm.config.disks}
    pairs = [("", world.vm.home, wanted.destination_home, wanted.moves_home)]
    for disk in wanted.destination_vm.disks:
        moved = disk.key in wanted.moved_disks
        pairs.append((str(disk.key), before[disk.key].path, disk.path, moved))
    for key, old, new, moved in pairs:
        if _store(new) not in there:
            return faults.InaccessibleDatastore
        if moved:
            if _store(old) not in here:
                return faults.InaccessibleDatastore
            if (there[_store(new)].uuid, _file(new)) in exist:
                return faults.FileAlreadyExists
            exist.add((there[_store(new)].uuid, _file(new)))
            if key:
                after = next(disk for disk in wanted.destination_vm.disks if str(disk.key) == key)
                elsewhere = source.uuid != destination.uuid
                if after.format is DiskFormat.QCOW2 and (
                    live or elsewhere or before[after.key].format is not DiskFormat.QCOW2
                ):
                    return faults.NotSupported
                free[there[_store(new)].uuid] -= after.capacity_bytes if after.format in _THICK else 0
        elif _store(old) in here and here[_store(old)].uuid != there[_store(new)].uuid:
            return faults.FileNotFound  # another datastore of the same name
    if any(left < 0 for left in free.values()):
        return faults.NoDiskSpace
    return None


def _existing(world: World) -> set[tuple[str, str]]:
    exist = set()
    for vm in world.inventory.vms.values():
        stores = {store.name: store.uuid for store in world.inventory.hosts[vm.host].info.datastores}
        for path in (vm.home, *(disk.path for disk in vm.config.disks)):
            exist.add((stores.get(_store(path), ""), _file(path)))
    return exist


def _store(path: str) -> str:
    return path[1 : path.index("]")]


def _file(path: str) -> str:
    return path[path.index("]") + 2 :]
