"""Moves of running VMs with their disks are interrupted: whatever dies or is canceled, the VM is at one place, whole.

Guests are real (tests/framework/storage_rig.py), as are all daemons. What is refused or odd: test_cluster_relocate.py.
"""

import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from demo.processes import send
from proto.vim.v1 import task_pb2
from runtime import faults
from tests.framework.cluster_rig import failure, removed_afterwards, until
from tests.framework.failpoint_pause import FailpointPause
from tests.framework.storage_rig import DiskVm, Spec, StorageRig, storage_rig

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.qemu,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="there is no QEMU on this machine"),
]
TO_ESX02 = Spec(host="esx02", datastore="local")
TO_SHARED = Spec(datastore="shared")


@pytest.fixture(scope="module")
def pause_socket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("p") / "s"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory, pause_socket: Path) -> AsyncIterator[StorageRig]:
    """Each vmx waits once where its disk copy begins, if a test listens on the socket."""
    point = ("VPX_FAILPOINTS", f"source.disk_copy=pause:{pause_socket}")
    async with storage_rig(tmp_path_factory.mktemp("c"), point) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def web(rig: StorageRig, request: pytest.FixtureRequest) -> AsyncIterator[DiskVm]:
    """A VM on esx01's local datastore, running unless the parameter says no; gone after the test."""
    async with removed_afterwards(rig, "web01"):
        yield await rig.make("web01", "esx01", on=getattr(request, "param", True))
    assert rig.cluster.vm_processes() == []


ON_AND_OFF = pytest.mark.parametrize(
    ("web", "on"), [(True, True), (False, False)], indirect=["web"], ids=["on", "off"]
)
OFF = pytest.mark.parametrize("web", [False], indirect=True, ids=["off"])


@pytest.mark.parametrize("daemon", ["vpxd", "esx01-hostd", "esx02-hostd"])
async def test_daemon_killed_in_the_disk_copy_between_hosts_comes_back_and_the_move_succeeds(
    rig: StorageRig, web: DiskVm, daemon: str
) -> None:
    task = await rig.in_disk_copy("web01", TO_ESX02)
    await rig.kill(daemon)
    await rig.restart(daemon)
    info = await rig.ended(task)
    assert info.state == task_pb2.TASK_STATE_SUCCESS, info.error
    await rig.until_nothing_runs("esx01")
    await rig.assert_is(web, "esx02", "local")
    await rig.relocate("web01", Spec(host="esx01", datastore="local"))
    await rig.assert_is(web, "esx01", "local")


async def test_sources_vmx_killed_in_the_disk_copy_leaves_the_vm_where_it_is(
    rig: StorageRig, web: DiskVm
) -> None:
    task = await rig.in_disk_copy("web01", TO_ESX02)
    (vmx,) = rig.vmx_on("esx01")
    send(vmx, signal.SIGKILL)
    fault = failure(await rig.ended(task))
    assert isinstance(fault, faults.MigrationFault | faults.GuestFault), fault
    await rig.until_nothing_runs("esx02")
    await rig.assert_is(web, "esx01", "local")
    await rig.power_off("web01")
    await rig.assert_is(web, "esx01", "local", on=False)
    await rig.power_on("web01")
    await rig.relocate("web01", TO_ESX02)
    await rig.assert_is(web, "esx02", "local")


async def test_destination_killed_whole_whose_files_are_gone_takes_the_next_move(
    rig: StorageRig, web: DiskVm
) -> None:
    """As where hostd ends after it has deleted the new files, and before it has written down that it has."""
    task = await rig.in_disk_copy("web01", TO_ESX02)
    await rig.kill("esx02-hostd")
    (vmx,) = rig.vmx_on("esx02")
    send(vmx, signal.SIGKILL)
    fault = failure(await rig.ended(task))
    assert isinstance(fault, faults.MigrationFault), fault
    await until(lambda: not rig.vmx_on("esx02"), "its vmx is gone")
    shutil.rmtree(rig.folder("esx02", "local", "web01"))
    await rig.restart("esx02-hostd")
    await rig.until_settled("web01")
    await rig.until_nothing_runs("esx02")
    await rig.assert_is(web, "esx01", "local")
    await rig.relocate("web01", TO_ESX02)
    await rig.assert_is(web, "esx02", "local")


async def test_hostd_killed_in_the_disk_copy_within_its_host_comes_back_and_the_move_succeeds(
    rig: StorageRig, web: DiskVm, pause_socket: Path
) -> None:
    async with FailpointPause(pause_socket) as pause:
        task = await rig.start_relocation("web01", TO_SHARED)
        await pause.reached()
        await rig.until_followed(task)
        await rig.kill("esx01-hostd")
        pause.release()
        await rig.restart("esx01-hostd")
    info = await rig.ended(task)
    assert info.state == task_pb2.TASK_STATE_SUCCESS, info.error
    await rig.assert_is(web, "esx01", "shared")
    # Once more killed, with a home that has moved: the VM is found, and is as usable as before.
    await rig.kill("esx01-hostd")
    await rig.writes("web01")
    await rig.restart("esx01-hostd")
    await rig.assert_is(web, "esx01", "shared")
    pause_socket.unlink(missing_ok=True)
    await rig.relocate("web01", Spec(datastore="local"))
    await rig.assert_is(web, "esx01", "local")


@pytest.mark.parametrize("released", [True, False], ids=["copied_meanwhile", "not_copied_yet"])
async def test_hostd_killed_before_it_could_answer_the_order_ends_in_one_place(
    rig: StorageRig, web: DiskVm, pause_socket: Path, released: bool
) -> None:
    async with FailpointPause(pause_socket) as pause:
        task = await rig.start_relocation("web01", TO_SHARED)
        await pause.reached()
        await rig.kill("esx01-hostd")
        if released:
            pause.release()
        info = await rig.ended(task)
        await rig.restart("esx01-hostd")
    assert isinstance(failure(info), faults.HostNotReachable), info
    await rig.until_settled("web01")
    datastore = "shared" if "[shared]" in (await rig.vm("web01")).home else "local"
    await rig.assert_is(web, "esx01", datastore)
    other = "local" if datastore == "shared" else "shared"
    await rig.relocate("web01", Spec(datastore=other))
    await rig.assert_is(web, "esx01", other)


async def test_vmx_killed_in_the_disk_copy_within_its_host_leaves_the_vm_where_it_is(
    rig: StorageRig, web: DiskVm, pause_socket: Path
) -> None:
    async with FailpointPause(pause_socket) as pause:
        task = await rig.start_relocation("web01", TO_SHARED)
        await pause.reached()
        (vmx,) = rig.vmx_on("esx01")
        send(vmx, signal.SIGKILL)
        fault = failure(await rig.ended(task))
    assert isinstance(fault, faults.GuestFault), fault
    await rig.assert_is(web, "esx01", "local")
    await rig.power_off("web01")
    await rig.power_on("web01")
    await rig.relocate("web01", TO_SHARED)
    await rig.assert_is(web, "esx01", "shared")


@ON_AND_OFF
async def test_cancel_in_the_disk_copy_between_hosts_frees_the_destination(
    rig: StorageRig, web: DiskVm, on: bool
) -> None:
    task = await rig.in_disk_copy("web01", TO_ESX02)
    await rig.cancel(task)
    await rig.until_nothing_runs("esx02")
    fault = failure(await rig.ended(task))
    assert isinstance(fault, faults.RequestCanceled), fault
    await rig.assert_is(web, "esx01", "local", on=on)
    await rig.relocate("web01", TO_ESX02)
    await rig.assert_is(web, "esx02", "local", on=on)


@ON_AND_OFF
async def test_cancel_in_the_disk_copy_within_a_host_leaves_nothing_of_it(
    rig: StorageRig, web: DiskVm, on: bool, pause_socket: Path
) -> None:
    async with FailpointPause(pause_socket) as pause:
        task = await rig.start_relocation("web01", TO_SHARED)
        await pause.reached()
        await rig.cancel(task)
        fault = failure(await rig.ended(task))
    assert isinstance(fault, faults.RequestCanceled), fault
    await until(lambda: not rig.folder("", "shared", "web01").exists(), "the copies are gone", 5)
    await rig.assert_is(web, "esx01", "local", on=on)
    await rig.relocate("web01", TO_SHARED)
    await rig.assert_is(web, "esx01", "shared", on=on)


@OFF
@pytest.mark.parametrize("daemon", ["esx01-hostd", "esx02-hostd"])
async def test_hostd_killed_while_a_vm_that_is_off_moves_between_hosts_resumes_or_undoes_it(
    rig: StorageRig, web: DiskVm, daemon: str
) -> None:
    task = await rig.in_disk_copy("web01", TO_ESX02)
    await rig.kill(daemon)
    await rig.restart(daemon)
    info = await rig.ended(task)
    moved = info.state == task_pb2.TASK_STATE_SUCCESS
    for host in rig.layout.host_names:
        await rig.until_nothing_runs(host)
    here, there = ("esx02", "esx01") if moved else ("esx01", "esx02")
    await rig.assert_is(web, here, "local", on=False)
    await rig.relocate("web01", Spec(host=there, datastore="local"))
    await rig.assert_is(web, there, "local", on=False)
    await rig.power_on("web01")
    await rig.assert_is(web, there, "local")


@OFF
async def test_hostd_killed_while_a_vm_that_is_off_moves_within_its_host_resumes_or_undoes_it(
    rig: StorageRig, web: DiskVm, pause_socket: Path
) -> None:
    async with FailpointPause(pause_socket) as pause:
        task = await rig.start_relocation("web01", TO_SHARED)
        await pause.reached()
        await rig.kill("esx01-hostd")
        pause.release()
        await rig.restart("esx01-hostd")
        await rig.ended(task)
    await rig.until_settled("web01")  # where its answer was lost, the order is undone after the task's end
    moved = "[shared]" in (await rig.vm("web01")).home
    await rig.until_nothing_runs("esx01")
    await rig.assert_is(web, "esx01", "shared" if moved else "local", on=False)
    await rig.relocate("web01", Spec(datastore="local" if moved else "shared"))
    await rig.power_on("web01")
    await rig.assert_is(web, "esx01", "local" if moved else "shared")
