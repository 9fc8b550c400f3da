"""What the wizard asks of vpxd: the inventory to choose from, and what stands against a choice."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proto.vpxd.v1 import inventory_pb2, service_pb2, storage_pb2
from vpxd.cli.client import VpxdClient

if TYPE_CHECKING:
    from vpxd.cli.session import Session


@dataclass(frozen=True)
class Policies:
    """Storage policies, those that the VM has now, and the ids of all datastores by uuid."""

    known: Sequence[storage_pb2.StoragePolicy]
    present: storage_pb2.VmPolicies
    datastore_ids: dict[str, str]


class World:
    """vpxd as the wizard sees it. Everything raises what `VpxdClient.call` raises."""

    def __init__(self, session: "Session", client: VpxdClient) -> None:
        self._client = client
        self._timeout_s = session.call_timeout_s

    async def vm(self, key: str) -> inventory_pb2.Vm:
        """One VM by its id or name, as it is now."""
        request = service_pb2.GetVmRequest(vm=key)
        return await self._client.call(self._client.stub.GetVm, request, self._timeout_s)

    async def vms(self) -> Sequence[inventory_pb2.Vm]:
        """All VMs, by name."""
        request = service_pb2.ListVmsRequest()
        answer = await self._client.call(self._client.stub.ListVms, request, self._timeout_s)
        return sorted(answer.vms, key=lambda vm: (vm.name, vm.id))

    async def hosts(self) -> Sequence[inventory_pb2.Host]:
        """All hosts, by name."""
        request = service_pb2.ListHostsRequest()
        answer = await self._client.call(self._client.stub.ListHosts, request, self._timeout_s)
        return sorted(answer.hosts, key=lambda host: host.name)

    async def clusters(self) -> Sequence[inventory_pb2.Cluster]:
        """All clusters, by name."""
        request = service_pb2.ListClustersRequest()
        answer = await self._client.call(self._client.stub.ListClusters, request, self._timeout_s)
        return sorted(answer.clusters, key=lambda cluster: cluster.name)

    async def policies(self, vm: str) -> Policies:
        """Policies, and which of them the VM has."""
        storage = self._client.storage
        known = await self._client.call(
            storage.ListPolicies, storage_pb2.ListPoliciesRequest(), self._timeout_s
        )
        present = await self._client.call(
            storage.GetVmPolicies, storage_pb2.GetVmPoliciesRequest(vm=vm), self._timeout_s
        )
        datastores = await self._client.call(
            self._client.stub.ListDatastores, service_pb2.ListDatastoresRequest(), self._timeout_s
        )
        ids = {store.uuid: store.id for store in datastores.datastores}
        return Policies(known.policies, present, ids)

    async def misfits(self, policy: str) -> dict[str, str]:
        """What speaks against a datastore under the policy, by the datastore's id; those that fit aren't in it."""
        request = storage_pb2.PolicyRequest(policy=policy)
        answer = await self._client.call(self._client.storage.CheckPolicy, request, self._timeout_s)
        return {
            fit.datastore: "; ".join(finding.fault.message for finding in fit.findings)
            for fit in answer.datastores
            if fit.findings
        }

    async def check(self, request: service_pb2.RelocateVmRequest) -> Sequence[service_pb2.HostFindings]:
        """What stands against it, host by host."""
        answer = await self._client.call(self._client.stub.CheckRelocate, request, self._timeout_s)
        return answer.hosts

    async def recommend(self, request: service_pb2.RelocateVmRequest) -> Sequence[service_pb2.Recommendation]:
        """The hosts, best first."""
        answer = await self._client.call(self._client.stub.RecommendHosts, request, self._timeout_s)
        return answer.hosts
