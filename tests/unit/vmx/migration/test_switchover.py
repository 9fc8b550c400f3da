"""The hand-over machine: its table, and every schedule of both roles with a record, a lock and a network that loses."""

import itertools
from collections import deque
from dataclasses import dataclass, replace

import pytest

from vmx.migration.switchover import (
    DESTINATION_RUNS,
    DESTINATION_TABLE,
    SOURCE_RUNS,
    SOURCE_TABLE,
    SwitchoverError,
    destination_step,
    source_step,
)
from vmx.migration.switchover import DestinationAction as DA
from vmx.migration.switchover import DestinationEvent as DE
from vmx.migration.switchover import DestinationState as D
from vmx.migration.switchover import SourceAction as SA
from vmx.migration.switchover import SourceEvent as SE
from vmx.migration.switchover import SourceState as S


def test_source_step_pairs_outside_the_table_are_refused() -> None:
    for state, event in itertools.product(S, SE):
        if (state, event) not in SOURCE_TABLE:
            with pytest.raises(SwitchoverError) as caught:
                source_step(state, event)
            assert caught.value.state is state


def test_destination_step_pairs_outside_the_table_are_refused() -> None:
    for state, event in itertools.product(D, DE):
        if (state, event) not in DESTINATION_TABLE:
            with pytest.raises(SwitchoverError):
                destination_step(state, event)


def test_every_state_is_reached_by_the_table() -> None:
    assert {to for to, _ in SOURCE_TABLE.values()} | {S.LOADING} == set(S)
    assert {to for to, _ in DESTINATION_TABLE.values()} | {D.LOADING} == set(D)


def test_source_is_never_resumed_without_a_swap_once_it_gave_the_guest_away() -> None:
    given = {S.GIVEN, S.CONFIRMING, S.WATCHING}
    resumed_at_once = [
        (state, event)
        for (state, event), (_, actions) in SOURCE_TABLE.items()
        if state in given and SA.RESUME_GUEST in actions
    ]
    assert not resumed_at_once


@dataclass(frozen=True)
class World:
    """Everything that a schedule can see: both machines, what they still have to do, the record, the lock, the wire."""

    source: S = S.LOADING
    destination: D = D.LOADING
    source_todo: tuple[SA, ...] = ()
    destination_todo: tuple[DA, ...] = ()
    owner: str = "source"
    epoch: int = 1
    lock: str = "source"
    to_source: frozenset[str] = frozenset()
    to_destination: frozenset[str] = frozenset()
    link_up: bool = True
    guest_ended: bool = False  # at the destination


def on_source(world: World, event: SE) -> World:
    state, actions = source_step(world.source, event)
    return replace(world, source=state, source_todo=world.source_todo + actions)


def on_destination(world: World, event: DE) -> World:
    state, actions = destination_step(world.destination, event)
    return replace(world, destination=state, destination_todo=world.destination_todo + actions)


def swap(world: World, who: str, expected: tuple[str, int], to: str) -> tuple[World, bool]:
    if (world.owner, world.epoch) != expected:
        return world, False
    return replace(world, owner=to, epoch=world.epoch + 1), True


def named(world: World) -> SE:
    """What a record says to a source that it doesn't name."""
    return SE.RECORD_NAMES_DESTINATION if world.owner == "destination" else SE.RECORD_NAMES_OTHER


def do_source(world: World) -> list[World]:
    """All outcomes of the source's next action."""
    action, rest = world.source_todo[0], world.source_todo[1:]
    world = replace(world, source_todo=rest)
    match action:
        case SA.SWAP_TO_DESTINATION:
            after, won = swap(world, "source", ("source", 1), "destination")
            lost = SE.SWAP_LOST if world.owner == "source" else named(world)
            outcomes = [on_source(after, SE.SWAP_WON if won else lost)]
            # An uncertain write may or may not have landed.
            return [*outcomes, on_source(after, SE.SWAP_UNCERTAIN), on_source(world, SE.SWAP_UNCERTAIN)]
        case SA.SWAP_TO_MYSELF:
            if world.owner != "source":
                return [on_source(world, named(world))]
            after, _ = swap(world, "source", ("source", world.epoch), "source")
            return [on_source(after, SE.SWAP_WON), on_source(world, SE.SWAP_UNCERTAIN)]
        case SA.RELEASE_RUN_LOCK:
            assert world.lock == "source"
            assert world.owner != "source" or world.epoch > 2, (
                "it is released only when it has been given away"
            )
            return [replace(world, lock="")]
        case SA.SEND_COMMIT:
            return [
                replace(world, to_destination=world.to_destination | {"COMMIT"}) if world.link_up else world
            ]
        case SA.WATCH_RECORD:
            if world.owner == "destination" and world.epoch >= 3:
                return [on_source(world, SE.SETTLED)]
            if world.owner == "source" and world.epoch >= 3:
                return [on_source(world, SE.RECORD_NAMES_ME)]
            return [replace(world, source_todo=(SA.WATCH_RECORD, *rest))]
        case SA.TAKE_RUN_LOCK:
            if world.lock == "":
                return [on_source(replace(world, lock="source"), SE.LOCK_TAKEN)]
            return [replace(world, source_todo=(SA.TAKE_RUN_LOCK, *rest))]
        case SA.RESUME_GUEST:
            return [on_source(world, SE.GUEST_RUNS)]


def do_destination(world: World) -> list[World]:
    """All outcomes of the destination's next action."""
    action, rest = world.destination_todo[0], world.destination_todo[1:]
    world = replace(world, destination_todo=rest)
    match action:
        case DA.SEND_READY:
            return [replace(world, to_source=world.to_source | {"READY"}) if world.link_up else world]
        case DA.SWAP_TO_GIVE_UP:
            after, won = swap(world, "destination", ("source", 1), "source")
            return [on_destination(after, DE.SWAP_WON if won else DE.SWAP_LOST)]
        case DA.READ_RECORD:
            mine = world.owner == "destination"
            return [on_destination(world, DE.RECORD_NAMES_ME if mine else DE.RECORD_NAMES_OTHER)]
        case DA.TAKE_RUN_LOCK:
            refused = on_destination(world, DE.LOCK_REFUSED)
            if world.lock == "":
                return [on_destination(replace(world, lock="destination"), DE.LOCK_TAKEN), refused]
            return [refused, replace(world, destination_todo=(DA.TAKE_RUN_LOCK, *rest))]
        case DA.RESUME_GUEST:
            return [on_destination(world, DE.GUEST_RUNS), on_destination(world, DE.GUEST_FAILED)]
        case DA.SEND_RESUMED:
            return [replace(world, to_source=world.to_source | {"RESUMED"}) if world.link_up else world]
        case DA.SWAP_TO_SETTLE:
            after, won = swap(world, "destination", ("destination", world.epoch), "destination")
            return [on_destination(after, DE.SWAP_WON if won else DE.SWAP_LOST)]
        case DA.SEND_SETTLED:
            return [replace(world, to_source=world.to_source | {"SETTLED"}) if world.link_up else world]
        case DA.END_GUEST:
            lock = "" if world.lock == "destination" else world.lock
            return [replace(world, guest_ended=True, lock=lock)]
        case DA.SWAP_BACK:
            after, won = swap(world, "destination", ("destination", world.epoch), "source")
            return [on_destination(after, DE.SWAP_WON if won else DE.SWAP_LOST)]
        case DA.SEND_GIVE_BACK:
            return [replace(world, to_source=world.to_source | {"GIVE_BACK"}) if world.link_up else world]


def arrivals(world: World) -> list[World]:
    """A message arrives."""
    outcomes = []
    source_idle, destination_idle = not world.source_todo, not world.destination_todo
    for message in world.to_source:
        left = replace(world, to_source=world.to_source - {message})
        event = {
            "READY": SE.READY, "RESUMED": SE.RESUMED, "GIVE_BACK": SE.RECORD_NAMES_ME, "SETTLED": SE.SETTLED,
        }[message]  # fmt: skip
        if source_idle and (world.source, event) in SOURCE_TABLE:
            outcomes.append(on_source(left, event))
    if destination_idle and "COMMIT" in world.to_destination and world.destination is D.READY:
        outcomes.append(on_destination(replace(world, to_destination=frozenset()), DE.COMMIT))
    return outcomes


def failures(world: World) -> list[World]:
    """The link breaks or a deadline passes; each side notices for itself, whenever."""
    outcomes = []
    if world.link_up:
        outcomes.append(replace(world, link_up=False, to_source=frozenset(), to_destination=frozenset()))
    if not world.source_todo and world.source in {S.LOADING, S.GIVEN, S.CONFIRMING}:
        outcomes.append(on_source(world, SE.FAILURE))
    if not world.destination_todo and world.destination in {D.LOADING, D.READY, D.RUNNING}:
        outcomes.append(on_destination(world, DE.FAILURE))
    if not world.destination_todo and world.destination is D.LOADING:
        outcomes.append(on_destination(world, DE.LOADED))
    if not world.destination_todo and world.destination is D.RUNNING:
        outcomes.append(on_destination(world, DE.VERIFIED))
        outcomes.append(on_destination(world, DE.GUEST_FAILED))
    return outcomes


def interventions(world: World) -> list[World]:
    """Somebody else takes the VM from whoever the record names, once."""
    if world.owner == "third":
        return []
    return [replace(world, owner="third", epoch=world.epoch + 1)]


def source_may_run(world: World) -> bool:
    return world.source in SOURCE_RUNS


def destination_may_run(world: World) -> bool:
    return world.destination in DESTINATION_RUNS and not world.guest_ended


@pytest.mark.parametrize("with_a_third", [False, True])
def test_every_schedule_never_has_two_runners_and_ends_with_one(*, with_a_third: bool) -> None:
    seen = {World()}
    queue = deque(seen)
    ends: set[World] = set()
    while queue:
        world = queue.popleft()
        outcomes = [
            *(do_source(world) if world.source_todo else []),
            *(do_destination(world) if world.destination_todo else []),
            *arrivals(world),
            *failures(world),
            *(interventions(world) if with_a_third else []),
        ]
        for after in outcomes:
            assert not (source_may_run(after) and destination_may_run(after)), after
            if source_may_run(after):
                assert after.lock == "source", after
                assert after.owner in {"source", "third"}, after
            if destination_may_run(after):
                assert after.lock == "destination", after
                assert after.owner in {"destination", "third"}, after
            if after.owner == "third" and world.owner == "third":  # nobody begins to run what isn't his
                assert source_may_run(world) or not source_may_run(after) or told_before(world), after
            if after.epoch < 12 and after not in seen:  # reclaiming may go on for ever
                seen.add(after)
                queue.append(after)
        if all(after == world for after in outcomes):
            ends.add(world)
    assert len(seen) > 100
    assert ends
    for world in ends:
        if world.epoch < 11 and world.owner != "third":
            assert source_may_run(world) != destination_may_run(world), world


def told_before(world: World) -> bool:
    """The source has read or swapped the record before the third came: what it then does was right when it began."""
    return world.source in {S.LOADING, S.SWAPPING, S.RECLAIMING, S.RETAKING}
