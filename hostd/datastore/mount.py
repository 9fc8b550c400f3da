"""The datastores this host sees: directories, each with an identity of its own, and safe ways into them.

A datastore's uuid is in a file `.datastore.json` in its root, made by the first host that mounts it: two hosts that
read the same uuid share the datastore, whatever each calls it or where each has it. The file appears whole or not at
all (written under another name, then link(2)ed, which fails where it exists), so of two first hosts one wins and
both read the same.

Those of the host's settings are always there. Others are mounted and unmounted by request: they are in a file of
hostd's, written before the request is answered, and come back at every start.

Paths given by clients are datastore paths ("[shared] web01/web01.vmx"). They are turned into the host's own only here;
one that leads out of its datastore, by dots or by symbolic links, is refused. No datastore lies within another, nor
has one two names: a file has one path, by which it is known who uses it.
"""

import json
import os
import threading
import uuid as uuid_module
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from hostd.datastore.new_file import free_bytes
from proto.vim.v1 import host_pb2
from runtime.faults import (
    CannotAccessFile,
    DuplicateName,
    FileNotFound,
    InaccessibleDatastore,
    InvalidArgument,
    InvalidDatastorePath,
    ManagedObjectNotFound,
    NoDiskSpace,
    NotSupported,
)
from runtime.ondisk.datastore_path import DatastorePath
from runtime.ondisk.durable import read_bounded, sync_folder, write_durably

IDENTITY_NAME = ".datastore.json"
_IDENTITY_MAX_BYTES = 4096
_MOUNTS_MAX_BYTES = 1 << 20
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Datastore:
    """One datastore as it was last seen. `uuid` is empty until it could be read once."""

    name: str
    root: Path
    uuid: str = ""
    capacity_bytes: int = 0
    free_bytes: int = 0
    accessible: bool = False

    def to_proto(self) -> host_pb2.Datastore:
        """As HostInfo tells it."""
        return host_pb2.Datastore(
            name=self.name,
            uuid=self.uuid,
            capacity_bytes=self.capacity_bytes,
            free_bytes=self.free_bytes,
            accessible=self.accessible,
            location=str(self.root),
        )


@dataclass(frozen=True)
class MountRules:
    """What mounting by request needs. `mounts_path`: the file of mounts; `closed`: folders that no datastore has."""

    mounts_path: Path
    closed: tuple[Path, ...] = ()


class Datastores:
    """All datastores of the host. Methods that touch the disk say so: call those in a thread."""

    def __init__(
        self, roots: Mapping[str, Path], host_name: str, mount_rules: MountRules | None = None
    ) -> None:
        self._host_name = host_name
        self._fixed = frozenset(roots)
        self._rules = mount_rules
        self._present = {name: Datastore(name, root) for name, root in roots.items()}
        self._refreshing = threading.RLock()

    def all(self) -> list[Datastore]:
        """Each as last seen."""
        return list(self._present.values())

    def get(self, name: str) -> Datastore:
        """The datastore of this name, accessible when last seen.

        :raises InaccessibleDatastore: there is none, or it isn't accessible.
        """
        datastore = self._present.get(name)
        if datastore is None or not datastore.accessible:
            why = "isn't known" if datastore is None else "isn't accessible"
            message = f"Datastore {name} {why} on {self._host_name}."
            raise InaccessibleDatastore(message, datastore=name, host=self._host_name)
        return datastore

    def refresh(self) -> None:
        """Look at each again; blocks. One that can't be used is marked and the reason logged once."""
        for name in list(self._present):
            self.refresh_one(name)

    def refresh_one(self, name: str) -> None:
        """Look at one again, after a change of its space; blocks."""
        with self._refreshing:
            present = self._present.get(name)
            if present is not None:
                self._present[name] = _looked_at(present)

    def load(self) -> None:
        """Read the file of mounts at the start; blocks. A name that the settings have as well is the settings'.

        :raises CannotAccessFile: it's there but isn't one: hostd doesn't start by guessing.
        """
        if self._rules is None:
            return
        try:
            mounts = json.loads(read_bounded(self._rules.mounts_path, _MOUNTS_MAX_BYTES))["mounts"]
            for name, location in mounts.items():
                DatastorePath(name, "")
                if name in self._fixed:
                    _log.warning("datastore_mount_hidden", datastore=name, location=location)
                else:
                    self._present[name] = Datastore(name, Path(location))
        except FileNotFound:
            return
        except (ValueError, KeyError, TypeError, AttributeError, InvalidDatastorePath) as error:
            path = str(self._rules.mounts_path)
            raise CannotAccessFile("The file of mounted datastores isn't valid.", path=path) from error

    def mount(self, name: str, location: str) -> Datastore:
        """Mount a directory, now and at every start; blocks.

        :raises InvalidArgument: name or location can't be one, or the location overlaps another datastore or one of
            hostd's own folders.
        :raises DuplicateName: the name is taken, or the directory is a datastore already.
        :raises FileNotFound: there's no such directory. :raises CannotAccessFile: it can't be used.
        """
        try:
            DatastorePath(name, "")
        except InvalidDatastorePath as error:
            raise InvalidArgument("The datastore's name can't be one.", "name") from error
        root = Path(location)
        if not root.is_absolute() or not location.isprintable():
            raise InvalidArgument("The location isn't an absolute path.", "location")
        with self._refreshing:
            if name in self._present:
                message = f"A datastore {name} is mounted on {self._host_name} already."
                raise DuplicateName(message, kind="Datastore", name=name)
            if not root.is_dir():
                raise FileNotFound(f"There is no directory {location}.", path=location)
            self._require_apart(Path(os.path.realpath(root)))
            mounted = _looked_at(Datastore(name, root))
            if not mounted.accessible:
                message = "The directory can't be used as a datastore: it can't be written, or its identity is damaged."
                raise CannotAccessFile(message, path=location)
            self._require_new_identity(mounted)
            self._save({**self._mounted(), name: location})
            self._present[name] = mounted
        return mounted

    def require_unmountable(self, name: str) -> None:
        """:raises ManagedObjectNotFound: there's no such datastore. :raises NotSupported: the settings have it."""
        if name not in self._present:
            message = f"No datastore {name[:80]} is mounted on {self._host_name}."
            raise ManagedObjectNotFound(message, kind="Datastore", key=name[:80])
        if name in self._fixed:
            message = f"Datastore {name} is set by the host's settings: it can't be unmounted."
            raise NotSupported(message, feature="unmount")

    def unmount(self, name: str) -> None:
        """Forget a datastore; its files stay; blocks. Whether it is used is the caller's to know.

        :raises CannotAccessFile: that can't be made durable; it stays. And as `require_unmountable`.
        """
        with self._refreshing:
            self.require_unmountable(name)
            self._save({other: at for other, at in self._mounted().items() if other != name})
            del self._present[name]

    def require_space(self, name: str, needed_bytes: int) -> None:
        """Check what is free now; blocks. A check, not a reservation: what is written later may still not fit.

        :raises NoDiskSpace: it's less. :raises InaccessibleDatastore:
        """
        try:
            free = free_bytes(self.get(name).root)
        except OSError as error:
            message = f"Datastore {name} can't be reached on {self._host_name}: {error.strerror}."
            raise InaccessibleDatastore(message, datastore=name, host=self._host_name) from error
        if needed_bytes > free:
            message = f"Datastore {name} has {free} bytes free, {needed_bytes} are needed."
            raise NoDiskSpace(message, datastore=name, requested_bytes=needed_bytes, free_bytes=free)

    def key(self, path: DatastorePath) -> tuple[str, str]:
        """What is the same for all paths of one file: the datastore's uuid and the path in it. Doesn't block."""
        datastore = self._present.get(path.datastore)
        return (datastore.uuid if datastore is not None and datastore.uuid else path.datastore), path.relative

    def resolve(self, path: DatastorePath) -> Path:
        """The host's own path, whether something is there or not; blocks.

        :raises InaccessibleDatastore: this host doesn't see the datastore.
        :raises InvalidDatastorePath: a symbolic link leads out of it.
        """
        root = Path(os.path.realpath(self.get(path.datastore).root))
        resolved = Path(os.path.realpath(path.under(root)))
        if not resolved.is_relative_to(root):
            raise InvalidDatastorePath("The path leads out of its datastore.", path=str(path))
        return resolved

    def resolve_file(self, path: DatastorePath) -> Path:
        """The host's own path of a regular file that is there; blocks.

        :raises FileNotFound: there is none. And as `resolve`.
        """
        resolved = self.resolve(path)
        if not resolved.is_file():
            raise FileNotFound(f"There is no file {path}.", path=str(path))
        return resolved

    def resolve_plain(self, path: DatastorePath) -> Path:
        """The host's own path, without any symbolic link on the way: for what is made or deleted; blocks.

        :raises InvalidDatastorePath: there is one. And as `resolve`.
        """
        root = Path(os.path.realpath(self.get(path.datastore).root))
        plain = path.under(root)
        if self.resolve(path) != plain:
            raise InvalidDatastorePath("The path has a symbolic link in it.", path=str(path))
        return plain

    def resolve_home(self, vmx_path: DatastorePath) -> Path:
        """The host's own path of a VM's home folder, given its .vmx file's; blocks.

        The folder and the file are themselves no symbolic links: what is deleted or written there is there.

        :raises InvalidDatastorePath: they are, or there is no folder between root and file. And as `resolve`.
        """
        root = Path(os.path.realpath(self.get(vmx_path.datastore).root))
        file = vmx_path.under(root)
        if file.suffix != ".vmx" or file.parent == root:
            raise InvalidDatastorePath('A VM\'s path is "[datastore] folder/name.vmx".', path=str(vmx_path))
        if self.resolve(vmx_path) != file:
            raise InvalidDatastorePath("A VM's path may not have symbolic links.", path=str(vmx_path))
        return file.parent

    def _mounted(self) -> dict[str, str]:
        return {name: str(present.root) for name, present in self._present.items() if name not in self._fixed}

    def _save(self, mounts: Mapping[str, str]) -> None:
        if self._rules is None:
            raise NotSupported("This host keeps no mounts.", feature="mount")
        try:
            write_durably(self._rules.mounts_path, json.dumps({"mounts": mounts}, indent=1).encode())
        except OSError as error:
            message = f"The file of mounted datastores can't be written: {error.strerror}."
            raise CannotAccessFile(message, path=str(self._rules.mounts_path)) from error

    def _require_apart(self, root: Path) -> None:
        """Neither within another datastore or a closed folder nor around one."""
        for other in self._present.values():
            taken = Path(os.path.realpath(other.root))
            if taken == root:
                message = f"The directory is mounted as datastore {other.name} already."
                raise DuplicateName(message, kind="Datastore", name=other.name)
            if taken.is_relative_to(root) or root.is_relative_to(taken):
                message = f"The directory overlaps datastore {other.name}."
                raise InvalidArgument(message, "location")
        for folder in self._rules.closed if self._rules is not None else ():
            closed = Path(os.path.realpath(folder))
            if closed.is_relative_to(root) or root.is_relative_to(closed):
                raise InvalidArgument("The directory overlaps the host's own folders.", "location")

    def _require_new_identity(self, mounted: Datastore) -> None:
        for other in self._present.values():
            if other.uuid == mounted.uuid:
                message = f"The directory is the datastore {other.name} at another place."
                raise DuplicateName(message, kind="Datastore", name=other.name)


def _looked_at(present: Datastore) -> Datastore:
    try:
        uuid = _read_or_make_identity(present.root)
        space = os.statvfs(present.root)
    except (OSError, FileNotFound, CannotAccessFile) as error:
        if present.accessible or not present.uuid:
            _log.warning(
                "datastore_inaccessible", datastore=present.name, root=str(present.root), reason=str(error)
            )
        return replace(present, accessible=False)
    if not present.accessible:
        _log.info("datastore_mounted", datastore=present.name, root=str(present.root), datastore_uuid=uuid)
    return replace(
        present,
        uuid=uuid,
        capacity_bytes=space.f_blocks * space.f_frsize,
        free_bytes=space.f_bavail * space.f_frsize,
        accessible=True,
    )


def _read_or_make_identity(root: Path) -> str:
    path = root / IDENTITY_NAME
    if not os.path.lexists(path):
        _make_identity(root)
    try:
        uuid = json.loads(read_bounded(path, _IDENTITY_MAX_BYTES))["uuid"]
        return str(uuid_module.UUID(uuid))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CannotAccessFile(f"{IDENTITY_NAME} doesn't hold a uuid.", path=str(path)) from error


def _make_identity(root: Path) -> None:
    """Make the identity unless another host does so first; link(2) decides."""
    temporary = root / f"{IDENTITY_NAME}.{uuid_module.uuid4().hex}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        try:
            os.write(descriptor, json.dumps({"uuid": str(uuid_module.uuid4())}).encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            os.link(temporary, root / IDENTITY_NAME)
        except FileExistsError:
            return
        sync_folder(root)
    finally:
        temporary.unlink(missing_ok=True)
