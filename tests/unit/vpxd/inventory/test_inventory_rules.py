"""Ids, names, locks, and what a host's report changes."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.faults import InvalidArgument, ManagedObjectNotFound, TaskInProgress
from vpxd.inventory.changes import Known, Plan, plan
from vpxd.inventory.ids import Kind, id_of, looks_like_id, number_of
from vpxd.inventory.live import SETTLE_S, HostLive, LiveState, datastore_of
from vpxd.inventory.names import find, require_address, require_host_name, require_name
from vpxd.inventory.records import Datastore, Host, Vm
from vpxd.inventory.values import (
    HostConnection,
    HostDatastore,
    HostInfo,
    HostReport,
    HostUsage,
    PowerState,
    VmConfig,
    VmState,
)
from vpxd.inventory.vm_lock import EntityLocks, Holder

_ON, _OFF = PowerState.POWERED_ON, PowerState.POWERED_OFF
_INFO = HostInfo("h1", "esx01", datastores=(HostDatastore("shared", "ds", 100, 50),))
HOST = Host("host-1", "esx01", "domain-c2", "127.0.1.1:8443", _INFO)
_STORE = Datastore("datastore-3", "shared", "ds", 100)


def _state(uuid: str = "u1", power: PowerState = _OFF, **fields: object) -> VmState:
    config = VmConfig(uuid, "web01", 1, 2**30)
    return replace(VmState(config, "[shared] web01/web01.vmx", power), **fields)  # type: ignore[arg-type]


def _vm(host: str = "host-1", power: PowerState = _OFF) -> Vm:
    state = _state(power=power)
    return Vm("vm-4", host, state.home, power, state.config)


def _plan(vm: Vm | None, reported: VmState | None, other: HostLive | None = None, held: bool = False) -> Plan:
    known = Known(
        host=HOST,
        vms={vm.id: vm} if vm is not None else {},
        datastores={_STORE.id: _STORE},
        live={"host-1": HostLive(HostConnection.CONNECTED), "host-2": other or HostLive()},
        untouchable=frozenset({"u1"}) if held else frozenset(),
    )
    return plan(known, _INFO, {reported.uuid: reported} if reported is not None else {})


def _other(state: VmState | None, *, connected: bool = True) -> HostLive:
    connection = HostConnection.CONNECTED if connected else HostConnection.NOT_RESPONDING
    return HostLive(connection, vms={state.uuid: state} if state is not None else {})


def test_report_without_news_plans_nothing() -> None:
    assert _plan(_vm(), _state()).empty
    assert _plan(_vm(), _state(cpu_percent=99.0, uptime_s=5.0, memory_used_bytes=7)).empty


def test_free_space_alone_is_not_worth_writing() -> None:
    info = replace(_INFO, datastores=(HostDatastore("shared", "ds", 100, 1),))
    known = Known(HOST, {}, {_STORE.id: _STORE}, {}, frozenset())
    assert plan(known, info, {}).empty


@pytest.mark.parametrize(
    ("vm", "reported", "other", "host", "events"),
    [
        (_vm(power=_OFF), _state(power=_ON), None, "host-1", ["VmPoweredOnEvent"]),
        (_vm(power=_ON), _state(), None, "host-1", ["VmPoweredOffEvent"]),
        (_vm(power=_ON), _state(failure="signal 9"), None, "host-1", ["VmGuestDiedEvent"]),
        (_vm(host=""), _state(), None, "host-1", ["VmFoundOnHostEvent"]),
        # Known on the other host: who runs it wins, then who still reports it.
        (
            _vm("host-2"),
            _state(power=_ON),
            _other(_state()),
            "host-1",
            ["VmFoundOnHostEvent", "VmPoweredOnEvent"],
        ),
        (_vm("host-2"), _state(), _other(None), "host-1", ["VmFoundOnHostEvent"]),
        (_vm("host-2"), _state(), _other(_state()), None, []),
        (_vm("host-2", _ON), _state(power=_ON), _other(_state(power=_ON)), None, []),
        (_vm("host-2"), _state(), _other(None, connected=False), None, []),
        (
            _vm("host-2", _ON),
            _state(power=_ON),
            _other(None, connected=False),
            "host-1",
            ["VmFoundOnHostEvent"],
        ),
        # A host that is still letting it go after a migration takes nothing over.
        (_vm("host-2", _ON), _state(power=_ON, lock_operation="emigrating"), _other(None), None, []),
        (_vm(), None, _other(None), "", ["VmOrphanedEvent"]),
        (_vm(), None, _other(_state()), "host-2", ["VmFoundOnHostEvent"]),
    ],
)
def test_reported_vm_goes_where_it_belongs(
    vm: Vm, reported: VmState | None, other: HostLive | None, host: str | None, events: list[str]
) -> None:
    planned = _plan(vm, reported, other)
    assert [changed.host for changed in planned.changed_vms] == ([] if host is None else [host])
    assert [event.type for event in planned.events] == events


def test_unknown_vm_is_registered_and_a_held_one_left_alone() -> None:
    planned = _plan(None, _state())
    assert [(vm.id, vm.host, vm.uuid) for vm in planned.new_vms] == [("", "host-1", "u1")]
    assert _plan(None, _state(), held=True).empty
    assert _plan(_vm(), None, held=True).empty
    assert _plan(_vm(power=_ON), _state(), held=True).empty


def test_what_a_task_learned_stands_against_an_older_report_for_a_while() -> None:
    live = LiveState()
    live.watch_begins("host-1", _INFO)
    now = datetime.now(UTC)
    live.heard("host-1", HostReport(None, HostUsage(), (_state(),)), now, 0.0)
    live.learned("host-1", _state(power=_ON), 10.0)
    live.heard("host-1", HostReport(None, HostUsage(), (_state(),)), now, 10.5)
    assert live.host("host-1").vms["u1"].power_state is _ON
    assert live.settling(10.5) == {"u1"}
    live.heard("host-1", HostReport(None, HostUsage(), (_state(),)), now, 10.0 + SETTLE_S)
    assert live.host("host-1").vms["u1"].power_state is _OFF
    live.forgotten("u1", 20.0)
    live.heard("host-1", HostReport(None, HostUsage(), (_state(),)), now, 20.1)
    assert "u1" not in live.host("host-1").vms


@given(st.sampled_from(Kind), st.integers(1, 10**17))
def test_ids_are_read_back_and_recognised(kind: Kind, number: int) -> None:
    text = id_of(kind, number)
    assert number_of(kind, text) == number
    assert looks_like_id(text)
    assert all(number_of(other, text) is None for other in Kind if other is not kind)


@pytest.mark.parametrize("name", ["web01", "Büro 7", "a" * 80, "vm", "my-vm-12", "[x]"])
def test_name_is_taken(name: str) -> None:
    assert require_name(name, "name") == name


@pytest.mark.parametrize(
    "name",
    ["", "a" * 81, "a/b", "a\\b", "a\nb", "\x00", " a", "a ", ".", "..", "vm-12", "host-3", "domain-c7"],
)
def test_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument):
        require_name(name, "name")


@pytest.mark.parametrize("name", ["esx_01", "-esx", "esx-", "a..b", "esx 01", "e" * 64])
def test_host_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument):
        require_host_name(name, "name")


@pytest.mark.parametrize("address", ["", "esx01", "esx01:", "esx01:0", "esx01:65536", "a b:1", "esx01:1/x"])
def test_address_is_refused(address: str) -> None:
    with pytest.raises(InvalidArgument):
        require_address(address, "address")


def test_find_takes_an_id_before_a_name_and_refuses_what_is_not_clear() -> None:
    one, two = _vm(), replace(_vm(), id="vm-5")
    vms = {one.id: one, two.id: two}
    assert find(Kind.VM, "vm-5", vms, "vm") is two
    with pytest.raises(InvalidArgument, match="vm-4, vm-5"):
        find(Kind.VM, "web01", vms, "vm")
    with pytest.raises(ManagedObjectNotFound):
        find(Kind.VM, "web02", vms, "vm")
    with pytest.raises(InvalidArgument):
        find(Kind.VM, "", vms, "vm")


def test_datastore_of_a_path() -> None:
    assert datastore_of("[shared] web01/web01.vmx") == "shared"
    assert datastore_of("web01.vmx") == ""


def test_lock_is_taken_whole_or_not_at_all_and_names_its_holder() -> None:
    locks = EntityLocks()
    first, second = Holder("task-1", "migrate"), Holder("task-2", "powerOff")
    locks.acquire(first, ("u1",), ("host-1",), "web01")
    with pytest.raises(TaskInProgress) as caught:
        locks.acquire(second, ("u2", "u1"), ("host-1",), "web01")
    assert (caught.value.task, caught.value.operation) == ("task-1", "migrate")
    assert locks.holder("u2") is None
    locks.acquire(second, ("u2",), ("host-1",), "web02")
    with pytest.raises(TaskInProgress):
        locks.acquire(Holder("task-3", "remove"), ("host-1",), (), "esx01")
    locks.release("task-1")
    locks.release("task-1")
    locks.release("task-2")
    locks.acquire(Holder("task-3", "remove"), ("host-1",), (), "esx01")
    with pytest.raises(TaskInProgress):
        locks.share(second, "host-1", "esx01")


async def test_schema_after_all_revisions_is_the_models(tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from sqlalchemy.engine import Connection

    from vpxd.inventory.database import Database
    from vpxd.inventory.model import Base
    from vpxd.inventory.schema import bring_to_newest

    url = f"sqlite+aiosqlite:///{tmp_path / 'db.sqlite'}"
    database = Database(url)
    assert await bring_to_newest(database.engine, url)
    assert not await bring_to_newest(database.engine, url)

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), Base.metadata))

    async with database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await database.close()


async def test_transaction_that_fails_leaves_nothing_and_gives_no_id_away(tmp_path: Path) -> None:
    from vpxd.events.event import EventDraft
    from vpxd.events.log import EventLog
    from vpxd.inventory.database import Database
    from vpxd.inventory.schema import bring_to_newest
    from vpxd.inventory.store import InventoryStore

    url = f"sqlite+aiosqlite:///{tmp_path / 'db.sqlite'}"
    database = Database(url)
    await bring_to_newest(database.engine, url)
    events = EventLog(database)
    await events.load()
    store = InventoryStore(database, events)

    async def broken() -> None:
        async with store.transaction() as transaction:
            transaction.put(replace(_STORE, id=await transaction.new_id(Kind.DATASTORE)))
            transaction.emit(EventDraft("X", "never"))
            raise ValueError("in between")

    with pytest.raises(ValueError, match="in between"):
        await broken()
    assert not store.inventory.datastores
    assert await events.newest(0, "", 10) == []

    async def add(number: int) -> str:
        async with store.transaction() as transaction:
            new = await transaction.new_id(Kind.DATASTORE)
            transaction.put(replace(_STORE, id=new, uuid=f"ds-{number}"))
            transaction.emit(EventDraft("X", str(number)))
            return new

    ids = await asyncio.gather(*(add(number) for number in range(10)))
    assert sorted(ids, key=lambda text: int(text.split("-")[1])) == [
        f"datastore-{number}" for number in range(1, 11)
    ]
    assert [event.id for event in await events.newest(0, "", 100)] == list(range(1, 11))
    again = InventoryStore(database, events)
    await again.load()
    assert again.inventory.datastores == store.inventory.datastores
    await database.close()
