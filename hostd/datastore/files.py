"""Files on datastores as clients see them: listed, made, read, written, deleted. What may be deleted is known elsewhere
(services/storage_service.py asks who uses it); here it is seen to that nothing but the datastore's own plain files and
folders is touched. All functions block.
"""

import contextlib
import hashlib
import heapq
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from hostd.datastore import disk_descriptor
from hostd.datastore.mount import IDENTITY_NAME, Datastores
from hostd.datastore.new_file import NewFile, file_faults, remove
from hostd.datastore.virtual_disk import VirtualDisks, is_locked
from runtime.faults import (
    CannotAccessFile,
    FileAlreadyExists,
    FileLocked,
    FileNotFound,
    InvalidArgument,
    InvalidDatastorePath,
    ResourceInUse,
    VimFault,
)
from runtime.ondisk import owner_record, run_lock
from runtime.ondisk.datastore_path import DatastorePath
from runtime.ondisk.durable import sync_folder

MAX_LISTED = 10_000
PIECE_BYTES = 1 << 20
_BLOCK_BYTES = 512  # of st_blocks (inode(7))
_RUN_LOCK_SUFFIX, _OWNER_SUFFIX, _VMX_SUFFIX = ".runlock", ".owner", ".vmx"


@dataclass(frozen=True)
class FileEntry:
    """One file or folder. `is_disk`: a descriptor that can be read; its capacity is the size, its extent counted."""

    name: str
    is_folder: bool
    is_disk: bool
    size_bytes: int
    allocated_bytes: int
    modified_s: float

    @property
    def is_vm_config(self) -> bool:
        """Whether it's a .vmx file."""
        return not self.is_folder and self.name.endswith(_VMX_SUFFIX)


class DatastoreFiles:
    """The files of this host's datastores; disks are looked at by `disks`."""

    def __init__(self, datastores: Datastores, disks: VirtualDisks, host_uuid: str) -> None:
        self._datastores = datastores
        self._disks = disks
        self._host_uuid = host_uuid

    def browse(self, path: DatastorePath) -> tuple[list[FileEntry], bool]:
        """A folder's plain files and folders by name, MAX_LISTED at most, and whether there are more.

        Symbolic links, special files, the datastore's identity and what no datastore path can name aren't listed.

        :raises FileNotFound: there's no such folder. :raises CannotAccessFile: And as `Datastores.resolve`.
        """
        folder = self._datastores.resolve(path)
        with file_faults(path), os.scandir(folder) as entries:
            names = heapq.nsmallest(
                MAX_LISTED + 1, (entry.name for entry in entries if _is_listed(path, entry))
            )
            listed = [self._entry(path.child(name), folder / name) for name in names[:MAX_LISTED]]
        return [entry for entry in listed if entry is not None], len(names) > MAX_LISTED

    def make_folder(self, path: DatastorePath) -> None:
        """Make a folder with its parents; one that is there is made. On any fault none is left.

        :raises FileAlreadyExists: a file has its name, or a parent's. :raises NoDiskSpace: :raises CannotAccessFile:
        """
        folder = self._datastores.resolve_plain(path)
        missing = []
        while not os.path.lexists(folder):
            missing.append(folder)
            folder = folder.parent
        if not folder.is_dir():
            raise FileAlreadyExists(f"There is a file where {path} would be.", path=str(path))
        with file_faults(path, folder=folder), contextlib.ExitStack() as undo:
            for made in reversed(missing):
                made.mkdir(mode=0o755)
                undo.callback(made.rmdir)
                sync_folder(made.parent)
            undo.pop_all()

    def delete(self, path: DatastorePath, *, recursive: bool) -> None:
        """Delete a file, a disk with its extent, or a folder. Nobody on this host uses it: the caller has asked.

        :raises FileNotFound: :raises InvalidArgument: the datastore itself, or a folder that isn't empty.
        :raises FileLocked: a VM below it runs, or another host owns one. :raises ResourceInUse: the datastore's own.
        :raises CannotAccessFile: a file can't be deleted; others of the folder may be gone.
        """
        if not path.relative:
            raise InvalidArgument("A datastore isn't deleted: unmount it.", "path")
        if path.relative == IDENTITY_NAME:
            raise ResourceInUse("The datastore's identity isn't deleted.", kind="file", name=str(path))
        target = self._datastores.resolve_plain(path)
        with file_faults(path):
            mode = target.lstat().st_mode
            if stat.S_ISDIR(mode):
                self._delete_folder(path, target, recursive=recursive)
                return
            if not stat.S_ISREG(mode):
                raise CannotAccessFile(f"{path} isn't a plain file.", path=str(path))
            self._require_idle(path.parent, target.parent, target.name)
            if self._is_disk(path, target):
                self._disks.delete(path)
            else:
                remove(target)

    def open_to_read(self, path: DatastorePath, offset: int) -> tuple[int, int]:
        """A descriptor of the file, to be closed by the caller, and its size.

        :raises FileNotFound: :raises InvalidArgument: the offset is beyond its end. :raises CannotAccessFile:
        """
        resolved = self._datastores.resolve_file(path)
        with file_faults(path):
            opened = os.open(resolved, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        status = os.fstat(opened)
        if not stat.S_ISREG(status.st_mode) or offset > status.st_size:
            os.close(opened)
            if offset > status.st_size:
                raise InvalidArgument(f"The file has only {status.st_size} bytes.", "offset")
            raise CannotAccessFile(f"{path} isn't a plain file.", path=str(path))
        return opened, status.st_size

    def open_to_write(self, path: DatastorePath, size_bytes: int) -> "Upload":
        """Begin to write a new file of exactly so many bytes.

        :raises FileAlreadyExists: :raises FileNotFound: there's no such folder. :raises NoDiskSpace: it can't fit.
        :raises InvalidDatastorePath: it would be the datastore itself, or its identity. :raises CannotAccessFile:
        """
        target = self._datastores.resolve_plain(path)
        if not path.relative or path.relative == IDENTITY_NAME:
            raise InvalidDatastorePath("This isn't the path of a new file.", path=str(path))
        if os.path.lexists(target):
            raise FileAlreadyExists(f"There is a file {path} already.", path=str(path))
        if not target.parent.is_dir():
            raise FileNotFound(f"There is no folder {path.parent}.", path=str(path.parent))
        self._datastores.require_space(path.datastore, size_bytes)
        return Upload(path, target, size_bytes)

    def _entry(self, path: DatastorePath, file: Path) -> FileEntry | None:
        try:
            status = file.lstat()
        except FileNotFoundError:  # it has gone meanwhile
            return None
        size, allocated, is_disk = status.st_size, status.st_blocks * _BLOCK_BYTES, False
        if stat.S_ISREG(status.st_mode) and self._is_disk(path, file):
            with contextlib.suppress(
                VimFault
            ):  # a descriptor whose extent is amiss is listed as the file that it is
                disk = self._disks.inspect(path)
                size, allocated, is_disk = disk.descriptor.capacity_bytes, disk.allocated_bytes, True
        return FileEntry(path.name, stat.S_ISDIR(status.st_mode), is_disk, size, allocated, status.st_mtime)

    def _is_disk(self, path: DatastorePath, file: Path) -> bool:
        """Whether the file is a descriptor by its name and its first bytes."""
        if not path.name.endswith(disk_descriptor.SUFFIX):
            return False
        try:
            with open(file, "rb", buffering=0, opener=_open_plainly) as opened:
                return opened.read(len(disk_descriptor.SIGNATURE)) == disk_descriptor.SIGNATURE
        except OSError:  # what can't be read is no descriptor
            return False

    def _delete_folder(self, path: DatastorePath, folder: Path, *, recursive: bool) -> None:
        if not recursive:
            with os.scandir(folder) as entries:
                if next(entries, None) is not None:
                    raise InvalidArgument(f"The folder {path} isn't empty.", "recursive")
            folder.rmdir()
        else:
            self._require_idle(path.parent, folder.parent, folder.name)
            for inner, _, _ in os.walk(folder, onerror=_raise):
                self._require_idle(path, Path(inner))
            shutil.rmtree(folder)
        sync_folder(folder.parent)

    def _require_idle(self, path: DatastorePath, folder: Path, name: str = "") -> None:
        """No VM of a folder runs, and that of the file `name` (without a name: any, disks too) is no other host's.

        :raises FileLocked: :raises CannotAccessFile: a lock or record can't be read: in doubt nothing is deleted.
        """
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
        for found in names:
            if found.endswith(_RUN_LOCK_SUFFIX) and run_lock.is_held(folder / found):
                raise FileLocked(f"The VM {found.removesuffix(_RUN_LOCK_SUFFIX)} runs.", path=found)
            stem = found.removesuffix(_OWNER_SUFFIX)
            if found.endswith(_OWNER_SUFFIX) and (not name or name.startswith(f"{stem}.")):
                owner = owner_record.read(folder / found).owner_host_uuid
                if owner != self._host_uuid:
                    message = f"Another host owns the VM {stem}: delete it there, or register it here first."
                    raise FileLocked(message, path=found, owner=owner)
            if not name and found.endswith(disk_descriptor.EXTENT_SUFFIXES) and is_locked(folder / found):
                raise FileLocked(f"The disk {found} below {path} is in use by a process.", path=found)


class Upload:
    """A file that is being written: it has no name until it is whole. Closed in any case."""

    def __init__(self, path: DatastorePath, target: Path, size_bytes: int) -> None:
        self._path = path
        self._target = target
        self._size_bytes = size_bytes
        self._received = 0
        self._digest = hashlib.sha256()
        with self._faults():
            self._file = NewFile(target.parent)

    def write(self, data: bytes) -> None:
        """The next bytes.

        :raises InvalidArgument: more than was said. :raises NoDiskSpace: :raises CannotAccessFile:
        """
        if self._received + len(data) > self._size_bytes:
            message = f"More than {self._size_bytes} bytes were sent."
            raise InvalidArgument(message, "size_bytes")
        with self._faults():
            self._file.write_or_skip(data)
        self._digest.update(data)
        self._received += len(data)

    def finish(self) -> str:
        """Let it appear, durably; its SHA-256 in hex.

        :raises InvalidArgument: fewer bytes than said. :raises FileAlreadyExists: :raises NoDiskSpace:
        :raises CannotAccessFile:
        """
        if self._received != self._size_bytes:
            message = f"{self._received} bytes were sent, not {self._size_bytes}."
            raise InvalidArgument(message, "size_bytes")
        with self._faults():
            self._file.set_size(self._size_bytes)
            self._file.publish(self._target.name)
        return self._digest.hexdigest()

    def close(self) -> None:
        """Forget what hasn't appeared."""
        self._file.__exit__()

    def _faults(self) -> contextlib.AbstractContextManager[None]:
        return file_faults(self._path, self._size_bytes, self._target.parent)


def _is_listed(folder: DatastorePath, entry: os.DirEntry[str]) -> bool:
    if not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
        return False
    try:
        return folder.child(entry.name).relative != IDENTITY_NAME
    except InvalidDatastorePath:
        return False


def _open_plainly(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _raise(error: OSError) -> None:
    raise error
