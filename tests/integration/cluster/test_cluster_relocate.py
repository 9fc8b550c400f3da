"""Moves of VMs with their disks that can't be, or that others get in the way of; and checks that must say so before.

Guests are real (tests/framework/storage_rig.py), as are all daemons. What dies in a move: test_cluster_storage.py.
"""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from demo.processes import send
from proto.host.v1 import operations_pb2
from proto.vim.v1 import vm_config_pb2
from proto.vpxd.v1 import service_pb2, storage_pb2
from runtime import faults
from runtime.faults import VimFault
from runtime.rpc.faults import fault_from_proto
from tests.framework.cluster_rig import MIB, failure, refusal, removed_afterwards, until
from tests.framework.storage_rig import LAB, NETWORK, DiskVm, Spec, StorageRig, storage_rig

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.qemu,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="there is no QEMU on this machine"),
]
TO_ESX02 = Spec(host="esx02", datastore="local")
TO_SHARED = Spec(datastore="shared")
WITHIN = Spec(host="esx01", datastore="shared")
EAGER = vm_config_pb2.DISK_FORMAT_THICK_EAGER_ZEROED


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[StorageRig]:
    async with storage_rig(tmp_path_factory.mktemp("c")) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def web(rig: StorageRig) -> AsyncIterator[DiskVm]:
    """A running VM on esx01's local datastore; gone after the test."""
    async with removed_afterwards(rig, "web01"):
        yield await rig.make("web01", "esx01")
    assert rig.cluster.vm_processes() == []


@pytest_asyncio.fixture(loop_scope="module")
async def small(rig: StorageRig) -> AsyncIterator[Path]:
    """A datastore of 48 MiB on both hosts, as a file system of its own."""
    location = rig.layout.directory / "small"
    location.mkdir()
    with mounted(location):
        hosts = rig.layout.host_names
        mount = storage_pb2.MountDatastoreRequest(name="small", location=str(location), hosts=hosts)
        await rig.do(rig.client.storage.MountDatastore, mount)
        yield location
        unmount = storage_pb2.UnmountDatastoreRequest(datastore="small")
        await rig.do(rig.client.storage.UnmountDatastore, unmount)
    location.rmdir()


@contextmanager
def mounted(location: Path) -> Iterator[None]:
    command = ["mount", "-t", "tmpfs", "-o", "size=48m", "none", str(location)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a file system can't be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(location)], check=True)


@contextmanager
def filled(location: Path) -> Iterator[None]:
    """Not a byte is free while the body runs."""
    filler = location / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(os.urandom(MIB))
        except OSError:
            pass
    yield
    filler.unlink()


async def refused_by_task(rig: StorageRig, vm: str, spec: Spec) -> VimFault:
    """The fault with which a relocation is refused, at once or as its task's error."""
    with pytest.raises(VimFault) as caught:
        await rig.relocate(vm, spec)
    return caught.value


# -- a datastore that is full -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["esx01", "esx02"], ids=["within_the_host", "to_another_host"])
async def test_datastore_full_in_the_middle_of_the_copy_ends_the_move_and_not_the_guest(
    rig: StorageRig, web: DiskVm, small: Path, host: str
) -> None:
    (vmx,) = rig.vmx_on("esx01")
    spec = Spec(host=host if host != "esx01" else "", datastore="small")
    if host == "esx02":
        task = await rig.in_disk_copy("web01", spec)
        with filled(small):
            fault = failure(await rig.ended(task))
    else:
        send(vmx, signal.SIGSTOP)  # so that the copy begins when the datastore is full
        task = await rig.start_relocation("web01", spec)
        extent = rig.folder("", "small", "web01") / "web01-flat.vmdk"
        await until(extent.exists, "the new files are made")
        with filled(small):
            send(vmx, signal.SIGCONT)
            fault = failure(await rig.ended(task))
    assert isinstance(fault, faults.NoDiskSpace), fault
    await rig.until_nothing_runs("esx02")
    await rig.assert_is(web, "esx01", "local")
    await rig.relocate("web01", spec)
    await rig.assert_is(web, host, "small")
    await rig.relocate("web01", Spec(datastore="local"))
    await rig.assert_is(web, host, "local")


# -- things that are there already ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["web01.vmdk", "web01-flat.vmdk", "web01.vmx", "web01.owner"])
@pytest.mark.parametrize("spec", [TO_ESX02, WITHIN], ids=["to_another_host", "within_the_host"])
async def test_file_in_the_way_is_named_and_stays_as_it_is(
    rig: StorageRig, web: DiskVm, name: str, spec: Spec
) -> None:
    folder = rig.folder(spec.host, spec.datastore, "web01")
    folder.mkdir()
    try:
        (folder / name).write_text("somebody's")
        fault = await refused_by_task(rig, "web01", spec)
        assert isinstance(fault, faults.FileAlreadyExists), fault
        assert fault.path.endswith(f"web01/{name}")
        assert [(path.name, path.read_text()) for path in folder.iterdir()] == [(name, "somebody's")]
    finally:
        shutil.rmtree(folder)
    await rig.until_nothing_runs("esx02")
    await rig.assert_is(web, "esx01", "local")


async def test_folder_in_the_way_keeps_what_is_in_it(rig: StorageRig, web: DiskVm) -> None:
    folder = rig.folder("esx02", "local", "web01")
    folder.mkdir()
    (folder / "notes.txt").write_text("somebody's")
    task = await rig.in_disk_copy("web01", TO_ESX02)
    await rig.cancel(task)
    assert isinstance(failure(await rig.ended(task)), faults.RequestCanceled)
    await until(
        lambda: [path.name for path in folder.iterdir()] == ["notes.txt"], "only the notes are left", 5
    )
    await rig.relocate("web01", TO_ESX02)
    await rig.relocate("web01", Spec(host="esx01", datastore="local"))
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    shutil.rmtree(folder)
    await rig.assert_is(web, "esx01", "local")


async def test_vm_of_the_same_name_at_the_destination_refuses_the_move(rig: StorageRig, web: DiskVm) -> None:
    mine = (await rig.vm("web01")).id
    config = vm_config_pb2.VmConfig(name="web01", vcpus=1, ram_bytes=16 * MIB)
    request = operations_pb2.CreateVmRequest(config=config, datastore="local")
    async with rig.vpxa("esx02") as stub:  # past vpxd, which would refuse the name
        await stub.CreateVm(request, timeout=10)
    await until(partial(named, rig, 2), "the inventory has both")
    fault = await refused_by_task(rig, mine, Spec(host="esx02", datastore="shared"))
    await rig.remove((await rig.vms("esx02"))["web01"].id)
    assert isinstance(fault, faults.DuplicateName), fault
    await rig.until_nothing_runs("esx02")
    await rig.assert_is(web, "esx01", "local")


async def named(rig: StorageRig, count: int) -> bool:
    """So many VMs in the inventory are called web01."""
    answer = await rig.client.call(rig.client.stub.ListVms, service_pb2.ListVmsRequest(name="web01"))
    return len(answer.vms) == count


# -- networks ---------------------------------------------------------------------------------------------------------


async def test_mapped_network_arrives_in_the_configuration_and_a_missing_one_refuses_the_move(
    rig: StorageRig,
) -> None:
    async with removed_afterwards(rig, "net01"):
        vm = await rig.make("net01", "esx01", "shared", nic=NETWORK)
        before = await rig.picture()
        missing = Spec(host="esx02")
        missing.networks.add(from_network=NETWORK, network="Nowhere")
        fault = await refused_by_task(rig, "net01", missing)
        assert isinstance(fault, faults.CannotAccessNetwork), fault
        assert (await rig.picture())["processes"] == before["processes"]
        mapped = Spec(host="esx02")
        mapped.networks.add(from_network=NETWORK, network=LAB)
        await rig.relocate("net01", mapped)
        await rig.assert_is(vm, "esx02", "shared")
        assert [nic.network for nic in (await rig.vm("net01")).config.nics] == [LAB]
        text = (rig.folder("", "shared", "net01") / "net01.vmx").read_text()
        assert f'ethernet0.networkName = "{LAB}"' in text
        await rig.kill("esx02-hostd")
        await rig.restart("esx02-hostd")
        await rig.power_off("net01")
        await rig.power_on("net01")
        assert [nic.network for nic in (await rig.vm("net01")).config.nics] == [LAB]


# -- others want the VM meanwhile -------------------------------------------------------------------------------------


async def test_vm_that_moves_takes_no_other_order(rig: StorageRig, web: DiskVm) -> None:
    task = await rig.in_disk_copy("web01", TO_ESX02)
    stub, vm = rig.client.stub, service_pb2.VmOperationRequest(vm="web01")
    config = (await rig.vm("web01")).config
    orders: list[Awaitable[object]] = [
        stub.PowerOffVm(vm),
        stub.ResetVm(vm),
        stub.UnregisterVm(vm),
        stub.DestroyVm(vm),
        stub.ReconfigureVm(service_pb2.ReconfigureVmRequest(vm="web01", config=config)),
        stub.RelocateVm(service_pb2.RelocateVmRequest(vm="web01", spec=TO_SHARED)),
        stub.MigrateVm(service_pb2.MigrateVmRequest(vm="web01", host="esx02")),
    ]
    for order in orders:
        fault = await refusal(order)
        assert isinstance(fault, faults.TaskInProgress), fault
    uuid = config.uuid
    for host, rpc in (("esx01", "PowerOffVm"), ("esx01", "UnregisterVm"), ("esx01", "DestroyVm")):
        async with rig.vpxa(host) as hosts:  # past vpxd, the host's own lock says the same
            call = getattr(hosts, rpc)(operations_pb2.VmRequest(vm_uuid=uuid), timeout=10)
            fault = await refusal(call)
            assert isinstance(fault, faults.TaskInProgress), (rpc, fault)
    assert (await rig.client.wait(task)).migration.disks[0].copied_bytes > 0
    await rig.assert_is(web, "esx02", "local")


# -- a host that is slow ----------------------------------------------------------------------------------------------


async def test_cancel_while_the_new_disk_is_being_zeroed_leaves_nothing(rig: StorageRig) -> None:
    """Making an eager-zeroed disk takes time; a cancel that comes meanwhile waits for it and undoes it."""
    config = vm_config_pb2.VmConfig(vcpus=1, ram_bytes=16 * MIB)
    config.disks.add(capacity_bytes=3072 * MIB, format=vm_config_pb2.DISK_FORMAT_THIN)
    async with removed_afterwards(rig, "big01"):
        await rig.create("big01", "esx01", "local", config)
        for spec in (TO_ESX02, TO_SHARED):
            eager = Spec()
            eager.CopyFrom(spec)
            eager.format = EAGER
            host = spec.host or "esx01"
            folder = rig.folder(host, spec.datastore, "big01")
            task = await rig.start_relocation("big01", eager)
            await until((folder / "big01.vmx").exists, "the new files are being made")
            await asyncio.sleep(0.05)
            await rig.cancel(task)
            fault = failure(await rig.ended(task))
            assert isinstance(fault, faults.RequestCanceled), fault
            await rig.until_settled("big01")
            await until(lambda folder=folder: not folder.exists(), "nothing is left", 5)
            await rig.until_nothing_runs(host)
            assert (await rig.vm("big01")).home == "[local] big01/big01.vmx"


async def test_vmx_that_does_not_answer_the_order_and_does_it_later_loses_nothing(
    rig: StorageRig, web: DiskVm
) -> None:
    (vmx,) = rig.vmx_on("esx01")
    send(vmx, signal.SIGSTOP)
    try:
        task = await rig.start_relocation("web01", TO_SHARED)
        extent = rig.folder("", "shared", "web01") / "web01-flat.vmdk"
        await until(extent.exists, "the new files are made")
        await rig.cancel(task)
        fault = failure(await rig.ended(task))
    finally:
        send(vmx, signal.SIGCONT)
    assert isinstance(fault, faults.RequestCanceled), fault
    await rig.until_settled("web01")
    await rig.assert_is(web, "esx01", "local")
    await rig.relocate("web01", TO_SHARED)
    await rig.assert_is(web, "esx01", "shared")


# -- a home that has moved --------------------------------------------------------------------------------------------


async def test_home_that_moved_is_the_vms_after_a_restart_of_hostd_and_a_power_cycle(
    rig: StorageRig, web: DiskVm
) -> None:
    await rig.relocate("web01", TO_SHARED)
    await rig.kill("esx01-hostd")
    await rig.restart("esx01-hostd")
    await rig.assert_is(web, "esx01", "shared")
    log = await rig.console_log("web01")
    assert (await console(rig, "web01"))[:64] == log.read_bytes()[:64]
    await rig.power_off("web01")
    await rig.assert_is(web, "esx01", "shared", on=False)
    await rig.power_on("web01")
    await rig.writes("web01")
    await rig.assert_is(web, "esx01", "shared")
    assert b"W00000001\n" in await console(rig, "web01"), (
        "the guest has begun anew, and is read where it writes"
    )


async def console(rig: StorageRig, vm: str) -> bytes:
    """All that a client reads of it."""
    read = b""
    async for piece in rig.client.stream(
        rig.client.stub.ReadConsole, service_pb2.ReadConsoleRequest(vm=vm), 10
    ):
        read += piece.data
    return read


# -- checks -----------------------------------------------------------------------------------------------------------


async def test_what_the_check_says_is_what_the_move_does(rig: StorageRig, web: DiskVm) -> None:
    key = (await rig.vm("web01")).config.disks[0].key
    disk_only = Spec()
    disk_only.disks.add(key=key, datastore="shared")
    both_places = Spec(host="esx02", datastore="shared")
    both_places.disks.add(key=key, datastore="local")
    unknown_disk = Spec(host="esx01", datastore="shared")
    unknown_disk.disks.add(key=2009, datastore="shared")
    moves = 0
    for spec in (
        Spec(host="esx02"),
        TO_ESX02,
        disk_only,
        Spec(host="esx02", datastore="shared"),
        both_places,
        Spec(host="esx01"),
        Spec(host="esx01", datastore="local", format=vm_config_pb2.DISK_FORMAT_THICK_LAZY_ZEROED),
        Spec(host="esx01", datastore="local"),
        Spec(host="esx01", datastore="shared", policy="none such"),
        Spec(host="esx01", datastore="shared", format=vm_config_pb2.DISK_FORMAT_QCOW2),
        unknown_disk,
        Spec(host="esx01", datastore="shared", format=EAGER),
        Spec(host="esx02"),
    ):
        said, refused = await check(rig, "web01", spec), await outcome(rig, "web01", spec)
        assert type(said) is type(refused), f"said {said!r}, but it was {refused!r}: {spec}"
        moves += refused is None
        await rig.writes("web01")
    assert moves >= 5


async def outcome(rig: StorageRig, vm: str, spec: Spec) -> VimFault | None:
    """The fault with which it is refused; None: it moved."""
    try:
        await rig.relocate(vm, spec)
    except VimFault as fault:
        return fault
    return None


async def check(rig: StorageRig, vm: str, spec: Spec) -> VimFault | None:
    """The first error that CheckRelocate has for the host in question."""
    request = service_pb2.RelocateVmRequest(vm=vm, spec=spec)
    try:
        answer = await rig.client.call(rig.client.stub.CheckRelocate, request)
    except VimFault as fault:
        return fault
    host = spec.host or (await rig.vm(vm)).host_name
    (found,) = (one for one in answer.hosts if one.host_name == host)
    errors = [one for one in found.findings if one.error]
    return fault_from_proto(errors[0].fault) if errors else None
