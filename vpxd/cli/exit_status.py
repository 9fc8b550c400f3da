"""Pure: no I/O, no clock, no logging.

What the exit status of `vpx` means: the one table from fault types to statuses. Scripts rely on it, so a status is
never given another meaning.
"""

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType

from proto.vim.v1 import fault_pb2


class ExitStatus(IntEnum):
    """How a command ended."""

    OK = 0
    FAILED = 1  # the operation failed: the fault says why
    USAGE = 2  # the command line or a value in it can't be
    NOT_FOUND = 3  # no such VM, host, task, file
    CONFLICT = 4  # not now or not so: busy, wrong state, name taken, changed in between
    INCOMPATIBLE = 5  # the VM can't go there, or there's no room: findings say why
    NO_CONNECTION = 6  # vpxd isn't there, or doesn't take this client
    TIMED_OUT = 7
    INTERRUPTED = 130  # Ctrl-C; what was started goes on


MEANING: Mapping[ExitStatus, str] = MappingProxyType(
    {
        ExitStatus.OK: "done",
        ExitStatus.FAILED: "the operation failed",
        ExitStatus.USAGE: "usage: the command line, or a value in it, can't be",
        ExitStatus.NOT_FOUND: "no such object",
        ExitStatus.CONFLICT: "conflict: busy, in another state, name taken, or changed meanwhile",
        ExitStatus.INCOMPATIBLE: "incompatible: no host can take the VM, or the named one can't",
        ExitStatus.NO_CONNECTION: "can't connect to vpxd, or it doesn't take this client",
        ExitStatus.TIMED_OUT: "timed out",
        ExitStatus.INTERRUPTED: "interrupted: what was started goes on",
    }
)

STATUS_OF: Mapping[int, ExitStatus] = MappingProxyType(
    {
        fault_pb2.FAULT_TYPE_UNSPECIFIED: ExitStatus.FAILED,
        fault_pb2.FAULT_TYPE_INVALID_ARGUMENT: ExitStatus.USAGE,
        fault_pb2.FAULT_TYPE_MANAGED_OBJECT_NOT_FOUND: ExitStatus.NOT_FOUND,
        fault_pb2.FAULT_TYPE_DUPLICATE_NAME: ExitStatus.CONFLICT,
        fault_pb2.FAULT_TYPE_INVALID_STATE: ExitStatus.CONFLICT,
        fault_pb2.FAULT_TYPE_INVALID_POWER_STATE: ExitStatus.CONFLICT,
        fault_pb2.FAULT_TYPE_TASK_IN_PROGRESS: ExitStatus.CONFLICT,
        fault_pb2.FAULT_TYPE_NOT_SUPPORTED: ExitStatus.FAILED,
        fault_pb2.FAULT_TYPE_CONCURRENT_ACCESS: ExitStatus.CONFLICT,
        fault_pb2.FAULT_TYPE_REQUEST_CANCELED: ExitStatus.FAILED,
        fault_pb2.FAULT_TYPE_TIMED_OUT: ExitStatus.TIMED_OUT,
        fault_pb2.FAULT_TYPE_RESOURCE_IN_USE: ExitStatus.CONFLICT,
        fault_pb2.FAULT_TYPE_NOT_AUTHENTICATED: ExitStatus.NO_CONNECTION,
        fault_pb2.FAULT_TYPE_NO_PERMISSION: ExitStatus.NO_CONNECTION,
        fault_pb2.FAULT_TYPE_INVALID_JOIN_TOKEN: ExitStatus.NO_CONNECTION,
        # A host that vpxd can't reach: the operation failed. No vpxd at all: NoConnection (vpxd/cli/errors.py).
        fault_pb2.FAULT_TYPE_HOST_NOT_CONNECTED: ExitStatus.FAILED,
        fault_pb2.FAULT_TYPE_HOST_NOT_REACHABLE: ExitStatus.FAILED,
        fault_pb2.FAULT_TYPE_NO_COMPATIBLE_HOST: ExitStatus.INCOMPATIBLE,
        fault_pb2.FAULT_TYPE_INSUFFICIENT_MEMORY_RESOURCES: ExitStatus.INCOMPATIBLE,
        fault_pb2.FAULT_TYPE_INSUFFICIENT_CPU_RESOURCES: ExitStatus.INCOMPATIBLE,
        fault_pb2.FAULT_TYPE_INVALID_DATASTORE_PATH: ExitStatus.USAGE,
        fault_pb2.FAULT_TYPE_INACCESSIBLE_DATASTORE: ExitStatus.INCOMPATIBLE,
        fault_pb2.FAULT_TYPE_FILE_NOT_FOUND: ExitStatus.NOT_FOUND,
        fault_pb2.FAULT_TYPE_FILE_ALREADY_EXISTS: ExitStatus.CONFLICT,
        fault_pb2.FAULT_TYPE_FILE_LOCKED: ExitStatus.CONFLICT,
        fault_pb2.FAULT_TYPE_NO_DISK_SPACE: ExitStatus.FAILED,
        fault_pb2.FAULT_TYPE_INVALID_VM_CONFIG: ExitStatus.USAGE,
        fault_pb2.FAULT_TYPE_CANNOT_ACCESS_FILE: ExitStatus.FAILED,
        fault_pb2.FAULT_TYPE_MIGRATION_FAULT: ExitStatus.FAILED,
        fault_pb2.FAULT_TYPE_MIGRATION_NOT_READY: ExitStatus.FAILED,
        fault_pb2.FAULT_TYPE_VMOTION_NOT_CONFIGURED: ExitStatus.INCOMPATIBLE,
        fault_pb2.FAULT_TYPE_VMOTION_LINK_DOWN: ExitStatus.FAILED,
        fault_pb2.FAULT_TYPE_VMOTION_PROTOCOL_INCOMPATIBLE: ExitStatus.INCOMPATIBLE,
        fault_pb2.FAULT_TYPE_VIRTUAL_HARDWARE_VERSION_NOT_SUPPORTED: ExitStatus.INCOMPATIBLE,
        fault_pb2.FAULT_TYPE_FEATURE_REQUIREMENTS_NOT_MET: ExitStatus.INCOMPATIBLE,
        fault_pb2.FAULT_TYPE_PROGRESS_STALLED: ExitStatus.FAILED,
        fault_pb2.FAULT_TYPE_MEMORY_VERIFICATION_FAILED: ExitStatus.FAILED,
        fault_pb2.FAULT_TYPE_PAST_POINT_OF_NO_RETURN: ExitStatus.CONFLICT,
        fault_pb2.FAULT_TYPE_NOT_OWNER: ExitStatus.FAILED,
        fault_pb2.FAULT_TYPE_GUEST_START_FAILED: ExitStatus.FAILED,
        fault_pb2.FAULT_TYPE_GUEST_DIED: ExitStatus.FAILED,
        fault_pb2.FAULT_TYPE_INVALID_DISK_FORMAT: ExitStatus.FAILED,
        fault_pb2.FAULT_TYPE_CANNOT_ACCESS_NETWORK: ExitStatus.INCOMPATIBLE,
        fault_pb2.FAULT_TYPE_EVC_ADMISSION_FAILED: ExitStatus.INCOMPATIBLE,
        fault_pb2.FAULT_TYPE_RULE_VIOLATION: ExitStatus.INCOMPATIBLE,
        fault_pb2.FAULT_TYPE_POLICY_NOT_SATISFIED: ExitStatus.INCOMPATIBLE,
        fault_pb2.FAULT_TYPE_DATASTORE_NOT_SUPPORTED: ExitStatus.INCOMPATIBLE,
        fault_pb2.FAULT_TYPE_SYSTEM_ERROR: ExitStatus.FAILED,
    }
)


def status_of_fault(fault_type: int) -> ExitStatus:
    """The exit status for a fault; a type of a later version counts as FAILED."""
    return STATUS_OF.get(fault_type, ExitStatus.FAILED)


def describe() -> str:
    """The table for people, one line each."""
    return "\n".join(f"{status.value:>3}  {meaning}" for status, meaning in MEANING.items())
