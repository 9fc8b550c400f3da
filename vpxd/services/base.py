"""What the adapters of the Vpxd service share."""

from dataclasses import dataclass

import grpc

from proto.vpxd.v1 import service_pb2_grpc
from runtime.rpc.identity import ClusterAuthority
from vpxd.enrollment.tokens import EnrollmentDesk
from vpxd.operations.parts import Parts

Context = grpc.aio.ServicerContext[object, object]


@dataclass(frozen=True)
class ServiceParts:
    """What the adapters call; `join_address` is told to those who want to join."""

    parts: Parts
    desk: EnrollmentDesk
    authority: ClusterAuthority
    join_address: str
    version: str


class Adapter(service_pb2_grpc.VpxdServicer):
    """Base of the adapters: each implements a part of the Vpxd service."""

    def __init__(self, services: ServiceParts) -> None:
        self._services = services
        self._parts = services.parts
