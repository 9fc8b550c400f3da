"""Pure: no I/O, no clock, no logging.

Values of the protocol in the words that people read: enum names as vSphere writes them, times, phases.
"""

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, Protocol

from google.protobuf.timestamp_pb2 import Timestamp

from proto.vmotion.v1 import status_pb2

PHASE_NAMES: Mapping[int, str] = MappingProxyType(
    {
        status_pb2.MIGRATION_PHASE_UNSPECIFIED: "queued",
        status_pb2.MIGRATION_PHASE_PREPARE: "prepare",
        status_pb2.MIGRATION_PHASE_HANDSHAKE: "handshake",
        status_pb2.MIGRATION_PHASE_DISK_COPY: "disk copy",
        status_pb2.MIGRATION_PHASE_PRE_COPY: "pre-copy",
        status_pb2.MIGRATION_PHASE_STUN: "stun",
        status_pb2.MIGRATION_PHASE_CHECKPOINT: "checkpoint",
        status_pb2.MIGRATION_PHASE_SWITCHOVER: "switchover",
        status_pb2.MIGRATION_PHASE_VERIFY: "verify",
        status_pb2.MIGRATION_PHASE_COMPLETE: "complete",
        status_pb2.MIGRATION_PHASE_SUCCEEDED: "succeeded",
        status_pb2.MIGRATION_PHASE_FAILED: "failed",
    }
)


class Enum(Protocol):
    """A generated enum, such as host_pb2.PowerState."""

    def Name(self, number: Any) -> str:
        """:raises ValueError: it has no such number."""


def enum_text(enum: Enum, value: int) -> str:
    """ "poweredOn" for POWER_STATE_POWERED_ON: the enum's prefix dropped, the rest in camel case; "-" if unset."""
    if value == 0:
        return "-"
    prefix = enum.Name(0).removesuffix("UNSPECIFIED")
    try:
        words = enum.Name(value).removeprefix(prefix).split("_")
    except ValueError:
        return str(value)
    return words[0].lower() + "".join(word.capitalize() for word in words[1:])


def phase_text(phase: int) -> str:
    """ "pre-copy"; a phase of a later version is its number."""
    return PHASE_NAMES.get(phase, f"phase {phase}")


def moment(timestamp: Timestamp) -> datetime | None:
    """The time in the local zone; None where it is unset."""
    if not timestamp.seconds and not timestamp.nanos:
        return None
    return datetime.fromtimestamp(timestamp.seconds + timestamp.nanos / 1e9).astimezone()


def time_text(timestamp: Timestamp) -> str:
    """ "2025-01-31 13:04:05", local time; "-" where it is unset."""
    when = moment(timestamp)
    return "-" if when is None else when.strftime("%Y-%m-%d %H:%M:%S")


def operation_text(operation: str) -> str:
    """ "migrate" of "VirtualMachine.migrate"."""
    return operation.rpartition(".")[2] or operation


def or_dash(text: str) -> str:
    return text or "-"
