"""Pure: no I/O, no clock, no logging. The failpoints of a migration (runtime/failpoint.py), made of the phases: a new
phase has one from the beginning.

    source.pre_copy, destination.restore, ...   at the begin of each phase, when it has been entered
    source.roll_back, destination.roll_back     before anything is undone; its `error` is an undo that fails
    the rest                                    inside the hand-over, at the moments that its table speaks of
"""

from vmx.migration.phases import DestinationPhase, SourcePhase

SOURCE_BEFORE_SWAP = "source.hand_over.before_swap"
SOURCE_AFTER_SWAP = "source.hand_over.after_swap"
SOURCE_AFTER_COMMIT = "source.hand_over.after_commit"
SOURCE_BEFORE_RESUME = "source.hand_over.before_resume"
DESTINATION_AFTER_READY = "destination.hand_over.after_ready"
DESTINATION_BEFORE_LOCK = "destination.hand_over.before_lock"
DESTINATION_BEFORE_RESUME = "destination.hand_over.before_resume"
DESTINATION_BEFORE_SETTLE = "destination.confirm.before_settle"


def of_phase(phase: SourcePhase | DestinationPhase) -> str:
    """The failpoint at the begin of `phase`."""
    return f"{_role_of(phase)}.{phase.name.lower()}"


def of_roll_back(phase: SourcePhase | DestinationPhase) -> str:
    """The failpoint where the role that is in `phase` begins to undo."""
    return f"{_role_of(phase)}.roll_back"


def _role_of(phase: SourcePhase | DestinationPhase) -> str:
    return "source" if isinstance(phase, SourcePhase) else "destination"


_WITH_POINTS = [phase for phase in (*SourcePhase, *DestinationPhase) if not phase.is_end]
FAILPOINTS = frozenset(
    {of_phase(phase) for phase in _WITH_POINTS}
    | {of_roll_back(phase) for phase in _WITH_POINTS}
    | {
        SOURCE_BEFORE_SWAP,
        SOURCE_AFTER_SWAP,
        SOURCE_AFTER_COMMIT,
        SOURCE_BEFORE_RESUME,
        DESTINATION_AFTER_READY,
        DESTINATION_BEFORE_LOCK,
        DESTINATION_BEFORE_RESUME,
        DESTINATION_BEFORE_SETTLE,
    }
)
