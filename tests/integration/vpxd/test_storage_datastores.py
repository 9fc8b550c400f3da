"""Datastores through vpxd: which one a request means, mounting and unmounting as a whole, tags."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proto.vim.v1 import task_pb2
from proto.vpxd.v1 import inventory_pb2, service_pb2
from proto.vpxd.v1 import storage_pb2 as api
from runtime.faults import (
    DuplicateName,
    FileNotFound,
    HostNotConnected,
    InaccessibleDatastore,
    InvalidArgument,
    ManagedObjectNotFound,
    NoDiskSpace,
    ResourceInUse,
)
from tests.framework.vpxd_rig import VpxdRig, until, vpxd_rig


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[VpxdRig]:
    async with vpxd_rig(tmp_path, "esx01", "esx02") as running:
        yield running


async def datastores(rig: VpxdRig) -> list[inventory_pb2.Datastore]:
    answer = await rig.stub.ListDatastores(service_pb2.ListDatastoresRequest())
    return list(answer.datastores)


async def named(rig: VpxdRig, name: str) -> inventory_pb2.Datastore:
    return next(store for store in await datastores(rig) if store.name == name)


def mount(name: str, location: str, *hosts: str) -> api.MountDatastoreRequest:
    return api.MountDatastoreRequest(name=name, location=location, hosts=hosts)


async def test_mount_on_two_hosts_that_share_a_directory_makes_one_datastore(rig: VpxdRig) -> None:
    shared_uuid = rig.fakes.files.share("/mnt/nfs", "esx01", "esx02")

    task = await rig.done(rig.storage.MountDatastore(mount("nfs", "/mnt/nfs", "esx01", "esx02")))

    store = await named(rig, "nfs")
    assert (store.id, store.uuid, len(store.hosts)) == (task.result, shared_uuid, 2)
    assert "DatastoreDiscoveredEvent" in await rig.event_types(store.id)


async def test_mount_that_fails_on_the_second_host_is_undone_on_the_first(rig: VpxdRig) -> None:
    rig.fakes.files.share("/mnt/nfs", "esx01")

    with pytest.raises(FileNotFound):
        await rig.done(rig.storage.MountDatastore(mount("nfs", "/mnt/nfs", "esx01", "esx02")))

    assert [store.name for store in rig.fakes.hosts["esx01"].info.datastores] == ["shared", "local"]
    await until(lambda: datastores(rig), lambda found: all(not s.hosts for s in found if s.name == "nfs"))


async def test_mount_of_directories_that_differ_is_refused_and_undone(rig: VpxdRig) -> None:
    rig.fakes.files.share("/srv/vms", "esx01")
    rig.fakes.files.share("/srv/vms", "esx02")

    with pytest.raises(InvalidArgument, match="different directories"):
        await rig.done(rig.storage.MountDatastore(mount("vms", "/srv/vms", "esx01", "esx02")))

    for host in rig.fakes.hosts.values():
        assert "vms" not in [store.name for store in host.info.datastores]


async def test_mount_canceled_between_two_hosts_leaves_none_mounted(rig: VpxdRig) -> None:
    rig.fakes.files.share("/mnt/nfs", "esx01", "esx02")
    first = rig.fakes.hosts["esx01"]
    first.hold["MountDatastore"] = asyncio.Event()
    task = await rig.storage.MountDatastore(mount("nfs", "/mnt/nfs", "esx01", "esx02"))
    async with asyncio.timeout(5):
        while "MountDatastore" not in first.calls:
            await asyncio.sleep(0.01)
    await rig.stub.CancelTask(service_pb2.GetTaskRequest(task=task.id))
    first.hold.pop("MountDatastore").set()

    ended = await rig.end_of(task.id)

    assert ended.state == task_pb2.TASK_STATE_ERROR
    assert "canceled" in ended.error.message
    assert [store.name for store in first.info.datastores] == ["shared", "local"]
    assert "MountDatastore" not in rig.fakes.hosts["esx02"].calls


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (mount("nfs", "/mnt/nfs"), InvalidArgument),
        (mount("nfs", "mnt/nfs", "esx01"), InvalidArgument),
        (mount("a/b", "/mnt/nfs", "esx01"), InvalidArgument),
        (mount("local", "/mnt/nfs", "esx01"), DuplicateName),
        (mount("nfs", "/mnt/nfs", "esx09"), ManagedObjectNotFound),
    ],
)
async def test_mount_that_cannot_be_is_refused_at_once(
    rig: VpxdRig, request_: api.MountDatastoreRequest, kind: type[Exception]
) -> None:
    assert isinstance(await rig.fault(rig.storage.MountDatastore(request_)), kind)


async def test_unmount_forgets_the_datastore_when_no_host_is_left(rig: VpxdRig) -> None:
    rig.fakes.files.share("/mnt/nfs", "esx01", "esx02")
    await rig.done(rig.storage.MountDatastore(mount("nfs", "/mnt/nfs", "esx01", "esx02")))

    await rig.done(
        rig.storage.UnmountDatastore(api.UnmountDatastoreRequest(datastore="nfs", hosts=["esx02"]))
    )
    assert len((await named(rig, "nfs")).hosts) == 1
    await rig.done(rig.storage.UnmountDatastore(api.UnmountDatastoreRequest(datastore="nfs")))

    assert "nfs" not in [store.name for store in await datastores(rig)]


async def test_unmount_of_a_datastore_with_a_vm_is_refused(rig: VpxdRig) -> None:
    await rig.create("web01", "esx01")

    fault = await rig.fault(rig.storage.UnmountDatastore(api.UnmountDatastoreRequest(datastore="shared")))

    assert isinstance(fault, ResourceInUse)
    assert "web01" in fault.message
    assert all("UnmountDatastore" not in host.calls for host in rig.fakes.hosts.values())


async def test_unmount_that_fails_on_the_second_host_mounts_the_first_again(rig: VpxdRig) -> None:
    store_uuid = rig.fakes.files.share("/mnt/nfs", "esx01", "esx02")
    await rig.done(rig.storage.MountDatastore(mount("nfs", "/mnt/nfs", "esx01", "esx02")))
    rig.fakes.hosts["esx02"].refuse["UnmountDatastore"] = NoDiskSpace("no")

    with pytest.raises(NoDiskSpace):
        await rig.done(rig.storage.UnmountDatastore(api.UnmountDatastoreRequest(datastore="nfs")))

    assert [s.uuid for s in rig.fakes.hosts["esx01"].info.datastores if s.name == "nfs"] == [store_uuid]


async def test_name_of_two_local_datastores_is_refused_and_names_both(rig: VpxdRig) -> None:
    fault = await rig.fault(rig.storage.BrowseFolder(api.DatastoreFileRequest(path="[local]")))

    assert isinstance(fault, InvalidArgument)
    for store in await datastores(rig):
        assert (store.id in fault.message) == (store.name == "local")
    assert "esx01" in fault.message
    assert "esx02" in fault.message


async def test_host_or_id_decides_between_datastores_of_one_name(rig: VpxdRig) -> None:
    host_id = (await rig.host("esx02")).id
    local = next(s for s in await datastores(rig) if s.name == "local" and list(s.hosts) == [host_id])
    rig.fakes.files.store(local.uuid).files["a.txt"] = b"here"

    by_host = await rig.storage.BrowseFolder(api.DatastoreFileRequest(path="[local]", host="esx02"))
    by_id = await rig.storage.BrowseFolder(api.DatastoreFileRequest(path=f"[{local.id}]"))
    other = await rig.storage.BrowseFolder(api.DatastoreFileRequest(path="[local]", host="esx01"))

    assert [entry.name for entry in by_host.files] == [entry.name for entry in by_id.files] == ["a.txt"]
    assert not other.files


async def test_silent_host_of_a_local_datastore_is_named(rig: VpxdRig) -> None:
    host_id = (await rig.host("esx02")).id
    local = next(s for s in await datastores(rig) if s.name == "local" and list(s.hosts) == [host_id])
    await rig.fakes.hosts["esx02"].stop()
    await until(lambda: rig.host("esx02"), lambda host: host.connection_state != 1)

    fault = await rig.fault(rig.storage.BrowseFolder(api.DatastoreFileRequest(path=f"[{local.id}]")))

    assert isinstance(fault, HostNotConnected)
    assert "esx02" in fault.message


async def test_unknown_datastores_are_not_found(rig: VpxdRig) -> None:
    missing = await rig.fault(rig.storage.BrowseFolder(api.DatastoreFileRequest(path="[nope] x")))
    elsewhere = await rig.fault(
        rig.storage.BrowseFolder(api.DatastoreFileRequest(path="[nope] x", host="esx01"))
    )

    assert isinstance(missing, ManagedObjectNotFound)
    assert isinstance(elsewhere, InaccessibleDatastore)


async def test_tags_replace_those_before_and_outlive_a_restart(rig: VpxdRig) -> None:
    await rig.storage.TagDatastore(api.TagDatastoreRequest(datastore="shared", tags=["old"]))
    answer = await rig.storage.TagDatastore(
        api.TagDatastoreRequest(datastore="shared", tags=["tier:gold", "ssd", "ssd"])
    )

    await rig.restart()

    assert list(answer.tags) == ["ssd", "tier:gold"]
    assert list((await named(rig, "shared")).tags) == ["ssd", "tier:gold"]
    for tag in ("", "a b", "x" * 81, "a\x07"):
        request = api.TagDatastoreRequest(datastore="shared", tags=[tag])
        assert isinstance(await rig.fault(rig.storage.TagDatastore(request)), InvalidArgument)
