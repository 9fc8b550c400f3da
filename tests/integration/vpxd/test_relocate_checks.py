"""Relocation through a real vpxd: refusals at once, findings per host, recommendations, networks, rules."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from proto.vim.v1 import host_pb2, task_pb2, vm_config_pb2
from proto.vpxd.v1 import clusters_pb2, inventory_pb2, service_pb2
from runtime import faults
from tests.framework.fake_host_storage import FakeDisk
from tests.framework.fake_vpxa import FakeVpxaHost
from tests.framework.vpxd_rig import VpxdRig, until, vpxd_rig
from vpxd.relocation.resolve import HOME_BYTES

FAKE_ALLOCATED_BYTES = 4096  # of every disk of the fake hosts
Spec = service_pb2.RelocateSpec
Locator = service_pb2.DiskLocator
Mapping = service_pb2.NicMapping
_GROUPS = {
    "HostNotConnected": task_pb2.FINDING_GROUP_HOST,
    "InaccessibleDatastore": task_pb2.FINDING_GROUP_DATASTORE,
    "CannotAccessNetwork": task_pb2.FINDING_GROUP_NETWORK,
    "RuleViolation": task_pb2.FINDING_GROUP_RESOURCE_POOL,
}


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[VpxdRig]:
    async with vpxd_rig(tmp_path, "esx01", "esx02", "esx03") as running:
        yield running


def _host(rig: VpxdRig, name: str) -> FakeVpxaHost:
    return rig.fakes.hosts[name]


async def _networks(rig: VpxdRig, **offered: dict[str, int]) -> None:
    """The port groups that the named hosts offer: name -> segment."""
    for name, groups in offered.items():
        host = _host(rig, name)
        del host.info.port_groups[:]
        host.info.port_groups.extend(
            host_pb2.PortGroup(name=group, segment_id=segment) for group, segment in groups.items()
        )
        host.changed()

    async def seen() -> dict[str, dict[str, int]]:
        hosts = await rig.stub.ListHosts(service_pb2.ListHostsRequest())
        return {
            host.name: {group.name: group.segment_id for group in host.info.port_groups}
            for host in hosts.hosts
        }

    await until(seen, lambda now: all(now[name] == groups for name, groups in offered.items()))


async def _known(rig: VpxdRig, name: str) -> inventory_pb2.Vm:
    async def vms() -> list[inventory_pb2.Vm]:
        return list((await rig.stub.ListVms(service_pb2.ListVmsRequest(name=name))).vms)

    return (await until(vms, bool))[0]


def _request(vm: str, spec: Spec | None = None) -> service_pb2.RelocateVmRequest:
    return service_pb2.RelocateVmRequest(vm=vm, spec=spec)


async def _check(rig: VpxdRig, vm: str, spec: Spec | None = None) -> dict[str, list[tuple[str, bool]]]:
    """By host: the faults that were found, by type name, and whether each is an error. Also: groups and remedies."""
    answer = await rig.stub.CheckRelocate(_request(vm, spec))
    for host in answer.hosts:
        for finding in host.findings:
            name = _fault(finding.fault.type)
            assert finding.remedy
            assert finding.host == host.host
            assert finding.group == _GROUPS.get(name, finding.group) != task_pb2.FINDING_GROUP_UNSPECIFIED
    return {
        host.host_name: [(_fault(entry.fault.type), entry.error) for entry in host.findings]
        for host in answer.hosts
    }


def _fault(number: int) -> str:
    return next(name for name, kind in vars(faults).items() if getattr(kind, "fault_type", 0) == number)


@pytest.mark.parametrize(
    ("spec", "refused"),
    [
        (Spec(host="esx02", cluster="Cluster"), faults.InvalidArgument),
        (Spec(format=vm_config_pb2.DISK_FORMAT_THIN), faults.InvalidArgument),
        (Spec(datastore="local", format=77), faults.InvalidArgument),  # type: ignore[arg-type]
        (Spec(disks=[Locator(key=2015, datastore="shared")]), faults.InvalidArgument),
        (Spec(networks=[Mapping(nic=4009, network="A")]), faults.InvalidArgument),
        (Spec(host="esx09"), faults.ManagedObjectNotFound),
        (Spec(cluster="none"), faults.ManagedObjectNotFound),
        (Spec(datastore="none"), faults.ManagedObjectNotFound),
        (Spec(disks=[Locator(key=2000, datastore="datastore-99")]), faults.ManagedObjectNotFound),
        (Spec(host="esx02", policy="none"), faults.ManagedObjectNotFound),
    ],
)
async def test_spec_that_can_not_be_is_refused_at_once_by_every_rpc(
    rig: VpxdRig, spec: Spec, refused: type[faults.VimFault]
) -> None:
    _host(rig, "esx01").put_vm("web01", on=True, disks=1)
    await _known(rig, "web01")
    for call in (rig.stub.RelocateVm, rig.stub.CheckRelocate, rig.stub.RecommendHosts):
        assert isinstance(await rig.fault(call(_request("web01", spec))), refused)
    assert not (await rig.stub.ListTasks(service_pb2.ListTasksRequest(entity="web01"))).tasks


async def test_relocation_that_changes_nothing_is_refused_at_once(rig: VpxdRig) -> None:
    _host(rig, "esx01").put_vm("web01", on=True, disks=1)
    await _known(rig, "web01")
    for spec in (Spec(host="esx01"), Spec(host="esx01", datastore="shared")):
        assert isinstance(
            await rig.fault(rig.stub.RelocateVm(_request("web01", spec))), faults.InvalidArgument
        )


async def test_every_host_is_told_what_stands_against_it_in_groups(rig: VpxdRig) -> None:
    await _networks(rig, esx01={"LAN": 7}, esx02={"LAN": 8})
    _host(rig, "esx01").put_vm("web01", on=True, disks=1, datastore="local", networks=["LAN"])
    await _known(rig, "web01")
    assert await _check(rig, "web01") == {
        "esx02": [("InaccessibleDatastore", True), ("CannotAccessNetwork", False)],
        "esx03": [("InaccessibleDatastore", True), ("CannotAccessNetwork", True)],
    }
    everything = await _check(rig, "web01", Spec(datastore="shared"))
    assert everything == {
        "esx01": [],
        "esx02": [("CannotAccessNetwork", False)],
        "esx03": [("CannotAccessNetwork", True)],
    }
    assert list(await _check(rig, "web01", Spec(host="esx03", datastore="local"))) == ["esx03"]
    other = await rig.stub.CreateCluster(service_pb2.CreateClusterRequest(name="Other"))
    assert await _check(rig, "web01", Spec(cluster=other.id)) == {}


async def test_error_found_is_the_fault_of_the_task_and_nothing_is_asked_of_a_host(rig: VpxdRig) -> None:
    _host(rig, "esx01").put_vm("web01", on=True, disks=1, datastore="local")
    await _known(rig, "web01")
    with pytest.raises(faults.InaccessibleDatastore):
        await rig.done(rig.stub.RelocateVm(_request("web01", Spec(host="esx02"))))
    full = _host(rig, "esx02")
    full.info.datastores[1].free_bytes = 1
    full.changed()

    async def found() -> list[tuple[str, bool]]:
        return (await _check(rig, "web01", Spec(host="esx02", datastore="local")))["esx02"]

    assert ("NoDiskSpace", True) in await until(found, bool)
    with pytest.raises(faults.NoDiskSpace) as refused:
        await rig.done(rig.stub.RelocateVm(_request("web01", Spec(host="esx02", datastore="local"))))
    assert refused.value.free_bytes == 1 < refused.value.requested_bytes
    assert "PrepareDestination" not in full.calls


async def test_cluster_named_goes_where_the_best_recommendation_is(rig: VpxdRig) -> None:
    _host(rig, "esx01").put_vm("web01", on=True)
    _host(rig, "esx02").put_vm("db01", on=True, ram_bytes=4 * 1024**3)
    vm = await _known(rig, "web01")
    await _known(rig, "db01")
    answer = await rig.stub.RecommendHosts(_request("web01", Spec(cluster="Cluster")))
    assert [host.host_name for host in answer.hosts] == ["esx03", "esx02"]
    assert answer.hosts[0].score > answer.hosts[1].score > 0
    assert any("memory" in reason for reason in answer.hosts[0].reasons)
    await rig.done(rig.stub.RelocateVm(_request("web01", Spec(cluster="Cluster"))))
    assert (await rig.vm(vm.id)).host_name == "esx03"


async def test_only_the_storage_changes_where_only_a_datastore_is_named(rig: VpxdRig) -> None:
    _host(rig, "esx01").put_vm("web01", on=True, disks=1, datastore="local")
    vm = await _known(rig, "web01")
    task = await rig.done(rig.stub.RelocateVm(_request("web01", Spec(datastore="shared"))))
    assert task.operation == "VirtualMachine.relocate"
    now = await rig.vm(vm.id)
    assert (now.host_name, now.home) == ("esx01", "[shared] web01/web01.vmx")
    assert now.config.disks[0].path == "[shared] web01/disk0.vmdk"


async def test_a_vm_that_a_task_holds_is_told_so(rig: VpxdRig) -> None:
    rig.fakes.script = None
    _host(rig, "esx01").put_vm("web01", on=True)
    await _known(rig, "web01")
    task = await rig.migrate("web01", "esx02")
    await rig.fakes.migration_of("web01")
    assert ("TaskInProgress", True) in (await _check(rig, "web01"))["esx03"]
    assert isinstance(
        await rig.fault(rig.stub.RelocateVm(_request("web01", Spec(host="esx03")))), faults.TaskInProgress
    )
    await rig.stub.CancelTask(service_pb2.GetTaskRequest(task=task.id))
    await rig.end_of(task.id)


async def test_port_groups_become_networks_with_their_hosts_and_segments(rig: VpxdRig) -> None:
    await _networks(rig, esx01={"LAN": 7}, esx02={"LAN": 7, "DMZ": 9})

    async def networks() -> dict[str, tuple[int, set[str]]]:
        hosts = {
            host.id: host.name for host in (await rig.stub.ListHosts(service_pb2.ListHostsRequest())).hosts
        }
        found = await rig.stub.ListNetworks(service_pb2.ListNetworksRequest())
        return {one.name: (one.segment_id, {hosts[host] for host in one.hosts}) for one in found.networks}

    seen = await until(networks, lambda now: {"LAN", "DMZ"} <= now.keys())
    assert (seen["LAN"], seen["DMZ"]) == ((7, {"esx01", "esx02"}), (9, {"esx02"}))
    assert seen["vMotion Network"] == (0, {"esx01", "esx02", "esx03"})
    await _networks(rig, esx01={"LAN": 8})
    assert (await networks())["LAN"] == (7, {"esx01", "esx02"}), "esx02 still has the segment"
    await _networks(rig, esx02={"LAN": 8})
    await until(networks, lambda now: now["LAN"][0] == 8)


async def test_rules_are_kept_in_force_and_forgotten(rig: VpxdRig) -> None:
    for name, host in (("web01", "esx01"), ("web02", "esx02")):
        _host(rig, host).put_vm(name, on=True)
    web01, web02 = await _known(rig, "web01"), await _known(rig, "web02")
    apart = clusters_pb2.Rule(
        name="apart", kind=clusters_pb2.RULE_KIND_VM_ANTI_AFFINITY, vms=["web01", "web02"], mandatory=True
    )
    made = await rig.clusters.SetRule(apart)
    assert (list(made.vms), made.violated) == ([web01.id, web02.id], False)
    assert ("RuleViolation", True) in (await _check(rig, "web01"))["esx02"]
    with pytest.raises(faults.RuleViolation):
        await rig.done(rig.stub.RelocateVm(_request("web01", Spec(host="esx02"))))
    together = clusters_pb2.Rule(
        name="together", kind=clusters_pb2.RULE_KIND_VM_AFFINITY, vms=["web01", "web02"]
    )
    refused = await rig.fault(rig.clusters.SetRule(together))
    assert isinstance(refused, faults.RuleViolation)
    assert refused.rule == "apart"
    apart.disabled = True
    await rig.clusters.SetRule(apart)
    assert (await rig.clusters.SetRule(together)).violated
    await rig.restart()
    listed = await rig.clusters.ListRules(clusters_pb2.ListRulesRequest())
    assert [rule.name for rule in listed.rules] == ["apart", "together"]

    await rig.done(rig.stub.PowerOffVm(service_pb2.VmOperationRequest(vm="web02")))
    await rig.done(rig.stub.DestroyVm(service_pb2.VmOperationRequest(vm="web02")))
    listed = await rig.clusters.ListRules(clusters_pb2.ListRulesRequest())
    assert [list(rule.vms) for rule in listed.rules] == [[web01.id], [web01.id]]
    await rig.clusters.DeleteRule(clusters_pb2.RuleRequest(name="apart"))
    gone = await rig.fault(rig.clusters.DeleteRule(clusters_pb2.RuleRequest(name="apart")))
    assert isinstance(gone, faults.ManagedObjectNotFound)


async def test_file_that_only_a_host_knows_of_is_found_before_anything_starts(rig: VpxdRig) -> None:
    _host(rig, "esx01").put_vm("web01", on=True, disks=1, datastore="local")
    await _known(rig, "web01")
    left_over = rig.fakes.files.store(rig.fakes.shared.uuid)
    left_over.files["web01/web01.vmx"] = b"an earlier one"
    spec = Spec(host="esx02", datastore="shared")
    assert await _check(rig, "web01", spec) == {"esx02": [("FileAlreadyExists", True)]}
    with pytest.raises(faults.FileAlreadyExists):
        await rig.done(rig.stub.RelocateVm(_request("web01", spec)))
    del left_over.files["web01/web01.vmx"]
    assert await _check(rig, "web01", spec) == {"esx02": []}
    await rig.done(rig.stub.RelocateVm(_request("web01", spec)))


async def test_a_thin_disk_needs_what_its_host_says_that_it_takes(rig: VpxdRig) -> None:
    host = _host(rig, "esx01")
    host.put_vm("web01", disks=1, datastore="local")
    await _known(rig, "web01")
    local = rig.fakes.files.store(host.info.datastores[1].uuid)
    local.disks["web01/disk0.vmdk"] = FakeDisk(64 * 1024 * 1024, vm_config_pb2.DISK_FORMAT_THIN)
    rig.fakes.shared.free_bytes = HOME_BYTES + FAKE_ALLOCATED_BYTES - 1
    for each in rig.fakes.hosts.values():
        each.info.datastores[0].free_bytes = rig.fakes.shared.free_bytes
        each.changed()

    async def found() -> list[tuple[str, bool]]:
        return (await _check(rig, "web01", Spec(host="esx01", datastore="shared")))["esx01"]

    await until(found, lambda now: ("NoDiskSpace", True) in now)
    for each in rig.fakes.hosts.values():
        each.info.datastores[0].free_bytes += 1
        each.changed()
    await until(found, lambda now: now == [("NoDiskSpace", False)])


async def test_a_host_that_does_not_answer_about_files_leaves_them_unknown(rig: VpxdRig) -> None:
    host = _host(rig, "esx01")
    host.put_vm("web01", on=True, disks=1, datastore="local")
    await _known(rig, "web01")
    for each in rig.fakes.hosts.values():
        each.refuse["BrowseFolder"] = each.refuse["InspectDisk"] = faults.TimedOut("no answer")
    assert await _check(rig, "web01", Spec(host="esx02", datastore="shared")) == {"esx02": []}
