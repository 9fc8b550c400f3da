"""What can go wrong with page tracing, in one tree.

TraceError
├── TracerUnavailable     this kernel, container or guest process can't give what a tracer needs: use another
├── TargetGoneError       the guest's process has ended
├── TargetCallError       the guest's process could not be made to call userfaultfd
├── TargetMappingError    guest RAM isn't mapped in the guest's process as it must be, or no longer
├── ScanError             the kernel failed in the middle: written pages may be lost, stop and start again
└── TracerStateError      the caller's order of calls is wrong
"""

from __future__ import annotations

import os


class TraceError(Exception):
    """Base of all page tracing errors."""


class TracerUnavailable(TraceError):
    """A kind of tracer can't be used here; `reason` says why, `errno` is the kernel's answer where it gave one."""

    def __init__(self, reason: str, code: int | None = None) -> None:
        super().__init__(reason if code is None else f"{reason}: {os.strerror(code)}")
        self.reason = reason
        self.errno = code


class TargetGoneError(TraceError):
    """The guest's process `pid` has ended."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"the guest's process {pid} has ended")
        self.pid = pid


class TargetCallError(TraceError):
    """`step` failed with `errno` while process `pid` was made to call into the kernel. The process goes on as it
    was."""

    def __init__(self, pid: int, step: str, code: int) -> None:
        super().__init__(f"process {pid}: {step} failed: {os.strerror(code)}")
        self.pid = pid
        self.step = step
        self.errno = code


class TargetMappingError(TraceError):
    """Process `pid` doesn't map guest RAM in a way that tracing can follow."""

    def __init__(self, pid: int, reason: str) -> None:
        super().__init__(f"process {pid}: {reason}")
        self.pid = pid
        self.reason = reason


class ScanError(TraceError):
    """`operation` on the guest's page tables failed with `errno`. What was written since the last collect() is
    no longer known: only stop() and a new start() make the tracer right again."""

    def __init__(self, operation: str, code: int) -> None:
        super().__init__(f"page tracing: {operation} failed: {os.strerror(code)}")
        self.operation = operation
        self.errno = code


class TracerStateError(TraceError):
    """`operation` isn't allowed while the tracer is `state`."""

    def __init__(self, operation: str, state: str) -> None:
        super().__init__(f"{operation}() isn't allowed while the tracer is {state}")
        self.operation = operation
        self.state = state
