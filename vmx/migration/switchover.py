"""Pure: no I/O, no clock, no logging. The hand-over of a stunned guest from source to destination, both roles.

Three things decide, in this order: the owner record (changed by compare-and-swap only), the run lock, and messages.
Messages only make it fast. Who has the record and the lock may run the guest; in doubt nobody does.

    Source                                               Destination
    LOADING       READY ─▶ SWAPPING                      LOADING      loaded ─▶ READY
                  failure ─▶ RESUMING_HERE                            failure ─▶ DESTROYED
    SWAPPING      won ─▶ GIVEN                           READY        COMMIT ─▶ READING
                  lost ─▶ RESUMING_HERE                               failure ─▶ GIVING_UP
                  uncertain ─▶ RECLAIMING                GIVING_UP    won ─▶ DESTROYED, lost ─▶ READING
    RECLAIMING    won ─▶ RESUMING_HERE                   READING      mine ─▶ LOCKING, else ─▶ DESTROYED
                  uncertain ─▶ RECLAIMING                LOCKING      taken ─▶ RESUMING
    SWAPPING, RECLAIMING                                              refused ─▶ GIVING_BACK
                  names destination ─▶ GIVEN             RESUMING     runs ─▶ RUNNING, fails ─▶ GIVING_BACK
                  names a third ─▶ WATCHING              RUNNING      verified, link lost ─▶ SETTLING
    GIVEN         RESUMED ─▶ CONFIRMING                               memory differs, ended ─▶ GIVING_BACK
                  link lost ─▶ WATCHING                  SETTLING     won ─▶ SETTLED, lost ─▶ DESTROYED
    CONFIRMING    SETTLED ─▶ DONE                        GIVING_BACK  ─▶ DESTROYED
                  link lost ─▶ WATCHING
    WATCHING      record settled ─▶ DONE
                  record names me ─▶ RETAKING
    RETAKING      lock taken ─▶ RESUMING_HERE
    RESUMING_HERE ─▶ ROLLED_BACK

Point of no return at the source: SWAPPING. Once its swap is won it never runs the guest again, unless the record names
it again (a give-back, written by the destination after its own process for the guest has ended) and it holds the run
lock again. Giving up after READY is a swap too (same owner, next epoch), so that a hand-over that comes later must
fail. RESUMED ends the stun but doesn't let the source go: the destination may still find that it can't go on, or that
the memories differ. Only the record's next epoch, written by the destination ("settled"), does; a source that lost the
connection reads it there.
"""

from enum import Enum, auto


class SourceState(Enum):
    """Where the source is in the hand-over."""

    LOADING = auto()  # device state is on its way; the record names me; I hold the run lock
    SWAPPING = auto()  # READY seen, my swap runs
    RECLAIMING = auto()  # my swap's outcome is unknown: a swap to myself settles it
    GIVEN = auto()  # the record names the destination; lock released, COMMIT sent
    CONFIRMING = auto()  # RESUMED seen: the stun is over; the destination may still give back
    WATCHING = auto()  # the connection is lost after the swap: only the record tells
    RETAKING = auto()  # the record names me again: waiting for the run lock
    RESUMING_HERE = auto()  # record and lock are mine: the guest goes on here
    DONE = auto()  # end: the destination keeps the guest
    ROLLED_BACK = auto()  # end: the guest runs here as before


class SourceEvent(Enum):
    """What the source learns."""

    READY = auto()
    FAILURE = auto()  # any error or cancel, the loss of the connection included
    SWAP_WON = auto()
    SWAP_LOST = auto()  # the record names me still, and certainly isn't given away by me
    SWAP_UNCERTAIN = auto()  # the write failed in the middle
    RECORD_NAMES_DESTINATION = auto()
    RECORD_NAMES_ME = auto()
    RECORD_NAMES_OTHER = auto()  # neither me nor the destination: somebody else has decided
    RESUMED = auto()
    SETTLED = auto()  # the destination's word, or the record's: it names the destination at a later epoch
    LOCK_TAKEN = auto()
    GUEST_RUNS = auto()


class SourceAction(Enum):
    """What the source does next; the answer comes back as an event."""

    SWAP_TO_DESTINATION = auto()
    SWAP_TO_MYSELF = auto()
    RELEASE_RUN_LOCK = auto()
    SEND_COMMIT = auto()
    WATCH_RECORD = auto()
    TAKE_RUN_LOCK = auto()
    RESUME_GUEST = auto()


class DestinationState(Enum):
    """Where the destination is in the hand-over."""

    LOADING = auto()  # masked; memory and device state arrive
    READY = auto()  # everything loaded, READY sent
    GIVING_UP = auto()  # a swap to the same owner at the next epoch runs
    READING = auto()  # the record is being read: is it mine?
    LOCKING = auto()  # the record names me: waiting for the run lock
    RESUMING = auto()  # record and lock are mine
    GIVING_BACK = auto()  # the guest can't run here: its process is ended, the record goes back to the source
    RUNNING = auto()  # the guest runs here, RESUMED sent
    SETTLING = auto()  # a swap to myself at the next epoch runs: the source may go
    SETTLED = auto()  # end: the guest stays here
    DESTROYED = auto()  # end: the shell VM is gone


class DestinationEvent(Enum):
    """What the destination learns."""

    LOADED = auto()
    FAILURE = auto()  # any error or cancel, the loss of the connection and a deadline included
    COMMIT = auto()
    SWAP_WON = auto()
    SWAP_LOST = auto()
    RECORD_NAMES_ME = auto()
    RECORD_NAMES_OTHER = auto()
    LOCK_TAKEN = auto()
    LOCK_REFUSED = auto()  # not within its deadline
    GUEST_RUNS = auto()
    GUEST_FAILED = auto()  # it couldn't be resumed, ended, or its memory isn't the source's
    VERIFIED = auto()  # nothing speaks against keeping the guest


class DestinationAction(Enum):
    """What the destination does next; the answer comes back as an event."""

    SEND_READY = auto()
    SWAP_TO_GIVE_UP = auto()
    READ_RECORD = auto()
    TAKE_RUN_LOCK = auto()
    RESUME_GUEST = auto()
    SEND_RESUMED = auto()
    SWAP_TO_SETTLE = auto()
    SEND_SETTLED = auto()
    END_GUEST = auto()
    SWAP_BACK = auto()
    SEND_GIVE_BACK = auto()


class SwitchoverError(Exception):
    """An event that can't come in this state: a defect, or a peer that doesn't follow the protocol."""

    def __init__(self, state: SourceState | DestinationState, event: SourceEvent | DestinationEvent) -> None:
        super().__init__(f"{event.name} in state {state.name}")
        self.state = state
        self.event = event


_S, _SE, _SA = SourceState, SourceEvent, SourceAction
_D, _DE, _DA = DestinationState, DestinationEvent, DestinationAction

SOURCE_TABLE: dict[tuple[SourceState, SourceEvent], tuple[SourceState, tuple[SourceAction, ...]]] = {
    (_S.LOADING, _SE.READY): (_S.SWAPPING, (_SA.SWAP_TO_DESTINATION,)),
    # The record names me and only I hand over: nothing to settle.
    (_S.LOADING, _SE.FAILURE): (_S.RESUMING_HERE, (_SA.RESUME_GUEST,)),
    (_S.SWAPPING, _SE.SWAP_WON): (_S.GIVEN, (_SA.RELEASE_RUN_LOCK, _SA.SEND_COMMIT)),
    # The destination gave up by its own swap: mine could not hand over any more.
    (_S.SWAPPING, _SE.SWAP_LOST): (_S.RESUMING_HERE, (_SA.RESUME_GUEST,)),
    (_S.SWAPPING, _SE.SWAP_UNCERTAIN): (_S.RECLAIMING, (_SA.SWAP_TO_MYSELF,)),
    (_S.RECLAIMING, _SE.SWAP_WON): (_S.RESUMING_HERE, (_SA.RESUME_GUEST,)),
    (_S.RECLAIMING, _SE.SWAP_UNCERTAIN): (_S.RECLAIMING, (_SA.SWAP_TO_MYSELF,)),
    (_S.RECLAIMING, _SE.RECORD_NAMES_DESTINATION): (_S.GIVEN, (_SA.RELEASE_RUN_LOCK, _SA.SEND_COMMIT)),
    # Somebody gave it to the destination in my place, or my write landed all the same.
    (_S.SWAPPING, _SE.RECORD_NAMES_DESTINATION): (_S.GIVEN, (_SA.RELEASE_RUN_LOCK, _SA.SEND_COMMIT)),
    # Not mine to run, and not in the way of whoever it is.
    (_S.SWAPPING, _SE.RECORD_NAMES_OTHER): (_S.WATCHING, (_SA.RELEASE_RUN_LOCK, _SA.WATCH_RECORD)),
    (_S.RECLAIMING, _SE.RECORD_NAMES_OTHER): (_S.WATCHING, (_SA.RELEASE_RUN_LOCK, _SA.WATCH_RECORD)),
    (_S.GIVEN, _SE.RESUMED): (_S.CONFIRMING, ()),
    (_S.GIVEN, _SE.FAILURE): (_S.WATCHING, (_SA.WATCH_RECORD,)),
    (_S.CONFIRMING, _SE.SETTLED): (_S.DONE, ()),
    (_S.CONFIRMING, _SE.FAILURE): (_S.WATCHING, (_SA.WATCH_RECORD,)),
    (_S.WATCHING, _SE.SETTLED): (_S.DONE, ()),
    (_S.WATCHING, _SE.RECORD_NAMES_ME): (_S.RETAKING, (_SA.TAKE_RUN_LOCK,)),
    (_S.RETAKING, _SE.LOCK_TAKEN): (_S.RESUMING_HERE, (_SA.RESUME_GUEST,)),
    (_S.RESUMING_HERE, _SE.GUEST_RUNS): (_S.ROLLED_BACK, ()),
}

DESTINATION_TABLE: dict[
    tuple[DestinationState, DestinationEvent], tuple[DestinationState, tuple[DestinationAction, ...]]
] = {
    (_D.LOADING, _DE.LOADED): (_D.READY, (_DA.SEND_READY,)),
    # Without READY the source can't hand over: nothing to settle.
    (_D.LOADING, _DE.FAILURE): (_D.DESTROYED, (_DA.END_GUEST,)),
    (_D.READY, _DE.COMMIT): (_D.READING, (_DA.READ_RECORD,)),
    (_D.READY, _DE.FAILURE): (_D.GIVING_UP, (_DA.SWAP_TO_GIVE_UP,)),
    (_D.GIVING_UP, _DE.SWAP_WON): (_D.DESTROYED, (_DA.END_GUEST,)),
    # The source was faster, or the record changed otherwise: obey it.
    (_D.GIVING_UP, _DE.SWAP_LOST): (_D.READING, (_DA.READ_RECORD,)),
    (_D.READING, _DE.RECORD_NAMES_ME): (_D.LOCKING, (_DA.TAKE_RUN_LOCK,)),
    (_D.READING, _DE.RECORD_NAMES_OTHER): (_D.DESTROYED, (_DA.END_GUEST,)),
    (_D.LOCKING, _DE.LOCK_TAKEN): (_D.RESUMING, (_DA.RESUME_GUEST,)),
    (_D.LOCKING, _DE.LOCK_REFUSED): (_D.GIVING_BACK, (_DA.END_GUEST, _DA.SWAP_BACK)),
    (_D.RESUMING, _DE.GUEST_RUNS): (_D.RUNNING, (_DA.SEND_RESUMED,)),
    # Its process is ended first: nothing here can run the guest when the record goes back.
    (_D.RESUMING, _DE.GUEST_FAILED): (_D.GIVING_BACK, (_DA.END_GUEST, _DA.SWAP_BACK)),
    # What runs here is wrong or gone, the source still has the right state.
    (_D.RUNNING, _DE.GUEST_FAILED): (_D.GIVING_BACK, (_DA.END_GUEST, _DA.SWAP_BACK)),
    (_D.RUNNING, _DE.VERIFIED): (_D.SETTLING, (_DA.SWAP_TO_SETTLE,)),
    # Nobody is there to compare with any more, and the guest runs.
    (_D.RUNNING, _DE.FAILURE): (_D.SETTLING, (_DA.SWAP_TO_SETTLE,)),
    (_D.SETTLING, _DE.SWAP_WON): (_D.SETTLED, (_DA.SEND_SETTLED,)),
    # Somebody took the VM away from us, believing us dead.
    (_D.SETTLING, _DE.SWAP_LOST): (_D.DESTROYED, (_DA.END_GUEST,)),
    (_D.GIVING_BACK, _DE.SWAP_WON): (_D.DESTROYED, (_DA.SEND_GIVE_BACK,)),
    (_D.GIVING_BACK, _DE.SWAP_LOST): (_D.DESTROYED, ()),
}

# States in which a role's process may let the guest's vCPUs run.
SOURCE_RUNS = frozenset({SourceState.RESUMING_HERE, SourceState.ROLLED_BACK})
DESTINATION_RUNS = frozenset(
    {
        DestinationState.RESUMING,
        DestinationState.RUNNING,
        DestinationState.SETTLING,
        DestinationState.SETTLED,
    }
)


def source_step(state: SourceState, event: SourceEvent) -> tuple[SourceState, tuple[SourceAction, ...]]:
    """The source's next state and what to do.

    :raises SwitchoverError: the event can't come in this state.
    """
    try:
        return SOURCE_TABLE[state, event]
    except KeyError:
        raise SwitchoverError(state, event) from None


def destination_step(
    state: DestinationState, event: DestinationEvent
) -> tuple[DestinationState, tuple[DestinationAction, ...]]:
    """The destination's next state and what to do.

    :raises SwitchoverError: the event can't come in this state.
    """
    try:
        return DESTINATION_TABLE[state, event]
    except KeyError:
        raise SwitchoverError(state, event) from None
