"""A MigrationStatus that is relayed as it came, but for the one field that only vpxd can know."""

from proto.vmotion.v1 import status_pb2


def with_total_ms(status: bytes, total_ms: float) -> bytes:
    """The serialized status with `total_ms`: from the task's start to its success."""
    message = status_pb2.MigrationStatus.FromString(status)
    message.total_ms = total_ms
    return message.SerializeToString()
