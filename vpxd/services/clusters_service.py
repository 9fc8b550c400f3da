"""The Clusters service: EVC and affinity rules."""

from proto.host.v1 import operations_pb2
from proto.vim.v1.task_pb2 import TaskInfo
from proto.vpxd.v1 import clusters_pb2 as api
from proto.vpxd.v1 import clusters_pb2_grpc
from runtime import cpu_baselines
from runtime.rpc.identity import peer_of
from vpxd.operations import evc, rules
from vpxd.operations.parts import Parts
from vpxd.services import mapping
from vpxd.services.base import Context
from vpxd.services.mapping import task_info


class ClustersService(clusters_pb2_grpc.ClustersServicer):
    """All rpcs of proto/vpxd/v1/clusters.proto."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def ListEvcModes(
        self, request: api.ListEvcModesRequest, context: Context
    ) -> api.ListEvcModesResponse:
        return api.ListEvcModesResponse(
            modes=[
                api.EvcMode(
                    key=one.key,
                    vendor=one.vendor,
                    tier=one.tier,
                    label=one.label,
                    cpu_model=one.cpu_model,
                    added_features=one.added_features,
                )
                for one in cpu_baselines.BASELINES
            ]
        )

    async def GetEvc(self, request: api.GetEvcRequest, context: Context) -> api.GetEvcResponse:
        return _evc(evc.get(self._parts, request.cluster))

    async def SetEvc(self, request: api.SetEvcRequest, context: Context) -> api.GetEvcResponse:
        user = peer_of(context).name
        return _evc(await evc.set_mode(self._parts, request.cluster, request.mode, user))

    async def SetVmEvc(self, request: api.SetVmEvcRequest, context: Context) -> TaskInfo:
        user = peer_of(context).name
        return task_info(await evc.set_vm_mode(self._parts, request.vm, request.mode, user))

    async def SetRule(self, request: api.Rule, context: Context) -> api.Rule:
        return await rules.set_rule(self._parts, request)

    async def DeleteRule(self, request: api.RuleRequest, context: Context) -> operations_pb2.EmptyResponse:
        await rules.delete_rule(self._parts, request.cluster, request.name)
        return operations_pb2.EmptyResponse()

    async def ListRules(self, request: api.ListRulesRequest, context: Context) -> api.ListRulesResponse:
        return api.ListRulesResponse(rules=rules.list_rules(self._parts, request.cluster))


def _evc(value: evc.ClusterEvc) -> api.GetEvcResponse:
    return api.GetEvcResponse(
        cluster=value.cluster.id,
        mode=value.cluster.evc_mode,
        modes=[
            api.EvcFit(mode=key, findings=[mapping.finding(entry, "") for entry in findings])
            for key, findings in value.modes
        ],
    )
