"""What CheckRelocate says and what RelocateVm does, through a real vpxd, over drawn clusters.

The hosts are FAKES that refuse what `refusal`, the model of the hosts, says. No error found: the task ends in success.
An error found: the task ends in one of the found faults, and no host is asked.
"""

import asyncio
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, assume, given, settings

from proto.host.v1 import operations_pb2 as ops
from proto.vim.v1 import host_pb2
from proto.vmotion.v1 import spec_pb2
from proto.vpxd.v1 import service_pb2
from runtime.faults import VimFault
from runtime.rpc.enrollment import join
from runtime.rpc.faults import fault_from_proto
from tests.framework.fake_vpxa import FakeVpxaHost
from tests.framework.relocation_model import refusal
from tests.framework.relocation_worlds import World, worlds
from tests.framework.vpxd_rig import VpxdRig, until
from vpxd.inventory.values import PowerState
from vpxd.relocation.relocation import Relocation
from vpxd.relocation.spec import RelocateSpec
from vpxd.wire import host_info_to_wire, host_usage_to_wire, vm_config_from_wire, vm_config_to_wire

EXAMPLES = 8


@dataclass
class StrictVpxaHost(FakeVpxaHost):
    """FAKE: a host of a drawn world; refuses as a destination what the model refuses."""

    world: World | None = None
    world_id: str = ""

    async def PrepareDestination(self, request: ops.PrepareDestinationRequest, context: Any) -> Any:
        self._refuse(request.spec)
        return await super().PrepareDestination(request, context)

    async def StartRelocation(self, request: ops.StartRelocationRequest, context: Any) -> Any:
        self._refuse(request.spec)
        return await super().StartRelocation(request, context)

    def _refuse(self, spec: spec_pb2.MigrationSpec) -> None:
        assert self.world is not None
        after = spec.destination_vm if spec.HasField("destination_vm") else spec.vm
        home = spec.destination_home or spec.vm_home
        moved = Relocation(
            destination_vm=vm_config_from_wire(after),
            destination_home=home,
            source_home_datastore_uuid=spec.home_datastore_uuid,
            destination_home_datastore_uuid=spec.destination_home_datastore_uuid,
            moved_disks=tuple(spec.moved_disks),
            moves_home=bool(spec.destination_home) and spec.destination_home_datastore_uuid != spec.home_datastore_uuid,
        )  # fmt: skip
        fault = refusal(self.world, self.world_id, moved, not spec.powered_off)
        if fault is not None:
            raise fault(f"the host {self.info.name} refuses it")

    def _usage(self) -> host_pb2.HostUsage:
        assert self.world is not None
        return host_usage_to_wire(self.world.host(self.world_id)[1])


async def _populate(rig: VpxdRig, world: World) -> None:
    await rig.stub.CreateCluster(service_pb2.CreateClusterRequest(name="B"))
    for host_id, record in world.inventory.hosts.items():
        request = service_pb2.CreateJoinTokenRequest(host_name=record.name)
        token = await rig.stub.CreateJoinToken(request)
        address = "127.0.0.1:1"
        identity = await join(
            rig.server.join_address, token.token, token.ca_fingerprint, record.name, address
        )
        info = host_info_to_wire(record.info)
        host = StrictVpxaHost(rig.fakes, identity, info, world=world, world_id=host_id)
        for vm in world.inventory.vms.values():
            if vm.host == host_id:
                on = vm.power_state is PowerState.POWERED_ON
                put = host.put_vm(vm.name, on=on)
                del host.vms[put.uuid]
                put.uuid, put.home = vm.uuid, vm.home
                put.config.CopyFrom(vm_config_to_wire(vm.config))
                host.vms[vm.uuid] = put
                rig.fakes.homes[host.home_key(vm.home)] = rig.fakes.homes.pop(
                    f"[shared] {vm.name}/{vm.name}.vmx"
                )
        await host.start()
        cluster = "" if record.cluster == "domain-c1" else "B"
        add = service_pb2.AddHostRequest(name=record.name, address=host.address, cluster=cluster)
        await rig.done(rig.stub.AddHost(add))


def _spec(spec: RelocateSpec, host: str) -> service_pb2.RelocateSpec:
    return service_pb2.RelocateSpec(
        host=host,
        datastore=spec.datastore,
        format=int(spec.format),  # type: ignore[arg-type]
        disks=[
            service_pb2.DiskLocator(key=disk.key, datastore=disk.datastore, format=int(disk.format))  # type: ignore[arg-type]
            for disk in spec.disks
        ],
        networks=[
            service_pb2.NicMapping(nic=entry.nic, from_network=entry.from_network, network=entry.network)
            for entry in spec.networks
        ],
    )


async def _ended(rig: VpxdRig, request: service_pb2.RelocateVmRequest) -> VimFault | None:
    """The fault with which a relocation is refused or ends; None: success."""
    try:
        await rig.done(rig.stub.RelocateVm(request))
    except VimFault as fault:
        return fault
    return None


async def _agrees(world: World, directory: Path) -> bool:
    """Whether a host was accepted, too."""
    rig = VpxdRig(directory)
    await rig.start()
    try:
        await _populate(rig, world)

        async def seen() -> int:
            return len((await rig.stub.ListVms(service_pb2.ListVmsRequest())).vms)

        await until(seen, lambda count: count == len(world.inventory.vms))
        accepted = []
        for host in world.inventory.hosts.values():
            request = service_pb2.RelocateVmRequest(vm="web01", spec=_spec(world.spec, host.name))
            answer = await rig.stub.CheckRelocate(request)
            errors = [entry.fault for entry in answer.hosts[0].findings if entry.error]
            if not errors:
                accepted.append(request)
                continue
            fault = await _ended(rig, request)
            assert type(fault) in {type(fault_from_proto(error)) for error in errors}
        asked = [call for host in rig.fakes.hosts.values() for call in host.calls]
        assert not {"PrepareDestination", "StartRelocation", "RegisterVm"} & set(asked)
        if accepted:
            assert await _ended(rig, accepted[0]) is None
        return bool(accepted)
    finally:
        await rig.close()


def test_what_was_found_is_what_happens() -> None:
    accepted = []

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(worlds())
    def agrees(world: World) -> None:
        assume(all(world.live.host(host).connected for host in world.inventory.hosts))
        seen = {store.name for host in world.inventory.hosts.values() for store in host.info.datastores}
        named = {world.spec.datastore, *(disk.datastore for disk in world.spec.disks)} - {""}
        assume(named <= seen)  # a name that nobody knows is refused as such
        disks = tuple(replace(disk, policy="") for disk in world.spec.disks)
        world.inventory.apply([], list(world.inventory.affinity_rules.values()))
        drawn = replace(world, spec=replace(world.spec, policy="", disks=disks), high_priority=False)
        with tempfile.TemporaryDirectory() as directory:
            accepted.append(asyncio.run(_agrees(drawn, Path(directory))))

    agrees()
    assert True in accepted
