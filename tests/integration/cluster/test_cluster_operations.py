"""What is done with VMs beside moving them live: cold, placed, checked, registered, changed. And what daemons weigh."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from proto.host.v1 import operations_pb2
from proto.vim.v1 import host_pb2, vm_config_pb2
from proto.vmotion.v1 import spec_pb2
from proto.vpxd.v1 import service_pb2
from runtime import faults
from runtime.ondisk import owner_record
from runtime.rpc.faults import fault_from_proto
from tests.framework.cluster_rig import MIB, ClusterRig, failure, refusal, removed_afterwards, small_vm

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="package")]
RSS_LIMIT_MIB = 90.0


def vm(name: str) -> service_pb2.VmOperationRequest:
    return service_pb2.VmOperationRequest(vm=name)


async def test_every_daemon_is_idle_below_90_mib(rig: ClusterRig) -> None:
    async with removed_afterwards(rig, "idle01"):
        await rig.power_on_new("idle01", "esx01")
        weights = {**rig.cluster.rss_mib(), **rig.cluster.vmx_rss_mib()}
        assert set(weights) == {"vmx", *(daemon.name for daemon in rig.layout.daemons())}
        assert all(0 < weight < RSS_LIMIT_MIB for weight in weights.values()), weights
        print("resident MiB:", weights)


async def test_powered_off_vm_migrates_cold_and_starts_at_its_new_host(rig: ClusterRig) -> None:
    async with removed_afterwards(rig, "cold01"):
        made = await rig.create("cold01", "esx01")
        info = await rig.migrate("cold01", "esx02")
        assert not info.HasField("migration") or not info.migration.iterations
        moved = await rig.vm("cold01")
        assert (moved.id, moved.host_name) == (made, "esx02")
        assert moved.power_state == host_pb2.POWER_STATE_POWERED_OFF
        assert [one.name for one in (await rig.host_itself("esx01")).vms] == []
        assert [one.name for one in (await rig.host_itself("esx02")).vms] == ["cold01"]
        record = owner_record.read(owner_record.owner_path(rig.home("cold01"), "cold01"))
        assert record.owner_host_uuid == (await rig.host("esx02")).info.uuid
        refused = await refusal(
            rig.client.stub.MigrateVm(service_pb2.MigrateVmRequest(vm="cold01", host="esx02"))
        )
        assert isinstance(refused, faults.InvalidArgument)
        await rig.power_on("cold01")
        await rig.assert_alive("cold01", "esx02")
        await rig.migrate("cold01", "esx03")
        await rig.assert_alive("cold01", "esx03")


async def test_cold_migration_of_vm_on_local_datastore_is_refused_and_it_stays(rig: ClusterRig) -> None:
    async with removed_afterwards(rig, "loc01"):
        await rig.create("loc01", "esx01", datastore="local")
        fault = failure(await rig.ended(await rig.start_migration("loc01", "esx02")))
        assert isinstance(fault, faults.InaccessibleDatastore)
        assert (await rig.vm("loc01")).host_name == "esx01"
        await rig.power_on("loc01")


@asynccontextmanager
async def full(rig: ClusterRig, host: str) -> AsyncIterator[None]:
    """A host that has 32 MiB left."""
    name = f"full-{host}"
    async with removed_afterwards(rig, name):
        await rig.power_on_new(name, host, config=small_vm(ram_mib=480))
        yield


async def test_placement_and_check_leave_out_the_host_that_is_full_and_say_why(rig: ClusterRig) -> None:
    async with full(rig, "esx02"), removed_afterwards(rig, "plc01"):
        await rig.power_on_new("plc01", "esx01")
        check = service_pb2.CheckMigrateRequest(vm="plc01")
        answer = await rig.client.call(rig.client.stub.CheckMigrate, check)
        found = {entry.host_name: entry.findings for entry in answer.hosts}
        assert set(found) == {"esx02", "esx03"}
        assert list(found["esx03"]) == []
        (finding,) = found["esx02"]
        assert finding.error
        assert finding.remedy
        fault = fault_from_proto(finding.fault)
        assert isinstance(fault, faults.InsufficientMemoryResources)
        assert (fault.requested_bytes, fault.unreserved_bytes) == (64 * MIB, 32 * MIB)
        info = await rig.migrate("plc01")
        assert info.migration.memory_verified
        await rig.assert_alive("plc01", "esx03")
        async with full(rig, "esx01"):
            fault = failure(await rig.ended(await rig.start_migration("plc01")))
            assert isinstance(fault, faults.NoCompatibleHost)
            assert "esx01" in fault.reasons
            assert "esx02" in fault.reasons
        await rig.assert_alive("plc01", "esx03")


async def test_check_tells_all_findings_of_every_host_and_changes_nothing(rig: ClusterRig) -> None:
    async with full(rig, "esx02"), removed_afterwards(rig, "chk01"):
        await rig.power_on_new("chk01", "esx01", datastore="local")
        before = await rig.picture()
        check = service_pb2.CheckMigrateRequest(vm="chk01")
        answer = await rig.client.call(rig.client.stub.CheckMigrate, check)
        found = {
            entry.host_name: {type(fault_from_proto(one.fault)) for one in entry.findings if one.error}
            for entry in answer.hosts
        }
        assert found == {
            "esx02": {faults.InsufficientMemoryResources, faults.InaccessibleDatastore},
            "esx03": {faults.InaccessibleDatastore},
        }
        named = service_pb2.CheckMigrateRequest(vm="chk01", host="esx01")
        answer = await rig.client.call(rig.client.stub.CheckMigrate, named)
        assert [entry.host_name for entry in answer.hosts] == ["esx01"]
        assert answer.hosts[0].findings, "it is there already"
        tasks = await rig.client.call(rig.client.stub.ListTasks, service_pb2.ListTasksRequest(entity="chk01"))
        assert not [task for task in tasks.tasks if task.operation == "VirtualMachine.migrate"]
        assert await rig.picture() == before


async def test_unregistered_vm_keeps_its_files_and_is_registered_at_another_host(rig: ClusterRig) -> None:
    stub, home = rig.client.stub, "[shared] reg01/reg01.vmx"
    async with removed_afterwards(rig, "reg01"):
        await rig.power_on_new("reg01", "esx01")
        task = await rig.client.call(stub.UnregisterVm, vm("reg01"))
        assert isinstance(failure(await rig.ended(task.id)), faults.InvalidPowerState)
        # Another host can't have it while it runs.
        async with rig.vpxa("esx02") as vpxa:
            request = operations_pb2.RegisterVmRequest(home=home, task="task-other")
            refused = await refusal(vpxa.RegisterVm(request, timeout=5))
            assert isinstance(refused, faults.FileLocked)
            assert refused.origin == "hostd@esx02"
        again = service_pb2.RegisterVmRequest(home=home, host="esx02")
        assert isinstance(await refusal(stub.RegisterVm(again)), faults.DuplicateName)
        await rig.assert_alive("reg01", "esx01")
        await rig.power_off("reg01")
        await rig.do(stub.UnregisterVm, vm("reg01"))
        assert "reg01" not in await rig.vms()
        assert isinstance(
            await refusal(stub.GetVm(service_pb2.GetVmRequest(vm="reg01"))), faults.ManagedObjectNotFound
        )
        assert (rig.home("reg01") / "reg01.vmx").is_file()
        await rig.do(stub.RegisterVm, again)
        await rig.power_on("reg01")
        assert (await rig.vm("reg01")).host_name == "esx02"


@pytest.mark.parametrize(
    ("home", "fault"),
    [
        ("reg02.vmx", faults.InvalidDatastorePath),
        ("[shared] ../../etc/passwd", faults.InvalidDatastorePath),
        ("[nfs9] a/a.vmx", faults.InaccessibleDatastore),
        ("[shared] none/none.vmx", faults.FileNotFound),
        ("[shared] images/vmlinuz", faults.InvalidDatastorePath),
        ("[shared] rubbish/rubbish.vmx", faults.InvalidVmConfig),
    ],
    ids=["no_datastore", "leads_out", "unknown_datastore", "no_file", "no_vmx_file", "rubbish"],
)
async def test_register_what_is_no_vm_is_refused(
    rig: ClusterRig, home: str, fault: type[faults.VimFault]
) -> None:
    rig.home("rubbish").mkdir(exist_ok=True)
    (rig.home("rubbish") / "rubbish.vmx").write_bytes(b"\xff\x00 memsize = lots\n" * 100)
    before = await rig.picture()
    try:
        task = await rig.client.call(
            rig.client.stub.RegisterVm, service_pb2.RegisterVmRequest(home=home, host="esx01")
        )
        found = failure(await rig.ended(task.id))
    except faults.VimFault as refused:
        found = refused
    assert isinstance(found, fault), found
    assert await rig.picture() == before


async def test_reconfigure_changes_a_vm_that_is_off_once_for_each_version(rig: ClusterRig) -> None:
    stub = rig.client.stub
    async with removed_afterwards(rig, "cfg01"):
        await rig.create("cfg01", "esx01")
        old = (await rig.vm("cfg01")).config
        new = vm_config_pb2.VmConfig()
        new.CopyFrom(old)
        new.ram_bytes, new.vcpus, new.annotation = 128 * MIB, 2, "größer\n"
        request = service_pb2.ReconfigureVmRequest(vm="cfg01", config=new)
        await rig.do(stub.ReconfigureVm, request)
        changed = (await rig.vm("cfg01")).config
        assert (changed.ram_bytes, changed.vcpus, changed.annotation) == (128 * MIB, 2, "größer\n")
        assert changed.change_version == old.change_version + 1
        refused = await refusal(stub.ReconfigureVm(request))
        assert isinstance(refused, faults.ConcurrentAccess)
        for field, value in (("ram_bytes", 4097), ("vcpus", 0), ("machine_type", "toaster"), ("uuid", "x")):
            bad = vm_config_pb2.VmConfig()
            bad.CopyFrom(changed)
            setattr(bad, field, value)
            wrong = service_pb2.ReconfigureVmRequest(vm="cfg01", config=bad)
            try:
                task = await rig.client.call(stub.ReconfigureVm, wrong)
                found = failure(await rig.ended(task.id))
            except faults.VimFault as at_once:
                found = at_once
            assert isinstance(found, faults.InvalidVmConfig | faults.InvalidArgument), (field, found)
        await rig.power_on("cfg01")
        assert (await rig.host_itself("esx01")).usage.memory_reserved_bytes == 128 * MIB
        request.config.change_version = changed.change_version
        task = await rig.client.call(stub.ReconfigureVm, request)
        assert isinstance(failure(await rig.ended(task.id)), faults.InvalidPowerState)
        running = (await rig.vm("cfg01")).config
        assert running.guest_cpu.model == changed.cpu_model
        changed.guest_cpu.CopyFrom(running.guest_cpu)  # fixed at power-on, not by a reconfigure
        assert running == changed
        # What was changed moves with it.
        info = await rig.migrate("cfg01", "esx02")
        assert info.migration.ram_bytes == 128 * MIB
        assert (await rig.vm("cfg01")).config == changed
        await rig.assert_alive("cfg01", "esx02")


async def test_create_that_cannot_be_leaves_nothing(rig: ClusterRig) -> None:
    stub = rig.client.stub
    async with removed_afterwards(rig, "dup01"):
        await rig.create("dup01", "esx01")
        before = await rig.picture()
        too_large = small_vm(ram_mib=1024)
        no_kernel = small_vm()
        no_kernel.boot.kernel = "[shared] images/none"
        cases = [
            ("big01", "", "shared", too_large, faults.NoCompatibleHost),
            ("dup01", "esx02", "shared", small_vm(), faults.DuplicateName),
            (
                "new01",
                "esx01",
                "nfs9",
                small_vm(),
                faults.InaccessibleDatastore | faults.ManagedObjectNotFound,
            ),
            ("new01", "esx01", "shared", no_kernel, faults.FileNotFound),
            ("a/b", "esx01", "shared", small_vm(), faults.InvalidVmConfig),
            ("new01", "esx09", "shared", small_vm(), faults.ManagedObjectNotFound),
        ]
        for name, host, datastore, config, kind in cases:
            config.name = name
            request = service_pb2.CreateVmRequest(config=config, datastore=datastore, host=host)
            try:
                found = failure(await rig.ended((await rig.client.call(stub.CreateVm, request)).id))
            except faults.VimFault as at_once:
                found = at_once
            assert isinstance(found, kind), (name, found)
            assert not rig.home("new01").exists()
        assert await rig.picture() == before


async def test_canceled_migration_frees_the_destination_within_5_s_and_tells_it(rig: ClusterRig) -> None:
    async with removed_afterwards(rig, "can01"):
        await rig.power_on_new("can01", "esx01")
        task = await rig.start_slow("can01", "esx02", mib_s=1)
        assert (await rig.task(task)).cancelable
        await rig.cancel(task)
        fault = failure(await rig.ended(task))
        assert isinstance(fault, faults.RequestCanceled)
        await rig.until_reserved("esx02", 0, within_s=5)
        await rig.assert_alive("can01", "esx01")
        events = await rig.client.call(
            rig.client.stub.ListEvents, service_pb2.ListEventsRequest(entity="can01")
        )
        assert events.events[-1].type == "VmFailedMigrateEvent"
        assert events.events[-1].task == task
        # An ended task stays as it is.
        await rig.cancel(task)
        assert isinstance(failure(await rig.task(task)), faults.RequestCanceled)
        info = await rig.migrate("can01", "esx02", spec_pb2.MigrationOptions(tracer="hash_scan"))
        assert info.migration.tracer == "hash_scan"
        late = await rig.client.call(rig.client.stub.CancelTask, service_pb2.GetTaskRequest(task=info.id))
        assert late == info
        await rig.assert_alive("can01", "esx02")


async def test_every_daemon_is_still_below_90_mib_after_all_that(rig: ClusterRig) -> None:
    weights = rig.cluster.rss_mib()
    assert all(0 < weight < RSS_LIMIT_MIB for weight in weights.values()), weights
    print("resident MiB:", weights)
