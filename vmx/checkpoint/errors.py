"""What can go wrong with a checkpoint. What fails on QMP itself stays a vmx.guest.errors.QmpFailure.

    CheckpointError
     +-- CaptureFailed         QEMU gave up saving its state
     +-- StateTooLarge         the state is larger than any device state is
     +-- RamInState            QEMU put guest RAM into the state: it would overwrite pages that were placed
     +-- RestoreFailed         QEMU did not take the state
     +-- CheckpointStateError  the caller's order of calls is wrong

Pure: no I/O, no clock, no logging.
"""

from __future__ import annotations

__all__ = [
    "CaptureFailed",
    "CheckpointError",
    "CheckpointStateError",
    "RamInState",
    "RestoreFailed",
    "StateTooLarge",
]


class CheckpointError(Exception):
    """Anything that failed in taking or restoring a checkpoint."""


class CaptureFailed(CheckpointError):
    """QEMU gave up at `step`; `CheckpointCapture.cancel` lets the guest run on."""

    def __init__(self, step: str, reason: str) -> None:
        super().__init__(f"the device state could not be captured: {step}: {reason}")
        self.step = step
        self.reason = reason


class StateTooLarge(CheckpointError):
    """The state passed the agreed size."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the device state is larger than {limit_bytes} bytes")
        self.limit_bytes = limit_bytes


class RamInState(CheckpointError):
    """QEMU's own stream carried RAM that it must leave to vmx."""

    def __init__(self, transferred_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"QEMU put {transferred_bytes} bytes of RAM into the device state, more than {limit_bytes}: "
            "guest RAM is not left out"
        )
        self.transferred_bytes = transferred_bytes
        self.limit_bytes = limit_bytes


class RestoreFailed(CheckpointError):
    """QEMU did not take the state at `step`; the guest of this process can't be used any more."""

    def __init__(self, step: str, reason: str) -> None:
        super().__init__(f"the device state could not be restored: {step}: {reason}")
        self.step = step
        self.reason = reason


class CheckpointStateError(CheckpointError):
    """`operation` is not allowed in this state."""

    def __init__(self, operation: str, state: str) -> None:
        super().__init__(f"{operation}() is not allowed while the checkpoint is {state}")
        self.operation = operation
        self.state = state
