"""A migration's pure parts: progress, verdict, limits, options, specification."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.vmotion.v1 import spec_pb2, status_pb2
from runtime.faults import InvalidArgument
from vpxd.compatibility.finding import HostFacts, VmFacts
from vpxd.inventory.values import (
    ExecutionState,
    HostConnection,
    HostInfo,
    HostUsage,
    PowerState,
    VmConfig,
)
from vpxd.migration.limits import Claim, obstacle, startable
from vpxd.migration.options import EncryptionMode, MigrationOptions, Priority, VerifyMode
from vpxd.migration.progress import MigrationProgress, Phase, percent, words
from vpxd.migration.spec import KEY_BYTES, Parties, build, new_migration_id
from vpxd.migration.status import Times, with_times
from vpxd.migration.verdict import HostAnswer, Verdict, decide

_SRC, _DST = "uuid-source", "uuid-destination"
_U, _R, _S, _F = Verdict.UNDECIDED, Verdict.RUNNING, Verdict.SUCCEEDED, Verdict.FAILED


def test_own_numbers_are_those_of_the_wire() -> None:
    assert {phase.name: phase.value for phase in Phase} == _wire(
        status_pb2.MigrationPhase, "MIGRATION_PHASE_"
    )
    assert {mode.name: mode.value for mode in VerifyMode} == _wire(spec_pb2.VerifyMode, "VERIFY_MODE_")
    assert {mode.name: mode.value for mode in EncryptionMode} == _wire(
        spec_pb2.EncryptionMode, "ENCRYPTION_MODE_"
    )
    assert {each.name: each.value for each in Priority} == _wire(spec_pb2.Priority, "PRIORITY_")


def _wire(enum: object, prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix): number for name, number in enum.items()}  # type: ignore[attr-defined]


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=40), st.integers(1, 10**6))
def test_progress_rises_through_passes_and_phases(sent: list[int], total: int) -> None:
    last = -1
    for phase in (Phase.UNSPECIFIED, Phase.PREPARE, Phase.HANDSHAKE):
        assert percent(MigrationProgress(phase)) > last
        last = percent(MigrationProgress(phase))
    for iteration, pages in enumerate(sent):
        start = percent(MigrationProgress(Phase.PRE_COPY, iteration, total, 0))
        now = percent(MigrationProgress(Phase.PRE_COPY, iteration, total, pages))
        assert last <= start <= now
        last = percent(MigrationProgress(Phase.PRE_COPY, iteration, total, total))
        assert now <= last
    for phase in (
        Phase.STUN,
        Phase.CHECKPOINT,
        Phase.SWITCHOVER,
        Phase.VERIFY,
        Phase.COMPLETE,
        Phase.SUCCEEDED,
    ):
        assert last < percent(MigrationProgress(phase)) < 100
        last = percent(MigrationProgress(phase))


@pytest.mark.parametrize("phase", list(Phase))
def test_every_phase_has_its_words_and_side_of_the_hand_over(phase: Phase) -> None:
    progress = MigrationProgress(phase, iteration=2, pages_total=100, pages_remaining=512)
    assert words(progress)
    assert progress.handed_over == (
        phase in {Phase.SWITCHOVER, Phase.VERIFY, Phase.COMPLETE, Phase.SUCCEEDED}
    )


def _answer(
    phase: Phase = Phase.PRE_COPY, owner: str = _SRC, epoch: int = 1, *, is_open: bool = True
) -> HostAnswer:
    return HostAnswer(True, MigrationProgress(phase), None, owner, epoch, is_open)


_NO_RECORD = replace(_answer(), owner_host_uuid="")
_NEVER = HostAnswer(known=False)


@pytest.mark.parametrize(
    ("source", "destination", "verdict"),
    [
        (_answer(), _answer(Phase.UNSPECIFIED), _R),
        (_answer(Phase.FAILED, is_open=False), _answer(), _F),
        (_answer(is_open=False), None, _F),
        (_NEVER, _answer(), _F),
        (None, _answer(), _U),
        (None, None, _U),
        (_answer(Phase.SWITCHOVER, _DST, 2), None, _S),
        (None, _answer(Phase.UNSPECIFIED, _DST, 2), _S),
        (None, _answer(Phase.FAILED, _DST, 2), _U),  # it will give back: until then nobody runs
        (
            _answer(Phase.SWITCHOVER, _SRC, 3),
            _answer(Phase.FAILED, _DST, 2),
            _R,
        ),  # given back: the newer one counts
        (_answer(Phase.FAILED, _SRC, 3), _answer(Phase.FAILED, _SRC, 3), _F),
        (_answer(owner="uuid-third", epoch=9), _answer(), _F),
        (replace(_NO_RECORD, progress=MigrationProgress(Phase.SUCCEEDED)), None, _S),
        (replace(_NO_RECORD, progress=MigrationProgress(Phase.FAILED)), None, _F),
        (_NO_RECORD, None, _R),
        (replace(_NO_RECORD, open=False), None, _U),
        (_NEVER, _NEVER, _F),
        (_NEVER, None, _U),
        (_NEVER, _NO_RECORD, _U),
    ],
)
def test_verdict_comes_from_the_owner_record(
    source: HostAnswer | None, destination: HostAnswer | None, verdict: Verdict
) -> None:
    assert decide(_SRC, _DST, source, destination) is verdict


_ANSWERS = st.one_of(
    st.none(),
    st.builds(
        HostAnswer,
        known=st.booleans(),
        progress=st.builds(MigrationProgress, phase=st.sampled_from(Phase)),
        owner_host_uuid=st.sampled_from(["", _SRC, _DST]),
        owner_epoch=st.integers(0, 5),
        open=st.booleans(),
    ),
)


@given(_ANSWERS, _ANSWERS)
def test_success_is_never_found_while_the_newest_record_names_the_source(
    source: HostAnswer | None, destination: HostAnswer | None
) -> None:
    read = [answer for answer in (source, destination) if answer is not None and answer.owner_host_uuid]
    verdict = decide(_SRC, _DST, source, destination)
    if read and all(answer.owner_host_uuid == _SRC for answer in read):
        assert verdict is not _S
    if read and all(answer.owner_host_uuid == _DST for answer in read):
        assert verdict in (_S, _U)
    if source is None and not read:
        assert verdict is _U


_CLAIMS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")).filter(lambda pair: pair[0] != pair[1]),
    max_size=12,
).map(lambda pairs: [Claim(f"task-{number}", *pair) for number, pair in enumerate(pairs)])


@given(_CLAIMS, st.integers(1, 3))
def test_limits_hold_on_every_host_and_nobody_is_overtaken(waiting: list[Claim], per_host: int) -> None:
    chosen = startable([], waiting, per_host)
    for host in "abcd":
        assert sum(host in claim.hosts for claim in chosen) <= per_host
    for index, claim in enumerate(waiting):
        if claim not in chosen:
            ahead = waiting[:index]
            assert any(sum(host in other.hosts for other in ahead) >= per_host for host in claim.hosts)
    if waiting:
        assert waiting[0] in chosen


def test_waiting_migration_says_who_is_in_its_way() -> None:
    running = [Claim("task-1", "esx01", "esx02"), Claim("task-2", "esx01", "esx03")]
    text = obstacle(Claim("task-3", "esx01", "esx04"), running, 2)
    assert text == "esx01 already takes part in 2 migrations (task-1, task-2)"
    assert startable(running, [Claim("task-3", "esx02", "esx03")], 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("verify", 4),
        ("encryption", -1),
        ("priority", 9),
        ("switchover_goal_ms", 200_000),
        ("max_iterations", 2_000),
        ("streams", 65),
        ("network_timeout_s", float("nan")),
        ("network_timeout_s", -1.0),
        ("tracer", "magic"),
    ],
)
def test_option_that_can_not_be_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        replace(MigrationOptions(), **{name: value}).require_valid()
    assert caught.value.argument == f"options.{name}"


def test_specification_has_a_fresh_key_that_no_log_shows() -> None:
    host = HostFacts(
        "host-1", "esx01", HostConnection.CONNECTED, HostInfo("u", "esx01", "1.1.1.1", "2.2.2.2"), HostUsage()
    )
    config = VmConfig("uuid", "web01", 1, 2**30)
    vm = VmFacts("vm-1", config, "[s] a/a.vmx", "s", "ds", PowerState.POWERED_ON, ExecutionState.RUNNING)
    parties = Parties(vm, host, host)
    one, two = (build(new_migration_id(), "task-1", "op", parties, MigrationOptions()) for _ in range(2))
    assert len(one.key) == KEY_BYTES
    assert one.key != two.key
    assert "key" not in repr(one)
    assert 0 < one.migration_id < 2**63


def test_times_are_put_into_a_status_that_is_otherwise_untouched() -> None:
    status = status_pb2.MigrationStatus(migration_id=7, stun_ms=6.5, streams=2)
    status.phases.add(phase=status_pb2.MIGRATION_PHASE_PRE_COPY, duration_ms=50.0)
    with_all = with_times(status.SerializeToString(), Times(1234.5, prepare_ms=40.0, complete_ms=8.0))
    changed = status_pb2.MigrationStatus.FromString(with_all)
    assert changed.total_ms == 1234.5
    assert [(one.phase, one.duration_ms) for one in changed.phases] == [
        (status_pb2.MIGRATION_PHASE_PREPARE, 40.0),
        (status_pb2.MIGRATION_PHASE_PRE_COPY, 50.0),
        (status_pb2.MIGRATION_PHASE_COMPLETE, 8.0),
    ]
    changed.total_ms = 0
    del changed.phases[2], changed.phases[0]
    assert changed == status
