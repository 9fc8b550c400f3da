"""A migration's pure parts: progress, verdict, limits, options, specification."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proto.vmotion.v1 import spec_pb2, status_pb2
from runtime.faults import InvalidArgument
from vpxd.compatibility.finding import HostFacts, VmFacts
from vpxd.inventory.records import Host, MigrationEntry, Vm, VmPolicies
from vpxd.inventory.rows import TABLES
from vpxd.inventory.values import (
    ExecutionState,
    HostConnection,
    HostInfo,
    HostUsage,
    PowerState,
    VirtualDisk,
    VmConfig,
)
from vpxd.migration import charge
from vpxd.migration.options import EncryptionMode, MigrationOptions, Priority, VerifyMode
from vpxd.migration.order import Plan, PlanFacts
from vpxd.migration.progress import DiskCopy, MigrationProgress, Phase, percent, words
from vpxd.migration.spec import KEY_BYTES, Names, build, new_migration_id
from vpxd.migration.status import Times, with_times
from vpxd.migration.verdict import HostAnswer, Verdict, decide, decide_within_host
from vpxd.migration.way import Way, events_of, way_of
from vpxd.relocation.relocation import FilePlace, Relocation

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
    disks = (DiskCopy(2000, 100, 50),)
    progress = MigrationProgress(phase, iteration=2, pages_total=100, pages_remaining=512, disks=disks)
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


def _host(number: int) -> HostFacts:
    info = HostInfo(f"u{number}", f"esx0{number}", "1.1.1.1", "2.2.2.2")
    return HostFacts(f"host-{number}", f"esx0{number}", HostConnection.CONNECTED, info, HostUsage())


def _plan(relocation: Relocation, config: VmConfig) -> Plan:
    vm = VmFacts("vm-1", config, "[s] a/a.vmx", "s", "ds", PowerState.POWERED_ON, ExecutionState.RUNNING)
    source, destination = _host(1), _host(2)
    records = [Host(one.id, one.name, "domain-c1", "a:1", one.info) for one in (source, destination)]
    record = Vm("vm-1", source.id, vm.home, PowerState.POWERED_ON, config)
    facts = PlanFacts(vm, source, destination)
    return Plan(record, records[0], records[1], MigrationOptions(), relocation, facts, "test")


_CONFIG = VmConfig(
    "uuid",
    "web01",
    1,
    2**30,
    disks=(VirtualDisk(2000, "[s] a/a.vmdk", 2**20), VirtualDisk(2001, "[t] a/b.vmdk", 2**20)),
)
_COMPUTE = Relocation(_CONFIG, "[s] a/a.vmx", "ds", "ds")
_BOTH = Relocation(
    replace(_CONFIG, disks=(replace(_CONFIG.disks[0], path="[x] web01/a.vmdk"), _CONFIG.disks[1])),
    "[x] web01/web01.vmx",
    "ds",
    "dx",
    moved_disks=(2000,),
    moves_home=True,
    policies=VmPolicies("vm-1", "gold"),
    places=(
        FilePlace(0, "s", "ds", "x", "dx", True),
        FilePlace(2000, "s", "ds", "x", "dx", True),
        FilePlace(2001, "t", "dt", "t", "dt", False),
    ),
)


def test_specification_has_a_fresh_key_that_no_log_shows() -> None:
    names = Names(new_migration_id(), "task-1", "op")
    one, two = (build(names, _plan(_COMPUTE, _CONFIG)) for _ in range(2))
    assert len(one.key) == KEY_BYTES
    assert one.key != two.key
    assert one.key.hex() not in repr(one)
    assert repr(one.key) not in repr(one)
    assert 0 < one.migration_id < 2**63


def test_specification_says_nothing_of_the_destinations_vm_where_only_the_host_changes() -> None:
    spec = build(Names(7, "task-1", "op"), _plan(_COMPUTE, _CONFIG))
    assert spec.destination_vm is None
    assert (spec.destination_home, spec.destination_home_datastore_uuid, spec.moved_disks) == ("", "", ())


def test_specification_names_what_the_vm_is_afterwards_where_files_move() -> None:
    spec = build(Names(7, "task-1", "op"), _plan(_BOTH, _CONFIG))
    assert spec.destination_vm == _BOTH.destination_vm
    assert (spec.destination_home, spec.destination_home_datastore_uuid) == ("[x] web01/web01.vmx", "dx")
    assert (spec.moved_disks, spec.powered_off, spec.vm_home) == ((2000,), False, "[s] a/a.vmx")


def test_terms_hold_what_the_end_and_the_account_need_after_a_restart() -> None:
    plan = _plan(_BOTH, _CONFIG)
    terms = charge.terms_of(plan)
    assert (terms.home, terms.config, terms.policies) == (
        "[x] web01/web01.vmx",
        _BOTH.destination_vm,
        VmPolicies("vm-1", "gold"),
    )
    assert (dict(terms.copied), dict(terms.touched)) == ({"ds": "s", "dx": "x"}, {"dt": "t"})
    entry = MigrationEntry("task-1", 7, "vm-1", "host-1", "host-2", live=True, files=True, terms=terms)
    kept = TABLES[MigrationEntry].from_row(TABLES[MigrationEntry].to_row(entry))
    assert kept == entry
    assert charge.claim_of_entry("task-1", kept, plan.source, plan.destination) == charge.claim_of(
        "task-1", plan
    )


@pytest.mark.parametrize(
    ("live", "files", "same_host", "way", "begun"),
    [
        (True, False, False, Way.BETWEEN_HOSTS, "VmBeingHotMigratedEvent"),
        (True, True, False, Way.BETWEEN_HOSTS, "VmBeingHotMigratedEvent"),
        (False, True, False, Way.BETWEEN_HOSTS, "VmBeingRelocatedEvent"),
        (False, False, False, Way.REGISTRATION, "VmBeingMigratedEvent"),
        (True, True, True, Way.WITHIN_HOST, "VmBeingRelocatedEvent"),
        (False, True, True, Way.WITHIN_HOST, "VmBeingRelocatedEvent"),
    ],
)
def test_way_follows_from_what_changes(
    live: bool, files: bool, same_host: bool, way: Way, begun: str
) -> None:
    destination = "host-1" if same_host else "host-2"
    entry = MigrationEntry("task-1", 7, "vm-1", "host-1", destination, live=live, files=files)
    assert way_of(entry) is way
    assert events_of(entry).begun == begun


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (None, _U),
        (_NEVER, _F),
        (_answer(Phase.DISK_COPY), _R),
        (_answer(Phase.SUCCEEDED), _S),
        (_answer(Phase.SUCCEEDED, is_open=False), _S),
        (_answer(Phase.FAILED), _F),
        (_answer(Phase.DISK_COPY, is_open=False), _F),
    ],
)
def test_verdict_within_a_host_is_that_hosts_word(answer: HostAnswer | None, verdict: Verdict) -> None:
    assert decide_within_host(answer) is verdict


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1, max_size=6),
    st.integers(0, 10**9),
    st.booleans(),
)
def test_progress_of_disks_leaves_the_memory_its_share(
    disks: list[tuple[int, int]], ram_bytes: int, memory: bool
) -> None:
    begun = tuple(DiskCopy(2000, data, 0) for data, _done in disks)
    halfway = tuple(DiskCopy(2000, data, min(data, done)) for data, done in disks)
    whole = tuple(DiskCopy(2000, data, data) for data, _done in disks)
    figures = [
        percent(MigrationProgress(Phase.DISK_COPY, ram_bytes=ram_bytes, disks=each), memory)
        for each in (begun, halfway, whole)
    ]
    assert figures[0] == 5
    assert figures == sorted(figures)
    if memory:
        first_page = percent(MigrationProgress(Phase.PRE_COPY, 0, 100, 0, ram_bytes=ram_bytes, disks=whole))
        assert figures[-1] <= first_page <= 70
    else:
        assert figures[-1] <= 85


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
