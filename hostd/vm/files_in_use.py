"""Which files on datastores belong to VMs of this host: what may not be deleted, attached twice or unmounted.

A VM's files are those that hostd keeps in its home folder, its disks' descriptors and extents, and its kernel and
initrd (which it only reads: they can be shared). What an operation is about to give to a VM, or to take away, is
claimed for as long as it runs. All of it is in memory: nothing here blocks.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from hostd.datastore import disk_descriptor
from hostd.datastore.mount import Datastores
from hostd.vm import home as home_files
from hostd.vm.machine import Machine
from hostd.vm.registry import VmRegistry
from proto.vim.v1 import vm_config_pb2
from runtime.faults import ResourceInUse
from runtime.ondisk.datastore_path import DatastorePath

_Key = tuple[str, str]


class FilesInUse:
    """Asks the registry; keeps the claims."""

    def __init__(self, registry: VmRegistry, datastores: Datastores) -> None:
        self._registry = registry
        self._datastores = datastores
        self._claims: dict[_Key, str] = {}

    def user_of(self, path: DatastorePath) -> str:
        """Who has the file as its own: a VM's name, or what claims it; empty: nobody."""
        return self._claims.get(self._datastores.key(path)) or self.vm_of(path)

    def vm_of(self, path: DatastorePath, *, but: str = "") -> str:
        """The name of the VM whose own the file is; empty: none's. `but`: the uuid of a VM that isn't asked."""
        wanted = self._datastores.key(path)
        for machine in self._registry.all():
            if machine.uuid != but and wanted in self._keys(own_files(machine)):
                return machine.name
        return ""

    def user_below(self, folder: DatastorePath) -> str:
        """Who has a file at this path or below it, boot files counted; empty: nobody."""
        store, top = self._datastores.key(folder)

        def inside(key: _Key) -> bool:
            return key[0] == store and (not top or key[1] == top or key[1].startswith(f"{top}/"))

        for key, claim in self._claims.items():
            if inside(key):
                return claim
        for machine in self._registry.all():
            if any(inside(key) for key in self._keys([*own_files(machine), *boot_files(machine)])):
                return machine.name
        return ""

    def home_of(self, folder: DatastorePath) -> Machine | None:
        """The VM whose home folder this is."""
        wanted = self._datastores.key(folder)
        for machine in self._registry.all():
            if self._datastores.key(machine.vmx_path.parent) == wanted:
                return machine
        return None

    def require_unused(self, path: DatastorePath) -> None:
        """:raises ResourceInUse: it's a VM's, or claimed."""
        user = self.user_of(path)
        if user:
            raise ResourceInUse(f"{path} is in use by {user}.", kind="file", name=str(path))

    @contextmanager
    def claimed(self, paths: Iterable[DatastorePath], by: str) -> Iterator[None]:
        """Claim files, and the extents of those that are descriptors, for as long as the block runs.

        :raises ResourceInUse: one is claimed already; none is then.
        """
        keys = {}
        for path in paths:
            store, relative = self._datastores.key(path)
            folder = relative.removesuffix(path.name)
            keys[store, relative] = path
            if path.name.endswith(disk_descriptor.SUFFIX):
                for disk_format in disk_descriptor.FORMATS:
                    keys[store, folder + disk_descriptor.extent_name(path.name, disk_format)] = path
        for key, path in keys.items():
            if key in self._claims:
                message = f"{path} is in use by {self._claims[key]}."
                raise ResourceInUse(message, kind="file", name=str(path))
        self._claims.update(dict.fromkeys(keys, by))
        try:
            yield
        finally:
            for key in keys:
                del self._claims[key]

    def _keys(self, paths: Iterable[DatastorePath]) -> set[_Key]:
        return {self._datastores.key(path) for path in paths}


def own_files(machine: Machine) -> list[DatastorePath]:
    """The VM's own files: those in its home folder that hostd keeps, and its disks with their extents."""
    home = machine.vmx_path.parent
    files = [home.child(name) for name in home_files.own_names(machine.vmx_path.stem)]
    for disk in machine.config.disks:
        files += disk_files(disk)
    return files


def disk_files(disk: vm_config_pb2.VirtualDisk) -> list[DatastorePath]:
    """A disk's descriptor and extent."""
    path = DatastorePath.parse(disk.path)
    return [path, path.parent.child(disk_descriptor.extent_name(path.name, disk.format))]


def boot_files(machine: Machine) -> list[DatastorePath]:
    """Kernel and initrd."""
    boot = machine.config.boot
    return [DatastorePath.parse(text) for text in (boot.kernel, boot.initrd) if text]
