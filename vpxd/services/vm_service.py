"""Vpxd's rpcs that work on VMs."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from proto.host.v1 import operations_pb2
from proto.vim.v1.task_pb2 import TaskInfo
from proto.vpxd.v1 import service_pb2 as api
from runtime.faults import InvalidArgument
from runtime.rpc.identity import peer_of
from vpxd.agents.vpxa_client import ConsoleRange
from vpxd.operations import lookup, vm_lifecycle, vm_migrate, vm_power
from vpxd.services import mapping, mapping_relocate
from vpxd.services.base import Adapter, Context
from vpxd.services.mapping import task_info
from vpxd.wire import vm_config_from_wire


class VmService(Adapter):
    """Create, register, power, reconfigure, destroy, migrate, console."""

    async def CreateVm(self, request: api.CreateVmRequest, context: Context) -> TaskInfo:
        config = vm_config_from_wire(request.config)
        user = peer_of(context).name
        return task_info(
            await vm_lifecycle.create(self._parts, config, request.datastore, request.host, user)
        )

    async def RegisterVm(self, request: api.RegisterVmRequest, context: Context) -> TaskInfo:
        user = peer_of(context).name
        return task_info(await vm_lifecycle.register(self._parts, request.home, request.host, user))

    async def UnregisterVm(self, request: api.VmOperationRequest, context: Context) -> TaskInfo:
        return task_info(await vm_lifecycle.unregister(self._parts, request.vm, peer_of(context).name))

    async def PowerOnVm(self, request: api.VmOperationRequest, context: Context) -> TaskInfo:
        return task_info(await vm_power.power_on(self._parts, request.vm, peer_of(context).name))

    async def PowerOffVm(self, request: api.VmOperationRequest, context: Context) -> TaskInfo:
        return task_info(await vm_power.power_off(self._parts, request.vm, peer_of(context).name))

    async def ResetVm(self, request: api.VmOperationRequest, context: Context) -> TaskInfo:
        return task_info(await vm_power.reset(self._parts, request.vm, peer_of(context).name))

    async def ReconfigureVm(self, request: api.ReconfigureVmRequest, context: Context) -> TaskInfo:
        config = vm_config_from_wire(request.config)
        user = peer_of(context).name
        return task_info(await vm_lifecycle.reconfigure(self._parts, request.vm, config, user))

    async def DestroyVm(self, request: api.VmOperationRequest, context: Context) -> TaskInfo:
        return task_info(await vm_lifecycle.destroy(self._parts, request.vm, peer_of(context).name))

    async def MigrateVm(self, request: api.MigrateVmRequest, context: Context) -> TaskInfo:
        options = mapping.migration_options(request.options)
        user = peer_of(context).name
        return task_info(await vm_migrate.migrate(self._parts, request.vm, request.host, options, user))

    async def CheckMigrate(
        self, request: api.CheckMigrateRequest, context: Context
    ) -> api.CheckMigrateResponse:
        found = vm_migrate.check(self._parts, request.vm, request.host)
        return api.CheckMigrateResponse(hosts=[mapping.host_findings(entry) for entry in found])

    async def RelocateVm(self, request: api.RelocateVmRequest, context: Context) -> TaskInfo:
        wanted = mapping_relocate.wish(request)
        return task_info(await vm_migrate.relocate(self._parts, wanted, peer_of(context).name))

    async def CheckRelocate(
        self, request: api.RelocateVmRequest, context: Context
    ) -> api.CheckMigrateResponse:
        found = await vm_migrate.check_relocate(self._parts, mapping_relocate.wish(request))
        return api.CheckMigrateResponse(hosts=[mapping.host_findings(entry) for entry in found])

    async def RecommendHosts(
        self, request: api.RelocateVmRequest, context: Context
    ) -> api.RecommendHostsResponse:
        hosts = await vm_migrate.recommend(self._parts, mapping_relocate.wish(request))
        return api.RecommendHostsResponse(hosts=[mapping_relocate.recommendation(host) for host in hosts])

    async def ReadConsole(
        self, request: api.ReadConsoleRequest, context: Context
    ) -> AsyncIterator[operations_pb2.ReadConsoleResponse]:
        if request.port not in ("", "console", "heartbeat"):
            raise InvalidArgument(f"there is no port {request.port[:40]!r}", argument="port")
        vm, host = lookup.vm_on_connected_host(self._parts, request.vm)
        client = self._parts.agents.connected_client(host)
        part = ConsoleRange(request.follow, request.tail_bytes, request.port)
        async with aclosing(client.read_console(vm.uuid, part)) as pieces:
            async for data in pieces:
                yield operations_pb2.ReadConsoleResponse(data=data)
