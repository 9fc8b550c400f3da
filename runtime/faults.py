"""Faults as exceptions: one tree for all daemons, the twin of proto/vim/v1/fault.proto.

    VimFault
      RequestFault       what was asked can't be done as asked
      TrustFault         who asks may not
      HostFault          a host isn't there or has no room
      FileFault          datastores and files
      MigrationFault     a migration could not be done or not be finished
      GuestFault         the guest's own process
      SystemFault        a defect of ours

Each class has one FaultType; its dataclass fields are the `details` that the .proto names beside the type.
`str(fault)` is one sentence without the cause; the cause is `__cause__` (`raise X(...) from error`). A daemon
raises them; the mapping to gRPC and back, with `origin` filled in, is runtime/rpc/faults.py. Field values travel as
text: fields are `str`, `int` or `float` only.
"""

from dataclasses import dataclass
from typing import ClassVar

from proto.vim.v1 import fault_pb2


@dataclass(eq=False)
class VimFault(Exception):
    """Base of all faults. `origin` names the daemon that noticed it, once it has crossed a wire."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_SYSTEM_ERROR
    message: str

    def __post_init__(self) -> None:
        super().__init__(self.message)
        self.origin = ""

    def __str__(self) -> str:
        return self.message


class RequestFault(VimFault):
    """What was asked can't be done as asked."""


class TrustFault(VimFault):
    """Who asks may not."""


class HostFault(VimFault):
    """A host isn't there or has no room."""


class FileFault(VimFault):
    """Datastores and files."""


@dataclass(eq=False)
class MigrationFault(VimFault):
    """A migration could not be done, or not be finished."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_MIGRATION_FAULT
    phase: str = ""


class GuestFault(VimFault):
    """The guest's own process."""


@dataclass(eq=False)
class SystemFault(VimFault):
    """A defect of ours; the log of `origin` has the traceback under the operation id."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_SYSTEM_ERROR
    operation_id: str = ""


@dataclass(eq=False)
class InvalidArgument(RequestFault):
    """A parameter has a value that can't be."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_INVALID_ARGUMENT
    argument: str = ""


@dataclass(eq=False)
class ManagedObjectNotFound(RequestFault):
    """Nothing is known under this id or name."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_MANAGED_OBJECT_NOT_FOUND
    kind: str = ""
    key: str = ""


@dataclass(eq=False)
class DuplicateName(RequestFault):
    """The name or uuid is taken."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_DUPLICATE_NAME
    kind: str = ""
    name: str = ""


@dataclass(eq=False)
class InvalidState(RequestFault):
    """The object's state doesn't allow it."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_INVALID_STATE
    state: str = ""
    required: str = ""


@dataclass(eq=False)
class InvalidPowerState(RequestFault):
    """The VM's power state doesn't allow it."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_INVALID_POWER_STATE
    state: str = ""
    required: str = ""


@dataclass(eq=False)
class TaskInProgress(RequestFault):
    """Another task holds the object; `task` names it."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_TASK_IN_PROGRESS
    entity: str = ""
    task: str = ""
    operation: str = ""


@dataclass(eq=False)
class NotSupported(RequestFault):
    """This product doesn't do that."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_NOT_SUPPORTED
    feature: str = ""


@dataclass(eq=False)
class ConcurrentAccess(RequestFault):
    """Somebody changed it in between: read it again."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_CONCURRENT_ACCESS
    kind: str = ""
    key: str = ""


@dataclass(eq=False)
class RequestCanceled(RequestFault):
    """The user canceled it."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_REQUEST_CANCELED
    phase: str = ""


@dataclass(eq=False)
class TimedOut(RequestFault):
    """No answer in time."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_TIMED_OUT
    operation: str = ""
    timeout_s: float = 0.0


@dataclass(eq=False)
class ResourceInUse(RequestFault):
    """It is in use."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_RESOURCE_IN_USE
    kind: str = ""
    name: str = ""


@dataclass(eq=False)
class NotAuthenticated(TrustFault):
    """The peer has no certificate of this cluster."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_NOT_AUTHENTICATED


@dataclass(eq=False)
class NoPermission(TrustFault):
    """The peer's role may not call this."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_NO_PERMISSION
    role: str = ""
    required: str = ""


@dataclass(eq=False)
class InvalidJoinToken(TrustFault):
    """The token is unknown, used, expired or another host's; it isn't told which."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_INVALID_JOIN_TOKEN
    host: str = ""


@dataclass(eq=False)
class HostNotConnected(HostFault):
    """vpxd has no connection to the host now."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_HOST_NOT_CONNECTED
    host: str = ""
    state: str = ""


@dataclass(eq=False)
class HostNotReachable(HostFault):
    """No connection could be made."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_HOST_NOT_REACHABLE
    host: str = ""
    address: str = ""


@dataclass(eq=False)
class NoCompatibleHost(HostFault):
    """No host can take the VM; `reasons` says why, host by host."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_NO_COMPATIBLE_HOST
    reasons: str = ""


@dataclass(eq=False)
class InsufficientMemoryResources(HostFault):
    """Admission: not enough memory left to reserve."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_INSUFFICIENT_MEMORY_RESOURCES
    requested_bytes: int = 0
    unreserved_bytes: int = 0


@dataclass(eq=False)
class InsufficientCpuResources(HostFault):
    """Admission: not enough vCPUs left to reserve."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_INSUFFICIENT_CPU_RESOURCES
    requested_vcpus: int = 0
    unreserved_vcpus: int = 0


@dataclass(eq=False)
class InvalidDatastorePath(FileFault):
    """Not of the form "[datastore] folder/file", or it leads out of the datastore."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_INVALID_DATASTORE_PATH
    path: str = ""


@dataclass(eq=False)
class InaccessibleDatastore(FileFault):
    """The host doesn't see the datastore."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_INACCESSIBLE_DATASTORE
    datastore: str = ""
    host: str = ""


@dataclass(eq=False)
class FileNotFound(FileFault):
    """No such file."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_FILE_NOT_FOUND
    path: str = ""


@dataclass(eq=False)
class FileAlreadyExists(FileFault):
    """Such a file is there already."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_FILE_ALREADY_EXISTS
    path: str = ""


@dataclass(eq=False)
class FileLocked(FileFault):
    """Another host or process holds the lock."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_FILE_LOCKED
    path: str = ""
    owner: str = ""


@dataclass(eq=False)
class NoDiskSpace(FileFault):
    """The datastore is full."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_NO_DISK_SPACE
    datastore: str = ""
    requested_bytes: int = 0
    free_bytes: int = 0


@dataclass(eq=False)
class InvalidVmConfig(FileFault):
    """A VM's configuration can't be (GenericVmConfigFault)."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_INVALID_VM_CONFIG
    property: str = ""


@dataclass(eq=False)
class CannotAccessFile(FileFault):
    """The file is there but can't be read or written."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_CANNOT_ACCESS_FILE
    path: str = ""


@dataclass(eq=False)
class MigrationNotReady(MigrationFault):
    """The migration isn't in a state for this."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_MIGRATION_NOT_READY
    reason: str = ""


@dataclass(eq=False)
class VMotionNotConfigured(MigrationFault):
    """The host has no usable vMotion address."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_VMOTION_NOT_CONFIGURED
    host: str = ""


@dataclass(eq=False)
class VMotionLinkDown(MigrationFault):
    """The vMotion connection couldn't be made or broke."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_VMOTION_LINK_DOWN
    host: str = ""
    peer: str = ""


@dataclass(eq=False)
class VMotionProtocolIncompatible(MigrationFault):
    """No stream version in common."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_VMOTION_PROTOCOL_INCOMPATIBLE
    offered: str = ""
    supported: str = ""


@dataclass(eq=False)
class VirtualHardwareVersionNotSupported(MigrationFault):
    """The host can't run this machine type."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_VIRTUAL_HARDWARE_VERSION_NOT_SUPPORTED
    machine_type: str = ""
    host: str = ""


@dataclass(eq=False)
class FeatureRequirementsNotMet(MigrationFault):
    """The host lacks a CPU feature or model that the VM needs."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_FEATURE_REQUIREMENTS_NOT_MET
    feature: str = ""
    host: str = ""


@dataclass(eq=False)
class ProgressStalled(MigrationFault):
    """The guest writes faster than can be sent."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_PROGRESS_STALLED
    iteration: int = 0
    dirty_pages: int = 0
    rate_bytes_per_s: float = 0.0


@dataclass(eq=False)
class MemoryVerificationFailed(MigrationFault):
    """Destination pages differ from their source pages."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_MEMORY_VERIFICATION_FAILED
    pages: int = 0
    first_page: int = 0


@dataclass(eq=False)
class PastPointOfNoReturn(MigrationFault):
    """The hand-over has happened: it can't be canceled any more."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_PAST_POINT_OF_NO_RETURN


@dataclass(eq=False)
class NotOwner(MigrationFault):
    """The owner record names another host."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_NOT_OWNER
    owner: str = ""
    epoch: int = 0


@dataclass(eq=False)
class InvalidDiskFormat(FileFault):
    """A disk's descriptor or image isn't one, or not of the form that it says."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_INVALID_DISK_FORMAT
    path: str = ""


@dataclass(eq=False)
class PolicyNotSatisfied(FileFault):
    """A datastore isn't what a storage policy asks for."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_POLICY_NOT_SATISFIED
    policy: str = ""
    datastore: str = ""
    requirement: str = ""


@dataclass(eq=False)
class DatastoreNotSupported(FileFault):
    """The datastore can't be used for this."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_DATASTORE_NOT_SUPPORTED
    datastore: str = ""
    host: str = ""


@dataclass(eq=False)
class EvcAdmissionFailed(HostFault):
    """A cluster's or VM's EVC mode can't be set: a host or a VM stands against it."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_EVC_ADMISSION_FAILED
    cluster: str = ""
    mode: str = ""
    host: str = ""
    feature: str = ""


@dataclass(eq=False)
class RuleViolation(HostFault):
    """An affinity rule doesn't allow the VM to be there."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_RULE_VIOLATION
    rule: str = ""
    vm: str = ""
    host: str = ""


@dataclass(eq=False)
class CannotAccessNetwork(MigrationFault):
    """The host doesn't have the port group that a NIC is plugged into."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_CANNOT_ACCESS_NETWORK
    network: str = ""
    host: str = ""
    nic: str = ""


@dataclass(eq=False)
class GuestStartFailed(GuestFault):
    """QEMU didn't come up."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_GUEST_START_FAILED
    reason: str = ""


@dataclass(eq=False)
class GuestDied(GuestFault):
    """QEMU ended by itself."""

    fault_type: ClassVar[int] = fault_pb2.FAULT_TYPE_GUEST_DIED
    exit_status: str = ""
