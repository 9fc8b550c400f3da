"""Pure: no I/O, no clock, no logging. The phases of both roles, their legal moves, and what the world is told of them.

    source        HANDSHAKE ─▶ PRE_COPY ─▶ STUN ─▶ LAST_PAGES ─▶ CHECKPOINT ─▶ HAND_OVER ─▶ CONFIRM ─▶ FINISHED
      with disks  HANDSHAKE ─▶ DISK_COPY ─▶ PRE_COPY ─▶ ...
      powered off HANDSHAKE ─▶ DISK_COPY ─▶ HAND_OVER ─▶ ...
    destination   LISTEN ─▶ RECEIVE ─▶ RESTORE ─▶ HAND_OVER ─▶ CONFIRM ─▶ FINISHED
      powered off LISTEN ─▶ RECEIVE ─▶ HAND_OVER ─▶ ...
    both          any phase ─▶ FAILED

Names after vmx's own in the real system: TO_PRECOPY, TO_CHECKPT, TO_WAIT_HANDSHAKE, FROM_WAITING, FROM_PRECOPY, ...
"""

from enum import Enum
from itertools import pairwise


class PublishedPhase(Enum):
    """What clients see; one member for each value of proto.vmotion.v1.MigrationPhase, in the order of happening."""

    PREPARE = 1
    HANDSHAKE = 2
    DISK_COPY = 11
    PRE_COPY = 3
    STUN = 4
    CHECKPOINT = 5
    SWITCHOVER = 6
    VERIFY = 7
    COMPLETE = 8
    SUCCEEDED = 9
    FAILED = 10

    @property
    def order(self) -> int:
        """Position in the order of happening."""
        return _PUBLISHED_ORDER[self]


_PUBLISHED_ORDER = {phase: position for position, phase in enumerate(PublishedPhase)}


class SourcePhase(Enum):
    """The source's half."""

    HANDSHAKE = "handshake"  # next: DISK_COPY, or PRE_COPY where no disk moves
    DISK_COPY = "disk copy"  # next: PRE_COPY, or HAND_OVER without a guest; the guest writes to both sides from here on
    PRE_COPY = "pre-copy"  # next: STUN
    STUN = "stun"  # next: LAST_PAGES
    LAST_PAGES = "last pages"  # next: CHECKPOINT
    CHECKPOINT = "checkpoint"  # next: HAND_OVER
    HAND_OVER = "hand-over"  # next: CONFIRM; the point of no return is in here
    CONFIRM = "confirm"  # next: FINISHED; verification, and the destination's last word
    FINISHED = "finished"  # end
    FAILED = "failed"  # end, from every phase: the guest runs here as before, or stays stunned for its owner

    @property
    def is_end(self) -> bool:
        """Nothing follows."""
        return self in {SourcePhase.FINISHED, SourcePhase.FAILED}


class DestinationPhase(Enum):
    """The destination's half."""

    LISTEN = "listen"  # next: RECEIVE
    RECEIVE = "receive"  # next: RESTORE, or HAND_OVER without a guest
    RESTORE = "restore"  # next: HAND_OVER
    HAND_OVER = "hand-over"  # next: CONFIRM
    CONFIRM = "confirm"  # next: FINISHED
    FINISHED = "finished"  # end
    FAILED = "failed"  # end, from every phase: the shell VM is gone

    @property
    def is_end(self) -> bool:
        """Nothing follows."""
        return self in {DestinationPhase.FINISHED, DestinationPhase.FAILED}


_SOURCE_ORDER = [phase for phase in SourcePhase if phase is not SourcePhase.FAILED]
_DESTINATION_ORDER = [phase for phase in DestinationPhase if phase is not DestinationPhase.FAILED]

SOURCE_MOVES: frozenset[tuple[SourcePhase, SourcePhase]] = frozenset(
    [*pairwise(_SOURCE_ORDER)]
    + [(SourcePhase.HANDSHAKE, SourcePhase.PRE_COPY), (SourcePhase.DISK_COPY, SourcePhase.HAND_OVER)]
    + [(phase, SourcePhase.FAILED) for phase in _SOURCE_ORDER if phase is not SourcePhase.FINISHED]
)
DESTINATION_MOVES: frozenset[tuple[DestinationPhase, DestinationPhase]] = frozenset(
    [*pairwise(_DESTINATION_ORDER)]
    + [(DestinationPhase.RECEIVE, DestinationPhase.HAND_OVER)]
    + [
        (phase, DestinationPhase.FAILED)
        for phase in _DESTINATION_ORDER
        if phase is not DestinationPhase.FINISHED
    ]
)

_PUBLISHED: dict[SourcePhase | DestinationPhase, PublishedPhase] = {
    SourcePhase.HANDSHAKE: PublishedPhase.HANDSHAKE,
    SourcePhase.DISK_COPY: PublishedPhase.DISK_COPY,
    SourcePhase.PRE_COPY: PublishedPhase.PRE_COPY,
    SourcePhase.STUN: PublishedPhase.STUN,
    SourcePhase.LAST_PAGES: PublishedPhase.STUN,
    SourcePhase.CHECKPOINT: PublishedPhase.CHECKPOINT,
    SourcePhase.HAND_OVER: PublishedPhase.SWITCHOVER,
    SourcePhase.CONFIRM: PublishedPhase.VERIFY,
    SourcePhase.FINISHED: PublishedPhase.SUCCEEDED,
    SourcePhase.FAILED: PublishedPhase.FAILED,
    DestinationPhase.LISTEN: PublishedPhase.PREPARE,
    DestinationPhase.RECEIVE: PublishedPhase.PRE_COPY,
    DestinationPhase.RESTORE: PublishedPhase.CHECKPOINT,
    DestinationPhase.HAND_OVER: PublishedPhase.SWITCHOVER,
    DestinationPhase.CONFIRM: PublishedPhase.VERIFY,
    DestinationPhase.FINISHED: PublishedPhase.SUCCEEDED,
    DestinationPhase.FAILED: PublishedPhase.FAILED,
}


def published(phase: SourcePhase | DestinationPhase) -> PublishedPhase:
    """What the world is told in this phase."""
    return _PUBLISHED[phase]
