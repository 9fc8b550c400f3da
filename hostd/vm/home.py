"""A VM's home folder on a datastore: the files in it that are hostd's business. All functions block.

    web01/web01.vmx       the configuration (vm/config_file.py)
    web01/web01.owner     which host may run it (runtime/ondisk/owner_record.py), with .owner.lock
    web01/web01.runlock   held by what runs it (runtime/ondisk/run_lock.py)
    web01/*.log           console, heartbeat (serial ports) and QEMU's own words

The folder, its files and the VM have one name.
"""

import contextlib
import errno
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import structlog

from hostd.vm import config_file, configuration
from hostd.vm.config_file import VmxEntries
from proto.vim.v1 import vm_config_pb2
from runtime.faults import (
    CannotAccessFile,
    FileAlreadyExists,
    FileLocked,
    FileNotFound,
    InvalidDatastorePath,
    InvalidVmConfig,
    NoDiskSpace,
    NotOwner,
)
from runtime.ondisk import owner_record, run_lock
from runtime.ondisk.durable import read_bounded, sync_folder, write_durably
from runtime.ondisk.owner_record import OwnerRecord

_log = structlog.get_logger(__name__)

CONSOLE_LOG = "console.log"
HEARTBEAT_LOG = "heartbeat.log"
_LOGS = (CONSOLE_LOG, HEARTBEAT_LOG, "qemu.log")


@dataclass(frozen=True)
class Home:
    """One VM's home folder: an absolute path of this host, and the name that its files have."""

    folder: Path
    name: str

    @property
    def vmx_path(self) -> Path:
        """The configuration file."""
        return self.folder / f"{self.name}.vmx"

    @property
    def owner_path(self) -> Path:
        """The owner record."""
        return owner_record.owner_path(self.folder, self.name)

    @property
    def run_lock_path(self) -> Path:
        """The run lock."""
        return owner_record.run_lock_path(self.folder, self.name)


def own_names(vm_name: str) -> list[str]:
    """The names of the files in a VM's home folder that aren't its disks, the configuration's last."""
    names = (owner_record.owner_path(Path(), vm_name), owner_record.run_lock_path(Path(), vm_name))
    return [*_LOGS, *(path.name for path in names), owner_record.LOCK_NAME, f"{vm_name}.vmx"]


def create(home: Home, config: vm_config_pb2.VmConfig, host_uuid: str, *, in_folder: bool = False) -> None:
    """Make the folder (it's there already if `in_folder`) with a configuration and an owner record naming a host.

    :raises FileAlreadyExists: the folder is there already, or a home in it.
    :raises NoDiskSpace: the datastore is full.
    :raises CannotAccessFile: it can't be written.
    On any fault nothing is left.
    """
    content = config_file.render(configuration.to_entries(config))
    if in_folder and os.path.lexists(home.vmx_path):
        raise FileAlreadyExists(f"There is a VM's home in {home.folder.name} already.", path=str(home.folder))
    try:
        home.folder.mkdir(mode=0o700, exist_ok=in_folder)
    except FileExistsError as error:
        message = f"There is a folder {home.folder.name} on the datastore already."
        raise FileAlreadyExists(message, path=str(home.folder)) from error
    except OSError as error:
        raise _write_fault(home.folder, error) from error
    with contextlib.ExitStack() as undo:
        if in_folder:
            undo.callback(destroy, home)
        else:
            undo.callback(shutil.rmtree, home.folder, ignore_errors=True)
        try:
            owner_record.create(home.owner_path, config.uuid, host_uuid)
            write_durably(home.vmx_path, content)
            sync_folder(home.folder.parent)
        except OSError as error:
            raise _write_fault(home.folder, error) from error
        undo.pop_all()


def read_entries(home: Home) -> VmxEntries:
    """The configuration file's entries.

    :raises FileNotFound: there is none.
    :raises CannotAccessFile: it can't be read.
    :raises InvalidVmConfig: it isn't a .vmx file.
    """
    try:
        content = read_bounded(home.vmx_path, config_file.MAX_FILE_BYTES)
    except CannotAccessFile as error:
        if home.vmx_path.is_file() and home.vmx_path.stat().st_size > config_file.MAX_FILE_BYTES:
            message = f"The .vmx file is longer than {config_file.MAX_FILE_BYTES} bytes."
            raise InvalidVmConfig(message) from error
        raise
    return config_file.parse(content)


def read_config(home: Home) -> vm_config_pb2.VmConfig:
    """The configuration, checked; its name must be the files' name.

    :raises InvalidVmConfig: it can't be. And as `read_entries`.
    """
    config = configuration.from_entries(read_entries(home))
    if config.name != home.name:
        message = f"The .vmx file is named {home.name} but says displayName {config.name}."
        raise InvalidVmConfig(message, "displayName")
    return config


def write_config(home: Home, config: vm_config_pb2.VmConfig) -> None:
    """Replace the configuration; entries that we don't know stay.

    :raises NoDiskSpace: the datastore is full. And as `read_entries`. On any fault the old configuration stays.
    """
    entries = read_entries(home).updated(configuration.to_entries(config))
    try:
        write_durably(home.vmx_path, config_file.render(entries))
    except OSError as error:
        raise _write_fault(home.vmx_path, error) from error


def require_owner(home: Home, vm_uuid: str, host_uuid: str) -> OwnerRecord:
    """The owner record, which must name this VM and this host.

    :raises FileLocked: it names another host.
    :raises CannotAccessFile: it's missing or can't be read, or is another VM's.
    """
    record = read_owner(home)
    if record is None or record.vm_uuid != vm_uuid:
        message = "The VM has no owner record of its own: register it again."
        raise CannotAccessFile(message, path=str(home.owner_path))
    if record.owner_host_uuid != host_uuid:
        message = "The VM's owner record names another host."
        raise FileLocked(message, path=str(home.owner_path), owner=record.owner_host_uuid)
    return record


def read_owner(home: Home) -> OwnerRecord | None:
    """The owner record; None where there is none.

    :raises CannotAccessFile: it can't be read.
    """
    try:
        return owner_record.read(home.owner_path)
    except FileNotFound:
        return None


def claim(home: Home, vm_uuid: str, host_uuid: str) -> OwnerRecord:
    """Make this host the owner of a VM that runs nowhere.

    The run lock is held meanwhile: to run a guest takes record and lock, so nothing can start it in between.

    :raises FileLocked: the record names another host and the VM runs, or another host was faster.
    :raises CannotAccessFile: record or lock can't be read or written, or the record is another VM's.
    """
    record = read_owner(home)
    if record is not None and record.vm_uuid != vm_uuid:
        message = "The owner record in the VM's folder is another VM's."
        raise CannotAccessFile(message, path=str(home.owner_path))
    if record is not None and record.owner_host_uuid == host_uuid:
        return record
    owner = record.owner_host_uuid if record is not None else ""
    lock = run_lock.RunLock.open(home.run_lock_path)
    with contextlib.closing(lock):
        try:
            lock.acquire()
            if record is None:
                return owner_record.create(home.owner_path, vm_uuid, host_uuid)
            return owner_record.swap(home.owner_path, record, host_uuid)
        except (FileLocked, NotOwner) as error:
            message = "Another host owns the VM and runs it, or has just taken it."
            raise FileLocked(message, path=str(home.run_lock_path), owner=owner) from error


def destroy(home: Home) -> None:
    """Delete the VM's files, the .vmx file last, and then the folder if nothing else is in it.

    Only files of ours are touched, by name and inside the opened folder: no symbolic link is followed.

    :raises InvalidDatastorePath: the folder is a symbolic link.
    :raises CannotAccessFile: a file can't be deleted; those before it are gone.
    """
    try:
        folder = os.open(home.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        message = "The VM's home isn't a folder that can be opened."
        raise InvalidDatastorePath(message, path=str(home.folder)) from error
    own = own_names(home.name)
    left_over = re.compile(rf"\.{re.escape(home.name)}\.(vmx|owner)\.[0-9]+\.[0-9a-f]+\.tmp")
    try:
        with contextlib.ExitStack() as closing:
            closing.callback(os.close, folder)
            present = set(os.listdir(folder))
            stale = [name for name in present if left_over.fullmatch(name)]
            for name in [*stale, *(name for name in own if name in present)]:
                os.unlink(name, dir_fd=folder)
        home.folder.rmdir()
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            _log.warning(
                "home_folder_kept", folder=str(home.folder), reason="it has files that aren't the VM's"
            )
            return
        message = f"A file of the VM can't be deleted: {error.strerror}."
        raise CannotAccessFile(message, path=str(home.folder)) from error
    sync_folder(home.folder.parent)


def _write_fault(path: Path, error: OSError) -> NoDiskSpace | CannotAccessFile:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoDiskSpace(f"The datastore has no space for {path.name}.")
    return CannotAccessFile(f"{path.name} can't be written: {error.strerror}.", path=str(path))
