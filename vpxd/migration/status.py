"""A MigrationStatus that is relayed as it came, but for what only vpxd can know: its own times."""

from dataclasses import dataclass

from proto.vmotion.v1 import status_pb2


@dataclass(frozen=True)
class Times:
    """vpxd's own, in milliseconds: `total_ms` is from the task's start to its success. 0.0: not known."""

    total_ms: float
    prepare_ms: float
    complete_ms: float


def with_times(status: bytes, times: Times) -> bytes:
    """The serialized status with the task's time and the phases before and after those of the source."""
    message = status_pb2.MigrationStatus.FromString(status)
    message.total_ms = times.total_ms
    between = list(message.phases)
    del message.phases[:]
    if times.prepare_ms:
        message.phases.add(phase=status_pb2.MIGRATION_PHASE_PREPARE, duration_ms=times.prepare_ms)
    message.phases.extend(between)
    message.phases.add(phase=status_pb2.MIGRATION_PHASE_COMPLETE, duration_ms=times.complete_ms)
    return message.SerializeToString()
