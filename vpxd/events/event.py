"""Events as values. Pure: no I/O, no clock, no logging."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Severity(StrEnum):
    """How bad it is."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class EventType(StrEnum):
    """The kinds of events; vSphere's names where it has one."""

    HOST_JOINED = "HostJoinedEvent"
    HOST_ADDED = "HostAddedEvent"
    HOST_REMOVED = "HostRemovedEvent"
    HOST_CONNECTED = "HostConnectedEvent"
    HOST_CONNECTION_LOST = "HostConnectionLostEvent"
    CLUSTER_CREATED = "ClusterCreatedEvent"
    CLUSTER_RECONFIGURED = "ClusterReconfiguredEvent"
    VM_CREATED = "VmCreatedEvent"
    VM_REGISTERED = "VmRegisteredEvent"
    VM_REMOVED = "VmRemovedEvent"
    VM_RECONFIGURED = "VmReconfiguredEvent"
    VM_POWERED_ON = "VmPoweredOnEvent"
    VM_POWERED_OFF = "VmPoweredOffEvent"
    VM_RESETTING = "VmResettingEvent"
    VM_ORPHANED = "VmOrphanedEvent"
    VM_FOUND_ON_HOST = "VmFoundOnHostEvent"
    VM_GUEST_DIED = "VmGuestDiedEvent"
    VM_BEING_HOT_MIGRATED = "VmBeingHotMigratedEvent"
    VM_BEING_MIGRATED = "VmBeingMigratedEvent"
    VM_MIGRATED = "VmMigratedEvent"
    VM_FAILED_MIGRATE = "VmFailedMigrateEvent"
    VM_BEING_RELOCATED = "VmBeingRelocatedEvent"
    VM_RELOCATED = "VmRelocatedEvent"
    VM_RELOCATE_FAILED = "VmRelocateFailedEvent"
    DATASTORE_MOUNTED = "DatastoreDiscoveredEvent"
    DATASTORE_UNMOUNTED = "DatastoreRemovedOnHostEvent"


@dataclass(frozen=True)
class EventDraft:
    """What happened, before it has an id and a time. Ids are those of the inventory; empty where there is none.

    `type` is one of EventType, or what another version of vpxd wrote.
    """

    type: str
    message: str
    entity: str = ""
    entity_name: str = ""
    task: str = ""
    severity: Severity = Severity.INFO


@dataclass(frozen=True)
class Event:
    """What happened; ids rise by one."""

    id: int
    time: datetime
    draft: EventDraft
