"""Compatibility: each subject by a table, and the whole by properties."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import faults
from vpxd.compatibility.check import findings, first_error
from vpxd.compatibility.finding import HostFacts, Move, VmFacts
from vpxd.inventory.values import (
    ExecutionState,
    HostCapability,
    HostConnection,
    HostDatastore,
    HostInfo,
    HostUsage,
    PowerState,
    VmConfig,
)

GIB = 1024**3
_CAPABILITY = HostCapability("7.2.22", ("pc-q35-7.2",), ("qemu64",), "tcg", 1, 2)
_INFO = HostInfo(
    "u1",
    "esx01",
    "127.0.1.1",
    "127.0.2.1",
    8 * GIB,
    2,
    16,
    _CAPABILITY,
    (HostDatastore("shared", "ds-uuid"),),
)
SOURCE = HostFacts("host-1", "esx01", HostConnection.CONNECTED, _INFO, HostUsage())
DESTINATION = replace(SOURCE, id="host-2", name="esx02", info=replace(_INFO, uuid="u2", name="esx02"))
VM = VmFacts(
    "vm-1",
    VmConfig("vm-uuid", "web01", 2, GIB, "pc-q35-7.2", "qemu64"),
    "[shared] web01/web01.vmx",
    "shared",
    "ds-uuid",
    PowerState.POWERED_ON,
    ExecutionState.RUNNING,
)
GOOD = Move(VM, SOURCE, DESTINATION)


def _to(**changes: Any) -> Move:
    """The good move with a changed destination's info."""
    return replace(GOOD, destination=replace(DESTINATION, info=replace(DESTINATION.info, **changes)))


def _capability(**changes: Any) -> Move:
    return _to(capability=replace(_CAPABILITY, **changes))


def _off(move: Move) -> Move:
    off = replace(move.vm, power_state=PowerState.POWERED_OFF, execution_state=ExecutionState.OFF)
    return replace(move, vm=off)


def _state(state: ExecutionState) -> Move:
    return replace(GOOD, vm=replace(VM, execution_state=state))


_SILENT = HostConnection.NOT_RESPONDING
_STORE = HostDatastore("shared", "ds-uuid")
# move, fault, error when powered on, finding when powered off: error (True), warning (False) or none (None)
_CASES = [
    (replace(GOOD, destination=replace(DESTINATION, connection=_SILENT)), faults.HostNotConnected, True),
    (replace(GOOD, source=replace(SOURCE, connection=_SILENT)), faults.HostNotConnected, True),
    (replace(GOOD, destination=SOURCE), faults.InvalidArgument, True),
    (_capability(machine_types=("pc-q35-10.0",)), faults.VirtualHardwareVersionNotSupported, False),
    (_capability(cpu_models=("max",)), faults.FeatureRequirementsNotMet, False),
    (_capability(accelerator="kvm"), faults.FeatureRequirementsNotMet, None),
    (_capability(stream_version_min=3, stream_version_max=4), faults.VMotionProtocolIncompatible, None),
    (_to(vmotion_address=""), faults.VMotionNotConfigured, None),
    (_to(memory_bytes=GIB - 1), faults.InsufficientMemoryResources, False),
    (_to(vcpu_capacity=1), faults.InsufficientCpuResources, None),
    (_to(datastores=()), faults.InaccessibleDatastore, True),
    (_to(datastores=(replace(_STORE, uuid="other"),)), faults.InaccessibleDatastore, True),
    (_to(datastores=(replace(_STORE, accessible=False),)), faults.InaccessibleDatastore, True),
    (_to(datastores=(replace(_STORE, name="nfs"),)), faults.InaccessibleDatastore, True),
    (replace(GOOD, vm=replace(VM, home_datastore_uuid="")), faults.InaccessibleDatastore, True),
]


def test_good_move_has_no_findings_on_or_off() -> None:
    assert findings(GOOD) == ()
    assert findings(_off(GOOD)) == ()


@pytest.mark.parametrize(("move", "fault", "when_off"), _CASES)
def test_obstacle_is_found_alone_with_a_remedy(
    move: Move, fault: type[faults.VimFault], when_off: bool | None
) -> None:
    found = findings(move)
    assert [(type(entry.fault), entry.error) for entry in found] == [(fault, True)]
    assert found[0].remedy
    assert first_error(found) is found[0].fault
    off = findings(_off(move))
    assert [entry.error for entry in off] == ([] if when_off is None else [when_off])


def test_reserved_memory_and_vcpus_count_for_a_running_vm() -> None:
    full = HostUsage(memory_reserved_bytes=8 * GIB - GIB + 1, vcpus_reserved=15)
    move = replace(GOOD, destination=replace(DESTINATION, usage=full))
    assert {type(entry.fault) for entry in findings(move)} == {
        faults.InsufficientMemoryResources,
        faults.InsufficientCpuResources,
    }
    assert findings(_off(move)) == ()


@pytest.mark.parametrize("state", list(ExecutionState))
def test_only_a_vm_that_runs_can_move_live(state: ExecutionState) -> None:
    movable = state in (ExecutionState.RUNNING, ExecutionState.UNKNOWN)
    assert (findings(_state(state)) == ()) == movable


_ONE_OBSTACLE_EACH: list[tuple[str, Callable[[Move], Move]]] = [
    ("connection", lambda move: replace(move, destination=replace(move.destination, connection=_SILENT))),
    ("machine", lambda move: _changed(move, machine_types=())),
    ("cpu", lambda move: _changed(move, cpu_models=())),
    ("memory", lambda move: _info(move, memory_bytes=1)),
    ("datastore", lambda move: _info(move, datastores=())),
    ("vmotion", lambda move: _info(move, vmotion_address="")),
]


def _info(move: Move, **changes: Any) -> Move:
    return replace(
        move, destination=replace(move.destination, info=replace(move.destination.info, **changes))
    )


def _changed(move: Move, **changes: Any) -> Move:
    return _info(move, capability=replace(move.destination.info.capability, **changes))


@given(st.sets(st.integers(0, len(_ONE_OBSTACLE_EACH) - 1)))
def test_every_obstacle_is_found_whatever_the_others_are(chosen: set[int]) -> None:
    move = GOOD
    for index in chosen:
        move = _ONE_OBSTACLE_EACH[index][1](move)
    found = findings(move)
    assert len(found) == len(chosen)
    assert all(entry.error for entry in found)


def test_errors_come_before_warnings() -> None:
    move = _off(_info(_changed(GOOD, machine_types=()), datastores=()))
    assert [entry.error for entry in findings(move)] == [True, False]
