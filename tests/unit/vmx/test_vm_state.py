"""The table of execution states."""

from vmx.messages import execution_state
from vmx.vm_state import MOVES, ExecutionState

S = ExecutionState


def reachable(start: ExecutionState) -> set[ExecutionState]:
    found, todo = {start}, [start]
    while todo:
        state = todo.pop()
        for before, after in MOVES:
            if before is state and after not in found:
                found.add(after)
                todo.append(after)
    return found


def test_every_state_is_reached_from_off() -> None:
    assert reachable(S.OFF) == set(S)


def test_every_state_leads_to_an_end() -> None:
    for state in S:
        assert S.OFF in reachable(state)


def test_an_ended_guest_can_fail_no_more() -> None:
    assert (S.OFF, S.FAILED) not in MOVES
    assert not {after for before, after in MOVES if before is S.FAILED} - {S.OFF}


def test_only_a_booted_or_handed_over_guest_runs() -> None:
    assert {before for before, after in MOVES if after is S.RUNNING} == {
        S.STARTING, S.EMIGRATING, S.STUNNED, S.IMMIGRATING,
    }  # fmt: skip


def test_a_stunned_guest_never_emigrates() -> None:
    assert {before for before, after in MOVES if after is S.EMIGRATING} == {S.RUNNING}


def test_every_state_has_its_message() -> None:
    assert len({execution_state(state) for state in S}) == len(S)
