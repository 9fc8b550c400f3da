"""What became of a migration, from what both hosts say. Pure: no I/O, no clock, no logging.

The owner record on the datastore decides, never the silence of a host:

    the record names the destination -> it has succeeded, unless the destination failed (then it gives back: wait)
    the record names the source      -> it has failed if the source says so or knows nothing of it; it goes on if the
                                        source still has it open; while the source is silent nothing can be said
    the record names somebody else   -> it has failed: another host owns the VM
    nobody could read the record     -> the source's own last word counts; where it never heard of the migration, that
                                        is failure once the destination is known to have nothing open

Where the home moves, source and destination have a record each, and a host tells the one of its own side:
`decide_parted`.
"""

from dataclasses import dataclass, field
from enum import Enum

from runtime.faults import VimFault
from vpxd.migration.progress import MigrationProgress, Phase


@dataclass(frozen=True)
class HostAnswer:
    """A host's answer to QueryMigration. `known` is false where it never heard of the migration.

    `owner_host_uuid` is what it read from the owner record just now, empty where it couldn't.
    """

    known: bool
    progress: MigrationProgress = field(default_factory=lambda: MigrationProgress(Phase.UNSPECIFIED))
    fault: VimFault | None = None
    owner_host_uuid: str = ""
    owner_epoch: int = 0
    open: bool = False


class Verdict(Enum):
    """What became of it."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    RUNNING = "running"
    UNDECIDED = "undecided"


def decide(
    source_uuid: str, destination_uuid: str, source: HostAnswer | None, destination: HostAnswer | None
) -> Verdict:
    """The verdict where both hosts read one record; None stands for a host that doesn't answer. Of two readings of the
    record the newer one counts."""
    answers = [answer for answer in (source, destination) if answer is not None and answer.owner_host_uuid]
    if not answers:
        return _without_record(source, destination)
    owner = max(answers, key=lambda answer: answer.owner_epoch).owner_host_uuid
    if owner == destination_uuid:
        gives_back = destination is not None and destination.progress.phase is Phase.FAILED
        return Verdict.UNDECIDED if gives_back else Verdict.SUCCEEDED
    if owner != source_uuid:
        return Verdict.FAILED
    return _source_owns(source)


def decide_parted(
    source_uuid: str, destination_uuid: str, source: HostAnswer | None, destination: HostAnswer | None
) -> Verdict:
    """The verdict where the home moves, and each host reads a record of its own.

    The source's can only give the VM away; that the destination has it, only the destination's says, or the source that
    has heard so. Given away and not taken: undecided, until the destination's last word is brought (`last_word`).
    """
    if destination is not None and destination.owner_host_uuid == destination_uuid:
        return Verdict.UNDECIDED if destination.progress.phase is Phase.FAILED else Verdict.SUCCEEDED
    if source is None or not source.owner_host_uuid:
        return _without_record(source, destination)
    if source.owner_host_uuid == destination_uuid:
        heard = source.progress.phase is Phase.SUCCEEDED
        return Verdict.SUCCEEDED if heard else Verdict.UNDECIDED
    return _source_owns(source) if source.owner_host_uuid == source_uuid else Verdict.FAILED


def last_word(
    destination_uuid: str, source: HostAnswer | None, destination: HostAnswer | None
) -> bool | None:
    """What a source that has given its VM away must be told where each host has an owner record of its own:
    whether the destination has the VM for good. None: nothing, or it isn't known yet.

    A destination that has failed and closed its end has none of the VM any more and never will.
    """
    if source is None or source.owner_host_uuid != destination_uuid:
        return None
    if destination is None or not destination.known:
        return None
    if destination.progress.phase is Phase.SUCCEEDED and destination.owner_host_uuid == destination_uuid:
        return True
    if destination.progress.phase is Phase.FAILED and not destination.open:
        return False
    return None


def decide_within_host(answer: HostAnswer | None) -> Verdict:
    """The verdict of a move within one host, which doesn't change the owner: the host's own journal decides.

    One that the host never heard of has not begun; one that it has closed without success was undone.
    """
    if answer is None:
        return Verdict.UNDECIDED
    if answer.known and answer.progress.phase is Phase.SUCCEEDED:
        return Verdict.SUCCEEDED
    if not answer.known or answer.progress.phase is Phase.FAILED or not answer.open:
        return Verdict.FAILED
    return Verdict.RUNNING


def _source_owns(source: HostAnswer | None) -> Verdict:
    if source is None:
        return Verdict.UNDECIDED
    if not source.known or source.progress.phase is Phase.FAILED or not source.open:
        return Verdict.FAILED
    return Verdict.RUNNING


def _without_record(source: HostAnswer | None, destination: HostAnswer | None) -> Verdict:
    if source is None:
        return Verdict.UNDECIDED
    if not source.known:
        # Nothing ever started there; unless the destination knows better, it failed.
        return Verdict.UNDECIDED if destination is None or destination.open else Verdict.FAILED
    if source.progress.phase is Phase.SUCCEEDED:
        return Verdict.SUCCEEDED
    if source.progress.phase is Phase.FAILED:
        return Verdict.FAILED
    return Verdict.RUNNING if source.open else Verdict.UNDECIDED
