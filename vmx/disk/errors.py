"""What can go wrong with the data of a disk.

    DiskError
     +-- DiskSpecError         a layout, node or path that can't be used; nothing was opened
     +-- DiskRangeError        an offset or length outside the disk (it may come from a peer)
     +-- DiskReadFailed        the source's data could not be read
     +-- DiskWriteFailed       the target took no more data
     |    +-- DiskFull         there is no room for it (ENOSPC, EDQUOT, EFBIG)
     +-- DiskConvertFailed     qemu-img gave up, or what it made is not as asked for
     +-- DiskCopyCancelled     the copy was cancelled by its owner
     +-- NbdError              the NBD connection with QEMU
     |    +-- NbdProtocolError a peer that broke the protocol
     |    +-- NbdRefused       the server answered a request with an error
     |    +-- NbdTimeout       no answer within the deadline
     |    +-- NbdClosed        it ended where it may not
     +-- MirrorError           QEMU's mirror job
          +-- MirrorStartFailed  it did not start; the guest's disk is as it was
          +-- MirrorFailed       it ended by itself: the guest goes on, its writes are no longer mirrored
          +-- MirrorMisused      a step asked for in a state that doesn't have it
          +-- PartlyPivoted      of several disks not all moved: the VM's disks are in both places
          +-- PivotFailed        the guest did not move onto the target, or did but left a file open: see `pivoted`

Pure: no I/O, no clock, no logging.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "DiskConvertFailed",
    "DiskCopyCancelled",
    "DiskError",
    "DiskFull",
    "DiskRangeError",
    "DiskReadFailed",
    "DiskSpecError",
    "DiskWriteFailed",
    "MirrorError",
    "MirrorFailed",
    "MirrorMisused",
    "MirrorStartFailed",
    "NbdClosed",
    "NbdError",
    "NbdProtocolError",
    "NbdRefused",
    "NbdTimeout",
    "PartlyPivoted",
    "PivotFailed",
]


class DiskError(Exception):
    """Anything that failed in moving a disk's data."""


class DiskSpecError(DiskError):
    """A field that describes a disk can't be used."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class DiskRangeError(DiskError):
    """A range that is not inside the disk."""

    def __init__(self, offset: int, length: int, capacity_bytes: int) -> None:
        super().__init__(f"{length} bytes at {offset} are not inside a disk of {capacity_bytes} bytes")
        self.offset = offset
        self.length = length
        self.capacity_bytes = capacity_bytes


class DiskReadFailed(DiskError):
    """The source could not be read at `offset`."""

    def __init__(self, path: str, offset: int, reason: str) -> None:
        super().__init__(f"can't read {path} at {offset}: {reason}")
        self.path = path
        self.offset = offset
        self.reason = reason


class DiskWriteFailed(DiskError):
    """The target could not be written at `offset`; `errno` is the kernel's, 0 where there is none."""

    def __init__(self, path: str, offset: int, errno: int, reason: str) -> None:
        super().__init__(f"can't write {path} at {offset}: {reason}")
        self.path = path
        self.offset = offset
        self.errno = errno
        self.reason = reason


class DiskFull(DiskWriteFailed):
    """There is no room left for the target's data. `needed_bytes` is what the refused write asked for."""

    def __init__(self, path: str, offset: int, errno: int, needed_bytes: int) -> None:
        super().__init__(path, offset, errno, f"no room for {needed_bytes} bytes")
        self.needed_bytes = needed_bytes


class DiskConvertFailed(DiskError):
    """qemu-img could not convert `source` into `target`."""

    def __init__(self, source: str, target: str, reason: str) -> None:
        super().__init__(f"can't convert {source} to {target}: {reason}")
        self.source = source
        self.target = target
        self.reason = reason


class DiskCopyCancelled(DiskError):
    """The copy was told to stop."""

    def __init__(self, path: str) -> None:
        super().__init__(f"the copy of {path} was cancelled")
        self.path = path


class NbdError(DiskError):
    """What failed on an NBD connection."""


class NbdProtocolError(NbdError):
    """The peer sent what the protocol does not allow."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the NBD peer broke the protocol: {reason}")
        self.reason = reason


class NbdRefused(NbdError):
    """The server answered `doing` with the error `code`."""

    def __init__(self, doing: str, code: int) -> None:
        super().__init__(f"the NBD server refused {doing} with error {code:#x}")
        self.doing = doing
        self.code = code


class NbdTimeout(NbdError):
    """The peer said nothing within `deadline_s`."""

    def __init__(self, doing: str, deadline_s: float) -> None:
        super().__init__(f"the NBD peer said nothing within {deadline_s:g} s to {doing}")
        self.doing = doing
        self.deadline_s = deadline_s


class NbdClosed(NbdError):
    """The connection ended in the middle of `doing`."""

    def __init__(self, doing: str, reason: str = "the peer closed it") -> None:
        super().__init__(f"the NBD connection ended during {doing}: {reason}")
        self.doing = doing
        self.reason = reason


class MirrorError(DiskError):
    """What failed in mirroring a disk of a running guest."""


class MirrorStartFailed(MirrorError):
    """The mirror did not start. The guest's disk is as it was, nothing is left."""

    def __init__(self, node_name: str, reason: str) -> None:
        super().__init__(f"the mirror of {node_name} did not start: {reason}")
        self.node_name = node_name
        self.reason = reason


class MirrorFailed(MirrorError):
    """The mirror ended by itself, or couldn't go on. The guest goes on with its source disk.

    `cause` is the target's own error (a DiskFull, say), where that was the reason.
    """

    def __init__(self, node_name: str, reason: str, cause: DiskError | None = None) -> None:
        super().__init__(f"the mirror of {node_name} failed: {reason}")
        self.node_name = node_name
        self.reason = reason
        self.cause = cause


class MirrorMisused(MirrorError):
    """`asked` is not a step of a mirror that is `state`."""

    def __init__(self, node_name: str, state: str, asked: str) -> None:
        super().__init__(f"the mirror of {node_name} is {state}: it can't {asked}")
        self.node_name = node_name
        self.state = state
        self.asked = asked


class PivotFailed(MirrorError):
    """The guest's disk did not move onto its target as it should.

    `pivoted` False: the guest still uses the source, as if there had been no mirror. True: it uses the target, but
    QEMU has not let go of the source's file.
    """

    def __init__(self, node_name: str, reason: str, *, pivoted: bool) -> None:
        where = "its guest uses the target already" if pivoted else "its guest still uses the source"
        super().__init__(f"the pivot of {node_name} failed, {where}: {reason}")
        self.node_name = node_name
        self.reason = reason
        self.pivoted = pivoted


class PartlyPivoted(MirrorError):
    """Some disks did not move onto their targets. `pivoted` has the new nodes of those that did, by key."""

    def __init__(self, pivoted: Mapping[int, str], failures: Mapping[int, MirrorError]) -> None:
        reasons = "; ".join(str(failure) for failure in failures.values())
        super().__init__(f"{len(failures)} of {len(pivoted) + len(failures)} disks did not move: {reasons}")
        self.pivoted = dict(pivoted)
        self.failures = dict(failures)
