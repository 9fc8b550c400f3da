"""VMs from their making to their end, on fake hosts."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proto.vim.v1 import host_pb2, vm_config_pb2
from proto.vpxd.v1 import inventory_pb2, service_pb2
from runtime import faults
from tests.framework.vpxd_rig import VpxdRig, until, vpxd_rig


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[VpxdRig]:
    async with vpxd_rig(tmp_path, "esx01", "esx02") as running:
        yield running


def _op(vm: str) -> service_pb2.VmOperationRequest:
    return service_pb2.VmOperationRequest(vm=vm)


async def test_vm_through_its_whole_life(rig: VpxdRig) -> None:
    vm = await rig.create("web01", "esx01")
    assert vm.id.startswith("vm-")
    assert (vm.host_name, vm.home) == ("esx01", "[shared] web01/web01.vmx")
    assert (vm.config.machine_type, vm.config.cpu_model) == ("pc-q35-7.2", "qemu64")

    await rig.done(rig.stub.PowerOnVm(_op("web01")))
    vm = await rig.vm("web01")
    assert vm.power_state == host_pb2.POWER_STATE_POWERED_ON
    assert vm.execution_state == host_pb2.EXECUTION_STATE_RUNNING
    assert vm.locked_by == ""

    await rig.done(rig.stub.ResetVm(_op(vm.id)))
    await rig.done(rig.stub.PowerOffVm(_op(vm.id)))
    config = vm_config_pb2.VmConfig()
    config.CopyFrom(vm.config)
    config.name, config.ram_bytes = "web02", 2 * config.ram_bytes
    await rig.done(rig.stub.ReconfigureVm(service_pb2.ReconfigureVmRequest(vm=vm.id, config=config)))
    changed = await rig.vm("web02")
    assert (changed.id, changed.config.ram_bytes) == (vm.id, config.ram_bytes)
    stale = service_pb2.ReconfigureVmRequest(vm=vm.id, config=config)
    assert isinstance(await rig.fault(rig.stub.ReconfigureVm(stale)), faults.ConcurrentAccess)

    await rig.done(rig.stub.DestroyVm(_op(vm.id)))
    assert isinstance(
        await rig.fault(rig.stub.GetVm(service_pb2.GetVmRequest(vm=vm.id))), faults.ManagedObjectNotFound
    )
    assert await rig.event_types(vm.id) == [
        "VmCreatedEvent",
        "VmPoweredOnEvent",
        "VmResettingEvent",
        "VmPoweredOffEvent",
        "VmReconfiguredEvent",
        "VmRemovedEvent",
    ]


async def test_unregister_and_register_keeps_files_and_uuid(rig: VpxdRig) -> None:
    vm = await rig.create("web01", "esx01")
    again = service_pb2.RegisterVmRequest(home=vm.home, host="esx02")
    assert isinstance(await rig.fault(rig.stub.RegisterVm(again)), faults.DuplicateName)
    await rig.done(rig.stub.UnregisterVm(_op(vm.id)))
    task = await rig.done(rig.stub.RegisterVm(again))
    registered = await rig.vm(task.result)
    assert (registered.config.uuid, registered.host_name) == (vm.config.uuid, "esx02")
    assert registered.id != vm.id


async def test_create_without_a_host_takes_the_emptier_one(rig: VpxdRig) -> None:
    await rig.running("big", "esx01")
    await until(lambda: rig.host("esx01"), lambda host: host.usage.memory_reserved_bytes > 0)
    assert (await rig.create("small")).host_name == "esx02"


async def test_second_task_on_a_locked_vm_is_refused_naming_the_holder(rig: VpxdRig) -> None:
    vm = await rig.create("web01", "esx01")
    host = rig.fakes.hosts["esx01"]
    gate = host.hold.setdefault("PowerOnVm", asyncio.Event())
    first = await rig.stub.PowerOnVm(_op(vm.id))
    fault = await rig.fault(rig.stub.PowerOffVm(_op(vm.id)))
    assert isinstance(fault, faults.TaskInProgress)
    assert (fault.task, fault.operation) == (first.id, "VirtualMachine.powerOn")
    assert (await rig.vm(vm.id)).locked_by == first.id
    refused = await rig.fault(rig.stub.RemoveHost(service_pb2.RemoveHostRequest(host="esx01")))
    assert isinstance(refused, faults.TaskInProgress)
    assert isinstance(
        await rig.fault(rig.stub.CancelTask(service_pb2.GetTaskRequest(task=first.id))), faults.NotSupported
    )
    gate.set()
    await rig.end_of(first.id)
    await rig.done(rig.stub.PowerOffVm(_op(vm.id)))


async def test_power_on_of_a_running_vm_ends_with_the_hosts_fault(rig: VpxdRig) -> None:
    vm = await rig.running("web01", "esx01")
    with pytest.raises(faults.InvalidPowerState) as caught:
        await rig.done(rig.stub.PowerOnVm(_op(vm.id)))
    assert caught.value.origin == "vpxa@esx01"


async def test_console_is_relayed_and_a_bad_port_refused(rig: VpxdRig) -> None:
    vm = await rig.running("web01", "esx01")
    data = b"".join(
        [piece.data async for piece in rig.stub.ReadConsole(service_pb2.ReadConsoleRequest(vm=vm.id))]
    )
    assert data == b"hello from web01"
    bad = rig.stub.ReadConsole(service_pb2.ReadConsoleRequest(vm=vm.id, port="usb"))
    assert isinstance(await rig.fault(bad.read()), faults.InvalidArgument)


@pytest.mark.parametrize(
    ("config", "datastore", "fault"),
    [
        ({"name": "a/b"}, "shared", faults.InvalidVmConfig),
        ({"name": "vm-12"}, "shared", faults.InvalidVmConfig),
        ({"name": ""}, "shared", faults.InvalidVmConfig),
        ({"vcpus": 0}, "shared", faults.InvalidVmConfig),
        ({"ram_bytes": 4096}, "shared", faults.InvalidVmConfig),
        ({"uuid": "nonsense"}, "shared", faults.InvalidVmConfig),
        ({"name": "taken"}, "shared", faults.DuplicateName),
        ({}, "", faults.InvalidArgument),
        ({}, "nowhere", faults.ManagedObjectNotFound),
        ({}, "local", None),
        ({"ram_bytes": 64 * 1024**3}, "shared", faults.NoCompatibleHost),
        ({"machine_type": "pc-q35-99.0"}, "shared", faults.NoCompatibleHost),
    ],
)
async def test_create_with_bad_input_is_refused_at_once(
    rig: VpxdRig, config: dict[str, object], datastore: str, fault: type[faults.VimFault] | None
) -> None:
    await rig.create("taken", "esx01")
    message = vm_config_pb2.VmConfig(**{"name": "new", "vcpus": 1, "ram_bytes": 1024**3, **config})  # type: ignore[arg-type]
    request = service_pb2.CreateVmRequest(config=message, datastore=datastore)
    if fault is None:
        await rig.done(rig.stub.CreateVm(request))
        return
    assert isinstance(await rig.fault(rig.stub.CreateVm(request)), fault)
    assert [vm.name for vm in (await rig.stub.ListVms(service_pb2.ListVmsRequest())).vms] == ["taken"]


async def test_vm_that_appears_on_a_host_is_registered_and_one_that_vanishes_orphaned(rig: VpxdRig) -> None:
    host = rig.fakes.hosts["esx01"]
    state = host.put_vm("found", on=True)
    vm = await until(
        lambda: rig.stub.ListVms(service_pb2.ListVmsRequest(name="found")),
        lambda answer: len(answer.vms) == 1,
    )
    vm_id = vm.vms[0].id
    del host.vms[state.uuid]
    host.changed()
    orphan = await until(lambda: rig.vm(vm_id), lambda vm: vm.host == "")
    assert orphan.connection_state == inventory_pb2.VM_CONNECTION_STATE_ORPHANED
    assert isinstance(await rig.fault(rig.stub.PowerOnVm(_op(vm_id))), faults.InvalidState)
    await rig.done(rig.stub.UnregisterVm(_op(vm_id)))
    assert await rig.event_types(vm_id) == ["VmRegisteredEvent", "VmOrphanedEvent", "VmRemovedEvent"]


async def test_ambiguous_name_is_refused_with_the_ids(rig: VpxdRig) -> None:
    rig.fakes.hosts["esx01"].put_vm("twin")
    rig.fakes.hosts["esx02"].put_vm("twin")
    await until(
        lambda: rig.stub.ListVms(service_pb2.ListVmsRequest(name="twin")), lambda answer: len(answer.vms) == 2
    )
    fault = await rig.fault(rig.stub.GetVm(service_pb2.GetVmRequest(vm="twin")))
    assert isinstance(fault, faults.InvalidArgument)
    assert "vm-" in fault.message
