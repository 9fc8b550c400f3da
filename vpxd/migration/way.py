"""The ways of a migration. Pure: no I/O, no clock, no logging.

                another host                                   the same host
files move      BETWEEN_HOSTS: memory if it runs, and files    WITHIN_HOST: files, the guest runs on or is off
no files move   BETWEEN_HOSTS if it runs, else REGISTRATION    nothing to do: refused by the checks
"""

from dataclasses import dataclass
from enum import StrEnum

from vpxd.events.event import EventType
from vpxd.inventory.records import MigrationEntry


class Way(StrEnum):
    """How it is carried out."""

    BETWEEN_HOSTS = "between hosts"
    WITHIN_HOST = "within the host"
    REGISTRATION = "registration only"


def way_of(entry: MigrationEntry) -> Way:
    """The way of a migration by its journal entry."""
    if entry.source == entry.destination:
        return Way.WITHIN_HOST
    return Way.BETWEEN_HOSTS if entry.live or entry.files else Way.REGISTRATION


@dataclass(frozen=True)
class EventTypes:
    """How a migration's beginning and its two ends are told."""

    begun: EventType
    done: EventType
    failed: EventType


_HOT = EventTypes(EventType.VM_BEING_HOT_MIGRATED, EventType.VM_MIGRATED, EventType.VM_FAILED_MIGRATE)
_COLD = EventTypes(EventType.VM_BEING_MIGRATED, EventType.VM_MIGRATED, EventType.VM_FAILED_MIGRATE)
_RELOCATION = EventTypes(EventType.VM_BEING_RELOCATED, EventType.VM_RELOCATED, EventType.VM_RELOCATE_FAILED)


def events_of(entry: MigrationEntry) -> EventTypes:
    """vSphere's: a running VM that changes its host migrates, with its files or without; else files relocate."""
    if entry.live and entry.source != entry.destination:
        return _HOT
    return _RELOCATION if entry.files else _COLD
