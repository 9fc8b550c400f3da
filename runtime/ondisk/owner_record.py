"""The owner record: which host may run a VM, decided by one durable file beside the VM's own.

    {"vm_uuid": ..., "owner_host_uuid": ..., "epoch": n}

It changes only by compare-and-swap: under a short lock (flock(2) on `.owner.lock`), the present record must be the one
that the caller believes in, and the new one carries the next epoch. The write is durable (runtime/ondisk/durable.py)
before the lock is released. To run a guest a host needs both: the record names it, and it holds the run lock
(runtime/ondisk/run_lock.py). In doubt nobody runs.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime.faults import CannotAccessFile, NotOwner
from runtime.ondisk.durable import read_bounded, write_durably

LOCK_NAME = ".owner.lock"
_MAX_BYTES = 4096


@dataclass(frozen=True)
class OwnerRecord:
    """Who may run the VM. `epoch` rises by one at every change and never goes back."""

    vm_uuid: str
    owner_host_uuid: str
    epoch: int

    def given_to(self, host_uuid: str) -> "OwnerRecord":
        """The record that hands the VM to `host_uuid`."""
        return OwnerRecord(self.vm_uuid, host_uuid, self.epoch + 1)


def owner_path(home: Path, vm_name: str) -> Path:
    """Where a VM's record is."""
    return home / f"{vm_name}.owner"


def run_lock_path(home: Path, vm_name: str) -> Path:
    """Where a VM's run lock file is."""
    return home / f"{vm_name}.runlock"


def read(path: Path) -> OwnerRecord:
    """The present record. Needs no lock: the file is only ever replaced whole.

    :raises FileNotFound: there is none.
    :raises CannotAccessFile: it can't be read or isn't a record.
    """
    content = read_bounded(path, _MAX_BYTES)
    try:
        fields = json.loads(content)
        record = OwnerRecord(fields["vm_uuid"], fields["owner_host_uuid"], fields["epoch"])
    except (ValueError, KeyError, TypeError) as error:
        raise CannotAccessFile("The owner record isn't valid.", path=str(path)) from error
    if (
        not isinstance(record.vm_uuid, str)
        or not isinstance(record.owner_host_uuid, str)
        or type(record.epoch) is not int
        or record.epoch < 1
    ):
        raise CannotAccessFile("The owner record has fields of a wrong type.", path=str(path))
    return record


def create(path: Path, vm_uuid: str, host_uuid: str) -> OwnerRecord:
    """Write the first record, epoch 1, of a VM that has none. Blocks for fsyncs.

    :raises NotOwner: there is one already, whatever it says; it stays.
    :raises CannotAccessFile: the record or its lock can't be read or written; nothing changed.
    """
    with _locked(path):
        if path.exists():
            present = read(path)
            message = "The VM has an owner record already."
            raise NotOwner(message, owner=present.owner_host_uuid, epoch=present.epoch)
        return _write(path, OwnerRecord(vm_uuid, host_uuid, 1))


def swap(path: Path, expected: OwnerRecord, new_owner_host_uuid: str) -> OwnerRecord:
    """Compare-and-swap: if the record is `expected`, replace it by the next epoch naming `new_owner_host_uuid`.

    Blocks for fsyncs. After an OSError in the middle of the write the outcome is unknown: read back until certain.

    :raises NotOwner: the record isn't `expected`; it stays. The fault carries what it says.
    :raises FileNotFound: there is no record.
    :raises CannotAccessFile: the record or its lock can't be read or written.
    """
    return replace(path, expected, expected.given_to(new_owner_host_uuid))


def replace(path: Path, expected: OwnerRecord, new: OwnerRecord) -> OwnerRecord:
    """As `swap`, for a record that follows another home's: `new` has a later epoch, which may skip some.

    :raises ValueError: `new` isn't a later record of the same VM. And as `swap`.
    """
    if new.vm_uuid != expected.vm_uuid or new.epoch <= expected.epoch:
        raise ValueError(f"{new} can't follow {expected}")
    with _locked(path):
        present = read(path)
        if present != expected:
            message = f"The owner record is at epoch {present.epoch}, not at {expected.epoch} as expected."
            raise NotOwner(message, owner=present.owner_host_uuid, epoch=present.epoch)
        return _write(path, new)


def _write(path: Path, record: OwnerRecord) -> OwnerRecord:
    try:
        write_durably(path, json.dumps(asdict(record)).encode())
    except OSError as error:
        message = f"The owner record can't be written: {error.strerror}."
        raise CannotAccessFile(message, path=str(path)) from error
    return record


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The record's lock. It's held for two fsyncs at most, so waiting for it is short; it ends with its process."""
    lock = path.parent / LOCK_NAME
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        message = f"The owner record's lock can't be opened: {error.strerror}."
        raise CannotAccessFile(message, path=str(lock)) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
