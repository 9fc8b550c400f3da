"""Joining, adding, losing, regaining and removing hosts; what survives a restart."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from proto.vim.v1 import host_pb2
from proto.vpxd.v1 import enrollment_pb2, enrollment_pb2_grpc, inventory_pb2, service_pb2
from runtime import faults
from runtime.rpc.channel import network_channel
from runtime.rpc.enrollment import join
from runtime.rpc.identity import Identity, Role
from tests.framework.fake_cluster import GIB
from tests.framework.vpxd_rig import VpxdRig, until, vpxd_rig

_CONNECTED = host_pb2.HOST_CONNECTION_STATE_CONNECTED
_NOT_RESPONDING = host_pb2.HOST_CONNECTION_STATE_NOT_RESPONDING


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[VpxdRig]:
    async with vpxd_rig(tmp_path) as running:
        yield running


async def _token(rig: VpxdRig, name: str, valid_s: int = 0) -> service_pb2.CreateJoinTokenResponse:
    return await rig.stub.CreateJoinToken(service_pb2.CreateJoinTokenRequest(host_name=name, valid_s=valid_s))


async def test_first_start_has_datacenter_cluster_and_networks(rig: VpxdRig) -> None:
    clusters = (await rig.stub.ListClusters(service_pb2.ListClustersRequest())).clusters
    datacenters = (await rig.stub.ListDatacenters(service_pb2.ListDatacentersRequest())).datacenters
    networks = (await rig.stub.ListNetworks(service_pb2.ListNetworksRequest())).networks
    assert [cluster.name for cluster in clusters] == ["Cluster"]
    assert [datacenter.name for datacenter in datacenters] == ["Datacenter"]
    assert [network.name for network in networks] == ["Management Network", "vMotion Network"]
    about = await rig.stub.GetAbout(service_pb2.GetAboutRequest())
    assert len(about.ca_fingerprint) == 64
    assert about.cluster_uuid


async def test_added_host_brings_its_vms_and_datastores(rig: VpxdRig) -> None:
    host = await rig.join("esx01")
    host.put_vm("old", on=True)
    await rig.done(rig.stub.AddHost(service_pb2.AddHostRequest(name="esx01", address=host.address)))
    seen = await rig.host("esx01")
    assert (seen.connection_state, seen.vm_count) == (_CONNECTED, 1)
    assert (await rig.vm("old")).host == seen.id
    stores = (await rig.stub.ListDatastores(service_pb2.ListDatastoresRequest())).datastores
    assert {(store.name, tuple(store.hosts)) for store in stores} == {
        ("shared", (seen.id,)),
        ("local", (seen.id,)),
    }
    assert await rig.event_types() == [
        "HostJoinedEvent",
        "HostAddedEvent",
        "VmRegisteredEvent",
        "HostConnectedEvent",
    ]


async def test_bad_adds_are_refused(rig: VpxdRig) -> None:
    unknown = await rig.fault(rig.stub.AddHost(service_pb2.AddHostRequest(name="esx09")))
    assert isinstance(unknown, faults.InvalidArgument)
    host = await rig.join("esx01")
    other = await rig.join("esx02")
    with pytest.raises(faults.HostNotReachable):
        await rig.done(rig.stub.AddHost(service_pb2.AddHostRequest(name="esx01", address="127.0.0.1:1")))
    # Somebody else's certificate answers there: never spoken to.
    with pytest.raises(faults.HostNotReachable):
        await rig.done(rig.stub.AddHost(service_pb2.AddHostRequest(name="esx01", address=other.address)))
    request = service_pb2.AddHostRequest(name="esx01", address=host.address, cluster="nowhere")
    assert isinstance(await rig.fault(rig.stub.AddHost(request)), faults.ManagedObjectNotFound)
    bad = service_pb2.AddHostRequest(name="esx01", address="no port")
    assert isinstance(await rig.fault(rig.stub.AddHost(bad)), faults.InvalidArgument)
    assert not (await rig.stub.ListHosts(service_pb2.ListHostsRequest())).hosts
    good = service_pb2.AddHostRequest(name="esx01", address=host.address)
    await rig.done(rig.stub.AddHost(good))
    assert isinstance(await rig.fault(rig.stub.AddHost(good)), faults.DuplicateName)
    other.info.uuid = host.info.uuid
    with pytest.raises(faults.DuplicateName):
        await rig.done(rig.stub.AddHost(service_pb2.AddHostRequest(name="esx02", address=other.address)))


@pytest.mark.parametrize("how", ["mute", "killed"])
async def test_silent_host_becomes_not_responding_and_comes_back(rig: VpxdRig, how: str) -> None:
    (host,) = await rig.add("esx01")
    vm = await rig.running("web01", "esx01")
    if how == "mute":
        host.mute = True
    else:
        await host.stop()
    await until(lambda: rig.host("esx01"), lambda seen: seen.connection_state == _NOT_RESPONDING)
    lost = await rig.vm(vm.id)
    assert lost.connection_state == inventory_pb2.VM_CONNECTION_STATE_DISCONNECTED
    assert lost.power_state == host_pb2.POWER_STATE_POWERED_ON
    refused = await rig.fault(rig.stub.PowerOffVm(service_pb2.VmOperationRequest(vm=vm.id)))
    assert isinstance(refused, faults.HostNotConnected)
    assert refused.state == "notResponding"
    if how == "mute":
        host.mute = False
    else:
        await host.start()
    await until(lambda: rig.host("esx01"), lambda seen: seen.connection_state == _CONNECTED)
    types = [kind for kind in await rig.event_types() if kind.startswith("HostConn")]
    assert types == ["HostConnectedEvent", "HostConnectionLostEvent", "HostConnectedEvent"]
    await rig.done(rig.stub.PowerOffVm(service_pb2.VmOperationRequest(vm=vm.id)))


async def test_short_break_is_noticed_by_nobody(rig: VpxdRig) -> None:
    (host,) = await rig.add("esx01")
    watchers = host.watchers
    await host.stop()
    await host.start()

    async def watched() -> int:
        return host.watchers

    await until(watched, lambda count: count > watchers)
    assert "HostConnectionLostEvent" not in await rig.event_types()


async def test_another_host_under_the_same_name_is_not_taken_in(rig: VpxdRig) -> None:
    (host,) = await rig.add("esx01")
    host.info.uuid = "11111111-1111-1111-1111-111111111111"
    host.put_vm("stranger")
    await until(lambda: rig.host("esx01"), lambda seen: seen.connection_state == _NOT_RESPONDING)
    assert not (await rig.stub.ListVms(service_pb2.ListVmsRequest())).vms


async def test_removed_host_takes_its_vms_along_and_can_be_added_again(rig: VpxdRig) -> None:
    host, _other = await rig.add("esx01", "esx02")
    vm = await rig.running("web01", "esx01")
    request = service_pb2.RemoveHostRequest(host="esx01")
    assert isinstance(await rig.fault(rig.stub.RemoveHost(request)), faults.ResourceInUse)
    request.force = True
    await rig.done(rig.stub.RemoveHost(request))
    assert [seen.name for seen in (await rig.stub.ListHosts(service_pb2.ListHostsRequest())).hosts] == [
        "esx02"
    ]
    assert not (await rig.stub.ListVms(service_pb2.ListVmsRequest())).vms
    stores = (await rig.stub.ListDatastores(service_pb2.ListDatastoresRequest())).datastores
    assert sorted(store.name for store in stores) == ["local", "shared"]
    assert host.vms[vm.config.uuid].power_state == host_pb2.POWER_STATE_POWERED_ON
    await rig.done(rig.stub.AddHost(service_pb2.AddHostRequest(name="esx01", address=host.address)))
    assert (await rig.vm("web01")).id != vm.id


async def test_vm_found_running_on_another_host_follows_it(rig: VpxdRig) -> None:
    first, second = await rig.add("esx01", "esx02")
    vm = await rig.running("web01", "esx01")
    await first.stop()
    await until(lambda: rig.host("esx01"), lambda seen: seen.connection_state == _NOT_RESPONDING)
    second.vms[vm.config.uuid] = first.vms.pop(vm.config.uuid)
    second.changed()
    await until(lambda: rig.vm(vm.id), lambda seen: seen.host_name == "esx02")
    assert (await rig.event_types(vm.id))[-1] == "VmFoundOnHostEvent"


async def test_guest_that_dies_is_told_with_its_reason(rig: VpxdRig) -> None:
    (host,) = await rig.add("esx01")
    vm = await rig.running("web01", "esx01")
    state = host.vms[vm.config.uuid]
    state.power_state = host_pb2.POWER_STATE_POWERED_OFF
    state.execution_state = host_pb2.EXECUTION_STATE_FAILED
    state.failure = "QEMU ended by signal 9"
    host.changed()
    seen = await until(
        lambda: rig.vm(vm.id), lambda seen: seen.power_state == host_pb2.POWER_STATE_POWERED_OFF
    )
    assert seen.failure == "QEMU ended by signal 9"
    assert (await rig.event_types(vm.id))[-1] == "VmGuestDiedEvent"


async def test_restart_keeps_inventory_ids_tasks_and_events(rig: VpxdRig) -> None:
    await rig.add("esx01", "esx02")
    vm = await rig.running("web01", "esx01")
    request = service_pb2.ListTasksRequest()
    tasks = list((await rig.stub.ListTasks(request)).tasks)
    events = await rig.event_types()
    hosts = {host.id: host.name for host in (await rig.stub.ListHosts(service_pb2.ListHostsRequest())).hosts}
    await rig.restart()
    assert list((await rig.stub.ListTasks(request)).tasks) == tasks
    assert (await rig.event_types())[: len(events)] == events
    again = (await rig.stub.ListHosts(service_pb2.ListHostsRequest())).hosts
    assert {host.id: host.name for host in again} == hosts
    after = await rig.vm(vm.id)
    assert (after.name, after.config, after.host) == (vm.name, vm.config, vm.host)
    for name in hosts.values():
        await until(lambda name=name: rig.host(name), lambda host: host.connection_state == _CONNECTED)  # type: ignore[misc]
    new = await rig.create("web02", "esx02")
    assert int(new.id.removeprefix("vm-")) > int(vm.id.removeprefix("vm-"))


async def test_token_works_once_and_for_its_host_only(rig: VpxdRig) -> None:
    made = await _token(rig, "esx01")
    arguments = (made.token, made.ca_fingerprint)
    with pytest.raises(faults.InvalidJoinToken):
        await join(rig.server.join_address, *arguments, "esx02", "127.0.0.1:8443")
    with pytest.raises(faults.InvalidArgument):
        await join(rig.server.join_address, *arguments, "esx01", "no port")
    identity = await join(rig.server.join_address, *arguments, "esx01", "127.0.0.1:8443")
    assert (identity.role, identity.name) == (Role.HOST, "esx01")
    with pytest.raises(faults.InvalidJoinToken):
        await join(rig.server.join_address, *arguments, "esx01", "127.0.0.1:8443")
    with pytest.raises(faults.InvalidJoinToken):
        await join(rig.server.join_address, "x" * 43, made.ca_fingerprint, "esx01", "127.0.0.1:8443")


async def test_token_presented_twice_at_once_works_once(rig: VpxdRig) -> None:
    made = await _token(rig, "esx01")

    async def present() -> object:
        return await join(rig.server.join_address, made.token, made.ca_fingerprint, "esx01", "127.0.0.1:8443")

    answers = await asyncio.gather(*(present() for _ in range(4)), return_exceptions=True)
    assert sum(isinstance(answer, Identity) for answer in answers) == 1
    assert sum(isinstance(answer, faults.InvalidJoinToken) for answer in answers) == 3


async def test_expired_token_and_bad_requests_for_one_are_refused(rig: VpxdRig) -> None:
    made = await _token(rig, "esx01", valid_s=1)
    await asyncio.sleep(1.1)
    with pytest.raises(faults.InvalidJoinToken):
        await join(rig.server.join_address, made.token, made.ca_fingerprint, "esx01", "127.0.0.1:8443")
    for name in ("", "a/b", "host-3", "x" * 80, "-esx", "UPPER"):
        fault = await rig.fault(rig.stub.CreateJoinToken(service_pb2.CreateJoinTokenRequest(host_name=name)))
        assert isinstance(fault, faults.InvalidArgument)
    await rig.add("esx02")
    request = service_pb2.CreateJoinTokenRequest(host_name="esx02")
    assert isinstance(await rig.fault(rig.stub.CreateJoinToken(request)), faults.DuplicateName)


async def test_hosts_and_strangers_get_nothing_from_the_clients_port(rig: VpxdRig) -> None:
    host = await rig.join("esx01")
    async with network_channel(rig.server.address, host.identity, Role.VPXD, "vpxd") as channel:
        stub = type(rig.stub)(channel)
        fault = await rig.fault(stub.ListVms(service_pb2.ListVmsRequest()))
    assert isinstance(fault, faults.NoPermission)
    async with grpc.aio.insecure_channel(rig.server.address) as plain:
        stub = type(rig.stub)(plain)
        assert isinstance(
            await rig.fault(stub.ListVms(service_pb2.ListVmsRequest(), timeout=5)), faults.HostFault
        )
    async with network_channel(rig.server.join_address, host.identity, Role.VPXD, "vpxd") as channel:
        enroll = enrollment_pb2_grpc.EnrollmentStub(channel)
        fault = await rig.fault(enroll.Enroll(enrollment_pb2.EnrollRequest(token="x", host_name="esx01")))
    assert isinstance(fault, faults.InvalidJoinToken)


async def test_clusters_and_watched_events(rig: VpxdRig) -> None:
    made = await rig.stub.CreateCluster(service_pb2.CreateClusterRequest(name="Lab"))
    assert made.id.startswith("domain-c")
    again = rig.stub.CreateCluster(service_pb2.CreateClusterRequest(name="Lab"))
    assert isinstance(await rig.fault(again), faults.DuplicateName)
    events = rig.stub.WatchEvents(service_pb2.ListEventsRequest(after_id=0))
    first = await anext(aiter(events))
    assert (first.type, first.id) == ("ClusterCreatedEvent", 1)
    await rig.join("esx01")
    second = await anext(aiter(events))
    assert (second.type, second.id) == ("HostJoinedEvent", 2)
    events.cancel()


async def test_long_lists_come_quickly_and_whole(rig: VpxdRig) -> None:
    host = await rig.join("esx01")
    for number in range(500):
        host.put_vm(f"web{number:04}", ram_bytes=GIB)
    await rig.done(rig.stub.AddHost(service_pb2.AddHostRequest(name="esx01", address=host.address)))
    vms = await rig.stub.ListVms(service_pb2.ListVmsRequest(), timeout=5.0)
    assert len({vm.id for vm in vms.vms}) == 500
    assert len((await rig.stub.ListVms(service_pb2.ListVmsRequest(name="web0007"))).vms) == 1
