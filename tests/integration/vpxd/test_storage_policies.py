"""Storage policies through vpxd: kept, checked against datastores, given to VMs, gone with them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proto.vim.v1 import fault_pb2, task_pb2, vm_config_pb2
from proto.vpxd.v1 import service_pb2
from proto.vpxd.v1 import storage_pb2 as api
from runtime.faults import InvalidArgument, ManagedObjectNotFound, ResourceInUse
from tests.framework.vpxd_rig import VpxdRig, vpxd_rig


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[VpxdRig]:
    async with vpxd_rig(tmp_path, "esx01", "esx02") as running:
        yield running


async def gold(rig: VpxdRig) -> None:
    await rig.storage.SetPolicy(api.StoragePolicy(name="gold", required_tags=["tier:gold"], shared=True))


async def test_policy_outlives_a_restart_and_is_replaced_by_its_name(rig: VpxdRig) -> None:
    await gold(rig)
    full = api.StoragePolicy(
        name="gold",
        description="fast",
        required_tags=["b", "a"],
        forbidden_tags=["c"],
        formats=[vm_config_pb2.DISK_FORMAT_THIN],
        min_free_percent=12.5,
    )
    await rig.storage.SetPolicy(full)
    await rig.restart()

    listed = (await rig.storage.ListPolicies(api.ListPoliciesRequest())).policies

    full.required_tags[:] = ["a", "b"]
    assert list(listed) == [full]


@pytest.mark.parametrize(
    "policy",
    [
        api.StoragePolicy(name=""),
        api.StoragePolicy(name="a", required_tags=["x"], forbidden_tags=["x"]),
        api.StoragePolicy(name="a", required_tags=["two words"]),
        api.StoragePolicy(name="a", min_free_percent=100),
        api.StoragePolicy(name="a", min_free_percent=float("nan")),
        api.StoragePolicy(name="a", formats=[vm_config_pb2.DISK_FORMAT_UNSPECIFIED]),
    ],
)
async def test_policy_that_cannot_be_is_refused(rig: VpxdRig, policy: api.StoragePolicy) -> None:
    assert isinstance(await rig.fault(rig.storage.SetPolicy(policy)), InvalidArgument)


async def test_check_lists_every_datastore_with_its_reasons(rig: VpxdRig) -> None:
    await gold(rig)
    await rig.storage.TagDatastore(api.TagDatastoreRequest(datastore="shared", tags=["tier:gold"]))

    fits = (await rig.storage.CheckPolicy(api.PolicyRequest(policy="gold"))).datastores

    assert [fit.datastore_name for fit in fits] == ["shared", "local", "local"]
    assert not fits[0].findings
    for fit in fits[1:]:
        assert {entry.fault.details["requirement"] for entry in fit.findings} == {
            "required tag tier:gold",
            "shared",
        }
        assert all(entry.error and entry.remedy for entry in fit.findings)
        assert all(entry.group == task_pb2.FINDING_GROUP_DATASTORE for entry in fit.findings)
        assert all(entry.fault.type == fault_pb2.FAULT_TYPE_POLICY_NOT_SATISFIED for entry in fit.findings)


async def test_vm_policies_tell_where_home_and_disks_do_not_comply(rig: VpxdRig) -> None:
    await gold(rig)
    await rig.storage.SetPolicy(
        api.StoragePolicy(name="eager", formats=[vm_config_pb2.DISK_FORMAT_THICK_EAGER_ZEROED])
    )
    vm = await rig.create("web01", "esx01")
    wanted = api.SetVmPoliciesRequest(vm="web01", home_policy="gold")

    before = await rig.storage.SetVmPolicies(wanted)
    await rig.storage.TagDatastore(api.TagDatastoreRequest(datastore="shared", tags=["tier:gold"]))
    after = await rig.storage.GetVmPolicies(api.GetVmPoliciesRequest(vm=vm.id))
    no_disk = await rig.fault(
        rig.storage.SetVmPolicies(api.SetVmPoliciesRequest(vm="web01", disk_policies={2000: "eager"}))
    )

    assert (before.vm, before.home_policy) == (vm.id, "gold")
    assert [entry.fault.details["requirement"] for entry in before.findings] == ["required tag tier:gold"]
    assert not after.findings
    assert isinstance(no_disk, InvalidArgument)


async def test_policy_in_use_is_not_deleted_until_the_vm_is_gone(rig: VpxdRig) -> None:
    await gold(rig)
    await rig.create("web01", "esx01")
    await rig.storage.SetVmPolicies(api.SetVmPoliciesRequest(vm="web01", home_policy="gold"))

    in_use = await rig.fault(rig.storage.DeletePolicy(api.PolicyRequest(policy="gold")))
    await rig.done(rig.stub.DestroyVm(service_pb2.VmOperationRequest(vm="web01")))
    await rig.storage.DeletePolicy(api.PolicyRequest(policy="gold"))

    assert isinstance(in_use, ResourceInUse)
    assert "web01" in in_use.message
    assert not (await rig.storage.ListPolicies(api.ListPoliciesRequest())).policies
    assert isinstance(
        await rig.fault(rig.storage.DeletePolicy(api.PolicyRequest(policy="gold"))), ManagedObjectNotFound
    )


async def test_vm_policies_can_be_taken_away(rig: VpxdRig) -> None:
    await gold(rig)
    await rig.create("web01", "esx01")
    await rig.storage.SetVmPolicies(api.SetVmPoliciesRequest(vm="web01", home_policy="gold"))

    answer = await rig.storage.SetVmPolicies(api.SetVmPoliciesRequest(vm="web01"))

    assert not answer.home_policy
    await rig.storage.DeletePolicy(api.PolicyRequest(policy="gold"))
    missing = api.SetVmPoliciesRequest(vm="web01", home_policy="gold")
    assert isinstance(await rig.fault(rig.storage.SetVmPolicies(missing)), ManagedObjectNotFound)
