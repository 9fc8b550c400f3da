"""Vpxd's rpcs about the cluster and its inventory."""

from collections import Counter

from proto.vim.v1 import task_pb2
from proto.vpxd.v1 import inventory_pb2
from proto.vpxd.v1 import service_pb2 as api
from runtime.rpc.identity import peer_of
from vpxd.inventory.first_start import VMOTION_NETWORK
from vpxd.inventory.records import Vm
from vpxd.operations import hosts, lookup
from vpxd.services import mapping
from vpxd.services.base import Adapter, Context
from vpxd.services.mapping import task_info

PRODUCT = "vpx"


class InventoryService(Adapter):
    """About, hosts, clusters, datastores, networks, VMs as lists."""

    async def GetAbout(self, request: api.GetAboutRequest, context: Context) -> api.GetAboutResponse:
        authority = self._services.authority
        return api.GetAboutResponse(
            product=PRODUCT,
            version=self._services.version,
            cluster_uuid=authority.cluster_uuid,
            ca_fingerprint=authority.fingerprint,
        )

    async def CreateJoinToken(
        self, request: api.CreateJoinTokenRequest, context: Context
    ) -> api.CreateJoinTokenResponse:
        token = await self._services.desk.create_token(request.host_name, request.valid_s)
        return api.CreateJoinTokenResponse(
            token=token,
            ca_fingerprint=self._services.desk.ca_fingerprint,
            join_address=self._services.join_address,
        )

    async def AddHost(self, request: api.AddHostRequest, context: Context) -> task_pb2.TaskInfo:
        user = peer_of(context).name
        return task_info(await hosts.add(self._parts, request.name, request.address, request.cluster, user))

    async def RemoveHost(self, request: api.RemoveHostRequest, context: Context) -> task_pb2.TaskInfo:
        user = peer_of(context).name
        return task_info(await hosts.remove(self._parts, request.host, request.force, user))

    async def ListHosts(self, request: api.ListHostsRequest, context: Context) -> api.ListHostsResponse:
        inventory = self._parts.store.inventory
        cluster = lookup.cluster(inventory, request.cluster).id if request.cluster else ""
        counts = Counter(vm.host for vm in inventory.vms.values())
        return api.ListHostsResponse(
            hosts=[
                mapping.host(self._parts, record, counts[record.id])
                for record in inventory.hosts.values()
                if not cluster or record.cluster == cluster
            ]
        )

    async def ListDatacenters(
        self, request: api.ListDatacentersRequest, context: Context
    ) -> api.ListDatacentersResponse:
        records = self._parts.store.inventory.datacenters.values()
        return api.ListDatacentersResponse(
            datacenters=[inventory_pb2.Datacenter(id=record.id, name=record.name) for record in records]
        )

    async def ListClusters(
        self, request: api.ListClustersRequest, context: Context
    ) -> api.ListClustersResponse:
        records = self._parts.store.inventory.clusters.values()
        return api.ListClustersResponse(clusters=[mapping.cluster(self._parts, record) for record in records])

    async def CreateCluster(
        self, request: api.CreateClusterRequest, context: Context
    ) -> inventory_pb2.Cluster:
        record = await hosts.create_cluster(self._parts, request.name, request.datacenter)
        return mapping.cluster(self._parts, record)

    async def ListDatastores(
        self, request: api.ListDatastoresRequest, context: Context
    ) -> api.ListDatastoresResponse:
        records = self._parts.store.inventory.datastores.values()
        return api.ListDatastoresResponse(
            datastores=[mapping.datastore(self._parts, record) for record in records]
        )

    async def ListNetworks(
        self, request: api.ListNetworksRequest, context: Context
    ) -> api.ListNetworksResponse:
        records = self._parts.store.inventory.networks.values()
        return api.ListNetworksResponse(
            networks=[
                mapping.network(self._parts, record, vmotion=record.name == VMOTION_NETWORK)
                for record in records
            ]
        )

    async def ListVms(self, request: api.ListVmsRequest, context: Context) -> api.ListVmsResponse:
        inventory = self._parts.store.inventory
        host = lookup.host(inventory, request.host).id if request.host else ""

        def wanted(vm: Vm) -> bool:
            return (not host or vm.host == host) and (not request.name or vm.name == request.name)

        return api.ListVmsResponse(
            vms=[mapping.vm(self._parts, vm) for vm in inventory.vms.values() if wanted(vm)]
        )

    async def GetVm(self, request: api.GetVmRequest, context: Context) -> inventory_pb2.Vm:
        return mapping.vm(self._parts, lookup.vm(self._parts.store.inventory, request.vm))
