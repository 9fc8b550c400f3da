"""Placement: who is left out and why, and who wins."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpxd.compatibility.finding import HostFacts
from vpxd.inventory.values import (
    HostCapability,
    HostConnection,
    HostDatastore,
    HostInfo,
    HostUsage,
    VmConfig,
)
from vpxd.placement.choose import Candidate, choose
from vpxd.placement.filters import reasons_against
from vpxd.placement.score import score

GIB = 1024**3
VM = VmConfig("u", "web01", 2, 2 * GIB, "pc-q35-7.2", "qemu64")
_INFO = HostInfo(
    "h",
    "esx01",
    memory_bytes=8 * GIB,
    vcpu_capacity=16,
    capability=HostCapability("7.2", ("pc-q35-7.2",), ("qemu64",)),
    datastores=(HostDatastore("shared", "ds"),),
)
HOST = HostFacts("host-1", "esx01", HostConnection.CONNECTED, _INFO, HostUsage())


def _named(name: str, reserved_gib: int) -> HostFacts:
    return replace(HOST, id=name, name=name, usage=HostUsage(memory_reserved_bytes=reserved_gib * GIB))


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (replace(HOST, connection=HostConnection.NOT_RESPONDING), "notResponding"),
        (replace(HOST, info=replace(_INFO, datastores=())), "doesn't see the datastore"),
        (
            replace(HOST, info=replace(_INFO, datastores=(HostDatastore("shared", "ds", accessible=False),))),
            "access",
        ),
        (replace(HOST, info=replace(_INFO, memory_bytes=GIB)), "1024 MiB"),
        (replace(HOST, info=replace(_INFO, vcpu_capacity=1)), "1 vCPUs"),
        (replace(HOST, info=replace(_INFO, capability=HostCapability())), "machine type"),
    ],
)
def test_host_that_can_not_take_it_says_why(host: HostFacts, words: str) -> None:
    assert any(words in reason for reason in reasons_against(VM, "shared", host))


def test_fitting_host_has_no_reasons_by_name_or_uuid_of_the_datastore() -> None:
    assert reasons_against(VM, "shared", HOST) == ()
    assert reasons_against(VM, "ds", HOST) == ()


def test_emptiest_host_wins_and_a_tie_goes_to_the_first_name() -> None:
    hosts = [_named("esx03", 1), _named("esx02", 1), _named("esx01", 4)]
    choice = choose(VM, [Candidate(host, ()) for host in hosts])
    assert choice.host is not None
    assert choice.host.name == "esx02"


def test_nobody_fits_tells_every_hosts_reasons() -> None:
    choice = choose(VM, [Candidate(_named("esx01", 0), ("a", "b")), Candidate(_named("esx02", 0), ("c",))])
    assert choice.host is None
    assert choice.reasons == ("esx01: a; b", "esx02: c")
    assert choose(VM, []).reasons == ("the cluster has no other host",)


@given(st.integers(0, 64), st.integers(0, 64))
def test_score_stays_between_nothing_and_all_and_falls_with_load(reserved: int, more: int) -> None:
    light, heavy = score(VM, _named("a", reserved)).total, score(VM, _named("a", reserved + more)).total
    assert 0.0 <= heavy <= light <= 1.0
