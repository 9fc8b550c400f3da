"""The datastores this host sees: directories, each with an identity of its own, and safe ways into them.

A datastore's uuid is in a file `.datastore.json` in its root, made by the first host that mounts it: two hosts that
read the same uuid share the datastore, whatever each calls it or where each has it. The file appears whole or not at
all (written under another name, then link(2)ed, which fails where it exists), so of two first hosts one wins and
both read the same.

Paths given by clients are datastore paths ("[shared] web01/web01.vmx"). They are turned into the host's own only here;
one that leads out of its datastore, by dots or by symbolic links, is refused.
"""

import json
import os
import threading
import uuid as uuid_module
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from proto.vim.v1 import host_pb2
from runtime.faults import CannotAccessFile, FileNotFound, InaccessibleDatastore, InvalidDatastorePath
from runtime.ondisk.datastore_path import DatastorePath
from runtime.ondisk.durable import read_bounded, sync_folder

IDENTITY_NAME = ".datastore.json"
_IDENTITY_MAX_BYTES = 4096
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
        )


class Datastores:
    """All datastores of the host. Methods that touch the disk say so: call those in a thread."""

    def __init__(self, roots: Mapping[str, Path], host_name: str) -> None:
        self._host_name = host_name
        self._present = {name: Datastore(name, root) for name, root in roots.items()}
        self._refreshing = threading.Lock()

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
        with self._refreshing:
            for name, present in list(self._present.items()):
                self._present[name] = _looked_at(present)

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
