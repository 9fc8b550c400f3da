"""What can go wrong between vmx and its QEMU process.

    GuestError
     +-- GuestSpecError          a specification that must not reach QEMU's command line
     +-- GuestStartFailed        QEMU did not come up; nothing of it is left
     +-- GuestDied               the QEMU process ended: the VM is no more
     +-- NotThisGuest            a process that was to be adopted is not the guest that was looked for
     +-- QmpFailure              what failed on the monitor connection
          +-- QmpConnectFailed   no session could be made
          +-- QmpConnectionLost  it ended; whether the last command was carried out is not known
          +-- QmpTimeout         no answer, or no event, in time
          +-- QmpError           QEMU answered with an error: the command was not carried out
          +-- QmpBadReply        QEMU answered with something that the command cannot answer

Pure: no I/O, no clock, no logging.
"""

from __future__ import annotations

from collections.abc import Sequence

from vmx.guest.exit_status import ExitStatus

__all__ = [
    "GuestDied",
    "GuestError",
    "GuestSpecError",
    "GuestStartFailed",
    "NotThisGuest",
    "QmpBadReply",
    "QmpConnectFailed",
    "QmpConnectionLost",
    "QmpError",
    "QmpFailure",
    "QmpTimeout",
]


class GuestError(Exception):
    """Anything that failed in handling the guest's process."""


class GuestSpecError(GuestError):
    """A field of the guest's specification is not fit for QEMU's command line."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


def _with_log(text: str, log_tail: Sequence[str]) -> str:
    return f"{text}; QEMU's last words: {' | '.join(log_tail)}" if log_tail else text


class GuestStartFailed(GuestError):
    """QEMU did not come up. `exit_status` is None where it had to be killed."""

    def __init__(self, reason: str, exit_status: ExitStatus | None, log_tail: Sequence[str] = ()) -> None:
        super().__init__(_with_log(f"the guest did not start: {reason}", log_tail))
        self.reason = reason
        self.exit_status = exit_status
        self.log_tail = tuple(log_tail)


class GuestDied(GuestError):
    """The QEMU process has ended, and the VM with it."""

    def __init__(self, pid: int, exit_status: ExitStatus, log_tail: Sequence[str] = ()) -> None:
        super().__init__(_with_log(f"QEMU (process {pid}) ended with {exit_status}", log_tail))
        self.pid = pid
        self.exit_status = exit_status
        self.log_tail = tuple(log_tail)


class NotThisGuest(GuestError):
    """The process is gone, or is another than the guest that was to be adopted."""

    def __init__(self, pid: int, reason: str) -> None:
        super().__init__(f"process {pid} can't be adopted: {reason}")
        self.pid = pid
        self.reason = reason


class QmpFailure(GuestError):
    """What failed on the QMP connection."""


class QmpConnectFailed(QmpFailure):
    """No QMP session could be made."""

    def __init__(self, socket_path: str, reason: str) -> None:
        super().__init__(f"no QMP session on {socket_path}: {reason}")
        self.socket_path = socket_path
        self.reason = reason


class QmpConnectionLost(QmpFailure):
    """The QMP connection ended while something waited for it."""

    def __init__(self, doing: str, reason: str) -> None:
        super().__init__(f"QMP connection lost during {doing}: {reason}")
        self.doing = doing
        self.reason = reason


class QmpTimeout(QmpFailure):
    """QEMU did not answer, or did not say what was waited for, in time."""

    def __init__(self, doing: str, deadline_s: float) -> None:
        super().__init__(f"QEMU said nothing within {deadline_s:g} s to {doing}")
        self.doing = doing
        self.deadline_s = deadline_s


class QmpError(QmpFailure):
    """QEMU refused a command; `error_class` is QMP's (`GenericError`, `CommandNotFound`, ...)."""

    def __init__(self, command: str, error_class: str, desc: str) -> None:
        super().__init__(f"QMP command {command} failed: {desc} ({error_class})")
        self.command = command
        self.error_class = error_class
        self.desc = desc


class QmpBadReply(QmpFailure):
    """QEMU's answer to a command is not of the shape that the command's answer has."""

    def __init__(self, command: str, reason: str) -> None:
        super().__init__(f"QMP command {command} got an answer that makes no sense: {reason}")
        self.command = command
        self.reason = reason
