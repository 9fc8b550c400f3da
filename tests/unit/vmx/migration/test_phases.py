"""The tables of phases, of both roles."""

from enum import Enum

import pytest

from proto.vmotion.v1 import status_pb2
from vmx.migration.failpoints import FAILPOINTS, of_phase
from vmx.migration.phases import (
    DESTINATION_MOVES,
    SOURCE_MOVES,
    DestinationPhase,
    PublishedPhase,
    SourcePhase,
    published,
)

ROLES = [(SourcePhase, SOURCE_MOVES), (DestinationPhase, DESTINATION_MOVES)]


@pytest.mark.parametrize(("phases", "moves"), ROLES, ids=["source", "destination"])
class TestEachRole:
    def test_every_phase_is_reached_from_the_first(
        self, phases: type[Enum], moves: frozenset[tuple[Enum, Enum]]
    ) -> None:
        first = next(iter(phases))
        assert {after for _, after in moves} == set(phases) - {first}

    def test_every_phase_but_the_ends_can_fail(
        self, phases: type[Enum], moves: frozenset[tuple[Enum, Enum]]
    ) -> None:
        failing = {before for before, after in moves if after.name == "FAILED"}
        assert failing == {phase for phase in phases if phase.name not in {"FINISHED", "FAILED"}}

    def test_nothing_follows_an_end(self, phases: type[Enum], moves: frozenset[tuple[Enum, Enum]]) -> None:
        assert {before.name for before, _ in moves}.isdisjoint({"FINISHED", "FAILED"})
        ends = [
            phase for phase in (*SourcePhase, *DestinationPhase) if phase.is_end and type(phase) is phases
        ]
        assert {phase.name for phase in ends} == {"FINISHED", "FAILED"}

    def test_what_is_published_never_goes_back(
        self, phases: type[Enum], moves: frozenset[tuple[Enum, Enum]]
    ) -> None:
        for before, after in moves:
            assert isinstance(before, SourcePhase | DestinationPhase)
            assert isinstance(after, SourcePhase | DestinationPhase)
            assert published(before).order <= published(after).order


def test_every_phase_has_its_failpoint() -> None:
    for phase in (*SourcePhase, *DestinationPhase):
        assert (of_phase(phase) in FAILPOINTS) != phase.is_end


def test_published_phases_are_those_of_the_proto_in_its_order() -> None:
    names = {f"MIGRATION_PHASE_{phase.name}": phase.value for phase in PublishedPhase}
    assert names == {name: value for name, value in status_pb2.MigrationPhase.items() if value}
