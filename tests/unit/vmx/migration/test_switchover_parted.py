"""The hand-over where source and destination have a home each, and so a record and a run lock each.

Every schedule of both roles with two records, messages that get lost at any moment, writes of unknown outcome, and a
vpxd that carries the destination's last word into the source's record. The carriers' own rules are here as they are in
source_hand_over.py and destination_hand_over.py.
"""

from collections import deque
from dataclasses import dataclass, replace

import pytest

from vmx.migration.switchover import (
    DESTINATION_RUNS,
    SOURCE_RUNS,
    SOURCE_TABLE,
    destination_step,
    source_step,
)
from vmx.migration.switchover import DestinationAction as DA
from vmx.migration.switchover import DestinationEvent as DE
from vmx.migration.switchover import DestinationState as D
from vmx.migration.switchover import SourceAction as SA
from vmx.migration.switchover import SourceEvent as SE
from vmx.migration.switchover import SourceState as S

# Reclaiming may go on for ever; this often is enough to see everything that it leads to.
MAX_CHANGES = 8
SOURCE_WAITS = frozenset({S.LOADING, S.GIVEN, S.CONFIRMING})
DESTINATION_WAITS = frozenset({D.LOADING, D.READY, D.RUNNING})
DESTINATION_ENDS = frozenset({D.SETTLED, D.DESTROYED})


@dataclass(frozen=True)
class Record:
    """An owner record."""

    owner: str = "source"
    epoch: int = 1

    def given_to(self, owner: str) -> "Record":
        return Record(owner, self.epoch + 1)


@dataclass(frozen=True)
class World:
    """Everything that a schedule can see. `given` is the record by which the source gave the guest away, `believed` the
    destination's last word on its own record, `committed` the epoch that COMMIT brought it, `staked` what the source's
    record said at the beginning. The epochs of the two records have nothing to do with each other before COMMIT."""

    source: S = S.LOADING
    destination: D = D.LOADING
    source_todo: tuple[SA, ...] = ()
    destination_todo: tuple[DA, ...] = ()
    source_record: Record = Record()
    destination_record: Record = Record()
    staked: Record = Record()
    given: Record | None = None
    believed: Record = Record()
    committed: int = 0
    source_lock: bool = True
    destination_lock: bool = False
    to_source: frozenset[tuple[str, int]] = frozenset()
    to_destination: frozenset[tuple[str, int]] = frozenset()
    link_up: bool = True
    guest_ended: bool = False  # at the destination


def on_source(world: World, event: SE) -> World:
    state, actions = source_step(world.source, event)
    return replace(world, source=state, source_todo=world.source_todo + actions)


def on_destination(world: World, event: DE) -> World:
    state, actions = destination_step(world.destination, event)
    return replace(world, destination=state, destination_todo=world.destination_todo + actions)


def said_to_source(world: World, code: str, epoch: int = 0) -> list[World]:
    """Sent, if the link is up, and maybe lost at once."""
    return [replace(world, to_source=world.to_source | {(code, epoch)}), world] if world.link_up else [world]


def found_by_source(world: World) -> World:
    """The source has read its record, which isn't the one that it expected."""
    if world.source_record.owner == "source":
        return on_source(world, SE.SWAP_LOST)
    return on_source(replace(world, given=world.source_record), SE.RECORD_NAMES_DESTINATION)


def do_source(world: World) -> list[World]:
    """All outcomes of the source's next action."""
    action, rest = world.source_todo[0], world.source_todo[1:]
    world, present = replace(world, source_todo=rest), world.source_record
    match action:
        case SA.SWAP_TO_DESTINATION:
            if present != world.staked:
                return [found_by_source(world), on_source(world, SE.SWAP_UNCERTAIN)]
            given = present.given_to("destination")
            after = replace(world, source_record=given)
            # A write of unknown outcome may or may not have landed.
            unknown = [on_source(after, SE.SWAP_UNCERTAIN), on_source(world, SE.SWAP_UNCERTAIN)]
            return [on_source(replace(after, given=given), SE.SWAP_WON), *unknown]
        case SA.SWAP_TO_MYSELF:
            if present.owner != "source":
                return [found_by_source(world)]
            after = replace(world, source_record=present.given_to("source"))
            unknown = [on_source(after, SE.SWAP_UNCERTAIN), on_source(world, SE.SWAP_UNCERTAIN)]
            return [on_source(after, SE.SWAP_WON), *unknown]
        case SA.RELEASE_RUN_LOCK:
            assert world.source_lock
            return [replace(world, source_lock=False)]
        case SA.SEND_COMMIT:
            assert world.given is not None
            if not world.link_up:
                return [on_source(world, SE.FAILURE)]
            commit = ("COMMIT", world.given.epoch)
            return [replace(world, to_destination=world.to_destination | {commit}), world]
        case SA.WATCH_RECORD:
            if present.owner == "source":
                return [on_source(world, SE.RECORD_NAMES_ME)]
            if world.given is not None and present.epoch > world.given.epoch:
                return [on_source(world, SE.SETTLED)]
            return [replace(world, source_todo=(SA.WATCH_RECORD, *rest))]
        case SA.TAKE_RUN_LOCK:
            return [on_source(replace(world, source_lock=True), SE.LOCK_TAKEN)]
        case SA.RESUME_GUEST:
            return [on_source(world, SE.GUEST_RUNS)]


def write_own(world: World, wanted: Record, won: DE, lost: DE) -> list[World]:
    """The destination replaces its record; a write of unknown outcome is read back until it is certain."""
    if world.destination_record != world.believed:
        return [on_destination(world, lost)]
    return [on_destination(replace(world, destination_record=wanted, believed=wanted), won)]


def do_destination(world: World) -> list[World]:
    """All outcomes of the destination's next action."""
    action, rest = world.destination_todo[0], world.destination_todo[1:]
    world = replace(world, destination_todo=rest)
    believed = world.believed
    match action:
        case DA.SEND_READY:
            return said_to_source(world, "READY")
        case DA.SWAP_TO_GIVE_UP | DA.SWAP_BACK:
            return write_own(world, believed.given_to("source"), DE.SWAP_WON, DE.SWAP_LOST)
        case DA.READ_RECORD if world.committed:
            if world.committed <= believed.epoch:
                return [on_destination(world, DE.RECORD_NAMES_OTHER)]
            mine = Record("destination", world.committed)
            # A defect may break off before the write; then the record, which names the source, is obeyed.
            broken_off = on_destination(world, DE.RECORD_NAMES_OTHER)
            return [*write_own(world, mine, DE.RECORD_NAMES_ME, DE.RECORD_NAMES_OTHER), broken_off]
        case DA.READ_RECORD:
            assert world.destination_record.owner == "source", "only COMMIT makes it mine"
            return [on_destination(world, DE.RECORD_NAMES_OTHER)]
        case DA.TAKE_RUN_LOCK:
            refused = on_destination(world, DE.LOCK_REFUSED)
            return [on_destination(replace(world, destination_lock=True), DE.LOCK_TAKEN), refused]
        case DA.RESUME_GUEST:
            return [on_destination(world, DE.GUEST_RUNS), on_destination(world, DE.GUEST_FAILED)]
        case DA.SEND_RESUMED:
            outcomes = said_to_source(world, "RESUMED")
            return outcomes if world.link_up else [on_destination(world, DE.FAILURE)]
        case DA.SWAP_TO_SETTLE:
            return write_own(world, believed.given_to("destination"), DE.SWAP_WON, DE.SWAP_LOST)
        case DA.SEND_SETTLED:
            return said_to_source(world, "SETTLED", believed.epoch)
        case DA.END_GUEST:
            return [replace(world, guest_ended=True, destination_lock=False)]
        case DA.SEND_GIVE_BACK:
            return said_to_source(world, "GIVE_BACK", believed.epoch)


def taken_back(world: World, epoch: int) -> list[World]:
    """GIVE_BACK has come: the source writes its own record, unless that fails or it has changed. Then it watches."""
    assert world.given is not None
    may_write = world.source_record == world.given and epoch > world.given.epoch
    written = replace(world, source_record=Record("source", epoch)) if may_write else world
    return [on_source(written, SE.FAILURE), on_source(world, SE.FAILURE)]


def arrivals(world: World) -> list[World]:
    """A message arrives. The last ones may overtake each other: then they are unexpected, and the record is asked."""
    outcomes = []
    if not world.source_todo and world.source in SOURCE_WAITS:
        for message in world.to_source:
            left = replace(world, to_source=world.to_source - {message})
            code, epoch = message
            event = {"READY": SE.READY, "RESUMED": SE.RESUMED, "SETTLED": SE.SETTLED}.get(code, SE.FAILURE)
            if code == "GIVE_BACK" and world.source is not S.LOADING:
                outcomes += taken_back(left, epoch)
            elif (world.source, event) in SOURCE_TABLE:
                outcomes.append(on_source(left, event))
            else:
                outcomes.append(on_source(left, SE.FAILURE))
    if not world.destination_todo and world.destination is D.READY:
        for message in world.to_destination:
            left = replace(world, to_destination=frozenset(), committed=message[1])
            outcomes.append(on_destination(left, DE.COMMIT))
    return outcomes


def failures(world: World) -> list[World]:
    """The link breaks, a message gets lost, a deadline passes; each side notices for itself, whenever."""
    outcomes = []
    if world.link_up:
        outcomes.append(replace(world, link_up=False, to_source=frozenset(), to_destination=frozenset()))
        # What is in a socket's buffer may still be read after the link has gone.
        outcomes.append(replace(world, link_up=False))
    outcomes += [replace(world, to_source=world.to_source - {message}) for message in world.to_source]
    if not world.source_todo and world.source in SOURCE_WAITS:
        outcomes.append(on_source(world, SE.FAILURE))
    if not world.destination_todo and world.destination in DESTINATION_WAITS:
        outcomes.append(on_destination(world, DE.FAILURE))
    if not world.destination_todo and world.destination is D.LOADING:
        outcomes.append(on_destination(world, DE.LOADED))
    if not world.destination_todo and world.destination is D.RUNNING:
        outcomes.append(on_destination(world, DE.VERIFIED))
        outcomes.append(on_destination(world, DE.GUEST_FAILED))
    return outcomes


def relays(world: World) -> list[World]:
    """vpxd has seen how the destination's host closed the migration, and has it written at the source."""
    present = world.source_record
    is_given = present.owner == "destination"
    # Before its last message is sent a session isn't over; a host closes it after that.
    if world.destination not in DESTINATION_ENDS or world.destination_todo:
        return []
    if world.destination is D.DESTROYED and (is_given or present == world.staked):
        return [replace(world, source_record=present.given_to("source"))]
    if world.destination is D.SETTLED and is_given and present == world.given:
        return [replace(world, source_record=present.given_to("destination"))]
    return []


def source_may_run(world: World) -> bool:
    return world.source in SOURCE_RUNS


def destination_may_run(world: World) -> bool:
    return world.destination in DESTINATION_RUNS and not world.guest_ended


def check(world: World) -> None:
    """What holds at every moment."""
    assert not (source_may_run(world) and destination_may_run(world)), world
    if source_may_run(world):
        assert world.source_lock, world
        assert world.source_record.owner == "source", world
    if destination_may_run(world):
        assert world.destination_lock, world
        assert world.destination_record.owner == "destination", world
        assert world.source_record.owner == "destination", world
    if world.destination is D.SETTLED:
        assert world.source not in SOURCE_RUNS, world


def next_worlds(world: World) -> list[World]:
    return [
        *(do_source(world) if world.source_todo else []),
        *(do_destination(world) if world.destination_todo else []),
        *arrivals(world),
        *failures(world),
        *relays(world),
    ]


def explored(first: World) -> tuple[set[World], set[World]]:
    """All worlds that can come of `first`, checked, and those in which nothing can happen any more."""
    seen, ends = {first}, set()
    queue = deque(seen)
    while queue:
        world = queue.popleft()
        outcomes = next_worlds(world)
        for after in outcomes:
            check(after)
            if changes(after) < MAX_CHANGES and after not in seen:
                seen.add(after)
                queue.append(after)
        if all(after == world for after in outcomes):
            ends.add(world)
    return seen, ends


def changes(world: World) -> int:
    """How often the source's record was changed."""
    return world.source_record.epoch - world.staked.epoch


def beginning(source_epoch: int, destination_epoch: int) -> World:
    there = Record("source", destination_epoch)
    staked = Record("source", source_epoch)
    return replace(World(), source_record=staked, staked=staked, destination_record=there, believed=there)


@pytest.mark.parametrize(("source_epoch", "destination_epoch"), [(1, 1), (7, 1), (1, 7)])
def test_every_schedule_with_two_records_never_has_two_runners_and_ends_with_one(
    source_epoch: int, destination_epoch: int
) -> None:
    seen, ends = explored(beginning(source_epoch, destination_epoch))
    assert len(seen) > 300
    for world in ends:
        if changes(world) < MAX_CHANGES - 1:
            assert source_may_run(world) != destination_may_run(world), world
    given_back = (S.ROLLED_BACK, D.DESTROYED)
    # A destination whose record is from later can't follow COMMIT: it gives up.
    wanted = {given_back} if destination_epoch > source_epoch else {given_back, (S.DONE, D.SETTLED)}
    assert {(world.source, world.destination) for world in ends} == wanted


def test_without_vpxd_a_lost_word_leaves_nobody_running_and_never_two() -> None:
    """What vpxd is for: the connection alone can't always end it, and in doubt nobody runs."""
    given_away = replace(
        World(),
        source=S.WATCHING,
        source_todo=(SA.WATCH_RECORD,),
        destination=D.DESTROYED,
        source_record=Record("destination", 2),
        destination_record=Record("source", 2),
        given=Record("destination", 2),
        source_lock=False,
        link_up=False,
        guest_ended=True,
    )
    assert do_source(given_away) == [given_away]
    (told,) = relays(given_away)
    while told.source_todo:
        (told,) = do_source(told)
    assert told.source is S.ROLLED_BACK
